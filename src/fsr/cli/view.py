"""`fsr view`: what was kept, and why, as one HTML file; the paper's figures; a PNG for papers."""

from __future__ import annotations

import argparse
import sys

from fsr.asking.options import build_method, keep_values, method_labels, method_names
from fsr.cli.arguments import add_relevance_argument
from fsr.cli.outputs import output_file
from fsr.errors import QuestionError, UsageError
from fsr.methods import Method, available

# What the paper's figures show where nothing else is asked for.
FIGURES = {1: ("fsr", "32"), 2: ("visionzip,vispruner,cdpruner,fsr", "24")}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fsr view`."""
    parser.add_argument("question", nargs="+", help="what you want to know, in quotes (two questions for --figure 1)")
    parser.add_argument("--image", help="picture file (without it: the bundled scene)")
    parser.add_argument(
        "--model", default="mini", help="`mini`, `mini-qwen3`, a folder with a saved model, or a hub id"
    )
    parser.add_argument(
        "--methods", help="methods to compare, separated by commas, options as fsr:alpha=2 (without it: fsr)"
    )
    parser.add_argument("--keep", help="budgets, separated by commas: tokens (32,16) or shares (0.11)")
    parser.add_argument("--figure", type=int, choices=(1, 2), help="the paper's Figure 1 or 2 instead of the report")
    parser.add_argument("--out", metavar="FILE.html", help="where to write the page (default: report.html)")
    parser.add_argument("--png", metavar="FILE.png", help="write a picture as well")
    add_relevance_argument(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def run(args: argparse.Namespace) -> int:
    """Write the files and say where they are; nothing is loaded or written before the input was checked."""
    usual, sizes = FIGURES[args.figure] if args.figure else ("fsr", "32,16")
    names, budgets = (
        method_names(usual if args.methods is None else args.methods),
        keep_values(sizes if args.keep is None else args.keep),
    )
    typed = method_labels(args.methods or "")
    inside = [name for name in names if not issubclass(available()[name.partition(":")[0]], Method)]
    if "all" in typed:
        names = [name for name in names if name not in inside or name in typed]
    if refused := [name for name in inside if name in names]:
        raise UsageError(
            f"{refused[0]} drops tokens inside the language model, layer by layer, and a report shows one set of "
            f"tokens that all layers see: use `fsr ask --method {refused[0]}`, or a method that prunes before it."
        )
    if not budgets:
        raise UsageError("give at least one budget: --keep 32,16.")
    if args.figure is None and len(args.question) > 1:
        raise UsageError("a report is about one question: put it in quotes, or use --figure.")
    if args.figure == 1 and len(args.question) != 2:
        raise UsageError("figure 1 compares two questions: give both, each in quotes.")
    if not all(q.strip() for q in args.question):
        raise QuestionError("the question is empty: write what you want to know about the picture.")
    methods = [build_method(name, keep) for keep in budgets for name in names]
    out = output_file("report.html" if args.out is None else args.out, (".html", ".htm"))
    png = output_file(args.png, (".png",))
    from fsr.asking.images import bundled_scene, open_image

    image = bundled_scene(model=args.model) if args.image is None else open_image(args.image)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    from fsr.asking.load import load
    from fsr.view.comparison import compare_methods

    model, processor = load(args.model, args.device)
    comparisons = compare_methods(
        model, processor, image, args.question, methods, name=args.model, relevance=args.relevance, progress=_progress
    )
    if args.figure:
        from fsr.view.paper_figures import figure_page, figure_png

        page, drawn = figure_page(args.figure, comparisons), (lambda: figure_png(args.figure, comparisons))
    else:
        from fsr.view.png import report_png
        from fsr.view.report import render

        page, drawn = render(comparisons[0]), (lambda: report_png(comparisons[0]))
    if out:
        out.write_text(page, encoding="utf-8")
        print(f"wrote {out} ({len(page) / 1e6:.1f} MB)")
    if png:
        drawn().save(png)
        print(f"wrote {png}")
    return 0


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"  {line}", file=sys.stderr)
