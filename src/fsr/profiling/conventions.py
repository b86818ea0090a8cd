"""How papers count: presets by name, and Table 7 of the FSR paper recomputed row by row.

The same unpruned LLaVA-1.5-7B has "3.0", "3.8", "7.6" or "9.0" TFLOPs, depending on the paper: only numbers of one
convention compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fsr.errors import UsageError
from fsr.profiling.configs import clip_text, named
from fsr.profiling.counts import FULL, Convention, Counts, Relevance, count
from fsr.profiling.schedules import fastv
from fsr.profiling.shapes import text_tower
from fsr.profiling.visual import visual

__all__ = ["PRESETS", "Row", "preset", "table7", "twin_of"]

LLM = frozenset({"llm_linear", "llm_attention", "lm_head"})

TABLE7 = Convention(
    name="paper-table7",
    source="FSR (arXiv 2602.05809), Table 7: linear layers only, all CLIP layers, lm_head on every position, 80 text "
    "tokens; the KV cache holds visual tokens only, fp16, MB = MiB",
    attention=False,
    lm_head="all",
    kv_text=False,
)
# One layer: 4 n d^2 + 2 n^2 d + 2 n d m.
FASTV = Convention(
    name="paper-fastv",
    source="FastV (arXiv 2403.06764) and DivPrune: 4nd^2 + 2n^2d + 2ndm per layer, visual tokens only; these are MACs, "
    "and a gated feed-forward block is counted as if it had two matrices",
    parts=LLM - {"lm_head"},
    text=False,
    kv_text=False,
    mlp_matrices=2,
    flops_per_mac=1,
)
# One layer: 4 n d^2 + 2 n^2 d + 3 n d m.
SPARSEVLM = Convention(
    name="paper-sparsevlm",
    source="SparseVLM (arXiv 2410.04417): 4nd^2 + 2n^2d + 3ndm per layer, visual tokens only; these are MACs",
    parts=LLM - {"lm_head"},
    text=False,
    kv_text=False,
    flops_per_mac=1,
)
PRESETS = {c.name: c for c in (FULL, TABLE7, FASTV, SPARSEVLM)}


def preset(name: str) -> Convention:
    """A convention by name.

    Raises:
        UsageError: unknown name; the message lists the known ones.
    """
    if name not in PRESETS:
        raise UsageError(f"no preset {name!r}: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def twin_of(config: Any) -> Relevance | None:
    """The text tower that pairs with a model's vision tower, at its full 77 tokens (an upper bound); None if none is
    known."""
    v = config.vision_config
    if v.model_type != "clip_vision_model" or (v.hidden_size, v.num_hidden_layers) != (1024, 24):
        return None
    text = clip_text()
    return Relevance(text_tower(text), text.max_position_embeddings, (v.hidden_size, text.projection_dim))


@dataclass(frozen=True)
class Row:
    """One row of Table 7: what was printed (T, T, MB) and what the counts give. `follows`: every printed digit
    agrees."""

    method: str
    tokens: int
    printed: tuple[float, float, float]
    computed: Counts
    remark: str

    @property
    def shown(self) -> tuple[str, str, str]:
        """Computed FLOPs and MACs in T and the cache in MiB, rounded as the paper prints."""
        c = self.computed
        return f"{c.flops / 1e12:.3f}", f"{c.total_macs / 1e12:.3f}", f"{c.kv_bytes / 2**20:.1f}"

    @property
    def follows(self) -> bool:
        """True if all three numbers agree to the last printed digit."""
        f, m, k = self.printed
        return self.shown == (f"{f:.3f}", f"{m:.3f}", f"{k:.1f}")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        flops, macs, kv = self.shown
        return {
            "method": self.method,
            "tokens": self.tokens,
            "printed": {"flops_T": self.printed[0], "macs_T": self.printed[1], "kv_MB": self.printed[2]},
            "computed": {"flops_T": float(flops), "macs_T": float(macs), "kv_MB": float(kv)},
            "follows": self.follows,
            "remark": self.remark,
            "counts": self.computed.as_dict(),
        }


def table7() -> list[Row]:
    """Table 7 of the FSR paper (LLaVA-1.5-7B, 64 of 576 tokens) under the convention that was found to fit it.

    The convention and the 80 text tokens are inferred: the paper does not give them.
    """
    config = named("llava-1.5-7b")
    config.text_config.vocab_size = 32000  # the original checkpoint; the one for Transformers is padded by 64 rows
    picture, n, c = visual(config), 576, config.vision_config.hidden_size
    twin = twin_of(config)
    one_similarity = n * n * c

    def row(method: str, printed: tuple[float, float, float], remark: str, kept: Any = 64, **more: Any) -> Row:
        tokens = kept if isinstance(kept, int) else 64
        return Row(method, tokens, printed, count(config, picture, kept=kept, convention=TABLE7, **more), remark)

    return [
        row("vanilla", (9.042, 4.521, 288.0), "exact", kept=n),
        row(
            "fastv",
            (3.610, 1.800, 32.1),
            "does not follow: the printed cache fits two full layers and 30 tokens after them, and that schedule "
            "needs the operations computed here; the printed ones would take about eight full layers",
            kept=fastv(32, n, 30),
        ),
        row(
            "vispruner",
            (2.277, 1.138, 32.0),
            "exact with one similarity matrix of the 544 tokens left after 32 picks (inferred)",
            selection_macs=544 * 544 * c,
        ),
        row(
            "cdpruner",
            (2.293, 1.146, 32.0),
            "does not follow: 1.7 GFLOPs more than FSR's row, of unknown origin",
            relevance=twin,
            selection_macs=one_similarity,
        ),
        row(
            "fsr",
            (2.291, 1.145, 32.0),
            "exact with CLIP's text tower (77 tokens), its projection of 576 patches and one 576 x 576 similarity",
            relevance=twin,
            selection_macs=one_similarity,
        ),
    ]
