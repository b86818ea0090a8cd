"""The command line on the shipped model: what it prints, what it writes, and one clear line for every kind of bad
input."""

import json
import re

import pytest
from PIL import Image

import fsr
from fsr.asking.images import bundled_scene
from fsr.asking.options import keep_value
from fsr.cli import COMMANDS, main
from fsr.errors import BudgetError
from fsr.methods import Downscale, Late


def ask(capsys, *words):
    status = main(["ask", "what color is the umbrella?", *words])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_json_is_one_object_with_the_promised_keys(capsys):
    status, out, _ = ask(capsys, "--keep", "16", "--json")
    result = json.loads(out)
    assert status == 0
    assert {"answer", "keep", "focus", "scan", "n_tokens", "stages_ms", "kept_rows"} <= set(result)
    assert result["keep"] == 16 == result["focus"] + result["scan"] == len(result["kept_rows"])
    assert result["n_tokens"] == 144 and result["kept_rows"] == sorted(set(result["kept_rows"]))
    assert result["answer"] == "yellow"
    assert {"vision_tower", "saliency", "text_tower", "selection", "generate", "total"} <= set(result["stages_ms"])
    assert result["certificate"]["optimum_at_least"] <= result["certificate"]["radius_chord"]


def test_text_and_picture(capsys, tmp_path):
    file = tmp_path / "kept.png"
    status, out, _ = ask(capsys, "--compare", "--save", str(file))
    assert status == 0 and "yellow" in out and "16 = " in out and "of 144" in out and "coverage" in out
    assert Image.open(file).size[0] >= 144


def test_own_picture_share_method_and_options(capsys, tmp_path):
    file = tmp_path / "photo.jpg"
    bundled_scene(2).resize((400, 300)).save(file)
    status, out, _ = ask(capsys, "--image", str(file), "--keep", "0.25", "--option", "alpha=1", "--json")
    assert status == 0 and json.loads(out)["keep"] == 36
    status, out, _ = ask(capsys, "--relevance", "none", "--json")
    assert status == 0 and json.loads(out)["relevance"] is None


def test_a_budget_of_everything_prunes_nothing_and_says_so(capsys):
    status, out, _ = ask(capsys, "--keep", "999")
    assert status == 0 and "nothing pruned" in out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--keep", "0"], "at least 1 token"),
        (["--keep", "-3"], "at least 1 token"),
        (["--keep", "1.5"], "0 < keep <= 1"),
        (["--keep", "many"], "no number"),
        (["--method", "guess"], "choose one of"),
        (["--model", "nothing-here"], "give mini"),
        (["--image", "missing.png"], "no file"),
        (["--option", "alpha"], "name=value"),
        (["--option", "alhpa=2"], "no option alhpa"),
        (["--option", "keep=3"], "given by --keep"),
        (["--save", "no/such/folder/x.png"], "folder that exists"),
        (["--device", "abacus"], "unknown device"),
    ],
)
def test_bad_input_exits_2_with_one_line_and_writes_nothing(capsys, tmp_path, monkeypatch, words, hint):
    monkeypatch.chdir(tmp_path)
    status, out, err = ask(capsys, *words)
    assert status == 2 and out == ""
    assert err.count("\n") == 1 and hint in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_not_a_picture_and_no_question(capsys, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"garbage" * 20)
    status, _, err = ask(capsys, "--image", str(broken))
    assert status == 2 and "not a readable picture" in err
    assert main(["ask", "  "]) == 2
    assert "question is empty" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["ask"])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_methods_lists_every_method_with_its_needs(capsys):
    assert main(["methods", "--json"]) == 0
    methods = json.loads(capsys.readouterr().out)["methods"]
    assert methods["fsr"]["needs"] == ["relevance", "saliency"] and methods["fsr"]["options"]["alpha"] == 1.0
    assert main(["methods"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in methods)
    lines = [line for line in table.splitlines() if line.split(" ")[0] in methods]
    papers = [line.index(methods[line.split(" ")[0]]["paper"]) for line in lines]
    assert len(lines) == len(methods) and len(set(papers)) == 1  # columns stand below each other


def test_methods_names_the_stages_and_how_they_are_written(capsys):
    """They are no methods: `--method late` is refused, and what is printed here runs."""
    assert main(["methods"]) == 0
    tail = capsys.readouterr().out.partition("docs/budgets.md")[2]
    names = {"FSR": fsr.FSR, "Downscale": Downscale, "Late": Late}
    stages = [eval(line.strip().partition("  ")[0], names) for line in tail.splitlines()[1:]]
    assert [stage.name for stage in stages] == ["downscale | fsr", "fsr | late"]
    assert main(["ask", "what color?", "--method", "late"]) == 2
    assert "unknown method 'late'" in capsys.readouterr().err


def test_every_command_explains_itself(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0 and name in capsys.readouterr().out


def test_keep_values():
    assert keep_value("64") == 64 and keep_value("0.11") == 0.11 and keep_value("11%") == 0.11
    with pytest.raises(BudgetError):
        keep_value("lots")


def test_several_pictures_with_a_budget_each(capsys, tmp_path):
    files = []
    for i in (1, 2):
        files += ["--image", str(tmp_path / f"{i}.png")]
        bundled_scene(i).save(files[-1])
    drawn = tmp_path / "kept.png"
    status, out, _ = ask(capsys, *files, "--keep", "0.5,16", "--json", "--save", str(drawn))
    result = json.loads(out)
    assert status == 0 and [p["keep"] for p in result["pictures"]] == [72, 16]
    width, height = Image.open(drawn).size
    assert width > 1.5 * height
    status, out, _ = ask(capsys, *files, "--keep", "9", "--method", "grid")
    assert status == 0 and "picture 0: 9" in out and "picture 1: 9" in out and "uniform-grid" in out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--keep", "0.5,16"], "2 values and there is 1 picture"),
        (["--keep", "0.5,"], "no number"),
        (["--keep", "0.5,0", "--image", "a.png", "--image", "b.png"], "at least 1 token"),
        (["--keep", "4,2", "--image", "a.png", "--image", "b.png", "--method", "fastv"], "one budget for all"),
    ],
)
def test_bad_lists_are_refused_before_anything_is_loaded(capsys, monkeypatch, words, hint):
    monkeypatch.setattr("fsr.asking.load.load", lambda *a: pytest.fail("loaded"))
    status, out, err = ask(capsys, *words)
    assert status == 2 and out == "" and err.count("\n") == 1 and hint in err


def test_a_drop_inside_the_language_model_is_reported_as_what_is_left(capsys):
    status, out, _ = ask(capsys, "--method", "fastv", "--keep", "16", "--json")
    result = json.loads(out)
    assert status == 0 and result["method"] == "fastv" and result["keep"] == 16 == len(result["kept_rows"])
    assert result["n_tokens"] == 144 and result["in_llm"]["entered"] == [144]
    assert result["in_llm"]["drops"] == [{"method": "fastv", "layer": 2, "kept": [16]}]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_states_each_default_once(capsys, name):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: None)" not in text and "(default: False)" not in text
    assert not re.search(r"\(default: [^)]*\) \(default:", text)
