"""The words of requests and settings, and the door that takes only these from clients; no engine, no vLLM."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from fsr.errors import BudgetError, FSRError, UsageError
from fsr.serving.vllm.arguments import others, refuse_near_misses
from fsr.serving.vllm.gateway import LARGEST, Gateway, rewritten
from fsr.serving.vllm.settings import EngineSettings


def settings(**given):
    return EngineSettings.of(SimpleNamespace(fsr=given), True)


def keep_of(made, arguments):
    (keep,) = made.keeps_of(arguments, 1)
    return keep


def test_the_share_that_is_removed_is_an_alias():
    made = settings(image_pruning_rate=0.9, image_pruning_method="visionzip")
    assert made.method.name == "visionzip" and made.keep == 0.1 and made.count(0.1, 580) == 58
    assert settings(image_pruning_rate=0).keep == 0
    assert settings(keep=0.25, image_pruning_rate=0.75).keep == 0.25
    assert keep_of(made, {"image_pruning_rate": 0.5}) == 0.5 and keep_of(made, {"image_pruning_rate": 0.0}) == 0
    assert keep_of(made, {"image_pruning_method": "visionzip", "fsr_keep": 7}) == 7
    for bad, hint in [
        ({"keep": 64, "image_pruning_rate": 0.9}, "contradict each other"),
        ({"method": "fsr", "image_pruning_method": "visionzip"}, "contradict each other"),
        ({"image_pruning_rate": 1.0}, "below 1"), ({"image_pruning_rate": "half"}, "below 1"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=hint):
            settings(**bad)
    for bad, hint in [
        ({"fsr_keep": 64, "image_pruning_rate": 0.9}, "contradict each other"),
        ({"fsr_keep": 0, "image_pruning_rate": 0.1}, "contradict each other"),
        ({"image_pruning_rate": -0.1}, "below 1"), ({"image_pruning_rate": True}, "below 1"),
        ({"image_pruning_method": "fsr"}, "was started with visionzip"),
    ]:  # fmt: skip
        with pytest.raises(FSRError, match=hint):
            keep_of(made, bad)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("keep", "fsr_keep"), ("FSR_KEEP", "fsr_keep"), ("fsr_kep", "fsr_keep"), ("fsr-keep", "fsr_keep"),
        ("Keep", "fsr_keep"), ("question", "fsr_question"), ("fsr_qustion", "fsr_question"),
        ("image_prunning_rate", "image_pruning_rate"), ("pruning_rate", "image_pruning_rate"),
        ("imagePruningRate", "image_pruning_rate"), ("image_pruning_methods", "image_pruning_method"),
    ],
)  # fmt: skip
def test_a_misspelt_argument_is_told_its_name(name, meant):
    with pytest.raises(UsageError, match=f"unknown {name}: did you mean {meant}"):
        refuse_near_misses({"do_resize": True, name: 3})


def test_what_is_not_ours_goes_to_the_processor():
    theirs = {"do_resize": False, "min_pixels": 3, "size": {"height": 3}, "num_frames": 2, "max_soft_tokens": 70}
    refuse_near_misses(theirs)
    assert others({**theirs, "fsr_keep": 3, "image_pruning_rate": 0.5}) == theirs
    with pytest.raises(UsageError, match="use fsr_keep, fsr_question"):
        refuse_near_misses({"fsr_xyz": 1})
    with pytest.raises(UsageError, match="fsr_keep stands inside images_kwargs"):
        refuse_near_misses({"images_kwargs": {"fsr_keep": 3}})


def through(body, header=None):
    return json.loads(rewritten(json.dumps(body).encode(), header))


def test_a_budget_comes_in_by_four_ways():
    asked = {"fsr_keep": 64}
    for body, header in [
        ({"model": "m@64"}, None), ({"model": "m"}, "64"), ({"model": "m", "fsr_keep": 64}, None),
        ({"model": "m", "mm_processor_kwargs": asked}, None), ({"model": "m@64", "fsr_keep": 64}, "64"),
    ]:  # fmt: skip
        assert through(body, header) == {"model": "m", "mm_processor_kwargs": asked}
    assert through({"model": "m@0.1"})["mm_processor_kwargs"] == {"fsr_keep": 0.1}
    assert through({"model": "m@0"})["mm_processor_kwargs"] == {"fsr_keep": 0}
    assert through({"model": "m@64", "fsr_question": "where?"})["mm_processor_kwargs"] == {
        **asked,
        "fsr_question": "where?",
    }
    untouched = {"model": "org/m@main", "messages": [{"role": "user", "content": "a@64"}]}
    assert through(untouched) == untouched
    assert rewritten(b"no json") == b"no json" and rewritten(b"[1]") == b"[1]"


def test_the_door_is_closed_to_everything_else():
    for body, header, hint in [
        ({"mm_processor_kwargs": {"max_pixels": 1 << 30}}, None, "not max_pixels"),
        ({"mm_processor_kwargs": {"fsr_kep": 3}}, None, "did you mean fsr_keep"),
        ({"mm_processor_kwargs": [3]}, None, "is an object"),
        ({"media_io_kwargs": {"video": {"num_frames": -1}}}, None, "does not take them"),
        ({"fsr_kepe": 3}, None, "did you mean fsr_keep"),
        ({"keep": 3}, None, "unknown keep: did you mean fsr_keep"),
        ({"FSR_KEEP": 3}, None, "unknown FSR_KEEP: did you mean fsr_keep"),
        ({"image_prune_rate": 0.5, "image_pruning_rates": 0.5}, None, "did you mean image_pruning_rate"),
        ({"model": "m@64", "fsr_keep": 3}, None, "contradict each other"),
        ({"model": "m@64"}, "65", "contradict each other"), ({"model": "m"}, "many", "X-FSR-Keep"),
    ]:  # fmt: skip
        with pytest.raises(FSRError, match=hint):
            through(body, header)
    # Escapes hide nothing.
    with pytest.raises(FSRError, match="not max_pixels"):
        rewritten(b'{"mm\\u005fprocessor_kwargs": {"max\\u005fpixels": 9}}')


def ask(body, headers=(), method="POST", parts=1):
    """What a server behind the door sees, and what the client is told."""
    seen, told = [], []

    async def server(scope, receive, send):
        message = await receive()
        seen.append((dict(scope["headers"]), message["body"], await receive()))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    pieces = [body[i::parts] for i in range(parts)] if parts > 1 else [body]
    messages = [{"type": "http.request", "body": p, "more_body": i + 1 < len(pieces)} for i, p in enumerate(pieces)] + [
        {"type": "http.disconnect"}
    ]

    async def receive():
        return messages.pop(0)

    async def send(message):
        told.append(message)

    scope = {"type": "http", "method": method, "headers": [(b"content-length", b"9"), *headers]}
    asyncio.run(Gateway(server)(scope, receive, send))
    return seen, told


def test_the_door_as_a_server_sees_it():
    (seen,), told = ask(b'{"model": "m"}', [(b"x-fsr-keep", b"64")])
    headers, body, after = seen
    assert json.loads(body)["mm_processor_kwargs"] == {"fsr_keep": 64} and told[0]["status"] == 200
    assert int(headers[b"content-length"]) == len(body) and after["type"] == "http.disconnect"
    seen, told = ask(b'{"fsr_kep": 3}')
    assert not seen and told[0]["status"] == 400
    assert "did you mean fsr_keep" in json.loads(told[1]["body"])["error"]["message"]
    for name in (b"X-FSR-Kep", b"X-FSR-Question", b"FSR-Keep"):
        seen, told = ask(b'{"model": "m"}', [(name, b"64")])
        assert not seen and told[0]["status"] == 400 and b"did you mean X-FSR-Keep" in told[1]["body"]
    seen, told = ask(b" " * (LARGEST + 1))
    assert not seen and told[0]["status"] == 413


def test_no_field_of_the_server_is_taken_for_a_slip():
    """Near misses are looked for among all fields of a body."""
    pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines")
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    for kind in (ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        body = dict.fromkeys(kind.model_fields)
        theirs = {name: None for name in body if name not in ("mm_processor_kwargs", "media_io_kwargs")}
        assert len(body) > 40 and through(body) == theirs


def test_budgets_are_judged_by_the_engine_s_own_rules():
    made = settings(keep=9)
    assert made.keeps_of(through({"model": "m", "fsr_keep": [3, 0.5]})["mm_processor_kwargs"], 2) == [3, 0.5]
    with pytest.raises(BudgetError, match="fsr_keep"):
        keep_of(made, through({"model": "m", "fsr_keep": -3})["mm_processor_kwargs"])
