"""What only the engine can find costs that request alone: a picture whose features or scores are not finite.

An error would end the engine for everybody, and the number of placeholders is settled. So this one picture keeps tokens
that are spread evenly over it, which is said in the log as an error and counted (`fsr:choices_failed_total`). Where the
features themselves are not finite, the answer is as broken as it would be unpruned.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from fsr.errors import FeatureError
from fsr.methods.base import Method
from fsr.serving.vllm.memory import Chosen
from fsr.serving.vllm.metrics import Tally
from fsr.tokens import VisualTokens

__all__ = ["picked"]


def picked(
    method: Method, pictures: Sequence[VisualTokens], keeps: Sequence[int | float], counts: Sequence[int], tally: Tally
) -> list[Chosen]:
    """The method's choice for each picture; where it has none, `counts` of its rows, evenly spread."""
    try:
        return [Chosen(s.features, s.rows) for s in method(list(pictures), list(keeps))]
    except FeatureError as error:
        if len(pictures) > 1:
            alone = zip(pictures, keeps, counts)
            return [chosen for p, keep, count in alone for chosen in picked(method, [p], [keep], [count], tally)]
        logging.getLogger("vllm.fsr").error("a picture could not be pruned (%s): it keeps evenly spread tokens", error)
        tally.failed()
        return [_spread(pictures[0], counts[0])]


def _spread(picture: VisualTokens, count: int) -> Chosen:
    """`count` of N rows; those that are no patches (newlines) fall first."""
    rows = torch.arange(picture.count, device=picture.features.device)
    if picture.structural is not None:
        rows = rows[~picture.structural.to(rows.device)]
    at = (torch.arange(count, device=rows.device) * len(rows)) // count
    return Chosen(picture.features[rows[at]], rows[at])
