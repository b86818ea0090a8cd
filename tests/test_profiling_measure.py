"""The measured half: stages of real generate calls on tiny models, the report's arithmetic, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import CLIPTextConfig

import family_models_recent as recent
from fsr.cli import main, profile
from fsr.errors import UsageError
from fsr.methods import FSR, FastV, get
from fsr.profiling.configs import named
from fsr.profiling.counts import kv_bytes
from fsr.profiling.decoder import language
from fsr.profiling.measure import STAGES, Plan, Result, Spread, measure
from fsr.profiling.measure_report import ceilings, report, verdict
from fsr.profiling.memory import PeakMemory
from fsr.profiling.mixers import Attention
from fsr.profiling.random_weights import random_model, shorten
from fsr.profiling.tables import text
from fsr.profiling.workload import Workload, from_config
from test_profiling_counts import configs


@pytest.fixture(scope="module")
def workload() -> Workload:
    _, config, _ = configs()["llava"]
    words = CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, projection_dim=16
    )
    cpu = torch.device("cpu")
    return from_config("tiny", config=config, device=cpu, dtype=torch.float32, text=10, text_tower=words)


PLAN = Plan((FSR(keep=3), FastV(layer=1, keep=4)), batches=(1, 2), new_tokens=3, rounds=2)


@pytest.fixture(scope="module")
def results(workload: Workload) -> list[Result]:
    return measure(workload, PLAN)


def test_every_variant_is_measured_at_every_batch_size(results: list[Result]) -> None:
    assert [(r.method, r.batch) for r in results] == [
        (name, batch) for batch in (1, 2) for name in ("unpruned", "fsr", "fastv:layer=1")
    ]
    for r in results:
        assert set(r.times) == {*STAGES, "language_layers", "time_to_first_token", "end_to_end", "decode_per_token"}
        assert r.times["end_to_end"].count == 2 and r.times["decode_per_token"].count == 2 * 2
        for stage in ("vision_tower", "prefill", "decode"):
            assert r.times[stage].median > 0
        assert r.times["time_to_first_token"].median < r.times["end_to_end"].median
        assert 0 < r.times["language_layers"].median < r.times["prefill"].median


def test_stages_of_a_single_round_add_up_to_the_whole(workload: Workload) -> None:
    for r in measure(workload, replace(PLAN, batches=(1,), rounds=1)):
        total = sum(r.times[stage].median for stage in STAGES)
        assert total == pytest.approx(r.times["end_to_end"].median, rel=1e-6)
        assert all(r.times[stage].median >= 0 for stage in STAGES)


def test_only_methods_that_choose_pay_for_choosing(results: list[Result]) -> None:
    unpruned, fsr, _ = results[:3]
    for stage in ("saliency", "text_tower", "selection"):
        assert unpruned.times[stage].median == 0
        assert fsr.times[stage].median > 0


def test_tokens_and_cache_are_those_of_the_real_cache(workload: Workload, results: list[Result]) -> None:
    llm = language(workload.model.config)
    for r, left in zip(results, [(16, 16), (3, 3), (16, 4)] * 2):
        assert (r.layers, r.visual_before, r.text) == (left, 16, 10)
        assert r.kv_bytes == r.batch * kv_bytes(llm, [n + 10 for n in left], 4)
        assert r.kv_visual_bytes == r.batch * kv_bytes(llm, left, 4)


@pytest.mark.parametrize("build", [recent.qwen_recent("Qwen3_5"), recent.gemma4])
def test_recurrent_and_shared_layers_are_measured(build: Any) -> None:
    tiny = from_config(
        "tiny", config=build("eager").config, device=torch.device("cpu"), dtype=torch.float32, text=10, size=(40, 48)
    )
    llm = language(tiny.model.config)
    plan = Plan((FSR(keep=2), FastV(layer=1, keep=2)), new_tokens=2, rounds=1)
    full, fsr, fastv = measure(tiny, plan)
    n = full.visual_before
    assert fastv.skipped and [r.layers for r in (full, fsr)] == [(n,) * 4, (2,) * 4]
    assert [r.kv_bytes for r in (full, fsr)] == [kv_bytes(llm, [v + 10] * 4, 4) for v in (n, 2)]
    if full.kv_visual_bytes * 2 != fsr.kv_visual_bytes * n:  # states are no visual tokens; windows hold some of them
        assert 0 < fsr.kv_visual_bytes < full.kv_visual_bytes and any(
            isinstance(layer.mixer, Attention) and layer.mixer.window for layer in llm.stack
        )
    rows = report(tiny, plan, [full, fsr, fastv])["results"]
    assert rows[1]["llm_flop_ratio"] > 1 and rows[1]["answer_tokens"] is None


def test_the_text_tower_is_not_measured_from_its_own_cache(workload: Workload) -> None:
    asked: list[str] = []
    watched = replace(workload, relevance=_Watch(workload.relevance, asked))
    measure(watched, Plan((FSR(keep=3), FSR(keep=5)), batches=(1, 2), new_tokens=2, rounds=2))
    fresh = list(dict.fromkeys(asked))
    assert len(fresh) == 2 * 2 * 3 and len(asked) == len(fresh) + 2 * 3  # a batch of two asks its question twice


class _Watch:
    """A relevance scorer that writes down what it is asked."""

    def __init__(self, inner: Any, asked: list[str]) -> None:
        self.inner, self.layer, self.asked = inner, inner.layer, asked

    def __call__(self, patches: torch.Tensor, question: str) -> torch.Tensor:
        self.asked.append(question)
        return self.inner(patches, question)


def test_a_method_that_cannot_run_is_told_and_the_others_run() -> None:
    _, config, _ = configs()["gemma3"]
    gemma = from_config("tiny", config=config, device=torch.device("cpu"), dtype=torch.float32, text=10)
    plan = Plan((FastV(layer=1, keep=2), FSR(keep=2)), new_tokens=2, rounds=1)
    results = measure(gemma, plan)
    assert [r.method for r in results if not r.skipped] == ["unpruned", "fsr"]
    out = report(gemma, plan, results)
    assert any("fastv" in v and "was not run" in v for v in out["verdicts"])
    assert out["results"][1]["notes"] == ["ran without relevance: no text tower pairs with this model"]
    assert "ran without relevance" in text(out)


# ------------------------------------------------------------------------------------------------- the report's
# arithmetic


def made(method: str, **ms: float) -> Result:
    times = {**dict.fromkeys(STAGES, 0.0), **ms}
    times["end_to_end"] = sum(times.values())
    times["time_to_first_token"] = times["end_to_end"] - times["decode"]
    times["decode_per_token"] = times["decode"] / 4
    return Result(method, 4, 1, {k: Spread.of([v]) for k, v in times.items()}, 16, (4, 4), 10)


def test_ceilings_follow_amdahl() -> None:
    base = made("unpruned", vision_tower=30, prefill=60, decode=30)
    assert ceilings(base) == (pytest.approx(90 / 30), pytest.approx(120 / 60))


def test_verdicts_say_when_pruning_cannot_help_and_why() -> None:
    base = made("unpruned", vision_tower=30, prefill=60, decode=30)
    good = verdict(base, made("fsr", vision_tower=30, selection=2, prefill=15, decode=30))
    assert "1.56x end to end" in good and "does not help" not in good
    dear = verdict(base, made("fsr", vision_tower=30, selection=50, prefill=15, decode=30))
    assert "does not help" in dear and "choosing the tokens takes 50.0 ms" in dear
    slow = made("unpruned", vision_tower=30, prefill=3, decode=300)
    small = verdict(slow, made("fsr", vision_tower=30, selection=0.5, prefill=1, decode=300))
    assert "does not help" in small and "prefill is only 0.9 %" in small
    worse = verdict(base, made("fsr", vision_tower=30, selection=1, prefill=60, decode=31))
    assert "does not help" in worse and "not get faster at all" in worse
    idle = verdict(base, made("fsr", vision_tower=30, selection=1, prefill=58, decode=30))
    assert "does not help" in idle and "saves 2.0 ms of 120.0 ms" in idle


def test_a_gain_within_the_noise_is_doubted() -> None:
    base, fsr = made("unpruned", prefill=60, decode=30), made("fsr", prefill=15, decode=30)
    assert "overlap" not in verdict(base, fsr)
    noisy = replace(fsr, times={**fsr.times, "end_to_end": Spread(45.0, 40.0, 95.0, 3)})
    assert "overlap" in verdict(base, noisy)


def test_a_longer_answer_is_told_with_what_it_costs(workload: Workload) -> None:
    base = replace(made("unpruned", prefill=60, language_layers=50, decode=40), answer_tokens=2)
    plan = Plan((), rounds=1)

    def told(tokens: int) -> list[str]:
        fsr = replace(made("fsr", prefill=15, language_layers=10, decode=40), answer_tokens=tokens)
        return [v for v in report(workload, plan, [base, fsr])["verdicts"] if "wrote" in v]

    assert told(2) == told(1) == []
    assert "wrote 5 tokens where the unpruned model wrote 2: at 10.0 ms per token, 30.0 ms more" in told(5)[0]
    assert "wrote 64 tokens (cut off there)" in told(64)[0]


def test_spread_interpolates_percentiles() -> None:
    assert Spread.of([1, 2, 3, 4, 5]) == Spread(3.0, 1.4, 4.6, 5)


def test_report_compares_times_with_operations(workload: Workload, results: list[Result]) -> None:
    out = report(workload, PLAN, results)
    assert json.loads(json.dumps(out)) == out
    base, fsr, fastv = out["results"][:3]
    assert base["ceiling"]["end_to_end"] > 1 and "times_faster" not in base
    assert fsr["llm_flop_ratio"] > fastv["llm_flop_ratio"] > 1
    assert fsr["visual_tokens"] == {"before": 16, "after": 3, "layer_average": 3.0}
    assert fastv["visual_tokens"]["layer_average"] == 10.0
    ratio = base["ms"]["prefill"]["median"] / fsr["ms"]["prefill"]["median"]
    assert fsr["times_faster"]["prefill"] == pytest.approx(ratio, rel=1e-2)
    assert sum(fsr["share_of_end_to_end"].values()) == pytest.approx(1, abs=1e-3)  # of two rounds, medians are means
    shown = text(out)
    assert "vision tower takes" in shown and "unpruned" in shown and "synthetic pixels" in shown


def test_plans_that_measure_nothing_are_refused() -> None:
    for bad in ({"batches": (0,)}, {"rounds": 0}, {"new_tokens": 1}, {"warmup": 0}):
        with pytest.raises(UsageError):
            Plan((), **bad)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- random
# weights


def test_random_weights_fill_everything_and_no_two_rows_agree() -> None:
    _, config, _ = configs()["llava"]
    config.text_config.vocab_size = 40_000  # more numbers than the repeated block holds
    model = random_model(config, dtype=torch.float32)
    for name, p in model.named_parameters():
        assert torch.isfinite(p).all(), name
        if p.dim() > 1:
            assert 0.01 < float(p.std()) < 0.03, name
    table = model.get_input_embeddings().weight
    assert table.numel() > 1_000_003
    assert len(torch.unique(table, dim=0)) == len(table)
    assert float(cosine_similarity(table[0], table[31_251], dim=0)) < 0.99
    assert all(torch.isfinite(b).all() for b in model.buffers())


def test_shorten_builds_fewer_layers() -> None:
    _, config, _ = configs()["gemma3"]
    assert len(shorten(config, 1).text_config.layer_types) == 1
    with pytest.raises(UsageError, match="1 to 1"):
        shorten(config, 2)
    with pytest.raises(UsageError, match="number 4"):
        shorten(named("qwen3.5-9b"), 3)
    with pytest.raises(UsageError, match="built whole"):
        shorten(named("gemma-4-e4b"), 8)
    assert shorten(named("qwen3.5-9b"), 4).text_config.layer_types[-1] == "full_attention"


def test_peak_memory_sees_an_allocation() -> None:
    with PeakMemory(torch.device("cpu")) as memory:
        block = torch.ones(40_000_000)
        del block
    if memory.peak is None:
        pytest.skip("this platform does not tell its resident set")
    assert memory.peak.above_start > 100_000_000


# ------------------------------------------------------------------------------------------------------------ the
# command


def run(capsys: Any, *words: str) -> tuple[int, str, str]:
    status = main(["profile", *words])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_command_counts_without_weights(capsys: Any) -> None:
    status, out, _ = run(capsys, "--preset", "paper-table7", "--json")
    rows = json.loads(out)["rows"]
    assert status == 0 and [r["method"] for r in rows if r["follows"]] == ["vanilla", "vispruner", "fsr"]
    status, out, _ = run(
        capsys, "--preset", "full", "--config", "qwen3-vl-8b", "--methods", "fsr,fastv", "--keep", "0.2"
    )
    assert status == 0 and "fastv" in out and "text_tower" in out
    status, out, _ = run(capsys, "--preset", "paper-sparsevlm", "--keep", "192", "--json")
    assert [round(r["flops"] / 1e12, 3) for r in json.loads(out)["rows"]] == [3.817, 1.253]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--preset", "nope"], "paper-table7"),
        (["--config", "nope"], "llava-1.5-7b"),
        (["--model", "mini", "--config", "llava-1.5-7b"], "not both"),
        (["--model", "mini", "--layers", "2"], "--layers"),
        (["--batch", "0"], "--batch"),
        (["--image-size", "big"], "--image-size"),
        (["--preset", "full", "--plot", "x.png"], "--plot"),
        (["--plot", "no/such/folder/x.png"], "folder"),
        (["--methods", "nope"], "unknown method"),
        (["--methods", "fsr|fastv"], "prune(model, FSR(...) | FastV(...))"),
        (["--methods", "fsr:alpha"], "name=value"),
        (["--methods", ","], "names no method"),
        (["--keep", ","], "holds no budget"),
        (["--keep", "1e3"], "plain digits"),
        (["--preset", "full", "--text-tokens", "-5"], "--text-tokens -5"),
        (["--config", "llava-1.5-7b", "--text-tokens", "1"], "--text-tokens 1"),
        (["--config", "llava-1.5-7b", "--layers", "0"], "--layers 0"),
        (["--config", "mistral-small-3", "--preset", "full", "--image-size", "1x2000"], "nothing is left"),
        (["--image-size", "\u00b2x3"], "--image-size"),
        (["--batch", "\u00b2"], "--batch"),
        (["--batch", "1" * 5000], "--batch"),
        (["--rounds", "0"], "--rounds 0"),
        (["--warmup", "-1"], "--warmup -1"),
        (["--new-tokens", "1"], "--new-tokens 1"),
        (["--limit", "nan"], "--limit nan"),
        (["--limit", "0"], "--limit 0"),
        (["--preset", "full", "--rounds", "3"], "leave out --rounds"),
        (["--preset", "full", "--relevance", "none"], "leave out --relevance"),
        (["--preset", "paper-table7", "--keep", "3"], "leave out --keep"),
        (["--model", "mini", "--text-tokens", "9"], "leave out --text-tokens"),
        (["--preset", "full", "--model", "./no-such-folder"], "no config"),
    ],
)
def test_command_refuses_bad_input_with_a_hint(capsys: Any, words: list[str], hint: str) -> None:
    status, out, err = run(capsys, *words)
    assert status == 2 and out == "" and hint in err and err.count("\n") == 1


def test_what_was_named_and_not_run_is_told_and_fails(capsys: Any, monkeypatch: Any, workload: Workload) -> None:
    monkeypatch.setattr("fsr.profiling.workload.from_config", lambda *a, **k: workload)
    words = ["--config", "llava-1.5-7b", "--device", "cpu", "--keep", "3", "--rounds", "1", "--new-tokens", "2"]
    status, out, err = run(capsys, *words, "--methods", "fsr:alpha=0,fastv:layer=99", "--json")
    shown = json.loads(out)
    assert status == 1 and err.count("\n") == 1 and "fastv:layer=99 (keep 3, batch 1) was not run: " in err
    assert [r["method"] for r in shown["results"]] == ["unpruned", "fsr:alpha=0"]
    assert [(r["method"], r["keep"], r["batch"]) for r in shown["not_run"]] == [("fastv:layer=99", 3, 1)]
    lost = SimpleNamespace(methods="all,grid", relevance="auto")
    refused = [{"method": name} for name in ("fastv", "uniform-grid:per=tile")]
    assert profile._named(lost, refused) == refused[1:]  # nobody named fastv


@pytest.mark.parametrize("source", ["first-layer", "embedding"])
def test_relevance_that_reads_the_tokens_of_the_question_is_measured(workload: Workload, source: str) -> None:
    (_, fsr) = measure(replace(workload, relevance=source), Plan((FSR(keep=3),), new_tokens=2, rounds=1))
    assert not fsr.skipped and fsr.notes == () and fsr.times["text_tower"].median > 0


def test_sources_of_relevance_are_the_methods_own_or_what_was_asked_for(workload: Workload) -> None:
    hawk, fsr, trim = get("hawk", keep=3), FSR(keep=3), get("trim", keep=3)
    plan = Plan((hawk, fsr, trim), new_tokens=2, rounds=1)

    def ran(relevance: Any) -> list[tuple[str, bool, tuple[str, ...]]]:
        return [(r.method, not r.skipped, r.notes) for r in measure(replace(workload, relevance=relevance), plan)[1:]]

    without = "ran without relevance: no text tower pairs with this model"
    assert ran(None) == [("hawk", True, ()), ("fsr", True, (without,)), ("trim", False, ())]
    assert ran("none") == [
        ("fsr", True, ("ran without relevance: as asked",)),
        ("hawk", False, ()),
        ("trim", False, ()),
    ]


def test_the_second_embedded_model_is_measured_with_the_relevance_beside_its_weights(capsys: Any) -> None:
    """Its relevance.json names word embeddings: the question's tokens come from its own processor."""
    words = ["--model", "mini-qwen3", "--device", "cpu", "--keep", "16", "--rounds", "1", "--new-tokens", "2", "--json"]
    status, out, err = run(capsys, *words, "--methods", "fsr,fsr:relevance=none,hawk")
    shown = json.loads(out)
    assert status == 0 and err == "" and shown["not_run"] == []
    spent = {r["method"]: r["ms"]["text_tower"]["median"] > 0 for r in shown["results"]}
    assert spent == {"unpruned": False, "fsr": True, "fsr:relevance=none": False, "hawk": True}
    assert all(r["notes"] == [] for r in shown["results"])


