"""`fsr batch` on real Ray with two workers: every row once, whatever is killed; the same answers as one by one.

The 500 questions are those of `fsr compare`'s generator, the model is `mini`. Runs are commands in processes of their
own, killed as an operating system kills.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

# Read when Ray is imported: a token of these tests, so that Ray writes none to the home folder; no report to anybody.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f5" * 16, "RAY_USAGE_STATS_ENABLED": "0"}
pytest.importorskip("ray", reason="Ray is not installed (make test-engines): fsr batch was NOT run")

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from patience import SILENCE, Patience, stop, tail

from fsr.asking.answer import answer
from fsr.asking.images import open_image
from fsr.asking.load import load
from fsr.cli import main
from fsr.errors import FeatureError, UsageError
from fsr.evaluation.question_set import build
from fsr.methods import get
from fsr.methods.picture_budgets import EachPrompt
from fsr.serving.batch.inputs import Row, read_rows
from fsr.serving.batch.job import SETTINGS, Job
from fsr.serving.batch.results import SCHEMA, check_answered, part_file, read_parts, write_part
from fsr.serving.batch.worker import Worker

QUESTIONS = 500
BAD = {
    "missing": ({"image": "missing.png", "question": "what ?"}, "no file"),
    "broken": ({"image": "broken.png", "question": "what ?"}, "not a readable picture"),
    "empty": ({"image": "0000.png", "question": " "}, "question is empty"),
    "none": ({"image": "0000.png"}, "question is empty"),
}
METHOD = get("fsr", keep=16)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Pictures, and a JSONL with 500 good rows and four bad ones among them."""
    folder = tmp_path_factory.mktemp("asked")
    questions = build("test", 0, 504)
    for i in range(len(questions.scenes)):
        questions.picture(i).save(folder / f"{i:04}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"garbage" * 20)
    lines = [
        {"id": f"q{i}", "image": f"{item.scene:04}.png", "question": item.question.text}
        for i, item in enumerate(questions.items[:QUESTIONS])
    ]
    for at, (name, (row, _)) in enumerate(BAD.items()):
        lines.insert(100 * at, {"id": name, **row})
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def expected(asked):
    """What `fsr ask` answers, one question after the other in this process."""
    torch.set_num_threads(1)
    model, processor = load("mini", "cpu")
    found = {}
    for row in read_rows(asked):
        if row.id not in BAD:
            said = answer(model, processor, open_image(asked.parent / row.image), row.question, METHOD)
            found[row.id] = (said.text, said.selection.total, said.selection.kept, said.selection.n_focus)
    return found


class Run:
    """`fsr batch` as people start it: with nothing said to Ray. Stopped (with an error) when it makes no progress."""

    def __init__(self, asked, out, log):
        words = ["batch", str(asked), "--out", str(out), "--workers", "2", "--keep", "16"]
        self.out, self.log = out, log
        with open(log, "w", encoding="utf-8") as told:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fsr", *words],
                start_new_session=True,
                env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
                stdout=told,
                stderr=subprocess.STDOUT,
            )
        self.watch = Patience("fsr batch", self.process.pid, log)

    def family(self, parts):
        """Wait until this many parts are there; the process and all that it has started."""
        while len(list(self.out.glob("part-*"))) < parts:
            assert self.process.poll() is None, tail(self.log)
            self._wait()
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def told(self):
        """Wait for the end: what was printed."""
        while self.process.poll() is None:
            self._wait()
        assert self.process.returncode == 0, tail(self.log)
        return self.log.read_text(encoding="utf-8")

    def _wait(self):
        try:
            self.watch.check()
        except TimeoutError:
            stop(self.process)
            raise
        time.sleep(0.05)


def gone(family):
    """Wait until none of these processes is left."""
    _, alive = psutil.wait_procs(family, timeout=SILENCE)
    assert not alive


def check(out, expected):
    """Every row once: the good ones as `fsr ask` answers them, the bad ones with their error."""
    table = pq.read_table(out)  # as anybody reads the folder
    assert table.schema.equals(SCHEMA)
    rows = {r["id"]: r for r in table.to_pylist()}
    assert table.num_rows == len(rows) == QUESTIONS + len(BAD)
    got = {i: tuple(r[c] for c in ("answer", "tokens_before", "tokens_after", "n_focus")) for i, r in rows.items()}
    assert {i: g for i, g in got.items() if i not in BAD} == expected
    for name, (_, hint) in BAD.items():
        assert hint in rows[name]["error"] and got[name] == (None, None, None, None)
    assert all(r["error"] is None for i, r in rows.items() if i not in BAD)
    assert {(r["method"], r["keep"]) for r in rows.values()} == {("fsr", "16")} and min(
        r["seconds"] for r in rows.values()
    ) > 0
    assert not list(out.glob(".part-*"))


