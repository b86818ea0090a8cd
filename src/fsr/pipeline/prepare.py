"""Encode the pictures of a prompt once, select, shorten the prompt, and hand the kept features over by
`mm_encoder_outputs`.

A pure function of model and inputs: nothing of the model is changed. `pruner` puts it behind `generate` and `forward`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor

from fsr.adapters import find
from fsr.adapters.base import Adapter, Encoded
from fsr.device import synchronise
from fsr.errors import UsageError
from fsr.kernels import backend_name
from fsr.methods.base import Method
from fsr.methods.picture_budgets import Keep, per_picture
from fsr.pipeline.center_crop import center_crop, placed
from fsr.pipeline.encode import EncodedPrompt, run_tower, source_for
from fsr.pipeline.inputs import (
    check_inputs,
    check_pictures,
    check_processor,
    ids_and_mask,
    picture_shapes,
    refuse_encoded,
)
from fsr.pipeline.positions import packed_prompts, place, policy_of, shorten_lengths
from fsr.pipeline.report import Prepared, Report
from fsr.pipeline.resolution import Resolution
from fsr.pipeline.score import bound, with_relevance
from fsr.pipeline.select import QuestionFor, check_question_for, select
from fsr.pipeline.shorten import (
    FILL,
    Run,
    gather,
    mask_one_column,
    placeholder_units,
    rows_with,
    shortened_logits_to_keep,
    shrink,
)
from fsr.signals.question import cut_in_pieces, questions_of
from fsr.signals.relevance import RelevanceScorer, source_of
from fsr.signals.text_cache import texts_beside
from fsr.tokens import Selection

__all__ = ["Positions", "Prepared", "Report", "prepare"]

Positions = Literal["auto", "repack", "original"]
Call = Literal["generate", "forward"]


def prepare(
    model: Any,
    method: Method,
    inputs: Mapping[str, Any],
    question: str | Sequence[str] | None = None,
    *,
    processor: Any = None,
    relevance: str | PathLike[str] | RelevanceScorer = "auto",
    positions: Positions = "auto",
    question_for: QuestionFor = "all",
    call: Call = "generate",
    use_cache: bool = True,
    encoded: EncodedPrompt | None = None,
) -> Prepared:
    """Prune one batch of prompts without touching the model.

    Args:
        model: a vision-language model of Transformers that takes `mm_encoder_outputs` (5.18 and later).
        method: what to keep, for example `FSR(keep=64)`.
        inputs: what the processor made: `input_ids` [B, L], `attention_mask`, pixels and their sizes; other keys pass
            through.
        question: the question, one for all rows or one per row; None reads it from the prompt (needs `processor`).
        relevance: "auto" finds the paired text tower (families without one: what `fsr calibrate` wrote to
            relevance.json beside the weights, or none), "none" works without, "first-layer" reads it from the language
            model's first queries and keys, "embedding" from its word embeddings; or a file of `fsr calibrate` (*.json),
            or a `RelevanceScorer`.
        positions: "repack" numbers the shortened prompt anew, "original" keeps the old numbers, "auto" follows the
            family, and with 1-D positions keeps them where fewer than one visual token in twelve stays.
        question_for: "all" pictures are chosen with the question, or only the "newest" of each prompt: what the others
            keep then does not depend on later turns of a conversation.
        call: which call the result is meant for; use_cache: False if `generate` will run without a KV cache.
        encoded: these very pictures as `encode` saw them: the vision tower is not run again, and its scorer is used.

    Raises:
        UnsupportedModelError, RelevanceError, QuestionError, FeatureError, UsageError: see `fsr.errors`.
    """
    adapter = find(model)
    check_inputs(inputs, call)
    method, scorer = source_for(adapter, method, relevance, encoded)
    if encoded is not None:
        encoded.pictures.check(adapter, inputs)
    check_question_for(question_for, method)
    work = Work(adapter, method, scorer, processor, positions, question_for)
    return work.run(inputs, question, call=call, use_cache=use_cache, seen=encoded)


@dataclass(frozen=True)
class Work:
    """Everything about a pruned model that does not change from call to call.

    ordered: a later drop follows the order of choice (see `Late`). resolution: what pictures may have at most (see
        `Downscale`), None for any.
    """

    adapter: Adapter
    method: Method
    scorer: RelevanceScorer | None
    processor: Any
    positions: Positions
    question_for: QuestionFor = "all"
    ordered: bool = False
    resolution: Resolution | None = None

    def __post_init__(self) -> None:
        check_processor(self.processor)
        if self.positions not in ("auto", "repack", "original"):
            raise UsageError(f"positions={self.positions!r} is unknown: use 'auto', 'repack' or 'original'.")

    @torch.compiler.disable
    def run(
        self,
        inputs: Mapping[str, Any],
        question: Any,
        *,
        call: Call,
        use_cache: bool,
        seen: EncodedPrompt | None = None,
    ) -> Prepared:
        """See `prepare`."""
        started = perf_counter()
        refuse_encoded(inputs)
        ids, mask = ids_and_mask(self.adapter, inputs, call)
        carried = self.adapter.modalities(inputs) if seen is None else [part.modality for part in seen.parts]
        check_pictures(self.adapter, ids, carried)
        if self.resolution is not None:
            self.resolution.check(inputs)
        keeps = self._budgets(inputs, ids) if seen is None else None
        packed = packed_prompts(inputs, ids, mask)
        if packed is not None and call == "generate":
            raise UsageError("generate cannot go on from several packed prompts: give one prompt per row.")
        notes = [self.adapter.announcement] if self.adapter.announcement else []
        if getattr(self.method, "relevance", None) == "none" and not self.adapter.paired_text_tower:
            notes.append(
                f"{self.method.name} ran without relevance (alpha = 0): no public text tower pairs with "
                f"{self.adapter.name}; `fsr calibrate` measures what else could say what the question asks for"
            )
        signals = self.method.signals()
        questions, scorer, text_ms = None, None, 0.0
        if "relevance" in signals and self.scorer is not None:
            before = perf_counter()
            if packed is not None:
                raise UsageError(
                    "rows of packed prompts have several questions: give one prompt per row, or relevance='none'."
                )
            scorer = bound(self.scorer, self.processor)
            tokens = self.adapter.placeholder_ids()
            pictured = rows_with(ids, [tokens[m] for m in carried])
            marks, labels = set(tokens.values()), inputs.get("labels")
            questions, plain = questions_of(self.processor, ids, mask, pictured, question, marks, labels)
            if plain:
                notes.append("no chat template matched the prompt: its whole text was taken as the question")
            notes += cut_in_pieces(self.scorer, questions)
            text_ms = 1e3 * (perf_counter() - before)
        if seen is None:
            with texts_beside(self.scorer, questions, lambda: self.adapter.vision_tower):
                encoded = run_tower(self.adapter, inputs, signals, self.scorer)
        else:
            encoded = [replace(part, timings={}) for part in seen.parts]
        runs = self._runs(ids, encoded)
        if questions is not None and scorer is not None:
            before = perf_counter()
            encoded = [with_relevance(self.adapter, scorer, e, r, questions) for e, r in zip(encoded, runs)]
            synchronise(self.adapter.device)
            text_ms += 1e3 * (perf_counter() - before)

        before = perf_counter()
        units = [unit for e in encoded for unit in e.units]
        flat = select(self.method, units, [r for rs in runs for r in rs], self.question_for, self.ordered, keeps)
        synchronise(self.adapter.device)
        select_ms = 1e3 * (perf_counter() - before)
        if any(u.features.requires_grad and not s.features.requires_grad for u, s in zip(units, flat)):
            notes.append(f"{self.method.name} cuts the gradient between the language model and the vision side")
        backend = backend_name(units[0].features.device)
        if units[0].features.device.type == "cuda" and backend == "plain":
            notes.append("Triton cannot be imported: selection runs as plain torch loops, many times slower")
        chosen, at = [], 0
        for e in encoded:
            chosen.append(flat[at : at + len(e.units)])
            at += len(e.units)

        kwargs, policy, source = self._shorten(inputs, ids, mask, encoded, runs, chosen, call, use_cache, packed)
        order = sorted((int(run.places[0]), m, i) for m, rs in enumerate(runs) for i, run in enumerate(rs))
        timings = {"text_tower": text_ms, "selection": select_ms, "total": 1e3 * (perf_counter() - started)}
        for name in ("vision_tower", "saliency"):
            timings[name] = sum(e.timings.get(name, 0.0) for e in encoded)
        timings["rest"] = timings["total"] - sum(v for k, v in timings.items() if k != "total")
        crops = [center_crop(self.processor, e.modality) for e in encoded]
        report = Report(
            # A report outlives the call: it must not hold the graph of a training step.
            selections=tuple(
                placed(replace(chosen[m][i], features=chosen[m][i].features.detach()), crops[m]) for _, m, i in order
            ),
            rows=tuple(runs[m][i].row for _, m, i in order),
            input_ids=kwargs["input_ids"],
            attention_mask=gather(mask, source, 0),
            labels=kwargs.get("labels"),
            columns=source,
            length_before=ids.shape[1],
            length_after=kwargs["input_ids"].shape[1],
            timings=timings,
            positions=policy,
            questions=None if questions is None else tuple(questions),
            relevance=source_of(scorer),
            notes=tuple(notes),
            kernels=backend,
        )
        return Prepared(kwargs, report)

    # ------------------------------------------------------------------------------------------------------------------

    def _budgets(self, inputs: Mapping[str, Any], ids: Tensor) -> list[Keep] | None:
        """Budgets per picture, in prompt order, as soon as they can be known: a mistake in them costs no tower run."""
        keep = self.method.keep
        shapes = picture_shapes(self.adapter, inputs, ids) if isinstance(keep, tuple) or callable(keep) else None
        if shapes is None:
            return None
        runs = placeholder_units(ids, self.adapter.placeholder_ids()["image"], [s.tokens for s in shapes], "image")
        return per_picture(keep, shapes, [run.row for run in runs])

    def _runs(self, ids: Tensor, encoded: list[Encoded]) -> list[list[Run]]:
        tokens = self.adapter.placeholder_ids()
        return [
            placeholder_units(ids, tokens[e.modality], self.adapter.placeholder_counts(e), e.modality) for e in encoded
        ]

    def _shorten(
        self,
        inputs: Mapping[str, Any],
        ids: Tensor,
        mask: Tensor,
        encoded: list[Encoded],
        runs: list[list[Run]],
        chosen: list[list[Selection]],
        call: Call,
        use_cache: bool,
        packed: Tensor | None,
    ) -> tuple[dict[str, Any], str, Tensor]:
        """The new keyword arguments, the position policy that made them, and the old column of each new one."""
        adapter = self.adapter
        dropped = adapter.pixel_arguments()
        kwargs = {name: value for name, value in inputs.items() if name not in dropped}
        kwargs["mm_encoder_outputs"] = {
            e.modality: adapter.hand_over(e, c, [run.row for run in r]) for e, c, r in zip(encoded, chosen, runs)
        }
        if call == "generate":  # which infers a mask before anything else
            inputs = {**inputs, "attention_mask": mask}
        flat = [(run, s) for rs, c in zip(runs, chosen) for run, s in zip(rs, c)]
        counts = [(run.row, s.kept, s.total) for run, s in flat]
        policy, anew = policy_of(adapter, self.positions, inputs, packed, counts)
        if all(s.kept == s.total == len(run.places) for run, s in flat):
            source = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            if inputs.get("position_ids") is None and adapter.positions(inputs) is not None:
                place(adapter, kwargs, inputs, mask, source, policy, call, None)
            return kwargs, policy, source
        source = shrink(mask, [r for r, _ in flat], [s.rows for _, s in flat], [s.total for _, s in flat])
        for name, value in kwargs.items():
            per_token = isinstance(value, Tensor) and value.shape == ids.shape
            if per_token and name not in ("input_ids", "position_ids"):
                kwargs[name] = gather(value, source, FILL.get(name, 0))
        kwargs["input_ids"] = gather(ids, source, self._pad_id())
        if kwargs.get("attention_mask") is None and bool((source < 0).any()):
            kwargs["attention_mask"] = gather(mask, source, 0).long()
        place(adapter, kwargs, inputs, mask, source, policy, call, packed, anew)
        shorten_lengths(kwargs, source)
        if policy != "repack" and call == "generate" and not use_cache:
            mask_one_column(kwargs, source, self._pad_id())
            source = torch.nn.functional.pad(source, (1, 0), value=-1)
        if isinstance(kwargs.get("logits_to_keep"), Tensor):
            kwargs["logits_to_keep"] = shortened_logits_to_keep(kwargs["logits_to_keep"], source, ids.shape[1])
        return kwargs, policy, source

    def _pad_id(self) -> int:
        """An id for masked places that no one can take for a placeholder."""
        pad = getattr(self.adapter.model.config.get_text_config(), "pad_token_id", None)
        taken = set(self.adapter.placeholder_ids().values())
        return next(i for i in (pad, 0, 1, 2) if i is not None and i >= 0 and i not in taken)
