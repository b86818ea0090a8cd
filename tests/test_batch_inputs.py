"""`fsr batch` before any engine runs: rows and their ids, batches, the settings beside the answers, bad input.

Needs neither Ray nor pyarrow; what does is in tests/engines/test_ray.py.
"""

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest

from fsr.cli import main
from fsr.errors import UsageError
from fsr.methods import get
from fsr.methods.picture_budgets import EachPrompt
from fsr.serving.batch.inputs import Row, cut, read_rows
from fsr.serving.batch.job import SETTINGS, Job

QUESTION = "what is this ?"


def jsonl(folder, *lines):
    file = folder / "rows.jsonl"
    file.write_bytes(b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines) + b"\n")
    return file


def test_folder_gives_every_picture_once_in_order(tmp_path):
    for name in ("b.png", "a.JPG", "below/c.webp", "notes.txt", ".hidden.png", ".cache/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not opened here")
    rows = read_rows(tmp_path, QUESTION)
    assert [r.image for r in rows] == ["a.JPG", "b.png", "below/c.webp"]
    assert {r.question for r in rows} == {QUESTION} and not any(r.error for r in rows)
    assert len({r.id for r in rows}) == 3


def test_ids_depend_on_the_row_alone(tmp_path):
    cat, dog = {"image": "cat.png", "question": "a ?"}, {"image": "dog.png", "question": "a ?"}
    first = {r.image: r.id for r in read_rows(jsonl(tmp_path, cat, dog))}
    turned = {r.image: r.id for r in read_rows(jsonl(tmp_path, {"image": "new.png", "question": "?"}, dog, cat))}
    assert first["cat.png"] == turned["cat.png"] and first["dog.png"] == turned["dog.png"]
    other = read_rows(jsonl(tmp_path, cat | {"question": "b ?"}))[0].id
    assert len({*first.values(), other}) == 3


def test_a_row_may_ask_about_several_pictures(tmp_path):
    two = {"image": ["cat.png", "dog.png"], "question": "a ?"}
    first, turned, bad = read_rows(jsonl(tmp_path, two, two | {"image": ["dog.png", "cat.png"]}, two | {"image": [7]}))
    assert first.images == ["cat.png", "dog.png"] and first.image == '["cat.png", "dog.png"]' and first.id != turned.id
    assert "must be text or a list of paths" in bad.error
    job = Job(tmp_path, tmp_path / "out", get("fsr", keep=EachPrompt((0.5, 3))))
    assert job.keep == "0.5,3" and len(job.each.values) == 2 and job.settings["fsr.keep"] == {"values": [0.5, 3]}


def test_a_repeated_row_is_asked_twice_and_a_repeated_id_is_refused(tmp_path):
    row = {"image": "cat.png", "question": "a ?"}
    ids = [r.id for r in read_rows(jsonl(tmp_path, row, row, row))]
    assert ids[1:] == [f"{ids[0]}-2", f"{ids[0]}-3"]
    with pytest.raises(UsageError, match=r"given more than once \(7\)"):
        read_rows(jsonl(tmp_path, row | {"id": 7}, row | {"id": "7"}))


def test_given_ids_and_questions_win(tmp_path):
    file = jsonl(tmp_path, {"id": 7, "image": "a.png"}, {"id": "x", "image": "b.png", "question": "mine ?"})
    assert read_rows(file, QUESTION) == [Row("7", "a.png", QUESTION), Row("x", "b.png", "mine ?")]
    assert read_rows(file)[0].question is None


