"""The models that a demo offers: loaded when first asked for, shared by all visitors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from fsr.adapters import find
from fsr.asking.load import load
from fsr.errors import RelevanceError, UsageError
from fsr.methods import FSR, available
from fsr.methods.base import Method
from fsr.pipeline.relevance_source import resolve_scorer

__all__ = ["OfferedModel", "OfferedModels", "method_names"]


@dataclass(frozen=True)
class OfferedModel:
    """One loaded model. relevance: "none" where no text tower pairs with it; methods: names that work with it."""

    model: Any
    processor: Any
    relevance: str
    methods: tuple[str, ...]
    note: str = ""


class OfferedModels:
    """Models by name.

    Args:
        names: what visitors may choose; nothing else can be loaded through the page.
        loader: name -> (model, processor).
    """

    def __init__(self, names: Sequence[str], device: str = "auto", loader: Callable[..., Any] = load) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._device, self._loader = device, loader
        self._loaded: dict[str, OfferedModel] = {}
        self._lock = Lock()

    def take(self, name: str) -> OfferedModel:
        """The model, loaded at the first call.

        Raises:
            UsageError: not offered.
        """
        if name not in self.names:
            raise UsageError(f"this demo offers {', '.join(self.names)}, not {name!r}.")
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = _offer(*self._loader(name, self._device))
            return self._loaded[name]


def method_names() -> list[str]:
    """Methods that prune before the language model, FSR first."""
    found = [n for n, cls in available().items() if isinstance(cls, type) and issubclass(cls, Method)]
    return sorted(found, key=lambda n: (n != "fsr", n))


def _offer(model: Any, processor: Any) -> OfferedModel:
    adapter = find(model)
    relevance, note = "auto", ""
    try:
        resolve_scorer(adapter, FSR(keep=1), relevance)
    except RelevanceError as error:
        relevance, note = "none", f"without relevance: {error}"
    works = []
    for name in method_names():
        method = available()[name](keep=1)
        try:
            resolve_scorer(adapter, method, relevance)
        except RelevanceError:
            continue  # cannot do without relevance: not offered for this model
        works.append(name)
    return OfferedModel(model, processor, relevance, tuple(works), note)
