"""The door to other people's processors, templates and tokenizers: what they refuse is one line, in every command."""

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from fsr import FSR, FSRError, PictureError, QuestionError, UsageError
from fsr.asking.answer import answer
from fsr.asking.chat import chat_batch, chat_inputs
from fsr.asking.encoded_picture import EncodedPicture
from fsr.asking.images import bundled_scene
from fsr.asking.load import load, pick_device
from fsr.cli import main

QUESTION = "where is the cat ?"
SCENE = tiny.picture(1)


@pytest.fixture
def broken():
    """A processor to break."""
    return tiny.llava_processor()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('only systems may begin') }}", "only systems may begin"),
        ("{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}", "TypeError"),
        ("{% for m in messages %}{{ m['content'][1]['text'] }}{% endfor %}", "takes no user turn"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages[7]['content'] }}", "takes no user turn"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(broken, template, reason):
    broken.chat_template = template
    if "[1]['text']" in template and not tiny.CHUNKS_SLICE_PICTURES:
        pytest.skip("before 5.23 processors let a template drop the picture: the commands say so after the call")
    with pytest.raises(UsageError, match=reason) as found:
        chat_inputs(broken, SCENE, QUESTION)
    assert "\n" not in str(found.value) and not isinstance(found.value, PictureError)


@pytest.mark.parametrize("token", ["<image>", "</s>", "<pad>"])
def test_a_control_token_in_the_question_is_named(processor, token):
    for question in (f"what does {token} mean ?", f"{QUESTION} {token}", token):
        with pytest.raises(QuestionError, match=token):
            chat_inputs(processor, SCENE, question)
    assert chat_inputs(processor, SCENE, "what does < image > mean ?")
    assert chat_inputs(processor, SCENE, "xylophone zebra ?")  # unknown words are no control token


def test_who_is_to_blame(broken, monkeypatch):
    plain = type(broken.image_processor).__call__

    def no_large_pictures(self, images, *args, **kwargs):
        if any(max(image.size) > 100 for row in images for image in (row if isinstance(row, list) else [row])):
            raise IndexError("too wide for me")
        return plain(self, images, *args, **kwargs)

    monkeypatch.setattr(type(broken.image_processor), "__call__", no_large_pictures)
    monkeypatch.setattr("fsr.asking.chat.bundled_scene", lambda: SCENE)
    with pytest.raises(PictureError, match="too wide for me"):
        chat_inputs(broken, Image.new("RGB", (300, 200)), QUESTION)
    with pytest.raises(PictureError, match="too wide for me"):
        chat_batch(broken, [SCENE, Image.new("RGB", (300, 200))], [QUESTION] * 2)
    broken.chat_template = (
        "{% if 'bad' in messages[0]['content'][1]['text'] %}{{ 1 / 0 }}{% endif %}" + tiny.CHAT_TEMPLATE
    )
    with pytest.raises(QuestionError, match="word it differently"):
        chat_inputs(broken, SCENE, "a bad cat ?")


def test_one_prompt_needs_no_padding_token(broken):
    whole = chat_inputs(broken, SCENE, QUESTION)
    broken.tokenizer.pad_token = None
    assert torch.equal(chat_inputs(broken, SCENE, QUESTION)["input_ids"], whole["input_ids"])
    with pytest.raises(UsageError, match="padding token"):
        chat_batch(broken, [SCENE, SCENE], [QUESTION, "is there a dog ?"])


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1)])
def test_a_strip_is_refused_before_the_processor_blows_it_up(broken, size):
    broken.image_processor.size = {"shortest_edge": 336}
    strip = Image.new("RGB", size)
    with pytest.raises(PictureError, match="megapixels in this model's processor"):
        chat_inputs(broken, strip, QUESTION)
    assert chat_inputs(broken, Image.new("RGB", (30, 7000)), QUESTION)  # narrow, and small enough


def test_padding_to_a_square_counts():
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    processor = tiny.llava_processor()
    processor.image_processor = LlavaImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_pad=True
    )
    with pytest.raises(PictureError, match="90000 megapixels"):
        chat_inputs(processor, Image.new("RGB", (1, 300_000)), QUESTION)


def test_transparent_and_deep_pictures_are_the_same_through_every_python_door(processor):
    scene = bundled_scene()
    seen = chat_inputs(processor, scene.convert("L").convert("RGB"), QUESTION)["pixel_values"]
    grey = Image.fromarray(np.asarray(scene.convert("L")).astype("uint16") * 257)
    assert torch.equal(chat_inputs(processor, grey, QUESTION)["pixel_values"], seen)
    holes = Image.new("RGBA", (32, 32))
    white = chat_inputs(processor, Image.new("RGB", (32, 32), "white"), QUESTION)["pixel_values"]
    assert torch.equal(chat_inputs(processor, holes, QUESTION)["pixel_values"], white)


def test_answer_and_encoded_picture_raise_it_too(llava, processor):
    method = FSR(keep=4, relevance="none")
    for ask in (
        lambda question: answer(llava, processor, SCENE, question, method),
        EncodedPicture(llava, processor, SCENE, [method], relevance="none").ask,
    ):
        with pytest.raises(QuestionError, match="control token"):
            ask("what does <image> mean ?")
        assert ask(QUESTION).report is not None


@pytest.fixture
def folder(llava, tmp_path):
    llava.save_pretrained(tmp_path / "model")
    tiny.llava_processor().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def last_line(capsys):
    """The error, behind the bars of the loader; nothing else was printed."""
    said = capsys.readouterr()
    *before, last = said.err.strip().splitlines()
    assert said.out == "" and last.startswith("fsr ") and all("it/s" in line for line in before)
    return last


@pytest.mark.parametrize("command", ["ask", "view"])
def test_commands_say_it_in_one_line(folder, command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    strip = tmp_path / "strip.png"
    Image.new("RGB", (1, 300_000)).save(strip)
    made = sorted(tmp_path.iterdir())
    for words, hint in [
        (["what does <image> mean ?"], "control token"),
        ([QUESTION, "--image", str(strip)], "less narrow"),
    ]:
        assert main([command, *words, "--model", str(folder), "--relevance", "none"]) == 2
        assert hint in last_line(capsys)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert main([command, QUESTION, "--model", str(folder)]) == 2
    assert "cannot load model" in last_line(capsys) and sorted(tmp_path.iterdir()) == made


@pytest.mark.parametrize("damage", [b"", b"\0" * 64, b"PK\3\4 not a checkpoint"])
def test_damaged_weights_are_one_error(folder, damage):
    (folder / "model.safetensors").write_bytes(damage)
    with pytest.raises(UsageError, match="cannot load model"):
        load(str(folder), "cpu")


@pytest.mark.parametrize("device", ["meta", "mps", "xla", "cuda:99", "cpu:x", ""])
def test_devices_that_do_not_work_here(device):
    with pytest.raises(FSRError):
        pick_device(device)


def test_a_strip_leaves_nothing_on_the_demo_s_disk(llava, processor, tmp_path):
    from fsr.demo.uploads import Uploads

    uploads = Uploads(tmp_path, [])
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        SCENE.save(file)
        uploads.open({"path": str(file)}, "me")
    uploads.open({"path": str(files[1])}, "you")
    for file in files:
        uploads.refuse({"path": str(file)}, "me")
    uploads.refuse({"path": "/etc/passwd"}, "me")
    assert not files[0].exists() and files[1].exists()  # somebody else looks at it
    uploads.refuse({"path": str(files[1])}, "you")
    assert not any(tmp_path.iterdir())
