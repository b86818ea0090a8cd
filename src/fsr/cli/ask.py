"""`fsr ask`: one question, one picture or several, K visual tokens of each."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsr.asking.options import build_method, keep_per_picture
from fsr.cli.arguments import add_method_arguments, add_relevance_argument
from fsr.cli.outputs import output_file
from fsr.errors import BudgetError, counted

if TYPE_CHECKING:
    from PIL import Image

    from fsr.asking.answer import Answer
    from fsr.tokens import Selection


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fsr ask`."""
    parser.add_argument("question", help="what you want to know, in quotes")
    parser.add_argument(
        "--image",
        action="append",
        help="picture file, repeatable: all stand in one prompt (without it: a bundled scene)",
    )
    add_method_arguments(parser, several=True)
    parser.add_argument(
        "--model", default="mini", help="`mini`, `mini-qwen3`, a folder with a saved model, or a hub id"
    )
    add_relevance_argument(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--compare", action="store_true", help="answer from all tokens as well")
    parser.add_argument("--save", metavar="FILE", help="write the picture (all, side by side) with kept tokens marked")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> int:
    """Answer and print; everything that can be wrong with the input is checked before the model is loaded."""
    keep, count = keep_per_picture(args.keep), len(args.image or [0])
    if isinstance(keep, list) and len(keep) != count:
        raise BudgetError(
            f"--keep has {counted(len(keep), 'value')} for {counted(count, 'picture')}: give one per --image in their "
            "order, or one for all."
        )
    method = build_method(args.method, keep, args.option)
    from fsr.asking.images import bundled_scene, open_image

    images = [bundled_scene(model=args.model)] if args.image is None else [open_image(file) for file in args.image]
    save = output_file(args.save, (".png", ".jpg", ".jpeg", ".webp"))
    from transformers.utils import logging

    logging.set_verbosity_error()
    from fsr.asking.answer import answer
    from fsr.asking.load import EMBEDDED, load

    model, processor = load(args.model, args.device)
    kwargs = {"relevance": args.relevance}
    full = None
    if args.compare:
        answer(
            model, processor, images, args.question, method, **kwargs
        )  # warm both paths up, so that the times compare
        full = answer(model, processor, images, args.question)
    result = answer(model, processor, images, args.question, method, **kwargs)
    notes = [*dict.fromkeys(note for s in result.selections for note in s.notes)]
    notes += () if result.report is None else result.report.notes
    if count > 1 and args.model in EMBEDDED:
        notes.append(f"{args.model} was trained on prompts of one picture: with several its answers are poor")
    if args.json:
        print(json.dumps(_as_json(args, result, full, notes)), flush=True)
        _save(images, result.selections, save)
        return 0
    _print(args.question, result, full, notes)
    if _save(images, result.selections, save):
        print(f"saved  {save}")
    return 0


def _as_json(args: argparse.Namespace, result: Answer, full: Answer | None, notes: list[str]) -> dict[str, Any]:
    """One picture: its selection beside the rest; several: a list of them, `pictures`."""
    report: Any = result.report
    shown = [{**s.to_json(), "n_tokens": s.total} for s in result.selections]
    out: dict[str, Any] = {"question": args.question, "answer": result.text, "model": args.model}
    out |= shown[0] if len(shown) == 1 else {"method": shown[0]["method"], "pictures": shown}
    if report.in_llm is not None:
        out["in_llm"] = {
            "entered": list(report.in_llm.entered),
            "layer_average": report.in_llm.layer_average,
            "drops": [
                {"method": d.method, "layer": d.layer, "kept": [len(rows) for rows in d.rows]}
                for d in report.in_llm.drops
            ],
        }
    out |= {"stages_ms": dict(result.stages_ms), "notes": notes, "positions": report.positions}
    out |= {"relevance_from": report.relevance}
    if full is not None:
        out |= {"answer_unpruned": full.text, "stages_ms_unpruned": dict(full.stages_ms)}
    return out


def _print(question: str, result: Answer, full: Answer | None, notes: list[str]) -> None:
    report: Any = result.report
    total = sum(s.total for s in result.selections)
    print(f"Q  {question}")
    print(f"A  {result.text}" + (f"      (from all {total} tokens: {full.text})" if full else ""))
    for number, s in enumerate(result.selections):
        which = f"picture {number}: " if len(result.selections) > 1 else ""
        if s.kept < s.total:
            split = f" = {s.n_focus} focus + {s.n_scan} scan" if s.method in ("fsr", "fsr-paper") else ""
            share = f"({100 * s.kept / s.total:.0f} %), method {s.method}"
            where = ", in the last layer" if report.in_llm is not None and report.in_llm.drops else ""
            print(f"K  {which}{s.kept}{split}, of {s.total} visual tokens {share}{where}")
    if any(s.relevance is not None for s in result.selections):
        print(f"R  relevance from {report.relevance}")
    for s in result.selections:
        if s.certificate is not None:
            c = s.certificate
            print(
                f"   coverage: every token lies within {c.radius_chord:.2f} (chordal) of a kept one; "
                f"no other scan of this size from the same focus gets below {c.optimum_at_least:.2f}"
            )
    for title, ms in (("ms", result.stages_ms), *([("ms, all tokens", full.stages_ms)] if full else [])):
        print(f"{title}  " + ", ".join(f"{k.replace('_', ' ')} {v:.1f}" for k, v in ms.items()))
    for note in notes:
        print(f"note  {note}")


def _save(images: list[Image.Image], selections: tuple[Selection, ...], file: Path | None) -> bool:
    """Written last: the answer has been printed then."""
    if file is None:
        return False
    from fsr.drawing.kept_tokens import beside, draw

    sys.stdout.flush()
    beside([draw(image, s) for image, s in zip(images, selections)]).save(file)
    return True
