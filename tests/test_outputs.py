"""What commands write: tried before the work begins, printed before it is written, one line where it fails."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fsr import UsageError
from fsr.cli import main
from fsr.cli.demo import _check_address
from fsr.cli.outputs import output_file, output_folder
from fsr.evaluation.record import RecordFile

COMMANDS = [
    (["compare", "--questions", "8", "--keep", "8", "--methods", "fsr"], "--json", ".json"),
    (["compare", "--questions", "8", "--keep", "8", "--methods", "fsr"], "--markdown", ".md"),
    (["compare", "--questions", "8", "--keep", "8", "--methods", "fsr"], "--plot", ".png"),
    (["ask", "what color is the dog?"], "--save", ".png"),
    (["view", "what color is the dog?"], "--out", ".html"),
    (["view", "what color is the dog?"], "--png", ".png"),
    (["tables", "--table", "1"], "--markdown", ".md"),
    (["profile"], "--plot", ".png"),
]


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """suffix -> paths that cannot be written: no folder, a folder of that name, a file as a folder, a name too long."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")

    def paths(suffix):
        (tmp_path / f"taken{suffix}").mkdir(exist_ok=True)
        return [
            f"none/x{suffix}",
            f"taken{suffix}",
            f"file/x{suffix}",
            "a" * 300 + suffix,
            "x.exe",
            "",
            f"nul\0{suffix}",
        ]

    return paths


@pytest.mark.parametrize(("words", "option", "suffix"), COMMANDS)
def test_what_cannot_be_written_is_said_before_the_work(nowhere, words, option, suffix, capsys, monkeypatch, tmp_path):
    if option == "--plot":
        pytest.importorskip("matplotlib")
    monkeypatch.setattr("fsr.asking.load.load", lambda *a, **k: pytest.fail("the model was loaded"))
    for path in nowhere(suffix):
        there = sorted(tmp_path.rglob("*"))
        assert main([*words, option, path]) == 2, path
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and "cannot write" in said.err
        assert sorted(tmp_path.rglob("*")) == there


def test_trying_a_file_changes_nothing(tmp_path, monkeypatch):
    old = tmp_path / "old.json"
    old.write_text("precious")
    assert output_file(str(old), (".json",)) == old and old.read_text() == "precious"
    assert output_file(str(tmp_path / "new.json"), (".json",)) and not (tmp_path / "new.json").exists()
    assert output_file(None, (".json",)) is None and output_folder(None) is None
    monkeypatch.setattr(
        Path, "open", lambda *a, **k: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied"))
    )
    with pytest.raises(UsageError, match="Permission denied"):
        output_file(str(old), (".json",))


def test_folders(tmp_path):
    (tmp_path / "file").write_text("x")
    assert output_folder(str(tmp_path / "new" / "one")) == tmp_path / "new" / "one" and not (tmp_path / "new").exists()
    for name in (str(tmp_path / "file"), str(tmp_path / "file" / "below"), "", "nul\0"):
        with pytest.raises(UsageError, match="cannot write to"):
            output_folder(name)
    words = ["compare", "--questions", "8", "--keep", "8", "--methods", "fsr", "--resume-dir", str(tmp_path / "file")]
    assert main(words) == 2


def test_results_are_printed_although_the_disk_is_full(capsys, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert main(["ask", "what color is the umbrella?", "--save", str(tmp_path / "x.png")]) == 2
    said = capsys.readouterr()
    assert "A  yellow" in said.out and said.err.count("\n") == 1 and "No space left" in said.err
    monkeypatch.setattr(Path, "write_text", full)
    words = ["compare", "--questions", "8", "--keep", "8", "--methods", "fsr", "--json", str(tmp_path / "x.json")]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "fsr" in said.out and "saved" not in said.out and "No space left" in said.err


@pytest.mark.parametrize("option", ["--image", "--keep", "--save"])
def test_an_empty_value_is_not_none(option, capsys):
    assert main(["ask", "what color is the dog?", option, ""]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("option", ["--image", "--keep", "--methods", "--out", "--png"])
def test_an_empty_value_is_not_none_in_view(option, capsys):
    assert main(["view", "what color is the dog?", option, ""]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("damage", [b"\0" * 9, b"\xff\xfe", b"", b"[]", b"{}", b"not json"])
def test_a_damaged_record_names_its_file(tmp_path, damage):
    path = tmp_path / "fsr-1.jsonl"
    RecordFile(path, {"a": 1})
    path.write_bytes(path.read_bytes() + damage + b"\n")
    with pytest.raises(UsageError, match=r"fsr-1\.jsonl is damaged"):
        RecordFile(path, {"a": 1})


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 99999), ("127.0.0.1", 0), ("999.999.1.1", None), ("a" * 99, None)]
)
def test_an_address_that_is_none(host, port):
    with pytest.raises(UsageError, match=r"port|cannot listen"):
        _check_address(host, port)


def test_an_interrupted_import_and_a_pipe_that_closed(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("fsr.cli.import_module", interrupted)
    assert main(["ask", "what?"]) == 130 and capsys.readouterr().err == "interrupted\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_standard_output_on_a_full_disk_and_in_ascii():
    def run(*words, **streams):
        code = "import sys; from fsr.cli import main; sys.exit(main(sys.argv[1:]))"
        return subprocess.run([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True, **streams)

    with open("/dev/full", "w") as full:
        done = run("methods", stdout=full)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run("tasks", "--questions", "7", "ordner-ü", stdout=subprocess.PIPE, env=ascii_only)
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr
