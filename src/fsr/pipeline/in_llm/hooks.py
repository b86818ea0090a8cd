"""The hooks on one model instance: they find the prompt, feed the methods, and cut what every later layer is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from fsr.errors import FeatureError, UnsupportedModelError, UsageError, counted
from fsr.methods.in_llm import InLLMMethod
from fsr.pipeline.in_llm.call import Call
from fsr.pipeline.in_llm.columns import Columns, check_cache, columns_of, forget, prompt_part, remember
from fsr.pipeline.in_llm.support import check_attention, check_compiled, check_layers
from fsr.pipeline.in_llm.views import LayerInputs
from fsr.pipeline.kv_cache import cache_in, is_empty
from fsr.pipeline.positions import packed_prompts
from fsr.pipeline.report import Report
from fsr.signals.attention import projections

__all__ = ["InLLMHooks"]

_call: ContextVar[Call | None] = ContextVar("fsr_in_llm_call", default=None)


class InLLMHooks:
    """Methods bound to the decoder layers of one model.

    Raises:
        UnsupportedModelError: no decoder layers found, or a model that cannot lose columns at these layers.
        UsageError: layers that this model does not have, or methods whose layers do not follow one another.
    """

    def __init__(self, model: Any, placeholders: Sequence[int], methods: Sequence[InLLMMethod]) -> None:
        self.model, self.placeholders, self.methods = model, sorted(placeholders), tuple(methods)
        self.decoder: Any = model.get_decoder()
        self.layers: Any = getattr(self.decoder, "layers", None)
        attends = [hasattr(m, "self_attn") for m in self.layers] if isinstance(self.layers, nn.ModuleList) else []
        if any(attends) and not all(attends):
            raise UnsupportedModelError(
                f"{len(attends) - sum(attends)} of {len(attends)} layers of {type(self.decoder).__name__} are "
                "recurrent: their state keeps what is dropped, and they have no attention map to choose by. Prune "
                "before the language model."
            )
        if not attends or not all(attends):
            raise UnsupportedModelError(
                f"{type(self.decoder).__name__} has no plain list of decoder layers: prune before the language model."
            )
        self.depth = len(attends)
        self.steps: dict[int, tuple[InLLMMethod, int]] = {}
        for method in self.methods:
            for i, layer in enumerate(method.layers(self.depth)):
                if self.steps and layer <= max(self.steps):
                    raise UsageError(
                        f"{method.name} would drop in front of layer {layer}, and the method before it in the chain is "
                        f"not done before layer {max(self.steps)}: give it later layers."
                    )
                self.steps[layer] = (method, i)
        self.first = min(self.steps)
        check_layers(self.model, self.decoder, self.first)
        check_compiled(self.model, self.decoder)
        check_attention(self.decoder, self.layers, {i: method.signals() for i, (method, _) in self.steps.items()})
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Put the hooks on."""
        on = self._handles.append
        on(self.model.register_forward_pre_hook(self._before_model, with_kwargs=True))
        on(self.model.register_forward_hook(self._after_model, always_call=True))
        needs = {layer: method.signals() for layer, (method, _) in self.steps.items()}
        if any("embeddings" in signals for signals in needs.values()):
            on(self.layers[0].register_forward_pre_hook(self._embeddings, with_kwargs=True))
        for layer, signals in needs.items():
            if signals & {"attention", "keys"}:
                attention = self.layers[layer - 1].self_attn
                on(attention.register_forward_pre_hook(partial(self._arguments, layer - 1), with_kwargs=True))
                for part, module in projections(attention).items():
                    on(module.register_forward_hook(partial(self._projected, layer - 1, part)))
        for index in range(self.first, self.depth):
            on(self.layers[index].register_forward_pre_hook(partial(self._before_layer, index), with_kwargs=True))

    def detach(self) -> None:
        """Take them off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def refuse(self, setting: Callable[[str], Any]) -> None:
        """Raise `UsageError` for settings of `generate` that cannot work with drops between layers."""
        if setting("prefill_chunk_size") is not None:
            raise UsageError(
                "prefill_chunk_size runs the prompt in pieces, and a drop needs all of it: leave it out, or prune "
                "before the language model."
            )
        looks_ahead = setting("assistant_model") is not None or setting("prompt_lookup_num_tokens")
        if looks_ahead and "tokens_to_remove" not in inspect.signature(Cache.crop).parameters:
            raise UsageError(
                "this Transformers release takes rejected tokens back by the length of the cache, and layers differ "
                "in it: install a newer one, or leave out assistant_model and prompt_lookup_num_tokens."
            )

    # --------------------------------------------------------------------------------------------------------- one call

    def check_prompt(self, ids: Tensor, mask: Tensor, inputs: Mapping[str, Any]) -> None:
        """Refuse prompts that no method here can prune, before the vision tower runs.

        Raises:
            UsageError: packed prompts. FeatureError: a method reads the text behind the pictures, and there is none.
        """
        if packed_prompts(inputs, ids, mask) is not None:
            raise UsageError(
                "rows of packed prompts cannot lose columns inside the language model: give one prompt per row, or "
                "prune before it."
            )
        if not any("text" in method.signals() for method in self.methods):
            return
        pictured = torch.isin(ids, torch.tensor(self.placeholders, device=ids.device))
        behind = (mask != 0).flip(1).long().cumsum(1).flip(1) * pictured  # columns from each placeholder to the end
        lacking = pictured.any(1) & (behind.masked_fill(~pictured, ids.shape[1]).amin(1) <= 1)
        if bool(lacking.any()):
            row = int(lacking.nonzero()[0])
            raise FeatureError(
                f"prompt {row} has no text behind its last picture, which this method reads: put the question behind "
                "the picture, or use a method that needs none (FastV)."
            )

    @contextmanager
    def running(self, report: Report, publish: Callable[[Report], None]) -> Iterator[None]:
        """Around one `generate`: `publish` gets the report, completed, unless the body raises."""
        call = self.begin(report, publish)
        try:
            yield
        except BaseException:
            self.end(call, whole=False)
            raise
        self.end(call)

    def begin(self, report: Report, publish: Callable[[Report], None], single: bool = False) -> Call:
        """Open a call in this context. `single` ends it behind the next forward."""
        call = Call(self, report, publish, single)
        call.token = _call.set(call)
        return call

    def end(self, call: Call, whole: bool = True) -> None:
        """Close it, and publish the completed report if the call ran to its end.

        Raises:
            UnsupportedModelError: its prompt never came by.
        """
        if call.token is not None:
            _call.reset(call.token)
            call.token = None
        if not whole:
            return
        if call.columns is None and call.report.selections:
            raise UnsupportedModelError(
                "the prompt never reached the hooks that prune inside the language model: something runs the model in "
                "a way of its own; prune before the language model."
            )
        call.publish(call.finished(self.depth))

    def _active(self) -> Call | None:
        call = _call.get()
        return call if call is not None and call.owner is self else None

    def _before_model(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        call = self._active()
        if call is None:
            return
        cache, ids = cache_in(kwargs), kwargs.get("input_ids")
        empty = is_empty(cache)
        call.fresh = empty and call.owns(ids)
        call.foreign = empty and not call.fresh
        if not call.fresh:
            return
        if cache is not None:
            forget(cache)
            check_cache(cache, self.first)
        if kwargs.get("labels") is not None or isinstance(kwargs.get("logits_to_keep"), Tensor):
            raise UsageError(
                "labels and a tensor of logits_to_keep count the columns of the whole prompt, and the last layers hold "
                "fewer: read the logits themselves (pruned.last.in_llm.columns says whose they are)."
            )
        if call.columns is None:
            call.open(ids, kwargs.get("attention_mask"), self.placeholders)

    def _after_model(self, model: nn.Module, args: Any, output: Any) -> None:
        call = self._active()
        if call is None:
            return
        choosing, call.choosing = call.choosing, False
        call.taps.clear()
        if call.columns is not None:
            call.columns.settle()
        if choosing and output is not None and (missing := set(range(self.first, self.depth)) - call.ran):
            raise UnsupportedModelError(
                f"the hook of decoder layer {min(missing)} did not run, so nothing was dropped there (the layer, or "
                "the language model, is compiled or was replaced inside the block): undo that, or prune before it."
            )
        if call.single:
            self.end(call, whole=output is not None)

    # --------------------------------------------------------------------------------------------------------- the taps

    def _tap(self, layer: int, name: str, value: Any) -> None:
        call = self._active()
        if call is not None and call.choosing:
            call.taps[layer, name] = value

    def _embeddings(self, layer: nn.Module, args: Any, kwargs: Any) -> None:
        self._tap(0, "embeddings", (args[0] if args else kwargs["hidden_states"]).detach())

    def _arguments(self, index: int, attention: nn.Module, args: Any, kwargs: Any) -> None:
        self._tap(index, "arguments", kwargs)

    def _projected(self, index: int, part: str, module: nn.Module, args: Any, output: Tensor) -> None:
        self._tap(index, part, output.detach())

    # ------------------------------------------------------------------------------------------------------- the layers

    def _before_layer(self, index: int, layer: nn.Module, args: Any, kwargs: Any) -> Any:
        call, cache = self._active(), cache_in(kwargs)
        if call is not None and call.foreign:
            return None
        fresh = call is not None and call.fresh
        columns = call.columns if call is not None else None
        if not fresh and cache is not None:
            columns = columns_of(cache) if cache.get_seq_length(index) else None
        if columns is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        if call is not None and call.choosing:
            call.ran.add(index)
            if index in self.steps:
                self._drop(call, columns, index, hidden, kwargs)
        drop = columns.at(index)
        if drop is None:
            return None
        if hidden.shape[0] != drop.source.shape[0]:
            raise UsageError(
                f"the KV cache was filled by {counted(drop.source.shape[0], 'prompt')} and this step has "
                f"{counted(hidden.shape[0], 'row')}: no row may come or go between steps once columns were dropped "
                "inside the language model."
            )
        if fresh and drop.layer == index:
            hidden = drop.take(hidden)
        held = hidden.shape[1] + (0 if fresh or cache is None else int(cache.get_seq_length(index)))
        cut = columns.arguments(kwargs, drop, held - drop.source.shape[1], hidden.shape[1], self._flash)
        return ((hidden, *args[1:]), cut) if args else ((), {**cut, "hidden_states": hidden})

    def _drop(self, call: Call, columns: Columns, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """Run the method of this layer; nothing is recorded if every picture fits its budget."""
        method, step = self.steps[index]
        budgets = call.budgets(method, step, self.depth)
        if call.valid is None or all(k == len(p.columns) for k, p in zip(budgets, call.pictures)):
            return
        cache, earlier = cache_in(kwargs), columns.at(index)
        if cache is not None:
            check_cache(cache, self.first)
            remember(cache, columns)
        width = call.valid.shape[1]
        if earlier is not None:
            kwargs = columns.arguments(kwargs, earlier, 0, width, self._flash)
        else:
            kwargs = prompt_part(kwargs, width)
        inputs = LayerInputs(self.decoder, index, hidden[:, :width].detach(), kwargs, call.taps, call.valid, earlier)
        call.drop(method, budgets, index, inputs)

    @property
    def _flash(self) -> bool:
        return "flash" in str(self.decoder.config._attn_implementation)
