"""What works for which family, from the tests that show it: writes docs/models.md.

    python benchmarks/models_matrix.py [--check]

Runs the family tests; each says at its end what it has shown for which family (the `feature` fixture of
tests/conftest.py). Nothing in the
table is written by hand, and no table is written if a test fails. `--check` compares with the committed page instead
of writing it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from models_glance import glance

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
TESTS = [
    *sorted((ROOT / "tests").glob("test_families_*.py")),
    *(ROOT / "tests" / name for name in ("test_llava_video.py", "test_siglip_relevance.py")),
]

HEAD = """# Models

`fsr` finds the adapter by the model's `config.model_type`; nothing has to be said. `python benchmarks/models_matrix.py`
makes both tables from the code and from the tests that ran on tiny random models of each family (transformers
{transformers}, torch {torch}, CPU); nothing in them is written by hand. Models without a row here are on
[another page](classes.md).

## What works

Every family takes pictures, several of them in a prompt, and batches; `fsr` and all methods that prune before the
language model work on each, unless the table says that a signal is missing. What else there is:

"""

COLUMNS = """
* **signals of the tower**: what methods may need ([list](methods.md)). Without `shallow_saliency` or `first_saliency`,
  `vscan` and `hired` are refused in one line, the others work.
* **follows the question by**: what makes tokens that matter to the question come first. A paired text tower is used by
  itself. Elsewhere `fsr` runs without the question (alpha = 0, and `report.notes` says so) until you ask for
  `relevance="first-layer"` or `"embedding"`, or measure with `fsr calibrate` what points at what is asked: it writes
  `relevance.json` beside the weights, which is taken from then on.
* **clips**: video is pruned, too ("-": the family has none, or takes frames for pictures).
* **inside the language model**: FastV, SparseVLM, DART, PyramidDrop and `Late` ([page](in-llm.md)). *Behind DeepStack*:
  from the layer on that no longer takes features of the tower (`layer=3` on the published models). *No*: one line says
  why, and the model stays as it was.
* **vLLM (pictures)**: the plug-in has a class for it ([serving](serving.md)); clips stay whole there. *Opt-in*: set
  `FSR_VLLM_UNSHOWN=1`; the class is tested as far as a CPU goes, and no GPU has shown it yet.

## Families in particular

* **Qwen3-VL**: positions keep rows and columns of the picture, and each kept token keeps its DeepStack features.
* **Qwen3.5 and 3.6**: prompts are shortened before the language model, so its recurrent layers need nothing. Before
  transformers 5.23 beams over several pictures are answered wrongly without pruning; pruned runs equal greedy decoding
  in the first step.
* **Gemma 4** E2B, E4B, 26B-A4B and 31B (`gemma4`). The 12B (`gemma4_unified`) has no tower: there is no saliency, a
  generic adapter takes it, `divprune` and `cdpruner` with `relevance="first-layer"` work ([every class](classes.md)).
  Compare with its own smaller budgets of 70 to 560 tokens a picture. Before transformers 5.23, static caches are wrong
  for short prompts without pruning; pruned calls refuse them.
* **Mistral 3 and Pixtral** end every row of a picture with a text token. These stay: a picture of 30 rows keeps 30
  tokens beside its budget.
* **GLM-4.xV** answers beams over several pictures wrongly without pruning, in any release; pruned runs equal greedy
  decoding in the first step. It fails on clips with beams, pruned or not.
* **Gemma 3n** has a convolutional tower (MobileNet v5 of `timm`) whose last stage attends over 24 x 24 cells. Saliency
  is the attention received there, brought to the 16 x 16 tokens by area, as the tower does with its map. Earlier layers
  attend to maps of another size than their own, so there is no `shallow_saliency` or `first_saliency`. In the row of
  `fsr ask` the tower is timm's own, made narrow, and saliency is compared with the attention that timm computes; the
  other rows have a stand-in with the same parts, because timm needs torchvision.
* **Llama 4** takes features in front of its last projection; what a method merged is led back through it by least
  squares. Transformers does not repeat its pictures for beams or several sequences: refused in one line, and left out
  of its rows. Transformers 5.24 itself cannot run the family, not even on text (its forward reads a field that its
  language model does not return): refused in one line there; the tests put the field back.
* **LLaVA-1.5, LLaVA-NeXT and LLaVA-NeXT-Video** use the CLIP text tower of their vision tower, **LLaVA-OneVision and
  LLaVA-Video** that of SigLIP (fine-tuned there: approximate, with a warning). The sign of SigLIP's patch similarity is
  not measured.
* **LLaVA-NeXT** in the setting of the papers (672 x 672, five tiles, 2880 tokens):
  `with five_tiles(model, processor) as processor:` from `fsr.adapters.llava_next`. `report.budgets` prints the budget
  over the picture and per tile.
* **LLaVA-Video** has no row above and few below, because its unpruned form is no Transformers class: it is compared
  with its published packing instead. `fsr.adapters.llava_video` says how to give it frames,
  `fsr.adapters.llava_video_convert` converts the published checkpoint.

Before transformers 5.23, Transformers itself mixes up the pictures of a row when it repeats them for beams. Pruned runs
are right there, or refused where they cannot be.

## Test by test

"""

NOTES = """
How to read it:

* **K = N identity**: with a budget of all tokens, tokens and logits equal the unpruned model bit for bit, in greedy
  decoding, sampling, beams, several return sequences, a static cache and no cache.
* **K < N equals dropped columns**: logits equal a hand-made run of the language model that merges all tokens and then
  drops columns.
* **boxes / frames checked against pixels**: a square painted into a picture changes exactly the tokens whose boxes it
  touches.
* **scores paired with tokens**: a changed patch shows in the feature and in the score of the same token.
* **fsr ask**: on a saved tiny checkpoint with the family's own processor. Transformers' processors of the Qwen-VL
  families, LLaVA-NeXT-Video, LLaVA-OneVision, InternVL, SmolVLM and Gemma3 need torchvision, SmolVLM's num2words and
  Gemma 3n's tower timm as well (without them their cells show no yes).
"""


class Collector:
    """Features of passed tests, and whether all passed."""

    def __init__(self) -> None:
        self.runs: dict[str, list[str]] = {}
        self.columns: list[str] = []
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        if report.when != "call" or not report.passed:
            return
        for kind, value in report.user_properties:
            if kind == "feature":
                family, what = value
                self.runs.setdefault(family, []).append(what)
                if what not in self.columns:
                    self.columns.append(what)


def table(found: Collector) -> str:
    families = sorted(found.runs)
    lines = ["| shown by tests | " + " | ".join(families) + " |", "|---" * (len(families) + 1) + "|"]
    for what in found.columns:
        marks = ("yes" if what in found.runs[family] else "-" for family in families)
        lines.append(f"| {what} | " + " | ".join(marks) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    found = Collector()
    code = pytest.main(["-q", "-p", "no:cacheprovider", *map(str, TESTS)], plugins=[found])
    if code or found.failed or not found.runs:
        print(f"no table: {len(found.failed)} tests failed (exit {int(code)})", file=sys.stderr)
        return 1
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    page = HEAD.format(**versions) + glance(sorted(found.runs)) + COLUMNS + table(found) + NOTES
    if args.check:
        same = PAGE.is_file() and page == PAGE.read_text(encoding="utf-8")
        print("docs/models.md is up to date" if same else "docs/models.md differs: run benchmarks/models_matrix.py")
        return int(not same)
    PAGE.write_text(page, encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
