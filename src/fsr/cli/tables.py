"""`fsr tables`: the paper's Tables 1 to 6, with results of lmms-eval beside the printed rows."""

from __future__ import annotations

import argparse

from fsr.cli.outputs import output_file
from fsr.errors import UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fsr tables`."""
    parser.add_argument("results", nargs="*", help="what lmms-eval wrote to its --output_path: files or folders")
    parser.add_argument(
        "--table", type=int, metavar="N", help="which one, 1 to 6; all of them where no results are given"
    )
    parser.add_argument("--markdown", metavar="FILE", help="write it to a file instead of printing it")


def run(args: argparse.Namespace) -> int:
    """Print or write."""
    from fsr.evaluation.lmms_results import read_runs
    from fsr.evaluation.paper_report import report
    from fsr.evaluation.published import TABLES, table

    if args.results and args.table is None:
        raise UsageError("say which table the results belong to: --table 1 for LLaVA-1.5-7B, see docs/evaluation.md.")
    file = output_file(args.markdown, (".md",))
    runs = read_runs(args.results)
    text = "\n\n".join(report(table(n), runs) for n in ([args.table] if args.table is not None else TABLES))
    if file is None:
        print(text)
        return 0
    file.write_text(text + "\n", encoding="utf-8")
    print(f"saved  {file}")
    return 0
