"""Where tokens lie, and that every score belongs to the token it stands beside.

The towers are silenced here: attention outputs and MLPs write nothing, so a token's feature depends on its own
patches only. Then a square
painted into a picture changes exactly the tokens whose boxes it touches, and their saliency with them.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import families
from fsr.adapters import find, qwen2_vl
from fsr.signals.tap import attention_layers

KEYS = ("pixel_values", "image_sizes", "image_grid_thw", "image_position_ids")
PACKED = ("qwen", "glm")
SALIENCY = frozenset({"saliency"})


def silenced(name):
    """A copy of the model whose tower blocks add nothing to the residual stream, and where all queries are one vector.

    With equal queries a changed patch moves its own share of attention, and the others only make room for it.
    """
    model = copy.deepcopy(families.model_of(name))
    adapter = find(model)
    layers = {id(m): m for m in attention_layers(adapter.vision_tower)}
    with torch.no_grad():
        for attention in layers.values():
            names = ("qkv", "q_proj", "q", "query")
            projection = next(getattr(attention, n) for n in names if hasattr(attention, n))
            projection = getattr(projection, "linear", getattr(projection, "proj", projection))
            width = len(projection.weight) // 3 if hasattr(attention, "qkv") else len(projection.weight)
            projection.weight[:width] = 0
            if projection.bias is None:
                projection.bias = torch.nn.Parameter(torch.zeros(len(projection.weight)))
            projection.bias[:width] = families.noise(1, width) / 4
        for parent in adapter.vision_tower.modules():
            if not any(id(child) in layers for child in parent.children()):
                continue
            for path, p in parent.named_parameters():
                leaf = path.rpartition(".")[0].removesuffix(".linear").rpartition(".")[2]
                if "query" in path or "key" in path:
                    continue
                if leaf in ("out_proj", "o_proj", "projection_layer", "proj", "fc2", "down_proj", "linear_fc2"):
                    p.zero_()
    return model


def encode(model, inputs, modality="image", signals=SALIENCY):
    adapter = find(model)
    (found,) = [e for e in adapter.encode(inputs, signals) if e.modality == modality]
    return found.units


def picture(width, height, square=None):
    """Grey, with a bright square (x0, y0, x1, y1) in pixels."""
    pixels = np.full((height, width, 3), 100, dtype=np.uint8)
    if square:
        x0, y0, x1, y1 = square
        pixels[y0:y1, x0:x1] = (255, 30, 220)
    return Image.fromarray(pixels)


def processed(name, image):
    """Pixels from the family's real picture processor (the one that needs no torchvision)."""
    import transformers

    tile = {"height": families.SIDE, "width": families.SIDE}
    if name in ("llava-next", "llava-next-video"):
        processor = transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": families.SIDE}, crop_size=tile, image_grid_pinpoints=families.PINPOINTS
        )
    elif name == "llava-onevision":
        processor = transformers.LlavaOnevisionImageProcessorPil(size=tile, image_grid_pinpoints=families.PINPOINTS)
    elif name == "gemma4":
        processor = transformers.Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
    elif name in ("mistral3", "pixtral"):
        step = {"height": 8, "width": 8} if name == "mistral3" else {"height": 4, "width": 4}
        processor = transformers.PixtralImageProcessorPil(patch_size=step, size={"longest_edge": 64})
    elif name.startswith("glm"):
        processor = transformers.Glm4vImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2,
            size={"shortest_edge": 2 * 64, "longest_edge": 2 * 64 * 64},
        )  # fmt: skip
    elif name.startswith("qwen"):
        processor = transformers.Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 64 * 64}
        )
    elif name in ("smolvlm", "idefics3"):
        kind = {"smolvlm": "SmolVLMImageProcessorPil", "idefics3": "Idefics3ImageProcessorPil"}[name]
        processor = getattr(transformers, kind)(
            size={"longest_edge": 2 * families.SIDE}, max_image_size={"longest_edge": families.SIDE}
        )
        out = processor(image, return_tensors="pt", return_row_col_info=True)
        return {"pixel_values": out["pixel_values"], "rows": out["rows"][0][0], "cols": out["cols"][0][0]}
    elif name == "llama4":  # as its processor does, which needs torchvision: black up to a canvas of 3 x 4 tiles
        side = families.SIDE
        canvas = Image.new("RGB", (4 * side, 3 * side))
        canvas.paste(image)
        corners = [(x * side, y * side) for y in range(3) for x in range(4)]
        views = [canvas.crop((x, y, x + side, y + side)) for x, y in corners]
        views.append(image.resize((side, side), Image.Resampling.BILINEAR))
        pixels = torch.stack([torch.from_numpy(np.array(v)).permute(2, 0, 1) for v in views])
        return {"pixel_values": pixels / 127.5 - 1}
    elif name.startswith("internvl"):
        processor = transformers.GotOcr2ImageProcessorPil(
            size=tile, crop_to_patches=True, min_patches=1, max_patches=6, use_thumbnail=True
        )
    else:
        processor = transformers.SiglipImageProcessorPil(size=tile)
    return dict(processor(image, return_tensors="pt"))


