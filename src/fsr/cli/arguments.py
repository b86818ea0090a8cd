"""Arguments that several commands share: `--method`, `--keep` and `--option name=value`."""

from __future__ import annotations

import argparse

__all__ = ["add_method_arguments"]


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """`--method`, `--keep` and `--option`."""
    parser.add_argument("--method", default="fsr", help="pruning method, see `fsr methods`")
    parser.add_argument("--keep", default="16", help="visual tokens to keep per image (16), or a share (0.11)")
    parser.add_argument(
        "--option", action="append", metavar="NAME=VALUE", help="option of the method, repeatable (alpha=2)"
    )
