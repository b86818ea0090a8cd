"""Chats that grow turn by turn, in the real engine: how much of each prompt its prefix cache knows.

    python vllm_turns.py FOLDER      # prints a table, writes FOLDER/turns.json

A tiny Qwen3-VL that chooses by the question (relevance from its first layer) sees two pictures in five turns; the whole
history is sent every time. The most that can be cached are the full blocks of 32 tokens that the prompt shares with the
one before.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import checkpoints
from vllm_cases import LONG, WHAT, WHERE, Bench, Case, sized

import tiny
from fsr import FSR

BLOCK = 32
TURNS = [(WHAT, 1), ("where is the red car ?", 0), (WHERE, 1), (LONG, 0), ("a small blue house ?", 0)]
ANSWERS = ("red", "the left", "the tree", "yes", "one")
KEEP = 30
# Per way: the arguments of a request whose pictures came in turns with these questions.
WAYS: dict[str, Any] = {
    "unpruned": lambda own: {"fsr_keep": 0},
    "all": lambda own: {"fsr_question_for": "all"},
    "newest": lambda own: {"fsr_question_for": "newest"},
    "own": lambda own: {"fsr_question_for": "own"},
    "a question per picture": lambda own: {"fsr_question": own},
}


class Turn(Case):
    """A chat up to one of its turns."""

    def __init__(self, pictures: list[Any], turns: int, arguments: dict[str, Any]) -> None:
        super().__init__(TURNS[turns - 1][0], pictures, None, **arguments)
        self.chat = tiny.chat(*TURNS[:turns], answers=ANSWERS[: turns - 1])


class Talks(Bench):
    """The same engine, asked with whole chats."""

    def prompt(self, case: Case) -> str:
        assert isinstance(case, Turn)
        text = self.processor.apply_chat_template(case.chat, tokenize=False, add_generation_prompt=True)
        return str(text)


def shared(prompt: list[int], before: list[int]) -> int:
    """Tokens in full blocks that two prompts have in common at their beginning."""
    same = next((i for i, (a, b) in enumerate(zip(prompt, before)) if a != b), min(len(prompt), len(before)))
    return same // BLOCK * BLOCK


def talk(bench: Bench, pictures: list[Any], way: str) -> list[dict[str, Any]]:
    """One chat: per turn the prompt's length, what the cache knew of it, what it could know, and the answer."""
    told, before = [], []
    for turns in range(1, len(TURNS) + 1):
        own = [text for text, images in TURNS[:turns] for _ in range(images)]
        (result,) = bench.ask([Turn(pictures[: len(own)], turns, WAYS[way](own))])
        prompt = list(result.prompt_token_ids)
        answer = list(result.outputs[0].token_ids)
        known = {"cached": result.num_cached_tokens, "possible": shared(prompt, before)}
        told.append({"prompt": len(prompt), **known, "answer": answer})
        before = prompt
    return told


def main(folder: Path) -> None:
    """Every way on pictures of its own, so that none finds what another left."""
    saved = checkpoints.save("qwen3-vl", folder / "model")
    bench = Talks(
        saved, "Qwen3VLForConditionalGeneration", FSR(keep=KEEP), "first-layer", block_size=BLOCK, max_num_seqs=2,
    )  # fmt: skip
    pictures = {way: [sized(2 * n, 48, 48), sized(2 * n + 1, 48, 48)] for n, way in enumerate(WAYS)}
    told = {way: talk(bench, shown, way) for way, shown in pictures.items()}
    # The words of the own turns, by hand: the same choice, so all of it is known.
    again = talk(bench, pictures["own"], "a question per picture")
    (folder / "turns.json").write_text(json.dumps({**told, "own, written out": again}), encoding="utf-8")
    print("| question for | " + " | ".join(f"turn {n + 1}" for n in range(len(TURNS))) + " |")
    print("|---|" + "---:|" * len(TURNS))
    for way, turns in told.items():
        rates = (f"{t['cached'] / t['prompt']:.0%} of {t['possible'] / t['prompt']:.0%}" for t in turns)
        print(f"| {way} | " + " | ".join(rates) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
