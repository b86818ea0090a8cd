"""Pruning inside the language model the slow, plain way: no cache, no column ever leaves, dropped ones are masked from
their layer on.

Attention is eager and every weight matrix is looked at. Nothing here is shared with `fsr.pipeline.in_llm`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from fsr.methods.in_llm import View


class Naive:
    """An eager model and (layer, method, step) of every drop; `run` gives the logits of whole sequences, uncached."""

    def __init__(self, model: Any, steps: list[tuple[int, Any, int]], prefix: bool = False) -> None:
        self.prefix = prefix  # the prompt sees itself in both directions
        self.model, self.steps = model, {layer: (method, step) for layer, method, step in steps}
        self.layers = model.get_decoder().layers
        self.chosen: dict[int, list[torch.Tensor]] = {}  # layer -> per picture, the columns that stay
        self.merged: dict[int, list[tuple[int, torch.Tensor, torch.Tensor]]] = {}

    def run(self, ids: torch.Tensor, mask: torch.Tensor, pictures: list[tuple[int, torch.Tensor]], **inputs: Any):
        """pictures: (batch row, columns of its tokens). The first run chooses, longer ones reuse it."""
        length, self.alive = ids.shape[1], {}
        first = not self.chosen
        self.seen: dict[int, Any] = {}
        alive = mask.bool()
        current = [columns for _, columns in pictures]
        causal = torch.ones(length, length, dtype=torch.bool)
        causal = causal if self.prefix else causal.tril()

        def before(i: int):
            def hook(layer: Any, args: Any, kwargs: Any) -> Any:
                nonlocal alive, current
                hidden = args[0] if args else kwargs["hidden_states"]
                if i == 0:
                    self.embeddings = hidden
                if i in self.steps:
                    if first:
                        self._choose(i, hidden, kwargs, alive, causal, pictures, current)
                    alive = alive.clone()
                    for (row, columns), stay in zip(pictures, self.chosen[i]):
                        alive[row, columns] = False
                        alive[row, stay] = True
                    current = self.chosen[i]
                    hidden = hidden.clone()
                    for row, columns, states in self.merged[i]:
                        hidden[row, columns] = states
                own = causal & alive[:, None, None]
                kwargs["attention_mask"] = torch.where(own, 0.0, torch.finfo(hidden.dtype).min)
                return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})

            return hook

        def after(i: int):
            def hook(attention: Any, args: Any, kwargs: Any, output: Any) -> None:
                self.seen[i] = (output[1], kwargs)

            return hook

        handles = []
        for i, layer in enumerate(self.layers):
            handles.append(layer.register_forward_pre_hook(before(i), with_kwargs=True))
            handles.append(layer.self_attn.register_forward_hook(after(i), with_kwargs=True))
        try:
            with torch.no_grad():
                return self.model(input_ids=ids, attention_mask=mask, use_cache=False, **inputs).logits
        finally:
            for handle in handles:
                handle.remove()

    def _choose(self, i: int, hidden: Any, kwargs: Any, alive: Any, causal: Any, pictures: Any, current: Any) -> None:
        method, step = self.steps[i]
        depth = len(self.layers)
        before, layer = self.layers[i - 1].self_attn, self.layers[i]
        weights, earlier = self.seen[i - 1]
        own = torch.where(causal & alive[:, None, None], 0.0, torch.finfo(hidden.dtype).min)
        normed = layer.input_layernorm(hidden)
        turns = kwargs["position_embeddings"]
        ahead = layer.self_attn(hidden_states=normed, attention_mask=own, position_embeddings=turns)[1]
        keys = before.k_proj(earlier["hidden_states"]).unflatten(-1, (-1, before.head_dim)).transpose(1, 2)
        turn = sys.modules[type(before).__module__].apply_rotary_pos_emb
        # As if each prompt began at position 0: angles from its first token on.
        angles = torch.atan2(turns[1], turns[0]).expand(len(alive), -1, -1)
        angles = angles - torch.stack([a[int(m.nonzero()[0])] for a, m in zip(angles, alive)])[:, None]
        keys = turn(keys, keys, angles.cos(), angles.sin())[0]
        keys = keys.repeat_interleave(before.num_key_value_groups, 1).transpose(1, 2).flatten(2)
        self.chosen[i], self.merged[i] = [], []
        for (row, whole), columns in zip(pictures, current):
            k = min(method.budgets(len(whole), depth)[step], len(columns))
            if k == len(columns):
                self.chosen[i].append(columns)
                continue
            text = alive[row].clone()
            text[: int(columns[-1]) + 1] = False
            for other, places in pictures:
                if other == row:
                    text[places] = False
            view = View(
                image=columns,
                text=text.nonzero().squeeze(-1),
                last=int(alive[row].nonzero()[-1]),
                hidden=hidden[row],
                embeddings=self.embeddings[row],
                normed=lambda row=row: self.model.get_decoder().norm(hidden)[row],
                keys=lambda row=row: keys[row],
                attention=lambda rows, row=row: weights[row].mean(0)[rows],
                next_attention=lambda rows, row=row: ahead[row].mean(0)[rows],
            )
            choice = method.choose(view, k)
            self.chosen[i].append(columns[choice.rows.sort().values])
            if choice.merged is not None:
                self.merged[i].append((row, columns[choice.merged], choice.states))
