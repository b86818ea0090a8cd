"""Put the numbers of results/compare.json into the README, between its markers. `python benchmarks/readme.py`

Nine rows: the unpruned model, FSR, and of the others those that readers ask about; all are in results/compare.md.
"""

import json
import re
from pathlib import Path

from fsr.evaluation.tables import markdown
from fsr.methods import available

ROOT = Path(__file__).resolve().parent.parent
ROWS = ("fsr", "fsr-paper", "divprune", "cdpruner", "vispruner", "visionzip", "fastv", "random")
FSR_PAPER = "arXiv 2602.05809"


def between(text: str, name: str, inner: str) -> str:
    """Replace what stands between <!-- name --> and <!-- /name -->."""
    return re.sub(
        rf"(<!-- {name} -->)(\n?).*?(<!-- /{name} -->)",
        lambda m: m[1] + m[2] + inner + m[2] + m[3],
        text,
        flags=re.DOTALL,
    )


def peers() -> list[str]:
    """Methods of other papers."""
    return [n for n, cls in available().items() if cls.paper.startswith("arXiv") and cls.paper != FSR_PAPER]


def label(name: str) -> str:
    """How the README calls a contender."""
    inside = name in available() and available()[name].where.startswith("inside")
    return {"fsr-paper": "fsr as in the paper"}.get(name, f"{name} *" if inside else name)


def accuracy_table(result: dict) -> str:
    """Rows in the order of their accuracy at the paper's share, 16 of 144."""
    keeps = list(dict.fromkeys(r["keep"] for r in result["results"]))
    at = {(r["method"], r["keep"]): 100 * r["accuracy"]["value"] for r in result["results"]}
    full = 100 * result["unpruned"]["accuracy"]["value"]
    table = [["accuracy, %", *(f"{k} of 144" for k in keeps)], ["unpruned", *[f"{full:.1f}"] * len(keeps)]]
    for name in sorted(ROWS, key=lambda n: -at[n, 16]):
        cells = [f"{at[name, k]:.1f}" for k in keeps]
        table.append([f"**{name}**", *(f"**{c}**" for c in cells)] if name == "fsr" else [label(name), *cells])
    return markdown(table)


def verdict(result: dict) -> str:
    """Against how many FSR wins at each budget, and all that it does not beat at the two where it matters most."""
    rows = result["results"]
    counts, open_at = [], {}
    for k in dict.fromkeys(r["keep"] for r in rows):
        wins, losses, ties = [], [], []
        for row in (r for r in rows if r["keep"] == k and r["method"] != "fsr"):
            pair = row["against_fsr"]
            # gains: the other right and FSR wrong; losses: the other way round
            net = sum(run["losses"] - run["gains"] for run in pair["runs"])
            (ties if pair["largest_p"] >= 0.01 else wins if net > 0 else losses).append(label(row["method"]))
        others = len(wins) + len(losses) + len(ties)
        counts.append(f"{len(wins)} at {k} tokens")
        open_at[k] = (ties, losses)
    lines = [f"Of {others} others FSR beats {', '.join(counts)} (exact McNemar, p < 0.01)."]
    for k in (16, 4):
        ties, losses = open_at[k]
        lines.append(
            f"At {k} tokens it is not separable from {', '.join(ties) or 'none'}, and loses to "
            f"{', '.join(losses) or 'none'}."
        )
    # Defaults may have changed since: the README says what was measured.
    options = next(r for r in rows if r["method"] == "fsr")["settings"][0]["options"]
    told = ", ".join(f"{name}={options[name]!r}" for name in ("focus_by", "alpha", "beta", "max_focus"))
    lines.append(f"`fsr` in this table is `FSR({told})`, measured on {result['date']}.")
    lines.append("`*` prunes inside the language model and costs more: its budget is what the last layer holds.")
    return "\n".join(lines)


def main() -> None:
    """Write the table, the verdict and the number of peers."""
    result = json.loads((ROOT / "results" / "compare.json").read_text())
    page = ROOT / "README.md"
    text = between(page.read_text(), "table", accuracy_table(result))
    text = between(text, "verdict", verdict(result))
    page.write_text(between(text, "peers", str(len(peers()))))


if __name__ == "__main__":
    main()
