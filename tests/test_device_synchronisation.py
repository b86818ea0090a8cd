"""How often the host waits for the device: never inside `pick`, twice in a call of a method."""

from __future__ import annotations

import pytest
import torch

from fsr import kernels
from fsr.errors import FeatureError
from fsr.kernels import reference
from fsr.methods import FSR, get
from fsr.tokens import Geometry, VisualTokens
from simulated_device import SimulatedDevice

METHODS = [
    FSR(keep=16),
    FSR(keep=16, normalise="rank", distance="encoder"),
    FSR(keep=16, normalise="softmax", max_focus=0.0),
    get("fsr-paper", keep=16),
    get("fsr-paper", keep=16, focus_mass="top_k", max_focus=0.5),
    get("cdpruner", keep=16),
    get("divprune", keep=16),
    get("scope", keep=16),
    get("farthest", keep=16),
]


def image(seed, n=60, tiles=1, structural=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.zeros(n, dtype=torch.bool)
    mask[torch.randperm(n, generator=g)[:structural]] = True
    tile = torch.arange(n) * tiles // n
    return VisualTokens(
        features=torch.randn(n, 24, generator=g),
        saliency=torch.rand(n, generator=g).masked_fill(mask, torch.nan),
        relevance=torch.rand(n, generator=g).masked_fill(mask, torch.nan),
        encoder=torch.randn(n, 20, generator=g),
        geometry=Geometry(torch.rand(n, 4, generator=g), tile.masked_fill(mask, -1), torch.zeros_like(tile)),
        structural=mask if structural else None,
    )


def moved(tokens, put):
    """The same image, every tensor passed through `put`."""
    g = tokens.geometry
    return VisualTokens(
        features=put(tokens.features),
        saliency=put(tokens.saliency),
        relevance=put(tokens.relevance),
        encoder=put(tokens.encoder),
        geometry=None if g is None else Geometry(put(g.boxes), put(g.tile), put(g.frame)),
        structural=None if tokens.structural is None else put(tokens.structural),
    )


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(kernels, "_backend", lambda device: reference)
    return SimulatedDevice(monkeypatch)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_picking_never_waits(method, device):
    plain = image(0)
    batch = VisualTokens(plain.features[None], plain.saliency[None], plain.relevance[None], encoder=plain.encoder[None])
    expected = method.pick(batch, 16)
    there = moved(batch, device.put)
    with device:
        picks = method.pick(there, 16)
    assert (device.waits, device.sent) == ([], [])
    assert torch.equal(picks.rows.held, expected.rows)
    if expected.features is not None:
        assert torch.equal(picks.features.held, expected.features)


def test_the_device_tells_what_waits(device):
    x = device.put(torch.arange(6.0))
    with device:
        for wait in (
            lambda: float(x.sum()),
            lambda: x[x > 2],
            lambda: x.nonzero(),
            lambda: bool((x > 2).any()),
            lambda: torch.equal(x, x),
            lambda: x.unique(),
            lambda: int(x[2]),
            lambda: x.cpu(),
            lambda: x.masked_select(x > 2),
        ):
            before = len(device.waits)
            wait()
            assert len(device.waits) > before, wait
        torch.ones(1).to("meta")
        with pytest.raises(AssertionError, match="Python numbers"):
            x + torch.tensor([1.0], device="meta")
    assert len(device.sent) == 1


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("per", ["image", "tile"])
def test_a_call_waits_twice_for_all_images(method, per, device):
    method = type(method)(**{**vars(method), "per": per, "keep": 8})
    images = [image(0, tiles=3), image(1, tiles=3), image(2, tiles=3, structural=5), image(3, n=8)]
    expected = method(images)
    there = [moved(tokens, device.put) for tokens in images]
    with device:
        found = method(there)
    assert len(device.waits) <= 2, device.waits
    for a, b in zip(found, expected):
        assert torch.equal(a.rows.held, b.rows) and torch.equal(a.features.held, b.features)
        assert (a.focus_wanted, a.certificate, a.notes) == (b.focus_wanted, b.certificate, b.notes)
        assert (a.radii is None) == (b.radii is None) and (a.radii is None or torch.equal(a.radii, b.radii))


@pytest.mark.parametrize("what", ["features", "saliency", "encoder"])
def test_errors_keep_their_words(what, device):
    images = [image(0), image(1, structural=5)]
    values = getattr(images[1], what)
    values[int((~images[1].structural).nonzero()[3])] = torch.inf
    there = [moved(tokens, device.put) for tokens in images]
    method = get("scope", keep=8)
    with device, pytest.raises(FeatureError, match=f"{what} holds? NaN or infinity"):
        method(there)


def test_a_sum_beyond_float32_is_no_error():
    tokens = image(0)
    tokens.saliency[:] = 3e38
    (selection,) = get("farthest", keep=8)([tokens])
    assert selection.kept == 8
