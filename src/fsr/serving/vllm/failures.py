"""What only the engine can find costs that request alone: a picture whose features or scores are not finite.

An error here would end the engine for everybody, and the number of placeholders is settled. So the step goes on with
tokens that are spread evenly over the picture, zeros in place of what is not finite (NaN could reach other requests,
through kernels that scale a whole batch and through blocks of the KV cache that are used again). Nobody reads that
answer: the picture's name goes to the scheduler, which ends every request that shows it (see `scheduling`). The log
says so as an error, and it is counted (`fsr:choices_failed_total`).
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence, Set
from pathlib import Path

import torch

from fsr.errors import FeatureError
from fsr.methods.base import Method
from fsr.serving.vllm.memory import Chosen
from fsr.tokens import VisualTokens

__all__ = ["FailedPictures", "picked"]

LIMIT = 8192
_log = logging.getLogger("vllm.fsr")


class FailedPictures:
    """Names of pictures that could not be chosen from, told by the model's process to the scheduler's.

    vLLM gives a model no way to its scheduler; the two may be one process or two on one machine. So a file in the
    folder for temporary files carries the names. It does not exist before the first one.

    engine: the same for both sides, and for no other engine of this machine.
    """

    def __init__(self, engine: str) -> None:
        self.path = Path(tempfile.gettempdir()) / f"fsr-failed-{engine}"
        self._names: OrderedDict[str, None] = OrderedDict()
        self._read = 0

    def add(self, name: str) -> None:
        """The model's side. What cannot be written is said in the log: the engine goes on."""
        try:
            with open(self.path, "a", encoding="ascii", opener=_own) as file:
                file.write(f"{name}\n")
        except OSError as error:
            _log.error("the scheduler cannot be told (%s): the request with picture %s is answered", error, name)

    def names(self) -> Set[str]:
        """The scheduler's side: the newest `LIMIT` names."""
        try:
            if self.path.stat().st_size > self._read:
                with open(self.path, encoding="ascii") as file:
                    file.seek(self._read)
                    told = file.read()
                self._read += len(told)
                self._names.update(dict.fromkeys(told.split()))
                while len(self._names) > LIMIT:
                    self._names.popitem(last=False)
        except FileNotFoundError:
            pass
        return self._names.keys()

    def close(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def picked(
    method: Method,
    asked: Sequence[tuple[VisualTokens, int | float, int]],
    failed: Callable[[int, FeatureError], None],
) -> list[Chosen]:
    """The method's choice for each (picture, budget, K). Where it has none, `failed` is called with the picture's
    number, and K of its rows stand there, evenly spread."""
    try:
        return _chosen(method, asked)
    except FeatureError:
        pass  # of one or several: each alone
    out = []
    for number, one in enumerate(asked):
        try:
            out += _chosen(method, [one])
        except FeatureError as error:
            failed(number, error)
            picture, _, count = one
            out.append(_spread(picture, count))
    return out


def _chosen(method: Method, asked: Sequence[tuple[VisualTokens, int | float, int]]) -> list[Chosen]:
    selections = method([picture for picture, _, _ in asked], [keep for _, keep, _ in asked])
    return [Chosen(s.features, s.rows) for s in selections]


def _spread(picture: VisualTokens, count: int) -> Chosen:
    """`count` of N rows; those that are no patches (newlines) fall first."""
    rows = torch.arange(picture.count, device=picture.features.device)
    if picture.structural is not None:
        rows = rows[~picture.structural.to(rows.device)]
    at = (torch.arange(count, device=rows.device) * len(rows)) // count
    return Chosen(picture.features[rows[at]].nan_to_num(0.0, 0.0, 0.0), rows[at], failed=True)


def _own(path: str, flags: int) -> int:
    """Readable for this user only, and no link of somebody else's."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)
