"""`fsr calibrate`: where each source of relevance points, and a file for `relevance=` with what was found."""

from __future__ import annotations

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

from fsr.errors import UsageError, counted


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fsr calibrate`."""
    parser.add_argument(
        "--model", default="mini", help="`mini`, `mini-qwen3`, a folder with a saved model, or a hub id"
    )
    parser.add_argument(
        "--pictures",
        metavar="FOLDER",
        help="pictures with places.json ([{image, text, box: [x0, y0, x1, y1]}]) or places.csv (image, text, x0, y0, "
        "x1, y1), boxes in pixels; without it: embedded scenes of the validation split",
    )
    parser.add_argument("--questions", type=int, default=400, help="how many texts to ask at most (400)")
    parser.add_argument("--out", default="relevance.json", metavar="FILE.json", help="where to write what was found")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def run(args: argparse.Namespace) -> int:
    """Measure, write, and say what was found."""
    out = Path(args.out)
    if out.suffix != ".json" or not out.resolve().parent.is_dir():
        raise UsageError(f"--out {args.out!r}: give a file name that ends with .json, in a folder that exists.")
    from fsr.evaluation.known_places import folder_places, folder_rows, scene_places
    from fsr.signals.calibration import BESIDE, FEWEST

    rows = folder_rows(args.pictures)[: max(0, args.questions)] if args.pictures else None
    texts = args.questions if rows is None else len(rows)
    if texts < FEWEST:
        where = f"--questions {args.questions}" if rows is None or len(rows) == args.questions else str(args.pictures)
        raise UsageError(f"{where}: {counted(texts, 'text')} cannot say enough: give at least {FEWEST}.")
    from fsr.asking.load import load, world_of
    from fsr.evaluation.calibrate import calibrate, look
    from fsr.evaluation.question_set import build

    model, processor = load(args.model, args.device)
    if rows is not None:
        places = folder_places(rows)
    else:
        places = scene_places(build("validation", 0, 2000, world_of(model.config)))
    found = calibrate(look(model, processor, islice(places, args.questions)), args.model)
    found.save(out)
    if args.json:
        print(json.dumps({"out": str(out), **vars(found)}))
        return 0
    print(f"pointing: how often the best token lies where the text says ({found.pictures} texts)")
    for name, rate in found.pointing.items():
        print(f"  {name:28s} {100 * rate:5.1f} %")
    print(f"best without a text tower: {found.best}")
    print(
        f"written to {out}: use it with relevance={str(out)!r} or --relevance {out}; as {BESIDE} in the model's own "
        "folder it is what relevance='auto' means there, unless the family has a text tower",
        file=sys.stderr,
    )
    return 0