def with_prompt(name, model, pixels):
    """The picture's pixels with a prompt that has room for it."""
    inputs = {k: v for k, v in pixels.items() if k in KEYS}
    ids = [families.IMAGE]
    if name in ("smolvlm", "idefics3"):
        tokens = [families.IMAGE] * 4
        ids = [1]
        for row in range(pixels["rows"]):
            for col in range(pixels["cols"]):
                ids += [families.OPEN, families.LABELS + 1 + row * pixels["cols"] + col, *tokens]
            ids += [families.BREAK]
        ids += [families.BREAK, families.OPEN, families.LABELS, *tokens, families.OPEN]
    elif name == "llama4":
        tokens, line = [families.IMAGE] * 4, families.LABELS + 1
        row = [*([*tokens, line] * 3), *tokens, line + 1]
        ids = [families.OPEN, *row * 3, families.LABELS, *tokens, families.CLOSE]
    elif name.startswith("internvl"):
        ids = [1, *[families.IMAGE] * (4 * len(inputs["pixel_values"])), 2]
    inputs["input_ids"] = torch.tensor([ids])
    return inputs


def overlap(boxes, square):
    """Shares of each box's area that lie inside the square."""
    x = (torch.minimum(boxes[:, 2], square[2]) - torch.maximum(boxes[:, 0], square[0])).clamp_min(0)
    y = (torch.minimum(boxes[:, 3], square[3]) - torch.maximum(boxes[:, 1], square[1])).clamp_min(0)
    return x * y / ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp_min(1e-9)


