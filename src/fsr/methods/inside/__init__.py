"""Methods that prune inside the language model, and their composition with those before it."""

from fsr.methods.inside.base import Choice, InsideMethod, View
from fsr.methods.inside.chain import Chain
from fsr.methods.inside.dart import Dart
from fsr.methods.inside.fastv import FastV
from fsr.methods.inside.pyramiddrop import PyramidDrop
from fsr.methods.inside.sparsevlm import SparseVLM

__all__ = ["Chain", "Choice", "Dart", "FastV", "InsideMethod", "PyramidDrop", "SparseVLM", "View"]
