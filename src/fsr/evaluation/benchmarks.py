"""Where each column of the paper's tables comes from in lmms-eval, and how its score follows from single answers.

A score is a function of means over questions (`Rule.score`), so that the questions can be drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fsr.errors import UsageError

__all__ = ["COLUMNS", "MLVU", "MVBENCH", "Rule", "Source"]


@dataclass(frozen=True)
class Rule:
    """From logged answers to a score.

    table: what lmms-eval logged per question under a metric -> quantities [n, m] and the cluster of each row [n] (rows
        of one cluster are drawn together).
    score: means of these quantities [R, m] -> scores [R] as the paper prints them.
    share: the score is a mean of values in [0, 1], in percent: a standard error can stand in for the answers.
    """

    table: Callable[[Sequence[Any]], tuple[np.ndarray, np.ndarray]]
    score: Callable[[np.ndarray], np.ndarray]
    share: bool = False


def right(value: Any) -> float:
    """One question's value in [0, 1], in any of the forms that lmms-eval's tasks log."""
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, dict):
        for name in ("score", "correct"):
            if isinstance(value.get(name), int | float):
                return float(value[name])
        if "pred_answer" in value and "answer" in value:
            return float(value["pred_answer"] == value["answer"])
    raise UsageError(f"cannot read a score from {str(value)[:80]!r}: were these samples logged by lmms-eval 0.7?")


def _each(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Every question counts the same; questions about one clip are drawn together where it is named."""
    clips = [v.get("videoID", v.get("video_id", i)) if isinstance(v, dict) else i for i, v in enumerate(values)]
    return np.array([[right(v)] for v in values]), np.unique(np.array(clips, dtype=str), return_inverse=True)[1]


def _answered(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """MVBench counts a question without an answer not at all."""
    return _each([v for v in values if v["pred_answer"] != ""])


def _confusion(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """True positives, false positives, false negatives of "yes"."""
    pairs = [(v["prediction"] == "yes", v["ground_truth"] == "yes") for v in values]
    return np.array([[p and t, p and not t, t and not p] for p, t in pairs], dtype=float), np.arange(len(pairs))


def _f1(means: np.ndarray) -> np.ndarray:
    true, wrong, missed = means.T
    return 200 * true / np.maximum(2 * true + wrong + missed, 1e-12)


def _groups(values: Sequence[float], groups: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """[n, 2 * G]: a value in its group's column, and 1 in the column that counts the group."""
    member = np.array([[g == name for name in names] for g in groups], dtype=float)
    return np.concatenate([member * np.array(values)[:, None], member], axis=1)


def _group_means(means: np.ndarray) -> np.ndarray:
    """[R, 2 * G] -> [R, G]; a group that a draw missed counts 0."""
    half = means.shape[1] // 2
    return means[:, :half] / np.maximum(means[:, half:], 1e-12)


def _pictures(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """MME: accuracy plus "both right" per question is that of its pair, in percent; pictures are drawn, not
    questions."""
    pairs: dict[tuple[str, str], list[float]] = {}
    for v in values:
        pairs.setdefault((v["category"], str(v["question_id"])), []).append(float(v["score"]))
    points = [100 * (sum(scores) / len(scores) + (sum(scores) == len(scores))) for scores in pairs.values()]
    categories = [category for category, _ in pairs]
    return _groups(points, categories, sorted(set(categories))), np.arange(len(pairs))


def _types(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """MLVU is the mean over its nine types of questions."""
    return _groups([100 * right(v) for v in values], [v["task_type"] for v in values], MLVU), np.arange(len(values))


MLVU = (
    "anomaly_reco", "count", "ego", "needleQA", "order", "plotQA", "sportsQA", "topic_reasoning", "tutorialQA",
)  # fmt: skip
MEAN = Rule(_each, lambda means: 100 * means[:, 0], share=True)
ANSWERED = Rule(_answered, lambda means: 100 * means[:, 0], share=True)
F1 = Rule(_confusion, _f1)
MME = Rule(_pictures, lambda means: _group_means(means).sum(1))
TYPES = Rule(_types, lambda means: _group_means(means).mean(1))


@dataclass(frozen=True)
class Source:
    """One way to fill a column.

    tasks: all are needed; the column is the mean over them. metrics: their sum is a task's score. scale: to the paper's
        unit. rule: None where single answers do not say (MMBench counts groups of questions). note: what differs.
    """

    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    scale: float = 1.0
    rule: Rule | None = None
    note: str = ""


MVBENCH = tuple(
    f"mvbench_{name}"
    for name in (
        "action_sequence", "moving_count", "action_prediction", "episodic_reasoning", "action_antonym", "action_count",
        "scene_transition", "object_shuffle", "object_existence", "fine_grained_pose", "unexpected_action",
        "moving_direction", "state_change", "object_interaction", "character_order", "action_localization",
        "counterfactual_inference", "fine_grained_action", "moving_attribute", "egocentric_navigation",
    )
)  # fmt: skip
_NO_SERVER = "the paper's is test-dev, scored by a server"
_JUDGED = "judged by another model than the paper's"
_STRAY = "letters that cannot be read are judged by a model, the paper's by OpenCompass"

# Column -> sources, the best first.
COLUMNS: dict[str, tuple[Source, ...]] = {
    "VQAv2": (
        Source(("vqav2_val",), ("exact_match",), 100, MEAN, f"validation split; {_NO_SERVER}"),
        Source(("vqav2_val_lite",), ("exact_match",), 100, MEAN, f"part of the validation split; {_NO_SERVER}"),
    ),
    "GQA": (Source(("gqa",), ("exact_match",), 100, MEAN),),
    "SQA_IMG": (Source(("scienceqa_img",), ("exact_match",), 100, MEAN),),
    "TextVQA": (Source(("fsr_textvqa",), ("exact_match",), 100, MEAN),),
    "POPE": (Source(("fsr_pope_adv", "fsr_pope_pop", "fsr_pope_random"), ("pope_f1_score",), 100, F1),),
    "MME": (
        Source(("fsr_mme",), ("mme_score",), 1, MME),
        Source(("mme",), ("mme_perception_score", "mme_cognition_score"), 1),
    ),
    "MMB_EN": (
        Source(("mmbench_en_dev",), ("gpt_eval_score",), 1, None, _STRAY),
        Source(("mmbench_en_dev_static",), ("gpt_eval_score",), 1, None, "letters that cannot be read count as wrong"),
    ),
    "MMB_CN": (Source(("mmbench_cn_dev",), ("gpt_eval_score",), 1, None, _STRAY),),
    "MMVet": (Source(("fsr_mmvet",), ("gpt_eval_score",), 1, MEAN, _JUDGED),),
    "MMVU_val": (Source(("mmvu_val",), ("accuracy",), 1, MEAN, "open questions are judged by a model"),),
    "MMWorld_test": (Source(("mmworld",), ("mmworld_accuracy",), 1, MEAN),),
    "MLVU_test": (Source(("mlvu_test",), ("mlvu_percetion_score",), 1, TYPES),),
    "MVBench_test": (Source(MVBENCH, ("mvbench_accuracy",), 1, ANSWERED, "empty answers are left out"),),
    "VideoMME_all_wo": (Source(("videomme",), ("videomme_perception_score",), 1, MEAN),),
    "VideoMME_all_w": (Source(("videomme_w_subtitle",), ("videomme_perception_score",), 1, MEAN),),
    "VideoMME_long": (
        Source(("videomme_long",), ("videomme_perception_score",), 1, MEAN, "lmms-eval's task gives subtitles too"),
    ),
}
