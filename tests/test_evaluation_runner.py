"""The runner on a random embedded model: what it reports is what `answer` says question by question."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import tiny
from fsr.asking.answer import answer
from fsr.asking.load import load
from fsr.cli import main
from fsr.errors import UsageError
from fsr.evaluation import runner as runner_module
from fsr.evaluation.ablation import VARIANTS, ablate
from fsr.evaluation.comparison import compare
from fsr.evaluation.qualities import Quality
from fsr.evaluation.question_set import build
from fsr.evaluation.runner import Runner
from fsr.evaluation.tables import comparison_tables
from fsr.evaluation.trials import BASELINES, Trial, contenders, trials_of, unpruned
from fsr.methods import FSR, HAWK, available
from fsr.minivlm.build import build_clip, build_llava
from fsr.minivlm.export import mini_processor, text_tower_tokenizer
from fsr.signals.clip_twin import ClipTwin, save_twin

KEEP = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with random, sharpened weights and its text tower."""
    path = tmp_path_factory.mktemp("random-mini")
    clip = tiny.sharpen(build_clip(), 1)
    model = tiny.sharpen(build_llava(), 2)
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    # No placeholders in the answers, which no trained model writes.
    model.generation_config.suppress_tokens = [model.config.image_token_id]
    model.save_pretrained(path)
    mini_processor().save_pretrained(path)
    save_twin(path, ClipTwin.from_clip(clip, text_tower_tokenizer(), sign=1, layer=-2))
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return load(str(folder), "cpu", torch.float32)


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "BATCH", 16)
        yield


@pytest.fixture(scope="module")
def questions():
    return build("validation", 0, 40)


@pytest.fixture(scope="module")
def runner(loaded, questions):
    return Runner(*loaded, questions)


@pytest.fixture(scope="module")
def trials():
    return [unpruned(), *trials_of("fsr", KEEP), *trials_of("random", KEEP)]


@pytest.fixture(scope="module")
def runs(runner, trials):
    return runner.run(trials)


def test_answers_are_those_of_single_questions(loaded, questions, runner, runs):
    """Encoded once, batched and padded, against `answer`, one prompt at a time through `prune` and `generate`."""
    for run, method in ((runs[0], None), (runs[1], FSR(keep=KEEP))):
        assert len({o.answer for o in run}) > 5  # otherwise equality means nothing
        for i in range(0, len(questions), 4):
            item = questions.items[i]
            alone = answer(*loaded, questions.picture(item.scene), item.question.text, method, max_new_tokens=4)
            assert run[i].answer == alone.text
            if method is not None:
                s = alone.selection
                assert (run[i].kept, run[i].focus, run[i].wanted) == (KEEP, s.n_focus, s.focus_wanted)
                assert run[i].radius == pytest.approx(s.certificate.radius_chord, abs=1e-3)
                owner = torch.from_numpy(questions.scenes[item.scene].owner).flatten()
                asked = torch.isin(owner, torch.tensor(item.question.targets, dtype=torch.long))
                if asked.any():
                    assert run[i].on_asked == pytest.approx(float(asked[s.rows].float().mean()), abs=1e-5)
                    kept = set(owner[s.rows].tolist())
                    there = [t for t in item.question.targets if (owner == t).any()]
                    assert run[i].found == pytest.approx(sum(t in kept for t in there) / len(there), abs=1e-5)
                    assert run[i].seen == pytest.approx(float(asked[s.rows].sum() / asked.sum()), abs=1e-5)
                else:
                    assert run[i].on_asked is None


def test_every_picture_is_encoded_once(loaded, questions, trials):
    seen = []
    hook = loaded[0].model.vision_tower.register_forward_hook(
        lambda m, a, k, out: seen.append(len(out[0])), with_kwargs=True
    )
    try:
        fresh = Runner(*loaded, questions)
        fresh.run(trials)
        fresh.run(trials_of("saliency", 5))
    finally:
        hook.remove()
    assert sum(seen) == len(questions.scenes)


