"""Training-free visual-token pruning for vision-language models: `with prune(model, FSR(keep=64)):
model.generate(**inputs)`.

Names are imported when they are first asked for: torch takes seconds, and `fsr --help` needs none of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fsr.version import __version__

if TYPE_CHECKING:
    from fsr.errors import (
        BudgetError,
        FeatureError,
        FSRError,
        PictureError,
        QuestionError,
        RelevanceError,
        UnsupportedModelError,
        UsageError,
    )
    from fsr.methods import FSR, Method, PaperFSR
    from fsr.pipeline.prepare import Prepared, Report, prepare
    from fsr.pipeline.pruner import Pruner, prune
    from fsr.signals.clip_twin import ClipTwin, load_twin, save_twin
    from fsr.tokens import Selection, Stage, VisualTokens
else:
    _HOMES = {
        "fsr.errors": (
            "BudgetError",
            "FSRError",
            "FeatureError",
            "PictureError",
            "QuestionError",
            "RelevanceError",
            "UnsupportedModelError",
            "UsageError",
        ),
        "fsr.methods": ("FSR", "Method", "PaperFSR"),
        "fsr.pipeline.prepare": ("Prepared", "Report", "prepare"),
        "fsr.pipeline.pruner": ("Pruner", "prune"),
        "fsr.signals.clip_twin": ("ClipTwin", "load_twin", "save_twin"),
        "fsr.tokens": ("Selection", "Stage", "VisualTokens"),
    }

    def __getattr__(name: str) -> Any:
        home = next((module for module, names in _HOMES.items() if name in names), None)
        if home is not None:
            found = globals()[name] = getattr(import_module(home), name)
            return found
        if not name.startswith("_"):
            try:
                return import_module(f"fsr.{name}")  # the rooms: fsr.methods, fsr.signals, ...
            except ModuleNotFoundError as error:
                if error.name != f"fsr.{name}":
                    raise
        raise AttributeError(f"module 'fsr' has no attribute {name!r}")


__all__ = [
    "FSR",
    "BudgetError",
    "ClipTwin",
    "FSRError",
    "FeatureError",
    "Method",
    "PaperFSR",
    "PictureError",
    "Prepared",
    "Pruner",
    "QuestionError",
    "RelevanceError",
    "Report",
    "Selection",
    "Stage",
    "UnsupportedModelError",
    "UsageError",
    "VisualTokens",
    "__version__",
    "load_twin",
    "prepare",
    "prune",
    "save_twin",
]
