"""What partial results are kept by, besides the questions and the trial: the model, and where relevance comes from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from fsr.adapters import find
from fsr.pipeline.relevance_source import measured

__all__ = ["model_hash", "relevance_key"]


def relevance_key(model: Any, relevance: str) -> str:
    """A source's name, or a hash of what its file says; nothing for the text tower, which is part of `model_hash`."""
    if relevance.endswith(".json"):
        return f"-{_short(Path(relevance).read_bytes())}"
    if relevance != "auto":
        return f"-{relevance}"
    found = measured(find(model))
    return "" if found is None else f"-{_short(repr(found).encode())}"


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def model_hash(model: Any) -> str:
    """sha256 of the weights, and of the paired text tower where the model has one beside it."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    head = Path(str(getattr(model, "name_or_path", ""))) / "text_tower"
    for file in sorted(head.glob("*")) if head.is_dir() else []:
        digest.update(file.read_bytes())
    return digest.hexdigest()
