"""SparseVLM: "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", arXiv 2410.04417
(ICML 2025), v1.

    raters  = {j : m_j > mean(m)},  m = mean over image tokens i of softmax over text j of <v_i, q_j>
              (input embeddings; all text behind the picture)
    P_i     = mean over raters j of the head mean of A_l[j, i];  the top k tokens by P stay
    recycle : t = floor(0.3 n) + 1 of the n dropped tokens, by P, form c = floor(t / 10) + 1 clusters by density peaks
              on their states x: d_ij = |x_i - x_j| / sqrt(D), rho_i = exp(-mean of d^2 to the c nearest, itself
              included), delta_i = least d to a denser token (the largest d of all for the densest); centres = top c by
              rho * delta; each token joins its nearest centre; a cluster becomes sum / (count + 1e-6)

Prunes: behind decoder layers 2, 6, 15 of 32 (so in front of 3, 7, 16), at prefill. Needs: the raters' attention rows of
these layers.
Differs from the authors' code:
- kept tokens keep their position ids and raster order, and a recycled token takes the place of its cluster's centre.
  Theirs appends the recycled tokens behind the picture and numbers everything anew (v2.0 keeps the ids and has no
  recycling; that is `recycle=False`);
- `keep` counts all tokens that stay, recycled ones included (theirs come on top, and a budget named 192 holds 309, 204
  and 113); k is the largest with k + c <= K, and at least one;
- equal densities rank by P; theirs adds 1e-6 times random noise (`density_peaks` takes such noise);
- rater rows and no full attention map; batches, several pictures. The paper's rank-based level is not in their code,
  and not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from fsr.errors import FeatureError
from fsr.methods.base import register
from fsr.methods.in_llm import Choice, InLLMMethod, View, spread
from fsr.methods.options import LAYER
from fsr.stages.ranking import top_k

__all__ = ["SparseVLM", "cluster_count", "density_peaks", "raters", "recycled", "relation"]

PLACES = (3 / 32, 7 / 32, 16 / 32)


def raters(image: Tensor, text: Tensor) -> Tensor:
    """Text tokens that the picture points to, rising rows of text, long [R], R >= 1.

    image: [N, D], text: [T, D], both as they enter the first layer.
    """
    m = (image.float() @ text.float().T).softmax(-1).mean(0)
    chosen = (m > m.mean()).nonzero().squeeze(-1)
    # All text tokens alike: no one stands out, so all of them rate.
    return chosen if len(chosen) else torch.arange(len(m), device=m.device)


def relation(rows: Tensor) -> Tensor:
    """P: attention rows of the raters, float32 [R, N], to scores [N]."""
    return rows.float().mean(0)


def cluster_count(dropped: int) -> tuple[int, int]:
    """How many of the dropped tokens are recycled, and into how many clusters."""
    t = int(0.3 * dropped) + 1
    return t, t // 10 + 1


def density_peaks(states: Tensor, c: int, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cluster by density peaks: states [M, D], c <= M. Returns the centres, long [c], and the cluster of each token,
    long [M].

    noise: [M], added to the densities (the authors draw 1e-6 * uniform); None breaks ties by the lowest row.
    """
    x = states.float()
    distance = torch.cdist(x[None], x[None], compute_mode="donot_use_mm_for_euclid_dist")[0] / x.shape[-1] ** 0.5
    density = distance.topk(c, largest=False).values.square().mean(-1).neg().exp()
    if noise is not None:
        density = density + noise
    index = torch.arange(len(x), device=x.device)
    denser = (density[None] > density[:, None]) | ((density[None] == density[:, None]) & (index[None] < index[:, None]))
    delta = torch.where(denser, distance, distance.max()).amin(-1)
    centres = top_k(delta * density, c)
    cluster = distance[centres].argmin(0)
    cluster[centres] = torch.arange(c, device=x.device)
    return centres, cluster


def recycled(states: Tensor, cluster: Tensor, c: int) -> Tensor:
    """One token per cluster, float32 [c, D]: sum / (count + 1e-6)."""
    x = states.float()
    sums = torch.zeros(c, x.shape[-1], device=x.device).index_add_(0, cluster, x)
    count = torch.zeros(c, device=x.device).index_add_(0, cluster, torch.ones_like(cluster, dtype=torch.float))
    return sums / (count + 1e-6)[:, None]


@register
@dataclass(frozen=True)
class SparseVLM(InLLMMethod):
    """Tokens that the relevant words of the prompt attend to; the best of the rest recycled into clusters.

    Args:
        keep: see `InLLMMethod`; the authors' lists for 576 tokens are tuples, for example (66, 30, 17) for their "64".
        at: the decoder layers to drop in front of; None takes (3, 7, 16) of 32, scaled to the depth.
        recycle: whether clusters of dropped tokens are part of what stays.
    """

    name = "sparsevlm"
    paper = "arXiv 2410.04417"
    licence_note = "authors' code: Apache-2.0; written from the formulas"
    needs = frozenset({"attention", "embeddings", "states", "text"})

    at: tuple[Annotated[int, LAYER], ...] | None = None
    recycle: bool = True

    def drop_layers(self, depth: int) -> tuple[int, ...]:
        """`at`, or the authors' places scaled to the depth."""
        return spread(PLACES, depth) if self.at is None else tuple(self.at)

    def choose(self, view: View, k: int) -> Choice:
        """See `InLLMMethod.choose`.

        Raises:
            FeatureError: no text stands behind the picture.
        """
        if view.embeddings is None or not len(view.text):
            raise FeatureError(
                "sparsevlm rates tokens by the text behind the picture, and there is none: put the question behind it."
            )
        n, image = len(view.image), view.image
        words = view.text[raters(view.embeddings[image], view.embeddings[view.text])]
        score = relation(view.attention(words)[:, image])
        if not self.recycle or k < 2:
            return Choice(top_k(score, k))
        # k + c grows by 0 or 1 with k, so the largest k that fits fills the budget exactly; a budget below c gets k =
        # 1.
        best = max((i for i in range(1, k) if i + cluster_count(n - i)[1] <= k), default=1)
        ranked = top_k(score, n)
        source = ranked[best : best + cluster_count(n - best)[0]]
        states = view.hidden[image[source]]
        centres, cluster = density_peaks(states, k - best)
        merged = source[centres]
        return Choice(torch.cat([ranked[:best], merged]), merged, recycled(states, cluster, k - best))
