"""Which patches each visual token is made of, asked of the model itself.

Behind the last attention layer that features pass, everything is local: norms, merging of neighbours, projection. The
gradient of some tokens is then zero on all patches but their own. One backward pass per bit of the token's number
gives the owner of every patch, exactly and without knowing any code of the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fsr.adapters.containers import entries
from fsr.errors import UnsupportedModelError
from fsr.signals.tap import attention_layers, hook_lock

__all__ = ["NOBODY", "token_of_patch"]

NOBODY = -1
TRIES = 3  # features may be read one or two layers before the end


def token_of_patch(tower: nn.Module, run: Callable[[], Any]) -> Tensor:
    """The token that each row of the tower's hidden states flows into: long, shaped like the states without their
    width ([T, P] or [S]); `NOBODY` for rows that no token reads ([CLS], padding).

    run: encodes with the tower and returns the model's feature output. It runs up to three times.

    Raises:
        UnsupportedModelError: a row flows into several tokens, or features do not come from the tower's last layers.
    """
    for block in _last_blocks(tower)[:TRIES]:
        leaf, features = _cut_behind(block, run)
        if leaf is None or not features.requires_grad:
            continue
        used = _touched(features, leaf, torch.ones(len(features), dtype=torch.bool), keep=True)
        if not bool(used.any()):
            continue
        numbers = torch.arange(len(features))
        owner = torch.zeros(leaf.shape[:-1], dtype=torch.long)
        for bit in range(max(1, int(len(features) - 1).bit_length())):
            chosen = (numbers >> bit) % 2 == 1
            here, there = (_touched(features, leaf, rows, keep=True) for rows in (chosen, ~chosen))
            if bool((here & there).any()):
                raise UnsupportedModelError("a patch flows into several tokens")
            owner += here.long() << bit
        return owner.masked_fill(~used, NOBODY)
    raise UnsupportedModelError("its features do not come from the last layers of its vision tower")


def _last_blocks(tower: nn.Module) -> list[nn.Module]:
    """The largest modules that hold one attention layer each, the last first."""
    layers = attention_layers(tower)
    holders = {id(m): {id(c) for c in m.modules()} for m in tower.modules()}
    found = []
    for layer in reversed(layers[-TRIES:]):
        block = layer
        for module in tower.modules():  # from the outside in
            inside = holders[id(module)]
            if id(layer) in inside and sum(id(other) in inside for other in layers) == 1:
                block = module
                break
        found.append(block)
    return found


def _cut_behind(block: nn.Module, run: Callable[[], Any]) -> tuple[Tensor | None, Tensor]:
    """Run with the output of `block` as a leaf of the graph: the leaf and all features [N, D]."""
    leaves: list[Tensor] = []
    mine = threading.get_ident()

    def cut(module: nn.Module, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        if threading.get_ident() != mine or not isinstance(states, Tensor):
            return None
        leaf = states.detach().clone().requires_grad_()
        leaves.append(leaf)
        torch.set_grad_enabled(True)  # what follows is recorded, up to the end of `no_grad` below
        return (leaf, *output[1:]) if isinstance(output, tuple) else leaf

    with hook_lock:
        handle = block.register_forward_hook(cut, prepend=True)
    try:
        with torch.inference_mode(False), torch.no_grad():
            output = run()
            features = torch.cat([e.flatten(0, -2) for e in entries(output.pooler_output)])
    finally:
        with hook_lock:
            handle.remove()
    return (leaves[0] if len(leaves) == 1 else None), features


def _touched(features: Tensor, leaf: Tensor, rows: Tensor, keep: bool) -> Tensor:
    """Rows of `leaf` that the chosen features depend on."""
    rows = rows.to(features.device)
    if not bool(rows.any()):
        return torch.zeros(leaf.shape[:-1], dtype=torch.bool)
    with torch.inference_mode(False), torch.enable_grad():
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(0)).to(features)
        total = (features * noise)[rows].sum()
        (gradient,) = torch.autograd.grad(total, leaf, retain_graph=keep, allow_unused=True)
    if gradient is None:
        return torch.zeros(leaf.shape[:-1], dtype=torch.bool)
    return (gradient != 0).any(-1).cpu()
