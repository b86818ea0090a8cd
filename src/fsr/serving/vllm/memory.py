"""A picture keeps its choice: the rows that were kept, remembered so that encoding it again keeps the same ones.

The engine's caches live on their own: a picture's encoder output may be evicted while KV blocks of the prompt's prefix
survive. When it is encoded again, perhaps beside other pictures, sums are rounded in another order, and two tokens
with nearly the same score can change places (in bfloat16 often). The new tokens would then stand beside KV blocks of
the old ones, and one prompt would be a mixture of two choices. So the first choice is kept, and reused.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from fsr.serving.vllm.settings import Request

__all__ = ["ChoiceMemory", "Chosen", "Remembered"]

# Rows of 64 tokens take 256 bytes. Methods that merge tokens need their features too: [K, D], a megabyte at most.
ENTRIES, BYTES = 8192, 256 << 20


@dataclass(frozen=True)
class Chosen:
    """One picture: features [K, D] and the rows long [K] (of N) that they stand for.

    failed: no method chose them (see `failures`).
    """

    features: Tensor
    rows: Tensor
    failed: bool = False


@dataclass(frozen=True)
class Remembered:
    """One choice, on the CPU. rows: int32 [K]. features: [K, D] where the method merged tokens, else None."""

    rows: Tensor
    features: Tensor | None

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(t.nbytes for t in (self.rows, self.features) if t is not None)

    def again(self, whole: Tensor) -> Chosen:
        """The same choice from a new encoding [N, D]."""
        rows = self.rows.to(whole.device, torch.long)
        return Chosen(whole[rows] if self.features is None else self.features.to(whole), rows)


class ChoiceMemory:
    """What was kept of each (picture, budget, question); the method is the engine's. The least recently used goes
    first, beyond `entries` choices or `limit` bytes."""

    def __init__(self, entries: int = ENTRIES, limit: int = BYTES) -> None:
        self._entries, self._limit = entries, limit
        self._held: OrderedDict[Request, Remembered] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, request: Request) -> Remembered | None:
        """The choice of an earlier encoding, or None. Pictures without a name (the engine's own trial runs) have
        none."""
        if (found := self._held.get(request)) is not None:
            self._held.move_to_end(request)
        return found

    def put(self, request: Request, chosen: Chosen, whole: Tensor) -> None:
        """Remember what was chosen from `whole` [N, D]; what failed is tried again."""
        if not request.picture or request in self._held or chosen.failed:
            return
        merged = not torch.equal(chosen.features, whole[chosen.rows])
        made = Remembered(chosen.rows.to("cpu", torch.int32), chosen.features.detach().cpu() if merged else None)
        self._held[request] = made
        self._bytes += made.size
        while len(self._held) > self._entries or self._bytes > self._limit:
            self._bytes -= self._held.popitem(last=False)[1].size
