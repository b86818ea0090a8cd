"""`fsr ablate` without the command line: one option of FSR at a time, everything else as in the base (Figure 5 of
arXiv 2602.05809, and every point that the paper leaves open)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

from fsr.evaluation.comparison import about
from fsr.evaluation.qualities import CLEAN, Quality
from fsr.evaluation.runner import Runner
from fsr.evaluation.score import Scorer
from fsr.evaluation.trials import Trial, unpruned
from fsr.methods import FSR
from fsr.pipeline.prepare import Positions

__all__ = ["VARIANTS", "Variant", "ablate"]


@dataclass(frozen=True)
class Variant:
    """One row of the table: options that differ from the base, and what lies outside the method."""

    group: str
    label: str
    options: tuple[tuple[str, Any], ...] = ()
    positions: Positions | None = None
    sign: int = 1

    def trial(self, base: FSR, positions: Positions, quality: Quality = CLEAN) -> Trial:
        """The run at the base's budget."""
        method = replace(base, **dict(self.options))
        return Trial(self.label, method, self.positions or positions, self.sign, quality=quality)


def _sweep(group: str, option: str, values: Sequence[Any]) -> list[Variant]:
    return [Variant(group, f"{v:g}" if isinstance(v, float) else v, ((option, v),)) for v in values]


VARIANTS: list[Variant] = [
    # The paper's four, and some with less saliency.
    *[
        Variant("exponents of relevance, saliency", f"{a:g}, {b:g}", (("alpha", a), ("beta", b)))
        for a, b in ((0.0, 0.25), (0.5, 0.25), (1.0, 0.0), (1.0, 0.25), (1.0, 0.5), (1.0, 1.0), (2.0, 0.25), (3.0, 1.0))
    ],
    *_sweep("focus_by", "focus_by", ("volume", "distinct", "prefix")),
    # The default of 0.1, fitted to perfect relevance.
    Variant(
        "focus_by",
        "distinct, fitted",
        (("focus_by", "distinct"), ("alpha", 3.0), ("beta", 0.5), ("max_focus", 0.75)),
    ),
    *_sweep("agree", "agree", (0.0, 0.25, 0.5, 0.75, 1.0)),
    *_sweep("lift", "lift", (0.0, 0.03, 0.05, 0.07, 0.14)),
    # Focus may take half of the budget; beta is 1 in the paper.
    Variant("focus_by", "prefix, capped", (("focus_by", "prefix"), ("max_focus", 0.5))),
    Variant("focus_by", "prefix, top_k", (("focus_by", "prefix"), ("focus_mass", "top_k"))),
    Variant("focus_by", "prefix, paper", (("focus_by", "prefix"), ("alpha", 3.0), ("beta", 1.0), ("max_focus", 1.0))),
    Variant("stages", "all three"),
    Variant("stages", "no Focus", (("max_focus", 0.0),)),
    Variant("stages", "no Scan", (("max_focus", 1.0),)),
    Variant("stages", "no Refine", (("kappa", 0.0),)),
    *_sweep("kappa", "kappa", (0.0, 1.0, 5.0)),
    *_sweep("max_focus", "max_focus", (0.25, 0.5, 0.75, 0.9, 1.0)),
    Variant("sign of relevance", "as measured"),
    Variant("sign of relevance", "turned round", sign=-1),
    *_sweep("distance features", "distance", ("projected", "encoder")),
    *_sweep("normalise", "normalise", ("minmax", "rank", "softmax")),
    Variant("positions", "repack", positions="repack"),
    Variant("positions", "original", positions="original"),
]


def ablate(
    runner: Runner,
    bases: Sequence[FSR],
    positions: Positions = "auto",
    variants: Sequence[Variant] = tuple(VARIANTS),
    quality: Quality = CLEAN,
) -> dict[str, Any]:
    """Score every variant at every budget and pair it with the base.

    bases: the method at each budget. Variants that equal the base share its run; those that turn relevance around are
    left out where it has no sign.
    """
    started = perf_counter()
    variants = [v for v in variants if v.sign == 1 or runner.signed]
    plan = [(v, base.keep, v.trial(base, positions, quality)) for base in bases for v in variants]
    base_trials = {base.keep: Trial("base", base, positions, quality=quality) for base in bases}
    trials = {trial.key: trial for trial in base_trials.values()}
    for _, _, trial in plan:
        trials.setdefault(trial.key, trial)
    runner.encode(list(trials.values()))
    (full,) = runner.run([unpruned(positions)])
    scorer = Scorer(runner.questions, full)
    runs = dict(zip(trials, runner.run(list(trials.values()))))
    reference = {keep: runs[trial.key] for keep, trial in base_trials.items()}
    rows = []
    for variant, keep, trial in plan:
        run = runs[trial.key]
        rows.append(
            {
                "group": variant.group,
                "variant": variant.label,
                "keep": keep,
                "is_base": run is reference[keep],
                "settings": trial.settings,
                **scorer.summary([run], None if run is reference[keep] else reference[keep], "against_base"),
            }
        )
    return {
        **about(runner),
        "seconds": round(perf_counter() - started, 1),
        "relevance": runner.source,
        "quality": asdict(quality),
        "solved_kinds": scorer.solved,
        "unpruned": scorer.summary([full]),
        "base": [
            {"keep": keep, "settings": trial.settings, **scorer.summary([reference[keep]])}
            for keep, trial in base_trials.items()
        ],
        "results": rows,
    }
