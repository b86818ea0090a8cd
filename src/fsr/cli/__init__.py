"""The command `fsr`. One file per subcommand, each with `HELP`, `arguments(parser)` and `run(args) -> int`; imported
only when called.

Bad input ends with exit status 2 and one line on standard error that says what to do; nothing has been written by then.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from fsr.errors import FSRError

__all__ = ["COMMANDS", "main"]

# name -> one line of help; the module fsr.cli.<name> is imported when the command runs.
COMMANDS = {
    "ablate": "what each choice inside Focus-Scan-Refine is worth, on the benchmark",
    "ask": "answer a question about a picture from K visual tokens",
    "batch": "answer many questions with several workers, over Ray Data",
    "calibrate": "where each source of relevance points, and a file with what was found",
    "compare": "which method keeps the right answers, on the benchmark",
    "demo": "the live report, in a browser",
    "methods": "list the pruning methods",
    "profile": "where the time goes: measured by stage, or counted from a config",
    "tables": "results of lmms-eval beside the paper's Tables 1 to 6",
    "tasks": "write the task files for lmms-eval, the embedded benchmark among them",
    "train": "train the embedded model",
    "view": "show what was kept and why: one HTML file, a PNG, the paper's figures",
}


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults behind each option, where there is one and its help does not say so already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or "(default: " in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):  # type: ignore[no-untyped-def]
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show must not end the run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    command = words[0] if words else ""
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except FSRError as error:
        print(f"fsr {command}: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        _drop_output()
        return 1
    except OSError as error:  # a disk that is full, a folder that went away, a path that may not be entered
        _drop_output()
        print(
            f"fsr {command}: error: cannot read or write ({_one_line(error)}): check disk and paths.", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(words: Sequence[str]) -> int:
    parser = _Parser(prog="fsr", description="Visual-token pruning for vision-language models.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text, formatter_class=_Help)
        if list(words[:1]) == [name]:  # importing torch for `fsr --help` would take seconds
            import_module(f"fsr.cli.{name}").arguments(sub)
    args = parser.parse_args(words)
    if args.command is None:
        parser.print_help()
        return 0
    # The embedded model needs no network, and progress bars of the loaders would hide the answer.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return int(import_module(f"fsr.cli.{args.command}").run(args) or 0)


def _drop_output() -> None:
    """What is left for standard output goes nowhere: the interpreter would try, and complain, once more at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        pass
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        pass  # a stream in memory


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
