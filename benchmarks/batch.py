"""What more workers of `fsr batch` give: rows per second with 1, 2, ... of them, in turn, as ratios within one run.

    OMP_NUM_THREADS=1 python benchmarks/batch.py [--questions 504] [--workers 1,2] [--rounds 3] [--json out.json]

Questions and pictures are those of `fsr compare`, the model is `mini`. The start of Ray and of the workers (importing,
loading the model) is counted apart.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from fsr.evaluation.question_set import build
from fsr.methods import get
from fsr.serving.batch.job import Job
from fsr.serving.batch.pool import batch


def draw(folder: Path, questions: int) -> Path:
    """The pictures, and the JSONL that asks about them."""
    drawn = build("test", 0, questions)
    for i in range(len(drawn.scenes)):
        drawn.picture(i).save(folder / f"{i}.png")
    file = folder / "rows.jsonl"
    lines = [{"image": f"{item.scene}.png", "question": item.question.text} for item in drawn.items]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=504)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--json")
    args = parser.parse_args()
    counts = [int(n) for n in args.workers.split(",")]
    rates: dict[int, list[float]] = {n: [] for n in counts}
    starts: dict[int, list[float]] = {n: [] for n in counts}
    with tempfile.TemporaryDirectory() as name:
        rows = draw(Path(name), args.questions)
        for turn in range(args.rounds):
            for n in counts:
                job = Job(rows, Path(name) / f"out-{turn}-{n}", get("fsr", keep=16), device="cpu")
                done = batch(job, workers=n, batch_size=args.batch_size)
                rates[n].append(round(done.per_second, 1))
                starts[n].append(round(done.starting, 1))
                print(
                    f"{n} workers: {done.per_second:.1f} rows/s, {done.starting:.1f} s to start, {done.failed} failed"
                )
    first = counts[0]
    for n in counts[1:]:
        ratios = [b / a for a, b in zip(rates[first], rates[n])]
        print(f"{n} workers / {first}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    if args.json:
        out = {"questions": args.questions, "batch_size": args.batch_size, "cores": os.cpu_count()}
        out |= {"rows_per_second": rates, "seconds_to_start": starts}
        Path(args.json).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
