"""Queries and keys of vLLM's vision attention; the tower runs as fast as ever.

The attention of all of vLLM's towers ends in one module, `MMEncoderAttention`, which gets queries and keys as the
softmax sees them: with rotary positions and norms, and with tensor parallelism the heads of this rank. A hook on its
inputs serves every family.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce

from fsr.errors import UnsupportedModelError, UsageError
from fsr.signals.attention import LayerStates

__all__ = ["Watched", "mean_over_ranks", "refuse_what_skips_hooks", "watch"]


@contextmanager
def watch(attention: Mapping[int, nn.Module], **modules: nn.Module) -> Iterator[Watched]:
    """Record, while the body encodes, q and k of some attention layers and what other modules get and give.

    attention: layer number -> its `MMEncoderAttention`. modules: by name.
    """
    seen = Watched(attention)
    handles = []
    try:
        for number, module in attention.items():
            handles.append(module.register_forward_pre_hook(seen.keep_queries(number), with_kwargs=True))
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
        self.queries: dict[int, tuple[Tensor, Tensor]] = {}
        self.given: dict[str, Tensor] = {}
        self.made: dict[str, Tensor] = {}

    def states(self, number: int, segments: Tensor | None = None) -> LayerStates:
        """q and k of one layer as its softmax saw them.

        segments: cumulative lengths of pictures that the tower packs into one sequence.

        Raises:
            UnsupportedModelError: the tower did not run the layer in Python.
        """
        if number not in self.queries:
            raise UnsupportedModelError(
                f"no queries and keys arrived from vision layer {number}: switch the compilation of the encoder off "
                "(compile_mm_encoder, cudagraph_mm_encoder)."
            )
        module: Any = self.attention[number]
        heads = (module.num_heads, module.head_size)
        # [B, T, H d] or [B, T, H, d]
        q, k = (x.reshape(*x.shape[:2], *heads).transpose(1, 2) for x in self.queries[number])
        return LayerStates(q, k, float(module.scale), segments)

    def keep_queries(self, number: int) -> Any:
        """A hook that keeps the first two arguments, query and key."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = [*args, *(kwargs[name] for name in ("query", "key") if name in kwargs)]
            self.queries[number] = (given[0].detach(), given[1].detach())

        return hook

    def keep_both(self, name: str) -> Any:
        """A hook that keeps the first argument and the output of a module."""

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if args:
                self.given[name] = args[0].detach()
            self.made[name] = getattr(output, "last_hidden_state", output).detach()

        return hook


def mean_over_ranks(values: Tensor) -> Tensor:
    """Heads are spread over ranks: the mean over all heads is the mean of the ranks' means, the same on every rank."""
    ranks = get_tensor_model_parallel_world_size()
    return values if ranks == 1 else tensor_model_parallel_all_reduce(values) / ranks


def refuse_what_skips_hooks(vllm_config: Any) -> None:
    """Raise for settings of the engine under which nothing could be watched.

    Raises:
        UsageError: the tower runs as one compiled piece, or its pictures are spread over ranks.
    """
    compilation, multimodal = vllm_config.compilation_config, vllm_config.model_config.multimodal_config
    for name in ("compile_mm_encoder", "cudagraph_mm_encoder"):
        if getattr(compilation, name, False):
            raise UsageError(f"{name} runs the vision tower past the hooks that pruning needs: switch it off.")
    if multimodal.mm_encoder_tp_mode == "data":
        raise UsageError(
            "mm_encoder_tp_mode='data' spreads pictures over ranks, which pruning cannot follow: use 'weights'."
        )
