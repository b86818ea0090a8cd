"""Models that no adapter knows by name: what can be read off their structure, or a clear refusal.

Nothing is guessed. The model must take features from outside; which patches each token is made of is asked of the model
itself (`provenance`) at the first picture; where those patches lie must follow from a square raster. Saliency is
attention received, there is no relevance, and every report says that this adapter was at work. Where the model does not
tell what its tokens are made of, methods that read features alone still work, on tokens that have no place.
"""

from __future__ import annotations

import inspect
import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation.utils import GenerationMixin

from fsr.adapters.base import PIXELS, Adapter, Modality, TowerStates, Units
from fsr.adapters.containers import entries
from fsr.adapters.provenance import NOBODY, token_of_patch
from fsr.errors import UnsupportedModelError
from fsr.signals.attention import LayerStates, received_attention
from fsr.signals.tap import attention_layers
from fsr.tokens import Geometry, VisualTokens

__all__ = ["GenericAdapter", "UnknownModel"]

TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower")
# What an output may hold besides features: what the language model does not read (states of towers, codes of a picture
# before they are embedded, a loss).
HARMLESS = frozenset("pooler_output deepstack_features attention_mask image_tokens embedding_loss".split())
STATES = ("last_hidden_state", "hidden_states", "attentions")
FEATURES_ALONE = (
    "only methods that read features alone work on this model ('divprune', 'uniform-grid'; 'cdpruner' with "
    "relevance='first-layer' follows the question)"
)


