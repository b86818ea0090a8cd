"""One live vLLM engine, asked many ways; every answer beside that of Transformers pruned by `fsr.prune`.

    python vllm_cases.py SUITE FOLDER      # writes FOLDER/SUITE.json

A program of its own, because a process can hold one engine. Each case is {"vllm": tokens, "transformers": tokens,
"gap": largest difference of the chosen tokens' log-probabilities, "prompt": lengths, "cached": tokens from the cache}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1"
)

import checkpoints
import numpy as np
import torch
from PIL import Image

import tiny
from fsr import FSR, prune
from fsr.methods import get
from fsr.serving.vllm import overrides

LONGEST = 6


class Case:
    """One request: chat turns with pictures, and how many tokens to keep (None: the engine's default)."""

    def __init__(self, question: str, pictures: list[Image.Image], keep: Any = None, **more: Any) -> None:
        self.question, self.pictures, self.keep, self.more = question, pictures, keep, more


class Bench:
    """An engine and the same model in Transformers."""

    def __init__(self, folder: str, architecture: str, method: Any, relevance: str = "auto", **options: Any) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from vllm import LLM

        settings: dict[str, Any] = dict(
            dtype="float32", max_model_len=512, enforce_eager=True, max_num_seqs=8, block_size=32, seed=0,
            limit_mm_per_prompt={"image": 2}, hf_overrides=overrides(method, architecture, relevance),
        )  # fmt: skip
        self.llm = LLM(folder, **{**settings, **options})
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.method, self.relevance = method, relevance
        self.cases: dict[str, Any] = {}

    def prompt(self, case: Case) -> str:
        turns = tiny.chat((case.question, len(case.pictures)))
        if "video" in case.more:
            turns[0]["content"].insert(0, {"type": "text", "text": "<|vision_start|><|video_pad|><|vision_end|>"})
        return self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def request(self, case: Case) -> dict[str, Any]:
        arguments = {name: value for name, value in case.more.items() if name != "video"}
        if case.keep is not None:
            arguments["fsr_keep"] = case.keep
        data: dict[str, Any] = {"image": case.pictures if len(case.pictures) > 1 else case.pictures[0]}
        if "video" in case.more:
            data["video"] = [(case.more["video"], clip_facts(case.more["video"]))]
        return {"prompt": self.prompt(case), "multi_modal_data": data, "mm_processor_kwargs": arguments}

    def ask(self, cases: list[Case]) -> list[Any]:
        from vllm import SamplingParams

        # Random models know no end of sequence; their tokenizer does, and vLLM would stop at it.
        ends = self.model.generation_config.eos_token_id is not None
        how = SamplingParams(temperature=0, max_tokens=LONGEST, logprobs=1, ignore_eos=not ends)
        return self.llm.generate([self.request(c) for c in cases], how, use_tqdm=False)

    def reference(self, case: Case) -> tuple[list[int], list[float], int]:
        """Tokens, log-probabilities and prompt length of Transformers."""
        keep = self.method.keep if case.keep is None else case.keep
        method = get(self.method.name, **{**vars(self.method), "keep": 1.0 if keep == 0 else keep})
        clip: dict[str, Any] = {}
        if "video" in case.more:
            facts = {k: v for k, v in clip_facts(case.more["video"]).items() if k != "do_sample_frames"}
            clip = {"videos": [case.more["video"]], "video_metadata": [facts], "do_sample_frames": False}
        inputs = self.processor(images=case.pictures, text=self.prompt(case), return_tensors="pt", **clip)
        question = case.more.get("fsr_question")
        extra = {} if question is None else {"question": question}
        with prune(self.model, method, processor=self.processor, relevance=self.relevance) as pruned:
            out = self.model.generate(
                **inputs, **extra, max_new_tokens=LONGEST, do_sample=False,
                output_logits=True, return_dict_in_generate=True, suppress_tokens=None,
            )  # fmt: skip
        new = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        scores = [float(step[0].log_softmax(-1)[token]) for step, token in zip(out.logits, new)]
        return new, scores, pruned.last.length_after

    def check(self, name: str, cases: list[Case]) -> None:
        """Ask all at once; record each as `name/number`."""
        for number, (case, result) in enumerate(zip(cases, self.ask(cases))):
            tokens, scores, length = self.reference(case)
            made = result.outputs[0]
            found = [step[token].logprob for step, token in zip(made.logprobs, made.token_ids)]
            self.cases[f"{name}/{number}"] = {
                "vllm": list(made.token_ids),
                "transformers": tokens,
                "gap": max(abs(a - b) for a, b in zip(scores, found)),
                "prompt": [len(result.prompt_token_ids), length],
                "cached": result.num_cached_tokens,
            }

    def refused(self, name: str, case: Case) -> None:
        """The error of a bad request; then a good one must still be answered."""
        from vllm.exceptions import VLLMValidationError

        try:
            self.ask([case])
        except (ValueError, VLLMValidationError) as error:
            self.cases[f"{name}/refused"] = {"error": f"{type(error).__name__}: {error}"}
        else:
            self.cases[f"{name}/refused"] = {"error": None}


def clip_facts(video: Any) -> dict[str, Any]:
    """What vLLM and Transformers want to know about a clip of ready-made frames."""
    frames = len(video)
    return {
        "fps": 2.0, "duration": frames / 2.0, "total_num_frames": frames, "frames_indices": list(range(frames)),
        "video_backend": "opencv", "do_sample_frames": False,
    }  # fmt: skip


def scenes() -> list[Image.Image]:
    """The four pictures that ship with mini."""
    folder = Path(checkpoints.MINI).parent / "scenes"
    return [Image.open(p).convert("RGB") for p in sorted(folder.glob("*.png"))]


def sized(seed: int, width: int, height: int) -> Image.Image:
    return tiny.picture(seed).resize((width, height), Image.Resampling.NEAREST)


QUESTIONS = ["what color is the umbrella?", "what is right of the bicycle?", "how many dogs are there?"]


def mini_fsr(folder: Path) -> Bench:
    """LLaVA-1.5 with its text tower: budgets, questions, caches, bad requests."""
    bench = Bench(checkpoints.MINI, "LlavaForConditionalGeneration", FSR(keep=16), enable_mm_embeds=True)
    pictures = scenes()
    bench.check("budget", [Case(QUESTIONS[0], pictures[:1], keep) for keep in (None, 1, 4, 0.11, 143, 144, 500, 0)])
    bench.check("questions on one picture", [Case(q, pictures[:1], 8) for q in QUESTIONS])
    bench.check("the same again", [Case(q, pictures[:1], 8) for q in QUESTIONS])
    bench.check("explicit question", [Case(QUESTIONS[0], pictures[:1], 4, fsr_question=QUESTIONS[1])])
    mixed = [Case(QUESTIONS[i % 3], [pictures[i % 4]], 3 + 4 * i) for i in range(8)]
    bench.check("mixed budgets in one batch", mixed)
    bench.check("two pictures", [Case(QUESTIONS[0], pictures[:2], 9), Case(QUESTIONS[2], pictures[2:], 20)])
    bench.refused("negative", Case(QUESTIONS[0], pictures[:1], -3))
    bench.refused("share", Case(QUESTIONS[0], pictures[:1], 1.5))
    bench.refused("text", Case(QUESTIONS[0], pictures[:1], "many"))
    bench.refused("unknown", Case(QUESTIONS[0], pictures[:1], 9, fsr_kepe=3))
    bench.refused("empty question", Case(QUESTIONS[0], pictures[:1], 9, fsr_question=" "))
    bench.refused("no question", Case("", pictures[:1], 9))
    bench.check("after bad requests", [Case(QUESTIONS[1], pictures[1:2], 12)])
    _outside(bench, pictures)
    return bench


def _outside(bench: Bench, pictures: list[Image.Image]) -> None:
    """Embeddings that `prepare` pruned, of several lengths in one batch."""
    from vllm import SamplingParams

    from fsr import prepare
    from fsr.serving.embeddings import image_embeddings

    how = SamplingParams(temperature=0, max_tokens=LONGEST, logprobs=1)
    cases = [Case(QUESTIONS[0], pictures[:1], 5), Case(QUESTIONS[1], pictures[1:3], 11)]
    requests = []
    for case in cases:
        text = bench.prompt(case)
        inputs = bench.processor(images=case.pictures, text=text, return_tensors="pt")
        ready = prepare(bench.model, FSR(keep=case.keep), inputs, processor=bench.processor)
        requests.append({"prompt": text, "multi_modal_data": image_embeddings(ready.report)})
    for number, (case, result) in enumerate(zip(cases, bench.llm.generate(requests, how, use_tqdm=False))):
        tokens, _, length = bench.reference(case)
        bench.cases[f"pruned outside/{number}"] = {
            "vllm": list(result.outputs[0].token_ids),
            "transformers": tokens,
            "gap": 0.0,
            "prompt": [len(result.prompt_token_ids), length],
            "cached": 0,
        }


def mini_visionzip(folder: Path) -> Bench:
    """A peer without a question, pictures split over several prefill chunks."""
    method = get("visionzip", keep=40)
    bench = Bench(
        checkpoints.MINI, "LlavaForConditionalGeneration", method, max_num_batched_tokens=32, max_num_seqs=4,
        enable_chunked_prefill=True,
    )  # fmt: skip
    pictures = scenes()
    bench.check("chunks", [Case(QUESTIONS[i % 3], [pictures[i % 4]]) for i in range(4)])
    bench.check("other question", [Case(QUESTIONS[1], pictures[:1])])
    bench.refused("larger than the encoder's budget", Case(QUESTIONS[0], pictures[:1], 0))
    bench.check("after a bad request", [Case(QUESTIONS[2], pictures[3:])])
    return bench


def llava_next(folder: Path) -> Bench:
    """Tiles, unpadding, newlines."""
    saved = checkpoints.save("llava-next", folder / "llava-next")
    bench = Bench(saved, "LlavaNextForConditionalGeneration", FSR(keep=9), relevance="embedding")
    question = "what colour is the dog ?"
    shapes = [(40, 60), (64, 40), (30, 30), (90, 30)]
    pictures = [sized(i, *shape) for i, shape in enumerate(shapes)]
    bench.check("shapes", [Case(question, [p]) for p in pictures])
    bench.check("budget", [Case("where is the cat ?", pictures[:1], keep) for keep in (1, 0.5, 39, 40, 41, 500, 0)])
    bench.check("two pictures", [Case(question, pictures[:2], 5)])
    return bench


def qwen(folder: Path) -> Bench:
    """Windows, merged patches, three-dimensional positions; prompts in chunks of 32 and cached prefixes."""
    saved = checkpoints.save("qwen2.5-vl", folder / "qwen")
    runner_fix()
    bench = Bench(
        saved, "Qwen2_5_VLForConditionalGeneration", FSR(keep=7), max_num_batched_tokens=48, max_num_seqs=4,
        enable_chunked_prefill=True, limit_mm_per_prompt={"image": 2, "video": 1},
    )  # fmt: skip
    question = "what colour is the dog ?"
    pictures = [sized(i, *shape) for i, shape in enumerate([(48, 48), (32, 64), (64, 32), (96, 24)])]
    bench.check("shapes", [Case(question, [p]) for p in pictures])
    bench.check("the same again", [Case(question, [p]) for p in pictures])
    long = "a photo of the big red car and the small blue house on the left and the tree on the right " + question
    bench.check("long text", [Case(long, [pictures[0]], 20), Case(long, [pictures[0]], 20)])
    bench.check("budget", [Case("where is the cat ?", pictures[1:2], keep) for keep in (1, 0.3, 31, 32, 500, 0)])
    bench.check("two pictures", [Case(question, [pictures[1], pictures[2]], 5), Case(long, pictures[:2], 9)])
    # The engine leaves videos whole; so does the reference where the clip has no more tokens than the budget.
    video = np.stack([np.asarray(sized(i, 24, 16)) for i in range(4)])
    bench.check("video beside a picture", [Case(question, [pictures[1]], 12, video=video)])
    return bench


def runner_fix() -> None:
    """vLLM 0.32's CPU runner loads models past the line that switches the seam for pruned positions on."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    def enabled(self: Any) -> bool:
        found = getattr(self, "model", None)
        return bool(getattr(found, "supports_multimodal_pruning", False))

    CPUModelRunner.is_multimodal_pruning_enabled = property(enabled, lambda self, value: None)


SUITES: dict[str, Callable[[Path], Bench]] = {
    "mini_fsr": mini_fsr, "mini_visionzip": mini_visionzip, "llava_next": llava_next, "qwen": qwen,
}  # fmt: skip

if __name__ == "__main__":
    torch.set_num_threads(1)
    suite, where = sys.argv[1], Path(sys.argv[2])
    told = SUITES[suite](where).cases
    (where / f"{suite}.json").write_text(json.dumps(told), encoding="utf-8")
