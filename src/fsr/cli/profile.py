"""`fsr profile`: where the time goes, measured by stage; or operations and cache counted without weights
(`--preset`)."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fsr.asking.options import keep_values, method_names
from fsr.cli.outputs import output_file
from fsr.errors import UsageError


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
    parser.add_argument("--methods", default="fsr", help="methods separated by commas")
    parser.add_argument("--keep", default="64", help="budgets separated by commas: tokens (64) or shares (0.11)")
    parser.add_argument("--batch", help="batch sizes separated by commas (default: 1,8 on CUDA, 1 on the CPU)")
    parser.add_argument("--image-size", default="672x672", help="height x width, for models that adapt to it")
    parser.add_argument("--text-tokens", type=int, default=80, help="text tokens of the synthetic prompt")
    parser.add_argument("--new-tokens", type=int, default=8, help="tokens to generate")
    parser.add_argument("--warmup", type=int, help="warm-up rounds (default: 10 on CUDA, 1 on the CPU)")
    parser.add_argument("--rounds", type=int, help="timed rounds (default: 50 on CUDA, 3 on the CPU)")
    parser.add_argument("--limit", type=float, default=420, help="seconds after which no new round starts")
    parser.add_argument("--layers", type=int, help="build only that many language layers of --config")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="bfloat16; float32 for embedded models"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument("--plot", metavar="FILE", help="draw the stages as bars (.png, .svg, .pdf)")


def run(args: argparse.Namespace) -> int:
    """Check the input, count or measure, print."""
    if args.model and args.config:
        raise UsageError("give --model (a checkpoint) or --config (random weights), not both.")
    if args.plot is not None:
        from fsr.evaluation.plots import need_matplotlib

        need_matplotlib()
    file = output_file(args.plot, (".png", ".svg", ".pdf"))
    _size(args.image_size)
    methods = _methods(args)
    result = _count(args, methods) if args.preset else _measure(args, methods)
    if args.json:
        print(json.dumps(result))
    else:
        from fsr.profiling.tables import text

        print(text(result), flush=True)
    if file is not None:
        from fsr.profiling.plot import plot

        plot(result, file)
    return 0


def _methods(args: argparse.Namespace) -> list[Any]:
    from fsr.methods import get

    keeps = keep_values(args.keep)
    return [get(name, keep=keep) for name in method_names(args.methods) for keep in keeps]


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
    return count_report(name, config, picture, methods, convention, args.text_tokens)


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
        new_tokens=args.new_tokens,
        warmup=(10 if cuda else 1) if args.warmup is None else args.warmup,
        rounds=(50 if cuda else 3) if args.rounds is None else args.rounds,
        limit_s=args.limit,
    )
    dtype = getattr(torch, args.dtype) if args.dtype else None
    if args.config:
        workload = from_config(
            args.config,
            device=device,
            dtype=dtype or torch.bfloat16,
            layers=args.layers,
            text=args.text_tokens,
            size=_size(args.image_size),
        )
    elif args.layers is not None:
        raise UsageError("--layers builds part of a --config; a checkpoint is measured whole.")
    else:
        workload = from_checkpoint(args.model or "mini", device=str(device), dtype=dtype)
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


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.strip().isdigit() and int(p) > 0 for p in parts):
        raise UsageError(f"--image-size {text!r}: write height x width, for example 672x672.")
    return int(parts[0]), int(parts[1])


def _batches(text: str) -> tuple[int, ...]:
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if not parts or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise UsageError(f"--batch {text!r}: give whole numbers separated by commas, for example 1,8.")
    return tuple(int(p) for p in parts)