def test_command_measures_and_draws(capsys: Any, monkeypatch: Any, tmp_path: Any, workload: Workload) -> None:
    monkeypatch.setattr("fsr.profiling.workload.from_config", lambda *a, **k: workload)
    picture = tmp_path / "bars.png"
    words = ["--config", "llava-1.5-7b", "--device", "cpu", "--keep", "3", "--rounds", "1", "--new-tokens", "2"]
    status, out, err = run(capsys, *words, "--json", "--plot", str(picture))
    shown = json.loads(out)
    assert status == 0 and err == ""
    assert shown["weights"] == "random" and [r["keep"] for r in shown["results"]] == [None, 3]
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_checkpoint_is_measured_through_its_own_processor(capsys: Any) -> None:
    words = ["--model", "mini", "--device", "cpu", "--keep", "16", "--rounds", "1", "--new-tokens", "2", "--json"]
    status, out, _ = run(capsys, *words)
    shown = json.loads(out)
    base, fsr = shown["results"]
    assert status == 0 and shown["weights"] == "checkpoint" and shown["dtype"] == "float32"
    assert base["ms"]["preprocess"]["median"] > 0
    assert (base["visual_tokens"]["after"], fsr["visual_tokens"]["after"]) == (144, 16)
    assert fsr["ms"]["text_tower"]["median"] > 0 and fsr["notes"] == []
    assert 1 <= base["answer_tokens"] <= 8 and 1 <= fsr["answer_tokens"] <= 8  # a word or two and the end token
    status, out, _ = run(capsys, "--preset", "full", "--model", "mini", "--keep", "16", "--text-tokens", "20", "--json")
    rows = json.loads(out)["rows"]
    assert rows[1]["kv_bytes"] * (144 + 20) == rows[0]["kv_bytes"] * (16 + 20)
