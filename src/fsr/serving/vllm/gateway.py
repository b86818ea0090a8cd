"""A door in front of vLLM's server: clients may set their budget and question, and nothing else of the processor.

    python -m vllm.entrypoints.openai.api_server ... --trust-request-mm-kwargs \\
      --middleware fsr.serving.vllm.gateway.Gateway

vLLM takes `mm_processor_kwargs` from clients all or none (`--trust-request-mm-kwargs`), and the stock OpenAI client has
no argument for them. Behind this door a budget comes by whichever of four ways a client has: the model's name
(`NAME@64`, `NAME@0.1`), a header (`X-FSR-Keep: 64`), a field of the body (`extra_body={"fsr_keep": 64}`), or
`mm_processor_kwargs` itself. Anything else in `mm_processor_kwargs`, and all of `media_io_kwargs`, is a 400.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from fsr.errors import FSRError, UsageError
from fsr.serving.vllm.arguments import KEEP, OURS, nearest, others, refuse_near_misses

__all__ = ["Gateway", "rewritten"]

HEADER = b"x-fsr-keep"
# Pictures come inside the body; it is read before vLLM has looked at any key.
LARGEST = 256 << 20

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Gateway:
    """ASGI middleware. Requests without a JSON body pass as they are."""

    def __init__(self, app: Callable[[Any, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        body = await _body(receive)
        if body is None:
            await _refuse(send, 413, f"the request is larger than {LARGEST >> 20} MiB.")
            return
        try:
            _known(headers)
            made = rewritten(body, headers.get(HEADER, b"").decode("latin-1") or None)
        except FSRError as error:
            await _refuse(send, 400, str(error))
            return
        kept = [(n, v) for n, v in scope["headers"] if n.lower() != b"content-length"]
        scope = {**scope, "headers": [*kept, (b"content-length", str(len(made)).encode())]}
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()  # the client hanging up
            sent = True
            return {"type": "http.request", "body": made, "more_body": False}

        await self.app(scope, again, send)


def rewritten(body: bytes, header: str | None = None) -> bytes:
    """The body as vLLM may see it; what is no JSON object is left to vLLM.

    header: the value of X-FSR-Keep.

    Raises:
        UsageError: budgets that contradict each other, an argument that is not ours, or nearly.
    """
    try:
        told = json.loads(body)
    except ValueError:
        return body
    if not isinstance(told, dict):
        return body
    asked = told.get("mm_processor_kwargs") or {}
    if not isinstance(asked, dict):
        raise UsageError("mm_processor_kwargs is an object: {" + f'"{KEEP}": 64' + "}.")
    refuse_near_misses(asked)
    if foreign := sorted(others(asked)):
        raise UsageError(f"mm_processor_kwargs: this server takes {', '.join(OURS)}, not {', '.join(foreign)}.")
    if told.get("media_io_kwargs"):
        raise UsageError("media_io_kwargs: this server does not take them.")
    ways = [asked, {n: told.pop(n) for n in OURS if n in told}]
    for name in told:
        if (meant := nearest(name)) or name.lower().startswith("fsr") or "pruning" in name.lower():
            raise UsageError(f"unknown {name}: did you mean {meant or KEEP}?")
    if header is not None:
        if (keep := _number(header)) is None:
            raise UsageError(f"X-FSR-Keep: {header}: a number of tokens or a share is wanted, as in 64 or 0.1.")
        ways.append({KEEP: keep})
    model = told.get("model")
    if isinstance(model, str) and (keep := _number(model.rpartition("@")[2])) is not None and "@" in model:
        told["model"] = model.rpartition("@")[0]
        ways.append({KEEP: keep})
    together: dict[str, Any] = {}
    for way in ways:
        for name, value in way.items():
            if together.setdefault(name, value) != value:
                raise UsageError(f"{name}: {together[name]!r} and {value!r} contradict each other: give one of them.")
    told.pop("media_io_kwargs", None)
    told.pop("mm_processor_kwargs", None)
    if together:
        told["mm_processor_kwargs"] = together
    return json.dumps(told).encode()


def _known(headers: Iterable[bytes]) -> None:
    for name in headers:
        if name != HEADER and name.removeprefix(b"x-").startswith(b"fsr"):
            raise UsageError(f"unknown header {name.decode('latin-1')}: did you mean X-FSR-Keep?")


def _number(text: str) -> int | float | None:
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text.strip()):
        return None
    return float(text) if "." in text else int(text)


async def _body(receive: Receive) -> bytes | None:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > LARGEST:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


async def _refuse(send: Send, status: int, why: str) -> None:
    told = {"error": {"message": why, "type": "BadRequestError", "param": None, "code": status}}
    body = json.dumps(told).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
