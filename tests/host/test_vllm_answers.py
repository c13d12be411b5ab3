"""What is kept of the small answers of a vLLM."""

from __future__ import annotations

import json
import time

from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.host.vllm_answers import parse_model_names, without_secrets


def answer(*names: str) -> bytes:
    return json.dumps({"data": [{"id": name} for name in names]}).encode()


def test_names_are_kept_without_secrets():
    names = ("https://u:hunter2@h/m?token=topsecret", "org/name:Q4_K_M", "s3://u:hunter2@b/m")
    assert parse_model_names(answer(*names)) == (
        "https://[redacted]@h/m?token=[redacted]",
        "org/name:Q4_K_M",
        "s3://[redacted]@b/m",
    )


def test_a_name_is_no_part_of_the_next():
    names = ("--api-key", "org/model", "cookie:", "api_key='x", "y' z", "password=", "name")
    assert parse_model_names(answer(*names))[:3] == names[:3]
    assert parse_model_names(answer(*names))[4:] == names[4:]
    assert without_secrets(()) == ()


@given(st.lists(st.text(st.sampled_from("aK3-_./:+~"), min_size=1)).map(tuple))
def test_ordinary_names_stay_as_they_are(names):
    assert parse_model_names(answer(*names)) == names


def test_ordinary_names_cost_little():
    names = ("meta-llama/Llama-3.1-8B-Instruct", "/models/" + "0a1b" * 16)

    def once() -> float:
        begun = time.process_time()
        for _ in range(1000):
            without_secrets(names)
        return time.process_time() - begun

    # Measured at 2 us for both together; tests also run on slow and busy machines.
    assert min(once() for _ in range(5)) / 1000 < 10e-6
