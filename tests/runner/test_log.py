"""The agent's log lines, as other programs read them."""

from __future__ import annotations

import json
import logging

import pytest

from vllm_agent import log


@pytest.fixture(autouse=True)
def _restored():
    """Logging is global: put it back."""
    root, asyncio_logger = logging.getLogger(), logging.getLogger("asyncio")
    before = root.handlers[:], root.level, asyncio_logger.level
    yield
    root.handlers[:], level, asyncio_level = before
    root.setLevel(level)
    asyncio_logger.setLevel(asyncio_level)


def test_logfmt_quotes_what_needs_it_and_nothing_else(capsys):
    log.set_up("info", "logfmt")
    logging.getLogger("a").warning("went away", extra={"server": "llama", "detail": 'said "no"\n'})
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("time=20")
    assert "level=warn source=test_log.py:" in line
    assert line.rstrip().endswith(r'msg="went away" server=llama detail="said \"no\"\n"')


def test_json_lines_hold_the_same_fields(capsys):
    log.set_up("info", "json")
    logging.getLogger("a").error("went away", extra={"server": "llama", "reason": None})
    record = json.loads(capsys.readouterr().err)
    assert record.pop("time").endswith("Z")
    assert record.pop("source").startswith("test_log.py:")
    assert record == {"level": "error", "msg": "went away", "server": "llama"}


def test_records_below_the_level_are_not_written(capsys):
    log.set_up("warn", "logfmt")
    logging.getLogger("a").info("nobody needs this")
    assert capsys.readouterr().err == ""


def test_a_traceback_stays_on_the_line_of_its_record(capsys):
    log.set_up("info", "logfmt")
    try:
        int("x")
    except ValueError:
        logging.getLogger("a").exception("failed")
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "ValueError: invalid literal" in line
