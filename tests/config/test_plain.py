"""The values that the agent has instead of models: the same, frozen, without a secret."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from tests.config.test_secrets import CANARY
from vllm_agent.config.choices import GpuUse
from vllm_agent.config.load import load
from vllm_agent.config.model import MatchConfig, ServerConfig
from vllm_agent.config.plain import Plain
from vllm_agent.config.values import Section

TESTDATA = Path(__file__).parent / "testdata"


def assert_same(plain: object, model: object) -> None:
    """Every value of a model is in its plain one, and no part of that is a model."""
    if isinstance(model, Section):
        assert isinstance(plain, Plain)
        for name in type(model).model_fields:
            assert_same(getattr(plain, name), getattr(model, name))
    elif isinstance(model, tuple):
        assert isinstance(plain, tuple)
        for item, of_model in zip(plain, model, strict=True):
            assert_same(item, of_model)
    else:
        assert (type(plain), plain) == (type(model), model)


def passed_on(value: object) -> object:
    """What another process gets."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - the line's own


@pytest.mark.parametrize("path", sorted(TESTDATA.glob("valid-*.yml")), ids=lambda path: path.stem)
def test_every_value_is_the_same_behind_the_same_name(path: Path):
    config = load(path, {})

    assert_same(config.plain(), config)
    assert passed_on(config.plain()) == config.plain()


def test_every_key_of_a_match_survives():
    match = MatchConfig(
        port=8000,
        systemd_unit="vllm",
        container="0123456789ab",
        pid_file=Path("/run/vllm.pid"),
        command=re.compile("serve"),
    )
    server = ServerConfig(name="llama", match=match)

    assert_same(passed_on(server.plain()), server)


def test_it_is_frozen():
    gpu: Any = load(None, {}).plain().gpu

    with pytest.raises(AttributeError, match="GpuConfig is frozen"):
        gpu.nvml = GpuUse.OFF
    with pytest.raises(AttributeError, match="GpuConfig is frozen"):
        del gpu.nvml
    with pytest.raises(AttributeError, match="GpuConfig is frozen"):
        gpu.unknown = 1
    assert gpu.nvml is GpuUse.AUTO


def test_it_is_equal_to_what_holds_the_same():
    first, same = Plain("A", {"x": 1}), Plain("A", {"x": 1})

    assert (first, hash(first)) == (same, hash(same))
    assert first not in (Plain("A", {"x": 2}), Plain("B", {"x": 1}), "A")


SERVERS = """\
servers:
  - name: monitored
    match: {port: 8000, command: "serve .*", pid_file: /run/vllm.pid}
    log_file: /var/log/vllm.log
    start: {load_timeout: 10m}
  - name: external
    mode: external
    url: https://gpu7
    tls_config: {server_name: gpu7}
    probe: {interval: 5s}
  - name: managed
    mode: managed
    model: org/name
    restart: {delay: 3s}
    managed: {args: [-O, "3"], env: {A: "1", B: "2"}, user: vllm}
"""


@pytest.mark.parametrize(
    ("written", "changed", "names"),
    [
        ("", "", []),
        ("# a comment\nservers:", "servers:", []),
        ("load_timeout: 10m", "load_timeout: 600s", []),
        ('{A: "1", B: "2"}', '{B: "2", A: "1"}', []),
        ("serve .*", "serve .+", ["monitored"]),
        ("port: 8000", "port: 8001", ["monitored"]),
        ("10m", "11m", ["monitored"]),
        ("server_name: gpu7", "server_name: gpu8", ["external"]),
        ("interval: 5s", "interval: 6s", ["external"]),
        ("delay: 3s", "delay: 4s", ["managed"]),
        ('[-O, "3"]', '[-O, "2"]', ["managed"]),
        ('[-O, "3"]', "[-O3]", ["managed"]),
        ('A: "1"', 'A: "3"', ["managed"]),
        (', B: "2"', "", ["managed"]),
        ("org/name", "org/other", ["managed"]),
        ("mode: external", "mode: monitored", ["external"]),
    ],
)
def test_a_reload_can_tell_which_servers_changed(
    tmp_path: Path, written: str, changed: str, names: list[str]
):
    path = tmp_path / "config.yml"
    path.write_text(SERVERS)
    before: Any = passed_on(load(path, {}).plain())
    path.write_text(SERVERS.replace(written, changed, 1))
    after: Any = passed_on(load(path, {}).plain())

    pairs = list(zip(before.servers, after.servers, strict=True))
    assert [old.name for old, new in pairs if old != new] == names
    assert [old.name for old, new in pairs if hash(old) != hash(new)] == names
    assert (before == after) is (not names)


def test_it_shows_its_values():
    assert repr(Plain("A", {"x": "1", "b": Plain("B", {})})) == "A(x='1', b=B())"


def test_it_never_holds_the_key():
    plain = load(TESTDATA / "valid-external.yml", {}).plain()

    views = (repr(plain), str(plain), repr(pickle.dumps(plain)))
    assert not [view for view in views if CANARY in view]