def test_an_interrupted_run_goes_on_with_the_same_result(loaded, questions, trials, runs, tmp_path, monkeypatch):
    asked = []
    real = Runner._ask

    def cut(self, trial, index, batch):
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append((trial.key, index))
        return real(self, trial, index, batch)

    monkeypatch.setattr(Runner, "_ask", cut)
    with pytest.raises(KeyboardInterrupt):
        Runner(*loaded, questions, tmp_path).run(trials)
    files = sorted(tmp_path.glob("*/*.jsonl"))
    # the machine dies in the middle of a line
    torn = next(f for f in files if len(f.read_text().splitlines()) > 2)
    torn.write_text(torn.read_text()[:-20])
    asked.clear()
    monkeypatch.setattr(Runner, "_ask", lambda *a: (asked.append(1), real(*a))[1])
    again = Runner(*loaded, questions, tmp_path)
    assert again.run(trials) == runs
    batches = len(again._cuts())
    assert len(asked) == len(trials) * batches - 3  # of four answered batches one is torn
    asked.clear()
    assert Runner(*loaded, questions, tmp_path).run(trials) == runs
    assert not asked


def test_other_weights_or_options_share_no_partial_results(loaded, questions, tmp_path):
    model, processor = loaded
    keys = {
        t.key
        for t in (
            *trials_of("fsr", 8),
            *trials_of("fsr", 9),
            *trials_of("random", 8),
            Trial("x", FSR(keep=8), "original"),
        )
    }
    assert len(keys) == 6
    before = Runner(model, processor, questions, tmp_path).folder
    bias = model.model.multi_modal_projector.linear_1.bias
    with torch.no_grad():
        bias[0] += 1
        after = Runner(model, processor, questions, tmp_path).folder
        bias[0] -= 1
    assert before != after


def test_signs_and_draws_differ(runner, runs):
    (turned,) = runner.run([Trial("turned", FSR(keep=KEEP), sign=-1)])
    assert [o.seen for o in turned] != [o.seen for o in runs[1]]
    random_runs = runs[2:5]
    assert len({tuple(o.radius for o in run) for run in random_runs}) == 3
    one = trials_of("random", KEEP)[0]
    assert one.method_for(0).seed != one.method_for(1).seed


def test_a_method_with_its_own_relevance_gets_it_as_poor_as_the_others(runner):
    """HAWK reads another source than the runner's; noise has to reach it all the same."""
    clean, same, poor = runner.run([Trial("x", HAWK(keep=KEEP), quality=Quality(r)) for r in ("100", "100", "chance")])
    assert clean == same and [o.seen for o in clean] != [o.seen for o in poor]


def test_compare_and_ablate_give_whole_results(runner):
    result = compare(runner, ["fsr", "random", "farthest"], [12, 4])
    json.dumps(result, allow_nan=False)
    assert [(r["method"], r["keep"]) for r in result["results"]] == [
        (m, k) for k in (12, 4) for m in ("fsr", "random", "farthest")
    ]
    fsr, random, farthest = result["results"][:3]
    assert "against_fsr" not in fsr and len(random["against_fsr"]["runs"]) == 3 == len(random["right"])
    assert "focus" not in farthest and farthest["tokens"] == 12
    assert result["unpruned"]["tokens"] == 144 and result["unpruned"]["loyalty"]["value"] == 1
    assert result["questions"]["sha256"] == runner.questions.sha256
    outcomes = runner.run([unpruned()])[0]
    by_hand = [len(runner.processor.tokenizer(o.answer, add_special_tokens=False).input_ids) for o in outcomes]
    assert result["unpruned"]["answer_tokens"] == pytest.approx(sum(by_hand) / len(by_hand))
    assert all(1 <= r["answer_tokens"] <= 4 for r in result["results"])
    table = ablate(runner, [FSR(keep=12)], variants=[v for v in VARIANTS if v.group in ("stages", "sign of relevance")])
    json.dumps(table, allow_nan=False)
    rows = {(r["group"], r["variant"]): r for r in table["results"]}
    assert rows["stages", "all three"]["is_base"] and rows["sign of relevance", "as measured"]["is_base"]
    assert (
        rows["stages", "no Scan"]["focus"]["taken_mean"] == 12
        and rows["stages", "no Focus"]["focus"]["taken_mean"] == 0
    )
    assert rows["stages", "no Refine"]["settings"]["options"]["kappa"] == 0
    assert "against_base" in rows["sign of relevance", "turned round"]


@pytest.mark.parametrize("name", ["fastv", "sparsevlm"])
def test_methods_inside_the_language_model_answer_as_alone(loaded, questions, runner, name):
    (trial,) = trials_of(name, KEEP)
    (run,) = runner.run([trial])
    assert len({o.answer for o in run}) > 5 and all(o.kept == KEEP and o.scan == 0 for o in run)
    for i in range(0, len(questions), 8):
        item = questions.items[i]
        alone = answer(
            *loaded, questions.picture(item.scene), item.question.text, trial.method, relevance="none", max_new_tokens=4
        )
        assert run[i].answer == alone.text


