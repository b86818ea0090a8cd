"""Chats that grow turn by turn, in the real engine: how much of each prompt its prefix cache knows.

Two pictures in five turns, another question in each; the whole history is sent every time. The most that can be cached
are the full blocks of 32 tokens that the prompt shares with the one before.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

import tiny

BLOCK = 32
TURNS = [
    ("what colour is the dog ?", 1), ("where is the red car ?", 0), ("where is the cat ?", 1),
    ("a photo of the big house on the left and the tree on the right yes ?", 0), ("a small blue house ?", 0),
]  # fmt: skip
ANSWERS = ("red", "the left", "the tree", "yes", "one")
# Per way: the arguments of a request whose pictures came in turns with these questions.
WAYS: dict[str, Any] = {
    "unpruned": lambda own: {"fsr_keep": 0},
    "all": lambda own: {"fsr_keep": 30, "fsr_question_for": "all"},
    "newest": lambda own: {"fsr_keep": 30, "fsr_question_for": "newest"},
    "own": lambda own: {"fsr_keep": 30, "fsr_question_for": "own"},
    "a question per picture": lambda own: {"fsr_keep": 30, "fsr_question": own},
}


def talks(bench: Any) -> dict[str, Any]:
    """Every way on pictures of its own, so that none finds what another left; prints the table."""
    shown = {
        way: [tiny.picture(100 + 2 * n + i).resize((48, 48), Image.Resampling.NEAREST) for i in range(2)]
        for n, way in enumerate(WAYS)
    }
    told = {way: talk(bench, pictures, way) for way, pictures in shown.items()}
    print("| question for | " + " | ".join(f"turn {n + 1}" for n in range(len(TURNS))) + " |")
    print("|---|" + "---:|" * len(TURNS))
    for way, turns in told.items():
        rates = (f"{t['cached'] / t['prompt']:.0%} of {t['possible'] / t['prompt']:.0%}" for t in turns)
        print(f"| {way} | " + " | ".join(rates) + " |")
    # The words of the own turns, by hand: the same choice, so all of it is known.
    return {**told, "own, written out": talk(bench, shown["own"], "a question per picture")}


def talk(bench: Any, pictures: list[Any], way: str) -> list[dict[str, Any]]:
    """One chat: per turn the prompt's length, what the cache knew of it, what it could know, and the answer."""
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    told: list[dict[str, Any]] = []
    before: list[int] = []
    for turns in range(1, len(TURNS) + 1):
        own = [text for text, images in TURNS[:turns] for _ in range(images)]
        chat = tiny.chat(*TURNS[:turns], answers=ANSWERS[: turns - 1])
        text = bench.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        request = {
            "prompt": text, "multi_modal_data": {"image": pictures[: len(own)]}, "mm_processor_kwargs": WAYS[way](own)
        }  # fmt: skip
        (result,) = bench.llm.generate([request], how, use_tqdm=False)
        prompt = list(result.prompt_token_ids)
        known = {"cached": result.num_cached_tokens, "possible": shared(prompt, before)}
        told.append({"prompt": len(prompt), **known, "answer": list(result.outputs[0].token_ids)})
        before = prompt
    return told


def shared(prompt: list[int], before: list[int]) -> int:
    """Tokens in full blocks that two prompts have in common at their beginning."""
    same = next((i for i, (a, b) in enumerate(zip(prompt, before)) if a != b), min(len(prompt), len(before)))
    return same // BLOCK * BLOCK
