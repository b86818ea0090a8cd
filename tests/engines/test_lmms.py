"""The real lmms-eval: our models found and run by it, its scorers on rows whose score is known, errors let out."""

from __future__ import annotations

import copy
import json
import os
import sys
from importlib import import_module

import numpy as np
import patience
import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: NONE of its tests ran (make test-engines)")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager, get_task_dict
from PIL import Image

import families
import tiny
import torchvision_families
from fsr import BudgetError, RelevanceError, UsageError
from fsr.asking.images import bundled_scene
from fsr.cli import main
from fsr.evaluation.benchmarks import COLUMNS, MLVU
from fsr.evaluation.column_scores import column_score
from fsr.evaluation.lmms import MODELS
from fsr.evaluation.lmms.clips import read_clip
from fsr.evaluation.lmms.families import PrunedLlavaVideo, PrunedQwen2_5VL
from fsr.evaluation.lmms.model import Pruned
from fsr.evaluation.lmms_results import read_runs
from fsr.evaluation.paper_report import report
from fsr.evaluation.published import table

QUESTIONS = 80
MINI = "pretrained=mini,device=cpu,keep=16"


# ---------------------------------------------------------------------------------------------- the embedded benchmark


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `fsr tasks` writes."""
    folder = tmp_path_factory.mktemp("tasks")
    assert main(["tasks", str(folder), "--questions", str(QUESTIONS)]) == 0
    return folder


def replica(folder, task, rows, split="test", bare=False):
    """Give a task local rows in place of its data set; a row without a picture gets a green one. bare: the prompt is
    the question alone, the only kind that `mini` was taught."""
    from datasets import Dataset

    file = folder / f"{task}.parquet"
    picture = Image.new("RGB", (8, 8), "green")
    Dataset.from_list([{"image": picture, **row} for row in rows]).to_parquet(str(file))
    path = folder / f"{task}.yaml"
    data = f"\ndataset_path: parquet\ndataset_name: null\ndataset_kwargs: {{data_files: {{{split}: {file}}}}}\n"
    if bare:
        data += "lmms_eval_specific_kwargs: {default: {pre_prompt: '', post_prompt: ''}}\n"
    path.write_text(path.read_text() + f"{data}test_split: {split}\n")


def about_scenes(folder):
    """Rows for POPE, TextVQA and MME that `mini` can answer; half of the given answers are wrong."""
    things = ["dog", "boat", "umbrella", "bicycle", "cat", "star"]
    asked = [
        {"image": bundled_scene(n), "question": f"is there a {thing} ?", "answer": ("yes", "no")[(i + n) % 2]}
        for n in (1, 2, 3, 4)
        for i, thing in enumerate(things)
    ]
    for k, part in enumerate(("adv", "pop", "random")):
        replica(folder, f"fsr_pope_{part}", [{"question_id": i, **row} for i, row in enumerate(asked[k:])], bare=True)
    read = [{**row, "question": f" {row['question']}", "answers": ["yes"] * 2 + ["no"] * 8} for row in asked]
    replica(folder, "fsr_textvqa", [{"question_id": i, **row} for i, row in enumerate(read)], "validation", bare=True)
    kinds = ["color", "color", "OCR", "code_reasoning"]
    pairs = [{"question_id": f"p{i // 2}", "category": kinds[i // 2 % 4], **row} for i, row in enumerate(asked)]
    replica(folder, "fsr_mme", pairs, bare=True)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """One run of the command line, as docs/evaluation.md writes it: the embedded benchmark and three of the papers'."""
    folder, out = tmp_path_factory.mktemp("asked"), tmp_path_factory.mktemp("out")
    assert main(["tasks", str(folder), "--questions", str(QUESTIONS)]) == 0
    about_scenes(folder)
    command = f"-m lmms_eval --model fsr --model_args {MINI},method=fsr --include_path {folder} --output_path {out}"
    command += " --tasks fsr_mini,fsr_pope,fsr_textvqa,fsr_mme --batch_size 16 --log_samples --verbosity DEBUG"
    words = tmp_path_factory.mktemp("log") / "log.txt"
    patience.run("lmms-eval", [sys.executable, *command.split()], words)
    assert "|fsr_mini" in words.read_text(encoding="utf-8"), patience.tail(words)
    return out


