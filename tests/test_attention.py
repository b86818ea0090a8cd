"""Saliency from the taps against attention matrices of the eager implementation."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import (
    CLIPVisionModel,
    Qwen2_5_VLConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tiny
from family_models_recent import MapAttention
from fsr import UnsupportedModelError
from fsr.adapters import find
from fsr.signals.attention import cls_attention, received_attention
from fsr.signals.tap import attention_layers, eager_if_compiled, record_layers


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(3, 3, tiny.IMAGE, tiny.IMAGE, generator=torch.Generator().manual_seed(0))


def towers(kind):
    if kind == "clip":
        config, cls = tiny.clip_vision_config(), CLIPVisionModel
    else:
        sizes = dict(hidden_size=32, intermediate_size=48, image_size=tiny.IMAGE, patch_size=tiny.PATCH)
        config = SiglipVisionConfig(**sizes, num_hidden_layers=3, num_attention_heads=4)
        cls = SiglipVisionModel
    config._attn_implementation = "sdpa"
    fast = tiny.sharpen(cls(config), 2)
    slow = copy.deepcopy(fast)
    slow.set_attn_implementation("eager")
    return fast, slow


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, -2, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cls_row(pixels, layer, dtype):
    fast, slow = (t.to(dtype) for t in towers("clip"))
    with record_layers(fast, [layer]) as states:
        fast(pixels.to(dtype))
    got = states(layer)
    ours = cls_attention(got.q, got.k, got.scale)
    theirs = slow(pixels.to(dtype), output_attentions=True).attentions[layer].float()[:, :, 0, 1:].mean(1)
    assert ours.shape == (3, tiny.TOKENS) and ours.dtype == torch.float32
    assert (ours - theirs).abs().max() < (1e-6 if dtype == torch.float32 else 2e-2)


@torch.no_grad()
@pytest.mark.parametrize("block", [5, 128])
def test_received(pixels, block):
    fast, slow = towers("siglip")
    with record_layers(fast, [-2]) as states:
        fast(pixels)
    got = states(-2)
    ours = received_attention(got.q, got.k, got.scale, block=block)
    theirs = slow(pixels, output_attentions=True).attentions[-2].mean(1).mean(1)
    assert (ours - theirs).abs().max() < 1e-6
    assert torch.allclose(ours.sum(-1), torch.ones(3))


def test_received_in_segments():
    """Packed pictures: each segment is what it would be alone."""
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 4, 11, 8, generator=g)
    ours = received_attention(q, k, 0.3, torch.tensor([0, 4, 4, 11]))
    alone = [received_attention(q[:, :, a:b], k[:, :, a:b], 0.3) for a, b in ((0, 4), (4, 11))]
    assert torch.allclose(ours, torch.cat(alone, 1), atol=1e-7)


def test_shared_key_heads():
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 4, 7, 8, generator=g), torch.randn(1, 2, 7, 8, generator=g)
    wide = k.repeat_interleave(2, 1)
    assert torch.equal(cls_attention(q, k, 0.3), cls_attention(q, wide, 0.3))
    assert torch.equal(received_attention(q, k, 0.3), received_attention(q, wide, 0.3))


@torch.no_grad()
def test_packed_rotary_tower(monkeypatch):
    """Qwen2.5-VL: one qkv projection, rotary embedding, pictures packed; q and k as attention gets them."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as module

    config = Qwen2_5_VLConfig(
        vision_config=dict(
            depth=3,
            hidden_size=32,
            num_heads=4,
            intermediate_size=48,
            out_hidden_size=32,
            patch_size=8,
            window_size=32,
            fullatt_block_indexes=[1],
            spatial_merge_size=2,
            temporal_patch_size=2,
        )
    ).vision_config
    config._attn_implementation = "sdpa"
    tower = tiny.sharpen(module.Qwen2_5_VisionTransformerPretrainedModel._from_config(config), 0)
    grid = torch.tensor([[1, 6, 8], [1, 4, 4]])
    pixels = torch.randn(int(grid.prod(-1).sum()), 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(1))
    seen = []
    inner = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(layer, q, k, v, **kwargs):
        seen.append((layer, q, k))
        return inner(layer, q, k, v, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", spy)
    with record_layers(tower, [1]) as states:
        tower(pixels, grid_thw=grid)
    got = states(1)
    layer = attention_layers(tower)[1]
    assert torch.equal(got.q, torch.cat([q for m, q, _ in seen if m is layer], 2))
    assert torch.equal(got.k, torch.cat([k for m, _, k in seen if m is layer], 2))
    assert got.segments.tolist() == [0, 48, 64]
    ours = received_attention(got.q, got.k, got.scale, got.segments)
    rows = [(q @ k.mT * got.scale).softmax(-1).mean((0, 1, 2)) for m, q, k in seen if m is layer]
    assert (ours[0] - torch.cat(rows)).abs().max() < 1e-6


@torch.no_grad()
def test_adapter_reads_the_layer_of_the_features(single):
    """The layer whose output the language model reads, whichever the config names; all signals of the vocabulary."""
    for feature_layer in (-2, -1, 2):
        fast, slow = (tiny.llava(attention=a, feature_layer=feature_layer) for a in ("sdpa", "eager"))
        names = {"saliency", "keys", "shallow_saliency", "first_saliency", "last_saliency", "last_keys", "encoder"}
        unit = find(fast).encode(single, frozenset(names))[0].units[0]
        out = slow.model.vision_tower(single["pixel_values"], output_attentions=True, output_hidden_states=True)
        layer = feature_layer if feature_layer < 0 else feature_layer - 1

        def row(i, out=out):
            return out.attentions[i][0, :, 0, 1:].mean(0)

        assert torch.allclose(unit.saliency, row(layer), atol=1e-6)
        assert torch.allclose(unit.extra["first_saliency"], row(0), atol=1e-6)
        assert torch.allclose(unit.encoder, out.hidden_states[feature_layer][0, 1:], atol=1e-5)
        assert unit.extra["keys"].shape == (tiny.TOKENS, 8) and unit.extra["last_keys"].shape == (tiny.TOKENS, 32)
        assert set(unit.extra) == names - {"saliency", "encoder"}
        last = slow.model.vision_tower.encoder.layers[-1]
        h = last.layer_norm1(out.hidden_states[-2])
        q, k = last.self_attn.q_proj(h), last.self_attn.k_proj(h)
        one = (q[0, :1] @ k[0].T / 32**0.5).softmax(-1)[0, 1:]
        assert torch.allclose(unit.extra["last_saliency"], one, atol=1e-6)
        assert torch.allclose(unit.extra["last_keys"], k[0, 1:], atol=1e-5)


def eager_maps(tower, run):
    """Attention matrices of every layer of a copy that runs eagerly, by hooks of the test's own: per layer
    [B, H, T, T]."""
    slow, maps = copy.deepcopy(tower), []
    slow.set_attn_implementation("eager")
    handles = [m.register_forward_hook(lambda m, a, out: maps.append(out[1])) for m in attention_layers(slow)]
    run(slow)
    for handle in handles:
        handle.remove()
    return maps


@torch.no_grad()
def test_rotary_in_two_dimensions_and_masks():
    """Towers whose rotary forms are their own: Pixtral (pictures apart by a mask), Gemma 4 (padding), Llama 4 ([CLS]
    last)."""
    from transformers import Gemma4VisionConfig, Gemma4VisionModel, PixtralVisionConfig, PixtralVisionModel
    from transformers.models.llama4.configuration_llama4 import Llama4VisionConfig
    from transformers.models.llama4.modeling_llama4 import Llama4VisionModel

    size = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
    size |= dict(attn_implementation="sdpa")
    noise = torch.Generator().manual_seed(5)

    tower = tiny.sharpen(PixtralVisionModel(PixtralVisionConfig(**size, image_size=64, patch_size=8)), 3)
    pictures = torch.randn(2, 3, 40, 32, generator=noise)
    run = lambda t: t(pictures, image_sizes=[(40, 32), (24, 16)])
    with record_layers(tower, [1]) as states:
        run(tower)
    got, expected = states(1), eager_maps(tower, run)[1][0].mean(0)
    ours = received_attention(got.q, got.k, got.scale, got.segments, got.mask, block=7)[0]
    assert torch.allclose(ours, torch.cat([expected[:20, :20].mean(0), expected[20:, 20:].mean(0)]), atol=1e-6)
    assert expected[:20, 20:].abs().max() == 0 and ours.sum() == pytest.approx(2)

    config = Gemma4VisionConfig(
        **size, head_dim=8, num_key_value_heads=2, patch_size=4, pooling_kernel_size=2, position_embedding_size=64
    )
    tower = tiny.sharpen(Gemma4VisionModel(config), 3)
    places = torch.full((2, 16, 2), -1)
    for i, (rows, cols) in enumerate(((4, 4), (2, 4))):
        y, x = torch.arange(rows).repeat_interleave(cols), torch.arange(cols).repeat(rows)
        places[i, : rows * cols] = torch.stack([x, y], -1)
    pictures = torch.rand(2, 16, 48, generator=noise)
    run = lambda t: t(pictures, pixel_position_ids=places)
    with record_layers(tower, [1]) as states:
        run(tower)
    got, expected = states(1), eager_maps(tower, run)[1].mean(1)
    ours = received_attention(got.q, got.k, got.scale, got.segments, got.mask, block=7)
    assert torch.allclose(ours[0], expected[0].mean(0), atol=1e-6)
    assert torch.allclose(ours[1, :8], expected[1, :8, :8].mean(0), atol=1e-6) and ours[1, 8:].abs().max() == 0

    config = Llama4VisionConfig(
        **{**size, "intermediate_size": 128},  # what its pixel shuffle makes
        image_size=32,
        patch_size=8,
        projector_input_dim=32,
        projector_output_dim=32,
        vision_output_dim=32,
    )
    tower = tiny.sharpen(Llama4VisionModel(config), 3)
    run = lambda t: t(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    with record_layers(tower, [1]) as states:
        run(tower)
    got = states(1)
    ours = received_attention(got.q, got.k, got.scale, got.segments, got.mask)
    assert torch.allclose(ours, eager_maps(tower, run)[1].mean((1, 2)), atol=1e-6)


def test_threads_do_not_mix(pixels):
    tower, _ = towers("clip")

    @torch.no_grad()
    def one(i):
        with record_layers(tower, [-2]) as states:
            tower(pixels[i % 3][None])
        got = states(-2)
        return cls_attention(got.q, got.k, got.scale)

    expected = [one(i) for i in range(3)]
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(r, expected[i % 3]) for i, r in enumerate(pool.map(one, range(48))))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in attention_layers(tower))
    assert "get_interface" not in ALL_ATTENTION_FUNCTIONS.__dict__


