"""What one model family must tell us, and nothing about methods.

An adapter encodes the pictures of a prompt once with the model's own code and hands out one `VisualTokens` per placeholder run,
in the order in which the runs appear in `input_ids` (batch, then sequence). `prepare` does the rest for all families.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fsr.tokens import Selection, VisualTokens

__all__ = ["Adapter", "Encoded"]

Modality = Literal["image", "video"]


@dataclass(frozen=True)
class Encoded:
    """One modality of a prompt after the vision tower and projector.

    modality: which placeholders these features fill.
    units: one `VisualTokens` per image (or video), in scatter order. A unit may span several placeholder runs.
    patches: per unit, the tower's patch states [N, C] that the relevance head reads (None where no tower pairs with it).
    output: the model's own output object; its type and extra fields (deepstack) are reused when features are handed back.
    timings: milliseconds by stage ("vision_tower", "saliency", ...).
    """

    modality: Modality
    units: list[VisualTokens]
    patches: list[Tensor] | None
    output: Any
    timings: Mapping[str, float] = field(default_factory=dict)


class Adapter(ABC):
    """Knows one model family. Stateless apart from the model it was made for."""

    name: ClassVar[str] = ""
    position_policy: ClassVar[Literal["repack", "original"]] = "repack"

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.base: Any = getattr(model, "model", model)

    @classmethod
    @abstractmethod
    def matches(cls, model: nn.Module) -> bool:
        """True if this adapter knows the model (by `config.model_type`, never by class name)."""

    @property
    @abstractmethod
    def vision_tower(self) -> nn.Module:
        """The module whose attention gives saliency."""

    @abstractmethod
    def placeholder_ids(self) -> dict[Modality, int]:
        """Token id of the placeholders of each modality."""

    @abstractmethod
    def encode(self, inputs: Mapping[str, Any], signals: frozenset[str]) -> list[Encoded]:
        """Run the model's own `get_image_features` / `get_video_features` once and collect the signals that the method needs."""

    @abstractmethod
    def hand_over(self, encoded: Encoded, selections: list[Selection]) -> Any:
        """A new, small output object of the model's own type that holds only the selected features (for `mm_encoder_outputs`)."""

    @abstractmethod
    def pixel_arguments(self) -> frozenset[str]:
        """Names of the inputs that carry pixels and their sizes; dropped once features are handed over."""

    def positions(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Full-length position ids of the unpruned prompt for multi-dimensional RoPE ([R, B, L]), else None (1-D, numbered by the model)."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the token embeddings live."""
        return self.model.get_input_embeddings().weight.device
