"""What one model family must tell us, and nothing about methods.

An adapter encodes the pictures of a prompt once with the model's own code and hands out one `VisualTokens` per picture
(or clip), in the order in which the placeholders appear in `input_ids` (batch, then sequence). `prepare` does the rest
for all families.

A new family is a subclass with `model_types` and `units`; everything else has a default that fits most:

    @register
    class MyAdapter(Adapter):
        name = "my-vlm"
        model_types = frozenset({"my_vlm"})

        def units(self, modality, output, tower, inputs): ...
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fsr.adapters.containers import rebuild
from fsr.adapters.vision_call import call_vision
from fsr.device import synchronise
from fsr.errors import UnsupportedModelError
from fsr.signals.attention import LayerStates, cls_attention, received_attention
from fsr.signals.tap import attention_layers, eager_if_compiled, record_layers
from fsr.tokens import Selection, VisualTokens

__all__ = ["Adapter", "Encoded", "Modality", "TowerStates", "Units"]

Modality = Literal["image", "video"]
PatchHead = Callable[[Tensor], Tensor]
MODALITIES: tuple[Modality, ...] = ("image", "video")
PIXELS = frozenset({"pixel_values", "pixel_values_images", "pixel_values_videos"})


@dataclass(frozen=True)
class TowerStates:
    """What the taps saw, in the tower's own order: T pictures (or tiles) of P patches, [CLS] removed.

    saliency: float32 [T, P] or None.
    extra: other signals of the taps by name, [T, P] or [T, P, C].
    signals: what the method asks for. patch_layer: hidden state that the relevance head reads (-1 or -2).
    patch_head: what the relevance head does to the states of a whole tile [T, P, C] before they are packed, or None.
    """

    saliency: Tensor | None
    extra: Mapping[str, Tensor]
    signals: frozenset[str]
    patch_layer: int
    patch_head: PatchHead | None = None

    def read_patches(self, states: Tensor) -> Tensor:
        """[T, P, C] as the relevance head wants to get them, packed afterwards."""
        return states if self.patch_head is None else self.patch_head(states)


@dataclass(frozen=True)
class Units:
    """Per picture: its tokens, and the tower states that the relevance head reads.

    patches: [N, C] per unit, or [N, m, C] where a token was made of m patches (their scores are averaged); None without
        "relevance".
    """

    tokens: list[VisualTokens]
    patches: list[Tensor] | None


@dataclass(frozen=True)
class Encoded:
    """One modality of a prompt after the vision tower and projector.

    modality: which placeholders these features fill.
    units: one `VisualTokens` per image (or video), in scatter order. A unit may span several placeholder runs.
    patches: per unit, the tower's patch states that the relevance head reads (see `Units`).
    output: the model's own output object; its type and extra fields (deepstack) are reused when features are handed
        back.
    timings: milliseconds by stage ("vision_tower", "saliency", ...).
    placeholders: per unit, how many placeholders the prompt has for it, where that differs from N.
    """

    modality: Modality
    units: list[VisualTokens]
    patches: list[Tensor] | None
    output: Any
    timings: Mapping[str, float] = field(default_factory=dict)
    placeholders: tuple[int, ...] | None = None


class Adapter(ABC):
    """Knows one model family. Stateless apart from the model it was made for.

    position_policy: "repack" numbers the shortened prompt anew (1-D RoPE); "original" keeps the coordinates
        (multi-dimensional RoPE).
    chunked_prefill: False where the model itself answers differently under `prefill_chunk_size`.
    forward_position_offset: what `generate` adds to position ids and `forward` expects to be added already (PaliGemma:
        1).
    """

    name: ClassVar[str] = ""
    model_types: ClassVar[frozenset[str]] = frozenset()
    position_policy: ClassVar[Literal["repack", "original"]] = "repack"
    chunked_prefill: ClassVar[bool] = True
    forward_position_offset: ClassVar[int] = 0
    paired_text_tower: ClassVar[bool] = True
    announcement: ClassVar[str] = ""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        inner: Any = getattr(model, "model", model)
        # Where there is no model around tower and decoder, `model.model` is the decoder alone.
        flat = not hasattr(inner, "get_image_features") and hasattr(model, "get_image_features")
        self.base: Any = model if flat else inner

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """True if this adapter knows the model (by `config.model_type`, never by class name)."""
        return getattr(getattr(model, "config", None), "model_type", None) in cls.model_types

    # what families differ in

    @abstractmethod
    def units(self, modality: Modality, output: Any, tower: TowerStates, inputs: Mapping[str, Any]) -> Units:
        """The model's own feature output cut into pictures, with the tower's signals in the same order and length."""

    @property
    def vision_tower(self) -> nn.Module:
        """The module whose attention gives saliency."""
        for name in ("vision_tower", "visual", "vision_model"):
            if isinstance(tower := getattr(self.base, name, None), nn.Module):
                return tower
        raise UnsupportedModelError(f"{self.name}: no vision tower found in {type(self.base).__name__}.")

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        size: Any = self.vision_tower.config.patch_size  # type: ignore[union-attr]
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    @property
    def saliency_layer(self) -> int:
        """Attention layer that gives saliency, an index into `attention_layers(vision_tower)`: second to last by
        default."""
        return -2

    def tapped_layers(self) -> dict[str, int]:
        """Which attention layer each signal is read from. Shallow: a quarter of the way up (VScan: 5 of CLIP's 24)."""
        shallow = max(0, len(attention_layers(self.vision_tower)) // 4 - 1)
        middle = self.saliency_layer
        return {
            "saliency": middle,
            "keys": middle,
            "shallow_saliency": shallow,
            "first_saliency": 0,
            "last_saliency": -1,
            "last_keys": -1,
        }

    @property
    def has_cls(self) -> bool:
        """True if row 0 of the tower's sequence is a [CLS] token."""
        return any(hasattr(m, "class_embedding") or hasattr(m, "cls_token") for m in self.vision_tower.modules())

    def wants_hidden_states(self, signals: frozenset[str], patch_layer: int) -> bool:
        """True if `units` needs hidden states that the model would not return by itself."""
        return False

    def positions(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Position ids of the unpruned prompt for multi-dimensional RoPE ([R, B, L], without a text row), else None
        (1-D)."""
        return None

    def takes_text_row(self) -> bool:
        """Whether the model wants multi-dimensional positions with a row of text positions above them."""
        return True

    def placeholder_counts(self, encoded: Encoded) -> list[int]:
        """How many placeholders each unit fills in the prompt as the processor wrote it (N for most families)."""
        return [unit.count for unit in encoded.units] if encoded.placeholders is None else list(encoded.placeholders)

    # same for nearly all

    def placeholder_ids(self) -> dict[Modality, int]:
        """Token id of the placeholders of each modality that the model has."""
        config = self.model.config
        ids = {m: getattr(config, f"{m}_token_id", None) for m in MODALITIES}
        return {m: int(i) for m, i in ids.items() if i is not None}

    def feature_arguments(self, modality: Modality) -> frozenset[str]:
        """Names that the model's `get_image_features` / `get_video_features` takes; `generate` would drop them."""
        run = getattr(self.base, f"get_{modality}_features", None)
        return frozenset() if run is None else frozenset(inspect.signature(run).parameters) - {"self", "kwargs"}

    def pixel_arguments(self) -> frozenset[str]:
        """Names of the inputs that carry pixels and their sizes; dropped once features are handed over."""
        return frozenset().union(*(self.feature_arguments(m) for m in MODALITIES))

    def check_settings(self, setting: Callable[[str], Any]) -> None:  # noqa: B027  (nothing to refuse by default)
        """UsageError where `generate` would get this family's pictures wrong. setting: reads a setting by its name."""

    def apart(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """`vision_arguments` of each picture by itself, in order; None where that cannot be told, or with clips."""
        return None

    def vision_arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Pixels, and what comes with them."""
        names = self.pixel_arguments()
        return {name: value for name, value in inputs.items() if name in names and value is not None}

    def has_pixels(self, inputs: Mapping[str, Any]) -> bool:
        """True if the call carries any picture or clip."""
        return any(inputs.get(name) is not None for name in PIXELS)

    def modalities(self, inputs: Mapping[str, Any]) -> list[Modality]:
        """Those that the call carries pixels of, in the order of `encode`."""
        return [m for m in MODALITIES if any(inputs.get(n) is not None for n in PIXELS & self.feature_arguments(m))]

    def encode(
        self,
        inputs: Mapping[str, Any],
        signals: frozenset[str],
        patch_layer: int = -2,
        patch_head: PatchHead | None = None,
    ) -> list[Encoded]:
        """Run the model's own `get_*_features` once and collect the signals that the method needs."""
        found = []
        for modality in self.modalities(inputs):
            given = {n: inputs[n] for n in self.feature_arguments(modality) if inputs.get(n) is not None}
            found.append(self._encode(modality, given, inputs, signals, patch_layer, patch_head))
        return found

    def hand_over(self, encoded: Encoded, selections: list[Selection], samples: Sequence[int] | None = None) -> Any:
        """A new, small output object of the model's own type that holds only the selected features.

        samples: batch row of each unit. The result is what `mm_encoder_outputs` takes.
        """
        return rebuild(
            encoded.output,
            [s.features for s in selections],
            [s.rows for s in selections],
            [u.count for u in encoded.units],
            samples,
        )

    @property
    def device(self) -> torch.device:
        """Where the token embeddings live."""
        return self.model.get_input_embeddings().weight.device

    def features_of(self, modality: Modality, given: Mapping[str, Any]) -> Any:
        """The output of the model's own feature function."""
        return getattr(self.base, f"get_{modality}_features")(**given, return_dict=True)

    def _encode(
        self,
        modality: Modality,
        given: dict[str, Any],
        inputs: Mapping[str, Any],
        signals: frozenset[str],
        patch_layer: int,
        patch_head: PatchHead | None = None,
    ) -> Encoded:
        taps = {name: layer for name, layer in self.tapped_layers().items() if name in signals}
        if self.wants_hidden_states(signals, patch_layer):
            given = {**given, "output_hidden_states": True}
        tower = self.vision_tower
        started = perf_counter()
        with eager_if_compiled(tower), record_layers(tower, sorted(set(taps.values()))) as states:
            output = call_vision(lambda: self.features_of(modality, given), given)
        synchronise(self.device)
        encoded = perf_counter()
        read = {name: self.signal_of(name, states(layer)) for name, layer in taps.items()}
        seen = TowerStates(read.pop("saliency", None), read, signals, patch_layer, patch_head)
        units = self.units(modality, output, seen, inputs)
        synchronise(self.device)
        timings = {"vision_tower": 1e3 * (encoded - started), "saliency": 1e3 * (perf_counter() - encoded)}
        return Encoded(modality, units.tokens, units.patches, output, timings)

    def signal_of(self, name: str, states: LayerStates) -> Tensor:
        """One signal from the states of its layer: keys [T, P, C], or saliency as float32 [T, P].

        Saliency is the [CLS] row where the tower has one, else the mean attention received. `keys` are averaged over
        heads (VisionZip); `last_keys` and `last_saliency` take all heads as one (PruMerge).
        """
        if name.startswith("last"):
            states = states.one_head()
        if name.endswith("keys"):
            return states.mean_keys[:, int(self.has_cls) :]
        if self.has_cls:
            return cls_attention(states.q, states.k, states.scale, states.mask)
        return received_attention(states.q, states.k, states.scale, states.segments, states.mask)
