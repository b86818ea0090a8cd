"""Queries and keys of vLLM's vision attention, by hooks on its fused projection; the tower runs as fast as ever.

vLLM's towers differ from Transformers' in three ways that matter here: q, k and v come out of one projection, layers
beyond the one that the language model reads are not built, and with tensor parallelism each rank holds some of the
heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce

from fsr.errors import UnsupportedModelError
from fsr.signals.attention import LayerStates

__all__ = ["mean_over_ranks", "watch"]


@contextmanager
def watch(attention: Mapping[int, nn.Module], **modules: nn.Module) -> Iterator[Watched]:
    """Record, while the body encodes, q and k of some attention layers and what other modules get and give.

    attention: layer number -> vLLM's attention module. modules: by name.
    """
    seen = Watched(attention)
    handles = []
    try:
        for number, module in attention.items():
            qkv: Any = module.qkv if hasattr(module, "qkv") else module.qkv_proj
            handles.append(qkv.register_forward_hook(seen.keep(seen.qkv, number)))
            handles.append(module.register_forward_pre_hook(seen.keep_call(number), with_kwargs=True))
        for name, part in modules.items():
            handles.append(part.register_forward_hook(seen.keep_both(name)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class Watched:
    """What `watch` saw in one pass of the tower."""

    def __init__(self, attention: Mapping[int, nn.Module]) -> None:
        self.attention = attention
        self.qkv: dict[Any, Tensor] = {}
        self.calls: dict[int, Mapping[str, Any]] = {}
        self.given: dict[str, Tensor] = {}
        self.made: dict[str, Tensor] = {}

    def states(self, number: int, segments: Tensor | None = None) -> LayerStates:
        """q and k of one layer as its softmax saw them.

        segments: cumulative lengths of pictures that the tower packs into one sequence.

        Raises:
            UnsupportedModelError: the tower did not run the layer in Python.
        """
        if number not in self.qkv:
            raise UnsupportedModelError(
                f"no queries and keys arrived from vision layer {number}: switch the compilation of the encoder off "
                "(compile_mm_encoder, cudagraph_mm_encoder)."
            )
        module: Any = self.attention[number]
        joined = self.qkv[number]
        if segments is None:  # [B, T, 3 H d]
            heads = module.num_heads_per_partition
            q, k, _ = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in joined.chunk(3, dim=-1))
            return LayerStates(q, k, float(module.scale))
        # [S, 1, 3 H d], with rotary positions
        heads = module.num_attention_heads_per_partition
        q, k, _ = joined.transpose(0, 1).unflatten(-1, (3, heads, -1)).unbind(2)
        call = self.calls[number]
        turned = module.apply_rotary_emb(
            torch.cat([q, k]).contiguous(), call["rotary_pos_emb_cos"], call["rotary_pos_emb_sin"]
        )
        q, k = (x.transpose(1, 2) for x in turned.chunk(2))
        return LayerStates(q, k, q.shape[-1] ** -0.5, segments)

    def keep(self, store: dict[Any, Tensor], key: Any) -> Any:
        """A hook that keeps a linear layer's output (vLLM's give a pair with the bias)."""

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            store[key] = (output[0] if isinstance(output, tuple) else output).detach()

        return hook

    def keep_call(self, number: int) -> Any:
        """A hook that keeps the keyword arguments of a call."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.calls[number] = kwargs

        return hook

    def keep_both(self, name: str) -> Any:
        """A hook that keeps the first argument and the output of a module."""

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if args:
                self.given[name] = args[0].detach()
            self.made[name] = output.detach()

        return hook


def mean_over_ranks(values: Tensor) -> Tensor:
    """Heads are spread over ranks: the mean over all heads is the mean of the ranks' means, the same on every rank."""
    ranks = get_tensor_model_parallel_world_size()
    return values if ranks == 1 else tensor_model_parallel_all_reduce(values) / ranks
