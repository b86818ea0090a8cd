"""SVG curves: the cumulative priority mass with rho's cut, the falling radius of Scan, and times by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fsr.drawing.panels import roles
from fsr.view.comparison import MethodRun
from fsr.view.html import Markup, join, number, tag

__all__ = ["STAGES", "mass_curve", "radius_curve", "time_bar"]

W, H = 460.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 16.0, 40.0
STAGES: Mapping[str, str] = {
    "preprocess": "preprocessing",
    "vision_tower": "vision tower",
    "saliency": "saliency",
    "text_tower": "question",
    "selection": "selection",
    "prefill": "prefill",
    "decode": "decoding",
}


def mass_curve(run: MethodRun) -> Markup | None:
    """Share of the priority mass that the k highest tokens hold, where rho cuts it, and the budget (Eq. 4), or what a
    distinct Focus covers step by step; None where the method has no rho."""
    s = run.selection
    if s.priority is None or run.rho is None:
        return None
    if run.covered is not None:
        return _covered_curve(run, run.covered, run.rho)
    became = roles(s)
    phi = sorted((p for p, r in zip(s.priority.tolist(), became) if r != "structural"), reverse=True)
    counted = phi if run.mass == "all" else phi[: s.kept]
    total = sum(counted)
    if total <= 0:
        return None
    held, running = [0.0], 0.0
    for p in phi:
        running += p
        held.append(running / total)
    wanted = s.focus_wanted or s.n_focus
    last = min(len(phi), max(2 * s.kept, round(1.4 * wanted), 12))
    step = max(1, last // 240)
    points = [(k, min(held[k], 1.0)) for k in [*range(0, last, step), last]]
    plot = _Plot(last, 1.0)
    marks = [
        _axis(plot, [0, 0.25, 0.5, 0.75, 1], "tokens by falling priority", lambda v: f"{100 * v:.0f} %"),
        tag(
            "path", d=plot.area([p for p in points if p[0] <= s.n_focus] + [(s.n_focus, held[s.n_focus])]), cls="filled"
        ),
        tag("path", d=plot.line(points), cls="curve"),
        _rule(plot, y=run.rho, text=f"ρ = {run.rho:g}"),
        _rule(plot, x=s.kept, text=f"K = {s.kept}"),
    ]
    if wanted != s.kept:
        marks.append(_rule(plot, x=wanted, text=f"{wanted}", cls="rule focus-rule", lift=18))
    marks.append(tag("circle", cx=plot.x(wanted), cy=plot.y(min(held[min(wanted, len(phi))], 1)), r=4.5, cls="dot"))
    label = f"Cumulative priority mass: {wanted} tokens hold {100 * run.rho:g} %; Focus takes {s.n_focus} of {s.kept}."
    return _chart(marks, label)


def _covered_curve(run: MethodRun, covered: Sequence[float], rho: float) -> Markup:
    s = run.selection
    points = list(enumerate([0.0, *covered]))
    plot = _Plot(max(s.n_focus + 1, s.kept if s.kept <= 2 * s.n_focus else 0, 4), 1.0)
    marks = [
        _axis(plot, [0, 0.25, 0.5, 0.75, 1], "tokens that Focus took", lambda v: f"{100 * v:.0f} %"),
        tag("path", d=plot.area(points), cls="filled"),
        tag("path", d=plot.line(points), cls="curve"),
        _rule(plot, y=rho, text=f"ρ = {rho:g}"),
        _rule(plot, x=s.kept, text=f"K = {s.kept}") if s.kept <= plot.last else None,
    ]
    marks += [tag("circle", cx=plot.x(x), cy=plot.y(y), r=3.5, cls="dot") for x, y in points[1:]]
    share = 100 * points[-1][1]
    label = f"{s.n_focus} tokens cover {share:.0f} % of the priority mass; Focus takes {s.n_focus} of {s.kept}."
    return _chart(marks, label)


def radius_curve(run: MethodRun) -> Markup | None:
    """Covering radius (1 - cos) before each scan step and after the last one. None where nothing was scanned."""
    s = run.selection
    if s.radii is None or not len(s.radii):
        return None
    values = s.radii.tolist()
    if s.certificate is not None:
        values.append(s.certificate.radius_cos)
    top = max(max(values), 1e-6)
    plot = _Plot(max(1, len(values) - 1), top)
    points = list(enumerate(values))
    marks = [
        _axis(plot, [0, top / 2, top], "scan steps done", lambda v: f"{v:.2g}"),
        tag("path", d=plot.line(points), cls="curve scan-curve"),
    ]
    if len(points) <= 48:
        marks += [tag("circle", cx=plot.x(x), cy=plot.y(y), r=2.6, cls="dot scan-dot") for x, y in points]
    label = f"Covering radius falls from {values[0]:.3g} to {values[-1]:.3g} in {len(s.radii)} scan steps."
    return _chart(marks, label)


def time_bar(stages_ms: Mapping[str, float], longest: float) -> Markup:
    """One run as a bar of its stages; `longest` milliseconds fill it."""
    x, parts = 0.0, []
    for name in STAGES:
        width = 1000 * max(0.0, stages_ms.get(name, 0.0)) / max(longest, 1e-9)
        parts.append(tag("rect", x=x, y=0, width=width, height=24, cls=f"st-{name}"))
        x += width
    label = ", ".join(f"{STAGES[k]} {stages_ms[k]:.1f} ms" for k in STAGES if k in stages_ms)
    return tag("svg", parts, viewBox="0 0 1000 24", preserveAspectRatio="none", role="img", aria_label=label, cls="bar")


# ----------------------------------------------------------------------------------------------------------------------


class _Plot:
    """Data to picture coordinates; both axes start at 0."""

    def __init__(self, last: float, top: float) -> None:
        self.last, self.top = max(last, 1e-9), max(top, 1e-9)

    def x(self, value: float) -> float:
        return LEFT + (W - LEFT - RIGHT) * value / self.last

    def y(self, value: float) -> float:
        return H - BOTTOM - (H - TOP - BOTTOM) * value / self.top

    def line(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{number(self.x(x))} {number(self.y(y))}" for x, y in points)

    def area(self, points: Sequence[tuple[float, float]]) -> str:
        return f"{self.line([*points, (points[-1][0], 0.0), (0.0, 0.0)])}z"


def _axis(plot: _Plot, ticks: Sequence[float], title: str, text) -> Markup:  # type: ignore[no-untyped-def]
    marks = []
    for v in ticks:
        marks.append(tag("line", x1=LEFT, x2=W - RIGHT, y1=plot.y(v), y2=plot.y(v), cls="mesh"))
        marks.append(tag("text", text(v), x=LEFT - 8, y=plot.y(v) + 4, cls="tick", text_anchor="end"))
    whole = sorted({0, round(plot.last / 2), round(plot.last)})
    marks += [tag("text", v, x=plot.x(v), y=H - BOTTOM + 16, cls="tick", text_anchor="middle") for v in whole]
    marks.append(tag("text", title, x=(LEFT + W - RIGHT) / 2, y=H - 6, cls="axis", text_anchor="middle"))
    return join(marks)


def _rule(
    plot: _Plot, text: str, x: float | None = None, y: float | None = None, cls: str = "rule", lift: float = 0.0
) -> Markup:
    if y is not None:
        at = plot.y(y)
        line = tag("line", x1=LEFT, x2=W - RIGHT, y1=at, y2=at, cls=cls)
        return join([line, tag("text", text, x=W - RIGHT, y=at + 15, cls="note", text_anchor="end")])
    at = plot.x(x or 0.0)
    line = tag("line", x1=at, x2=at, y1=TOP, y2=H - BOTTOM, cls=cls)
    side, anchor = (-5, "end") if at > W - 80 else (5, "start")
    return join([line, tag("text", text, x=at + side, y=H - BOTTOM - 8 - lift, cls="note", text_anchor=anchor)])


def _chart(marks: Sequence[Markup | None], label: str) -> Markup:
    return tag("svg", list(marks), viewBox=f"0 0 {number(W)} {number(H)}", role="img", aria_label=label, cls="chart")
