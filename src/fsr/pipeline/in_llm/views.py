"""One batch in front of one drop, cut into what a method sees of each picture (`View`). Everything is lazy."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from fsr.errors import UnsupportedModelError
from fsr.methods.in_llm import View
from fsr.pipeline.in_llm.columns import DropColumns, prompt_part
from fsr.signals.attention import projections
from fsr.signals.language import attention_row, heads_of, joined_keys, rotated

__all__ = ["LayerInputs"]


class LayerInputs:
    """Hidden states [B, S, D] in front of decoder layer `index`, and what the taps saw of the layer before it.

    arguments: the keyword arguments of layer `index`, for the columns that are still there.
    taps: by (layer, "q" | "k" | "arguments" | "embeddings"), see `InLLMHooks`; whatever they saw behind the prompt (the
        candidates of assisted decoding) is cut off. valid: bool [B, S]. earlier: the drop before, or None.
    """

    def __init__(
        self,
        decoder: Any,
        index: int,
        hidden: Tensor,
        arguments: dict[str, Any],
        taps: dict[tuple[int, str], Any],
        valid: Tensor,
        earlier: DropColumns | None,
    ) -> None:
        self.decoder, self.layers, self.index = decoder, decoder.layers, index
        self.hidden, self.arguments, self.taps = hidden, arguments, taps
        self.valid, self.earlier = valid, earlier

    def view(self, row: int, image: Tensor, text: Tensor) -> View:
        """One picture of prompt `row`; image, text: its columns and those of the text behind it."""
        device = self.hidden.device  # layers may lie on several devices; a method sees one
        embeddings = self.taps.get((0, "embeddings"))
        if embeddings is not None:
            embeddings = embeddings[row].to(device)
            if self.earlier is None:
                embeddings = embeddings[: self.hidden.shape[1]]
            else:
                embeddings = embeddings[self.earlier.source[row].clamp_min(0).to(device)]
        return View(
            image=image.to(device),
            text=text.to(device),
            last=int(self.valid[row].nonzero()[-1]),
            hidden=self.hidden[row],
            embeddings=embeddings,
            normed=partial(self._normed, row),
            keys=partial(self._joined, row),
            attention=partial(self._behind, row),
            next_attention=partial(self._ahead, row),
        )

    def _normed(self, row: int) -> Tensor:
        return self._module(self.decoder, "norm")(self.hidden[row : row + 1])[0].to(self.hidden.device)

    def _tapped(self, name: str) -> Any:
        if (self.index - 1, name) not in self.taps:
            raise UnsupportedModelError(
                f"decoder layer {self.index - 1} did not run the hooks on its attention (compiled or replaced): prune "
                "before the language model."
            )
        return self.taps[self.index - 1, name]

    @cached_property
    def _layer_before(self) -> dict[str, Any]:
        return prompt_part(self._tapped("arguments"), self.hidden.shape[1])

    @cached_property
    def _before(self) -> tuple[Tensor, Tensor]:
        """q and k of the layer before, turned: [B, H, S, d] and [B, H_k, S, d]."""
        attention, width = self.layers[self.index - 1].self_attn, self.hidden.shape[1]
        turns = self._layer_before.get("position_embeddings")
        q, k = (heads_of(attention, self._tapped(part)[:, :width]) for part in ("q", "k"))
        device = self.hidden.device
        return rotated(attention, q, turns).to(device), rotated(attention, k, turns).to(device)

    def _joined(self, row: int) -> Tensor:
        """Keys as if the prompt began at position 0: padding in front would move them all, and with them any norm that
        is not L2."""
        q, k = self._before
        first = int(self.valid[row].nonzero()[0])
        cos, sin = (t[min(row, t.shape[0] - 1), first] for t in self._layer_before["position_embeddings"])
        back = tuple(t.expand(1, k.shape[2], -1) for t in (cos, -sin))
        return joined_keys(rotated(self.layers[self.index - 1].self_attn, k[row : row + 1], back)[0], q.shape[1])

    def _behind(self, row: int, columns: Tensor) -> Tensor:
        attention = self.layers[self.index - 1].self_attn
        q, k = self._before
        mask = self._layer_before.get("attention_mask")
        return attention_row(q[row][:, columns], k[row], float(attention.scaling), columns, _mask_of(mask, row))

    @cached_property
    def _ahead_keys(self) -> tuple[Tensor, Tensor]:
        """Normed states [B, S, D] and turned keys of the layer that comes next."""
        layer = self.layers[self.index]
        normed = self._module(layer, "input_layernorm")(self.hidden)
        return normed, self._project("k", normed, self.arguments.get("position_embeddings"))

    def _ahead(self, row: int, columns: Tensor) -> Tensor:
        attention = self.layers[self.index].self_attn
        normed, k = self._ahead_keys
        turns = self.arguments.get("position_embeddings")
        if turns is not None:
            turns = tuple(t.expand(normed.shape[0], -1, -1)[row : row + 1, columns.to(t.device)] for t in turns)
        q = self._project("q", normed[row : row + 1, columns], turns)
        mask = _mask_of(self.arguments.get("attention_mask"), row)
        return attention_row(q[0], k[row], float(attention.scaling), columns, mask)

    def _project(self, part: str, normed: Tensor, turns: Any) -> Tensor:
        attention = self.layers[self.index].self_attn
        projected = self._module(attention, f"{part}_proj")(normed)
        last = projections(attention)[part]
        if last is not getattr(attention, f"{part}_proj"):  # a norm of every head behind the projection
            projected = last(heads_of(attention, projected).transpose(1, 2))
        return rotated(attention, heads_of(attention, projected), turns).to(self.hidden.device)

    @staticmethod
    def _module(owner: Any, name: str) -> Any:
        module = getattr(owner, name, None)
        if not isinstance(module, torch.nn.Module):
            raise UnsupportedModelError(
                f"{type(owner).__name__} has no {name}, which this method reads: use FastV, or prune before the "
                "language model."
            )
        return module


def _mask_of(mask: Any, row: int) -> Any:
    """The part of a layer's mask that belongs to one prompt."""
    return mask[min(row, mask.shape[0] - 1)] if isinstance(mask, Tensor) else None