def test_a_killed_worker_loses_nothing_and_doubles_nothing(asked, expected, tmp_path):
    out = tmp_path / "out"
    run = Run(asked, out, tmp_path / "log.txt")
    family = run.family(4)
    workers = [p for p in family if "MapWorker" in " ".join(p.cmdline())]
    assert len(workers) == 2
    workers[0].send_signal(signal.SIGKILL)
    before = len(list(out.glob("part-*")))
    told = run.told()
    assert before < len(list(out.glob("part-*"))) == 32  # there was work left to lose
    assert "504 rows: 500 answered, 4 with an error" in told and "144.0 -> 16.0" in told
    check(out, expected)
    gone(family)


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on this machine, reached by address."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield nodes
    nodes.shutdown()


def test_a_killed_run_goes_on_where_it_was_on_a_cluster_too(asked, expected, tmp_path, capsys, cluster):
    out = tmp_path / "out"
    run = Run(asked, out, tmp_path / "log.txt")
    family = run.family(4)
    os.killpg(run.process.pid, signal.SIGKILL)
    run.process.wait()
    gone(family)
    first = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.glob("part-*")}
    done = len(read_parts(out, ["id"])["id"])
    assert 4 <= len(first) < 32
    (out / ".part-half-written").touch()

    assert main(["batch", str(asked), "--out", str(out), "--keep", "8"]) == 2
    assert "fsr.keep 16 there, 8 now" in capsys.readouterr().err

    assert main(["batch", str(asked), "--out", str(out), "--workers", "2", "--address", cluster.address]) == 0
    told = capsys.readouterr().out
    assert f"{done} of them by earlier runs\n{504 - done} rows in " in told
    now = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.glob("part-*")}
    assert len(now) == 32 and first.items() <= now.items()  # what was answered was not asked again
    check(out, expected)

    assert main(["batch", str(asked), "--out", str(out)]) == 0  # nothing left: Ray is not even started
    assert "504 of them by earlier runs" in capsys.readouterr().out


