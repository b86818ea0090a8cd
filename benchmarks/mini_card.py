"""Measure the embedded model on scenes that training never drew and write its card.

    python benchmarks/mini_card.py [--model mini] [--questions 2000] [--out src/fsr/minivlm/data/mini/README.md]

Accuracy by kind of question against the majority answer, the held-out pairs, and the pointing game of the text tower
for both signs: does the patch that scores highest for "a photo of a dog" lie on a dog, against the share of the
picture that dogs cover.
"""

import argparse
import json
import time
from collections import defaultdict
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from fsr.asking.load import load
from fsr.evaluation.question_set import KINDS, build
from fsr.minivlm.scenes import CLASSES
from fsr.minivlm.train_vision import normalise_pixels, text_mask
from fsr.signals.clip_twin import load_twin

TEMPLATE = Path(__file__).with_name("mini_card.md")


def answers(model, processor, questions) -> list[str]:
    """Greedy answers, batch 64, through the processor and `generate`."""
    out = []
    for start in range(0, len(questions), 64):
        items = questions.items[start : start + 64]
        prompts = [f"<bos><image> {i.question.text}" for i in items]
        images = [questions.picture(i.scene) for i in items]
        inputs = processor(images=images, text=prompts, return_tensors="pt", padding=True)
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        out += [t.strip() for t in processor.batch_decode(ids, skip_special_tokens=True)]
    return out


def pointing_game(model, twin, scenes) -> dict[str, float]:
    """Share of (scene, class) pairs whose best patch lies on the class, for both signs, and the share of area it
    covers."""
    tower, hits, area = model.model.vision_tower, defaultdict(list), []
    for scene in scenes:
        with torch.no_grad():
            states = tower(normalise_pixels(scene.image[None]), output_hidden_states=True)
        patches = (states.last_hidden_state if twin.layer == -1 else states.hidden_states[twin.layer])[0, 1:]
        for kind in sorted({o.kind for o in scene.objects}):
            on = text_mask(scene, tuple(i for i, o in enumerate(scene.objects) if o.kind == kind), "")
            score = twin.sign * twin(patches, f"a photo of a {CLASSES[kind]}")
            area.append(on.mean())
            for sign in (1, -1):
                hits[sign].append(bool(on[int((sign * score).argmax())]))
    return {
        "positive": float(np.mean(hits[1])),
        "negative": float(np.mean(hits[-1])),
        "area": float(np.mean(area)),
        "pairs": len(area),
    }


def main() -> None:
    """Measure, print JSON, write the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--out")
    args = parser.parse_args()
    model, processor = load(args.model, "cpu")
    folder = Path(str(files("fsr.minivlm") / "data" / "mini")) if args.model == "mini" else Path(args.model)
    questions, began = build("test", 0, args.questions), time.perf_counter()
    right = np.array([a == i.question.answer for a, i in zip(answers(model, processor, questions), questions.items)])
    kinds = np.array([i.question.kind for i in questions.items])
    majority = questions.majority()
    result = {
        "questions": len(questions),
        "sha256": questions.sha256,
        "overall": float(right.mean()),
        "kinds": {k: {"accuracy": float(right[kinds == k].mean()), "majority": majority[k]} for k in KINDS},
        "held_out": {
            name: {"accuracy": float(right[those].mean()), "questions": int(those.sum())}
            for name, those in {
                "color pairs": np.array([i.held_out_color for i in questions.items]) & (kinds == "color"),
                "quadrant pairs": np.array([i.held_out_quadrant for i in questions.items]) & (kinds == "position"),
            }.items()
        },
        "pointing": pointing_game(model, load_twin(folder), questions.scenes[:300]),
        "seconds": round(time.perf_counter() - began, 1),
        "megabytes": round(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6, 1),
    }
    print(json.dumps(result, indent=1))
    if args.out:
        rows = [f"| {k} | {100 * v['accuracy']:.1f} | {100 * v['majority']:.1f} |" for k, v in result["kinds"].items()]
        curves = json.loads((folder / "training.json").read_text())
        shown = [x for x in curves["language"] if "acc" in x]
        cells = [[str(x["step"]), f"{100 * x['acc']:.1f}", *(f"{100 * x[k]:.0f}" for k in KINDS)] for x in shown[::2]]
        lines = [f"| {' | '.join(row)} |" for row in cells]
        text = TEMPLATE.read_text().format(
            table="\n".join(rows),
            curve="\n".join(lines),
            kinds=" | ".join(KINDS),
            rule="---|" * len(KINDS),
            **_percent(result),
        )
        Path(args.out).write_text(text)


def _percent(result: dict) -> dict[str, str]:
    color, quadrant = result["held_out"]["color pairs"], result["held_out"]["quadrant pairs"]
    point = result["pointing"]
    return {
        "n": str(result["questions"]),
        "sha": result["sha256"][:12],
        "overall": f"{100 * result['overall']:.1f}",
        "held_color": f"{100 * color['accuracy']:.1f} ({color['questions']} questions)",
        "held_quadrant": f"{100 * quadrant['accuracy']:.1f} ({quadrant['questions']} questions)",
        "positive": f"{100 * point['positive']:.1f}",
        "negative": f"{100 * point['negative']:.1f}",
        "area": f"{100 * point['area']:.1f}",
        "pairs": str(point["pairs"]),
        "size": str(result["megabytes"]),
    }


if __name__ == "__main__":
    main()
