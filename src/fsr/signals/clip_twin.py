"""The CLIP text tower that was trained with a vision tower, and the head that brings patches into the common space.

Only what scoring needs is loaded: the text half, `visual_projection`, `post_layernorm`, and the two small embeddings of
the vision half that tell whether it is the same tower.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize

from fsr.errors import RelevanceError
from fsr.signals.progress_bars import without_progress_bars
from fsr.signals.text_cache import TextCache
from fsr.signals.weights import is_adapted, layer_samples, weight_of

__all__ = ["ClipTwin", "Resemblance", "embeddings_of", "load_twin", "resemblance", "save_twin"]

FOLDER = "text_tower"
SAMPLE = "sample."  # of a layer of the vision half, in the file of the head
HEAD = "visual_head.safetensors"
SETTINGS = "relevance.json"
HEAD_NAMES = (
    "visual_projection",
    "post_layernorm.weight",
    "post_layernorm.bias",
    "patch_embedding",
    "position_embedding",
)


class Resemblance(Enum):
    """How the twin's own patch and position embeddings compare with a model's tower."""

    EQUAL = "equal"
    CLOSE = "close"
    FAR = "far"


class ClipTwin:
    """Relevance of patches: sign * cos(visual_projection(post_layernorm(h)), mean text embedding of the question). FSR
    Eq. 2.

    Args:
        text: a `CLIPTextModelWithProjection`. tokenizer: its tokenizer.
        head: the tensors `HEAD_NAMES`, and samples of the vision half's layers (`sample.*`) where they are known.
        eps: of the layer norm.
        sign: +1, or -1 for towers whose patch similarity is inverted (real CLIP).
        layer: hidden state of the tower that is scored, -2 (the one LLaVA reads) or -1.
        source: name for messages.
    """

    def __init__(
        self,
        text: nn.Module,
        tokenizer: Any,
        head: dict[str, Tensor],
        *,
        eps: float,
        sign: int,
        layer: int = -2,
        source: str,
    ) -> None:
        if sign not in (1, -1) or layer not in (-1, -2):
            raise RelevanceError(f"{source}: sign must be +1 or -1 and layer -1 or -2, not {sign} and {layer}.")
        self.text: Any = text.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.head = {name: head[name].detach().float() for name in HEAD_NAMES}
        self.samples = {name: value.detach() for name, value in head.items() if name.startswith(SAMPLE)}
        self.eps, self.sign, self.layer, self.source = eps, sign, layer, source
        self._heads: dict[torch.device, dict[str, Tensor]] = {}
        self.texts = TextCache(self._embed)

    @classmethod
    def from_checkpoint(cls, repository: str, *, sign: int, layer: int = -2) -> ClipTwin:
        """From a CLIP checkpoint (folder or hub name), without the layers of its vision half."""
        from transformers import (
            AutoTokenizer,
            CLIPTextModelWithProjection,
            CLIPVisionConfig,
            CLIPVisionModelWithProjection,
        )

        config = CLIPVisionConfig.from_pretrained(repository)
        config.num_hidden_layers = 0
        vision = _part_of(repository, CLIPVisionModelWithProjection, config=config)
        text = _part_of(repository, CLIPTextModelWithProjection)
        tokenizer = AutoTokenizer.from_pretrained(repository)
        return cls(text, tokenizer, _head(vision), eps=config.layer_norm_eps, sign=sign, layer=layer, source=repository)

    @classmethod
    def from_clip(cls, clip: Any, tokenizer: Any, *, sign: int, layer: int = -2) -> ClipTwin:
        """From a whole `CLIPModel` in memory (weights are shared, not copied)."""
        from transformers import CLIPTextModelWithProjection

        text: Any = CLIPTextModelWithProjection(clip.config.text_config)
        text.text_model, text.text_projection = clip.text_model, clip.text_projection
        eps = clip.config.vision_config.layer_norm_eps
        head = {**_head(clip), **{SAMPLE + n: v for n, v in layer_samples(clip.vision_model).items()}}
        return cls(text, tokenizer, head, eps=eps, sign=sign, layer=layer, source="the CLIP model given")

    def __call__(self, patches: Tensor, question: str) -> Tensor:
        """patches [..., C] -> float32 [...]."""
        return self.sign * (self.embed_patches(patches) @ self.embed_text(question, patches.device))

    @torch.no_grad()
    def embed_patches(self, patches: Tensor) -> Tensor:
        """Unit vectors in the common space: [..., C] -> float32 [..., P]."""
        if patches.device not in self._heads:
            self._heads[patches.device] = {name: value.to(patches.device) for name, value in self.head.items()}
        head = self._heads[patches.device]
        width = patches.shape[-1:]
        weight, bias = head["post_layernorm.weight"], head["post_layernorm.bias"]
        if width != weight.shape:
            raise RelevanceError(
                f"patches are {width[0]} wide and {self.source} takes {weight.shape[0]}: wrong text tower."
            )
        return normalize(
            layer_norm(patches.float(), width, weight, bias, self.eps) @ head["visual_projection"].T, dim=-1
        )

    def embed_text(self, question: str, device: torch.device) -> Tensor:
        """The question as a unit vector, float32 [P]. Texts beyond the tower's length are cut into chunks and
        averaged."""
        return self.texts(question, device)

    @torch.no_grad()
    def _embed(self, question: str, device: torch.device) -> Tensor:
        if self.text.device != device:
            self.text.to(device)
        parts = [
            normalize(self.text(input_ids=torch.tensor([ids], device=device)).text_embeds[0].float(), dim=-1)
            for ids in self._chunks(question)
        ]
        return normalize(torch.stack(parts).mean(dim=0), dim=-1)

    def compare(self, tower: nn.Module) -> Resemblance:
        """Compare patch and position embeddings, and samples of the layers where there are any, with a model's vision
        tower."""
        return resemblance(self.head, tower, {n.removeprefix(SAMPLE): v for n, v in self.samples.items()})

    def pieces(self, question: str) -> int:
        """Chunks that a question of this length is cut into."""
        return len(self._chunks(question))

    def _chunks(self, question: str) -> list[list[int]]:
        whole = self.tokenizer(question).input_ids
        longest = self.text.config.max_position_embeddings
        if len(whole) <= longest:
            return [whole]
        core = self.tokenizer(question, add_special_tokens=False).input_ids
        lead = next(i for i in range(len(whole)) if whole[i : i + len(core)] == core)
        first, last = whole[:lead], whole[lead + len(core) :]
        room = longest - len(first) - len(last)
        return [first + core[i : i + room] + last for i in range(0, len(core), room)]


def resemblance(
    own: Mapping[str, Tensor], tower: nn.Module, samples: Mapping[str, Tensor] | None = None
) -> Resemblance:
    """How far a tower's patch and position embeddings are from `own` (relative distance, 0.5 % is rounding), and its
    layers from `samples` of them. Adapters in the tower (LoRA) make it a fine-tuned one."""
    other = embeddings_of(tower)
    if not other or (worst := _worst(own, other)) > 0.5:
        return Resemblance.FAR
    if worst > 5e-3 or is_adapted(tower) or (samples and _worst(samples, layer_samples(tower)) > 5e-3):
        return Resemblance.CLOSE
    return Resemblance.EQUAL


def _worst(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest relative distance; infinity for another shape."""
    worst = 0.0
    for name, value in other.items():
        if name not in own or own[name].shape != value.shape:
            return float("inf")
        mine = own[name].to(value.device).float()
        worst = max(worst, float((mine - value.float()).norm() / mine.norm().clamp_min(1e-12)))
    return worst


