"""Methods by name: registration by class; third parties use the entry-point group `fsr.methods` (name = class)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fsr.errors import UsageError

__all__ = ["SHORT", "available", "full_name", "get", "register", "unknown_method"]

# What `fsr compare` calls two of its baselines; every place that takes a name takes these.
SHORT = {"grid": "uniform-grid", "pool": "average-pool"}
_METHODS: dict[str, type[Any]] = {}


def register(cls: type[Any]) -> type[Any]:
    """Class decorator: make `cls` known under `cls.name` (lower case, unique)."""
    name = getattr(cls, "name", "")
    if not name or name != name.lower() or not name.replace("-", "").isalnum():
        raise UsageError(f"{cls.__name__}.name={name!r}: give lower-case letters, digits and hyphens.")
    if name in _METHODS and _METHODS[name].__qualname__ != cls.__qualname__:
        raise UsageError(f"method {name!r} is registered already by {_METHODS[name].__module__}.")
    _METHODS[name] = cls
    return cls


@cache
def _plug_ins() -> tuple[EntryPoint, ...]:
    """Found once: it reads the metadata of every installed package."""
    return tuple(entry_points(group="fsr.methods"))


def available() -> dict[str, type[Any]]:
    """All methods by name, those of installed plug-ins (entry points `fsr.methods`) included."""
    for point in _plug_ins():
        if point.name not in _METHODS:
            _METHODS[point.name] = point.load()
    return dict(sorted(_METHODS.items()))


def full_name(name: str) -> str:
    """The name under which a method is registered, for a short one."""
    return SHORT.get(name, name)


def get(name: str, **options: Any) -> Any:
    """Build a method by name with its options; unknown names and options are errors that list the valid ones."""
    methods, name = available(), full_name(name)
    if name not in methods:
        raise unknown_method(name, methods)
    known = [f.name for f in fields(methods[name])]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(f"{name} has no option {', '.join(unknown)}: it takes {', '.join(known)}.")
    return methods[name](**options)


def unknown_method(name: str, known: Iterable[str]) -> UsageError:
    """What to say about a name that is not among `known`. A chain is told how it is written."""
    if "|" not in name:
        return UsageError(f"unknown method {name!r}: choose one of {', '.join(known)}.")
    classes = available()
    stages = [full_name(part.partition(":")[0].strip()) for part in name.split("|")]
    written = " | ".join(f"{classes[s].__name__ if s in classes else s.capitalize()}(...)" for s in stages)
    return UsageError(
        f"{name!r} is a chain, which only Python takes: prune(model, {written}) with these classes of fsr.methods. "
        "Give one method here."
    )
