"""One live vLLM engine, asked many ways; every answer beside that of Transformers pruned by `fsr.prune`.

    python vllm_cases.py SUITE FOLDER      # writes FOLDER/SUITE.json

A program of its own, because a process can hold one engine. Each case is {"vllm": tokens, "transformers": tokens,
"gap": largest difference of the chosen tokens' log-probabilities, "prompt": lengths, "cached": tokens from the cache}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1",
    # vLLM's processes look at the classes of `attention_only`, too.
    PYTHONPATH=os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]),
    FSR_VLLM_UNSHOWN="1",
)  # fmt: skip

import checkpoints
import numpy as np
import torch
import vllm_turns
from PIL import Image

import tiny
from fsr import FSR, prune
from fsr.adapters import find
from fsr.methods import get
from fsr.serving.vllm import overrides

LONGEST = 6


class Case:
    """One request: chat turns with pictures, and how many tokens to keep (None: the engine's default).

    before: turns ahead of the question, (text, pictures); their pictures are the first of `pictures`.
    """

    def __init__(
        self,
        question: str,
        pictures: list[Image.Image],
        keep: Any = None,
        before: Sequence[tuple[str, int]] = (),
        **more: Any,
    ) -> None:
        self.question, self.pictures, self.keep, self.before, self.more = question, pictures, keep, before, more


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
        self.method, self.relevance, self.causal = method, relevance, False
        self.cases: dict[str, Any] = {}

    def prompt(self, case: Case) -> str:
        asked = len(case.pictures) - sum(n for _, n in case.before)
        turns = tiny.chat(*case.before, (case.question, asked))
        if "video" in case.more:
            turns[0]["content"].insert(0, {"type": "text", "text": "<|vision_start|><|video_pad|><|vision_end|>"})
        return self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def request(self, case: Case) -> dict[str, Any]:
        arguments = {name: value for name, value in case.more.items() if name != "video"}
        if case.keep is not None:
            arguments["fsr_keep"] = case.keep
        if not case.pictures:
            return {"prompt": self.prompt(case)}
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

    @property
    def positions(self) -> str:
        """An engine numbers 1-D positions anew at any budget."""
        return "repack" if find(self.model).position_policy == "repack" else "auto"

    def reference(self, case: Case) -> tuple[list[int], list[float], int]:
        """Tokens, log-probabilities and prompt length of Transformers."""
        keep = self.method.keep if case.keep is None else case.keep
        keep = [k or 1.0 for k in keep] if isinstance(keep, list) else keep or 1.0
        method = get(self.method.name, **{**vars(self.method), "keep": keep})
        clip: dict[str, Any] = {}
        if "video" in case.more:
            facts = {k: v for k, v in clip_facts(case.more["video"]).items() if k != "do_sample_frames"}
            clip = {"videos": [case.more["video"]], "video_metadata": [facts], "do_sample_frames": False}
        inputs = self.processor(images=case.pictures or None, text=self.prompt(case), return_tensors="pt", **clip)
        if self.causal:
            inputs["token_type_ids"].zero_()
        question = case.more.get("fsr_question")
        extra = {} if question is None else {"question": question}
        with prune(
            self.model, method, processor=self.processor, relevance=self.relevance, positions=self.positions
        ) as pruned:
            out = self.model.generate(
                **inputs, **extra, max_new_tokens=LONGEST, do_sample=False,
                output_logits=True, return_dict_in_generate=True, suppress_tokens=None,
            )  # fmt: skip
        new = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        scores = [float(step[0].log_softmax(-1)[token]) for step, token in zip(out.logits, new)]
        return new, scores, pruned.last.length_after if case.pictures else inputs["input_ids"].shape[1]

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
    _broken(bench, pictures)
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
        ready = prepare(bench.model, FSR(keep=case.keep), inputs, processor=bench.processor, positions="repack")
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


def _broken(bench: Bench, pictures: list[Image.Image]) -> None:
    """A picture whose features are NaN, in one step with others; then the same again."""
    (model,) = bench.llm.apply_model(lambda model: model)
    features_of = model.features_of
    black = Image.new("RGB", (64, 64))

    def encoded(given: Any) -> Any:
        flat = [bool((p == p[..., :1, :1]).all()) for p in given["pixel_values"]]
        return [f + float("nan") if bad else f for f, bad in zip(features_of(given), flat)]

    model.features_of = encoded
    asked = [Case(QUESTIONS[1], [p], 10) for p in (pictures[2], black, pictures[3])]
    outs = [*bench.ask(asked), *bench.ask(asked[1:2])]
    bench.cases["reasons/refused"] = {"error": [out.outputs[0].finish_reason for out in outs]}
    bench.cases["what came/refused"] = {"error": [len(out.outputs[0].token_ids) for out in outs]}
    bench.check("beside a broken picture", [asked[0], asked[2]])


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


def mini_again(folder: Path) -> Bench:
    """bfloat16, pictures encoded again beside others: the encoder's cache holds few of them, the prefix cache all.

    The same conversation goes on with another last turn. Its picture's tokens are partly in the prefix cache; for the
    rest it is encoded anew, alone instead of with three others. On a GPU, sums then run in another order; on one CPU
    thread they do not, so here the pixels of the second encoding are rounded otherwise, by one step of bfloat16.
    """
    from fsr.serving.vllm.memory import ChoiceMemory

    bench = Bench(
        checkpoints.MINI, "LlavaForConditionalGeneration", FSR(keep=64), dtype="bfloat16", max_num_batched_tokens=600,
    )  # fmt: skip
    (model,) = bench.llm.apply_model(lambda model: model)
    rows: dict[str, list[list[int]]] = {}
    passes: list[int] = []
    step = 0.0
    noise = torch.Generator().manual_seed(0)
    prune_pictures, features_of = model.prune_pictures, model.features_of

    def pruned(given: Any, requests: Any) -> Any:
        out = prune_pictures(given, requests)
        for request, chosen in zip(requests, out):
            rows.setdefault(request.picture, []).append(chosen.rows.tolist())
        return out

    def encoded(given: Any) -> Any:
        passes.append(sum(model.tower_tokens(given)))
        pixels = given["pixel_values"]
        moved = pixels * (1 + step * (2 * torch.rand(pixels.shape, generator=noise) - 1)).to(pixels)
        return features_of({**given, "pixel_values": moved})

    model.prune_pictures, model.features_of = pruned, encoded
    first, second = QUESTIONS[0], "what is in this picture?"
    for name, entries, at in (("forgetful", 0, 0), ("remembering", 8192, AGAIN)):
        model.fsr_memory = ChoiceMemory(entries)
        rows.clear()
        pictures = [shifted(i) for i in range(at, at + AGAIN)]
        step = 0.0
        for i in range(0, AGAIN, 8):
            bench.ask([Case(first, [p], fsr_question=first) for p in pictures[i : i + 8]])
        step = 2.0**-8
        cached = [bench.ask([Case(second, [p], fsr_question=first)])[0].num_cached_tokens for p in pictures]
        bench.cases[name] = {
            "encoded again": sum(len(r) > 1 for r in rows.values()),
            "changed": sum(any(r != seen[0] for r in seen) for seen in rows.values()),
            "cached": min(cached), "largest pass": max(passes), "tally": str(model.fsr_tally),
        }  # fmt: skip
    return bench


AGAIN = 40


def shifted(number: int) -> Image.Image:
    """One of the four scenes, turned and cut a little, so that no two are the same."""
    scene = scenes()[number % 4]
    return scene.rotate(number // 4 + 1, Image.Resampling.BILINEAR).crop((number % 7, 0, scene.width, scene.height))


def llava_next(folder: Path) -> Bench:
    """Tiles, unpadding, newlines."""
    bench = _tiny(folder, "llava-next", "LlavaNext", FSR(keep=9), "embedding", max_num_batched_tokens=80)
    pictures = [sized(i, *shape) for i, shape in enumerate([(40, 60), (64, 40), (30, 30), (90, 30)])]
    bench.check("budget", [Case(WHERE, pictures[:1], keep) for keep in (1, 0.5, 39, 40, 41, 500, 0)])
    return _program(bench, pictures, 60)


def llava_onevision(folder: Path) -> Bench:
    """Tiles that are shrunk, newlines, a SigLIP tower."""
    bench = _tiny(folder, "llava-onevision", "LlavaOnevision", FSR(keep=9), "embedding", max_num_batched_tokens=80)
    pictures = [sized(i, *shape) for i, shape in enumerate([(40, 60), (64, 40), (30, 30), (90, 30)])]
    bench.check("budget", [Case(WHERE, pictures[:1], keep) for keep in (1, 0.5, 39, 40, 41, 500, 0)])
    return _program(bench, pictures, 60)


def internvl(folder: Path) -> Bench:
    """Tiles of one picture pruned together; placeholders between marks."""
    bench = _tiny(folder, "internvl", "InternVL", FSR(keep=3))
    pictures = [sized(i, *shape) for i, shape in enumerate([(64, 32), (32, 64), (32, 32), (64, 64)])]
    bench.check("budget", [Case(WHERE, pictures[:1], keep) for keep in (1, 0.5, 11, 12, 500, 0)])
    return _program(bench, pictures, 12)


def gemma3(folder: Path) -> Bench:
    """Pooled rasters between marks. vLLM's CPU kernels let a picture's tokens see only those before them, unlike its
    kernels for GPUs and Transformers; so Transformers is told to do the same here."""
    bench = _tiny(folder, "gemma3", "Gemma3", FSR(keep=3))
    bench.causal = True
    pictures = [sized(i, *shape) for i, shape in enumerate([(64, 32), (32, 64), (32, 32), (64, 64)])]
    bench.check("budget", [Case(WHERE, pictures[:1], keep) for keep in (1, 0.5, 15, 16, 500, 0)])
    return _program(bench, pictures, 16)


def qwen2(folder: Path) -> Bench:
    """No windows; pictures from one end of the chat to the other."""
    return _qwen(folder, "qwen2-vl", "Qwen2VL", clip=True)


def qwen2_5(folder: Path) -> Bench:
    """Windows, merged patches."""
    return _qwen(folder, "qwen2.5-vl", "Qwen2_5_VL", clip=True)


def qwen3(folder: Path) -> Bench:
    """Deepstack; relevance from the first attention layer; growing chats. (vLLM itself answers otherwise than
    Transformers where a clip stands beside a picture.)"""
    bench = _qwen(folder, "qwen3-vl", "Qwen3VL", "first-layer")
    bench.cases["turns"] = vllm_turns.talks(bench)
    return bench


def qwen3_moe(folder: Path) -> Bench:
    """The mixture of experts, whose class sets itself up past the dense one."""
    return _qwen(folder, "qwen3-vl-moe", "Qwen3VLMoe")


def qwen3_5(folder: Path) -> Bench:
    """All layers with attention (see `attention_only`)."""
    from vllm import ModelRegistry

    ModelRegistry.register_model("AttentionOnly", "attention_only:AttentionOnly")
    return _qwen(folder, "qwen3.5-attention", "Qwen3_5", times=3, hf_overrides={
        **overrides(FSR(keep=7), "Qwen3_5ForConditionalGeneration"), "architectures": ["AttentionOnly"]
    })  # fmt: skip


def gemma4(folder: Path) -> Bench:
    """Rasters of any shape, embeddings per layer, shared keys and values. (As in the checkpoints of 2 B and 4 B, a
    picture's tokens see those before them only; for the larger ones, see `gemma3`.)

    Layers with a window have heads half as wide as the others', so vLLM makes their blocks twice as long, and the
    prefix cache answers in steps of 64 tokens.
    """
    if not torch.accelerator.is_available():
        # vLLM asks the accelerator how many pictures fit into a pass, also where there is none.
        torch.accelerator.get_memory_info = lambda *device: (8 << 30, 16 << 30)
    bench = _tiny(folder, "gemma4", "Gemma4", FSR(keep=3))
    pictures = [sized(i, *shape) for i, shape in enumerate([(64, 32), (32, 64), (32, 32), (64, 64)])]
    bench.check("budget", [Case(WHERE, pictures[:1], keep) for keep in (1, 0.5, 15, 16, 500, 0)])
    return _program(bench, pictures, 16, times=2)


def _qwen(
    folder: Path, name: str, stem: str, relevance: str = "auto", clip: bool = False, times: int = 1, **options: Any
) -> Bench:
    bench = _tiny(folder, name, stem, FSR(keep=7), relevance, limit_mm_per_prompt={"image": 2, "video": 1}, **options)
    pictures = [sized(i, *shape) for i, shape in enumerate([(48, 48), (32, 64), (64, 32), (96, 24)])]
    _program(bench, pictures, 20, times)
    bench.check("budget", [Case(WHERE, pictures[1:2], keep) for keep in (1, 0.3, 31, 32, 500, 0)])
    if clip:
        # The engine leaves videos whole; so does the reference where the clip has no more tokens than the budget.
        video = np.stack([np.asarray(sized(i, 24, 16)) for i in range(4)])
        bench.check("video beside a picture", [Case(WHERE, [pictures[1]], keep, video=video) for keep in (12, 0)])
    return bench


WHAT, WHERE = "what colour is the dog ?", "where is the cat ?"
LONG = "a photo of the big red car and the small blue house on the left and the tree on the right in one picture yes"


def _tiny(folder: Path, name: str, stem: str, method: Any, relevance: str = "auto", **options: Any) -> Bench:
    """A tiny checkpoint; prompts in small chunks."""
    saved = checkpoints.save(name, folder / name)
    return Bench(
        saved, f"{stem}ForConditionalGeneration", method, relevance,
        **{"max_num_batched_tokens": 48, "max_num_seqs": 4, "max_model_len": 256, **options},
    )  # fmt: skip


def _program(bench: Bench, pictures: list[Image.Image], wide: int, times: int = 1) -> Bench:
    """What every family is asked.

    wide: a budget that reaches over the edge of a chunk. times: how often the long text stands before the picture, for
    prompts that are longer than a block of the prefix cache.
    """
    before = " ".join([LONG] * times)
    _watch_tower(bench)
    bench.check("shapes", [Case(WHAT, [p]) for p in pictures])
    bench.check("the same again", [Case(WHAT, [p]) for p in pictures])
    bench.check("text around", [Case(WHAT, pictures[:1], wide, [(before, 0)]), Case(LONG, pictures[1:2], wide)])
    bench.check("text around again", [Case(WHAT, pictures[:1], wide, [(before, 0)])])
    bench.check("two pictures", [Case(WHAT, pictures[1:3], 5), Case(WHAT, pictures[:2], 9, [(LONG, 1)])])
    mixed = [Case(WHERE, pictures[:1], 3), Case(WHERE, []), Case(WHAT, pictures[2:3], 0), Case(WHAT, pictures[3:], 11)]
    bench.check("mixed", mixed)
    bench.check("a budget each", [Case(WHAT, pictures[:2], [4, 0]), Case(WHERE, pictures[1:3], [0.25, 7])])
    return bench


def _watch_tower(bench: Bench) -> None:
    """How much the scheduler put into one step, in the tower's tokens, and how much the tower took at once."""
    (model,) = bench.llm.apply_model(lambda model: model)
    told = {"step": 0, "pass": 0, "picture": 0, "budget": model._fsr_tower_budget}
    bench.cases["the tower"] = told
    prune_pictures, features_of = model.prune_pictures, model.features_of

    def pruned(given: Any, requests: Any) -> Any:
        told["step"] = max(told["step"], sum(model.tower_tokens(given)))
        return prune_pictures(given, requests)

    def encoded(given: Any) -> Any:
        sizes = model.tower_tokens(given)
        told["pass"], told["picture"] = max(told["pass"], sum(sizes)), max(told["picture"], *sizes)
        return features_of(given)

    model.prune_pictures, model.features_of = pruned, encoded


SUITES: dict[str, Callable[[Path], Bench]] = {
    f.__name__: f
    for f in (
        mini_fsr, mini_visionzip, mini_again, llava_next, llava_onevision, internvl, gemma3,
        qwen2, qwen2_5, qwen3, qwen3_moe, qwen3_5, gemma4,
    )
}  # fmt: skip

if __name__ == "__main__":
    torch.set_num_threads(1)
    suite, where = sys.argv[1], Path(sys.argv[2])
    told = SUITES[suite](where).cases
    (where / f"{suite}.json").write_text(json.dumps(told), encoding="utf-8")
