from __future__ import annotations

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.host.hf_hub.hub_variables import is_on, origin


@given(st.sampled_from(["1", "on", "On", "yes", "true", "TRUE"]) | st.text(max_size=5))
def test_a_switch_is_on_where_the_library_takes_it_for_on(value):
    assert is_on(value) is constants._is_true(value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://hub.example", "https://hub.example"),
        ("https://user:secret@hub.example:8443/hf?token=secret", "https://hub.example:8443"),
        ("http://[::1]:8080/x", "http://[::1]:8080"),
        ("ftp://hub.example", None),
        ("hub.example", None),
        ("http://", None),
        ("http://[::1", None),
        ("", None),
    ],
)
def test_an_origin_has_no_login_and_no_path(url, told):
    assert origin(url) == told
