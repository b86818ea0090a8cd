"""`fsr ask`: one question, one picture, K visual tokens."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fsr.asking.options import build_method, keep_value
from fsr.cli.arguments import add_method_arguments, add_relevance_argument
from fsr.cli.outputs import output_file
from fsr.errors import UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fsr ask`."""
    parser.add_argument("question", help="what you want to know, in quotes")
    parser.add_argument("--image", help="picture file (without it: the bundled scene)")
    add_method_arguments(parser)
    parser.add_argument(
        "--model", default="mini", help="`mini`, `mini-qwen3`, a folder with a saved model, or a hub id"
    )
    add_relevance_argument(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--compare", action="store_true", help="answer from all tokens as well")
    parser.add_argument("--save", metavar="FILE", help="write the picture with the kept tokens marked")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> int:
    """Answer and print; everything that can be wrong with the input is checked before the model is loaded."""
    method = build_method(args.method, keep_value(args.keep), args.option)
    from fsr.asking.images import bundled_scene, open_image

    image = bundled_scene(model=args.model) if args.image is None else open_image(args.image)
    save = output_file(args.save, (".png", ".jpg", ".jpeg", ".webp"))
    from transformers.utils import logging

    logging.set_verbosity_error()
    from fsr.asking.answer import answer
    from fsr.asking.load import load

    model, processor = load(args.model, args.device)
    kwargs = {"relevance": args.relevance}
    full = None
    if args.compare:
        answer(
            model, processor, image, args.question, method, **kwargs
        )  # warm both paths up, so that the times compare
        full = answer(model, processor, image, args.question)
    result = answer(model, processor, image, args.question, method, **kwargs)
    s = result.selection
    if s is None or result.report is None:
        raise UsageError("the prompt holds no picture: the model's chat template dropped it.")
    notes = [*s.notes, *result.report.notes]
    if args.json:
        out = {
            "question": args.question,
            "answer": result.text,
            "model": args.model,
            **s.to_json(),
            "n_tokens": s.total,
        }
        out |= {"stages_ms": dict(result.stages_ms), "notes": notes, "positions": result.report.positions}
        out |= {"relevance_from": result.report.relevance}
        if full is not None:
            out |= {"answer_unpruned": full.text, "stages_ms_unpruned": dict(full.stages_ms)}
        print(json.dumps(out), flush=True)
        _save(image, s, save)
        return 0
    print(f"Q  {args.question}")
    print(f"A  {result.text}" + (f"      (from all {s.total} tokens: {full.text})" if full else ""))
    share = 100 * s.kept / s.total
    if s.kept < s.total:
        split = f" = {s.n_focus} focus + {s.n_scan} scan" if s.method in ("fsr", "fsr-paper") else ""
        print(f"K  {s.kept}{split}, of {s.total} visual tokens ({share:.0f} %), method {s.method}")
    if s.relevance is not None:
        print(f"R  relevance from {result.report.relevance}")
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
    if _save(image, s, save):
        print(f"saved  {save}")
    return 0


def _save(image: Any, selection: Any, file: Path | None) -> bool:
    """Written last: the answer has been printed then."""
    if file is None:
        return False
    from fsr.drawing.kept_tokens import draw

    sys.stdout.flush()
    draw(image, selection).save(file)
    return True
