"""Measure an embedded model on scenes that training never drew and write its card.

    python benchmarks/mini_card.py [--model mini] [--questions 2000] [--out src/fsr/minivlm/data/mini/README.md]

Accuracy by kind of question against the majority answer and the held-out pairs; for `mini` the pointing game of the
text tower for both signs (does the patch that scores highest for "a photo of a dog" lie on a dog, against the share of
the picture that dogs cover); for `mini-qwen3` accuracy by number of visual tokens.
"""

import argparse
import json
import time
from collections import defaultdict
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from fsr.asking.chat import chat_batch
from fsr.asking.load import EMBEDDED, load, world_of
from fsr.evaluation.question_set import KINDS, build
from fsr.minivlm.scenes import CLASSES
from fsr.minivlm.train_vision import normalise_pixels, text_mask
from fsr.signals.clip_twin import load_twin

TEMPLATES = {"mini": "mini_card.md", "native": "mini_qwen3_card.md"}


def answers(model, processor, questions) -> list[str]:
    """Greedy answers, batch 64, through the chat template and `generate`."""
    out = []
    for start in range(0, len(questions), 64):
        items = questions.items[start : start + 64]
        images = [questions.picture(i.scene) for i in items]
        inputs = chat_batch(processor, images, [i.question.text for i in items])
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
    embedded, world = args.model in EMBEDDED, world_of(model.config)
    folder = Path(str(files("fsr.minivlm") / "data" / args.model)) if embedded else Path(args.model)
    questions, began = build("test", 0, args.questions, world), time.perf_counter()
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
        "seconds": round(time.perf_counter() - began, 1),
        "megabytes": round(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6, 1),
    }
    if world == "mini":
        result["pointing"] = pointing_game(model, load_twin(folder), questions.scenes[:300])
    else:
        tokens = np.array([questions.scenes[i.scene].owner.size for i in questions.items])
        cuts = [(96, 128), (129, 200), (201, 400)]
        groups = {f"{a} to {b}": (tokens >= a) & (tokens <= b) for a, b in cuts}
        result["tokens"] = {
            k: {"accuracy": float(right[g].mean()), "questions": int(g.sum())} for k, g in groups.items()
        }
    print(json.dumps(result, indent=1))
    if args.out:
        rows = [f"| {k} | {100 * v['accuracy']:.1f} | {100 * v['majority']:.1f} |" for k, v in result["kinds"].items()]
        curves = json.loads((folder / "training.json").read_text())
        shown = [x for x in curves["language"] if "acc" in x]
        cells = [[str(x["step"]), f"{100 * x['acc']:.1f}", *(f"{100 * x[k]:.0f}" for k in KINDS)] for x in shown[::2]]
        lines = [f"| {' | '.join(row)} |" for row in cells]
        text = (
            (Path(__file__).parent / TEMPLATES[world])
            .read_text()
            .format(
                table="\n".join(rows),
                curve="\n".join(lines),
                kinds=" | ".join(KINDS),
                language_steps=f"{shown[-1]['step']:,}",
                language_minutes=str(round(shown[-1]["seconds"] / 60)),
                rule="---|" * len(KINDS),
                **_percent(result),
            )
        )
        Path(args.out).write_text(text)


def _percent(result: dict) -> dict[str, str]:
    color, quadrant = result["held_out"]["color pairs"], result["held_out"]["quadrant pairs"]
    extra = {}
    if "pointing" in result:
        point = result["pointing"]
        extra = {k: f"{100 * point[k]:.1f}" for k in ("positive", "negative", "area")} | {"pairs": str(point["pairs"])}
    else:
        cells = [f"| {k} | {100 * v['accuracy']:.1f} | {v['questions']} |" for k, v in result.get("tokens", {}).items()]
        extra = {"tokens": "\n".join(cells)}
    return extra | {
        "n": str(result["questions"]),
        "sha": result["sha256"][:12],
        "overall": f"{100 * result['overall']:.1f}",
        "held_color": f"{100 * color['accuracy']:.1f} ({color['questions']} questions)",
        "held_quadrant": f"{100 * quadrant['accuracy']:.1f} ({quadrant['questions']} questions)",
        "size": str(result["megabytes"]),
    }


if __name__ == "__main__":
    main()
