"""Keys stay in their files: no value, error or rendering of a configuration holds one."""

from __future__ import annotations

import pickle
import traceback
from pathlib import Path

import pytest

from vllm_agent.config.files import read_api_key
from vllm_agent.config.load import load
from vllm_agent.config.problem import ConfigError

TESTDATA = Path(__file__).parent / "testdata"
CANARY = "canary-key-of-qwen-5b1f"


def test_the_key_is_read_from_its_file_when_it_is_needed():
    server = load(TESTDATA / "valid-external.yml", {}).servers[1]

    assert server.api_key_file is not None
    assert read_api_key(server.api_key_file) == CANARY


def test_a_rotated_key_is_seen(tmp_path: Path):
    path = tmp_path / "key"
    path.write_text("first\n")
    first = read_api_key(path)
    path.write_text("second\n")

    assert (first, read_api_key(path)) == ("first", "second")


def test_a_configuration_never_holds_the_key():
    config = load(TESTDATA / "valid-external.yml", {})

    views = (
        repr(config),
        str(config),
        repr(config.model_dump()),
        config.model_dump_json(),
        repr(pickle.dumps(config)),
    )
    assert not [view for view in views if CANARY in view]


@pytest.mark.parametrize(
    "content",
    [
        f"{CANARY} {CANARY}",
        f"{CANARY}\n{CANARY}",
        f"{CANARY}\0",
        f"{CANARY}\N{LATIN SMALL LETTER E WITH ACUTE}",
        CANARY * 1_000,
    ],
)
def test_an_error_about_a_key_never_holds_it(tmp_path: Path, content: str):
    (tmp_path / "key").write_text(content, encoding="utf-8")
    path = tmp_path / "config.yml"
    path.write_text("servers: [{name: a, mode: external, url: 'http://h', api_key_file: key}]")

    with pytest.raises(ConfigError) as caught:
        load(path, {})

    assert len(caught.value.problems) == 1
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert CANARY not in repr(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        "api_key: {canary}",
        "api_key_file: {canary}",
        "api_key_file: [{canary}]",
        "api_key_file: ''\n    api-key: {canary}",
        "url: http://user:{canary}@gpu7:8000",
        "url: http:user:{canary}@gpu7:8000",
        "url: http://gpu7:8000?api_key={canary}",
        "url: http://gpu7:8000#{canary}",
        "url: {canary}",
        "url: [{canary}]",
        "tls_config: {{key_file: {canary}}}",
        "probe: {{interval: {{x: {canary}}}}}",
        "api_key_file: {canary}\n  url: x",
        "api_key_file: '{canary}",
        "api_key_file: !{canary}",
        "api_key_file: !{canary}!x y",
        "api_key_file: *{canary}",
        "api_key_file: %{canary}",
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(tmp_path: Path, entry: str):
    path = tmp_path / "config.yml"
    path.write_text(f"servers:\n  - name: a\n    {entry.format(canary=CANARY)}\n")

    with pytest.raises(ConfigError) as caught:
        load(path, {})

    assert CANARY not in "".join(traceback.format_exception(caught.value))
