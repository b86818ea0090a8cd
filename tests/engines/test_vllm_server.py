"""The OpenAI-compatible server with the plug-in: chat requests with pictures, mixed budgets, clients that disturb."""

from __future__ import annotations

import threading
from importlib.resources import files
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines")

from PIL import Image
from server import Server, chat

from fsr import FSR
from fsr.asking.answer import answer
from fsr.asking.load import load
from fsr.serving.vllm import overrides

DATA = Path(str(files("fsr.minivlm") / "data"))
QUESTIONS = ["what color is the umbrella?", "what is right of the bicycle?", "how many dogs are there?"]
KEEPS = [None, 4, 32, 0]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log.txt"
    given = overrides(FSR(keep=16), "LlavaForConditionalGeneration")
    options = ["--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "8", "--trust-request-mm-kwargs"]
    with Server(str(DATA / "mini"), log, *options, overrides=given) as running:
        yield running


@pytest.fixture(scope="module")
def pictures():
    return [Image.open(p).convert("RGB") for p in sorted((DATA / "scenes").glob("*.png"))]


def test_clients_of_all_kinds_at_once(server, pictures):
    """24 good requests from eight threads, with bad ones in between: each gets what it would get alone."""
    jobs = [(q, p, k) for q in QUESTIONS for p in range(2) for k in KEEPS]
    results = {}

    def client(mine):
        for number in mine:
            question, p, keep = jobs[number]
            if number % 3 == 0:
                results[f"bad {number}"] = server.post(chat(question, pictures[p], fsr_keep=-number - 1))
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
        method = None if keep == 0 else FSR(keep=keep or 16)
        expected = answer(model, processor, pictures[p], question, method, max_new_tokens=4)
        assert body["choices"][0]["message"]["content"].strip() == expected.text, jobs[number]
        whole = server.post(chat(question, pictures[p], fsr_keep=0))[1]["usage"]["prompt_tokens"]
        assert whole - body["usage"]["prompt_tokens"] == (0 if keep == 0 else 144 - (keep or 16))
    for number in range(0, len(jobs), 3):
        status, body = results[f"bad {number}"]
        assert status == 400 and "fsr_keep" in body["error"]["message"]


def test_bad_requests_get_the_server_s_own_error(server, pictures):
    for body, hint in [
        (chat(QUESTIONS[0], pictures[0], fsr_question=" "), "fsr_question is empty"),
        (chat("", pictures[0]), "no question in the prompt"),
        (chat(QUESTIONS[0], pictures[0], fsr_tokens=4), "use fsr_keep and fsr_question"),
    ]:
        status, said = server.post(body)
        assert status == 400 and hint in said["error"]["message"]
    # An explicit question chooses the tokens; a prompt without pictures needs none.
    assert server.post(chat(QUESTIONS[0], pictures[0], fsr_keep=4, fsr_question=QUESTIONS[1]))[0] == 200
    assert server.post(chat(QUESTIONS[0]))[0] == 200