class UnknownModel(Adapter):
    """What all generic adapters share: what they ask of a model, and how they refuse."""

    paired_text_tower = False
    chunked_prefill = False
    multi_axial = False
    clips = False
    # What was found out about a model, for all adapters made for it.
    _known: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Structure, not name."""
        return not cls.lacking(model) and hasattr(cls(model).base, "get_rope_index") == cls.multi_axial

    @classmethod
    def lacking(cls, model: nn.Module) -> str:
        """The first thing that every generic adapter needs and the model does not have; empty if there is none."""
        if "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
            return "its forward takes no features from outside (`mm_encoder_outputs`)"
        base = cls(model).base
        if not hasattr(base, "get_image_features"):
            return "it has no `get_image_features`"
        if getattr(model.config, "image_token_id", None) is None:
            return "its config has no `image_token_id`"
        own = getattr(type(model), "_prepare_position_ids_for_generation", None)
        if not hasattr(base, "get_rope_index") and own is not GenerationMixin._prepare_position_ids_for_generation:
            return "it numbers positions in a way of its own"
        return ""

    @property
    def vision_tower(self) -> nn.Module:
        """By the names that Transformers uses."""
        for name in TOWERS:
            if isinstance(tower := getattr(self.base, name, None), nn.Module):
                return tower
        raise self.refusal("it has no vision tower")

    @property
    def saliency_layer(self) -> int:
        """Second to last; the only one where there is one."""
        return max(-2, -len(attention_layers(self.vision_tower)))

    @property
    def has_cls(self) -> bool:
        """[CLS] rows are told by what tokens are made of."""
        return False

    def signal_of(self, name: str, states: LayerStates) -> Tensor:
        """Received attention of all rows of the tower."""
        if not name.endswith("saliency"):
            return super().signal_of(name, states)
        states = states.one_head() if name.startswith("last") else states
        return received_attention(states.q, states.k, states.scale, states.segments, states.mask)

    def feature_output(self, modality: Modality, output: Any) -> Any:
        """The output, if its features are all that the language model takes.

        Raises:
            UnsupportedModelError: clips, or features of a kind that cannot be cut into tokens.
        """
        if modality == "video" and not self.clips:
            raise self.refusal("clips are not known to it")
        pooled = getattr(output, "pooler_output", None)
        kind = type(pooled).__name__
        if not isinstance(pooled, Tensor | list | tuple) or not all(isinstance(e, Tensor) for e in entries(pooled)):
            found = "without a pooler_output" if pooled is None else f"with a pooler_output of type {kind}"
            raise self.refusal(f"its features come as {type(output).__name__} {found}")
        beside = (k for k, v in output.items() if v is not None and not k.endswith(STATES))
        if extra := sorted(k for k in beside if k not in HARMLESS):
            raise self.refusal(f"its features come with {', '.join(extra)}, which would have to be shortened alike")
        return output

    @abstractmethod
    def placed(self, modality: Modality, output: Any, tower: TowerStates, inputs: Mapping[str, Any]) -> Units:
        """Units with signals and places.

        Raises:
            UnsupportedModelError: the model does not tell them.
        """

    def units(self, modality: Modality, output: Any, tower: TowerStates, inputs: Mapping[str, Any]) -> Units:
        """`placed`, or features alone where the method reads nothing else."""
        output = self.feature_output(modality, output)
        try:
            return self.placed(modality, output, tower, inputs)
        except UnsupportedModelError as error:
            refused = error
        pictures = entries(output.pooler_output)
        if any(p.dim() < 2 for p in pictures) or all(p.shape[:-1].numel() == 1 for p in pictures):
            raise self.refusal("its features come one by one: which of them make a picture is not known")
        if tower.signals - {"relevance"}:
            raise UnsupportedModelError(f"{FEATURES_ALONE}: {refused}") from refused
        return Units([VisualTokens(features=p.flatten(0, -2)) for p in pictures], None)

    def remembered(self, key: Any, find: Callable[[], Any]) -> Any:
        """What `find` found out about this model, once per key; a refusal is remembered, too."""
        known = self._known.setdefault(self.model, {})
        if key not in known:
            try:
                known[key] = find()
            except UnsupportedModelError as error:
                known[key] = str(error)
        if isinstance(known[key], str):
            raise UnsupportedModelError(known[key])
        return known[key]

    def owners(self, modality: Modality, inputs: Mapping[str, Any]) -> Tensor:
        """`token_of_patch` for these inputs; a refusal where that cannot be told."""
        given = {n: inputs[n] for n in self.feature_arguments(modality) if inputs.get(n) is not None}
        try:
            return token_of_patch(self.vision_tower, lambda: self.features_of(modality, given))
        except UnsupportedModelError as error:
            raise self.refusal(str(error)) from error
        except RuntimeError as error:
            first = " ".join(str(error).split())[:120]
            raise self.refusal(f"what its tokens are made of cannot be told ({first})") from error

    def refusal(self, why: str) -> UnsupportedModelError:
        """One line that names the family and what was found."""
        kind = getattr(self.model.config, "model_type", type(self.model).__name__)
        return UnsupportedModelError(
            f"no adapter for model type {kind!r}, and {self.name!r} is not enough: {why}. docs/add-a-model.md says how "
            "to write one."
        )


class GenericAdapter(UnknownModel):
    """Pictures of one size, in a plain ViT whose patches fill a square; every entry of the features (or tile) is a
    picture of its own."""

    name = "generic"
    announcement = (
        "no adapter knows this model: saliency is received attention and tokens are taken for a square raster of "
        "patches (generic adapter)"
    )

    def placed(self, modality: Modality, output: Any, tower: TowerStates, inputs: Mapping[str, Any]) -> Units:
        """Scores averaged over the patches behind each token, boxes around them."""
        pictures = entries(output.pooler_output)
        pictures = [p.flatten(0, -2) for p in pictures]
        counts = {len(p) for p in pictures}
        if len(counts) != 1:
            raise self.refusal(f"its pictures have different numbers of tokens ({sorted(counts)})")
        self._check_square(modality, inputs)
        pixels = next(inputs[n] for n in sorted(PIXELS) if inputs.get(n) is not None)
        count = counts.pop()
        owner = self.remembered(
            (tuple(pixels.shape[1:]), count), lambda: self._raster(modality, inputs, len(pictures), count)
        )
        rows = (owner != NOBODY).nonzero().squeeze(-1)
        order = owner[rows].argsort(stable=True)
        n = len(pictures[0])
        rows = rows[order].view(n, -1).to(pictures[0].device)  # [N, m]: the patches of each token
        geometry = self._boxes(owner, rows)
        tokens = []
        for i, features in enumerate(pictures):
            extra = {}
            for name, value in {"saliency": tower.saliency, **tower.extra}.items():
                if value is None:
                    continue
                if value.shape[0] != len(pictures) or value.shape[1] != len(owner):
                    raise self.refusal(
                        f"its tower saw {tuple(value.shape[:2])} rows for {len(pictures)} pictures of {len(owner)}"
                    )
                extra[name] = value[i].float()[rows.to(value.device)].mean(1)
            saliency = extra.pop("saliency", None)
            tokens.append(VisualTokens(features=features, saliency=saliency, geometry=geometry, extra=extra))
        return Units(tokens, None)

    def _check_square(self, modality: Modality, inputs: Mapping[str, Any]) -> None:
        """Pixels and sizes must say that every picture is a square: 2 x 8 patches are as many as 4 x 4."""
        told = False
        for name in self.feature_arguments(modality):
            value = inputs.get(name)
            if not isinstance(value, Tensor):
                continue
            sides = value if value.dim() == 2 and value.shape[1] == 2 and not value.is_floating_point() else None
            if name.startswith("pixel_values") and value.dim() >= 4:
                sides = torch.tensor(value.shape[-2:])[None]
            if sides is not None and bool((sides[:, 0] != sides[:, 1]).any()):
                raise self.refusal(f"{name} {sides.tolist()} is no square")
            told = told or sides is not None
        if not told:
            raise self.refusal("neither pixels nor sizes tell the shape of its pictures")

    def _raster(self, modality: Modality, inputs: Mapping[str, Any], pictures: int, count: int) -> Tensor:
        """The token of each row of a picture's states, long [P]."""
        owner = self.owners(modality, inputs)
        owner = owner.flatten(1) if owner.dim() > 2 else owner  # some towers keep rows and columns apart
        if owner.dim() != 2 or len(owner) != pictures:
            raise self.refusal(f"its tower's states have shape {tuple(owner.shape)} for {pictures} pictures")
        used = owner != NOBODY
        own = owner - count * torch.arange(pictures)[:, None]
        if bool((own != own[0])[used].any()) or bool((used != used[0]).any()):
            raise self.refusal("its pictures are not made of patches alike")
        own = own[0].masked_fill(~used[0], NOBODY)
        sizes = torch.bincount(own[used[0]], minlength=count)
        patches = int(used[0].sum())
        if isqrt(patches) ** 2 != patches:
            raise self.refusal(f"its {patches} patches per picture are no square")
        if len(sizes) != count or bool((sizes != sizes[0]).any()):
            raise self.refusal("its tokens are made of different numbers of patches")
        return own

    def _boxes(self, owner: Tensor, rows: Tensor) -> Geometry:
        """Boxes around the patches of each token."""
        number = (owner != NOBODY).long().cumsum(0).to(rows.device)[rows] - 1
        side = isqrt(number.numel())
        y, x = number // side, number % side
        high, wide = (v.amax(1) - v.amin(1) + 1 for v in (y, x))
        if bool((high * wide != rows.shape[1]).any()):
            raise self.refusal("its tokens are not made of blocks of neighbouring patches")
        boxes = torch.stack([x.amin(1), y.amin(1), x.amax(1) + 1, y.amax(1) + 1], dim=-1).float() / side
        zero = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        across = torch.unique(boxes[:, 0])
        square = len(across) ** 2 == len(rows) and bool(
            torch.equal(boxes, Geometry.raster(len(across), len(across), rows.device).boxes)
        )
        return Geometry(boxes, zero, zero, (len(across), len(across)) if square else None)
