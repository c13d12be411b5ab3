"""The model that a managed server shall serve, as a word of the command line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vllm_agent.config.model_id import why_no_model

if TYPE_CHECKING:
    from vllm_agent.cli.arguments import Parser


def add_model(parser: Parser, name: str, text: str) -> None:
    """Adds it as `name`, a flag or a word of its own."""
    # argparse takes what begins with '-' for a flag, and would complain of that.
    parser.refuse_flag_as(name, why_no_model("-"))
    if name.startswith("-"):
        parser.add_argument(name, type=_model, metavar="MODEL", help=text)
    else:
        parser.add_argument("model", type=_model, metavar=name, help=text)


def _model(text: str) -> str:
    if why_not := why_no_model(text):
        raise argparse.ArgumentTypeError(f"{why_not}, got {text!r}")
    return text
