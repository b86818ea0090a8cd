"""`fsr demo`: the live report, in a browser. Works without a network; needs the extra `demo` (Gradio)."""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fsr.errors import UsageError

MAX_UPLOAD = "20mb"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fsr demo`."""
    parser.add_argument(
        "--model", action="append", help="`mini`, `mini-qwen3`, a folder or a hub id; repeatable (default: mini)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 shows the demo to the network"
    )
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's servers")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted; uploads live in a folder that goes with the process."""
    if find_spec("gradio") is None:
        raise UsageError("the demo needs Gradio: pip install 'fsr-vlm[demo]'.")
    _check_address(args.host, args.port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="fsr-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # Gradio reads it when it is imported
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        from fsr.demo.models import OfferedModels
        from fsr.demo.page import build

        models = OfferedModels(args.model or ["mini"], args.device)
        models.take(models.names[0])  # a wrong name is told here, not to the first visitor
        page, _ = build(models, Path(uploads))
        try:
            launch(page, args.host, args.port, share=args.share)
        except OSError as error:
            raise UsageError(f"cannot listen on {args.host}:{args.port or '7860-7959'}: {error}") from error
    return 0


def _check_address(host: str, port: int | None) -> None:
    """Gradio would try a hundred ports of a host that is none."""
    if port is not None and not 1 <= port <= 65535:
        raise UsageError(f"--port {port} is no port: give 1 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot listen on {host!r} ({error}): give an address of this machine.") from error


def launch(page: Any, host: str, port: int | None, *, share: bool = False, wait: bool = True) -> None:
    """Serve a page with this demo's limits: uploads of at most `MAX_UPLOAD`, nothing asked of other servers."""
    from fsr.demo.page import CSS, theme

    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=not wait,
        max_file_size=MAX_UPLOAD,
        theme=theme(),
        css=CSS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        enable_monitoring=False,
        quiet=not wait,
    )
