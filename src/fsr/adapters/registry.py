"""Which adapter knows a model. Third parties register under the entry-point group `fsr.adapters` (name = class)."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from torch import nn

from fsr.adapters.base import Adapter
from fsr.adapters.generic import GenericAdapter
from fsr.adapters.generic_grid import GenericAxesAdapter, GenericGridAdapter
from fsr.adapters.generic_plain import GenericPlainAdapter
from fsr.adapters.wrappers import unwrapped
from fsr.errors import UnsupportedModelError

__all__ = ["available", "find", "register"]

# By structure, the most particular first.
GENERIC = (GenericAxesAdapter, GenericGridAdapter, GenericPlainAdapter, GenericAdapter)
_ADAPTERS: dict[str, type[Adapter]] = {}
A = TypeVar("A", bound=type[Adapter])


def register(cls: A) -> A:
    """Class decorator: make an adapter known under `cls.name`."""
    _ADAPTERS[cls.name] = cls
    return cls


@cache
def _plug_ins() -> tuple[EntryPoint, ...]:
    """Found once: it reads the metadata of every installed package."""
    return tuple(entry_points(group="fsr.adapters"))


def available() -> dict[str, type[Adapter]]:
    """All adapters by name, those of installed plug-ins included."""
    for point in _plug_ins():
        if point.name not in _ADAPTERS:
            _ADAPTERS[point.name] = point.load()
    return dict(sorted(_ADAPTERS.items()))


def find(model: nn.Module) -> Adapter:
    """The adapter of a model (looked up inside its wrappers): by name, else the generic one if the structure allows.

    Raises:
        UnsupportedModelError: no adapter knows its `config.model_type`.
    """
    model = unwrapped(model)
    adapters = available()
    for cls in adapters.values():
        if cls.matches(model):
            return cls(model)
    for generic in GENERIC:
        if generic.matches(model):
            return generic(model)
    for path, part in model.named_modules():
        if path and any(cls.matches(part) for cls in adapters.values()):
            raise UnsupportedModelError(
                f"{type(model).__name__} runs a vision-language model in a way of its own: prune the one inside it "
                f"(model.{path}), call that, and pool its states with pruned.last.attention_mask."
            )
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    why = GenericAdapter.lacking(model) or "its positions have several axes and its pictures no `image_grid_thw`"
    raise UnsupportedModelError(
        f"no adapter for model type {kind!r}, and no generic one fits: {why}. docs/models.md and docs/classes.md list "
        "what works; docs/add-a-model.md says how to add a family."
    )
