"""The model class of lmms-eval: any family that has an adapter, any method, any batch size.

Unlike lmms-eval's own wrappers it lets every error out: an answer that could not be made is not an empty string that
scores as wrong. The unpruned baseline (`method=none`) runs the same path with every token kept, which equals the stock
model bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger
from tqdm import tqdm

from fsr.adapters.llava_next import five_tiles
from fsr.asking.load import load
from fsr.asking.options import keep_value
from fsr.errors import UsageError
from fsr.evaluation.lmms.chat import batch_of, chat_of, cut, generate_arguments, to_device
from fsr.evaluation.lmms.record import Ledger, counts_of, folder_of
from fsr.methods import get
from fsr.methods.parts import KeepAll
from fsr.pipeline.pruner import prune

__all__ = ["Pruned"]

DTYPES = ("auto", "float32", "bfloat16", "float16")


class Pruned(lmms):
    """Model arguments of `--model fsr`.

    Args:
        pretrained: `mini`, a folder with a saved model, or a hub id.
        method: a name of `fsr methods`, or `none` for the unpruned baseline.
        keep: tokens per picture (64), or a share (0.11).
        relevance, positions: as in `prune`.
        dtype: auto (as stored), float32, bfloat16 or float16.
        attn_implementation: handed to Transformers (sdpa, eager, flash_attention_2).
        system_prompt: text, or a file with it, that stands as a system turn before every question (LLaVA's protocol:
            `vicuna_v1.txt` of `fsr tasks`; the chat templates of llava-hf leave it out).
        five_tiles: LLaVA-NeXT at 672 x 672, 2880 tokens, as the papers run it.
        frames: frames of a clip, at equal distances.
        batch_size, device, max_batch_size: of lmms-eval's command line. Of several processes each takes the device that
            Accelerate gives it; the last argument is not used.
        options: options of the method (`per=tile`, `alpha=2`).

    The question that relevance is computed for is the text of the last user turn, as the task wrote it.

    Raises:
        UsageError, BudgetError, RelevanceError, UnsupportedModelError: see `fsr.errors`.
    """

    is_simple = False
    family: ClassVar[tuple[str, ...]] = ()  # what `family_of` may say; empty: anything

    def __init__(
        self,
        pretrained: str = "mini",
        method: str = "fsr",
        keep: int | float | str = 64,
        relevance: str = "auto",
        positions: str = "auto",
        dtype: str = "auto",
        attn_implementation: str | None = None,
        system_prompt: str = "",
        five_tiles: bool = False,
        frames: int = 32,
        batch_size: int | str = 1,
        device: str = "auto",
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise UsageError(f"batch_size={batch_size!r}: give a whole number of at least 1.")
        if not isinstance(frames, int) or frames < 1:
            raise UsageError(f"frames={frames!r}: give a whole number of at least 1.")
        if dtype not in DTYPES:
            raise UsageError(f"dtype={dtype!r} is unknown: use {', '.join(DTYPES)}.")
        if system_prompt.endswith(".txt") and not Path(system_prompt).is_file():
            raise UsageError(f"system_prompt={system_prompt!r} is no file: `fsr tasks FOLDER` writes vicuna_v1.txt.")
        unpruned = str(method).lower() == "none"
        if unpruned and options:
            raise UsageError(f"method=none takes no options, but {', '.join(sorted(options))} was given.")
        chosen = KeepAll() if unpruned else get(str(method).lower(), keep=keep_value(str(keep)), **options)
        self.batch_size, self.frames, self.five_tiles = int(batch_size), frames, five_tiles
        self.system_prompt = self._resolve_system_prompt(system_prompt)
        self.accelerator = Accelerator()
        where = str(self.accelerator.device) if self.accelerator.num_processes > 1 else device
        number = None if dtype == "auto" else getattr(torch, dtype)
        self.model, self.processor = load(pretrained, where, number, attn_implementation)
        kind = family_of(self.model)
        if self.family and kind not in self.family:
            raise UsageError(f"{pretrained} is {kind}, not {self.family[0]}: use --model fsr, which takes any family.")
        self.device, self.pooled_clips = self.model.device, kind == "llava_video"
        with self._tiled():
            self.pruner = prune(self.model, chosen, relevance=relevance, positions=positions)  # type: ignore[arg-type]
        self.ledger = Ledger(
            {
                "pretrained": str(pretrained),
                "family": kind,
                "method": "none" if unpruned else chosen.name,
                "options": {} if unpruned else asdict(self.pruner.method),  # type: ignore[arg-type]
                "relevance": relevance,
                "positions": positions,
                "system_prompt": self.system_prompt,
                "five_tiles": five_tiles,
                "frames": frames,
                "batch_size": self.batch_size,
                "dtype": str(self.model.dtype),
                "device": str(self.device),
                "attention": self.model.config._attn_implementation,
            }
        )

    @torch.inference_mode()
    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests. A batch holds questions of one task with one set of arguments."""
        answers: dict[int, GenerationResult] = {}
        started, tokens = perf_counter(), 0
        with self._tiled() as processor, self.pruner, tqdm(total=len(requests), disable=self.rank != 0) as bar:
            for numbers in self._batches(requests):
                for number, answer in zip(numbers, self._answer(processor, [requests[i] for i in numbers])):
                    answers[number] = answer
                    tokens += answer.token_counts.output_tokens  # type: ignore[union-attr, operator]
                bar.update(len(numbers))
        seconds = perf_counter() - started
        log_metrics(seconds, tokens, tokens / seconds, {"num_requests": len(requests), **self.ledger.means()})
        folder = folder_of(requests)
        if folder is not None:
            logger.info(f"settings, versions and token counts of this run: {self.ledger.write(folder, self.rank)}")
        return [answers[i] for i in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported."""
        raise UsageError("tasks that score likelihoods are not supported: choose one that generates its answers.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported."""
        raise UsageError("tasks of several rounds are not supported: choose one that asks once.")

    def clean(self) -> None:
        """Called when all questions are answered: frees the weights, because a judge model may need the memory."""
        del self.pruner
        super().clean()

    # ------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _tiled(self) -> Iterator[Any]:
        """The processor to use inside, the model set up for it."""
        if not self.five_tiles:
            yield self.processor
            return
        with five_tiles(self.model, self.processor) as square:
            yield square

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[int]]:
        """Numbers of requests that may be asked together: one task, one split, equal generation arguments."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            _, _, arguments, _, task, split = request.args
            groups.setdefault(json.dumps([task, split, arguments], sort_keys=True, default=str), []).append(number)
        for members in groups.values():
            for start in range(0, len(members), self.batch_size):
                yield members[start : start + self.batch_size]

    def _answer(self, processor: Any, requests: Sequence[Instance]) -> list[GenerationResult]:
        """One batch."""
        _, _, given, _, task, split = requests[0].args
        documents = self.task_dict[task][split]
        messages = [
            self._apply_system_prompt(list(r.args[1](documents[r.args[3]])), self.system_prompt) for r in requests
        ]
        chats = [chat_of(m, self.frames) for m in messages]
        inputs, prompts = batch_of(processor, chats, self.pooled_clips)
        inputs = to_device(inputs, self.model)
        arguments, until = generate_arguments(given)
        pictured = self.pruner.adapter.has_pixels(inputs)
        question = {"question": [chat.question for chat in chats]} if pictured else {}
        out = self.model.generate(**inputs, **question, **arguments)[:, inputs["input_ids"].shape[1] :]
        counts = counts_of(self.pruner.last if pictured else None, len(requests))
        ends = self.model.generation_config.eos_token_id
        for count, mask, new in zip(counts, inputs["attention_mask"], out.tolist()):
            count.input_tokens, count.output_tokens = int(mask.sum()), length(new, ends)
        self.ledger.add(task, prompts[0], counts)
        texts = processor.batch_decode(out, skip_special_tokens=True)
        return [GenerationResult(cut(text, until), count) for text, count in zip(texts, counts)]


def length(new: Sequence[int], ends: int | Sequence[int] | None) -> int:
    """Tokens of an answer, its end token included; what follows is padding."""
    stops = {ends} if isinstance(ends, int) else set(ends or ())
    return next((i + 1 for i, token in enumerate(new) if token in stops), len(new))


def family_of(model: Any) -> str:
    """`config.model_type`, with LLaVA-Video (which runs on the classes of LLaVA-OneVision) told apart."""
    return "llava_video" if getattr(model.config, "llava_video_pool", None) else str(model.config.model_type)
