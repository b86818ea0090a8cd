"""`fsr train`: make the embedded models anew."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from fsr.errors import UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fsr train`."""
    parser.add_argument(
        "--model",
        choices=("mini", "mini-qwen3"),
        default="mini",
        help="mini: from nothing; mini-qwen3: from mini's weights",
    )
    parser.add_argument("--out", help="folder for checkpoints, logs and the finished model (default: runs/MODEL)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the recipe's steps, for trials")
    parser.add_argument("--seed", type=int, default=1, help="of weights and scenes; the shipped model has 1")
    parser.add_argument(
        "--stage",
        choices=("all", "vision", "symbols", "fit", "language", "export"),
        default="all",
        help="only one stage",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes ahead")


def run(args: argparse.Namespace) -> int:
    """Run the stages in order; what is finished is skipped, what was interrupted goes on."""
    if not 0 < args.scale <= 10:
        raise UsageError(
            f"--scale {args.scale}: give a share of the recipe's steps between 0 and 10 (1 is the whole recipe)."
        )
    if args.workers < 0:
        raise UsageError("--workers: give 0 or more processes.")
    import torch
    from transformers.utils import logging

    from fsr.asking.load import pick_device
    from fsr.minivlm.train import STAGES

    logging.set_verbosity_error()
    device = pick_device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # at this size a second thread costs more than it gives
    folder = Path(args.out or f"runs/{args.model}")
    train_stage, export = _recipe(args.model, args.scale, args.seed)
    for stage in STAGES if args.stage == "all" else (args.stage,):
        if stage != "export":
            train_stage(stage, folder, device, args.workers)
    if args.stage in ("all", "export"):
        missing = [s for s in STAGES if not (folder / f"{s}.pt").exists()]
        if missing:
            raise UsageError(f"nothing to export in {folder}: stage {missing[0]} has not run.")
        print(f"model written to {export(folder, folder / 'model')}")
    return 0


def _recipe(model: str, scale: float, seed: int) -> tuple[Callable[..., None], Callable[..., Path]]:
    """What runs one stage of a model's recipe, and what writes its folder."""
    from dataclasses import replace

    if model == "mini":
        from fsr.minivlm.export import export
        from fsr.minivlm.train import Recipe, train_stage

        recipe = replace(Recipe().scaled(scale), seed=seed)
        return lambda stage, folder, *rest: train_stage(stage, folder, recipe, *rest), export
    from fsr.minivlm.native.export import export as export_native
    from fsr.minivlm.native.train import NativeRecipe
    from fsr.minivlm.native.train import train_stage as train_native

    native = replace(NativeRecipe().scaled(scale), seed=seed)
    return lambda stage, folder, *rest: train_native(stage, folder, native, *rest), export_native
