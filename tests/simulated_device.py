"""A device that is not there: tensors that say they live on it hold real numbers on the CPU, so that ordinary code runs
with ordinary results while every wait for the device, every transfer and every mix of devices is seen.

    with SimulatedDevice() as device:
        out = method([tokens_of(device)])
    device.waits     # what made the host wait: values read, shapes that depend on data, copies to the host

It calls itself "meta", the one device besides the CPU that every build of torch lets Python index.
"""

from __future__ import annotations

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

PLACE = torch.device("meta")


class There(torch.Tensor):
    """A tensor on the pretended device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held):
        out = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=PLACE, requires_grad=False
        )
        out.held = held
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of `with SimulatedDevice()`")


class SimulatedDevice(TorchDispatchMode):
    """waits: operators that made the host wait, in order. sent: host tensors that were copied to the device."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.waits, self.sent, self.ops = [], [], []
        # torch.autocast knows no "meta", and these tensors have no address.
        monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())
        monkeypatch.setattr(There, "data_ptr", lambda self: self.held.data_ptr())

    def put(self, value):
        """A copy of a CPU tensor on the device."""
        return There(value.detach().clone())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        inside = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        on_device = [isinstance(x, There) for x in inside]
        target = kwargs.get("device")
        goes = torch.device(target) == PLACE if target is not None else any(on_device)
        name = str(func)
        # torch.tensor(..., device=...) is seen only here: it builds no real tensor on "meta".
        made = [x for x in inside if x.device == PLACE and not isinstance(x, There)]
        assert not made, f"{name} takes a tensor that was built from Python numbers and sent to the device"
        if any(on_device):
            self._watch(func, name, inside, goes)
        elif goes and inside:
            self.sent.append(name)
        if goes:
            self.ops.append(name)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        real = tree_map(lambda x: x.held if isinstance(x, There) else x, (args, kwargs))
        out = func(*real[0], **real[1])
        if not goes:
            return out
        # An operator in place gives back what it was given.
        known = {id(x.held): x for x in inside if isinstance(x, There)}
        return tree_map(
            lambda x: (known[id(x)] if id(x) in known else There(x)) if isinstance(x, torch.Tensor) else x, out
        )

    def _watch(self, func, name, inside, goes):
        by_data = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        if name.startswith(("aten.index", "aten._index")):
            if any(x.dtype in (torch.bool, torch.uint8) for x in inside[1:]):
                self.waits.append(f"{name} with a mask")
        elif by_data or not goes:
            self.waits.append(name)
        strangers = [x for x in inside if not isinstance(x, There) and x.dim()]
        assert not strangers or "copy" in name, f"{name} mixes devices"
