"""Two rules for text and places as variants of Focus, at equal K: neighbours of what was chosen, and rotary anchors.

    OMP_NUM_THREADS=1 python benchmarks/focus_variants.py [--model mini-qwen3] [--questions 800] [--keep 16,9]

* `dilate 4`, `dilate 8`: a token that Focus chose brings the tokens beside it (4), and those at its corners (8), inside
  the budget of Focus (arXiv 2509.06415 does so after pruning, for documents).
* `anchors`: a fifth of K for the tokens of the largest mean cosine and mean sine of the rotary embedding at their
  positions, half each (IVC-Prune); Focus and Scan get the rest.

Validation split; accuracy on reading, on position and on all other questions, differences to FSR by exact McNemar.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from fsr.asking.load import load, world_of
from fsr.evaluation.question_set import build
from fsr.evaluation.runner import Runner
from fsr.evaluation.score import plain
from fsr.evaluation.trials import Trial
from fsr.kernels import cosines_of, directions
from fsr.methods import FSR
from fsr.stages.evidence import lift, robust_priority
from fsr.stages.focus import Focus, volume_focus
from fsr.stages.normalise import normalise
from fsr.stages.scan import Scan, scan
from fsr.tokens import VisualTokens
from right_answers import compared

TEXT_BEFORE = 1  # text tokens in front of the picture; the anchors of both models hardly move with it


def places(tokens: VisualTokens) -> Tensor:
    """Row and column of every token in its raster, long [B, N, 2]."""
    assert tokens.geometry is not None
    boxes = tokens.geometry.boxes
    size = boxes[..., 2:] - boxes[..., :2]
    return (boxes[..., :2] / size).round().long().flip(-1)


@dataclass(frozen=True)
class Variant(FSR):
    """FSR by volume, with another Focus."""

    name = "variant"
    reach: int = 0  # 4 or 8 neighbours, 0: none
    anchors: bool = False
    rotary: ClassVar[Callable[[Tensor], Tensor]]  # places [N, 2] to [N, 2], see `rotary_of`

    def _choose(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor, Tensor, Scan]:
        raw = self.need(tokens, "saliency")
        s, r = normalise(raw, self.normalise), None
        if "relevance" in self.signals():
            r = normalise(self.need(tokens, "relevance"), self.normalise)
        units = directions(tokens.features)
        similarity = cosines_of(units)
        phi = robust_priority(s, r, similarity, self.alpha, self.beta, self.agree, lift(k, tokens.count, self.lift))
        size = int(volume_focus(phi, similarity, k, self.max_focus).size[0])
        order = volume_focus(phi, similarity, k, 1.0).rows
        rows = torch.full_like(order, -1)
        for b, place in enumerate(places(tokens)):
            taken = self._first(place, k) if self.anchors else []
            for row in order[b].tolist():
                near = (place - place[row]).abs()
                wide = near.amax(-1) <= 1 if self.reach == 8 else near.sum(-1) <= min(1, self.reach)
                beside = [row, *(i for i in wide.nonzero().flatten().tolist() if i != row)]
                taken += [i for i in beside if i not in taken]
            rows[b, :size] = torch.tensor(taken[:size])
        chosen = Focus(rows, torch.full((len(rows),), size), torch.full((len(rows),), size), similarity)
        return phi, chosen.wanted, units, scan(units, chosen, raw)

    def _first(self, place: Tensor, k: int) -> list[int]:
        """The anchors: a fifth of K, from the largest mean cosine and mean sine in turn."""
        first: list[int] = []
        for pair in Variant.rotary(place).argsort(dim=0, descending=True).tolist():
            first += [i for i in pair if i not in first]
        return first[: max(1, k // 5)]


def rotary_of(model: Any) -> Callable[[Tensor], Tensor]:
    """Mean cosine and mean sine at a token's position, by the model's own rotary embedding."""
    inner = model.model.language_model

    def score(place: Tensor) -> Tensor:
        if world_of(model.config) == "mini":
            ids = TEXT_BEFORE + torch.arange(len(place))[None]
        else:
            ids = TEXT_BEFORE + torch.stack([torch.zeros(len(place), dtype=torch.long), *place.T])[:, None]
        cos, sin = inner.rotary_emb(torch.zeros(1, len(place), 1), ids)
        return torch.stack([cos[0].mean(-1), sin[0].mean(-1)], dim=-1)

    return score


@torch.inference_mode()
def run(args: argparse.Namespace) -> dict[str, Any]:
    """One row per variant and budget."""
    model, processor = load(args.model, "cpu")
    questions = build("validation", 0, args.questions, world_of(model.config))
    kinds = np.array([i.question.kind for i in questions.items])
    groups = {"reading": kinds == "reading", "position": kinds == "position"}
    groups["others"] = ~(groups["reading"] | groups["position"])
    runner = Runner(model, processor, questions)
    Variant.rotary = staticmethod(rotary_of(model))
    rows = []
    for keep in (int(k) for k in args.keep.split(",")):
        variants = {
            "fsr": FSR(keep=keep),
            "no change": Variant(keep=keep),
            "dilate 4": Variant(keep=keep, reach=4),
            "dilate 8": Variant(keep=keep, reach=8),
            "anchors": Variant(keep=keep, anchors=True),
        }
        base: np.ndarray | None = None
        for name, method in variants.items():
            found = runner.run([Trial(name, method)])[0]
            right = np.array([plain(o.answer) == plain(i.question.answer) for o, i in zip(found, questions.items)])
            base = right if base is None else base
            row: dict[str, Any] = {"keep": keep, "variant": name}
            for group, here in groups.items():
                row[group] = {"accuracy": 100 * float(right[here].mean()), "p": compared(right & here, base & here)[2]}
            rows.append(row)
            print(keep, name, {g: f"{row[g]['accuracy']:.1f} (p {row[g]['p']:.2g})" for g in groups}, flush=True)
    return {"model": args.model, "split": "validation", "questions": len(questions), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini-qwen3", choices=("mini", "mini-qwen3"))
    parser.add_argument("--questions", type=int, default=800)
    parser.add_argument("--keep", default="16,9")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.set_verbosity_error()
    out = run(args)
    if args.json:
        args.json.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
