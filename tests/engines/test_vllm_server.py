"""The OpenAI-compatible server with the plug-in: chat requests with pictures, mixed budgets, clients that disturb."""

from __future__ import annotations

import os
import threading
import urllib.request
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines")

import black_fails
from patience import SILENCE
from PIL import Image
from server import Server, chat

from fsr import FSR, prune
from fsr.asking.answer import answer
from fsr.asking.load import load
from fsr.serving.vllm import overrides

DATA = Path(str(files("fsr.minivlm") / "data"))
QUESTIONS = ["what color is the umbrella?", "what is right of the bicycle?", "how many dogs are there?"]
KEEPS = [None, 4, 32, 0]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    (folder / "metrics").mkdir()
    given = {**overrides(FSR(keep=16), "LlavaForConditionalGeneration"), "architectures": ["BlackFails"]}
    options = ["--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "8", "--trust-request-mm-kwargs"]
    options += ["--middleware", "fsr.serving.vllm.gateway.Gateway"]
    path = os.pathsep.join([black_fails.install(folder / "plugin"), os.environ.get("PYTHONPATH", "")])
    shared = {"PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"), "PYTHONPATH": path, "TMPDIR": str(folder)}
    with Server(str(DATA / "mini"), folder / "log.txt", *options, overrides=given, settings=shared) as running:
        yield running


@pytest.fixture(scope="module")
def pictures():
    return [Image.open(p).convert("RGB") for p in sorted((DATA / "scenes").glob("*.png"))]


def black(number):
    """Nearly: pictures of one colour each, no two the same."""
    return Image.new("RGB", (64, 64), (number, 0, 0))


def counted(server):
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=SILENCE) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("fsr:")}


def test_clients_of_all_kinds_at_once(server, pictures):
    """24 good requests from eight threads, with bad ones in between: each gets what it would get alone."""
    jobs = [(q, p, k) for q in QUESTIONS for p in range(2) for k in KEEPS]
    results = {}

    def client(mine):
        for number in mine:
            question, p, keep = jobs[number]
            if number % 3 == 0:
                results[f"bad {number}"] = server.post(chat(question, pictures[p], fsr_keep=-number - 1))
            if number % 4 == 1:
                # What only the engine can find, in one step with the others.
                results[f"black {number}"] = server.post(chat(question, black(number), pictures[p]))
            arguments = {} if keep is None else {"fsr_keep": keep}
            results[number] = server.post(chat(question, pictures[p], **arguments))

    threads = [threading.Thread(target=client, args=(range(i, len(jobs), 8),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    model, processor = load("mini", device="cpu")
    for number, (question, p, keep) in enumerate(jobs):
        status, body = results[number]
        assert status == 200, body
        # An engine numbers 1-D positions anew at any budget.
        method = FSR(keep=keep or (1.0 if keep == 0 else 16))
        with prune(model, method, processor=processor, positions="repack"):
            expected = answer(model, processor, pictures[p], question, max_new_tokens=4)
        assert body["choices"][0]["message"]["content"].strip() == expected.text, jobs[number]
        whole = server.post(chat(question, pictures[p], fsr_keep=0))[1]["usage"]["prompt_tokens"]
        assert whole - body["usage"]["prompt_tokens"] == (0 if keep == 0 else 144 - (keep or 16))
    for number in range(0, len(jobs), 3):
        status, body = results[f"bad {number}"]
        assert status == 400 and "fsr_keep" in body["error"]["message"]
    for number in range(1, len(jobs), 4):
        status, body = results[f"black {number}"]
        assert status == 500 and body["error"]["type"] == "InternalServerError"


def test_a_picture_that_only_the_engine_can_refuse(server, pictures):
    """The same again (its tokens lie in caches now), one token only, as a stream, whole."""
    failed = counted(server)["fsr:choices_failed_total"]
    for longest in (4, 1, 4):
        assert server.post(chat(QUESTIONS[0], black(99), longest=longest))[0] == 500
    assert counted(server)["fsr:choices_failed_total"] == failed + 1
    streamed = server.post({**chat(QUESTIONS[1], black(99)), "stream": True}, streamed=True)
    assert (
        streamed[0] == 200
        and "InternalServerError" in streamed[1]
        and '"content":"' not in streamed[1].replace('"content":""', "")
    )
    assert server.post(chat(QUESTIONS[0], pictures[0]))[0] == 200
    log = server.log.read_text(encoding="utf-8")
    assert "could not be pruned: " in log and "ends with an error: picture " in log


def test_bad_requests_get_the_server_s_own_error(server, pictures):
    for body, hint in [
        (chat(QUESTIONS[0], pictures[0], fsr_question=" "), "fsr_question is empty"),
        (chat("", pictures[0]), "no question in the prompt"),
        (chat(QUESTIONS[0], pictures[0], fsr_tokens=4), "did you mean fsr_keep"),
        (chat(QUESTIONS[0], pictures[0], FSR_KEEP=4), "did you mean fsr_keep"),
        (chat(QUESTIONS[0], pictures[0], fsr_keep=4, image_pruning_rate=0.5), "contradict each other"),
        (chat(QUESTIONS[0], pictures[0], image_pruning_method="divprune"), "was started with fsr"),
        (chat(QUESTIONS[0], pictures[0], do_resize=False), "not do_resize"),
    ]:
        status, said = server.post(body)
        assert status == 400 and hint in said["error"]["message"]
    # An explicit question chooses the tokens; a prompt without pictures needs none.
    assert server.post(chat(QUESTIONS[0], pictures[0], fsr_keep=4, fsr_question=QUESTIONS[1]))[0] == 200
    assert server.post(chat(QUESTIONS[0]))[0] == 200


def test_the_client_of_the_docs(server, pictures, tmp_path, monkeypatch):
    """The real OpenAI client, with the code of docs/serving.md as it stands there."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    code = page.split("<!-- client -->")[1].split("<!-- /client -->")[0].strip().removeprefix("```python").rstrip("`")
    pictures[0].save(tmp_path / "picture.png")
    for name, value in (("SERVER", server.url), ("PICTURE", tmp_path / "picture.png"), ("MODEL", "served")):
        monkeypatch.setenv(name, str(value))
    told: dict[str, Any] = {}
    exec(compile(code, "docs/serving.md", "exec"), told)
    length = {way: answer.usage.prompt_tokens for way, answer in told["answers"].items()}
    whole = length.pop("off")
    assert {way: 144 - (whole - n) for way, n in length.items()} == {
        "the engine's default": 16, "the model's name": 9, "a share in the name": 36, "a header": 9,
        "a field of the body": 9, "the share removed": 36, "vLLM's own field": 9,
    }  # fmt: skip
    same = {told["answers"][way].choices[0].message.content for way in ("the model's name", "a header")}
    assert len(same) == 1 and {answer.model for answer in told["answers"].values()} == {"served"}


def test_metrics_of_the_engine_on_the_server_s_page(server, pictures):
    assert server.post(chat(QUESTIONS[0], pictures[3], fsr_keep=5))[0] == 200
    found = counted(server)
    assert found["fsr:visual_tokens_kept_total"] >= 5
    assert found["fsr:visual_tokens_dropped_total"] >= 139
    assert found['fsr:selection_milliseconds_count{backend="cpu"}'] >= 1
    assert "fsr:choices_remembered_total" in found
