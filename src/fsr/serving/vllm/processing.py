"""The front end: announce K placeholders instead of N, find the question, and put both into the cache key.

A mixin in front of a family's own processor. vLLM hashes `mm_processor_kwargs` together with the picture, and that
hash keys its processor cache, its encoder cache and its prefix cache. So the budget, the method and (where the method
reads it) the question are made part of these arguments: the same picture under another question is another entry.
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
from fsr.errors import QuestionError, UsageError
from fsr.serving.vllm.arguments import KEEP, QUESTION, others, refuse_near_misses
from fsr.serving.vllm.settings import EngineSettings, Request
from fsr.signals.question import extract_questions

__all__ = ["REQUEST", "PrunedProcessing"]

# The tensor that carries a `Request` from here to the model, and the argument that is only there to be hashed.
REQUEST = "fsr_request"
_METHOD = "fsr_method"


class PrunedProcessing:
    """Mixin: `class X(PrunedProcessing, LlavaMultiModalProcessor)`."""

    adapter_class: ClassVar[type[Adapter]]
    info: Any

    def __init__(self, info: Any, dummy_inputs: Any) -> None:
        super().__init__(info, dummy_inputs)  # type: ignore[call-arg]
        self.settings = EngineSettings.of(info.ctx.model_config.hf_config, self.adapter_class.paired_text_tower)

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
        return replace(made, hf_processor_mm_kwargs={**made.hf_processor_mm_kwargs, QUESTION: "what is this?"})

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Settle budget and question before anything is hashed.

        Raises:
            BudgetError, UsageError, QuestionError: see `EngineSettings`; no question in the prompt.
        """
        given = inputs.hf_processor_mm_kwargs
        keep, question = self.settings.keep_of(given), self.settings.question_of(given)
        settled = others(given)
        if inputs.mm_data_items.get_count("image", strict=False) and keep != 0:
            settled |= {KEEP: keep, _METHOD: repr(self.settings)}
            if self.settings.reads_question:
                settled[QUESTION] = question or self._question_in(inputs.prompt)
        return super().apply(replace(inputs, hf_processor_mm_kwargs=settled), timing_ctx)  # type: ignore[misc]

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        made = super()._apply_hf_processor_main(mm_items=mm_items, hf_kwargs=others(hf_kwargs))  # type: ignore[misc]
        if (count := mm_items.get_count("image", strict=False)) and not _is_embedded(mm_items):
            keep, question = hf_kwargs.get(KEEP, 0), hf_kwargs.get(QUESTION)
            names = self._names(mm_items, hf_kwargs) if keep else [""] * count
            made[REQUEST] = [Request(keep, question, name).to_tensor() for name in names]
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
        keep = hf_processor_mm_kwargs.get(KEEP, 0)
        if _is_embedded(mm_items):  # pruned before they came here: as many placeholders as there are vectors
            return updates

        def shorter(stock: Callable[[int], Any]) -> Callable[[int], Any]:
            def placeholders(index: int) -> Any:
                every = stock(index)
                tokens, marks = (every, None) if isinstance(every, list) else (list(every.full), every.is_embed)
                embedded = [True] * len(tokens) if marks is None else marks(tokens).tolist()
                total = sum(embedded)
                left = self.settings.count(keep, total, self.structural(mm_items, index))
                dropped = {i for i, here in enumerate(embedded) if here} - set(_first(embedded, left))
                fewer = [token for i, token in enumerate(tokens) if i not in dropped]
                return fewer if isinstance(every, list) else replace(every, full=fewer)

            return placeholders

        return [replace(u, replacement=shorter(u.replacement)) if u.modality == "image" else u for u in updates]

    def _names(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> list[str]:
        """A digest of each picture and of the arguments that it is processed with."""
        algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm
        return [
            MultiModalHasher.hash_kwargs(algorithm, image=item, arguments=others(hf_kwargs))
            for item in mm_items["image"].get_all_items_for_hash()
        ]

    def _question_in(self, prompt: Sequence[int]) -> str:
        config = self.info.get_hf_config()
        names = [f"{kind}_token_{form}" for kind in ("image", "video") for form in ("id", "index")]
        placeholders = {getattr(config, name, -1) for name in names}
        ids = torch.tensor([prompt])
        found, _ = extract_questions(self.info.get_hf_processor(), ids, torch.ones_like(ids), placeholders)
        if not found[0].strip():
            raise QuestionError(f"no question in the prompt: write one, or give {QUESTION} in mm_processor_kwargs.")
        return found[0]


def _is_embedded(mm_items: Any) -> bool:
    return isinstance(mm_items.get("image"), (EmbeddingItems, DictEmbeddingItems))


def _first(marks: Sequence[bool], count: int) -> list[int]:
    """Places of the first `count` true marks."""
    return [i for i, here in enumerate(marks) if here][:count]
