"""The SigLIP text tower that was trained with a vision tower, and the head that brings patches into the common space.

SigLIP has no linear projection: a picture's embedding is what an attention-pooling head makes of all patches. On a
sequence of one patch
that head is the embedding of the patch. Models that cut the tower's last layers off (LLaVA-OneVision keeps 26 of 27)
get them back from
the checkpoint, because the head was trained on top of them; nothing else of the vision half is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fsr.errors import RelevanceError
from fsr.signals.clip_twin import Resemblance, embeddings_of, resemblance
from fsr.signals.text_cache import TextCache

__all__ = ["SiglipTwin"]


class SiglipTwin:
    """Relevance of patches: sign * cos(head(post_layernorm(last layers(h))), mean text embedding of the question).

    Args:
        text: a `SiglipTextModel`. tokenizer: its tokenizer.
        vision: a `SiglipVisionModel` with the layers that the model's tower lacks, and the head.
        sign: +1, or -1 where patch similarity is inverted. Nobody has measured it for SigLIP's head: +1 is the
            untested default
            (`calibrate_sign` tests it).
        source: name for messages.
    """

    layer = -1

    def __init__(self, text: nn.Module, tokenizer: Any, vision: nn.Module, *, sign: int = 1, source: str) -> None:
        if sign not in (1, -1):
            raise RelevanceError(f"{source}: sign must be +1 or -1, not {sign}.")
        self.text: Any = text.eval().requires_grad_(False)
        self.vision: Any = vision.float().eval().requires_grad_(False)
        self.tokenizer, self.sign, self.source = tokenizer, sign, source
        self.texts = TextCache(self._embed)

    @classmethod
    def from_checkpoint(cls, repository: str, *, tower_layers: int, sign: int = 1) -> SiglipTwin:
        """From a SigLIP checkpoint (folder or hub name). tower_layers: how many of its layers the model's tower kept.

        Raises:
            RelevanceError: the model's tower is deeper than the checkpoint's.
        """
        from transformers import AutoTokenizer, SiglipTextModel, SiglipVisionConfig, SiglipVisionModel

        config = SiglipVisionConfig.from_pretrained(repository)
        depth = config.num_hidden_layers
        if tower_layers > depth:
            raise RelevanceError(f"{repository} has {depth} vision layers and the model's tower {tower_layers}.")
        config.num_hidden_layers = depth - tower_layers
        config.vision_use_head = True
        kept = {rf"encoder\.layers\.{tower_layers + i}\.": f"encoder.layers.{i}." for i in range(depth - tower_layers)}
        dropped = {rf"encoder\.layers\.{i}\.": f"encoder.dropped.{i}." for i in range(tower_layers)}
        vision = SiglipVisionModel.from_pretrained(repository, config=config, key_mapping={**dropped, **kept})
        text = SiglipTextModel.from_pretrained(repository)
        return cls(text, AutoTokenizer.from_pretrained(repository), vision, sign=sign, source=repository)

    def __call__(self, patches: Tensor, question: str) -> Tensor:
        """patches [..., C] as `tile_head` made them -> float32 [...]."""
        return self.sign * (patches.float() @ self.embed_text(question, patches.device))

    @torch.no_grad()
    def tile_head(self, states: Tensor) -> Tensor:
        """Hidden states of whole tiles [T, P, C] -> unit vectors in the common space, float32 [T, P, C]."""
        width = self.vision.config.hidden_size
        if states.shape[-1] != width:
            raise RelevanceError(
                f"patches are {states.shape[-1]} wide and {self.source} takes {width}: wrong text tower."
            )
        if self.vision.device != states.device:
            self.vision.to(states.device)
        x = states.float()
        for layer in self.vision.encoder.layers:
            out = layer(x, attention_mask=None)
            x = out[0] if isinstance(out, tuple) else out
        x = self.vision.post_layernorm(x)
        alone = self.vision.head(x.flatten(0, 1).unsqueeze(1))
        return normalize(alone.unflatten(0, states.shape[:2]), dim=-1)

    def embed_text(self, question: str, device: torch.device) -> Tensor:
        """The question as a unit vector, float32 [C]. Texts beyond the tower's length are cut into chunks and
        averaged."""
        return self.texts(question, device)

    @torch.no_grad()
    def _embed(self, question: str, device: torch.device) -> Tensor:
        if self.text.device != device:
            self.text.to(device)
        longest, texts = self.text.config.max_position_embeddings, self._chunks(question)
        batch = self.tokenizer(texts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
        out = self.text(input_ids=batch["input_ids"].to(device)).pooler_output.float()
        return normalize(normalize(out, dim=-1).mean(dim=0), dim=-1)

    def pieces(self, question: str) -> int:
        """Chunks that a question of this length is cut into."""
        return len(self._chunks(question))

    def _chunks(self, question: str) -> list[str]:
        longest, whole = self.text.config.max_position_embeddings, self.tokenizer(question).input_ids
        if len(whole) <= longest:
            return [question]
        ids = self.tokenizer(question, add_special_tokens=False).input_ids
        room = longest - (len(whole) - len(ids))
        return [self.tokenizer.decode(ids[i : i + room]) for i in range(0, len(ids), room)]

    def compare(self, tower: nn.Module) -> Resemblance:
        """Compare patch and position embeddings with a model's vision tower."""
        return resemblance(embeddings_of(self.vision), tower)