@torch.no_grad()
def test_attention_over_maps():
    """Convolutional towers: attention received by every cell, and no guess where keys are of a coarser map."""
    tower = tiny.sharpen(torch.nn.Sequential(MapAttention(16), MapAttention(16)), 2)
    x = torch.randn(2, 16, 3, 5, generator=torch.Generator().manual_seed(0))
    with record_layers(tower, [1]) as states:
        tower(x)
    layer, second = states(1), tower[1]
    assert layer.q.shape == (2, 4, 15, 8) and layer.k.shape == (2, 1, 15, 8)
    expected = torch.zeros(2, 15)
    middle = tower[0](x)
    for head in range(4):
        q, k = second.query(middle)[:, 8 * head : 8 * head + 8].flatten(2), second.key(middle).flatten(2)
        expected += torch.einsum("bdt,bds->bts", q, k).mul(second.scale).softmax(-1).mean(1) / 4
    assert torch.allclose(received_attention(layer.q, layer.k, layer.scale), expected, atol=1e-6)
    for part in (second.key, second.value):
        part.add_module("pool", torch.nn.AvgPool2d(2))
    before = [len(m._forward_hooks) for m in tower.modules()]
    with pytest.raises(UnsupportedModelError, match=r"from a map of \(3, 5\) to one of \(1, 2\)"):
        with record_layers(tower, [1]):
            tower(x)
    assert [len(m._forward_hooks) for m in tower.modules()] == before


