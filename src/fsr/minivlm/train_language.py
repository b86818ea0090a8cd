"""Stages 2 and 3 of `fsr train`: the language model learns to look things up, first on symbols, then on the frozen
tower's features.

Stage 2 needs no pixels: `Symbols` gives each patch the sum of embeddings of what it shows, so the language model
trains while the tower still does. Stage 3 fits the projector to those symbols (a regression of seconds) and then
trains both on real features.

Many questions share one image prefix (a block mask hides them from each other), which multiplies supervision. Two
helpers fade out during training because look-up circuits emerge late without them: attention of the asked word to
its patches (to <bos> when it is not there) and of the last word to the asked word; and alignment of projected
patches with the word embeddings of what they show. Token positions are squeezed at random so that the model, like a
large one, does not depend on the exact length of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from fsr.minivlm.questions import KINDS, Question, ask_all
from fsr.minivlm.scenes import BACKGROUNDS, CLASSES, COLORS, LETTERS, Scene, draw
from fsr.minivlm.train_vision import N, ReadOuts, normalise_pixels, patch_labels, text_mask
from fsr.minivlm.vocabulary import MAX_QUESTION, encode_words

__all__ = ["LanguageBatch", "LookUps", "Symbols", "guides", "language_batch", "language_loss", "slot", "tower_features"]

_CLASS_IDS = torch.tensor(encode_words(" ".join(CLASSES)))
_WORD_IDS = torch.tensor(
    encode_words(" ".join([*CLASSES, *COLORS, *BACKGROUNDS])) + encode_words(" ".join(c.lower() for c in LETTERS))
)
_ASKED = set(_CLASS_IDS.tolist()) | set(encode_words("background sign"))
LOOK, READ = 1, 2  # layers whose first two heads are supervised


@dataclass(frozen=True)
class LanguageBatch:
    """pixels [B, 3, S, S]; ids, answers [B, Q * 12] (answers -100 off the predicting positions); kinds [B, Q] (-1 =
    no question).

    look: [B, Q * 12, 1 + N], attention target of each asked word over <bos> and patches (rows of zeros elsewhere).
    read: [B, Q * 12], position inside its question that the last word should read, -1 elsewhere.
    shown: [B, N], 1 + index into the word list of what the patch shows, 0 for nothing; colored: the same for card
    colours.
    """

    pixels: Tensor
    ids: Tensor
    answers: Tensor
    kinds: Tensor
    look: Tensor
    read: Tensor
    shown: Tensor
    colored: Tensor
    labels: dict[str, Tensor]


class Symbols(nn.Module):
    """Patches as sums of label embeddings, [B, N, D], with noise: what a perfect tower and projector would give."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({k: nn.Embedding(n + 1, width) for k, n in ReadOuts.sizes.items()})
        for table in self.tables.values():
            nn.init.normal_(table.get_parameter("weight"), std=0.3)

    def forward(self, labels: dict[str, Tensor], noise: float = 0.0) -> Tensor:
        x = torch.stack([table((labels[k] + 1).clamp_min(0)) for k, table in self.tables.items()]).sum(0)
        return x + noise * torch.randn_like(x)


def tower_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Hidden state -2 of the tower without [CLS], [B, N, D], no gradient."""
    with torch.no_grad():
        tower = model.model.vision_tower
        h = tower.pre_layrnorm(tower.embeddings(pixels))
        for layer in tower.encoder.layers[:-1]:
            h = layer(h, None)
    return h[:, 1:].float()


def slot(scene: Scene, q: Question) -> tuple[list[int], list[int], np.ndarray, list[int]]:
    """One question as training reads it: ids [12], answers [12], look [12, 1 + N], read [12] (see `LanguageBatch`)."""
    text, answer = encode_words(q.text), [*encode_words(q.answer), *encode_words("<eos>")]
    ids = (text + answer + [0] * MAX_QUESTION)[:MAX_QUESTION]
    targets = [-100] * MAX_QUESTION
    targets[len(text) - 1 : len(text) - 1 + len(answer)] = answer
    look = np.zeros((MAX_QUESTION, 1 + scene.owner.size), np.float32)
    read = [-1] * MAX_QUESTION
    asked = [i for i, w in enumerate(text) if w in _ASKED]
    for nth, i in enumerate(asked):
        own = q.targets if q.kind in ("count", "existence", "reading") else q.targets[nth : nth + 1]
        on = text_mask(scene, own, "background" if q.kind == "background" else "")
        if on.any():
            look[i, 1:] = on / on.sum()
        else:
            look[i, 0] = 1
    read[len(text) - 1] = asked[-1]
    if q.kind == "comparison":
        read[asked[1]] = asked[0]
    return ids, targets, look, read


def language_batch(
    rng: np.random.Generator, size: int, questions: int, weights: dict[str, float] | None = None
) -> LanguageBatch:
    """Fresh training scenes with `questions` questions each."""
    scenes = [draw(rng, "train") for _ in range(size)]
    columns: list[list[np.ndarray]] = [[] for _ in range(5)]
    shown, colored = [], []
    labels: dict[str, list[np.ndarray]] = {}
    for scene in scenes:
        asked = ask_all(scene, questions, rng, weights)
        slots = [slot(scene, q) for q in asked]
        empty = (
            [0] * MAX_QUESTION,
            [-100] * MAX_QUESTION,
            np.zeros((MAX_QUESTION, 1 + N), np.float32),
            [-1] * MAX_QUESTION,
        )
        slots += [empty] * (questions - len(slots))
        for column, part in zip(columns, zip(*slots)):
            column.append(np.concatenate([np.asarray(p) for p in part]))
        columns[4].append(np.array([KINDS.index(q.kind) for q in asked] + [-1] * (questions - len(asked))))
        owner = scene.owner.reshape(-1)
        kind = np.array([o.kind + 1 for o in scene.objects] + [0, 0])
        color = np.array([o.color + 1 + len(CLASSES) if o.color >= 0 else 0 for o in scene.objects] + [0, 0])
        letter = scene.letter.reshape(-1)
        first = len(CLASSES) + len(COLORS)
        what = np.where(owner == -1, 1 + first + scene.background, kind[owner])
        what = np.where(letter > 0, 1 + first + len(BACKGROUNDS) + (letter - 1) % 8, what)
        shown.append(what)
        colored.append(color[owner])
        for k, v in patch_labels(scene).items():
            labels.setdefault(k, []).append(v)
    ids, answers, look, read, kinds = (torch.from_numpy(np.stack(c)) for c in columns)
    pixels = normalise_pixels(np.stack([s.image for s in scenes]))
    shows, colors = (torch.from_numpy(np.stack(v)) for v in (shown, colored))
    every = {k: torch.from_numpy(np.stack(v)).long() for k, v in labels.items()}
    return LanguageBatch(pixels, ids.long(), answers.long(), kinds.long(), look, read.long(), shows, colors, every)


class LookUps:
    """Collects the attention maps of the two supervised layers (hooks on eager attention)."""

    def __init__(self, model: Any) -> None:
        self.maps: dict[int, Tensor] = {}
        for i in (LOOK, READ):
            layer = model.model.language_model.layers[i].self_attn
            layer.register_forward_hook(lambda _m, _a, out, i=i: self.maps.__setitem__(i, out[1]))


def _positions(n_image: int, rows: Tensor | None, q: int, squeeze: Tensor) -> Tensor:
    """[B, 1 + n + q * 12]: <bos>, patches (in a squeezed raster), then every question from the same start."""
    b = squeeze.shape[0]
    place = torch.arange(n_image).expand(b, -1) if rows is None else rows
    image = 1 + (place * squeeze[:, None]).floor().long()
    start = 2 + ((N if rows is not None else n_image) * squeeze).floor().long()
    text = start[:, None] + torch.arange(MAX_QUESTION).repeat(q)[None]
    return torch.cat([torch.zeros(b, 1, dtype=torch.long), image, text], dim=1)


def guides(
    maps: LookUps, look: Tensor, read: Tensor, questions: int, columns: Tensor, prefix: int
) -> tuple[Tensor, Tensor]:
    """The two fading helpers: how little the first two heads of the supervised layers look where they should.

    look: [B, Q * 12, 1 + n]; columns: where its <bos> and patches stand in the prompt; prefix: where questions begin.
    """
    first = maps.maps[LOOK][:, :2, prefix:].index_select(-1, columns).float().mean(1)
    on = (first * (look > 0)).sum(-1)[look.sum(-1) > 0]
    second = maps.maps[READ][:, :2, prefix:, prefix:].float().mean(1)
    own = torch.arange(questions, device=read.device).repeat_interleave(MAX_QUESTION) * MAX_QUESTION
    where = (read + own[None]).clamp_min(0)
    return (
        -(on + 1e-4).log().mean(),
        -(second.gather(2, where[..., None])[..., 0][read >= 0] + 1e-4).log().mean(),
    )


def questions_apart(prefix: int, questions: int, device: torch.device) -> Tensor:
    """Additive mask [1, 1, L, L], L = prefix + Q * 12: every question sees the prefix and itself, causally."""
    block = torch.arange(questions, device=device).repeat_interleave(MAX_QUESTION)
    block = torch.cat([torch.full((prefix,), -1, device=device), block])
    causal = torch.ones(len(block), len(block), dtype=torch.bool, device=device).tril()
    visible = causal & ((block[None] == -1) | (block[None] == block[:, None]))
    return torch.zeros(1, 1, *visible.shape, device=device, dtype=torch.bfloat16).masked_fill(~visible, -1e9)


def right_by_kind(logits: Tensor, answers: Tensor, kinds: Tensor) -> dict[str, float]:
    """Share of questions answered right: of each kind (NaN where there is none), and "acc" of all.

    logits: [B, Q * 12, V]; answers: long [B, Q * 12], negative where nothing is predicted; kinds: long [B, Q], -1 for
    padding.
    """
    right = ((logits.argmax(-1) == answers) | (answers < 0)).view(*kinds.shape, -1).all(-1)
    report = {}
    for i, kind in enumerate(KINDS):
        those = kinds == i
        report[kind] = float(right[those].float().mean()) if those.any() else float("nan")
    return report | {"acc": float(right[kinds >= 0].float().mean())}


def language_loss(
    model: LlavaForConditionalGeneration,
    maps: LookUps,
    batch: LanguageBatch,
    tokens: int | None,
    guide: float,
    symbols: Symbols | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Answer loss plus `guide` times the two fading helpers. tokens: use that many patches, those with something on
    them first, or all."""
    device = batch.pixels.device
    b, q = batch.kinds.shape
    features = tower_features(model, batch.pixels) if symbols is None else symbols(batch.labels, noise=0.3)
    look, shown, colored, rows, n = batch.look, batch.shown, batch.colored, None, N
    if tokens is not None:
        n = tokens
        rank = torch.rand(b, N, device=device) + ((shown > 0) & ((shown <= 24) | (shown > 36))).float() * 0.8
        rows = rank.topk(n, dim=1).indices.sort(dim=1).values
        features = features.gather(1, rows[..., None].expand(-1, -1, features.shape[-1]))
        shown, colored = shown.gather(1, rows), colored.gather(1, rows)
        patch = look[..., 1:].gather(2, rows[:, None].expand(-1, look.shape[1], -1))
        look = torch.cat([look[..., :1], patch], dim=-1)
        look = look / look.sum(-1, keepdim=True).clamp_min(1e-6) * (look.sum(-1, keepdim=True) > 0)
    projected = model.model.multi_modal_projector(features) if symbols is None else features
    lm = model.model.language_model
    bos = torch.full((b, 1), encode_words("<bos>")[0], device=device)
    x = torch.cat([lm.embed_tokens(bos), projected, lm.embed_tokens(batch.ids)], dim=1)

    squeeze = torch.where(torch.rand(b) < 0.5, torch.ones(b), torch.rand(b) * 0.9 + 0.1)
    compact = tokens is not None and bool(torch.rand(()) < 0.5)
    positions = _positions(n, None if compact or rows is None else rows.cpu(), q, squeeze).to(device)
    mask = questions_apart(1 + n, q, device)
    rotary = lm.rotary_emb(x, position_ids=positions)
    for layer in lm.layers:
        x = layer(x, attention_mask=mask, position_embeddings=rotary, position_ids=positions)
    logits = model.lm_head(lm.norm(x[:, 1 + n :])).float()
    answers = F.cross_entropy(logits.flatten(0, 1), batch.answers.flatten(), ignore_index=-100, reduction="none").view(
        b, -1
    )
    predicted = batch.answers >= 0
    loss = answers.sum() / predicted.sum()

    total = loss
    if guide > 0:
        look_loss, read_loss = guides(maps, look, batch.read, q, torch.arange(1 + n, device=device), 1 + n)
        words = F.normalize(lm.embed_tokens(_WORD_IDS.to(device)).float(), dim=-1)
        scores = F.normalize(projected.float(), dim=-1) @ words.T * 10
        align = F.cross_entropy(
            scores.flatten(0, 1), (shown - 1).clamp_min(-100).masked_fill(shown == 0, -100).flatten(), ignore_index=-100
        )
        if bool((colored > 0).any()):
            align = align + F.cross_entropy(
                scores.flatten(0, 1), (colored - 1).masked_fill(colored == 0, -100).flatten(), ignore_index=-100
            )
        total = loss + guide * (0.3 * look_loss + 0.3 * read_loss + 0.2 * align)
    with torch.no_grad():
        report = {"loss": float(loss)}
        if guide > 0:
            report |= {"look": float(look_loss), "read": float(read_loss), "align": float(align)}
        report |= right_by_kind(logits, batch.answers, batch.kinds)
    return total, report
