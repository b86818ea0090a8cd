"""Positions of kept tokens and passes of the tower, by the functions themselves (an engine takes minutes)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines")

from fsr.errors import UsageError
from fsr.serving.vllm.mrope import MRopeVision, pack_places, unpack_places
from fsr.serving.vllm.settings import EngineSettings
from fsr.serving.vllm.vision import PrunedVision, passes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_place_survives_the_trip(dtype):
    places = torch.tensor([0, 1, 127, 128, 129, 255, 256, 257, 1000, 4095, 32767])
    y, x = unpack_places(pack_places(places, places.flip(0), dtype))
    assert torch.equal(y, places) and torch.equal(x, places.flip(0))


def test_passes_stay_within_the_tower_s_budget():
    assert passes([100, 100, 100], 1000) == [(0, 3)]
    assert passes([100, 100, 100], 200) == [(0, 2), (2, 3)]
    assert passes([900, 100, 950, 40, 10], 1000) == [(0, 2), (2, 5)]
    assert passes([5000, 10, 5000], 1000) == [(0, 1), (1, 2), (2, 3)]  # one that is larger goes alone
    assert passes([], 1000) == []


@pytest.mark.parametrize("relevance", ["first-layer", "embedding"])
def test_whole_weights_are_not_read_with_tensor_parallelism(relevance):
    made = EngineSettings.of(SimpleNamespace(fsr={"relevance": relevance}), True)
    model = SimpleNamespace(fsr_settings=made, _fsr_tensor_parallel=2, tower_name="tower", tower=None)
    with pytest.raises(UsageError, match="not with tensor parallelism"):
        PrunedVision._scorer(model)


@dataclass(frozen=True)
class Place:
    offset: int
    length: int
    is_embed: Any = None


@dataclass(frozen=True)
class Medium:
    modality: str
    mm_position: Place
    data: Any = None


def picture(offset, length, rows, cols):
    grid = SimpleNamespace(data=torch.tensor([1, 2 * rows, 2 * cols]))
    return Medium("image", Place(offset, length), {"image_grid_thw": grid})


class Numbered:
    """Text counts on; a picture's grid of rows and columns, then text after the larger of the two: as Qwen numbers."""

    def get_mrope_input_positions(self, tokens, features):
        out, at, done = [], 0, 0
        for f in features:
            start = f.mm_position.offset
            out.append((at + torch.arange(start - done)).expand(3, -1))
            at += start - done
            if f.modality == "image":
                rows, cols = (f.data["image_grid_thw"].data[1:] // 2).tolist()
                grid = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(cols)).T
                out.append(at + grid)
                at += max(rows, cols)
                assert f.mm_position.length == rows * cols
            else:
                out.append((at + torch.arange(f.mm_position.length)).expand(3, -1))
                at += f.mm_position.length
            done = start + f.mm_position.length
        out.append((at + torch.arange(len(tokens) - done)).expand(3, -1))
        positions = torch.cat(out, -1)
        return positions, int(positions.max()) + 1 - len(tokens)


class Model(MRopeVision, Numbered):
    def __init__(self):
        self.visual = SimpleNamespace(spatial_merge_size=2)


def test_text_goes_on_after_the_whole_grid():
    """Three tokens of a 4 x 6 picture, a clip that stays whole, all of a 2 x 2 picture, in one prompt."""
    features = [picture(2, 3, 4, 6), Medium("video", Place(6, 2)), picture(9, 4, 2, 2)]
    tokens = [1, 1, 7, 7, 7, 1, 8, 8, 1, 7, 7, 7, 7, 1]
    positions, delta = Model().get_mrope_input_positions(tokens, list(reversed(features)))
    # Each picture's tokens wait at its first position; rows and columns are added when they are known.
    assert positions[0].tolist() == [0, 1, 2, 2, 2, 8, 9, 10, 11, 12, 12, 12, 12, 14]
    assert torch.equal(positions[0], positions[1]) and torch.equal(positions[0], positions[2])
    assert len(tokens) + delta == 15
    whole = [replace(features[0], mm_position=Place(2, 24))]
    positions, delta = Model().get_mrope_input_positions([1, 1] + [7] * 24, whole)
    assert positions.shape == (3, 26) and 26 + delta == 8  # a picture at the end: the answer begins after its grid
