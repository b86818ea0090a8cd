"""Pruning methods: each knows tensors and no models."""

from fsr.methods.base import Method, available, get, register
from fsr.methods.fsr import FSR

__all__ = ["FSR", "Method", "available", "get", "register"]
