"""Values as people read them."""

from __future__ import annotations

import pytest

from vllm_agent.cli.terminal import fit
from vllm_agent.cli.text import age, columns, gib, local_time, plain


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0.9, "0s"),
        (59, "59s"),
        (60, "1m00s"),
        (192, "3m12s"),
        (3600, "1h00m"),
        (7_500, "2h05m"),
        (86_400, "1d00h"),
        (273_600, "3d04h"),
    ],
)
def test_age(seconds, text) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0.0"),
        (1, "<0.1"),
        (53_687_091, "<0.1"),
        (53_687_092, "0.1"),
        (85_899_345_920, "80.0"),
        (2**50, "1048576.0"),
    ],
)
def test_gib(count, text) -> None:
    assert gib(count) == text


def test_a_time_that_no_calendar_has() -> None:
    assert local_time(1e300) == local_time(None) == "-"


def test_plain_keeps_text_and_drops_control() -> None:
    assert plain("a é 漢\tb\x1b[1m\u202e") == "a é 漢 b\ufffd[1m\ufffd"


def test_columns_line_up_without_trailing_space() -> None:
    assert columns([("A", "BB"), ("ccc", "d")]) == "A    BB\nccc  d"


def test_a_long_name_is_cut_before_a_reason() -> None:
    widths = {"SERVER": 30, "STATE": 7, "SINCE": 6, "REASON": 20}
    model = {"MODEL": 30}

    assert fit(widths | model, 60) == widths | {"SERVER": 21}


WIDTHS = {
    "SERVER": 10,
    "STATE": 7,
    "MODEL": 30,
    "VERSION": 7,
    "REASON": 11,
    "CHECKED": 7,
    "URL": 30,
}


@pytest.mark.parametrize(
    ("available", "left"),
    [
        (200, {"MODEL": 30, "URL": 30, "CHECKED": 7, "VERSION": 7}),
        (85, {"MODEL": 30, "CHECKED": 7, "VERSION": 7}),
        (75, {"MODEL": 30, "VERSION": 7}),
        (60, {"MODEL": 26}),
        (50, {"MODEL": 16}),
        (47, {}),
        (32, {}),
        (20, {"REASON": 6}),
    ],
)
def test_a_narrow_terminal_does_without_the_least_important(available, left) -> None:
    always = {"SERVER": 10, "STATE": 7, "REASON": 11}

    assert fit(WIDTHS, available) == always | left