def evaluated(folder, model, args=None, task="fsr_mini", **options):
    """Through the Python interface; only the tasks of `folder` are indexed."""
    tasks = TaskManager("ERROR", include_path=str(folder), include_defaults=False)
    return simple_evaluate(model=model, model_args=args, tasks=[task], task_manager=tasks, **options)


def answers_of(result, task="fsr_mini"):
    return [sample["filtered_resps"][0] for sample in result["samples"][task]]


def test_every_model_is_found_by_the_registry():
    for name, cls in MODELS.items():
        assert get_model(name).__name__ == cls.rpartition(".")[2] and not get_model(name).is_simple


def test_mini_scores_what_compare_says(output, tmp_path):
    numbers = tmp_path / "compare.json"
    options = ["--methods", "fsr", "--keep", "16", "--questions", str(QUESTIONS), "--device", "cpu"]
    assert main(["compare", *options, "--json", str(numbers)]) == 0
    row = json.loads(numbers.read_text())["results"][0]
    (run,) = read_runs([output])
    metrics = run.tasks["fsr_mini"].metrics
    assert metrics["accuracy"] == pytest.approx(row["accuracy"]["value"], abs=1e-9)
    for kind, value in row["accuracy_by_kind"].items():
        assert metrics[f"accuracy_{kind}"] == pytest.approx(value, abs=1e-9)
    assert 0.5 < metrics["accuracy"] < 1  # a model that answers, and a budget that costs something
    assert "".join(str(int(v)) for v in run.tasks["fsr_mini"].values("accuracy")) == row["right"][0]


def test_what_a_run_leaves(output):
    (run,) = read_runs([output])
    assert (run.total / run.pictures, run.kept / run.pictures) == (144, 16) and run.pictures > QUESTIONS
    assert not run.partial and run.label({"keep"}) == "fsr (keep=16)"
    (record,) = (json.loads(file.read_text()) for file in output.glob("*_fsr_run_0.json"))
    assert record["method"] == "fsr" and record["options"]["keep"] == 16 and record["options"]["alpha"] == 1.0
    assert {"fsr", "lmms_eval", "torch", "transformers"} <= set(record["versions"])
    task = record["tasks"]["fsr_mini"]
    assert task["questions"] == task["pictures"] == QUESTIONS
    assert task["kept_histogram"] == {"16": QUESTIONS} and "<image>" in task["first_prompt"]
    samples = run.tasks["fsr_mini"].samples.read_text().splitlines()
    counts = json.loads(samples[0])["token_counts"][0]
    assert (counts["visual_tokens"], counts["visual_tokens_kept"], counts["pictures"]) == (144, 16, 1)
    assert counts["input_tokens"] > 144 and 1 <= counts["output_tokens"] <= 4


def test_tables_read_what_was_saved(output):
    """Scores made anew from the logged answers must equal lmms-eval's own aggregations, or `column_score` raises."""
    (run,) = read_runs([output])
    for column, task, metric, scale in (
        ("POPE", "fsr_pope_adv", "pope_f1_score", 100),
        ("TextVQA", "fsr_textvqa", "exact_match", 100),
        ("MME", "fsr_mme", "mme_score", 1),
    ):
        score = column_score(run, column)
        assert score.kind == "bootstrap" and score.low < score.value < score.high, column
        if column != "POPE":  # which is a mean of three
            assert score.value == pytest.approx(scale * run.tasks[task].metrics[metric])
    text = report(table(1), [run])
    assert "**here: fsr (keep=16)** | 16.0 |" in text and "POPE answered yes to" in text


def test_a_batch_answers_as_one_by_one(folder):
    one, many = (evaluated(folder, "fsr", MINI, batch_size=b, limit=24) for b in (1, 7))
    assert answers_of(one) == answers_of(many)
    assert len(set(answers_of(one))) > 3