def test_a_shrunk_picture(loaded, questions, runner):
    """The model's own answers about pictures made small by hand; the budget is no rival's."""
    (trial,) = trials_of("shrunk", KEEP)
    (run,) = runner.run([trial])
    model, processor = loaded
    for i in range(0, len(questions), 8):
        item = questions.items[i]
        small = questions.picture(item.scene).resize((42, 42), Image.Resampling.BICUBIC)  # 144 * sqrt(12 / 144)
        assert run[i].answer == answer(model, processor, small, item.question.text, None, max_new_tokens=4).text
        assert run[i].kept == 144  # a processor of fixed size enlarges it again
    assert trial.other_budget and trial.settings["shrunk"] and trial.key.startswith("shrunk-")
    assert trials_of("grid", KEEP)[0].key != trial.key and "shrunk" not in trials_of("grid", KEEP)[0].settings
    with pytest.raises(UsageError, match="no option"):
        trials_of("shrunk:seed=1", KEEP)
    result = compare(runner, ["fsr", "shrunk"], [KEEP])
    tables = comparison_tables(result)
    assert any(row[0] == "shrunk" for row in tables[next(iter(tables))])
    assert not any(row[0] == "shrunk" for title in tables if title.startswith("Where") for row in tables[title])


def test_contenders():
    everything = contenders("all")
    inside = {n for n, cls in available().items() if cls.where.startswith("inside")}
    assert everything[0] == "fsr" and set(BASELINES) <= set(everything) and inside <= set(everything[-len(inside) :])
    assert "uniform-grid" not in everything  # it is called grid
    assert contenders("grid, FSR,grid") == ["fsr", "grid"]
    assert contenders("fsr:rho=0.5,grid")[:3] == ["fsr", "fsr:rho=0.5", "grid"]
    (trial,) = trials_of("fsr:max_focus=0.5:normalise=rank", 8)
    assert trial.method == FSR(keep=8, max_focus=0.5, normalise="rank")
    for name in ("no-such", "no-such:rho=1"):
        with pytest.raises(UsageError):
            contenders(name)
    for name in ("fsr:rho", "fsr:keep=3", "fsr:nonsense=1", "random:beta=2"):
        with pytest.raises(UsageError):
            trials_of(name, 8)


def test_command_line(folder, tmp_path, capsys):
    common = ["--model", str(folder), "--questions", "16", "--keep", "16,5", "--device", "cpu"]
    files = [tmp_path / name for name in ("c.json", "c.png", "c.md", "a.png")]
    words = ["compare", *common, "--methods", "fsr,grid", "--json", str(files[0]), "--plot", str(files[1])]
    assert main([*words, "--markdown", str(files[2]), "--resume-dir", str(tmp_path / "part")]) == 0
    out = capsys.readouterr().out
    assert "FSR against" in out and json.loads(files[0].read_text())["questions"]["split"] == "test"
    assert (
        main(
            [
                "ablate",
                *common,
                "--keep",
                "5",
                "--questions",
                "8",
                "--option",
                "max_focus=0.5",
                "--plot",
                str(files[3]),
                "--json",
            ]
        )
        == 0
    )
    table = json.loads(capsys.readouterr().out)
    assert table["questions"]["split"] == "validation"
    assert table["base"][0]["settings"]["options"]["max_focus"] == 0.5
    assert all(f.stat().st_size > 1000 for f in files)


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "--methods", "fsr,nonsense"],
        ["compare", "--keep", "sixteen"],
        ["compare", "--keep", "0"],
        ["compare", "--keep", ","],
        ["compare", "--questions", "15"],
        ["compare", "--seed", "-1"],
        ["compare", "--split", "training"],
        ["compare", "--plot", "no/such/folder/a.png"],
        ["compare", "--markdown", "table.txt"],
        ["compare", "--json", "out.csv"],
        ["compare", "--model", "no-such-model", "--questions", "8"],
        ["ablate", "--option", "nonsense=1"],
        ["ablate", "--keep", "1.5"],
    ],
)
def test_bad_input_exits_2(words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    try:
        status = main([*words])
    except SystemExit as leave:
        status = leave.code
    assert status == 2
    error = capsys.readouterr().err
    assert "error:" in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
