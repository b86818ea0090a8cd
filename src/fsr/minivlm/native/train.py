"""`fsr train --model mini-qwen3`: four resumable stages from the shipped weights of `mini` to the packaged folder.

vision (tower and mergers, with dense read-outs) -> symbols (language model on label embeddings, at the positions and on
the DeepStack levels where the tower's features will stand) -> fit (mergers regressed onto those symbols) -> language
(mergers and language model on the frozen tower's features, first on 64 tokens, then on all). Stages vision and symbols
do not depend on each other.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from fsr.minivlm.loop import run_stage
from fsr.minivlm.native.build import WIDTH, build_qwen3
from fsr.minivlm.native.language import Asked, asked_batch, fit_loss, language_loss
from fsr.minivlm.native.start import fitted_symbols, shipped_mini, transplant_language, transplant_vision
from fsr.minivlm.native.vision import NativeBatch, NativeReadOuts, vision_batch, vision_loss
from fsr.minivlm.train import STAGES, WEIGHTS, part_of, stage_weights
from fsr.minivlm.train_language import LookUps, Symbols

__all__ = ["NativeRecipe", "load_parts", "train_stage"]


@dataclass(frozen=True)
class NativeRecipe:
    """Steps of each stage.

    `*_few`: how many of them at batch 8 with 48 (vision) or 64 visual tokens of each scene, the others at batch 4 with
    all. fitted: scenes from which label embeddings are regressed. symbols_stop: the stage ends there on its schedule of
    `symbols` steps: 98 % of the questions were right by then.
    """

    vision: int = 3300
    vision_few: int = 2800
    fitted: int = 400
    symbols: int = 2400
    symbols_stop: int = 1600
    fit: int = 300
    language: int = 2400
    language_few: int = 1400
    questions: int = 12
    seed: int = 1

    def scaled(self, scale: float) -> NativeRecipe:
        """The same recipe with every number of steps times `scale`, at least one."""
        steps = [f.name for f in fields(self) if f.name not in ("questions", "seed")]
        return replace(self, **{n: max(1, round(getattr(self, n) * scale)) for n in steps})


def load_parts(
    folder: Path, recipe: NativeRecipe, first: bool = False
) -> tuple[Qwen3VLForConditionalGeneration, Symbols]:
    """The model and the symbols: `mini`'s weights, and over them those of every stage in `folder` that exists.

    first: regress the symbols from `mini` (some seconds), for the stage that starts from them.
    """
    torch.manual_seed(recipe.seed)
    model = build_qwen3()
    mini = shipped_mini()
    transplant_vision(mini, model)
    transplant_language(mini, model)
    symbols = fitted_symbols(mini, recipe.fitted) if first else Symbols(WIDTH)
    if (folder / "symbols.pt").exists():
        state = stage_weights(folder / "symbols.pt")
        model.model.language_model.load_state_dict(part_of(state, "lm"))
        symbols.load_state_dict(part_of(state, "symbols"))
    if (folder / "vision.pt").exists():
        model.model.visual.load_state_dict(part_of(stage_weights(folder / "vision.pt"), "visual"))
    for stage in ("fit", "language"):
        if (folder / f"{stage}.pt").exists():
            state = stage_weights(folder / f"{stage}.pt")
            for name, module in _mergers(model).items():
                module.load_state_dict(part_of(state, f"mergers.{name}"))
            if stage == "language":
                model.model.language_model.load_state_dict(part_of(state, "lm"))
    model.set_attn_implementation({"vision_config": "sdpa", "text_config": "eager"})  # the guides read attention maps
    return model, symbols


def _mergers(model: Qwen3VLForConditionalGeneration) -> nn.ModuleDict:
    visual = model.model.visual
    return nn.ModuleDict({"last": visual.merger, "deep": visual.deepstack_merger_list})


def train_stage(stage: str, folder: Path, recipe: NativeRecipe, device: torch.device, workers: int = 1) -> None:
    """Run one stage to its end, resuming from `folder/<stage>.pt` if it was interrupted."""
    r = recipe
    model, symbols = load_parts(folder, r, first=stage == "symbols" and not (folder / "symbols.pt").exists())
    visual = model.model.visual
    if stage == "vision":
        heads = NativeReadOuts(WIDTH)

        def see(rng: np.random.Generator, step: int) -> NativeBatch:
            return vision_batch(rng, 8 if step < r.vision_few else 4)

        def vision(batch: NativeBatch, step: int) -> tuple[Tensor, dict[str, float]]:
            return vision_loss(visual, heads, batch, 48 if step < r.vision_few else None)

        modules = nn.ModuleDict({"visual": visual, "heads": heads}).to(device)
        run_stage(stage, folder, modules, see, vision, r.vision, 8e-4, r.seed, device, workers, save_every=200)
        return
    # Scenes are drawn, and the frozen tower runs, on the CPU, in the processes that draw.
    frozen = build_qwen3().model.visual
    frozen.load_state_dict(visual.state_dict())
    frozen.set_attn_implementation("sdpa")
    frozen.requires_grad_(False)
    nn.Module.to(model, device)
    symbols.to(device)
    if stage == "symbols":
        maps = LookUps(model)

        def told(rng: np.random.Generator, step: int) -> Asked:
            return asked_batch(rng, 8, r.questions, WEIGHTS, None)

        def look_up(batch: Asked, step: int) -> tuple[Tensor, dict[str, float]]:
            return language_loss(model, maps, batch, 64, 1.0, symbols)

        modules = nn.ModuleDict({"lm": model.model.language_model, "symbols": symbols})
        run_stage(
            stage, folder, modules, told, look_up, r.symbols, 8e-4, r.seed + 1, device, workers,
            stop=r.symbols_stop, save_every=200,
        )  # fmt: skip
    elif stage == "fit":

        def shown(rng: np.random.Generator, step: int) -> Asked:
            return asked_batch(rng, 8, 1, WEIGHTS, frozen)

        def fit(batch: Asked, step: int) -> tuple[Tensor, dict[str, float]]:
            return fit_loss(visual, symbols, batch)

        modules = nn.ModuleDict({"mergers": _mergers(model)})
        run_stage(stage, folder, modules, shown, fit, r.fit, 1e-3, r.seed + 2, device, workers)
    elif stage == "language":
        maps = LookUps(model)

        def seen(rng: np.random.Generator, step: int) -> Asked:
            return asked_batch(rng, 8 if step < r.language_few else 4, r.questions, WEIGHTS, frozen)

        def answer(batch: Asked, step: int) -> tuple[Tensor, dict[str, float]]:
            guide = max(0.0, 1.0 - step / (0.7 * r.language))
            return language_loss(model, maps, batch, 64 if step < r.language_few else None, guide)

        modules = nn.ModuleDict({"mergers": _mergers(model), "lm": model.model.language_model})
        run_stage(stage, folder, modules, seen, answer, r.language, 7e-4, r.seed + 3, device, workers, save_every=200)
    else:
        raise ValueError(f"unknown stage {stage!r}: use one of {', '.join(STAGES)}")