def test_bad_lines_become_rows_with_their_error_and_harm_no_other(tmp_path):
    good = {"image": "a.png", "question": "a ?"}
    bad = [b'{"image": "cut off', b"[1, 2]", {"question": "no picture ?"}, {"image": 3, "question": "a ?"}, b"\xff\xfe"]
    rows = read_rows(jsonl(tmp_path, good, *bad, {"image": "\ud800.png", "question": "a ?"}, b"", good))
    hints = ["line 2 is not JSON", "line 3 is no object", "no `image`", "`image` must be text", "line 6", "Unicode"]
    assert [r.error for r in (rows[0], rows[-1])] == [None, None] and len(rows) == 8
    for row, hint in zip(rows[1:-1], hints):
        assert row.error is not None and hint in row.error
    assert len({r.id for r in rows}) == 8
    for row in rows:  # what goes to workers and into Parquet
        json.dumps(vars(row)).encode() and (row.image or "").encode()


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("rows.csv", b"image,question\n", "neither .jsonl nor .parquet"),
        ("rows.jsonl", b"", "nothing to answer"),
        ("rows.jsonl", b"image,question\na.png,what ?\n", "no row of rows.jsonl can be read; the first: line 1"),
        ("missing.jsonl", None, "no file or folder"),
    ],
)
def test_inputs_that_cannot_be_read_at_all(tmp_path, name, content, hint):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=hint):
        read_rows(tmp_path / name)


def test_folders_need_a_question_and_pictures(tmp_path):
    with pytest.raises(UsageError, match="give --question"):
        read_rows(tmp_path)
    with pytest.raises(UsageError, match="--question is empty"):
        read_rows(tmp_path, "  ")
    with pytest.raises(UsageError, match="no picture"):
        read_rows(tmp_path, QUESTION)


def test_a_run_that_goes_on_makes_the_batches_that_are_missing_and_no_others():
    rows = [Row(str(i), f"{i}.png", QUESTION) for i in range(10)]
    whole = cut(rows, {}, 4)
    assert [[r.id for r in b] for b in whole] == [list("0123"), list("4567"), list("89")]
    done = dict.fromkeys("4567")
    assert cut(rows, done, 4) == [whole[0], whole[2]]
    assert cut([*rows, Row("10", "10.png", QUESTION)], dict.fromkeys("0123456789"), 4)[0][0].id == "10"
    assert cut(rows, dict.fromkeys("0123456789"), 4) == []


@pytest.fixture
def job(tmp_path):
    return Job(source=tmp_path / "rows.jsonl", out=tmp_path / "out", method=get("fsr", keep=16))


def test_settings_bind_as_soon_as_there_is_an_answer(job):
    job.check()
    job.claim()
    smaller = replace(job, method=get("fsr", keep=8))
    smaller.check()  # nothing is answered yet
    (job.out / "part-0.parquet").write_bytes(b"")
    job.check()
    replace(job, device="cpu").check()  # changes no answer
    with pytest.raises(UsageError, match=r"other settings \(fsr.keep 16 there, 8 now\)"):
        smaller.check()
    with pytest.raises(UsageError, match=r"\(method fsr there, divprune now\)"):
        replace(job, method=get("divprune", keep=16)).check()
    with pytest.raises(UsageError, match="model mini there, other/one now; max_new_tokens 32 there, 4 now"):
        replace(job, model="other/one", max_new_tokens=4).check()
    twice = replace(job, method=get("fsr", keep=16) | get("fastv", keep=8, layer=1) | get("fastv", keep=4, layer=2))
    assert twice.keep == "16 | 8 | 4"
    assert (twice.settings["fastv1.layer"], twice.settings["fastv2.layer"]) == (1, 2)


def test_folders_of_others_are_left_alone(job):
    job.out.write_text("a file")
    with pytest.raises(UsageError, match="is a file"):
        job.check()
    with pytest.raises(UsageError, match="cannot write to"):
        job.claim()
    job.out.unlink()
    job.out.mkdir()
    (job.out / "thesis.tex").touch()
    with pytest.raises(UsageError, match="holds other files"):
        job.check()
    (job.out / SETTINGS).write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        job.check()


@pytest.mark.parametrize(("field", "value"), [("max_new_tokens", 0), ("device", "cuda:1")])
def test_jobs_that_make_no_sense(job, field, value):
    with pytest.raises(UsageError, match=field):
        replace(job, **{field: value})


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here: nothing to ask for")
def test_without_ray_the_command_says_what_to_install(capsys, tmp_path):
    assert main(["batch", str(tmp_path), "--out", str(tmp_path / "out"), "--question", QUESTION]) == 2
    out = capsys.readouterr()
    assert "fsr-vlm[ray]" in out.err and out.err.count("\n") == 1 and out.out == ""
    assert not (tmp_path / "out").exists()
