"""Stages 2 to 4 of `fsr train --model mini-qwen3`: look-ups on symbols, mergers fitted to them, both together on the
tower's features. As for `mini` (see `fsr.minivlm.train_language`), with three differences.

The picture stands between Qwen3-VL's marks and has M-RoPE positions, rows and columns of its own, so that a question
begins where the longer side ends; with fewer tokens each keeps its place, and nothing is squeezed. Colours and grounds
reach the language model through DeepStack only. The frozen tower runs where scenes are drawn, beside the training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from fsr.minivlm.native.build import special_id
from fsr.minivlm.native.scenes import draw_native, pick_size
from fsr.minivlm.native.vision import LEVELS, choose, levels_of, merge_labels, patches_of, stacked, tower
from fsr.minivlm.questions import KINDS, ask_all
from fsr.minivlm.train_language import LookUps, Symbols, guides, questions_apart, right_by_kind, slot
from fsr.minivlm.vocabulary import MAX_QUESTION, encode_words

__all__ = ["Asked", "asked_batch", "fit_loss", "language_loss", "positions", "symbol_levels"]


@dataclass(frozen=True)
class Asked:
    """B scenes of one size with Q questions each; see `fsr.minivlm.train_language.LanguageBatch` for ids, answers,
    kinds, look and read.

    states: what the mergers read, per level [B, N, 4, D] (empty for symbols). grid: (rows, columns) of visual tokens.
    labels: name -> [B, N].
    """

    states: list[Tensor]
    grid: tuple[int, int]
    ids: Tensor
    answers: Tensor
    kinds: Tensor
    look: Tensor
    read: Tensor
    labels: dict[str, Tensor]


def asked_batch(
    rng: np.random.Generator,
    size: int,
    questions: int,
    weights: dict[str, float] | None,
    visual: nn.Module | None,
) -> Asked:
    """Fresh training scenes of one random size. visual: the frozen tower, or None where symbols do without."""
    cells = pick_size(rng, 0.5)
    scenes = [draw_native(rng, cells, "train") for _ in range(size)]
    columns: list[list[np.ndarray]] = [[] for _ in range(5)]
    for scene in scenes:
        asked = ask_all(scene, questions, rng, weights)
        slots = [slot(scene, q) for q in asked]
        nothing = (
            [0] * MAX_QUESTION,
            [-100] * MAX_QUESTION,
            np.zeros((MAX_QUESTION, 1 + scene.owner.size), np.float32),
            [-1] * MAX_QUESTION,
        )
        slots += [nothing] * (questions - len(slots))
        for column, part in zip(columns, zip(*slots)):
            column.append(np.concatenate([np.asarray(p) for p in part]))
        columns[4].append(np.array([KINDS.index(q.kind) for q in asked] + [-1] * (questions - len(asked))))
    ids, answers, look, read, kinds = (torch.from_numpy(np.stack(c)) for c in columns)
    h, w = scenes[0].owner.shape
    states: list[Tensor] = []
    if visual is not None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            patches = patches_of(np.stack([s.image for s in scenes]))
            states = [s.bfloat16() for s in tower(visual, patches, (h, w))]
    labels = stacked([merge_labels(s) for s in scenes])
    return Asked(states, (h, w), ids.long(), answers.long(), kinds.long(), look, read.long(), labels)


def symbol_levels(symbols: Symbols, labels: dict[str, Tensor], noise: float = 0.0) -> list[Tensor]:
    """What a perfect tower would give: per level the sum of the embeddings of its labels, [B, N, D] each."""
    out = []
    for names in LEVELS:
        x = torch.stack([symbols.tables[k]((labels[k] + 1).clamp_min(0)) for k in names]).sum(0)
        out.append(x + noise * torch.randn_like(x) if noise else x)
    return out


def positions(grid: tuple[int, int], rows: Tensor, questions: int) -> Tensor:
    """M-RoPE numbers (time, row, column) of the prompt, [3, B, 2 + n + 1 + Q * 12]: <bos>, the mark, visual tokens
    `rows` [B, n] at their places, the mark, then every question from the same start."""
    b = rows.shape[0]
    at = torch.stack([torch.zeros_like(rows), rows // grid[1], rows % grid[1]]) + 2
    end = 2 + max(grid)
    text = end + 1 + torch.arange(MAX_QUESTION, device=rows.device).repeat(questions)

    def same(values: list[int]) -> Tensor:
        return torch.tensor(values, device=rows.device).expand(3, b, -1)

    return torch.cat([same([0, 1]), at, same([end]), text.expand(3, b, -1)], dim=-1)


def fit_loss(visual: nn.Module, symbols: Symbols, batch: Asked) -> tuple[Tensor, dict[str, float]]:
    """Mean share of the symbols' variance that the mergers leave unexplained, over the levels."""
    with torch.no_grad():
        targets = symbol_levels(symbols, batch.labels)
    errors = [F.mse_loss(got.float(), t) / t.var() for got, t in zip(levels_of(visual, batch.states), targets)]
    total = torch.stack(errors).mean()
    return total, {f"unexplained{i}": float(e.detach()) for i, e in enumerate(errors)}


