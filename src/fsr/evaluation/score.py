"""From answers to numbers: accuracy by kind, share of the unpruned accuracy, loyalty, paired differences, and where the
budget went."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from fsr.evaluation.question_set import KINDS, QuestionSet
from fsr.evaluation.record import Outcome
from fsr.evaluation.statistics import Interval, bootstrap_means, interval, mean_of_ratios, paired, ratio_of_means

__all__ = ["Scorer", "plain"]

_NUMBERS = {"1": "one", "2": "two", "3": "three", "4": "four"}


def plain(answer: str) -> str:
    """An answer as it is compared: lower case, no article, no spaces, no punctuation but hyphens, numbers as words."""
    words = answer.lower().translate(str.maketrans("", "", string.punctuation.replace("-", ""))).split()
    if len(words) > 1 and words[0] in ("a", "an", "the"):
        words = words[1:]
    return "".join(_NUMBERS.get(w, w) for w in words)


class Scorer:
    """Scores runs over one question set against its unpruned run.

    solved: the kinds that the unpruned model solves: those where it closes at least half of the gap between the most
    frequent answer and 100 %. The rule reads nothing but the unpruned answers.
    """

    def __init__(self, questions: QuestionSet, unpruned: Sequence[Outcome]) -> None:
        self.questions = questions
        self.kind = np.array([i.question.kind for i in questions.items])
        self.scene = np.array([i.scene for i in questions.items])
        self.truth = [plain(i.question.answer) for i in questions.items]
        self.full_answers = [plain(o.answer) for o in unpruned]
        self.full = self.right(unpruned)
        self.full_by_kind = self.by_kind(self.full)
        blind = questions.majority()
        self.solved = [k for k in KINDS if self.full_by_kind[k] >= (1 + blind[k]) / 2]

    def right(self, outcomes: Sequence[Outcome]) -> np.ndarray:
        """bool [n]: the answer is the true one."""
        return np.array([plain(o.answer) == t for o, t in zip(outcomes, self.truth)])

    def by_kind(self, right: np.ndarray) -> dict[str, float]:
        """Mean of `right` per kind."""
        return {k: float(right[self.kind == k].mean()) for k in KINDS}

    def summary(
        self,
        runs: Sequence[Sequence[Outcome]],
        reference: Sequence[Outcome] | None = None,
        against: str = "against_fsr",
    ) -> dict[str, Any]:
        """All numbers of one contender at one budget; several runs (seeds) are averaged, and paired one by one.

        reference: the run that this one is paired with (FSR at the same budget), or None.
        against: what that part of the numbers is called.
        """
        each = [self.right(run) for run in runs]
        right = np.mean(each, axis=0)
        kinds = self.by_kind(right)
        solved = np.isin(self.kind, self.solved)
        loyal = np.mean([[plain(o.answer) == a for o, a in zip(run, self.full_answers)] for run in runs], axis=0)
        out: dict[str, Any] = {
            "accuracy": asdict(interval(right, self.scene)),
            "accuracy_solved": asdict(interval(right[solved], self.scene[solved])) if solved.any() else None,
            "accuracy_by_kind": kinds,
            "accuracy_by_flag": self._by_flag(right),
            "share_of_unpruned": self._shares(right, KINDS),
            "share_of_unpruned_solved": self._shares(right, self.solved) if self.solved else None,
            "loyalty": asdict(interval(loyal, self.scene)),
            **self._budget([o for run in runs for o in run]),
            "right": ["".join("01"[int(v)] for v in e) for e in each],
        }
        if reference is not None:
            base = self.right(reference)
            pairs = [paired(e, base, self.scene) for e in each]
            out[against] = {"runs": [asdict(p) for p in pairs], "largest_p": max(p.p for p in pairs)}
            if solved.any():
                inside = [paired(e[solved], base[solved], self.scene[solved]) for e in each]
                out[f"{against}_solved"] = {
                    "runs": [asdict(p) for p in inside],
                    "largest_p": max(p.p for p in inside),
                }
        return out

    # ------------------------------------------------------------------------------------------------------------------

    def _by_flag(self, right: np.ndarray) -> dict[str, dict[str, float]]:
        items = self.questions.items
        flags = {
            "held_out_color": np.array([i.held_out_color for i in items]),
            "held_out_quadrant": np.array([i.held_out_quadrant for i in items]),
            "asked_patches_1_to_4": np.array([1 <= i.patches <= 4 for i in items]),
            "asked_patches_5_to_9": np.array([5 <= i.patches <= 9 for i in items]),
            "asked_patches_10_up": np.array([i.patches >= 10 for i in items]),
            "things_up_to_4": np.array([i.things <= 4 for i in items]),
            "things_5_to_8": np.array([5 <= i.things <= 8 for i in items]),
            "things_9_up": np.array([i.things >= 9 for i in items]),
        }
        return {
            name: {"questions": int(flag.sum()), "accuracy": float(right[flag].mean())}
            for name, flag in flags.items()
            if flag.any()
        }

    def _shares(self, right: np.ndarray, kinds: Sequence[str]) -> dict[str, dict[str, float]]:
        """Both ways to say "keeps x % of the unpruned accuracy", with intervals over pictures."""
        kinds = [k for k in kinds if self.full_by_kind[k] > 0]
        if not kinds:
            return {}
        mine, full = self.by_kind(right), self.full_by_kind
        masks = np.stack([self.kind == k for k in kinds], axis=1).astype(float)
        drawn = bootstrap_means(
            np.concatenate([masks * right[:, None], masks * self.full[:, None]], axis=1), self.scene
        )
        a, b = drawn[:, : len(kinds)], drawn[:, len(kinds) :]
        mine, full = {k: mine[k] for k in kinds}, {k: full[k] for k in kinds}
        # A resample in which the unpruned model knows nothing of some kind says nothing about shares.
        a, b = a[(b > 0).all(1)], b[(b > 0).all(1)]
        if not len(a):
            return {}
        sums, ratios = a.sum(1) / b.sum(1), (a / b).mean(1)
        return {
            "ratio_of_means": asdict(Interval(ratio_of_means(mine, full), *_ends(sums))),
            "mean_of_ratios": asdict(Interval(mean_of_ratios(mine, full), *_ends(ratios))),
        }

    def _budget(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """What the tokens were spent on."""
        radius = np.array([o.radius for o in outcomes])
        out: dict[str, Any] = {
            "tokens": float(np.mean([o.kept for o in outcomes])),
            "coverage_radius": {"median": float(np.median(radius)), "p90": float(np.quantile(radius, 0.9))},
            "share_of_budget_on_asked": _mean([o.on_asked for o in outcomes]),
            "share_of_budget_on_big_distractor": _mean([o.on_big for o in outcomes]),
            "asked_patches_kept": _mean([o.seen for o in outcomes]),
            "asked_objects_found": _mean([o.found for o in outcomes]),
        }
        wanted = [o.wanted for o in outcomes if o.wanted is not None]
        if wanted:
            out["focus"] = {
                "wanted_median": float(np.median(wanted)),
                "wanted_histogram": {str(k): n for k, n in sorted(Counter(wanted).items())},
                "taken_mean": float(np.mean([o.focus for o in outcomes])),
                "no_scan": float(np.mean([o.scan == 0 for o in outcomes])),
            }
        return out


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None
