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


def picked(method: Method, asked: Sequence[tuple[VisualTokens, int | float, int]], tally: Tally) -> list[Chosen]:
    """The method's choice for each (picture, budget, K); where it has none, K of its rows, evenly spread."""
    try:
        selections = method([picture for picture, _, _ in asked], [keep for _, keep, _ in asked])
        return [Chosen(s.features, s.rows) for s in selections]
    except FeatureError as error:
        if len(asked) > 1:
            return [chosen for one in asked for chosen in picked(method, [one], tally)]
        logging.getLogger("vllm.fsr").error("a picture could not be pruned (%s): it keeps evenly spread tokens", error)
        tally.failed()
        picture, _, count = asked[0]
        return [_spread(picture, count)]


def _spread(picture: VisualTokens, count: int) -> Chosen:
    """`count` of N rows; those that are no patches (newlines) fall first."""
    rows = torch.arange(picture.count, device=picture.features.device)
    if picture.structural is not None:
        rows = rows[~picture.structural.to(rows.device)]
    at = (torch.arange(count, device=rows.device) * len(rows)) // count
    return Chosen(picture.features[rows[at]], rows[at])