def save_twin(folder: str | Path, twin: ClipTwin) -> Path:
    """Write `folder/text_tower/` so that `load_twin(folder)`, and "auto" for a model saved in `folder`, find it
    again."""
    from safetensors.torch import save_file

    place = Path(folder) / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    twin.text.save_pretrained(place)
    twin.tokenizer.save_pretrained(place)
    dtype = next(twin.text.parameters()).dtype
    tensors = {**twin.head, **twin.samples}
    save_file({n: v.to(dtype).contiguous().cpu() for n, v in tensors.items()}, str(place / HEAD))
    settings = {"kind": "clip", "sign": twin.sign, "layer": twin.layer, "eps": twin.eps}
    (place / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return place


def load_twin(folder: str | Path) -> ClipTwin:
    """The text tower saved beside a model (`folder/text_tower/`).

    Raises:
        RelevanceError: files are missing or of another kind.
    """
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    place = Path(folder) / FOLDER
    if not (place / SETTINGS).is_file() or not (place / HEAD).is_file():
        raise RelevanceError(f"{place} lacks {SETTINGS} or {HEAD}: write it with save_twin().")
    settings = json.loads((place / SETTINGS).read_text(encoding="utf-8"))
    if settings.get("kind") != "clip":
        raise RelevanceError(f"{place / SETTINGS} is of kind {settings.get('kind')!r}; only 'clip' is known here.")
    with without_progress_bars():
        text = CLIPTextModelWithProjection.from_pretrained(place)
    head = load_file(str(place / HEAD))
    return ClipTwin(
        text,
        AutoTokenizer.from_pretrained(place),
        head,
        eps=float(settings.get("eps", 1e-5)),
        sign=int(settings["sign"]),
        layer=int(settings["layer"]),
        source=str(place),
    )


def _part_of(repository: str, cls: Any, **options: Any) -> Any:
    """One half of a checkpoint. Transformers lists every tensor of the other half in a warning; what counts is that
    none of this half is missing."""
    log = logging.getLogger("transformers.modeling_utils")

    def quiet(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    log.addFilter(quiet)
    try:
        model, info = cls.from_pretrained(repository, output_loading_info=True, **options)
    finally:
        log.removeFilter(quiet)
    lacking = sorted(str(k) for k in [*info["missing_keys"], *info["mismatched_keys"]])
    if lacking:
        raise RelevanceError(f"{repository} is no CLIP checkpoint that fits: it lacks {', '.join(lacking[:3])}, ...")
    return model


def _head(vision: Any) -> dict[str, Tensor]:
    norm = vision.vision_model.post_layernorm
    return {
        "visual_projection": vision.visual_projection.weight,
        "post_layernorm.weight": norm.weight,
        "post_layernorm.bias": norm.bias,
        **embeddings_of(vision.vision_model),
    }


def embeddings_of(tower: nn.Module) -> dict[str, Tensor]:
    """Weights of the modules named patch_embedding and position_embedding, wherever a release keeps them."""
    found = {}
    for path, module in tower.named_modules():
        name = path.rpartition(".")[2]
        if name in ("patch_embedding", "position_embedding") and isinstance(getattr(module, "weight", None), Tensor):
            found[name] = weight_of(module)
    return found
