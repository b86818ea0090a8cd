"""How relevant each patch is to the question (FSR Eq. 2): what scores it, and which text tower belongs to a model.

Relevance is only meaningful in the space of the text tower that was trained together with the vision tower.
`paired_tower` finds that tower or says that there is none; nothing is guessed in silence.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from fsr.errors import RelevanceError
from fsr.signals.clip_twin import ClipTwin, Resemblance, load_twin
from fsr.signals.siglip_twin import SiglipTwin

__all__ = ["RelevanceScorer", "Twin", "paired_tower", "reads_features", "source_of", "verified"]


@runtime_checkable
class RelevanceScorer(Protocol):
    """Anything that scores patches against a question.

    layer: the hidden state of the vision tower it reads, -1 or -2. More attributes are optional: `source`, its name for
    the report; `tile_head`, a function of the states of whole tiles [T, P, C] that runs before they are packed;
    `reads_features = True` for scorers of projected features instead of tower states, which may then have
    `bound(processor)`, the same scorer with the model's tokenizer (see `FirstLayerRelevance`).
    """

    layer: int

    def __call__(self, patches: Tensor, question: str) -> Tensor:
        """patches [..., C] of one picture -> float32 [...], higher is more relevant (the sign is applied already)."""
        ...


# Fingerprint of a vision tower (model type, width, layers, patch, image side) -> the CLIP checkpoint it came from, and
# the sign. Real CLIP: patch-text similarity is inverted, background scores higher than the object (CLIP Surgery, arXiv
# 2304.05653).
TWINS: dict[tuple[str, int, int, int, int], tuple[str, int]] = {
    ("clip_vision_model", 1024, 24, 14, 336): ("openai/clip-vit-large-patch14-336", -1),
    ("clip_vision_model", 1024, 24, 14, 224): ("openai/clip-vit-large-patch14", -1),
    ("clip_vision_model", 768, 12, 16, 224): ("openai/clip-vit-base-patch16", -1),
    ("clip_vision_model", 768, 12, 32, 224): ("openai/clip-vit-base-patch32", -1),
    ("siglip_vision_model", 1152, 26, 14, 384): ("google/siglip-so400m-patch14-384", 1),
    ("siglip_vision_model", 1152, 27, 14, 384): ("google/siglip-so400m-patch14-384", 1),
}
Twin = ClipTwin | SiglipTwin


def reads_features(scorer: object) -> bool:
    """True for scorers of projected features, which need nothing recorded in the vision tower."""
    return bool(getattr(scorer, "reads_features", False))


def source_of(scorer: object) -> str:
    """A scorer's name for reports, "none" without one."""
    return "none" if scorer is None else str(getattr(scorer, "source", type(scorer).__name__))


def paired_tower(name: str, tower: nn.Module, family: str) -> Twin:
    """The text tower that pairs with `tower`, the vision tower of the model in folder (or of hub id) `name`.

    Raises:
        RelevanceError: none known, not loadable, or its vision tower differs from `tower`.
    """
    return verified(tower, _load(name, tower, family))


def fingerprint(tower: nn.Module) -> tuple[str, int, int, int, int] | None:
    """What tells vision towers apart, or None for towers without these settings."""
    config = getattr(tower, "config", None)
    names = ("hidden_size", "num_hidden_layers", "patch_size", "image_size")
    values = [getattr(config, n, None) for n in names]
    if not all(isinstance(v, int) for v in values):
        return None
    return (str(getattr(config, "model_type", "")), *[int(v) for v in values])  # type: ignore[return-value, arg-type]


def _load(name: str, tower: nn.Module, family: str) -> Twin:
    hint = "pass relevance=<a scorer> (for example load_twin(folder)) or relevance='none'"
    if name and (Path(name) / "text_tower" / "relevance.json").is_file():
        return load_twin(name)
    kind = fingerprint(tower) or ("", 0, 0, 0, 0)
    known = TWINS.get(kind)
    if known is None:
        raise RelevanceError(f"no text tower is known to pair with the vision tower of this {family} model: {hint}.")
    repository, sign = known
    try:
        if kind[0] == "siglip_vision_model":
            return SiglipTwin.from_checkpoint(repository, sign=sign, tower_layers=kind[2])
        return ClipTwin.from_checkpoint(repository, sign=sign)
    except OSError as error:
        raise RelevanceError(f"the text tower {repository} could not be loaded ({error}): {hint}.") from error


def verified(tower: nn.Module, twin: Twin) -> Twin:
    """`twin`, if its own vision tower has the weights of `tower`; a warning where they were fine-tuned since.

    Raises:
        RelevanceError: other weights.
    """
    result = twin.compare(tower)
    if result is Resemblance.FAR:
        raise RelevanceError(
            f"{twin.source} is not where this model's vision tower comes from (its embeddings differ): "
            "pass the right scorer, or relevance='none'."
        )
    if result is Resemblance.CLOSE:
        warnings.warn(
            f"the vision tower was fine-tuned after {twin.source}: relevance is approximate.", UserWarning, stacklevel=2
        )
    return twin
