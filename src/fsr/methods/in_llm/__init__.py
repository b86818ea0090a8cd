"""Methods that prune inside the language model, and their composition with those before it."""

from fsr.methods.in_llm.base import Choice, InsideMethod, View
from fsr.methods.in_llm.chain import Chain
from fsr.methods.in_llm.dart import Dart
from fsr.methods.in_llm.fastv import FastV
from fsr.methods.in_llm.pyramiddrop import PyramidDrop
from fsr.methods.in_llm.sparsevlm import SparseVLM

__all__ = ["Chain", "Choice", "Dart", "FastV", "InsideMethod", "PyramidDrop", "SparseVLM", "View"]
