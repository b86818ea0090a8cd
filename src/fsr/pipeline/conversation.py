"""A prompt that grows turn by turn: pictures are encoded once, and the KV cache of what did not change is used again.

An agent asks about its newest screenshot and sends all the earlier ones along. Each turn calls `generate` with the
whole prompt, as always; nothing but time depends on the turns before, as long as the weights stay what they are (start
a new conversation after a training step or another adapter).

    talk = Conversation(model, FSR(keep=by_age(newest=0.5, older=0.1, oldest=32)), processor=processor)
    out = talk.generate(**inputs, max_new_tokens=64)          # turn after turn, the whole prompt each time
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsr.adapters.base import Encoded
from fsr.errors import UnsupportedModelError, UsageError
from fsr.methods.base import Method
from fsr.pipeline.encode import EncodedPrompt, encode_unnamed, joined
from fsr.pipeline.fingerprint import fingerprint
from fsr.pipeline.generate import settings as settings_of
from fsr.pipeline.generate import shorter_limits, with_prompt
from fsr.pipeline.kv_cache import cache_in, cache_of, remember_positions
from fsr.pipeline.prepare import Positions, Prepared, prepare
from fsr.pipeline.pruner import prune
from fsr.pipeline.report import Report
from fsr.pipeline.select import QuestionFor
from fsr.pipeline.shorten import repacked_positions
from fsr.signals.relevance import RelevanceScorer
from fsr.tokens import Selection

__all__ = ["Conversation"]


@dataclass(frozen=True)
class _Turn:
    """What the last turn left: ids [T] of the shortened prompt and the answer, mask [L'], positions [A, L'] or None,
    the KV cache, and the kept tokens of each picture."""

    ids: Tensor
    mask: Tensor
    positions: Tensor | None
    cache: Any
    selections: tuple[Selection, ...]


class Conversation:
    """One growing prompt (batch size 1) with pictures.

    Args:
        model, method, processor, relevance, positions: as for `prune`; methods before the language model only.
        question_for: "newest": pictures of earlier turns are chosen without the question, so that their tokens, and the
            KV cache of them, stay as they were.

    Raises:
        UnsupportedModelError: a family in which earlier tokens see later ones (a KV cache cannot be continued there).
        Everything that `prune` raises.
    """

    def __init__(
        self,
        model: Any,
        method: Method,
        *,
        processor: Any = None,
        relevance: str | RelevanceScorer = "auto",
        positions: Positions = "auto",
        question_for: QuestionFor = "newest",
    ) -> None:
        if not isinstance(method, Method):
            raise UsageError("a conversation continues one KV cache: choose a method before the language model.")
        pruner = prune(
            model, method, processor=processor, relevance=relevance, positions=positions, question_for=question_for
        )
        self.model, self.adapter, self.method = pruner.model, pruner.adapter, method
        if not self.adapter.chunked_prefill:
            raise UnsupportedModelError(
                f"{self.adapter.name}: earlier tokens may attend to later ones in this family, so the KV cache of an "
                "earlier turn is of no use: call generate under prune() each turn."
            )
        kinds = set(getattr(pruner.model.config.get_text_config(), "layer_types", None) or ()) - {"full_attention"}
        if kinds:
            raise UnsupportedModelError(
                f"{pruner.adapter.name}: layers of kind {', '.join(sorted(kinds))} cannot give a part of their KV "
                "cache back: call generate under prune() each turn."
            )
        self.options: dict[str, Any] = {"processor": processor, "positions": positions, "question_for": question_for}
        self.relevance = relevance
        self.last: Report | None = None
        self.reused = 0
        self._seen: dict[bytes, EncodedPrompt] = {}
        # Transformers 5.24 renamed the argument, and only says that the old name is old.
        newer = "cache" in inspect.signature(type(self.model).forward).parameters
        self._cache_name = "cache" if newer else "past_key_values"
        self._turn: _Turn | None = None

    @torch.no_grad()
    def generate(self, question: str | None = None, **inputs: Any) -> Any:
        """One turn: what `model.generate(**inputs)` under `prune` returns. That is ids [1, L + T] that start with your
        prompt, or with `return_dict_in_generate` the output object that holds them.

        `last` is then the report of the turn, `reused` the columns of the shortened prompt whose KV cache was there.

        Raises:
            UsageError: several rows, no pictures, or a KV cache in the arguments. Everything that `prepare` raises.
        """
        ids = inputs.get("input_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[0] != 1:
            raise UsageError("a conversation is one prompt: give input_ids [1, L].")
        if cache_in(inputs) is not None:
            raise UsageError("a conversation keeps its KV cache itself: leave it out of the call.")
        pixels = self.adapter.pixel_arguments()
        settings = {k: v for k, v in inputs.items() if k not in pixels and k not in self._prompt_keys(inputs)}
        _refuse(settings_of(self.model, settings))
        prompt = {k: v for k, v in inputs.items() if k not in settings}
        seen = self._encoded(prompt)
        ready = prepare(
            self.model, self.method, prompt, question, relevance=self.relevance, encoded=seen, **self.options
        )
        start = self._common(ready)
        output = self._continue(ready, seen, start, settings)
        self.last, self.reused = ready.report, start
        whole = settings_of(self.model, settings)("return_dict_in_generate")
        return with_prompt(output if whole else output.sequences, ids, ready.report.length_after)

    # ------------------------------------------------------------------------------------------------------------------

    def _prompt_keys(self, inputs: Mapping[str, Any]) -> set[str]:
        """Arguments that belong to the prompt: one value per token, or positions."""
        ids = inputs["input_ids"]
        per_token = {k for k, v in inputs.items() if isinstance(v, Tensor) and v.shape == ids.shape}
        return per_token | ({"position_ids"} & set(inputs))

    def _encoded(self, prompt: Mapping[str, Any]) -> EncodedPrompt:
        """All pictures of the prompt, those of earlier turns from memory."""
        if not self.adapter.has_pixels(prompt):
            raise UsageError("no picture has come yet: call model.generate itself until the first one.")
        parts = self.adapter.apart(prompt)
        if parts is None:
            return encode_unnamed(self.model, prompt, self.method, relevance=self.relevance)
        found: dict[bytes, EncodedPrompt] = {}
        keys = [fingerprint(part) for part in parts]
        for key, part in zip(keys, parts):
            known = self._seen.get(key) or found.get(key)
            if known is None:
                known = encode_unnamed(self.model, part, self.method, relevance=self.relevance).take([0])
            found[key] = known
        self._seen = found
        return joined([found[key] for key in keys])

    def _common(self, ready: Prepared) -> int:
        """Columns of the shortened prompt that stand in the last turn's KV cache exactly so; at least one is left."""
        turn = self._turn
        if turn is None:
            return 0
        ids = ready["input_ids"][0]
        limit = min(len(ids) - 1, int(turn.cache.get_seq_length()), len(turn.ids))
        same = _agree(ids[:limit], turn.ids[:limit])
        # What was hidden then and is seen now, or the other way round, stands in no cache; the answer was seen.
        answered = turn.mask.new_ones(len(turn.ids) - len(turn.mask))
        same = _agree(_mask(ready)[:same], torch.cat([turn.mask, answered])[:same])
        given = ready.get("position_ids")
        if isinstance(given, Tensor) or turn.positions is not None:
            given = given.flatten(0, -2) if isinstance(given, Tensor) else repacked_positions(_mask(ready)[None])
            before = repacked_positions(turn.mask[None]) if turn.positions is None else turn.positions
            width = min(same, given.shape[-1], before.shape[-1])
            same = _agree_columns(given[:, :width], before[:, :width]) if width else 0
        for i, (selection, columns) in enumerate(zip(ready.report.selections, self._columns(ready))):
            first, last = int(columns[0]), int(columns[-1])
            if first >= same:
                break
            earlier = turn.selections[i] if i < len(turn.selections) else None
            kept = earlier is not None and torch.equal(earlier.rows, selection.rows)
            if not kept or last >= same or not torch.equal(earlier.features, selection.features):  # type: ignore[union-attr]
                return first
        return same

    def _columns(self, ready: Prepared) -> list[Tensor]:
        """The columns of every picture in the shortened prompt."""
        ids = ready["input_ids"][0]
        marks = torch.tensor(sorted(self.adapter.placeholder_ids().values()), device=ids.device)
        places = torch.isin(ids, marks).nonzero().squeeze(-1)
        return list(places.split([s.kept for s in ready.report.selections]))

    def _continue(self, ready: Prepared, seen: EncodedPrompt, start: int, settings: dict[str, Any]) -> Any:
        arguments = ready.inputs
        if start and self._turn is not None:
            cache = self._turn.cache
            cache.crop(start - int(cache.get_seq_length()))
            arguments[self._cache_name] = cache
            behind = [i for i, columns in enumerate(self._columns(ready)) if int(columns[0]) >= start]
            del arguments["mm_encoder_outputs"]
            if behind:
                part = seen.take(behind).parts[0]
                arguments["mm_encoder_outputs"] = {part.modality: self._handed(part, ready, behind)}
        report = ready.report
        dropped = report.length_before - report.length_after
        arguments = shorter_limits({**arguments, **settings}, settings_of(self.model, settings), dropped)
        self._turn = None  # an error in between leaves no cache that fits no prompt
        remember_positions(self.adapter, ready)
        output = self.model.generate(**{**arguments, "return_dict_in_generate": True})
        positions = ready.get("position_ids")
        self._turn = _Turn(
            output.sequences[0],
            _mask(ready),
            positions.flatten(0, -2) if isinstance(positions, Tensor) else None,
            cache_of(output),
            ready.report.selections,
        )
        return output

    def _handed(self, part: Encoded, ready: Prepared, pictures: list[int]) -> Any:
        chosen = [ready.report.selections[i] for i in pictures]
        return self.adapter.hand_over(part, chosen, [0] * len(chosen))


