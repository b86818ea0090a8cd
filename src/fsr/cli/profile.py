"""`fsr profile`: where the time goes, measured by stage; or operations and cache counted without weights
(`--preset`)."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from fsr.asking.options import build_method, keep_values, method_labels, method_names
from fsr.cli.arguments import add_relevance_argument
from fsr.cli.outputs import output_file
from fsr.errors import UsageError
from fsr.methods.registry import full_name

TEXT_TOKENS = 80
WITHOUT_END = 10**9
UNREAD_BY_CHECKPOINTS = ["layers", "text_tokens", "image_size"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fsr profile`."""
    parser.add_argument(
        "--model", help="measure `mini`, `mini-qwen3`, a folder with a saved model, or a hub id (default: mini)"
    )
    parser.add_argument(
        "--config",
        help="a true-size model with random weights, built and timed (minutes, gigabytes; --preset counts at once): "
        "llava-1.5-7b, qwen3-vl-2b, ...",
    )
    parser.add_argument(
        "--preset", help="count instead of measuring, by a convention: full, paper-table7, paper-fastv, paper-sparsevlm"
    )
    parser.add_argument(
        "--methods", help="methods separated by commas, options as fsr:alpha=2; or `all` (default: fsr)"
    )
    parser.add_argument("--keep", help="budgets separated by commas: tokens (64) or shares (0.11) (default: 64)")
    parser.add_argument("--batch", help="batch sizes separated by commas (default: 1,8 on CUDA, 1 on the CPU)")
    parser.add_argument("--image-size", help="height x width, for models that adapt to it (default: 672x672)")
    parser.add_argument("--text-tokens", type=int, help="text tokens of the synthetic prompt (default: 80)")
    parser.add_argument("--new-tokens", type=int, help="tokens to generate (default: 8)")
    parser.add_argument("--warmup", type=int, help="warm-up rounds (default: 10 on CUDA, 1 on the CPU)")
    parser.add_argument("--rounds", type=int, help="timed rounds (default: 50 on CUDA, 3 on the CPU)")
    parser.add_argument("--limit", type=float, help="seconds after which no new round starts (default: 420)")
    parser.add_argument("--layers", type=int, help="build only that many language layers of --config")
    add_relevance_argument(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="bfloat16; float32 for embedded models"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument("--plot", metavar="FILE", help="draw the stages as bars (.png, .svg, .pdf)")


def run(args: argparse.Namespace) -> int:
    """Check the input, count or measure, print.

    Exit status 1 where a method that was named could not be run; the others are measured all the same.
    """
    if args.model and args.config:
        raise UsageError("give --model (a checkpoint) or --config (random weights), not both.")
    if args.plot is not None:
        from fsr.evaluation.plots import need_matplotlib

        need_matplotlib()
    file = output_file(args.plot, (".png", ".svg", ".pdf"))
    _check_numbers(args)
    _refuse_unread(args)
    methods = _methods(args)
    result = _count(args, methods) if args.preset else _measure(args, methods)
    if args.json:
        print(json.dumps(result), flush=True)
    else:
        from fsr.profiling.tables import text

        print(text(result), flush=True)
    if file is not None:
        from fsr.profiling.plot import plot

        plot(result, file)
    lost = _named(args, result.get("not_run", []))
    for one in lost:
        where = f"{one['method']} (keep {one['keep']}, batch {one['batch']})"
        print(f"fsr profile: error: {where} was not run: {one['reason']}", file=sys.stderr)
    return 1 if lost else 0


def _named(args: argparse.Namespace, not_run: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that somebody asked for by name: `all` asks for what the model can do."""
    typed = method_labels(args.methods or "fsr")
    names = {full_name(label.partition(":")[0]) for label in typed}
    return [one for one in not_run if "all" not in typed or one["method"].partition(":")[0] in names]


def _methods(args: argparse.Namespace) -> list[Any]:
    keeps = keep_values("64" if args.keep is None else args.keep)
    if not keeps:
        raise UsageError(f"--keep {args.keep!r} holds no budget: give numbers separated by commas (64,32).")
    names = method_names("fsr" if args.methods is None else args.methods)
    return [build_method(name, keep) for name in names for keep in keeps]


def _check_numbers(args: argparse.Namespace) -> None:
    """Before anything is built: a true-size model takes minutes."""
    least = {"text_tokens": 2, "new_tokens": 2, "warmup": 1, "rounds": 1, "layers": 1}
    for name, n in least.items():
        value = getattr(args, name)
        if value is not None and not n <= value < WITHOUT_END:
            raise UsageError(f"--{name.replace('_', '-')} {value}: give a whole number, at least {n}.")
    if args.limit is not None and not args.limit > 0:
        raise UsageError(f"--limit {args.limit:g}: give seconds, more than 0.")
    _size(args.image_size)
    _batches(args.batch or "1")


def _refuse_unread(args: argparse.Namespace) -> None:
    """Refuse what would be ignored: a table that looks like an answer to it is none."""
    measured = ["batch", "new_tokens", "warmup", "rounds", "limit", "layers", "dtype"]
    if args.preset:
        why, unread = "counts one prompt and runs nothing", measured
        if args.relevance != "auto":
            unread = [*unread, "relevance"]
        if args.preset == "paper-table7" and not args.config and not args.model:
            why, unread = (
                "without --config is the paper's own table",
                [*unread, *"methods keep text_tokens image_size".split()],
            )
        subject = f"--preset {args.preset}"
    elif not args.config:
        subject, why, unread = "a checkpoint", "is measured whole, on its own picture and text", UNREAD_BY_CHECKPOINTS
    else:
        return
    for name in unread:
        if getattr(args, name) is not None:
            raise UsageError(f"{subject} {why}: leave out --{name.replace('_', '-')}.")


def _count(args: argparse.Namespace, methods: list[Any]) -> dict[str, Any]:
    from fsr.profiling.configs import named
    from fsr.profiling.conventions import preset
    from fsr.profiling.count_report import count_report, paper_table
    from fsr.profiling.visual import visual

    convention = preset(args.preset)
    if args.plot is not None:
        raise UsageError("--plot draws measured times: leave --preset out.")
    if args.model:
        name, config = args.model, _config_of(args.model)
    elif convention.name == "paper-table7" and not args.config:
        return paper_table()
    else:
        name = args.config or "llava-1.5-7b"
        config = named(name)
    picture = visual(config, _size(args.image_size))
    return count_report(name, config, picture, methods, convention, args.text_tokens or TEXT_TOKENS)


def _measure(args: argparse.Namespace, methods: list[Any]) -> dict[str, Any]:
    import torch
    from transformers.utils import logging

    from fsr.asking.load import pick_device
    from fsr.profiling.measure import Plan, measure
    from fsr.profiling.measure_report import report
    from fsr.profiling.workload import from_checkpoint, from_config

    logging.set_verbosity_error()
    device = pick_device(args.device)
    cuda = device.type == "cuda"
    plan = Plan(
        methods=tuple(methods),
        batches=_batches(args.batch or ("1,8" if cuda else "1")),
        new_tokens=args.new_tokens or 8,
        warmup=args.warmup or (10 if cuda else 1),
        rounds=args.rounds or (50 if cuda else 3),
        limit_s=args.limit or 420,
    )
    dtype = getattr(torch, args.dtype) if args.dtype else None
    if args.config:
        workload = from_config(
            args.config,
            device=device,
            dtype=dtype or torch.bfloat16,
            layers=args.layers,
            text=args.text_tokens or TEXT_TOKENS,
            size=_size(args.image_size),
            relevance=args.relevance,
        )
    else:
        workload = from_checkpoint(args.model or "mini", device=str(device), dtype=dtype, relevance=args.relevance)
    return report(workload, plan, measure(workload, plan))


def _config_of(model: str) -> Any:
    """The config of a checkpoint, without its weights."""
    from importlib.resources import as_file, files

    from transformers import AutoConfig

    from fsr.asking.load import EMBEDDED

    try:
        if model in EMBEDDED:
            with as_file(files("fsr.minivlm") / "data" / model) as folder:
                return AutoConfig.from_pretrained(folder, local_files_only=True)
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UsageError(f"no config for model {model!r}: {' '.join(str(error).split())[:200]}") from error


def _size(text: str | None) -> tuple[int, int]:
    parts = ("672x672" if text is None else text).lower().split("x")
    if len(parts) != 2 or not all(map(_whole, parts)):
        raise UsageError(f"--image-size {text!r}: write height x width, for example 672x672.")
    return int(parts[0]), int(parts[1])


def _batches(text: str) -> tuple[int, ...]:
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if not parts or not all(map(_whole, parts)):
        raise UsageError(f"--batch {text!r}: give whole numbers separated by commas, for example 1,8.")
    return tuple(int(p) for p in parts)


def _whole(text: str) -> bool:
    """Plain digits of a number that a picture or a batch can have."""
    return text.strip().isdecimal() and len(text.strip()) < 7 and int(text) > 0