@pytest.mark.parametrize("name", families.FAMILIES)
@torch.no_grad()
def test_a_painted_square_changes_the_tokens_that_lie_on_it(name, feature):
    model = silenced(name)
    width, height = (96, 64) if name.startswith(PACKED) else (120, 80)
    x0, y0 = width * 5 // 8, height // 4
    square = (x0, y0, x0 + width // 8, y0 + height // 6)
    plain, painted = (
        encode(model, with_prompt(name, model, processed(name, picture(width, height, s))))[0] for s in (None, square)
    )
    changed = (plain.features - painted.features).abs().amax(-1)
    changed = changed > 1e-2 * changed.max()
    where = painted.geometry  # a picture of one grey says nothing about the mosaic of its tiles
    target = torch.tensor([square[0] / width, square[1] / height, square[2] / width, square[3] / height])
    real = where.tile >= 0
    assert not changed[~real].any()
    assert changed.any() and not changed.all()
    for tile in where.tile[real].unique():
        mine = where.tile == tile
        boxes = where.boxes[mine]
        # Resizing blurs an edge by less than a token; well inside and well outside there is no doubt.
        share = overlap(boxes, target)
        grown = torch.stack([boxes[:, 0] * 2 - boxes[:, 2], boxes[:, 1] * 2 - boxes[:, 3],
                             boxes[:, 2] * 2 - boxes[:, 0], boxes[:, 3] * 2 - boxes[:, 1]], -1)  # fmt: skip
        assert changed[mine][share > 0.3].all()
        assert not changed[mine][overlap(grown, target) == 0].any()
    inside = overlap(where.boxes, target).nan_to_num(0) > 0.3
    assert inside.any()
    feature(name, "boxes checked against pixels")


@pytest.mark.parametrize("name", [n for n, f in families.FAMILIES.items() if f.clip])
@torch.no_grad()
def test_a_changed_frame_changes_the_tokens_of_that_frame(name, feature):
    model = silenced(name)
    inputs = families.prompts(name, [(0, 1)])
    plain = encode(model, inputs, "video")[0]
    videos = inputs["pixel_values_videos"].clone()
    frames = int(plain.geometry.frame.max()) + 1
    assert frames == (2 if name.startswith(PACKED) else 3)
    if name.startswith(PACKED):
        videos[len(videos) // 2 :] += 1.5
    elif name == "gemma4":
        videos.flatten(0, -3)[1] += 1.5
    else:
        videos[0, 1] += 1.5
    painted = encode(model, {**inputs, "pixel_values_videos": videos}, "video")[0]
    changed = (plain.features - painted.features).abs().amax(-1) > 1e-3
    assert torch.equal(changed, (plain.geometry.frame == 1) & (plain.geometry.tile >= 0))
    feature(name, "frames checked against pixels")


def mispaired(name, model):
    """Number of patches, out of six tried, whose change shows in one token's feature and another's saliency."""
    wrong = 0
    inputs = families.prompts(name, [(1, 0)], seed=3)
    plain = encode(model, inputs)[0]
    for trial in range(6):
        pixels = inputs["pixel_values"].clone()
        if name.startswith(PACKED):
            unit = (trial * 7 + 2) % (len(pixels) // 4)
            pixels[4 * unit : 4 * unit + 4] *= -4
        elif name == "gemma4":
            first = trial // 3 * 12 + trial % 3 * 2  # the 2 x 2 patches of each token of a raster of 4 x 6
            pixels[0, [first, first + 1, first + 6, first + 7]] *= -4
        elif name in ("mistral3", "pixtral"):
            y, x = 8 * (trial % 2), 8 * (trial // 2)
            pixels[0, :, y : y + 8, x : x + 8] *= -4
        else:
            y, x = 8 * (trial % 4), 8 * ((trial * 3 + 1) % 4)
            pixels.view(-1, 3, families.SIDE, families.SIDE)[0, :, y : y + 8, x : x + 8] *= -4
        painted = encode(model, {**inputs, "pixel_values": pixels})[0]
        moved = (plain.features - painted.features).abs().amax(-1) > 1e-4
        moved &= plain.geometry.tile >= 0
        shift = (plain.saliency - painted.saliency).abs().nan_to_num(0)
        wrong += not moved[int(shift.argmax())]
    return wrong


@pytest.mark.parametrize("name", families.FAMILIES)
@torch.no_grad()
def test_scores_stand_beside_their_tokens(name, feature):
    assert mispaired(name, silenced(name)) == 0
    feature(name, "scores paired with tokens")


@torch.no_grad()
def test_wrong_window_order_would_be_noticed(monkeypatch):
    """Qwen2.5-VL: the check above fails if scores stay in window order, so it is able to fail."""
    model = silenced("qwen2.5-vl")
    thw = torch.tensor([[1, 8, 12]])
    index, _ = qwen2_vl.get_vision_window_index(thw, spatial_merge_size=2, window_size=16, patch_size=4)
    assert not torch.equal(index, torch.arange(24))
    monkeypatch.setattr(
        qwen2_vl, "get_vision_window_index", lambda g, **_: (torch.arange(int(g.prod(-1).sum()) // 4), None)
    )
    assert mispaired("qwen2.5-vl", model) > 0


def test_saliency_is_read_where_attention_is_full():
    adapter = find(families.model_of("qwen2.5-vl"))
    assert set(adapter.tapped_layers().values()) <= {1, 3}


@pytest.mark.parametrize("name", ["llava-next", "llava-next-video", "llava-onevision"])
@torch.no_grad()
def test_newlines_are_structural_and_never_kept(name):
    from fsr import FSR

    model = families.model_of(name)
    for n in (1, 3):
        inputs = families.prompts(name, [(n, 0)])
        for unit in encode(model, inputs):
            rows = unit.structural
            newline = model.model.image_newline
            assert torch.equal(rows, (unit.features == newline).all(-1))
            assert unit.saliency[rows].isnan().all() and unit.saliency[~rows].isfinite().all()
            assert unit.geometry.boxes[rows].isnan().all() and (unit.geometry.tile[rows] == -1).all()
            selection = FSR(keep=5, relevance="none")([unit])[0]
            assert not rows[selection.rows].any()
            # One per row of patches beyond the whole view; one in all for a single tile.
            assert int(rows.sum()) in (1, *range(2, 9))


@torch.no_grad()
def test_qwen_features_rebuilt_from_geometry():
    """Positions of merge units equal the model's own three-dimensional positions."""
    for name in ("qwen2-vl", "qwen2.5-vl", "qwen3-vl"):
        model = families.model_of(name)
        inputs = families.prompts(name, [(1, 0)])
        unit = encode(model, inputs)[0]
        axes = find(model).positions(inputs)[:, 0, (inputs["input_ids"][0] == families.IMAGE)]
        rows, cols = unit.geometry.grid
        y, x = (axes[1] - axes[1].min()).float() / rows, (axes[2] - axes[2].min()).float() / cols
        assert torch.allclose(unit.geometry.boxes[:, 1], y, atol=1e-6)
        assert torch.allclose(unit.geometry.boxes[:, 0], x, atol=1e-6)
