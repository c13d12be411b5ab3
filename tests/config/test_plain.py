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


def test_it_shows_its_values():
    assert repr(Plain("A", {"x": "1", "b": Plain("B", {})})) == "A(x='1', b=B())"


def test_it_never_holds_the_key():
    plain = load(TESTDATA / "valid-external.yml", {}).plain()

    views = (repr(plain), str(plain), repr(pickle.dumps(plain)))
    assert not [view for view in views if CANARY in view]
