"""One pass of the vision tower for several prompts: the same tokens as encoding again."""

from __future__ import annotations

import pytest
import torch

import tiny
from fsr import FSR, UsageError, prepare
from fsr.pipeline.encode import encode
from fsr.signals.clip_twin import ClipTwin


@pytest.fixture(scope="module")
def twin(llava):
    return ClipTwin.from_clip(
        tiny.clip(tower=llava.model.vision_tower), tiny.word_tokenizer("right", ends=True), sign=1
    )


def same(a, b):
    assert torch.equal(a["input_ids"], b["input_ids"])
    for x, y in zip(a.report.selections, b.report.selections, strict=True):
        assert torch.equal(x.rows, y.rows) and torch.equal(x.merged_into, y.merged_into)
        torch.testing.assert_close(x.features, y.features)


def test_encoded_pictures_give_the_same_tokens_and_the_tower_runs_once(llava, batch, twin):
    calls = []
    hook = llava.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    try:
        seen = encode(llava, batch, FSR(keep=5), relevance=twin)
        for keep in (5, 9):
            reused = prepare(llava, FSR(keep=keep), batch, "where is the dog ?", encoded=seen)
            assert len(calls) == 1
            assert reused.report.timings["vision_tower"] == 0.0 <= reused.report.timings["rest"]
            same(reused, prepare(llava, FSR(keep=keep), batch, "where is the dog ?", relevance=twin))
            calls.clear()
            calls.append(1)
    finally:
        hook.remove()


def test_take_serves_other_prompts(llava, batch, single, twin):
    """`batch` holds pictures 0, 1, 2 and `single` picture 1."""
    seen = encode(llava, batch, FSR(keep=5), relevance=twin)
    with torch.no_grad():
        fresh = prepare(llava, FSR(keep=5), single, "where is the cat ?", relevance=twin)
        reused = prepare(llava, FSR(keep=5), single, "where is the cat ?", encoded=seen.take([1]))
        twice = {k: torch.cat([v, v]) for k, v in single.items()}
        double = prepare(llava, FSR(keep=5), twice, ["where is the cat ?", "what is red ?"], encoded=seen.take([1, 1]))
        words = llava.generate(**fresh, max_new_tokens=4, do_sample=False)
        again = llava.generate(**reused, max_new_tokens=4, do_sample=False)
    same(fresh, reused)
    assert torch.equal(words, again)
    assert torch.equal(double.report.selections[0].rows, fresh.report.selections[0].rows)
    assert not torch.equal(double.report.selections[0].relevance, double.report.selections[1].relevance)


def test_what_was_not_recorded_is_an_error(llava, batch, twin):
    seen = encode(llava, batch, FSR(keep=5, alpha=0))
    with pytest.raises(UsageError, match="without relevance"):
        prepare(llava, FSR(keep=5), batch, "where ?", relevance=twin, encoded=seen)
    with pytest.raises(UsageError, match="numbered from 0"):
        seen.take([3])
    with_text = encode(llava, batch, FSR(keep=5), relevance=twin)
    other = ClipTwin.from_clip(
        tiny.clip(tower=llava.model.vision_tower), tiny.word_tokenizer("right", ends=True), sign=-1
    )
    with pytest.raises(UsageError, match="another relevance scorer"):
        prepare(llava, FSR(keep=5), batch, "where ?", relevance=other, encoded=with_text)
    text_only = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with pytest.raises(UsageError, match="no pictures"):
        encode(llava, text_only, FSR(keep=5, alpha=0))
