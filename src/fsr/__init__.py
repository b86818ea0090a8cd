"""Training-free visual-token pruning for vision-language models: `with prune(model, FSR(keep=64)):
model.generate(**inputs)`."""

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
from fsr.version import __version__

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
