"""Which pictures were encoded, so that features of one are never given to a prompt that brings another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from fsr.adapters.base import Adapter
from fsr.errors import UsageError

__all__ = ["Fingerprints", "fingerprint"]


def fingerprint(arguments: Mapping[str, Any]) -> bytes:
    """Of the vision arguments of one picture: its pixels and sizes."""
    state = blake2b(digest_size=16)
    for name in sorted(arguments):
        value = torch.as_tensor(arguments[name]).detach()
        state.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        if value.numel():
            state.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.digest()


@dataclass(frozen=True)
class Fingerprints:
    """Of the pictures of one call.

    each: one per picture, None where the family packs them so that they cannot be told apart; together: one for all,
    None once some were taken. given: the very arguments; the same ones need no second look.
    """

    each: tuple[bytes, ...] | None = None
    together: bytes | None = None
    given: tuple[Any, ...] = ()

    @classmethod
    def of(cls, adapter: Adapter, inputs: Mapping[str, Any]) -> Fingerprints:
        """Read every pixel once."""
        parts, given = adapter.apart(inputs), adapter.vision_arguments(inputs)
        if parts is None:
            return cls(together=fingerprint(given), given=_state(given))
        return cls(each=tuple(map(fingerprint, parts)), given=_state(given))

    def take(self, pictures: Sequence[int]) -> Fingerprints:
        """Those of some pictures, in another order."""
        return Fingerprints(each=None if self.each is None else tuple(self.each[i] for i in pictures))

    def check(self, adapter: Adapter, inputs: Mapping[str, Any]) -> None:
        """Refuse inputs that bring other pictures; inputs without pixels pass, and what cannot be told.

        Raises:
            UsageError: the pictures differ, or their number does.
        """
        if (self.each is None and self.together is None) or not adapter.has_pixels(inputs):
            return
        arguments = _state(adapter.vision_arguments(inputs))
        if len(arguments) == len(self.given) and all(
            a is b or (isinstance(a, int) and a == b) for a, b in zip(arguments, self.given)
        ):
            return
        theirs = Fingerprints.of(adapter, inputs)
        if self.each is not None and theirs.each is not None and len(self.each) == len(theirs.each):
            wrong = [i for i, (a, b) in enumerate(zip(self.each, theirs.each)) if a != b]
            if not wrong:
                return
            which = f"picture {wrong[0]} of {len(self.each)}, counted from 0, is another"
        elif self.each is None and theirs.each is None and self.together == theirs.together:
            return
        else:
            which = "they differ" if self.each is None else f"{len(self.each)} were encoded"
        raise UsageError(
            f"these inputs do not bring the pictures that encode() saw ({which}): encode() them, or take() the right "
            "ones in the order of this prompt."
        )


def _state(arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments themselves, and how often each tensor was written to."""
    tracked = {n: isinstance(v, Tensor) and not v.is_inference() for n, v in arguments.items()}
    return tuple(x for n, v in arguments.items() for x in (v, v._version if tracked[n] else 0))