@pytest.mark.parametrize("method, kept, per_layer", [("none", 144, 144.0), ("fastv,layer=2,keep=16", 16, None)])
def test_other_methods(folder, method, kept, per_layer):
    args = f"pretrained=mini,device=cpu,method={method}"
    result = evaluated(folder, "fsr_llava", args, batch_size=16, limit=16)
    spent = result["throughput"]
    assert (spent["avg_visual_tokens"], spent["avg_visual_tokens_kept"]) == (144, kept)
    layers = spent["avg_visual_tokens_per_layer"]
    assert layers == per_layer if per_layer else 16 < layers < 144


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "model, args, error, words",
    [
        ("fsr", "keep=0", BudgetError, "keep"),
        ("fsr", "keep=many", BudgetError, "no number"),
        ("fsr", "method=nothing", UsageError, "unknown method"),
        ("fsr", "method=fsr,alfa=2", UsageError, "no option alfa"),
        ("fsr", "method=none,alpha=2", UsageError, "no options"),
        ("fsr", "dtype=int8", UsageError, "dtype"),
        ("fsr", "system_prompt=nowhere.txt", UsageError, "is no file"),
        ("fsr", "five_tiles=True", UsageError, "LLaVA-NeXT"),
        ("fsr_qwen2_5_vl", "keep=16", UsageError, "is llava"),
        ("fsr", "batch_size=auto", UsageError, "batch_size"),
        ("fsr", "pretrained=./nowhere", UsageError, "no model"),
    ],
)
def test_bad_arguments_are_errors(folder, model, args, error, words):
    with pytest.raises(error, match=words):
        evaluated(folder, model, f"device=cpu,{args}", limit=1)


def test_errors_of_generate_come_out(folder):
    with pytest.raises(ValueError, match="no_such_argument"):
        evaluated(folder, "fsr", MINI, limit=1, gen_kwargs="no_such_argument=1")


def test_a_method_without_its_signal_is_an_error(tmp_path):
    copy.deepcopy(tiny.llava()).save_pretrained(tmp_path)
    tiny.llava_processor().save_pretrained(tmp_path)
    with pytest.raises(RelevanceError):
        Pruned(str(tmp_path), "relevance", keep=4, device="cpu")
    assert Pruned(str(tmp_path), "saliency", keep=4, device="cpu").pruner.method.keep == 4


# ------------------------------------------------------------------------------------------- requests, clips and tiles


def ask(lm, messages, kwargs=None, task="t"):
    """`generate_until` on hand-made requests: the doc of a request is its list of messages."""
    lm.task_dict[task] = {"test": messages}
    kwargs = kwargs or [{"max_new_tokens": 4}] * len(messages)
    requests = [
        Instance("generate_until", ("", lambda d: d, k, i, task, "test"), 0, {"task": task, "doc_id": i, "repeats": 1})
        for i, k in enumerate(kwargs)
    ]
    return lm.generate_until(requests)


def user(*parts):
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return [{"role": "user", "content": content}]


def image(picture):
    return {"type": "image", "url": picture}


@pytest.fixture(scope="module")
def mini():
    return Pruned("mini", keep=16, batch_size=3, device="cpu")


def test_answers_keep_the_order_of_the_requests(mini):
    asked = ["is there a dog ?", "what color is the dog ?", "what is the background ?", "is there a boat ?"]
    messages = [user(image(bundled_scene(1 + i % 2)), text) for i, text in enumerate(asked)]
    long, short = {"max_new_tokens": 4}, {"max_new_tokens": 1, "temperature": 0, "top_p": 1.0}
    together = [r.text for r in ask(mini, messages, [long, short, long, short])]
    alone = [ask(mini, [m], [k])[0].text for m, k in zip(messages, [long, short, long, short])]
    assert together == alone and len(set(alone)) > 1
    stopped = ask(mini, messages, [{**long, "until": [alone[2][1:3]]}] * 4)
    assert stopped[2].text == alone[2][:1]


