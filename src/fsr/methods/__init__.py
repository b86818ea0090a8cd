"""Pruning methods: each knows tensors and no models."""

from fsr.methods.average_pool import AveragePool
from fsr.methods.base import Method, available, get, register
from fsr.methods.cdpruner import CDPruner
from fsr.methods.chain import Chain
from fsr.methods.dart import Dart
from fsr.methods.divprune import DivPrune
from fsr.methods.downscale import Downscale
from fsr.methods.farthest import Farthest
from fsr.methods.fastervlm import FasterVLM
from fsr.methods.fastv import FastV
from fsr.methods.fsr import FSR
from fsr.methods.fsr_paper import PaperFSR
from fsr.methods.hawk import HAWK
from fsr.methods.hired import HiRED
from fsr.methods.holov import HoloV
from fsr.methods.in_llm import InLLMMethod
from fsr.methods.late import Late
from fsr.methods.picture_budgets import by_age
from fsr.methods.prumerge import PruMerge
from fsr.methods.pyramiddrop import PyramidDrop
from fsr.methods.random import Random
from fsr.methods.relevance import Relevance
from fsr.methods.saliency import Saliency
from fsr.methods.scope import Scope
from fsr.methods.sparsevlm import SparseVLM
from fsr.methods.trim import TRIM
from fsr.methods.uniform_grid import UniformGrid
from fsr.methods.visionzip import VisionZip
from fsr.methods.vispruner import VisPruner
from fsr.methods.vscan import VScan

__all__ = [
    "FSR",
    "HAWK",
    "TRIM",
    "AveragePool",
    "CDPruner",
    "Chain",
    "Dart",
    "DivPrune",
    "Downscale",
    "Farthest",
    "FastV",
    "FasterVLM",
    "HiRED",
    "HoloV",
    "InLLMMethod",
    "Late",
    "Method",
    "PaperFSR",
    "PruMerge",
    "PyramidDrop",
    "Random",
    "Relevance",
    "Saliency",
    "Scope",
    "SparseVLM",
    "UniformGrid",
    "VScan",
    "VisPruner",
    "VisionZip",
    "available",
    "by_age",
    "get",
    "register",
]
