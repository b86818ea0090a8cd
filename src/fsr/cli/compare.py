"""`fsr compare`: which pruning method keeps the right answers, on a fixed set of questions."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fsr.asking.options import keep_values, method_labels
from fsr.cli.arguments import add_relevance_argument
from fsr.cli.outputs import output_file, output_folder
from fsr.errors import UsageError

USUAL = "fsr,random,grid,pool,saliency,relevance,farthest"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fsr compare`."""
    parser.add_argument(
        "--methods",
        help="separated by commas, or `all`; options as fsr:rho=0.5; fsr always runs, the others are paired with it "
        f"({USUAL}); of the usual ones and of `all`, those that cannot run on the model are left out",
    )
    parser.add_argument(
        "--plane",
        action="store_true",
        help="over every quality of relevance and saliency: who can be trusted when a signal fails",
    )
    add_benchmark_arguments(parser, keep="48,32,16,8,4", split="test")


def add_benchmark_arguments(parser: argparse.ArgumentParser, keep: str, split: str) -> None:
    """What `compare` and `ablate` share."""
    parser.add_argument(
        "--model", default="mini", help="`mini`, `mini-qwen3`, a folder with a saved model, or a hub id"
    )
    parser.add_argument("--keep", default=keep, help="budgets, separated by commas")
    parser.add_argument("--questions", type=int, default=2000, help="how many, a multiple of 8")
    parser.add_argument("--seed", type=int, default=0, help="of the question set")
    parser.add_argument(
        "--split", choices=("test", "validation"), default=split, help="defaults are chosen on validation"
    )
    parser.add_argument("--crowded", action="store_true", help="a harder set: up to 14 things in a scene")
    parser.add_argument(
        "--relevance-quality",
        default="100",
        metavar="LEVEL",
        help="100, 97, 66, 32 or chance: noise on relevance, named by the share of questions it leaves right in mini",
    )
    parser.add_argument("--saliency-quality", default="tower", metavar="KIND", help="tower, object or sinks")
    parser.add_argument("--positions", choices=("auto", "repack", "original"), default="auto", help="see prune()")
    add_relevance_argument(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write the numbers to a file, or print them"
    )
    parser.add_argument("--plot", metavar="FILE", help="write a plot (.png, .svg or .pdf)")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--resume-dir", metavar="DIR", help="keep partial results there and go on from them")


def run(args: argparse.Namespace) -> int:
    """Everything that can be wrong with the arguments is checked before the model is loaded."""
    from fsr.evaluation.trials import contenders, trials_of

    names, keeps = contenders(USUAL if args.methods is None else args.methods), budgets(args.keep)
    for name in names:
        for keep in keeps:
            trials_of(name, keep)
    quality = quality_of(args)
    files = check_targets(args)
    if args.plane:
        return _plane(args, names, keeps, files)
    from fsr.evaluation.comparison import compare
    from fsr.evaluation.plots import plot_comparison
    from fsr.evaluation.tables import comparison_tables

    runner = open_runner(args)
    result = compare(runner, _able(args, runner, names, keeps), keeps, args.positions, quality)
    return report(args, result, files, comparison_tables(result), plot_comparison)


def _plane(args: argparse.Namespace, names: list[str], keeps: list[int | float], files: Files) -> int:
    from fsr.evaluation.plane import compare_plane
    from fsr.evaluation.plane_plot import plot_plane
    from fsr.evaluation.plane_tables import plane_tables
    from fsr.evaluation.qualities import CLEAN

    if quality_of(args) != CLEAN:
        raise UsageError("--plane runs every quality: leave out --relevance-quality and --saliency-quality.")
    told = (lambda line: print(line, file=sys.stderr)) if sys.stderr.isatty() else (lambda line: None)
    runner = open_runner(args)
    result = compare_plane(runner, _able(args, runner, names, keeps), keeps, args.positions, told)
    return report(args, result, files, plane_tables(result), plot_plane)


def _able(args: argparse.Namespace, runner: Any, names: list[str], keeps: list[int | float]) -> list[str]:
    """What runs on this model. Only what nobody asked for by name is left out, and told."""
    from fsr.evaluation.runnable import runnable

    typed = set(method_labels(args.methods or ""))
    taken, refused = runnable(runner, [name for name in names if name not in typed], keeps)
    for name, reason in refused.items():
        print(f"left out  {name}: {reason}", file=sys.stderr)
    return [name for name in names if name in typed or name in taken]


def quality_of(args: argparse.Namespace):  # type: ignore[no-untyped-def]
    """The quality of the signals on the command line."""
    from fsr.evaluation.qualities import Quality

    return Quality(args.relevance_quality, args.saliency_quality)


def budgets(text: str) -> list[int | float]:
    """At least one budget."""
    keeps = keep_values(text)
    if not keeps:
        raise UsageError(f"--keep {text!r} holds no budget: give numbers separated by commas (48,32,16,8).")
    return list(dict.fromkeys(keeps))


class Files(NamedTuple):
    """What is to be written; None where it is not."""

    plot: Path | None
    json: Path | None
    markdown: Path | None


def check_targets(args: argparse.Namespace) -> Files:
    """The files of the command line, tried; `--json` alone names none."""
    if args.plot is not None:
        from fsr.evaluation.plots import need_matplotlib

        need_matplotlib()
    output_folder(args.resume_dir)
    return Files(
        output_file(args.plot, (".png", ".svg", ".pdf")),
        output_file(args.json if args.json != "-" else None, (".json",)),
        output_file(args.markdown, (".md",)),
    )


def open_runner(args: argparse.Namespace):  # type: ignore[no-untyped-def]
    """The model and the question set of the command line."""
    from transformers.utils import logging

    from fsr.asking.load import load, world_of
    from fsr.evaluation.question_set import build
    from fsr.evaluation.runner import Runner

    logging.set_verbosity_error()
    model, processor = load(args.model, args.device)
    questions = build(args.split, args.seed, args.questions, world_of(model.config), args.crowded)
    resume = output_folder(args.resume_dir)
    return Runner(model, processor, questions, resume, progress=sys.stderr.isatty(), relevance=args.relevance)


def report(
    args: argparse.Namespace,
    result: dict[str, Any],
    files: Files,
    tables: dict[str, list[list[str]]],
    plot: Callable[[dict[str, Any], Path], None],
) -> int:
    """Print the tables, or one JSON object and nothing else; then write the files: a disk that fills up takes nothing
    away."""
    from fsr.evaluation.tables import heading, markdown, text

    if args.json == "-":
        print(json.dumps(result), flush=True)
    else:
        print(heading(result) + "\n")
        for title, rows in tables.items():
            print(f"{title}\n{text(rows)}\n", flush=True)
    if files.json is not None:
        files.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if files.markdown is not None:
        parts = [heading(result), *(f"{title}:\n\n{markdown(rows)}" for title, rows in tables.items())]
        files.markdown.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if files.plot is not None:
        plot(result, files.plot)
    for file in files:
        if file is not None and args.json != "-":
            print(f"saved  {file}")
    return 0
