"""A true-size model with cheap random weights: one block of normal numbers repeated, in seconds and without a download.

Time and memory do not depend on what the weights are, only on their shapes. Answers are noise.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from fsr.errors import UsageError
from fsr.profiling.configs import clip_text
from fsr.signals.clip_twin import ClipTwin

__all__ = ["RandomWords", "random_model", "random_twin", "shorten"]

# A prime length: rows of a weight matrix start at different places of the block, so no two rows are equal.
BLOCK = 1_000_003
STD = 0.02


def shorten(config: Any, layers: int) -> Any:
    """Leave the config only its first `layers` language layers (in place).

    Raises:
        UsageError: fewer than one, more than it has, or a part that is no model of its kind.
    """
    text = config.get_text_config()
    if not 1 <= layers <= text.num_hidden_layers:
        raise UsageError(f"layers={layers}: this language model has 1 to {text.num_hidden_layers}.")
    if layers < text.num_hidden_layers and getattr(text, "num_kv_shared_layers", 0):
        raise UsageError("the last layers of this language model read the keys of earlier ones: it is built whole.")
    kinds = list(getattr(text, "layer_types", None) or ())
    if kinds and set(kinds[:layers]) == {"linear_attention"} != set(kinds):
        first = next(i for i, kind in enumerate(kinds, 1) if kind != "linear_attention")
        raise UsageError(f"layers={layers}: the first layer with attention is number {first}, build that many or more.")
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = list(text.layer_types)[:layers]
    if hasattr(text, "max_window_layers"):
        text.max_window_layers = min(text.max_window_layers, layers)
    return config


def random_model(config: Any, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Any:
    """A vision-language model of `config` in evaluation mode, memory for its weights taken exactly once."""
    from transformers import AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    config._attn_implementation = "sdpa"
    with torch.device(device), no_init_weights():
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.tie_weights()
    fill(model)
    return model.eval().requires_grad_(False)


def random_twin(tower: nn.Module, device: torch.device | str = "cpu", config: Any = None) -> ClipTwin:
    """A CLIP text tower of the size that pairs with `tower` (default: ViT-L/14-336's), with random weights.

    It carries the tower's own patch and position embeddings, by which a pair is recognised.
    """
    from transformers import CLIPTextModelWithProjection
    from transformers.initialization import no_init_weights

    config = config or clip_text()
    with torch.device(device), no_init_weights():
        text = CLIPTextModelWithProjection(config)
    fill(text)
    width = int(tower.config.hidden_size)  # type: ignore[union-attr, arg-type]
    head = {
        "visual_projection": torch.randn(config.projection_dim, width, device=device) * STD,
        "post_layernorm.weight": torch.ones(width, device=device),
        "post_layernorm.bias": torch.zeros(width, device=device),
    }
    for path, module in tower.named_modules():
        if path.rpartition(".")[2] in ("patch_embedding", "position_embedding"):
            head[path.rpartition(".")[2]] = module.weight  # type: ignore[assignment]
    tokenizer = RandomWords(config.vocab_size, config.eos_token_id)
    return ClipTwin(text, tokenizer, head, eps=1e-5, sign=-1, source="a random CLIP text tower")


@torch.no_grad()
def fill(model: nn.Module, seed: int = 0) -> None:
    """Weights from one repeated block of N(0, 0.02), norms 1, biases 0; buffers stay as the model computed them."""
    blocks: dict[tuple[torch.dtype, torch.device], Tensor] = {}
    for module in model.modules():
        norm = "norm" in type(module).__name__.lower()
        for name, p in module.named_parameters(recurse=False):
            if p.dim() <= 1:
                p.fill_(float(norm and name == "weight"))
                continue
            key = (p.dtype, p.device)
            if key not in blocks:
                noise = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed)) * STD
                blocks[key] = noise.to(device=p.device, dtype=p.dtype)
            _repeat(p.view(-1), blocks[key])


def _repeat(flat: Tensor, block: Tensor) -> None:
    whole = flat.numel() // block.numel() * block.numel()
    flat[:whole].view(-1, block.numel()).copy_(block.expand(whole // block.numel(), -1))
    flat[whole:].copy_(block[: flat.numel() - whole])


class RandomWords:
    """Stands in for a tokenizer: one id per word, framed as CLIP frames texts.

    vocabulary: how many ids there are; end: that of the last token, beyond which no word lies (default: the last id).
    """

    def __init__(self, vocabulary: int, end: int | None = None) -> None:
        self.vocabulary, self.end = vocabulary, vocabulary - 1 if end is None else end

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        ids = [10 + crc32(word.encode()) % max(1, min(self.vocabulary, self.end) - 20) for word in text.split()]
        return SimpleNamespace(input_ids=[self.end - 1, *ids, self.end] if add_special_tokens else ids)
