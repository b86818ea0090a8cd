"""Tiny random models and a word-level processor, built in code: no downloads, no torchvision, milliseconds per
forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import transformers.generation.utils as generation_utils
from PIL import Image

from fsr.methods.base import Method, Picks, Signal
from fsr.tokens import VisualTokens

IMAGE, PATCH = 48, 8  # 6 x 6 = 36 patches
TOKENS = (IMAGE // PATCH) ** 2
# Before 5.23 Transformers lost pre-encoded pictures under `prefill_chunk_size`.
CHUNKS_SLICE_PICTURES = hasattr(generation_utils, "_slice_mm_encoder_output")
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
WORDS = (
    "USER: ASSISTANT: SYSTEM: what where is the colour of dog cat car red blue green left right how many are there ? . "
    "a an photo and in on big small one two three yes no you see describe picture answer with single word tree house"
).split()
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image> ' }}{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}{{ '</s> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)


def word_tokenizer(padding_side: str = "left", ends: bool = False, longest: int = 4096) -> Any:
    """One id per word; `ends` frames texts with <s> ... </s> as CLIP does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {t: i for i, t in enumerate([*SPECIAL, *WORDS])}
    tok = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    frame = "<s> $A </s>" if ends else "<s> $A"
    tok.post_processor = processors.TemplateProcessing(single=frame, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side=padding_side,
        model_max_length=longest,
    )


def llava_processor(padding_side: str = "left") -> Any:
    """A real `LlavaProcessor` with the PIL image processor."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    images = CLIPImageProcessor(
        size={"shortest_edge": IMAGE}, crop_size={"height": IMAGE, "width": IMAGE}, do_resize=True, do_center_crop=True
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=word_tokenizer(padding_side),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def clip_vision_config(layers: int = 3) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=IMAGE,
        patch_size=PATCH,
        projection_dim=16,
    )


def llama_config(**changes: Any) -> Any:
    from transformers import LlamaConfig

    settings = dict(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    return LlamaConfig(**{**settings, **changes})


def sharpen(model: torch.nn.Module, seed: int, scale: float = 5.0) -> Any:
    """Random weights with enough spread that tokens differ, attention is uneven, and greedy text does not collapse."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * scale / p.shape[-1] ** 0.5 / 4)
            elif "bias" in name or "class_embedding" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.eval()


def llava(seed: int = 0, attention: str = "sdpa", feature_layer: int = -2, **text: Any) -> Any:
    """LLaVA with a CLIP tower: 36 visual tokens per picture."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=clip_vision_config(),
        text_config=llama_config(**text),
        image_token_id=SPECIAL.index("<image>"),
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy="default",
        image_seq_length=TOKENS,
    )
    config._attn_implementation = attention
    model = sharpen(LlavaForConditionalGeneration(config), seed)
    # A random model may write placeholders, which no real one does and no run without a cache survives.
    model.generation_config.suppress_tokens = [config.image_token_id]
    return model


def clip(seed: int = 1, tower: Any = None, longest: int = 16) -> Any:
    """A CLIP model; with `tower` its vision half is that very tower."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

    text = CLIPTextConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=longest,
        projection_dim=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=clip_vision_config().to_dict(), projection_dim=16)
    model = sharpen(CLIPModel(config), seed)
    if tower is not None:
        model.vision_model.load_state_dict(tower.state_dict())
    return model


@dataclass(frozen=True)
class Salient(Method):
    """The K most salient rows, gathered: the plainest method with a signal."""

    name: ClassVar[str] = "test-salient"
    needs: ClassVar[frozenset[Signal]] = frozenset({"saliency"})

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        assert tokens.saliency is not None
        rows = tokens.saliency.topk(k).indices
        return Picks(rows=rows, stage=torch.zeros_like(rows))


@dataclass(frozen=True)
class Cutting(Salient):
    """The same, but its features carry no gradient."""

    name: ClassVar[str] = "test-cutting"

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        rows = super().pick(tokens, k).rows
        taken = tokens.features.detach().gather(1, rows[..., None].expand(-1, -1, tokens.features.shape[-1]))
        return Picks(rows=rows, stage=torch.zeros_like(rows), features=taken)


def picture(seed: int) -> Image.Image:
    """A picture with a few bright boxes on noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (IMAGE, IMAGE, 3), dtype=np.uint8)
    for _ in range(3):
        y, x = rng.integers(0, IMAGE - 12, 2)
        pixels[y : y + 12, x : x + 12] = rng.integers(100, 255, 3, dtype=np.uint8)
    return Image.fromarray(pixels)


def chat(*turns: tuple[str, int], answers: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """User turns (text, number of pictures) with the assistant's answers in between."""
    messages: list[dict[str, Any]] = []
    for i, (text, images) in enumerate(turns):
        content: list[dict[str, Any]] = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        messages.append({"role": "user", "content": content})
        if i < len(answers):
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answers[i]}]})
    return messages


def prompts(processor: Any, chats: list[Any], images: list[Image.Image], **options: Any) -> Any:
    """A padded batch from chats and the pictures in them, in order."""
    text = [processor.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
    return processor(text=text, images=images or None, return_tensors="pt", padding=True, **options)
