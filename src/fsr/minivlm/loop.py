"""One resumable training loop for both stages: cosine schedule, bfloat16 autocast, checkpoints that survive a kill,
a log per stage.

Batches depend on (seed, rank, step) only, so a resumed run sees the same data; worker processes draw scenes ahead.
Under torch.distributed gradients are averaged over processes: on a CPU two processes of one thread beat one process
of two threads.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

__all__ = ["run_stage", "to_device"]


class _Drawn(Dataset[Any]):
    """Batch number `step`, drawn from its own generator."""

    def __init__(self, make: Callable[[np.random.Generator, int], Any], seed: int, rank: int) -> None:
        self.make, self.seed, self.rank = make, seed, rank

    def __getitem__(self, step: int) -> Any:
        torch.set_num_threads(1)
        return self.make(np.random.default_rng([self.seed, self.rank, step]), step)


class _From(Sampler[int]):
    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop - self.start


def _average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    flat = torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in parameters])
    dist.all_reduce(flat)
    flat /= world
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = part.view_as(p)


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors of a (nested) dataclass, dict or list on another device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: to_device(getattr(value, f.name), device) for f in fields(value)})
    if isinstance(value, dict):
        return {k: to_device(v, device) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(v, device) for v in value)
    return value


def run_stage(
    name: str,
    folder: Path,
    modules: nn.Module,
    make: Callable[[np.random.Generator, int], Any],
    loss: Callable[[Any, int], tuple[Tensor, dict[str, float]]],
    steps: int,
    lr: float,
    seed: int,
    device: torch.device,
    workers: int = 1,
    stop: int | None = None,
    save_every: int = 500,
    log_every: int = 100,
) -> None:
    """Train `modules` for `steps`, or finish an interrupted run from `folder/<name>.pt`.

    make(rng, step) draws a batch; loss(batch, step) returns the loss and figures to log. lr: peak, 200 steps of
    warm-up, cosine to 2 % at `steps`; `stop` ends the stage before that, once it has learned enough.
    """
    decay = [p for p in modules.parameters() if p.requires_grad and p.dim() > 1]
    plain = [p for p in modules.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    trained = decay + plain
    end = steps if stop is None else min(stop, steps)
    file, start = folder / f"{name}.pt", 0
    folder.mkdir(parents=True, exist_ok=True)
    if file.exists():
        saved = torch.load(file, map_location=device, weights_only=True)
        modules.load_state_dict(saved["modules"])
        optimizer.load_state_dict(saved["optimizer"])
        start = int(saved["step"])

    def save(step: int) -> None:
        part = file.with_suffix(".part")
        torch.save({"modules": modules.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, part)
        part.replace(file)

    loader = DataLoader(
        _Drawn(make, seed, rank),
        sampler=_From(start, end),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        persistent_workers=False,
    )
    mean: dict[str, list[float]] = {}
    began = time.perf_counter()
    modules.train()
    with tqdm(total=end, initial=start, desc=name, unit="step", dynamic_ncols=True, disable=rank > 0) as bar:
        for step, batch in enumerate(loader, start=start):
            rate = lr * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(1_000_003 * (seed + 7919 * rank) + step)  # a resumed run draws what an unbroken one does
            with torch.autocast(device.type, torch.bfloat16):
                value, figures = loss(to_device(batch, device), step)
            value.backward()
            if world > 1:
                _average_gradients(trained, world)
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            for k, v in figures.items():
                mean.setdefault(k, []).append(v)
            bar.update()
            if rank > 0:
                continue
            if (step + 1) % log_every == 0 or step + 1 == end:
                line = {k: round(float(np.nanmean(v)), 4) for k, v in mean.items() if not np.all(np.isnan(v))}
                record = {
                    "step": step + 1,
                    "seconds": round(time.perf_counter() - began, 1),
                    "loss": float(value.detach()),
                    **line,
                }
                with (folder / f"{name}.jsonl").open("a") as f:
                    f.write(json.dumps(record) + "\n")
                bar.set_postfix({k: v for k, v in line.items() if k.endswith("acc")}, refresh=False)
                mean.clear()
            if (step + 1) % save_every == 0 or step + 1 == end:
                save(step + 1)
