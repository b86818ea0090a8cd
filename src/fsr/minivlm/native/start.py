"""A warm start from `mini`: what its weights say about pictograms, words and look-ups carries over to another
architecture.

Vision: the patch filters, resized from 12 to 8 pixels so that a filter answers to a shrunken patch as it did to the
whole one (pseudo-inverse of the resizing, as in FlexiViT, Beyer et al. 2023); the position table, which Qwen3-VL
stretches over every picture; the first four blocks. CLIP's norm before the first block has no place here and is folded
into filters and table with the mean scale. Language: all of Llama, whose weights have the same names; queries and keys
are normalised in Qwen3, so their norms get the root mean square that they had. Symbols: the label embeddings that
explain `mini`'s projected patches best (ridge regression).
"""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import LlavaForConditionalGeneration, Qwen3VLForConditionalGeneration

from fsr.errors import UsageError
from fsr.minivlm.scenes import draw
from fsr.minivlm.train_language import Symbols, tower_features
from fsr.minivlm.train_vision import ReadOuts, normalise_pixels, patch_labels
from fsr.minivlm.vocabulary import encode_words

__all__ = ["fitted_symbols", "shipped_mini", "transplant_language", "transplant_vision"]


def shipped_mini() -> LlavaForConditionalGeneration:
    """`mini` as it ships, in float32.

    Raises:
        UsageError: an installation without its weights.
    """
    with as_file(files("fsr.minivlm") / "data" / "mini") as folder:
        if not (folder / "config.json").is_file():
            raise UsageError("the weights of 'mini' are not in this installation: mini-qwen3 starts from them.")
        return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def _shrink(side: int, to: int) -> Tensor:
    """The linear map [to^2, side^2] that resizes a patch bilinearly, antialiased."""
    units = torch.eye(side * side).view(side * side, 1, side, side)
    return interpolate(units, (to, to), mode="bilinear", antialias=True, align_corners=False).flatten(1).T


@torch.no_grad()
def transplant_vision(mini: LlavaForConditionalGeneration, model: Qwen3VLForConditionalGeneration) -> None:
    """Fill the tower of `model` but its mergers, in place."""
    old, new = mini.model.vision_tower, model.model.visual
    filters = old.embeddings.patch_embedding.weight  # [D, 3, 12, 12]
    d = filters.shape[0]
    resized = filters.flatten(2) @ torch.linalg.pinv(_shrink(12, 8))
    table = old.embeddings.position_embedding.weight[1:]
    pixels = normalise_pixels(np.stack([draw(np.random.default_rng([5, i]), "train").image for i in range(32)]))
    norm = old.pre_layrnorm
    scale = norm.weight / old.embeddings(pixels)[:, 1:].std(-1).mean()
    centre = torch.eye(d) - 1 / d
    resized = torch.einsum("e,ed,dcp->ecp", scale, centre, resized).view(d, 3, 1, 8, 8)
    new.patch_embed.proj.weight.copy_(resized.expand(-1, -1, 2, -1, -1) / 2)  # a still picture is two equal frames
    new.patch_embed.proj.bias.copy_(norm.bias)
    new.pos_embed.weight.copy_(table @ centre.T * scale)
    for block, layer in zip(new.blocks, old.encoder.layers):
        a = layer.self_attn
        block.attn.qkv.weight.copy_(torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]))
        block.attn.qkv.bias.copy_(torch.cat([a.q_proj.bias, a.k_proj.bias, a.v_proj.bias]))
        block.attn.proj.load_state_dict(a.out_proj.state_dict())
        block.mlp.linear_fc1.load_state_dict(layer.mlp.fc1.state_dict())
        block.mlp.linear_fc2.load_state_dict(layer.mlp.fc2.state_dict())
        block.norm1.load_state_dict(layer.layer_norm1.state_dict())
        block.norm2.load_state_dict(layer.layer_norm2.state_dict())


@torch.no_grad()
def transplant_language(mini: LlavaForConditionalGeneration, model: Qwen3VLForConditionalGeneration) -> None:
    """Fill the language model of `model`, in place; the new special words get small random embeddings."""
    old, new = mini.model.language_model, model.model.language_model
    state = old.state_dict()
    words = state.pop("embed_tokens.weight")
    new.embed_tokens.weight.normal_(std=float(words.std()))
    new.embed_tokens.weight[: len(words)] = words
    missing, unexpected = new.load_state_dict(state, strict=False)
    strange = [k for k in missing if not k.endswith(("q_norm.weight", "k_norm.weight", "embed_tokens.weight"))]
    if strange or unexpected:
        raise RuntimeError(f"the two language models do not match: {strange} {unexpected}")
    sizes: dict[tuple[int, str], Tensor] = {}
    hooks = []
    for i, layer in enumerate(old.layers):
        for name in ("q", "k"):
            part = getattr(layer.self_attn, f"{name}_proj")
            keep = lambda _m, _a, out, at=(i, name): sizes.__setitem__(at, out.float().pow(2).mean().sqrt())
            hooks.append(part.register_forward_hook(keep))
    pixels = normalise_pixels(np.stack([draw(np.random.default_rng([6, i]), "train").image for i in range(8)]))
    ids = torch.tensor([encode_words("<bos> " + "<image> " * 144 + "what color is the dog ?")] * 8)
    mini(input_ids=ids, pixel_values=pixels)
    for hook in hooks:
        hook.remove()
    for i, layer in enumerate(new.layers):
        layer.self_attn.q_norm.weight.fill_(float(sizes[i, "q"]))
        layer.self_attn.k_norm.weight.fill_(float(sizes[i, "k"]))


@torch.no_grad()
def fitted_symbols(mini: LlavaForConditionalGeneration, scenes: int) -> Symbols:
    """Label embeddings whose sums come nearest to `mini`'s projected patches."""
    d = mini.model.language_model.embed_tokens.embedding_dim
    symbols = Symbols(d)
    sizes = {k: n + 1 for k, n in ReadOuts.sizes.items()}
    width = sum(sizes.values())
    gram, cross = torch.zeros(width, width), torch.zeros(width, d)
    for start in range(0, scenes, 8):
        drawn = [draw(np.random.default_rng([4, start + i]), "train") for i in range(8)]
        features = tower_features(mini, normalise_pixels(np.stack([s.image for s in drawn])))
        seen = mini.model.multi_modal_projector(features).flatten(0, 1)
        labels = [patch_labels(s) for s in drawn]
        columns, first = [], 0
        for name, n in sizes.items():
            label = torch.from_numpy(np.stack([x[name] for x in labels])).flatten()
            columns.append(first + (label + 1).clamp_min(0))
            first += n
        rows = torch.zeros(len(seen), width).scatter_(1, torch.stack(columns, 1), 1.0)
        gram += rows.T @ rows
        cross += rows.T @ seen
    solved = torch.linalg.solve(gram + torch.eye(width) * 3.0, cross)
    first = 0
    for name, n in sizes.items():
        table = solved[first : first + n]
        # Neighbours are faint in `mini`; with noise on top they would be learned late.
        symbols.tables[name].get_parameter("weight").copy_(table * max(1.0, 0.3 / float(table.std())))
        first += n
    return symbols
