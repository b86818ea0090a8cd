"""Every class that `AutoModelForImageTextToText` maps, on a tiny random twin: what this library does with it.

    python benchmarks/class_map.py [MODEL_TYPE ...] [--write | --check]

Per class: the adapter; whether a budget of all tokens changes nothing bit for bit (greedy, beams, no cache); whether
exactly K tokens stay of every picture; whether the model is left as it was; which signals there are. Or the one line
that refuses it. Two processes share the work; a class that crashes or hangs takes no other along.

`--write` puts the table of this Transformers release into docs/classes.md. `--check` names the classes that differ from
it and ends with 1 if there are any. The environment variable FSR_TESTS_END (seconds since 1970) is a time after which
no class is looked at; those left are named.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

import class_rows
from class_rows import Row
from class_workers import NotReached, Stopped, results

ROOT = Path(__file__).resolve().parent.parent
TIMM = Path(sys.prefix) / "torchvision-only"  # what towers of three classes come from, see the Makefile


def look(model_type: str) -> Row:
    """`class_look.look` in a process of this program's own."""
    if (TIMM / "timm").is_dir() and str(TIMM) not in sys.path:
        sys.path += [str(TIMM), str(ROOT / "tests" / "shims")]
        import torchvision_schemas  # noqa: F401  (before anything that imports torchvision)
    import torch
    import transformers

    import class_look

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    return class_look.look(model_type)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--write", action="store_true")
    mode.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.write and args.types:
        parser.error("--write needs all classes: name none")
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as names

    if unknown := sorted(set(args.types) - set(names)):
        parser.error(f"transformers {transformers.__version__} has no class for {', '.join(unknown)}")
    end = os.environ.get("FSR_TESTS_END")
    rows: list[Row] = []
    left: dict[str, str] = {}
    for name, found in results(args.types or sorted(names), look, float(end) if end else None):
        if isinstance(found, NotReached):
            left[name] = "the time is over"
            continue
        row = Row(name, "wrong", found.text) if isinstance(found, Stopped) else found
        print(row.verdict, row.model_type, row.text, sep="  ", flush=True)
        if row.verdict == "no twin" and not (TIMM / "timm").is_dir() and "timm" in row.text:
            left[name] = "timm is not installed"
        else:
            rows.append(row)
    print(class_rows.summary(rows))
    for name, why in left.items():
        print(f"NOT looked at: {name} ({why})")
    bad = any(row.verdict == "wrong" for row in rows)
    if args.check:
        lines = class_rows.differences(transformers.__version__, rows)
        alike = len(rows) - len(lines)
        if not args.types:
            gone = set(class_rows.read(transformers.__version__)) - set(names)
            lines += [f"{name}: on the page, and not in this release" for name in sorted(gone)]
        for line in lines:
            print(f"DIFFERS from docs/classes.md: {line}")
        bad = bad or bool(lines)
        print(f"{alike} of {len(args.types or names)} classes are as docs/classes.md says.")
    elif args.write and left:
        print("Nothing was written: the table would not be whole.")
        bad = True
    elif args.write:
        class_rows.write(transformers.__version__, rows)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
