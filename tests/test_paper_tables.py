"""The paper's tables as data, both averages, and results of lmms-eval read back from files as it writes them."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec

import numpy as np
import pytest

from fsr import UsageError
from fsr.cli import main
from fsr.evaluation.benchmarks import COLUMNS, F1, MME, MVBENCH, TYPES
from fsr.evaluation.column_scores import column_score
from fsr.evaluation.lmms.chat import chat_of, cut, generate_arguments
from fsr.evaluation.lmms_results import read_runs
from fsr.evaluation.paper_report import report
from fsr.evaluation.published import TABLES, averages, table
from fsr.evaluation.tasks.pope import said

NUMBERS = list(TABLES)


# ------------------------------------------------------------------------------------------------------ the data alone


@pytest.mark.parametrize("number", NUMBERS)
def test_printed_averages_follow(number):
    paper = table(number)
    assert paper.base.method == "vanilla" and len(paper.rows) > 8
    for row in paper.rows:
        made = averages(row.scores, paper.base.scores)
        if row.printed is not None:
            assert made.rel_sum == pytest.approx(row.printed, abs=0.1), row
        assert made.count == len(row.scores)


def test_both_averages_differ_as_said():
    rows = [row for number in NUMBERS for row in table(number).rows if row.printed is not None]
    bases = [table(number).base.scores for number in NUMBERS for row in table(number).rows if row.printed is not None]
    gaps = [averages(r.scores, b).rel_mean - averages(r.scores, b).rel_sum for r, b in zip(rows, bases)]
    assert (min(gaps), max(gaps)) == (pytest.approx(-0.79, abs=0.01), pytest.approx(1.52, abs=0.01))
    fsr = {r.budget: r for r in table(1).rows if r.method == "FSR"}
    cdp = {r.budget: r for r in table(1).rows if r.method == "CDPruner"}
    without = lambda row: averages(row.scores, table(1).base.scores, leave_out="MMVet").rel_sum
    assert without(fsr[128]) == pytest.approx(97.60, abs=0.01) and without(cdp[128]) == pytest.approx(97.59, abs=0.01)
    assert without(fsr[64]) == pytest.approx(95.67, abs=0.01) and without(cdp[64]) == pytest.approx(95.88, abs=0.01)


def test_every_column_has_a_source():
    assert {c for number in NUMBERS for c in table(number).columns} == set(COLUMNS)
    assert len(set(MVBENCH)) == 20


def test_no_scores_in_common_is_no_average():
    made = averages({"MMVet": 30.0}, table(1).base.scores, leave_out="MMVet")
    assert (made.rel_sum, made.rel_mean, made.count) == (None, None, 0)


# --------------------------------------------------------------------------------------------- results of lmms-eval


def written(folder, args, scores, samples=None, *, spent=None, limit=None, errors=None):
    """Files as lmms-eval 0.7 writes them. scores: task -> {metric: value}; samples: task -> {metric: values}."""
    folder.mkdir(exist_ok=True)
    number = len(list(folder.glob("*_results.json")))
    stamp = folder / f"20261125_12000{number}"
    count = {task: len(next(iter((samples or {}).get(task, {"": range(400)}).values()))) for task in scores}
    data = {
        "results": {
            task: {"alias": task, **{f"{m},none": v for m, v in metrics.items()}}
            | {f"{m}_stderr,none": (errors or {}).get(task, "N/A") for m in metrics}
            for task, metrics in scores.items()
        },
        "config": {"model": "fsr", "model_args": args, "limit": limit},
        "n-samples": {task: {"original": n, "effective": n} for task, n in count.items()},
    }
    if spent is not None:
        names = ("pictures", "visual_tokens", "visual_tokens_kept", "visual_tokens_per_layer")
        data["throughput"] = {f"avg_{name}": value for name, value in zip(names, spent)}
    stamp.with_name(f"{stamp.name}_results.json").write_text(json.dumps(data))
    for task, metrics in (samples or {}).items():
        rows = [dict(zip(metrics, row)) for row in zip(*metrics.values())]
        lines = [json.dumps({"doc_id": i, "target": "", **row}) for i, row in enumerate(rows)]
        stamp.with_name(f"{stamp.name}_samples_{task}.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    return folder


BASE, FSR = "pretrained=a/b,method=none,device=cuda", "pretrained=a/b,method=fsr,keep=64,batch_size=8"
GQA_BASE, GQA_FSR = [1.0] * 248 + [0.0] * 152, [1.0] * 230 + [0.0] * 170


@pytest.fixture
def results(tmp_path):
    """Two benchmarks unpruned and pruned; the pruned run in two files."""
    folder = tmp_path / "out"
    every = {"gqa": {"exact_match": GQA_BASE}}
    scores = {"gqa": {"exact_match": 0.62}, "fsr_mme": {"mme_score": 1800.0}, "mmvet": {"gpt_eval_score": 30.0}}
    written(folder, BASE, scores, every, spent=(800, 576, 576, 576))
    every = {"gqa": {"exact_match": GQA_FSR}}
    written(folder, FSR, {"gqa": {"exact_match": 0.575}}, every, spent=(400, 576, 64, 64))
    written(folder, FSR.replace("8", "16"), {"fsr_mme": {"mme_score": 1710.0}}, spent=(400, 576, 64, 64))
    return folder


def cells(text, label):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_runs_stand_beside_the_printed_rows(results):
    text = report(table(1), read_runs([results]))
    head = [cell.strip() for cell in text.splitlines()[2].strip("|").split("|")]
    ours = dict(zip(head, cells(text, "**here: fsr (keep=64)**")))
    assert (ours["tokens"], ours["GQA"], ours["MME"], ours["POPE"]) == ("64.0", "**57.5**", "**1710.0**", "-")
    assert ours["rel_sum"] == f"{100 * (57.5 + 85.5) / (62 + 90):.2f}" and ours["benchmarks"] == "2"
    assert ours["rel_mean"] == f"{100 * (57.5 / 62 + 85.5 / 90) / 2:.2f}" == ours["rel_mean without MMVet"]
    lines = text.splitlines()
    place = lambda start: next(i for i, line in enumerate(lines) if line.startswith(start))
    assert place("| vanilla |") < place("| **here: unpruned**") < place("| HoloV | 192 ")
    assert place("| FSR | 64 ") < place("| **here: fsr (keep=64)**")  # behind the printed rows of its budget
    printed = dict(zip(head, cells(text, "FSR | 64")[:1] + cells(text, "FSR | 64")[1:]))
    assert printed["printed Avg."] == "96.1" and printed["MME"] == "1701"
    assert "fsr (keep=64): 64.0 of 576.0 visual tokens per picture" in text


def test_intervals_say_where_they_are_from(results):
    base, fsr = read_runs([results])
    assert base.unpruned and fsr.label({"keep"}) == "fsr (keep=64)"
    gqa = column_score(fsr, "GQA")
    error = 100 * math.sqrt(0.575 * 0.425 / 400)
    assert gqa.kind == "bootstrap" and gqa.value == pytest.approx(57.5)
    assert (gqa.high - gqa.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert column_score(fsr, "MME").kind == "none"  # pairs of questions: no error follows from the score alone
    assert column_score(fsr, "POPE") is None
    # paired: the base is right wherever the pruned run is, so their difference is far surer than either
    gap = column_score(base, "GQA").draws - gqa.draws
    assert np.std(gap) == pytest.approx(100 * math.sqrt(0.045 * 0.955 / 400), rel=0.1)


def test_without_answers_the_standard_error_or_the_binomial_one(tmp_path):
    written(tmp_path / "a", FSR, {"gqa": {"exact_match": 0.5}}, errors={"gqa": 0.02})
    (run,) = read_runs([tmp_path / "a"])
    score = column_score(run, "GQA")
    assert score.kind == "stderr" and score.high - score.value == pytest.approx(1.96 * 2)
    written(tmp_path / "b", FSR, {"gqa": {"exact_match": 0.5}})
    (run,) = read_runs([tmp_path / "b"])
    score = column_score(run, "GQA")
    assert score.kind == "binomial" and score.high - score.value == pytest.approx(1.96 * 2.5)
    text = report(table(3), [run])
    assert "(45.1 to 54.9 n)" in text and "no unpruned run" in text and "visual tokens not recorded" in text


def test_shares_of_the_baseline_get_paired_intervals(tmp_path):
    for args, right in ((BASE, GQA_BASE), (FSR, GQA_FSR)):
        values = {"gqa": {"exact_match": right}}
        written(tmp_path, args, {"gqa": {"exact_match": sum(right) / 400}}, values, spent=(400, 576, 64, 64))
    row = cells(report(table(1), read_runs([tmp_path])), "fsr (keep=64)")
    low, high = (float(v) for v in row[-2].removesuffix(" b").split(" to "))
    assert low < 100 * 230 / 248 < high and high - low < 8  # unpaired it would be about 14 wide


def test_rules_count_as_the_benchmarks_do():
    pairs = [("yes", "yes")] * 3 + [("yes", "no")] * 1 + [("no", "yes")] * 2 + [("no", "no")] * 4
    rows, clusters = F1.table([{"prediction": p, "ground_truth": t} for p, t in pairs])
    assert len(clusters) == 10 and F1.score(rows.mean(0, keepdims=True))[0] == pytest.approx(100 * 6 / 9)
    asked = [("color", 1, 1), ("color", 1, 0), ("color", 2, 1), ("color", 2, 1), ("OCR", 1, 1), ("OCR", 1, 1)]
    rows, clusters = MME.table([{"category": c, "question_id": q, "score": s} for c, q, s in asked])
    assert len(clusters) == 3 and MME.score(rows.mean(0, keepdims=True))[0] == pytest.approx(125 + 200)
    asked = [("ego", "A", "A"), ("ego", "A", "B"), ("order", "C", "C")]
    rows, _ = TYPES.table([{"task_type": t, "pred_answer": p, "answer": a} for t, p, a in asked])
    assert TYPES.score(rows.mean(0, keepdims=True))[0] == pytest.approx(150 / 9)  # the types without questions count 0


def test_pope_is_the_mean_of_its_parts_and_yes_is_shown(tmp_path):
    names = [f"fsr_pope_{part}" for part in ("adv", "pop", "random")]
    written(tmp_path, FSR, {n: {"pope_f1_score": f, "pope_yes_ratio": 0.4} for n, f in zip(names, (0.8, 0.9, 1.0))})
    (run,) = read_runs([tmp_path])
    assert column_score(run, "POPE").value == pytest.approx(90)
    assert "POPE answered yes to 40.0 %" in report(table(1), [run])
    del run.tasks["fsr_pope_pop"]
    assert column_score(run, "POPE") is None


# ---------------------------------------------------------------------------------------------------------- bad input


def test_answers_of_another_run_are_refused(results):
    (file,) = results.glob("*1_samples_gqa.jsonl")
    file.write_text(file.read_text().replace('"exact_match": 1.0', '"exact_match": 0.0', 40))
    with pytest.raises(UsageError, match="files of one run"):
        report(table(1), read_runs([results]))


def test_bad_results_say_what_to_do(results, tmp_path):
    other = written(tmp_path / "other", FSR.replace("a/b", "c/d"), {"gqa": {"exact_match": 0.5}})
    with pytest.raises(UsageError, match="one checkpoint"):
        report(table(1), read_runs([results, other]))
    with pytest.raises(UsageError, match="belongs to table 4"):
        report(table(4), read_runs([results]))
    twice = written(tmp_path / "twice", FSR, {"gqa": {"exact_match": 0.5}})
    with pytest.raises(UsageError, match="so has another file"):
        read_runs([results, twice])
    with pytest.raises(UsageError, match="output_path"):
        read_runs([tmp_path / "nowhere"])
    for text in ("[1]", "{", '{"config": {}, "results": {}, "n-samples": {}}'):
        (tmp_path / "x_results.json").write_text(text)
        with pytest.raises(UsageError, match="results file"):
            read_runs([tmp_path / "x_results.json"])


def test_a_limit_is_told(tmp_path):
    written(tmp_path, FSR, {"gqa": {"exact_match": 0.5}}, limit=8)
    assert "made with --limit" in report(table(1), read_runs([tmp_path]))


def test_command_line(results, tmp_path, capsys):
    assert main(["tables"]) == 0
    assert capsys.readouterr().out.count("## Table ") == 6
    file = tmp_path / "table.md"
    assert main(["tables", str(results), "--table", "1", "--markdown", str(file)]) == 0
    assert "here: fsr (keep=64)" in file.read_text()
    for words, message in (
        (["tables", str(results)], "--table"),
        (["tables", "--table", "7"], "no table 7"),
        (["tables", "--markdown", str(tmp_path / "no" / "x.md")], "cannot write"),
    ):
        capsys.readouterr()
        assert main(words) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(
    find_spec("lmms_eval") is not None, reason="lmms-eval is here: the error of its absence was not run"
)
def test_tasks_need_lmms_eval(tmp_path, capsys):
    assert main(["tasks", str(tmp_path / "tasks"), "--questions", "8"]) == 2
    assert "pip install 'fsr-vlm[eval]'" in capsys.readouterr().err and not (tmp_path / "tasks").exists()


# ------------------------------------------------------------------------------- what asks the model, without lmms-eval


def test_generation_arguments_of_tasks():
    greedy, until = generate_arguments({"temperature": 0, "top_p": 1.0, "num_beams": 1, "until": "ASSISTANT:"})
    assert greedy == {"do_sample": False, "num_beams": 1, "max_new_tokens": 1024} and until == ["ASSISTANT:"]
    drawn, until = generate_arguments({"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 8})
    assert drawn == {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 8} and until == []
    decided, _ = generate_arguments({"temperature": 0.7, "do_sample": False, "top_k": 5})
    assert decided == {"do_sample": False, "max_new_tokens": 1024}


def test_answers_end_at_the_first_stop_string():
    assert cut(" yes\n\nno ASSISTANT: x", ["ASSISTANT:", "\n\n"]) == "yes"
    assert cut(" yes ", ["", "no"]) == "yes"


def test_messages_become_turns():
    messages = [
        {"role": "user", "content": [{"type": "image", "url": "a.png"}, {"type": "text", "text": "first"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "reply"}]},
        {"role": "user", "content": [{"type": "text", "text": "second "}]},
    ]
    chat = chat_of(messages, 8)
    assert chat.question == "second" and chat.turns[0]["content"][0] == {"type": "image", "image": "a.png"}
    with pytest.raises(UsageError, match="audio"):
        chat_of([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}], 8)


@pytest.mark.parametrize(
    "text, answer",
    [
        ("Yes", "yes"), ("yes.", "yes"), ("No", "no"), ("No, it is not.", "no"), ("There is not.", "no"),
        ("Yes. There is no doubt.", "yes"), ("It does, no.", "no"), ("Nothing", "yes"),
    ],
)  # fmt: skip
def test_pope_reads_the_first_sentence(text, answer):
    assert said(text) == answer