def _mask(ready: Prepared) -> Tensor:
    """Which columns of the shortened prompt are seen, bool [L']."""
    mask = ready.get("attention_mask")
    ids = ready["input_ids"][0]
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[0].bool()


def _refuse(setting: Callable[[str], Any]) -> None:
    """Raise `UsageError` for settings of `generate` that leave no plain KV cache of one row behind."""
    several = max(setting("num_beams") or 1, setting("num_return_sequences") or 1) > 1
    names = ("cache_implementation", "assistant_model", "prompt_lookup_num_tokens", "prefill_chunk_size")
    wrong = [name for name in names if setting(name)] + ["num_beams or num_return_sequences"] * several
    if setting("use_cache") is False:
        wrong.append("use_cache=False")
    if wrong:
        raise UsageError(
            f"a conversation goes on from the KV cache of one plain row: leave out {', '.join(wrong)}, or call "
            "generate under prune()."
        )


def _agree(a: Tensor, b: Tensor) -> int:
    """Leading entries in which two vectors of one length agree."""
    differ = (a != b.to(a.device)).nonzero()
    return int(differ[0]) if len(differ) else len(a)


def _agree_columns(a: Tensor, b: Tensor) -> int:
    return _agree((a == b.to(a.device)).all(0), torch.ones(a.shape[-1], dtype=torch.bool, device=a.device))
