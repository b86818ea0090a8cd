"""Load a model by name: `mini`, `mini-qwen3`, a local folder or a hub id. Embedded models never touch the network."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch

from fsr.errors import UsageError
from fsr.minivlm.scenes import World
from fsr.signals.progress_bars import without_progress_bars

__all__ = ["EMBEDDED", "load", "pick_device", "world_of"]

EMBEDDED = ("mini", "mini-qwen3")


def world_of(config: Any) -> World:
    """The scenes that a model of this project was trained on; `mini`'s for every other model."""
    return "native" if getattr(config, "fsr_scenes", None) == "native" else "mini"


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}: use auto, cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is visible to torch: use --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"no device {name!r}: torch sees {torch.cuda.device_count()}, numbered from 0.")
    if device.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=device).item()  # a meta device has no values, others are not built in
        except Exception as error:  # each backend raises its own
            raise UsageError(f"device {name!r} does not work here: use auto, cpu or cuda.") from error
    return device


def load(
    name: str = "mini", device: str = "auto", dtype: torch.dtype | None = None, attention: str | None = None
) -> tuple[Any, Any]:
    """(model, processor), in evaluation mode on the device. dtype: float32 for embedded models, as stored for
    others, unless given. attention: Transformers' `attn_implementation`, its own choice unless given.

    Raises:
        UsageError: no such embedded model, no such folder, a damaged file in it, or the hub cannot be reached.
    """
    from transformers import AutoModelForImageTextToText

    where = pick_device(device)
    if name in EMBEDDED:
        with as_file(files("fsr.minivlm") / "data" / name) as folder:
            if not (folder / "config.json").exists():
                raise UsageError(
                    f"the weights of {name!r} are not in this installation: run `fsr train --model {name}` and give "
                    "the folder it writes, or install the whole wheel."
                )
            with without_progress_bars():  # ten megabytes load in a blink
                model = AutoModelForImageTextToText.from_pretrained(
                    folder, dtype=dtype or torch.float32, attn_implementation=attention, local_files_only=True
                )
                processor = _processor(model, folder, local_files_only=True)
        return model.eval().to(where), processor
    local = Path(name).expanduser()
    if not local.is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise UsageError(
            f"no model {name!r}: give {', '.join(EMBEDDED)}, a folder with a saved model, or a hub id like owner/name."
        )
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype or "auto", attn_implementation=attention)
        processor = _processor(model, name)
    except Exception as error:  # readers of configs, weights and tokenizers raise anything on damaged files
        raise UsageError(f"cannot load model {name!r}: {_in_short(error)}") from error
    return model.eval().to(where), processor


def _in_short(error: Exception) -> str:
    """The first 300 characters, without the list of every class that Transformers knows."""
    told = " ".join(str(error).split())
    if told.startswith("Unrecognized configuration class"):
        kind = told.partition("'")[2].partition("'")[0].rpartition(".")[2]
        return f"it is no vision-language model ({kind}): give a folder or id of one that takes pictures and text."
    return told[:300] or type(error).__name__


def _processor(model: Any, name: str | Path, **options: Any) -> Any:
    """The saved processor; for a model trained on native scenes the one that needs no torchvision and checks sizes."""
    if world_of(model.config) == "native":
        from fsr.minivlm.native.processor import StillsProcessor

        return StillsProcessor.from_pretrained(name, **options)
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(name, **options)
