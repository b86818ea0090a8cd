"""`fsr train`: the whole recipe in four resumable stages, then the packaged folder.

vision (CLIP pair) -> symbols (language model on label embeddings) -> fit (projector regressed onto those symbols) ->
language (projector and language model on the frozen tower's features, first on 64 patches, then on all). Stages
vision and symbols do not depend on each other. `scale` shortens every stage for trials; the shipped weights were
made with scale 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from fsr.minivlm.build import build_clip, build_llava
from fsr.minivlm.loop import run_stage
from fsr.minivlm.train_language import (
    LanguageBatch,
    LookUps,
    Symbols,
    language_batch,
    language_loss,
    tower_features,
)
from fsr.minivlm.train_vision import ReadOuts, VisionBatch, vision_batch, vision_loss

__all__ = ["STAGES", "Recipe", "load_parts", "part_of", "stage_weights", "train_stage"]

STAGES = ("vision", "symbols", "fit", "language")
# Kinds that need two look-ups, or that few scenes allow, are asked more often.
WEIGHTS = dict(
    existence=1.2, reading=1.0, background=0.5, comparison=1.6, neighbor=1.2, count=1.0, position=1.0, color=1.0
)
WIDTH = 192


@dataclass(frozen=True)
class Recipe:
    """Steps of each stage at batch 8. few: how many of the steps use 80 (vision) or 64 (language) patches only.

    symbols_stop: the stage ends there on its schedule of `symbols` steps: 98 % of the questions were right by then.
    """

    vision: int = 9000
    vision_few: int = 6200
    symbols: int = 5000
    symbols_stop: int = 3000
    fit: int = 500
    language: int = 3600
    language_few: int = 2000
    batch: int = 8
    questions: int = 12
    seed: int = 1

    def scaled(self, scale: float) -> Recipe:
        """The same recipe with every number of steps times `scale`, at least one."""
        names = ("vision", "vision_few", "symbols", "symbols_stop", "fit", "language", "language_few")
        return Recipe(
            **{n: max(1, round(getattr(self, n) * scale)) for n in names}, batch=self.batch, questions=self.questions
        )


def stage_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a stage's checkpoint, by the names of its modules."""
    return torch.load(path, map_location="cpu", weights_only=True)["modules"]


def part_of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of one module, without its name."""
    return {k[len(prefix) + 1 :]: v for k, v in state.items() if k.startswith(prefix + ".")}


def load_parts(folder: Path, recipe: Recipe) -> tuple[LlavaForConditionalGeneration, Symbols]:
    """LLaVA and the symbols with the weights of every stage in `folder` that exists, random otherwise."""
    torch.manual_seed(recipe.seed + 1)
    model, symbols = build_llava(), Symbols(WIDTH)
    nn.init.normal_(model.model.language_model.embed_tokens.weight, std=0.08)
    if (folder / "vision.pt").exists():
        model.model.vision_tower.load_state_dict(part_of(stage_weights(folder / "vision.pt"), "clip.vision_model"))
    if (folder / "symbols.pt").exists():
        state = stage_weights(folder / "symbols.pt")
        model.model.language_model.load_state_dict(part_of(state, "lm"))
        symbols.load_state_dict(part_of(state, "symbols"))
    if (folder / "fit.pt").exists():
        model.model.multi_modal_projector.load_state_dict(part_of(stage_weights(folder / "fit.pt"), "projector"))
    if (folder / "language.pt").exists():
        state = stage_weights(folder / "language.pt")
        model.model.multi_modal_projector.load_state_dict(part_of(state, "projector"))
        model.model.language_model.load_state_dict(part_of(state, "lm"))
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    model.set_attn_implementation("eager")  # the guides read attention maps; at this size it is also the faster path
    return model, symbols


def train_stage(stage: str, folder: Path, recipe: Recipe, device: torch.device, workers: int = 1) -> None:
    """Run one stage to its end, resuming from `folder/<stage>.pt` if it was interrupted."""
    r = recipe

    def scenes(rng: np.random.Generator, step: int) -> LanguageBatch:
        return language_batch(rng, r.batch, r.questions, WEIGHTS)

    if stage == "vision":
        torch.manual_seed(r.seed)
        clip, heads = build_clip(), ReadOuts(WIDTH).to(device)
        nn.Module.to(clip, device)
        clip.vision_model.set_attn_implementation("eager")

        def see(rng: np.random.Generator, step: int) -> VisionBatch:
            return vision_batch(rng, r.batch)

        def vision(batch: VisionBatch, step: int) -> tuple[Tensor, dict[str, float]]:
            return vision_loss(clip, heads, batch, 80 if step < r.vision_few else None)

        modules = nn.ModuleDict({"clip": clip, "heads": heads})
        run_stage(stage, folder, modules, see, vision, r.vision, 1e-3, r.seed, device, workers)
        return
    model, symbols = load_parts(folder, r)
    nn.Module.to(model, device)
    symbols.to(device)
    if stage == "symbols":
        maps = LookUps(model)

        def look_up(batch: LanguageBatch, step: int) -> tuple[Tensor, dict[str, float]]:
            return language_loss(model, maps, batch, 64, 1.0, symbols)

        modules = nn.ModuleDict({"lm": model.model.language_model, "symbols": symbols})
        run_stage(
            stage, folder, modules, scenes, look_up, r.symbols, 1e-3, r.seed + 1, device, workers, stop=r.symbols_stop
        )
    elif stage == "fit":
        projector = model.model.multi_modal_projector

        def fit(batch: LanguageBatch, step: int) -> tuple[Tensor, dict[str, float]]:
            with torch.no_grad():
                target = symbols(batch.labels)
            error = F.mse_loss(projector(tower_features(model, batch.pixels)).float(), target) / target.var()
            return error, {"unexplained": float(error.detach())}

        modules = nn.ModuleDict({"projector": projector})
        run_stage(stage, folder, modules, scenes, fit, r.fit, 2e-3, r.seed + 2, device, workers)
    elif stage == "language":
        maps = LookUps(model)

        def answer(batch: LanguageBatch, step: int) -> tuple[Tensor, dict[str, float]]:
            guide = max(0.0, 1.0 - step / (0.7 * r.language))
            return language_loss(model, maps, batch, 64 if step < r.language_few else None, guide)

        modules = nn.ModuleDict({"projector": model.model.multi_modal_projector, "lm": model.model.language_model})
        run_stage(stage, folder, modules, scenes, answer, r.language, 7e-4, r.seed + 3, device, workers)
    else:
        raise ValueError(f"unknown stage {stage!r}: use one of {', '.join(STAGES)}")