def test_missing_states_are_an_error(pixels):
    tower, _ = towers("clip")
    with record_layers(tower, [-2]) as states:
        pass
    with pytest.raises(UnsupportedModelError, match="no queries and keys"):
        states(-2)
    with pytest.raises(UnsupportedModelError, match="layer 7"), record_layers(tower, [7]):
        pass
    with pytest.raises(UnsupportedModelError, match="0 attention layers"), record_layers(torch.nn.Linear(2, 2), [-2]):
        pass
    compiled = torch.compile(tower, backend="eager", fullgraph=False)
    with torch.no_grad(), eager_if_compiled(compiled), record_layers(compiled, [-2]) as states:
        compiled(pixels)
    assert states(-2).q.shape == (3, 4, 1 + tiny.TOKENS, 8)


def test_failures_leave_nothing_behind(pixels):
    """A tower that breaks off inside the tapped layer, and a layer whose attention does not go through Transformers."""
    tower, _ = towers("clip")
    layer = attention_layers(tower)[1]
    layer.out_proj.register_forward_hook(lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError), record_layers(tower, [1, 1]):
        tower(pixels)
    own = torch.nn.Sequential(torch.nn.Identity())
    own.qkv = torch.nn.Identity()
    with record_layers(own, [0]) as states:
        own(pixels)
    with pytest.raises(UnsupportedModelError, match="computes attention by itself"):
        states(0)
    assert "get_interface" not in ALL_ATTENTION_FUNCTIONS.__dict__


def test_runs_are_stacked(pixels):
    tower, _ = towers("clip")
    with torch.no_grad(), record_layers(tower, [-2]) as states:
        for p in pixels:
            tower(p[None])
    with torch.no_grad(), record_layers(tower, [-2]) as whole:
        tower(pixels)
    assert torch.allclose(states(-2).q, whole(-2).q, atol=1e-5)
