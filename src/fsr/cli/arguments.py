"""Arguments that several commands share: `--method`, `--keep`, `--option name=value` and `--relevance`."""

from __future__ import annotations

import argparse

__all__ = ["add_method_arguments", "add_relevance_argument"]

RELEVANCE = ("auto", "none", "first-layer", "embedding")


def add_method_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """`--method`, `--keep` and `--option`. several: prompts may hold several pictures."""
    each = "; or one per picture, in their order (0.5,0.1)" if several else ""
    parser.add_argument(
        "--method", default="fsr", help="pruning method, see `fsr methods`; options also as fsr:alpha=2"
    )
    parser.add_argument("--keep", default="16", help=f"visual tokens to keep per image (16), or a share (0.11){each}")
    parser.add_argument(
        "--option", action="append", metavar="NAME=VALUE", help="option of the method, repeatable (alpha=2)"
    )


def add_relevance_argument(parser: argparse.ArgumentParser) -> None:
    """`--relevance`, checked before anything is loaded."""

    def source(text: str) -> str:
        if text not in RELEVANCE and not text.endswith(".json"):
            raise argparse.ArgumentTypeError(f"{text!r}: use {', '.join(RELEVANCE)}, or a file of `fsr calibrate`")
        return text

    parser.add_argument(
        "--relevance",
        type=source,
        default="auto",
        metavar="SOURCE",
        help="auto: the paired text tower, or what `fsr calibrate` left beside the weights; none: without it; "
        "first-layer: the language model's own first queries and keys; embedding: its word embeddings; FILE.json: what "
        "`fsr calibrate` wrote",
    )
