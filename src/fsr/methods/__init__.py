"""Pruning methods: each knows tensors and no models."""

from fsr.methods.base import Method, available, get, register
from fsr.methods.fsr import FSR
from fsr.methods.inside import Chain, Dart, FastV, InsideMethod, PyramidDrop, SparseVLM

__all__ = [
    "FSR",
    "Chain",
    "Dart",
    "FastV",
    "InsideMethod",
    "Method",
    "PyramidDrop",
    "SparseVLM",
    "available",
    "get",
    "register",
]
