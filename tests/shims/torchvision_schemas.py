"""Import this before torchvision where its wheel from PyPI (built for CUDA) stands next to a CPU build of torch.

Its compiled operators cannot be loaded then. torchvision lives with that, but for two operators whose fake kernels it
registers in any case: with their schemas declared, the image transforms (plain Python on torch) are the genuine ones.
Detection operators stay absent. Where the compiled half does load, nothing is declared. For tests only.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

_found = find_spec("torchvision")
if _found is None or _found.origin is None:
    raise ImportError("no torchvision on the path")
try:
    for _compiled in Path(_found.origin).parent.glob("_C.*"):
        torch.ops.load_library(str(_compiled))
except OSError:
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
