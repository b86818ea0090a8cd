"""Stage 1 of `fsr train`: the CLIP pair, contrastively and with dense labels.

Losses: (1) InfoNCE between [CLS] and captions; (2) sigmoid contrast between every patch and every text about the
scene (questions and "a photo of a dog"), positive on the patches the text is about; (3) linear read-outs of hidden
state -2, the layer that LLaVA
reads: pictogram, card colour, letter, ground, row, column, the four neighbours and the number of equals. The
read-outs are thrown away; they make a 2 M parameter tower useful after minutes, and rows and columns keep it from
forgetting where things are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel

from fsr.minivlm.build import GRID
from fsr.minivlm.questions import ask_all
from fsr.minivlm.scenes import BACKGROUNDS, CLASSES, COLORS, Scene, draw
from fsr.minivlm.vocabulary import encode_words

__all__ = ["ReadOuts", "VisionBatch", "normalise_pixels", "patch_labels", "text_mask", "vision_batch", "vision_loss"]

TEXTS = 8  # per scene
TEXT_LENGTH = 12
CAPTION_LENGTH = 24
N = GRID * GRID
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's own, so that the stock processor fits
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionBatch:
    """pixels [B, 3, S, S]; texts [B, T, L] ids; masks [B, T, N]; captions [B, L'] ids; labels: name -> [B, N] long,
    -100 where void."""

    pixels: Tensor
    texts: Tensor
    masks: Tensor
    captions: Tensor
    labels: dict[str, Tensor]


class ReadOuts(nn.Module):
    """Linear heads on the layer that the language model reads, and the dense contrast's scale and bias."""

    sizes = {
        "kind": len(CLASSES) + 1,
        "color": len(COLORS) + 1,
        "letter": 17,
        "ground": len(BACKGROUNDS),
        "row": GRID,
        "column": GRID,
        "count": 4,
        **{f"neighbor{d}": len(CLASSES) + 1 for d in range(4)},
    }

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({k: nn.Linear(width, n) for k, n in self.sizes.items()})
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-4.0))


def normalise_pixels(images: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] to CLIP-normalised float32 [B, 3, H, W]."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def text_mask(scene: Scene, targets: tuple[int, ...], kind: str) -> np.ndarray:
    """Patches [N] that a text is about: the objects it names, the sign, or the ground; none for what is not there."""
    if kind == "background":
        return (scene.owner == -1).reshape(-1)
    if kind == "neighbor":
        targets = targets[:1]  # the text names only the first; the other is the answer
    return np.isin(scene.owner, targets).reshape(-1)


def _padded(words: list[int], length: int) -> list[int]:
    ids = [*encode_words("<bos>"), *words[: length - 2], *encode_words("<eos>")]
    return ids + [0] * (length - len(ids))


