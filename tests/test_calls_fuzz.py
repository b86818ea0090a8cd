"""Situations drawn at random (situations.py, picture_prompts.py): families x layouts of padding x given or missing
masks and positions x call x cache x wrappers x methods, and picture files of every kind in prompts with several. Every
row must give what it gives alone, called plainly.

`FSR_FUZZ_MINUTES=60 python -m pytest -s tests/test_calls_fuzz.py` goes on for an hour with new situations, and prints
how many there were.
"""

from __future__ import annotations

import os
import time
import traceback
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

import families
import picture_prompts
import situations
from fsr import FSR, prune
from fsr.adapters import find
from situations import Situation
from test_calls_rows import PACKABLE, close, packed

MINUTES = float(os.environ.get("FSR_FUZZ_MINUTES", "0"))
FIRST = int(os.environ.get("FSR_FUZZ_FIRST", "1"))
CASES: Counter[str] = Counter()


def check(s: Situation) -> None:
    CASES[s.family] += 1
    if (wrong := compared(s)) and not compared(replace(s, method="stock", wrappers=(), call=STOCK[s.call])):
        raise AssertionError(wrong)
    CASES["(the stock model differs, too)"] += bool(wrong)


def compared(s: Situation) -> str:
    """The rows of the batch against each row alone, called plainly: what differs, or nothing."""
    fixed = tuple(w for w in s.wrappers if w in ("lora", "lora-tower", "offload"))
    model = situations.model_of(s.family, s.attention, fixed)
    plain = replace(s, call=PLAINLY[s.call], cache="default", mode="no_grad")
    with situations.mode_of(model, s.mode):
        batch = situations.run(model, s, situations.together(s), list(range(len(s.rows))), s.wrappers)
    for row in range(len(s.rows)):
        if not sum(s.rows[row]) and s.call.startswith("prepare"):
            continue  # nothing to prepare
        inputs = situations.alone(s, row)
        with torch.no_grad():
            expected = situations.run(model, plain, inputs, [row])
        mine = batch[row : row + 1]
        if s.call.endswith("forward"):
            mine, expected = spoken(s, row, mine, expected, inputs)
        # Recurrent layers add rounding up over the prompt: ten times more is still far below another answer.
        recurrent = s.family.startswith("qwen3.5")
        same = mine.shape == expected.shape and (mine - expected).abs().max() <= 5e-4 * expected.abs().max()
        if not (same if recurrent else close(mine, expected)):
            return f"row {row} differs: {(mine - expected).abs().max() if mine.shape == expected.shape else mine.shape}"
    return ""


# The call whose rows alone say what is right.
PLAINLY = {
    "forward": "forward", "prepare-forward": "forward", "loop": "loop", "generate": "generate",
    "prepare-generate": "generate", "beams": "beams",
}  # fmt: skip
# The same without pruning: what differs there is the model's own (recurrent layers read padding in the middle).
STOCK = {**PLAINLY, "loop": "generate"}


def spoken(s: Situation, row: int, mine: Any, expected: Any, inputs: Any) -> Any:
    """Logits of the tokens behind the last picture of a row, which stand as far from the end as in the user's batch."""
    whole = situations.together(replace(s, mask="long"))
    columns = whole["attention_mask"][row].nonzero().squeeze(-1) - whole["input_ids"].shape[1]
    ids, marks = inputs["input_ids"][0], torch.tensor([families.IMAGE, families.VIDEO])
    last = torch.isin(ids, marks).nonzero()
    n = len(ids) - (int(last[-1]) + 1 if len(last) else 0)
    return mine[:, mine.shape[1] + columns[-n:]], expected[:, -n:]


@torch.no_grad()
def check_packed(family: str, keep: int, wrapper: str) -> None:
    CASES[family] += 1
    model = situations.model_of(family, "sdpa", ("lora",) if wrapper == "lora" else ())
    both, parts = packed(family)
    # Packed 1-D prompts are numbered anew at any budget; alone they are only when told so.
    policy = "repack" if find(families.model_of(family)).position_policy == "repack" else "auto"
    with (
        situations.wrapped(model, (wrapper,)) as given,
        prune(given, FSR(keep=keep, relevance="none"), positions=policy),
    ):
        together = model(**both, use_cache=False).logits
        alone = [model(**p, use_cache=False).logits for p in parts]
    n = alone[0].shape[1]
    assert close(together[:, :n], alone[0]) and close(together[:, n:], alone[1])


@torch.no_grad()
def check_pictures(s: picture_prompts.Prompts) -> None:
    CASES[f"pictures, {s.family}"] += 1
    picture_prompts.check(s)


def search(examples: int, number: int | None, strategy: Any, check: Any) -> None:
    # Seconds for a smaller example are well spent, but not by a run that wants to see many.
    phases = [Phase.generate] if number else [Phase.generate, Phase.shrink]
    rules = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                     phases=phases, report_multiple_bugs=False, derandomize=number is None)  # fmt: skip
    decorated = rules(given(strategy)(check))
    (decorated if number is None else seed(number)(decorated))()


def going_on(check: Any, capsys: Any) -> Any:
    """The check of a long run: it says what it found at once, and goes on."""

    def checked(s: Any) -> None:
        try:
            check(s)
        except Exception as error:
            CASES["found"] += 1
            with capsys.disabled():
                print("".join(traceback.format_exception(error)), s, flush=True)

    return checked


def test_situations(capsys):
    began, number = time.monotonic(), FIRST
    if not MINUTES:
        search(90, None, situations.situations(), check)
        search(40, None, picture_prompts.prompts(), check_pictures)
    while time.monotonic() < began + 60 * MINUTES:
        search(60, number, situations.situations(), going_on(check, capsys))
        search(20, number, picture_prompts.prompts(), going_on(check_pictures, capsys))
        if number % 10 == 1:
            for family in PACKABLE:
                check_packed(family, 1 + number % 4, ("none", "forward", "parallel", "lora")[number // 10 % 4])
        number += 1
        with capsys.disabled():
            many = sum(n for name, n in CASES.items() if name != "found" and "stock" not in name)
            print(f"seed {number}, {many} situations: {dict(CASES)}", flush=True)
    assert not CASES["found"]
