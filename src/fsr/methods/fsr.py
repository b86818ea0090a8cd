"""Focus-Scan-Refine: Tong, Bai, Zhu, Jiang, Liu, "Focus-Scan-Refine: From Human Visual Perception to Efficient Visual
Token Pruning", arXiv 2602.05809 (2026). Written from the paper's equations; its authors have published no code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from fsr.errors import UsageError
from fsr.kernels import cosines_of, directions
from fsr.methods.base import Method, Picks, Signal, register
from fsr.methods.options import EXPONENT, SHARE, Within
from fsr.stages.evidence import lift, robust_priority
from fsr.stages.focus import FocusBy, FocusMass, distinct_focus, focus, priority, volume_focus
from fsr.stages.normalise import Normalisation, normalise
from fsr.stages.refine import refine
from fsr.stages.scan import Scan, scan
from fsr.tokens import Stage, VisualTokens

__all__ = ["FSR"]


@register
@dataclass(frozen=True)
class FSR(Method):
    """Focus-Scan-Refine (arXiv 2602.05809): keep what the question asks for, cover the rest, merge what was dropped
    into the cover.

    1. Focus. s_i is saliency (Eq. 1), r_i relevance to the question (Eq. 2), both normalised to [0, 1] per image, and
       made robust: half of a token's score is the mean over the tokens that look like it. Priority phi_i is
       (f + (1 - f) r_i^alpha) * (1 - T (1 - s_i))^beta. The floor f = x^2 / (x^2 + lift^2) rises with the share that
       is kept, x = K / N; T is how much of saliency's variance look-alikes have in common. Focus F takes argmax over
       i of phi_i^2 * (what of the direction of v_i the chosen tokens do not span), for max_focus of the budget.
       (focus_by='distinct': phi_i = r_i^alpha * s_i^beta (Eq. 3), argmax of phi_i * min over chosen j of
       (1 - cos(v_i, v_j)), until what is left of that is at most the share 1 - rho of sum(phi). focus_by='prefix', the
       paper's Eq. 4: the shortest prefix by falling phi that holds the share rho.)
    2. Scan. K - |F| times add argmax over i of min over chosen j of (1 - cos(v_i, v_j)) (Eq. 5): S.
    3. Refine. Each dropped token goes to its most similar anchor of S (Eq. 8); the kappa * |S| most similar ones are
       absorbed: v_j <- (w_j v_j + w_i v_i) / (w_j + w_i), weights phi (Eq. 9). F stays untouched, bit for bit.

    Exactly K tokens come out, in raster order. Ties go to the lowest index.

    The guarantee, corrected: Eq. 7 claims a covering radius of at most 2 R_opt under 1 - cos, which is no metric. The
    factor 2 holds for the chordal distance |v_i/|v_i| - v_j/|v_j||, and hence 4 for 1 - cos (`Selection.certificate`
    reports both).

    Args:
        keep, per: the budget, see `Method`.
        alpha: exponent of relevance, >= 0 (3 in the paper).
        beta: exponent of saliency, >= 0 (1 in the paper).
        rho: share of the priority mass that a 'distinct' or 'prefix' Focus covers, in (0, 1].
        kappa: dropped tokens that Refine merges per scan anchor, >= 0 (0 switches Refine off).
        focus_by: 'volume', 'distinct' or 'prefix' (the paper), see above. This default and those of alpha, beta,
            max_focus, agree and lift were chosen on the validation split of the embedded benchmark over signals of many
            qualities (`fsr compare --plane`, docs/method.md); `PaperFSR` ('fsr-paper') has the paper's.
        agree: with 'volume', the share of a signal that comes from tokens of like features, in [0, 1].
        lift: with 'volume', the share K / N at which phi is half floor, >= 0; 0 trusts the signals at any budget.
        focus_mass: the mass that a prefix counts rho of: 'all' tokens (the paper) or the 'top_k' by priority.
        max_focus: largest share of the budget that Focus may take, in [0, 1] (1 in the paper); with 'volume' the share
            that it takes, rounded up.
        relevance: 'auto' needs relevance; 'none' sets alpha to 0. `prune` switches to 'none', and says so in its
            report, for families without a public text tower (the paper on Qwen2.5-VL) and without a calibration.
        normalise: 'minmax', 'rank' or 'softmax'.
        distance: features behind the cosines of Eq. 5 and 8: 'projected' (what the language model sees) or 'encoder'
            (before the projector). Merging always averages projected features.

    Raises:
        UsageError: an option out of range.
    """

    name: ClassVar[str] = "fsr"
    paper: ClassVar[str] = "arXiv 2602.05809"
    licence_note: ClassVar[str] = "written from the paper; no official code exists"
    needs: ClassVar[frozenset[Signal]] = frozenset({"saliency", "relevance"})

    alpha: Annotated[float, EXPONENT] = 1.0
    beta: Annotated[float, EXPONENT] = 0.25
    rho: Annotated[float, Within(0, 1, above=True)] = 0.9
    kappa: Annotated[float, Within(0, 1e6)] = 1.0
    focus_by: FocusBy = "volume"
    focus_mass: FocusMass = "all"
    max_focus: Annotated[float, SHARE] = 0.9
    agree: Annotated[float, SHARE] = 0.5
    lift: Annotated[float, Within(0, 1e6)] = 0.05
    relevance: Literal["auto", "none"] = "auto"
    normalise: Normalisation = "minmax"
    distance: Literal["projected", "encoder"] = "projected"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.focus_by != "prefix" and self.focus_mass != "all":
            raise UsageError("focus_mass='top_k' needs focus_by='prefix': the others weigh the mass of all tokens.")

    def signals(self) -> frozenset[Signal]:
        """Saliency; relevance unless it is off or has no weight; encoder features if distances are taken there."""
        used: set[Signal] = {"saliency"}
        if self.relevance == "auto" and self.alpha > 0:
            used.add("relevance")
        if self.distance == "encoder":
            used.add("encoder")
        return frozenset(used)

    def pick(self, tokens: VisualTokens, k: int) -> Picks:
        """Focus, scan and refine B stacked images. Choices carry no gradient; kept and merged features do."""
        with torch.no_grad():
            phi, wanted, units, scanned = self._choose(tokens, k)
        features, merged_into = refine(
            tokens.features, units, scanned.rows, scanned.scanned, phi, self.kappa, scanned.similarity
        )
        return Picks(
            rows=scanned.rows,
            stage=torch.where(scanned.scanned, int(Stage.SCAN), int(Stage.FOCUS)),
            features=features,
            merged_into=merged_into,
            priority=phi,
            radii=scanned.radii,
            focus_wanted=wanted,
            radius_cos=scanned.radius,
        )

    def _choose(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor, Tensor, Scan]:
        """Priority [B, N], K_F before the cap [B], directions [B, N, D], and the rows of Focus and Scan."""
        signals = self.signals()
        device = tokens.features.device
        raw = self.need(tokens, "saliency").to(device)
        s = normalise(raw, self.normalise, tokens.saliency_span)
        r = None
        if "relevance" in signals:
            r = normalise(self.need(tokens, "relevance").to(device), self.normalise, tokens.relevance_span)
        units = directions(self.need(tokens, "encoder") if "encoder" in signals else tokens.features)
        if self.focus_by == "volume":
            similarity = cosines_of(units)
            floor = lift(k, tokens.count, self.lift)
            phi = robust_priority(s, r, similarity, self.alpha, self.beta, self.agree, floor)
            chosen = volume_focus(phi, similarity, k, self.max_focus)
            return phi, chosen.wanted, units, scan(units, chosen, raw)
        phi = priority(s, r, self.alpha, self.beta)
        if self.focus_by == "distinct":
            chosen = distinct_focus(phi, units, k, self.rho, self.max_focus)
        else:
            chosen = focus(phi, k, self.rho, self.focus_mass, self.max_focus)
        return phi, chosen.wanted, units, scan(units, chosen, raw)
