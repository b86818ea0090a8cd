"""Put the numbers of results/compare.json into the README, between its markers. `python benchmarks/readme.py`"""

import json
import re
from pathlib import Path

from fsr.evaluation.tables import markdown
from fsr.methods import available

ROOT = Path(__file__).resolve().parent.parent


def between(text: str, name: str, inner: str) -> str:
    """Replace what stands between <!-- name --> and <!-- /name -->."""
    return re.sub(
        rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: m[1] + inner + "\n" + m[2], text, flags=re.DOTALL
    )


def label(name: str) -> str:
    """How the README calls a contender."""
    inside = name in available() and available()[name].where.startswith("inside")
    return {"fsr-paper": "fsr as in the paper"}.get(name, f"{name} *" if inside else name)


def main() -> None:
    """Write the accuracy table, best first at the paper's share (16 of 144), and what FSR wins and loses there."""
    result = json.loads((ROOT / "results" / "compare.json").read_text())
    rows = result["results"]
    keeps = list(dict.fromkeys(r["keep"] for r in rows))
    at = {(r["method"], r["keep"]): r for r in rows}
    names = sorted({r["method"] for r in rows}, key=lambda n: -at[n, 16]["accuracy"]["value"])
    full = 100 * result["unpruned"]["accuracy"]["value"]
    table = [["accuracy, %", *(f"{k} of 144" for k in keeps)], ["unpruned", *[f"{full:.1f}"] * len(keeps)]]
    for name in names:
        cells = [f"{100 * at[name, k]['accuracy']['value']:.1f}" for k in keeps]
        table.append([f"**{name}**", *(f"**{c}**" for c in cells)] if name == "fsr" else [label(name), *cells])
    verdict = []
    for k in keeps:
        wins, losses, ties = [], [], []
        for name in names:
            if name == "fsr":
                continue
            pair = at[name, k]["against_fsr"]
            # gains: the other right and FSR wrong; losses: the other way round
            net = sum(run["losses"] - run["gains"] for run in pair["runs"])
            (ties if pair["largest_p"] >= 0.01 else wins if net > 0 else losses).append(name)
        verdict.append(
            f"- **{k} tokens**: FSR beats {len(wins)} of {len(names) - 1}, is not separable from"
            f" {', '.join(map(label, ties)) or 'none'}, loses to {', '.join(map(label, losses)) or 'none'}."
        )
    page = ROOT / "README.md"
    text = between(page.read_text(), "table", markdown(table))
    page.write_text(between(text, "verdict", "\n".join(verdict)))


if __name__ == "__main__":
    main()
