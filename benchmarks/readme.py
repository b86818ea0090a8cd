"""Put the numbers of results/plane.json into the README, between its markers. `python benchmarks/readme.py`

Two columns per budget: with the embedded model's own, nearly perfect signals, and the mean over the plane of signal
qualities, which is what a reader should expect of signals that he does not know.
"""

import json
import re
from pathlib import Path

from fsr.evaluation.tables import markdown
from fsr.methods import available

ROOT = Path(__file__).resolve().parent.parent
KEEPS = ("16", "8", "4")
SHOWN = 7  # the best of them; results/plane.md has all
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


def accuracy_table(result: dict) -> str:
    """The best rows in the order of their mean over the plane; clean signals beside that mean, by budget."""
    means = result["verdict"]["means"]
    head = ["accuracy, %", *(f"{k} of 144: {what}" for k in KEEPS for what in ("clean signals", "mean over the plane"))]
    full = f"{100 * result['unpruned']['accuracy']['value']:.1f}"
    table = [head, ["unpruned", *[full] * (len(head) - 1)]]
    for name in sorted(means, key=lambda n: -means[n]["all"])[:SHOWN]:
        values = [means[name][which][k] for k in KEEPS for which in ("clean_by_keep", "by_keep")]
        cells = [f"{100 * v:.1f}" for v in values]
        table.append([f"**{name}**" if name == "fsr" else name, *cells])
    return markdown([*table, ["no picture at all", *[f"{100 * result['text_alone']:.1f}"] * (len(head) - 1)]])


def verdict(result: dict, crowded: dict) -> str:
    """What the plane says of FSR against the best other method, in the words of its own verdict."""
    found = result["verdict"]
    best = max((n for n in found["means"] if n != "fsr"), key=lambda n: found["means"][n]["all"])
    ours, theirs = (100 * found["means"][n]["all"] for n in ("fsr", best))
    dense = {n: 100 * crowded["verdict"]["means"][n]["all"] for n in ("fsr", best)}
    gap = crowded["verdict"]["lead"]
    level = ", which is level" if gap["low"] <= 0 <= gap["high"] else ""
    options = next(iter(result["settings"].values()))["options"]
    told = ", ".join(f"{name}={options[name]!r}" for name in ("focus_by", "alpha", "beta", "max_focus", "lift"))
    return (
        f"Over the whole plane and 48 to 4 tokens FSR answers {ours:.1f} %, {best}, the best of the others measured "
        f"there, {theirs:.1f} %. On scenes of up to 14 things (16 and 8 tokens) it is {dense['fsr']:.1f} against "
        f"{dense[best]:.1f} %{level}.\n`fsr` is `FSR({told})`, {result['questions']['count']} test questions, measured "
        f"on {result['date']}."
    )


def main() -> None:
    """Write the table, the verdict and the number of peers."""
    result, crowded = (json.loads((ROOT / "results" / f"{n}.json").read_text()) for n in ("plane", "plane_crowded"))
    page = ROOT / "README.md"
    text = between(page.read_text(), "table", accuracy_table(result))
    text = between(text, "verdict", verdict(result, crowded))
    page.write_text(between(text, "peers", str(len(peers()))))


if __name__ == "__main__":
    main()