def patch_labels(scene: Scene) -> dict[str, np.ndarray]:
    """What each of the N patches shows, see `labels_at`."""
    return labels_at(scene, np.arange(N) // GRID, np.arange(N) % GRID)


def labels_at(scene: Scene, row: np.ndarray, column: np.ndarray) -> dict[str, np.ndarray]:
    """What each cell of a scene shows, by name of read-out: class indices [N], -100 where the question does not arise.

    row, column: the classes of its place, [N].
    """
    owner = scene.owner.reshape(-1)
    o = scene.objects
    times = np.bincount([x.kind for x in o], minlength=len(CLASSES))
    at = {cell: x.kind for x in o for cell in x.cells}
    kind = np.array([x.kind + 1 for x in o] + [0, 0])
    color = np.array([x.color + 1 for x in o] + [0, 0])
    count = np.array([min(times[x.kind], 4) - 1 for x in o] + [-100, -100])
    around = np.full((4, len(o) + 2), -100)
    for i, x in enumerate(o):
        if not x.big:
            ((r, c),) = x.cells
            around[:, i] = [at.get((r + dr, c + dc), -1) + 1 for dr, dc in ((0, -1), (0, 1), (-1, 0), (1, 0))]
    inside = owner >= 0  # owner -1 (ground) and -2 (sign) index the two padding entries at the end
    labels = {
        "kind": kind[owner],
        "color": np.where(inside, color[owner], 0),
        "letter": scene.letter.reshape(-1),
        "ground": np.where(owner == -1, scene.background, -100),
        "row": row,
        "column": column,
        "count": count[owner],
    }
    return labels | {f"neighbor{d}": around[d][owner] for d in range(4)}


def vision_batch(rng: np.random.Generator, size: int) -> VisionBatch:
    """Fresh training scenes with texts, masks and labels."""
    images, texts, masks, captions = [], [], [], []
    labels: dict[str, list[np.ndarray]] = {}
    for _ in range(size):
        scene = draw(rng, "train")
        images.append(scene.image)
        about = [(q.text, text_mask(scene, q.targets, q.kind)) for q in ask_all(scene, TEXTS - 3, rng)]
        present = [o.kind for o in scene.objects]
        while len(about) < TEXTS:
            kind = present[int(rng.integers(len(present)))] if rng.random() < 0.6 else int(rng.integers(len(CLASSES)))
            name = CLASSES[kind] if rng.random() < 0.2 else f"a photo of a {CLASSES[kind]}"
            about.append((name, text_mask(scene, tuple(i for i, k in enumerate(present) if k == kind), "")))
        texts.append([_padded(encode_words(t), TEXT_LENGTH) for t, _ in about])
        masks.append(np.stack([m for _, m in about]))
        listed = " , ".join(f"a {CLASSES[k]}" for k in rng.permutation(sorted(set(present)))[:6])
        captions.append(_padded(encode_words(f"{listed} on {BACKGROUNDS[scene.background]}"), CAPTION_LENGTH))
        for k, v in patch_labels(scene).items():
            labels.setdefault(k, []).append(v)
    return VisionBatch(
        normalise_pixels(np.stack(images)),
        torch.tensor(texts),
        torch.from_numpy(np.stack(masks)).float(),
        torch.tensor(captions),
        {k: torch.from_numpy(np.stack(v)).long() for k, v in labels.items()},
    )


def _embed(clip: CLIPModel, ids: Tensor) -> Tensor:
    out = clip.text_model(input_ids=ids, attention_mask=(ids != 0).long())
    return F.normalize(clip.text_projection(out.pooler_output).float(), dim=-1)


def vision_loss(
    clip: CLIPModel, heads: ReadOuts, batch: VisionBatch, tokens: int | None
) -> tuple[Tensor, dict[str, float]]:
    """The summed loss and its parts. tokens: train on that many patches, those with something on them first
    (warm-up), or None for all."""
    vision = clip.vision_model
    h = vision.embeddings(batch.pixels)
    b = h.shape[0]
    labels, masks = batch.labels, batch.masks
    if tokens is not None:
        rank = torch.rand(b, N) + (labels["kind"] + labels["letter"] > 0).float() * 0.8
        rows = rank.topk(tokens, dim=1).indices.sort(dim=1).values
        with_cls = torch.cat([torch.zeros(b, 1, dtype=torch.long), rows + 1], dim=1)
        h = h.gather(1, with_cls[..., None].expand(-1, -1, h.shape[-1]))
        labels = {k: v.gather(1, rows) for k, v in labels.items()}
        masks = masks.gather(2, rows[:, None].expand(-1, masks.shape[1], -1))
    h = vision.pre_layrnorm(h)
    for layer in vision.encoder.layers[:-1]:
        h = layer(h, None)
    penultimate, last = h, vision.encoder.layers[-1](h, None)

    parts: dict[str, Tensor] = {}
    read = heads.norm(penultimate[:, 1:])
    weight = {"kind": 1.0, "color": 0.7, "letter": 1.0, "ground": 0.3, "row": 0.3, "column": 0.3, "count": 0.5}
    for name, head in heads.heads.items():
        logits = head(read).flatten(0, 1).float()
        parts[name] = weight.get(name, 0.25) * F.cross_entropy(logits, labels[name].flatten(), ignore_index=-100)
    text = _embed(clip, batch.texts.flatten(0, 1)).view(b, TEXTS, -1)
    for name, states, share in (("dense", last, 4.0), ("dense-2", penultimate, 4.0)):
        patches = F.normalize(clip.visual_projection(vision.post_layernorm(states[:, 1:])).float(), dim=-1)
        logits = torch.einsum("btd,bnd->btn", text, patches) * heads.scale.exp() + heads.bias
        parts[name] = share * F.binary_cross_entropy_with_logits(logits, masks)
    image = F.normalize(clip.visual_projection(vision.post_layernorm(last[:, 0])).float(), dim=-1)
    similarity = image @ _embed(clip, batch.captions).T * clip.logit_scale.exp().clamp(max=50)
    same = torch.arange(b)
    parts["clip"] = 0.25 * (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same))
    with torch.no_grad():
        guess = heads.heads["kind"](read).argmax(-1)
        inside = labels["kind"] > 0
        report = {k: float(v.detach()) for k, v in parts.items()}
        report["kind_acc"] = float((guess == labels["kind"])[inside].float().mean())
        letters = labels["letter"] > 0
        report["letter_acc"] = (
            float((heads.heads["letter"](read).argmax(-1) == labels["letter"])[letters].float().mean())
            if letters.any()
            else float("nan")
        )
    return torch.stack(list(parts.values())).sum(), report
