"""One file per model family; importing this package registers all of them."""

from fsr.adapters import llava
from fsr.adapters.base import Adapter, Encoded, TowerStates, Units
from fsr.adapters.registry import available, find, register

__all__ = ["Adapter", "Encoded", "TowerStates", "Units", "available", "find", "llava", "register"]
