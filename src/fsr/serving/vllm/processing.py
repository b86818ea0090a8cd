"""The front end: announce K placeholders instead of N, find the question, and put both into the cache key.

A mixin in front of a family's own processor. vLLM's hash of a picture keys its processor cache, its encoder cache and
its prefix cache. Budget, method and (where the method reads it) the question of each picture are made part of it: the
same picture under another question is another entry, and a picture that stays whole is the entry that it always was.
Everything that can be wrong with a request is said here, as a ValueError, which the server answers with status 400:
an error inside the engine would end it for everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, EmbeddingItems
from vllm.multimodal.processing import PromptUpdate

from fsr.adapters.base import Adapter
from fsr.errors import QuestionError, UsageError, counted
from fsr.serving.vllm.arguments import QUESTION, others, refuse_near_misses
from fsr.serving.vllm.checkpoints import check_model_type
from fsr.serving.vllm.settings import OWN, EngineSettings, Request
from fsr.signals.question import extract_questions, own_questions
from fsr.signals.question_tokens import question_ids

__all__ = ["REQUEST", "PrunedProcessing"]

# The tensor that carries a `Request` from here to the model, and the argument that carries all of them until then.
REQUEST, REQUESTS = "fsr_request", "fsr_requests"


class PrunedProcessing:
    """Mixin: `class X(PrunedProcessing, LlavaMultiModalProcessor)`."""

    adapter_class: ClassVar[type[Adapter]]
    info: Any

    def __init__(self, info: Any, dummy_inputs: Any) -> None:
        check_model_type(info.ctx.model_config.hf_config, self.adapter_class)
        super().__init__(info, dummy_inputs)  # type: ignore[call-arg]
        model = info.ctx.model_config
        self.settings = EngineSettings.of(model.hf_config, self.adapter_class.paired_text_tower, str(model.model))

        if given := info.ctx.get_mm_config().mm_processor_kwargs:
            refuse_near_misses(given)
            if set(given) != set(others(given)):
                raise UsageError('the engine\'s own budget stands in hf_overrides ("fsr"), not in mm_processor_kwargs.')

    def structural(self, mm_items: Any, index: int) -> int:
        """How many tokens of a picture are no patches; families with newlines override this."""
        return 0

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """The prompt that the engine measures its memory with has no question."""
        made = super().get_dummy_inputs(*args, **kwargs)  # type: ignore[misc]
        return replace(made, hf_processor_mm_kwargs={**made.hf_processor_mm_kwargs, QUESTION: _Trial("what is this?")})

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Settle budget and question of every picture before anything is hashed.

        Raises:
            BudgetError, UsageError, QuestionError: see `EngineSettings`; no question in the prompt.
        """
        given, pictures = inputs.hf_processor_mm_kwargs, inputs.mm_data_items.get_count("image", strict=False)
        keeps, questions = self.settings.keeps_of(given, pictures), self.settings.questions_of(given, pictures)
        asked = self.settings.asked(given, pictures)
        settled = replace(inputs, hf_processor_mm_kwargs=others(given))
        if pictures and not _is_embedded(inputs.mm_data_items):
            names = super()._get_mm_hashes(settled)["image"]  # type: ignore[misc]
            if isinstance(given.get(QUESTION), _Trial):
                names = [""] * pictures
            reads = [here and keep != 0 for here, keep in zip(asked, keeps)]
            missing = [here and question is None for here, question in zip(reads, questions)]
            found = self._questions_in(inputs.prompt, missing, self.settings.which(given))
            requests = [
                Request(keep, (question or read) if here else None, name)
                for keep, question, read, here, name in zip(keeps, questions, found, reads, names)
            ]
            self._check_tokens({r.question for r in requests if r.question is not None})
            requests = [replace(r, identity=self._identity(r)) for r in requests]
            settled = replace(inputs, hf_processor_mm_kwargs={**others(given), REQUESTS: requests})
        return super().apply(settled, timing_ctx)  # type: ignore[misc]

    def _get_mm_hashes(self, inputs: Any) -> Any:
        requests = inputs.hf_processor_mm_kwargs.get(REQUESTS)
        plain = replace(inputs, hf_processor_mm_kwargs=others(inputs.hf_processor_mm_kwargs))
        if requests is None:
            return super()._get_mm_hashes(plain)  # type: ignore[misc]
        rest = {name: items for name, items in inputs.mm_data_items.items() if name != "image"}
        hashes = super()._get_mm_hashes(replace(plain, mm_data_items=rest)) if rest else {}  # type: ignore[misc]
        return {**hashes, "image": [r.identity for r in requests]}

    def _identity(self, request: Request) -> str:
        """Of a picture's tokens: of the picture alone where it stays whole."""
        if request.keep == 0:
            return request.picture
        algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm
        told = {"picture": request.picture, "keep": request.keep, "question": request.question or ""}
        return MultiModalHasher.hash_kwargs(
            algorithm,
            method=f"{self.settings.method} {self.settings.relevance} {self.settings.calibration or ''}".rstrip(),
            **told,
        )

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Mapping[str, list[bool]]) -> Any:
        requests = inputs.hf_processor_mm_kwargs.get(REQUESTS)
        plain = replace(inputs, hf_processor_mm_kwargs=others(inputs.hf_processor_mm_kwargs))
        made = super()._get_cache_missing_processor_kwargs(plain, mm_is_cached)  # type: ignore[misc]
        if requests is None:
            return made
        return {**made, REQUESTS: [r for r, hit in zip(requests, mm_is_cached["image"]) if not hit]}

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        made = super()._apply_hf_processor_main(mm_items=mm_items, hf_kwargs=others(hf_kwargs))  # type: ignore[misc]
        if requests := hf_kwargs.get(REQUESTS):
            made[REQUEST] = [r.to_tensor() for r in requests]
        return made

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]) -> Any:
        config = super()._get_mm_fields_config(hf_inputs, others(hf_processor_mm_kwargs))  # type: ignore[misc]
        return {**config, REQUEST: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[PromptUpdate]:
        updates = super()._get_prompt_updates(  # type: ignore[misc]
            mm_items=mm_items, hf_processor_mm_kwargs=others(hf_processor_mm_kwargs), out_mm_kwargs=out_mm_kwargs
        )
        if not (requests := hf_processor_mm_kwargs.get(REQUESTS)):
            return updates  # no pictures, or pruned before they came here: as many placeholders as there are vectors

        def shorter(stock: Callable[[int], Any]) -> Callable[[int], Any]:
            def placeholders(index: int) -> Any:
                every = stock(index)
                tokens, marks = (every, None) if isinstance(every, list) else (list(every.full), every.is_embed)
                embedded = [True] * len(tokens) if marks is None else marks(tokens).tolist()
                total = sum(embedded)
                left = self._count(requests[index].keep, total, mm_items, index)
                dropped = {i for i, here in enumerate(embedded) if here} - set(_first(embedded, left))
                fewer = [token for i, token in enumerate(tokens) if i not in dropped]
                return fewer if isinstance(every, list) else replace(every, full=fewer)

            return placeholders

        return [replace(u, replacement=shorter(u.replacement)) if u.modality == "image" else u for u in updates]

    def _count(self, keep: int | float, total: int, mm_items: Any, index: int) -> int:
        return total if keep == 0 else self.settings.count(keep, total, self.structural(mm_items, index))

    def _questions_in(self, prompt: Sequence[int], missing: Sequence[bool], which: str) -> Sequence[str | None]:
        """What the prompt asks, for the pictures that need it."""
        if not any(missing):
            return [None] * len(missing)
        processor = self.info.get_hf_processor()
        if which == OWN:
            # Gemma 3's prompts have only the mark that begins a picture, at this point.
            images = self._token_ids("image") & set(prompt) or self._token_ids("boi")
            found = own_questions(processor, prompt, images)
            if len(found) != len(missing):
                raise QuestionError(
                    f"{counted(len(missing), 'picture')} and {counted(len(found), 'place')} for them in the prompt, so "
                    f"nobody knows in which turn each came: give {QUESTION} as a list."
                )
        else:
            ids = torch.tensor([prompt])
            marks = self._token_ids("image") | self._token_ids("video")
            found = extract_questions(processor, ids, torch.ones_like(ids), marks)[0] * len(missing)
        if any(here and not question.strip() for here, question in zip(missing, found)):
            raise QuestionError(f"no question in the prompt: write one, or give {QUESTION} in mm_processor_kwargs.")
        return found

    def _check_tokens(self, questions: set[str]) -> None:
        """A question may have characters and no tokens, which these sources of relevance read."""
        if self.settings.relevance in ("first-layer", "embedding"):
            for question in questions:
                question_ids(self.info.ctx.get_tokenizer(), question)

    def _token_ids(self, kind: str) -> set[int]:
        config = self.info.get_hf_config()
        return {getattr(config, f"{kind}_token_{form}", -1) for form in ("id", "index")}


def _is_embedded(mm_items: Any) -> bool:
    return isinstance(mm_items.get("image"), (EmbeddingItems, DictEmbeddingItems))


def _first(marks: Sequence[bool], count: int) -> list[int]:
    """Places of the first `count` true marks."""
    return [i for i, here in enumerate(marks) if here][:count]


class _Trial(str):
    """A question that no client can send: its pictures are the engine's own, made to measure memory."""

    __slots__ = ()
