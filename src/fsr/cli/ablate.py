"""`fsr ablate`: what each choice inside Focus-Scan-Refine is worth, one at a time."""

from __future__ import annotations

import argparse

from fsr.asking.options import build_method
from fsr.cli.compare import (
    add_benchmark_arguments,
    budgets,
    check_targets,
    open_runner,
    quality_of,
    report,
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fsr ablate`."""
    parser.add_argument(
        "--option", action="append", metavar="NAME=VALUE", help="option of the base, repeatable (alpha=2)"
    )
    add_benchmark_arguments(parser, keep="16,8,4", split="validation")


def run(args: argparse.Namespace) -> int:
    """Everything that can be wrong with the arguments is checked before the model is loaded."""
    bases = [build_method("fsr", keep, args.option) for keep in budgets(args.keep)]
    quality = quality_of(args)
    files = check_targets(args)
    from fsr.evaluation.ablation import ablate
    from fsr.evaluation.plots import plot_ablation
    from fsr.evaluation.tables import ablation_table

    result = ablate(open_runner(args), bases, args.positions, quality=quality)
    title = "FSR, one option at a time: accuracy, difference from the base in points, exact McNemar p"
    return report(args, result, files, {title: ablation_table(result)}, plot_ablation)
