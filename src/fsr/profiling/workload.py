"""What is measured: a model, a way to make its inputs (timed as preprocessing where a processor does it), a text
tower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fsr.errors import UsageError
from fsr.profiling.configs import CONFIGS, named
from fsr.profiling.inputs import synthetic
from fsr.profiling.random_weights import RandomWords, random_model, random_twin, shorten
from fsr.profiling.visual import Visual, visual

__all__ = ["Workload", "from_checkpoint", "from_config"]

QUESTION = "what is the colour of the thing in picture number {} ?"


@dataclass(frozen=True)
class Workload:
    """A model ready to be measured.

    name: for the report. weights: "random" or "checkpoint". inputs: batch size and run number to keyword arguments of
    `generate` and the question (None: read from nothing, the model has no paired text tower). relevance: what `prepare`
    takes, None where no source is at hand; processor: of these inputs, for relevance that reads the question's tokens.
    picture: the visual side by the config, None if the family cannot be counted. preprocessed: True if `inputs` is real
    preprocessing. notes: what a reader must know.
    """

    name: str
    model: Any
    weights: str
    inputs: Callable[[int, int], tuple[dict[str, Any], str]]
    relevance: Any
    picture: Visual | None
    preprocessed: bool
    notes: tuple[str, ...] = ()
    processor: Any = None


def from_config(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    layers: int | None = None,
    text: int = 80,
    size: tuple[int, int] | None = None,
    config: Any = None,
    text_tower: Any = None,
    relevance: Any = "auto",
) -> Workload:
    """A true-size model by name (or a given config) with random weights and synthetic prompts.

    layers: build only that many language layers; the report then says so. text_tower: config of the tower that pairs
    with a CLIP vision tower (default: ViT-L/14-336's). relevance: "auto" is that tower, where there is one; else as for
    `prune`.
    """
    notes = []
    config = named(name) if config is None else config
    if layers is not None and layers != config.get_text_config().num_hidden_layers:
        notes.append(
            f"only {layers} of {config.get_text_config().num_hidden_layers} language layers were built: shares, "
            "ceilings and totals are not those of the whole model"
        )
        shorten(config, layers)
    picture = visual(config, size)
    model = random_model(config, device, dtype)
    tower = getattr(model.model, "vision_tower", None)
    if relevance == "auto" and tower is not None and config.vision_config.model_type == "clip_vision_model":
        relevance = random_twin(tower, device, text_tower)
        if text_tower is None and config.vision_config.hidden_size != 1024:
            notes.append("the text tower has the size of CLIP ViT-L/14's")
    elif relevance == "auto":
        relevance = None
        notes.append("no text tower pairs with this vision tower: methods run without relevance where they can")
    notes.append("synthetic pixels and words: preprocessing is not measured")

    def inputs(batch: int, run: int) -> tuple[dict[str, Any], str]:
        made = synthetic(config, picture, size=size, batch=batch, text=text, dtype=dtype, device=device, seed=run)
        return made, QUESTION.format(run)

    checkpoint = CONFIGS[name].checkpoint if name in CONFIGS else type(config).__name__
    notes.append(f"random weights in the shape of {checkpoint}")
    words = RandomWords(config.get_text_config().vocab_size)
    return Workload(name, model, "random", inputs, relevance, picture, False, tuple(notes), words)


def from_checkpoint(name: str, *, device: str, dtype: torch.dtype | None = None, relevance: Any = "auto") -> Workload:
    """An embedded model, a folder or a hub id, asked about the bundled scene through its own processor.

    relevance: as for `prune`.
    """
    from fsr.asking.chat import chat_inputs
    from fsr.asking.images import bundled_scene
    from fsr.asking.load import load

    model, processor = load(name, device, dtype)
    scene = bundled_scene(model=name)
    try:
        picture = visual(model.config, (scene.height, scene.width))
    except ValueError:  # a family without counts is measured all the same
        picture = None

    def inputs(batch: int, run: int) -> tuple[dict[str, Any], str]:
        question = QUESTION.format(run)
        rows = [chat_inputs(processor, scene, question) for _ in range(batch)]
        joined = {}
        for key, value in rows[0].items():
            if not isinstance(value, torch.Tensor):
                raise UsageError(f"the processor of {name!r} gives {key} as {type(value).__name__}: cannot batch it.")
            value = torch.cat([row[key] for row in rows])
            joined[key] = value.to(model.device, model.dtype if value.is_floating_point() else None)
        return joined, question

    return Workload(name, model, "checkpoint", inputs, relevance, picture, True, processor=processor)
