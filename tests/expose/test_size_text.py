from __future__ import annotations

import pytest

from vllm_agent.expose.size_text import size_text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (2**20 - 1, "1024.0 KiB"),
        (2**20, "1.0 MiB"),
        (13_207_024_435, "12.3 GiB"),
        (2**50, "1024.0 TiB"),
        (-1, "-1 B"),
        (-(2**31), "-2.0 GiB"),
    ],
)
def test_a_size_is_in_the_largest_unit_that_it_has_one_of(size_bytes, text):
    assert size_text(size_bytes) == text
