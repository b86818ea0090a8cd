"""`fsr batch`: answer a folder, JSONL or Parquet of pictures and questions with several workers; needs the extra `ray`.

What a row is, what survives a kill and what is refused: `fsr.serving.batch`.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fsr.asking.options import build_method, keep_per_picture
from fsr.cli.arguments import add_method_arguments, add_relevance_argument
from fsr.errors import UsageError, counted

if TYPE_CHECKING:
    from fsr.serving.batch.pool import Summary


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fsr batch`."""
    parser.add_argument(
        "input", metavar="INPUT", help="folder of pictures, or .jsonl or .parquet (image, question, id)"
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder for the answers; goes on where it stopped")
    parser.add_argument("--workers", type=int, default=1, help="how many; each gets a GPU where there are any")
    parser.add_argument("--question", help="for every picture of a folder, and for rows that bring none")
    add_method_arguments(parser, several=True)
    parser.add_argument(
        "--model", default="mini", help="`mini`, `mini-qwen3`, a folder with a saved model, or a hub id"
    )
    add_relevance_argument(parser)
    parser.add_argument("--max-new-tokens", type=int, default=32, help="length of an answer, at most")
    parser.add_argument("--batch-size", type=int, default=16, help="rows asked together and written as one part")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of the workers")
    parser.add_argument("--address", help="of a running Ray cluster (host:6379, or auto); without: this machine")


def run(args: argparse.Namespace) -> int:
    """Answer what is not answered yet; exit status 0 when every row was tried."""
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise UsageError("`fsr batch` needs Ray Data: pip install 'fsr-vlm[ray]'.")
    from fsr.methods.picture_budgets import EachPrompt
    from fsr.serving.batch.job import Job
    from fsr.serving.batch.pool import batch

    keep = keep_per_picture(args.keep)
    job = Job(
        source=Path(args.input).expanduser().resolve(),
        out=Path(args.out).expanduser().resolve(),
        method=build_method(args.method, EachPrompt(tuple(keep)) if isinstance(keep, list) else keep, args.option),
        model=_same_everywhere(args.model),
        relevance=args.relevance,
        max_new_tokens=args.max_new_tokens,
        device=args.device,
    )
    try:
        done = batch(
            job,
            question=args.question,
            workers=args.workers,
            batch_size=args.batch_size,
            address=args.address,
            progress=sys.stderr.isatty(),
        )
    except KeyboardInterrupt:
        print(f"finished batches are in {job.out}: the same command goes on from there", file=sys.stderr)
        raise
    print(_told(done) + f"\nsaved  {job.out}")
    return 0


def _same_everywhere(model: str) -> str:
    """A model folder by its whole path: workers run in other folders."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model


def _told(done: Summary) -> str:
    lines = [f"{counted(done.rows, 'row')}: {done.rows - done.failed} answered, {done.failed} with an error"]
    now = done.rows - done.earlier
    if done.earlier:
        lines.append(f"{done.earlier} of them by earlier runs")
    if now:
        lines.append(
            f"{counted(now, 'row')} in {done.seconds:.1f} s, {done.per_second:.1f} rows/s, "
            f"after {done.starting:.1f} s to start"
        )
    if done.tokens_before is not None:
        lines.append(f"visual tokens: {done.tokens_before:.1f} -> {done.tokens_after:.1f} per picture, on average")
    return "\n".join(lines)
