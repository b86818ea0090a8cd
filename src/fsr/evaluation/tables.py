"""The numbers of `compare` and `ablate` as text: for the terminal and, in Markdown, for the README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fsr.evaluation.qualities import CLEAN
from fsr.evaluation.question_set import KINDS
from fsr.evaluation.trials import SHRUNK

__all__ = ["ablation_table", "comparison_tables", "heading", "markdown", "p_value", "points", "text"]

Rows = list[list[str]]


def markdown(rows: Rows) -> str:
    """A Markdown table; the first row is the head, the first column is words and the others are numbers."""
    head, *body = rows
    line = lambda cells: "| " + " | ".join(cells) + " |"
    rule = "|" + "|".join(["---", *["---:"] * (len(head) - 1)]) + "|"
    return "\n".join([line(head), rule, *map(line, body)])


def text(rows: Rows) -> str:
    """The same in columns for a terminal."""
    rows = [[cell.replace("**", "") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    )


def heading(result: dict[str, Any]) -> str:
    """What was asked, of which model, and what it can do unpruned."""
    q, model = result["questions"], result["model"]
    parts = [
        f"{q['count']} questions on {q['pictures']} pictures ({q['split']} split, seed {q['seed']}, "
        f"sha256 {q['sha256'][:12]}), model {model['sha256'][:12]}, {result['date']}.",
        f"Unpruned: {_percent(result['unpruned']['accuracy']['value'])} %."
        f" Kinds that the unpruned model solves: {', '.join(result['solved_kinds']) or 'none'}.",
        *_signals(result),
        *([f"Base: {_base(result['base'][0]['settings'])}."] if "base" in result else []),
        *([f"Note: {q['note']}"] if q["note"] else []),
    ]
    return "\n".join(parts)


def _signals(result: dict[str, Any]) -> list[str]:
    """Where relevance came from (the plane's own entry of that name are its levels), and what was made worse."""
    source, quality = result.get("source", result.get("relevance")), result.get("quality")
    told = [] if source in (None, "none") else [f"Relevance: {source}."]
    if quality is None or quality == asdict(CLEAN):
        return told
    unread = " (read by no method here)" if source == "none" else ""
    return [
        *told,
        f"Signals made worse: relevance {quality['relevance']}{unread}, saliency {quality['saliency']}.",
    ]


def points(share: float, digits: int = 1) -> str:
    """A difference of shares in points with its sign; what rounds to nothing is +0.0."""
    return f"{round(100 * share, digits) + 0.0:+.{digits}f}"


def p_value(p: float) -> str:
    """Two digits, or the power of ten below which it lies."""
    if p >= 0.001:
        return f"{p:.3f}"
    power = 3
    while power < 12 and p < 10.0 ** -(power + 1):
        power += 1
    return f"< 1e-{power}"


def comparison_tables(result: dict[str, Any]) -> dict[str, Rows]:
    """Four tables by title: accuracy by budget, against FSR, kinds at each budget, where the budget went."""
    rows, full = result["results"], result["unpruned"]
    names = list(dict.fromkeys(r["method"] for r in rows))
    keeps = list(dict.fromkeys(r["keep"] for r in rows))
    at = {(r["method"], r["keep"]): r for r in rows}
    total = f"{full['tokens']:.0f}"

    accuracy: Rows = [["accuracy, %", *(f"{k} of {total}" for k in keeps)]]
    accuracy.append(["unpruned", *[_with_interval(full["accuracy"])] * len(keeps)])
    for name in names:
        cells = [_with_interval(at[name, k]["accuracy"]) for k in keeps]
        accuracy.append([f"**{name}**" if name == "fsr" else name, *cells])
    tables = {"Accuracy on all kinds (95 % interval over pictures)": accuracy}
    if result["solved_kinds"]:
        solved: Rows = [["share of unpruned, %", *(f"{k} of {total}" for k in keeps)]]
        for name in names:
            solved.append([f"**{name}**" if name == "fsr" else name, *(_shares(at[name, k]) for k in keeps)])
        title = "Share of the unpruned accuracy over the kinds that the unpruned model solves"
        tables[f"{title} (ratio of means / mean of ratios)"] = solved
    others = [n for n in names if n != "fsr"]
    if others:
        against: Rows = [["FSR against", *(f"{k} of {total}" for k in keeps)]]
        for name in others:
            against.append([name, *(_against(at[name, k]["against_fsr"]) for k in keeps)])
        tables["FSR minus the other in points (questions gained - lost by FSR; exact McNemar p)"] = against
    for k in keeps:
        kinds: Rows = [[f"accuracy at {k}, %", *KINDS, "loyalty"]]
        kinds.append(["unpruned", *(_percent(full["accuracy_by_kind"][kind]) for kind in KINDS), "100.0"])
        for name in names:
            row = at[name, k]
            cells = [_percent(row["accuracy_by_kind"][kind]) for kind in KINDS]
            kinds.append([name, *cells, _percent(row["loyalty"]["value"])])
        tables[f"By kind, {k} of {total} tokens"] = kinds
        spent: Rows = [
            [
                f"budget at {k}",
                "on asked, %",
                "asked patches kept, %",
                "asked objects found, %",
                "on distractor, %",
                "radius",
                "no Scan, %",
                "answer, tokens",
            ]
        ]
        for name in names:
            row = at[name, k]
            if name == SHRUNK:  # no token of the picture was chosen
                continue
            spent.append(
                [
                    name,
                    _percent(row["share_of_budget_on_asked"]),
                    _percent(row["asked_patches_kept"]),
                    _percent(row["asked_objects_found"]),
                    _percent(row["share_of_budget_on_big_distractor"]),
                    f"{row['coverage_radius']['median']:.2f}",
                    _percent(row["focus"]["no_scan"]) if "focus" in row else "-",
                    _tokens(row),
                ]
            )
        spent.append(["unpruned", *["-"] * 7, _tokens(full)])
        tables[f"Where {k} tokens went (radius: median chordal coverage)"] = spent
    return tables


def ablation_table(result: dict[str, Any]) -> Rows:
    """One row per variant: accuracy at each budget, and the paired difference from the base."""
    rows = result["results"]
    keeps = list(dict.fromkeys(r["keep"] for r in rows))
    at = {(r["group"], r["variant"], r["keep"]): r for r in rows}
    head = ["option", "value"]
    for k in keeps:
        head += [f"at {k}, %", "against base", "p"]
    out: Rows = [head]
    for group, variant in dict.fromkeys((r["group"], r["variant"]) for r in rows):
        cells = [group, variant]
        for k in keeps:
            row = at[group, variant, k]
            cells.append(_percent(row["accuracy"]["value"]))
            if row["is_base"]:
                cells += ["base", ""]
            else:
                pair = row["against_base"]["runs"][0]
                cells += [points(pair["difference"]["value"]), p_value(pair["p"])]
        out.append(cells)
    return out


def _base(settings: dict[str, Any]) -> str:
    options = ", ".join(f"{k}={v}" for k, v in settings["options"].items() if k != "keep")
    return f"{settings['method']} with {options}, positions={settings['positions']}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _tokens(row: dict[str, Any]) -> str:
    """Mean length of the answers; results of older releases do not have it."""
    return f"{row['answer_tokens']:.2f}" if "answer_tokens" in row else "-"


def _with_interval(value: dict[str, float]) -> str:
    return f"{100 * value['value']:.1f} ({100 * value['low']:.1f} to {100 * value['high']:.1f})"


def _shares(row: dict[str, Any]) -> str:
    share = row["share_of_unpruned_solved"]
    return f"{_percent(share['ratio_of_means']['value'])} / {_percent(share['mean_of_ratios']['value'])}"


def _against(pairs: dict[str, Any]) -> str:
    runs: Sequence[dict[str, Any]] = pairs["runs"]
    # The summary is of the other method against FSR; the table reads the other way round.
    difference = -sum(r["difference"]["value"] for r in runs) / len(runs)
    gained, lost = sum(r["losses"] for r in runs), sum(r["gains"] for r in runs)
    counts = f"{gained} - {lost}" + (f" in {len(runs)} runs" if len(runs) > 1 else "")
    return f"{points(difference)} ({counts}; {p_value(pairs['largest_p'])})"