def test_questions_are_the_last_user_turn(mini, monkeypatch):
    seen = []
    generate = type(mini.pruner)._generate
    monkeypatch.setattr(
        type(mini.pruner), "_generate", lambda s, g, a, k: seen.append(k.get("question")) or generate(s, g, a, k)
    )
    turns = [*user(image(bundled_scene()), "is there a dog ?"), {"role": "assistant", "content": []}]
    ask(mini, [[*turns, *user("what color is it ?")], user("no picture here")])
    assert seen == [["what color is it ?", "no picture here"]]
    ask(mini, [user("no picture at all")])
    assert seen[1] is None


def test_the_system_prompt_of_the_protocol(folder, tmp_path):
    copy.deepcopy(tiny.llava()).save_pretrained(tmp_path)
    tiny.llava_processor().save_pretrained(tmp_path)
    file = folder / "vicuna_v1.txt"
    lm = Pruned(str(tmp_path), "saliency", keep=4, device="cpu", system_prompt=str(file))
    ask(lm, [user(image(Image.new("RGB", (48, 48))), "where is the cat ?")])
    prompt = lm.ledger.prompts["t"]
    assert prompt.startswith("SYSTEM: A chat between a curious user") and "USER: <image> where is the cat ?" in prompt
    assert lm.ledger.settings["system_prompt"] == file.read_text().strip()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Nine frames, each brighter than the last."""
    import av

    file = tmp_path_factory.mktemp("clip") / "nine.mp4"
    with av.open(str(file), "w") as out:
        stream = out.add_stream("mpeg4", rate=3)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(9):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 25 * i, np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return str(file)


def test_frames_of_a_clip(clip, tmp_path):
    read = read_clip(clip, 5)
    assert read.indices == (0, 2, 4, 6, 8) and read.total == 9 and read.fps == pytest.approx(3)
    assert np.allclose(read.frames.mean((1, 2, 3)), [0, 50, 100, 150, 200], atol=4)
    assert len(read_clip(clip, 50).frames) == 9
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    for source, words in ((str(broken), "decoded"), (str(tmp_path), "no video file"), ({"video": clip}, "no video")):
        with pytest.raises(UsageError, match=words):
            read_clip(source, 5)


def saved(name, folder, template, **config):
    """A tiny checkpoint of a family, with its own processor."""
    model = copy.deepcopy(families.model_of(name))
    for key, value in config.items():
        setattr(model.config, key, value)
    model.save_pretrained(folder)
    processor = torchvision_families.processor_of(name)
    processor.chat_template = template
    processor.save_pretrained(folder)
    return folder


def with_clips(template, placeholder):
    """The tiny chat template, clips too."""
    return template.replace(
        "{% endif %}{% endfor %}",
        "{% elif c['type'] == 'video' %}{{ '" + placeholder + " ' }}{% endif %}{% endfor %}",
        1,
    )


def test_qwen_pictures_and_clips_as_the_stock_model_answers(clip, tmp_path):
    pictured = torchvision_families.template("<|vision_start|><|image_pad|><|vision_end|>")
    template = with_clips(pictured, "<|vision_start|><|video_pad|><|vision_end|>")
    saved("qwen2.5-vl", tmp_path, template)
    messages = [
        user({"type": "video", "url": clip}, "what colour is the dog ?"),
        user(image(Image.new("RGB", (32, 16), "red")), "where is the cat ?"),
    ]
    lm = PrunedQwen2_5VL(str(tmp_path), "none", frames=4, batch_size=2, device="cpu")
    answers = ask(lm, messages)
    inputs = lm.processor(
        text=[lm.processor.apply_chat_template([{"role": "user", "content": [{"type": "video"}, *messages[0][0]["content"][1:]]}], add_generation_prompt=True)],  # noqa: E501
        videos=[read_clip(clip, 4).frames], do_sample_frames=False,
        video_metadata=[read_clip(clip, 4).metadata], return_tensors="pt",
    )  # fmt: skip
    out = lm.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert answers[0].text == lm.processor.decode(out, skip_special_tokens=True).strip()
    total = [a.token_counts.visual_tokens for a in answers]
    assert total[0] == 2 * int(inputs["video_grid_thw"][0, 1:].prod()) // 4  # pairs of frames, 2 x 2 patches each
    half = ask(PrunedQwen2_5VL(str(tmp_path), "saliency", keep=0.5, frames=4, batch_size=2, device="cpu"), messages)
    assert [a.token_counts.visual_tokens_kept for a in half] == [n // 2 for n in total]


def test_llava_video_takes_frames_as_pictures(clip, tmp_path):
    template = with_clips(torchvision_families.template("<image>"), "<video>")
    saved("llava-onevision", tmp_path, template, llava_video_pool="average")
    messages = [user({"type": "video", "url": clip}, "what colour is the dog ?")]
    lm = PrunedLlavaVideo(str(tmp_path), "saliency", keep=0.5, frames=3, device="cpu")
    (answer,) = ask(lm, messages)
    side = lm.model.config.vision_config.image_size // lm.model.config.vision_config.patch_size // 2
    assert answer.token_counts.visual_tokens == 3 * side * (side + 1)
    assert answer.token_counts.visual_tokens_kept == round(answer.token_counts.visual_tokens / 2)


def test_five_tiles_only_while_answering(tmp_path):
    from test_families_ask import processor_of

    model = copy.deepcopy(families.model_of("llava-next"))
    model.config.image_token_id = tiny.SPECIAL.index("<image>")
    model.save_pretrained(tmp_path)
    processor_of("llava-next").save_pretrained(tmp_path)
    lm = Pruned(str(tmp_path), "saliency", keep=2, per="tile", five_tiles=True, device="cpu")
    patches = (families.SIDE // families.PATCH) ** 2
    pinpoints = lm.model.config.image_grid_pinpoints
    (answer,) = ask(lm, [user(image(Image.new("RGB", (90, 30), "red")), "what colour is the dog ?")])
    assert (answer.token_counts.visual_tokens, answer.token_counts.visual_tokens_kept) == (5 * patches, 5 * 2)
    assert lm.model.config.image_grid_pinpoints == pinpoints and lm.model.model.image_newline is not None


# ------------------------------------------------------------------------------------- scorers, on rows of known score


class Said(lmms):
    """Says what a function of the row says; remembers what it was asked."""

    is_simple = False

    def __init__(self, say):
        super().__init__()
        self.say, self.asked = say, []

    def generate_until(self, requests):
        out = []
        for request in requests:
            _, messages, _, number, task, split = request.args
            doc = self.task_dict[task][split][number]
            self.asked.append(messages(doc)[0]["content"][-1]["text"])
            out.append(self.say(doc))
        return out

    def loglikelihood(self, requests):
        raise NotImplementedError

    generate_until_multi_round = loglikelihood


def test_pope_is_the_mean_of_three_f1_with_the_answers_yes_ratio(folder):
    truths = {"adv": "yes no no no", "pop": "yes yes no no", "random": "yes no yes no"}
    for part, words in truths.items():
        rows = [{"question_id": i, "question": f"{part} {i} ?", "answer": t} for i, t in enumerate(words.split())]
        replica(folder, f"fsr_pope_{part}", rows)
    # adv: always yes (precision 1/4, recall 1: F1 .4); pop: the truth in sentences (1); random: always no (0).
    wordy = {"yes": "Yes, I see it. It is not far.", "no": "There is not, sorry."}
    say = {"adv": lambda a: "Yes.", "pop": wordy.get, "random": lambda a: "No, there is no dog"}
    oracle = Said(lambda doc: say[doc["question"].split()[0]](doc["answer"]))
    found = evaluated(folder, oracle, task="fsr_pope")["results"]
    f1 = [found[f"fsr_pope_{part}"]["pope_f1_score,none"] for part in truths]
    assert f1 == pytest.approx([0.4, 1, 0])
    assert found["fsr_pope"]["pope_f1_score,none"] == pytest.approx(1.4 / 3)  # pooled it would be 6 / 10
    ratios = [found[f"fsr_pope_{part}"]["pope_yes_ratio,none"] for part in truths]
    assert ratios == [1, 0.5, 0] and found["fsr_pope"]["pope_yes_ratio,none"] == pytest.approx(0.5)
    assert oracle.asked[0].endswith("\nAnswer the question using a single word or phrase.")


def test_textvqa_gives_the_ocr_tokens(folder):
    rows = [
        {"question_id": i, "question": "what does it say?", "answer": "stop", "ocr_tokens": ["STOP", "4"],
         "answers": ["stop"] * matches + ["other"] * (10 - matches)} for i, matches in enumerate((10, 3, 1))
    ]  # fmt: skip
    replica(folder, "fsr_textvqa", rows, "validation")
    oracle = Said(lambda doc: "Stop.")
    found = evaluated(folder, oracle, task="fsr_textvqa")["results"]["fsr_textvqa"]
    assert found["exact_match,none"] == pytest.approx((1 + 0.9 + 0.3) / 3)
    assert oracle.asked[0] == (
        "What does it say?\nReference OCR token: STOP, 4\nAnswer the question using a single word or phrase."
    )


def test_mmvet_asks_the_question_alone(folder, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")  # its judge is made on import, and not asked here
    replica(
        folder, "fsr_mmvet", [{"question_id": "v1_0", "question": "What is x?", "answer": "1", "capability": "ocr"}]
    )
    tasks = TaskManager("ERROR", include_path=str(folder), include_defaults=False)
    task = get_task_dict(["fsr_mmvet"], tasks, "chat")["fsr_mmvet"]
    assert task.doc_to_messages(task.test_docs()[0])[0]["content"][1:] == [{"type": "text", "text": "What is x?"}]


def test_mme_adds_perception_and_cognition(folder):
    rows = [
        {"question_id": f"{category}{i}", "category": category, "question": "is it? Please answer yes or no.",
         "answer": answer, "said": answer if category != "color" or i else "yes"}
        for category in ("color", "OCR", "code_reasoning") for i in range(2) for answer in ("Yes", "No")
    ]  # fmt: skip
    replica(folder, "fsr_mme", rows)
    found = evaluated(folder, Said(lambda doc: doc["said"]), task="fsr_mme")["results"]["fsr_mme"]
    # color: one picture 50 + 0, one 100 + 100; OCR and code: 200 each
    assert found["mme_perception_score,none"] == pytest.approx(125 + 200)
    assert found["mme_cognition_score,none"] == pytest.approx(200)
    assert found["mme_score,none"] == pytest.approx(525)


@pytest.mark.parametrize(
    "task, aggregation, column",
    [
        ("mvbench", "mvbench_aggregate_results", "MVBench_test"),
        ("mlvu", "mlvu_aggregate_results_test", "MLVU_test"),
        ("mmworld", "mmworld_aggregate_results", "MMWorld_test"),
        ("videomme", "videomme_aggregate_results", "VideoMME_all_wo"),
    ],
)
def test_rules_of_the_video_columns_are_lmms_evals(task, aggregation, column):
    utils = import_module(f"lmms_eval.tasks.{task}.utils")
    same = {"discipline": "Business"}  # what the aggregations want to be told of each question
    if task == "videomme":
        same = {"duration": utils.VIDEO_TYPE[0], "category": utils.CATEGORIES[0]}
        same |= {"sub_category": utils.SUB_CATEGORIES[0], "task_category": utils.TASK_CATEGORIES[0]}
    rng, rows = np.random.default_rng(0), []
    for i in range(60):
        said, truth = str(rng.choice(["A", "B", ""])), str(rng.choice(["A", "B"]))
        row = {"pred_answer": said, "answer": truth, "task_type": MLVU[i % 9], **same}
        rows.append(row if task in ("mlvu", "mmworld") else {**row, "score": float(said == truth)})
    rule = COLUMNS[column][0].rule
    score = rule.score(rule.table(rows)[0].mean(0, keepdims=True))[0]
    assert score == pytest.approx(getattr(utils, aggregation)(rows)) and 0 < score < 100
