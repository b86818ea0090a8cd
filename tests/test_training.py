"""docs/training.md with real TRL: one step each, and log-probabilities equal to those of the rows alone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from fsr import FSR, prune
from fsr.asking.images import bundled_scene
from fsr.asking.load import load
from test_docs import blocks

pytest.importorskip("trl", reason="TRL is not installed: training with it was NOT run")
METHOD = FSR(keep=16, relevance="none")


def test_the_page_runs(tmp_path, monkeypatch):
    """Every block in one namespace, with the numbers that they leave behind."""
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).resolve().parent.parent / "docs" / "training.md"
    names: dict = {"__name__": "page"}
    for block in blocks(page):
        if block["mark"] == "runs with TRL":
            exec(compile(block["code"], str(page), "exec"), names)
    report = names["pruned"].last
    assert report.tokens_after == 32 < report.tokens_before
    assert names["logits"].shape[:2] == names["right"].shape
    assert 0 <= float(names["accuracy"]) <= 1
    assert names["embedding"].shape == (2, names["states"].shape[-1])
    assert names["trainer"].state.global_step == 1
    assert 0 <= names["evaluated"]["eval_accuracy"] <= 1


def test_log_probabilities_of_grpo_equal_the_rows_alone(tmp_path):
    """Prompts of different length, padded on the left; completions of different length, padded on the right."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, processor = load("mini", device="cpu")
    model = copy.deepcopy(model)
    questions = ["what color is the dog?", "is there a dog?"]
    data = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": q}], "image": bundled_scene()} for q in questions]
    )
    settings = GRPOConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=2, beta=0.0, use_cpu=True,
        max_completion_length=3, report_to="none", save_strategy="no",
    )  # fmt: skip
    seen = []
    with prune(model, METHOD, processor=processor) as pruned:
        trainer = GRPOTrainer(
            model=model, args=settings, train_dataset=data, processing_class=processor,
            reward_funcs=lambda completions, **_: [float(i) for i in range(len(completions))],
        )  # fmt: skip
        scored = trainer._get_per_token_logps_and_entropies

        def compared(net, ids, mask, kept, *args, **kwargs):
            # Completions end at different places, as they do once a model has learned to stop.
            mask = mask.clone()
            mask[0, ids.shape[1] - kept + 1 :] = 0
            mask[1, ids.shape[1] - kept + 2 :] = 0
            result = scored(net, ids, mask, kept, *args, **kwargs)
            with torch.no_grad():
                for i in range(len(ids)):
                    real = mask[i].bool()
                    row = {"input_ids": ids[i : i + 1, real], "attention_mask": mask[i : i + 1, real]}
                    logits = model(**row, pixel_values=kwargs["pixel_values"][i : i + 1]).logits[0]
                    n = int(mask[i, -kept:].sum())
                    alone = -cross_entropy(logits[-n - 1 : -1].float(), row["input_ids"][0, -n:], reduction="none")
                    mine = result[0][i, :n] * trainer.temperature
                    seen.append((mine.detach(), alone, int(real.sum())))
            return result

        trainer._get_per_token_logps_and_entropies = compared
        trainer.train()
        assert pruned.last.tokens_after < pruned.last.tokens_before
    assert len(seen) >= 4 and len({length for *_, length in seen}) > 1
    for mine, alone, _ in seen:
        torch.testing.assert_close(mine, alone, atol=1e-3, rtol=1e-3)


def test_label_smoothing_without_the_short_labels_is_an_error_of_sizes():
    """Stock trainers stop; nothing is compared with the wrong columns in silence."""
    from transformers.trainer_pt_utils import LabelSmoother

    model, processor = load("mini", device="cpu")
    from fsr.asking.chat import chat_inputs

    batch = chat_inputs(processor, bundled_scene(), "what color is the dog?")
    with torch.no_grad(), prune(model, METHOD) as pruned:
        outputs = model(**batch)
        labels = batch["input_ids"]
        with pytest.raises(RuntimeError, match=r"[Ss]ize"):
            LabelSmoother(0.1)(outputs, labels, shift_labels=True)
        short = LabelSmoother(0.1)(outputs, pruned.last.shorten(labels, fill=-100), shift_labels=True)
        assert torch.isfinite(short)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_vision_side(checkpointing):
    """What the page and the FAQ say: through FSR's merged features, too, with and without gradient checkpointing."""
    model, processor = load("mini", device="cpu")
    from fsr.asking.chat import chat_inputs

    model = copy.deepcopy(model).float().train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    batch = chat_inputs(processor, bundled_scene(), "what color is the dog?")
    with prune(model, FSR(keep=16, kappa=1.0, relevance="none")) as pruned:
        model(**batch, labels=batch["input_ids"]).loss.backward()
    assert not any("gradient" in note for note in pruned.last.notes)
    for part in (model.model.vision_tower, model.model.multi_modal_projector, model.model.language_model):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0
