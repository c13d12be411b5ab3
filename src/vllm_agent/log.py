"""The agent's own log on standard error, one line a record, as logfmt or JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

_LEVELS: Final = MappingProxyType(
    {
        "debug": logging.DEBUG,
        "info": logging.INFO,
        "warn": logging.WARNING,
        "error": logging.ERROR,
    }
)
_WORDS: Final = MappingProxyType(
    {logging.WARNING: "warn", logging.CRITICAL: "error"}
    | {level: word for word, level in _LEVELS.items()}
)
_RECORD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/@+~")


def set_up(level: str, form: str) -> None:
    """Sends records of `level` and above to standard error; `form` is logfmt or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Logfmt())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    # asyncio and aiohttp report at debug what only their own developers need.
    logging.getLogger("asyncio").setLevel(max(_LEVELS[level], logging.INFO))
    # aiohttp logs a traceback for each request that is not HTTP: anybody could fill the disk. What
    # goes wrong in our own answers is logged where they are made.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    fields: dict[str, Any] = {
        "time": when.replace("+00:00", "Z"),
        "level": _WORDS.get(record.levelno, record.levelname.lower()),
        "source": f"{record.filename}:{record.lineno}",
        "msg": record.getMessage(),
    }
    fields |= {
        key: value
        for key, value in vars(record).items()
        if key not in _RECORD_FIELDS and value not in {None, ""}
    }
    if record.exc_info:
        fields["traceback"] = logging.Formatter().formatException(record.exc_info)
    return fields


class _Logfmt(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_quoted(value)}" for key, value in _fields(record).items())


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields(record), default=str, ensure_ascii=False)


def _quoted(value: object) -> str:
    text = str(value)
    return text if text and _PLAIN.issuperset(text) else json.dumps(text, ensure_ascii=False)