def language_loss(
    model: Qwen3VLForConditionalGeneration,
    maps: LookUps,
    batch: Asked,
    tokens: int | None,
    guide: float,
    symbols: Symbols | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Answer loss plus `guide` times the two fading helpers. tokens: use that many visual tokens, those with something
    on them first, or all."""
    device = batch.ids.device
    b, q = batch.kinds.shape
    shown, look = batch.labels["kind"] + batch.labels["letter"] > 0, batch.look
    n = shown.shape[1]
    rows = torch.arange(n, device=device).expand(b, -1) if tokens is None else choose(shown, tokens)
    if symbols is not None:
        labels = {k: v.gather(1, rows) for k, v in batch.labels.items()}
        main, *deep = symbol_levels(symbols, labels, noise=0.3)
    else:
        picked = [s.gather(1, rows[..., None, None].expand(-1, -1, *s.shape[2:])) for s in batch.states]
        main, *deep = levels_of(model.model.visual, picked)
    if tokens is not None:
        n = rows.shape[1]
        patch = look[..., 1:].gather(2, rows[:, None].expand(-1, look.shape[1], -1))
        look = torch.cat([look[..., :1], patch], dim=-1)
    lm = model.model.language_model
    opening = torch.tensor([*encode_words("<bos>"), special_id("<|vision_start|>")], device=device).expand(b, -1)
    closing = torch.full((b, 1), special_id("<|vision_end|>"), device=device)
    x = torch.cat([lm.embed_tokens(opening), main, lm.embed_tokens(torch.cat([closing, batch.ids], dim=1))], dim=1)
    place, prefix = slice(2, 2 + n), n + 3
    mask = questions_apart(prefix, q, device)
    rotary = lm.rotary_emb(x, position_ids=positions(batch.grid, rows, q))
    for i, layer in enumerate(lm.layers):
        x = layer(x, attention_mask=mask, position_embeddings=rotary)
        if i < len(deep):
            x = torch.cat([x[:, :2], x[:, place] + deep[i], x[:, 2 + n :]], dim=1)
    logits = model.lm_head(lm.norm(x[:, prefix:])).float()
    loss = F.cross_entropy(logits.flatten(0, 1), batch.answers.flatten(), ignore_index=-100)
    total, report = loss, {"answer_loss": float(loss.detach())}
    if guide > 0:
        columns = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(2, 2 + n)]).to(device)
        looked, read = guides(maps, look, batch.read, q, columns, prefix)
        total = loss + guide * 0.3 * (looked + read)
        report |= {"look": float(looked.detach()), "read": float(read.detach())}
    with torch.no_grad():
        report |= right_by_kind(logits, batch.answers, batch.kinds)
    return total, report
