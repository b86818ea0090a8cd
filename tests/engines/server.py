"""vLLM's OpenAI-compatible server as a child process, and chat requests to it."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from patience import SILENCE, Patience, tail
from PIL import Image


class Server:
    """`with Server(folder, log, "--max-num-seqs", "8") as server: server.chat(...)`."""

    def __init__(
        self,
        model: str,
        log: Path,
        *options: str,
        overrides: dict[str, Any] | None = None,
        settings: dict[str, str] | None = None,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log, self.settings = f"http://127.0.0.1:{port}", log, settings or {}
        self.command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1",
            "--port", str(port), "--served-model-name", "served", "--enforce-eager", *options,
        ]  # fmt: skip
        if overrides is not None:
            self.command += ["--hf-overrides", json.dumps(overrides)]

    def __enter__(self) -> Server:
        settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        with open(self.log, "w", encoding="utf-8") as out:
            self.process = subprocess.Popen(
                self.command,
                env={**settings, **os.environ, **self.settings},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        watch = Patience("the server", self.process.pid, self.log)
        try:
            while self.process.poll() is None:
                watch.check()
                try:
                    urllib.request.urlopen(f"{self.url}/health", timeout=60).close()
                    return self
                except (urllib.error.URLError, OSError):
                    time.sleep(0.5)
        except TimeoutError:
            self.__exit__()
            raise
        raise RuntimeError(f"the server did not start: {tail(self.log)}")

    def __exit__(self, *error: object) -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sign)
                self.process.wait(timeout=20)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue

    def post(self, body: dict[str, Any], streamed: bool = False) -> tuple[int, Any]:
        """Status and JSON of one chat request; the bare text of one that streams."""
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=SILENCE) as answer:
                return answer.status, answer.read().decode() if streamed else json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


def chat(question: str, *pictures: Image.Image, longest: int = 4, **arguments: Any) -> dict[str, Any]:
    """The body of a chat request with pictures as data: URLs; `arguments` become `mm_processor_kwargs`."""
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(p)}} for p in pictures]
    content.append({"type": "text", "text": question})
    body = {"model": "served", "messages": [{"role": "user", "content": content}], "temperature": 0}
    body |= {"max_tokens": longest}
    return {**body, "mm_processor_kwargs": arguments} if arguments else body


def data_url(picture: Image.Image) -> str:
    held = io.BytesIO()
    picture.save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
