"""Reads what variables of huggingface_hub say: which Hub it is, and whether a switch is on."""

from __future__ import annotations

import contextlib
from typing import Final
from urllib.parse import urlsplit

PUBLIC_HUB: Final = "https://huggingface.co"
"""The Hub where HF_ENDPOINT is not set."""

_TRUE_WORDS: Final = frozenset({"1", "ON", "YES", "TRUE"})  # huggingface_hub.constants


def is_on(value: str) -> bool:
    """Whether that value turns a switch on, such as HF_HUB_OFFLINE."""
    return value.upper() in _TRUE_WORDS


def origin(url: str) -> str | None:
    """Scheme, host and port of an URL, without a login; None for what is no URL of HTTP."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname:
            return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return None