def test_what_the_model_or_the_cluster_cannot_do_stops_before_the_first_row(asked, tmp_path, capsys, cluster):
    words = ["batch", str(asked), "--out", str(tmp_path / "out"), "--address", cluster.address]
    assert main([*words, "--method", "fastv", "--option", "layer=99"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "Traceback" not in told.err
    assert "fsr batch: error: fastv drops in front of layers (99,)" in told.err
    assert main([*words, "--workers", "3"]) == 2
    assert "3 workers need 3 CPUs, Ray has 2" in capsys.readouterr().err
    assert main([*words, "--device", "cuda"]) == 2
    assert "1 workers need 1 GPUs, Ray has 0" in capsys.readouterr().err
    for address, hint in (("127.0.0.1:9", "no Ray at"), ("ray://127.0.0.1:9", "host:port"), ("nonsense", "host:port")):
        assert main([*words[:-1], address]) == 2
        assert hint in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == [SETTINGS]


# ----------------------------------------------------------------------------------------------------------------------
# The parts that Ray moves around, without it.


@pytest.fixture(scope="module")
def worker(asked, tmp_path_factory):
    job = Job(source=asked, out=tmp_path_factory.mktemp("parts"), method=METHOD, device="cpu", max_new_tokens=8)
    job.claim()
    return Worker(job)


def test_a_row_that_the_processor_or_the_method_refuses_harms_no_other(worker, expected, monkeypatch):
    rows = [r for r in read_rows(worker.job.source) if r.id in ("q0", "q1", "q2")]
    rows.insert(1, Row("placeholder", "0000.png", "what is <image> ?"))
    said = {r["id"]: r for r in worker.answers(rows)}
    assert "control token" in said["placeholder"]["error"] and said["placeholder"]["answer"] is None
    assert {i: said[i]["answer"] for i in ("q0", "q1", "q2")} == {i: expected[i][0] for i in ("q0", "q1", "q2")}

    generate = worker.model.generate

    def picky(**kwargs):
        if "what ?" in kwargs["question"]:
            raise FeatureError("features hold NaN: check the picture.")
        return generate(**kwargs)

    monkeypatch.setitem(worker.model.__dict__, "generate", picky)
    rows[1] = Row("nan", "0000.png", "what ?")
    said = {r["id"]: r for r in worker.answers(rows)}
    assert "NaN" in said["nan"]["error"] and said["q2"]["answer"] == expected["q2"][0]


def test_tokens_after_are_those_of_the_last_layer(worker):
    chain = replace(worker.job, method=get("fsr", keep=48) | get("fastv", keep=16, layer=2))
    said = Worker(chain).answers(read_rows(chain.source)[1:4])
    columns = ("method", "keep", "tokens_before", "tokens_after")
    assert [tuple(s[c] for c in columns) for s in said] == [("fsr | fastv", "48 | 16", 144, 16)] * 3
    assert all(s["answer"] and 0 < s["n_focus"] <= 48 for s in said)


def test_a_failing_model_is_no_row_error(worker, monkeypatch):
    def broken(**kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(worker.model.__dict__, "generate", broken)
    rows = read_rows(worker.job.source)[1:3]
    with pytest.raises(torch.OutOfMemoryError):
        worker({"rows": json.dumps([vars(r) for r in rows])})
    assert not part_file(worker.job.out, rows).exists()


def test_a_part_that_is_there_is_not_answered_again(worker, monkeypatch):
    batch = {"rows": json.dumps([vars(r) for r in read_rows(worker.job.source)[:3]])}
    assert worker(batch)["rows"] == 3
    monkeypatch.setattr(Worker, "answers", None)
    assert worker(batch)["rows"] == 3 and len(list(worker.job.out.glob("part-*"))) == 1


def test_a_worker_without_the_folder_or_the_model_says_so(worker, tmp_path):
    batch = {"rows": json.dumps([vars(r) for r in read_rows(worker.job.source)[:3]])}
    for job, hint in (
        (replace(worker.job, out=tmp_path), "storage that all machines share"),
        (replace(worker.job, model="no/such/model"), "no model"),
    ):
        assert hint in Worker(job)(batch)["refused"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["bytes", "struct", "paths"])
def test_parquet_with_pictures_inside_and_paths(worker, asked, tmp_path, kind, expected):
    rows = [r for r in read_rows(asked) if r.id in ("q0", "q9", "q20")]
    for r in rows:
        shutil.copy(asked.parent / r.image, tmp_path)
    data = [(asked.parent / r.image).read_bytes() for r in rows]
    image = {
        "bytes": pa.array([*data, b"garbage", None], pa.binary()),
        "struct": pa.array(
            [{"bytes": data[0], "path": None}, {"bytes": None, "path": rows[1].image}]
            + [{"bytes": data[2], "path": "x"}, {"bytes": b"garbage", "path": "x"}, None]
        ),
        "paths": pa.array([*(r.image for r in rows), "missing.png", None]),
    }[kind]
    table = pa.table({"image": image, "question": [*(r.question for r in rows), "what ?", "what ?"]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    mine = Worker.__new__(Worker)
    vars(mine).update(vars(worker) | {"pictures": type(worker.pictures)(tmp_path / "rows.parquet")})
    said = mine.answers(read_rows(tmp_path / "rows.parquet"))
    assert [s["answer"] for s in said] == [*(expected[r.id][0] for r in rows), None, None]
    assert [bool(s["error"]) for s in said] == [False, False, False, True, True]
    if kind != "paths":
        assert [s["image"] for s in said] == [f"rows.parquet#{i}" for i in range(5)]
    (tmp_path / "bare.parquet").write_bytes(b"no parquet")
    with pytest.raises(UsageError, match="not readable Parquet"):
        read_rows(tmp_path / "bare.parquet")
    pq.write_table(table.rename_columns(["picture", "question"]), tmp_path / "other.parquet")
    with pytest.raises(UsageError, match="no column image, only picture, question"):
        read_rows(tmp_path / "other.parquet")
    pq.write_table(table.select(["image"]), tmp_path / "image.parquet")
    assert [r.question for r in read_rows(tmp_path / "image.parquet", "what ?")] == ["what ?"] * 5


def test_folders_that_answer_another_input_are_refused(tmp_path):
    rows = [Row(str(i), f"{i}.png", "what ?") for i in range(3)]
    answers = [dict.fromkeys(SCHEMA.names) | {"id": r.id, "image": r.image, "question": r.question} for r in rows]
    write_part(part_file(tmp_path, rows), answers)
    assert check_answered(tmp_path, [*rows, Row("3", "3.png", "what ?")]) == {"0", "1", "2"}
    with pytest.raises(UsageError, match="which the input does not have"):
        check_answered(tmp_path, rows[:2])
    with pytest.raises(UsageError, match=r"asks 'who \?' about 2.png"):
        check_answered(tmp_path, [*rows[:2], Row("2", "2.png", "who ?")])
    write_part(part_file(tmp_path, rows[:1]), answers[:1])
    with pytest.raises(UsageError, match="two answers for 1 row in"):
        check_answered(tmp_path, rows)
    (tmp_path / "part-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"part-0.parquet.*delete it"):
        check_answered(tmp_path, rows)


def test_the_tested_release_is_in_the_range_of_the_extra():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert version("ray").startswith("2.60.") and '"ray[data]>=2.60,<2.64"' in text


def test_rows_of_several_pictures_with_a_budget_each(asked, tmp_path):
    torch.set_num_threads(1)
    job = Job(asked, tmp_path, get("fsr", keep=EachPrompt((0.5, 3))), device="cpu")
    job.claim()
    files = [row.image for row in read_rows(asked) if row.id not in BAD][:2]
    two, one = (Row(str(len(f)), json.dumps(f), "what is the background ?", images=f) for f in (files, files[:1]))
    replies = Worker(job).answers([two, one, two])
    assert [r["tokens_after"] for r in replies] == [75, None, 75] and replies[0]["tokens_before"] == 288
    assert "2 values and the prompt 1 picture" in replies[1]["error"] and replies[0]["keep"] == "0.5,3"
