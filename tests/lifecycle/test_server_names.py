"""What discovered servers are called: readable, valid, never twice, and the same every time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.lifecycle.server_names import (
    MAX_ENDPOINT_LENGTH,
    MAX_NAME_LENGTH,
    is_server_name,
    name_of,
)
from vllm_agent.observations import ProcessId, Sighting, VllmCommand

PROCESS = ProcessId("a0e1d2c3-0000-4000-8000-000000000000", 4242, 1_234_567)
CONTAINER = "0123456789abcdef" * 4


def sighting(
    *,
    model: str | None = "meta-llama/Llama-3.1-8B",
    unit: str | None = None,
    container: str | None = None,
    process: ProcessId = PROCESS,
    is_user_unit: bool = False,
    **command,
) -> Sighting:
    return Sighting(
        process=process,
        start_seconds=1.7e9,
        command=VllmCommand(model=model, **command),
        uid=1000,
        session=4242,
        unit=unit,
        is_user_unit=is_user_unit,
        container_id=container,
    )


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (sighting(), "Llama-3.1-8B@8000"),
        (sighting(port=8001), "Llama-3.1-8B@8001"),
        (sighting(served_names=("chat", "default")), "chat@8000"),
        (sighting(served_names=("acme/chat",)), "chat@8000"),
        (sighting(model="/srv/models/tiny/"), "tiny@8000"),
        (sighting(model="s3://bucket/models/tiny"), "tiny@8000"),
        (sighting(model=None), "Qwen3-0.6B@8000"),
        (sighting(model=None, config_file="vllm.yaml"), "vllm@8000"),
        (sighting(model=None, config_file="vllm.yaml", served_names=("a",)), "a@8000"),
        (sighting(model="."), "vllm@8000"),
        (sighting(model="/"), "vllm@8000"),
        (sighting(model="a b/c d\n"), "c_d_@8000"),
        (sighting(model="mod\N{LATIN SMALL LETTER E WITH GRAVE}le"), "mod_le@8000"),
        (sighting(model="\udcff-tiny"), "tiny@8000"),
        (sighting(is_headless=True), "Llama-3.1-8B@headless"),
        (sighting(uds="/run/vllm/chat.sock"), "Llama-3.1-8B@chat"),
        (sighting(uds="qwen2.5"), "Llama-3.1-8B@qwen2.5"),
        (sighting(uds="/run/v llm.sock"), "Llama-3.1-8B@v_llm"),
        (sighting(uds="/run/.sock"), "Llama-3.1-8B@socket"),
        (sighting(container=CONTAINER), "Llama-3.1-8B@8000"),
        (sighting(unit="vllm.service"), "vllm"),
        (sighting(unit="vllm@llama.service", container=CONTAINER), "vllm@llama"),
        (sighting(unit=r"vllm\x2dllama.service"), "vllm_x2dllama"),
        (sighting(unit="-.service"), "vllm"),
    ],
)
def test_a_name_says_what_and_where(seen: Sighting, expected: str):
    assert name_of(seen, ()) == expected


def test_a_second_holder_is_told_apart_by_its_container():
    seen = sighting(container=CONTAINER)

    assert name_of(seen, {"Llama-3.1-8B@8000"}) == "Llama-3.1-8B@8000~01234567"


def test_two_of_one_container_are_told_apart_by_their_launches():
    seen = sighting(container=CONTAINER)
    taken = {"Llama-3.1-8B@8000", "Llama-3.1-8B@8000~01234567"}

    assert name_of(seen, taken) == name_of(replace(seen, container_id=None), taken)


def test_a_second_holder_without_a_container_is_told_apart_by_its_launch():
    """The digits are kept on disk with the server: they may not change with the agent."""
    name = name_of(sighting(), {"Llama-3.1-8B@8000"})

    assert name == "Llama-3.1-8B@8000~ffb019bd"


@pytest.mark.parametrize(
    "other",
    [
        replace(PROCESS, pid=PROCESS.pid + 1),
        replace(PROCESS, start_ticks=PROCESS.start_ticks + 1),
        replace(PROCESS, boot_id="b0e1d2c3-0000-4000-8000-000000000000"),
    ],
)
def test_another_launch_has_other_digits(other: ProcessId):
    taken = {"Llama-3.1-8B@8000"}

    assert name_of(sighting(process=other), taken) != name_of(sighting(), taken)


def test_two_servers_of_one_unit_have_two_names():
    first = name_of(sighting(unit="vllm.service"), ())
    second = name_of(sighting(unit="vllm.service", port=8001), {first})

    assert (first, second) == ("vllm", "vllm~ffb019bd")


def test_units_of_the_same_name_of_the_system_and_of_a_user_have_two_names():
    of_system = name_of(sighting(unit="vllm.service"), ())
    of_user = name_of(sighting(unit="vllm.service", is_user_unit=True), {of_system})

    assert of_system == "vllm"
    assert of_user.startswith("vllm~")


def test_a_long_name_is_cut_before_what_tells_servers_apart():
    seen = sighting(model="m" * 300, container=CONTAINER)
    first = name_of(seen, ())

    assert first == "m" * (MAX_NAME_LENGTH - 5) + "@8000"
    assert name_of(seen, {first}) == "m" * (MAX_NAME_LENGTH - 14) + "@8000~01234567"


def test_a_long_unit_is_cut():
    seen = sighting(unit="u" * 247 + ".service", container=CONTAINER)
    first = name_of(seen, ())

    assert first == "u" * MAX_NAME_LENGTH
    assert name_of(seen, {first}) == "u" * (MAX_NAME_LENGTH - 9) + "~01234567"


def test_a_long_socket_leaves_room_for_the_model():
    name = name_of(sighting(uds="/run/" + "s" * 200), ())

    assert name == "Llama-3.1-8B@" + "s" * MAX_ENDPOINT_LENGTH


@pytest.mark.parametrize("name", ["a", "0", "vllm@llama", "a:b~c.d_e-f", "x" * MAX_NAME_LENGTH])
def test_names_that_a_server_may_have(name: str):
    assert is_server_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "-a", ".", "_a", "@8000", "a/b", "a b", "a\n", "x" * (MAX_NAME_LENGTH + 1), "\u0663a"],
)
def test_names_that_no_server_may_have(name: str):
    assert not is_server_name(name)


texts = st.text(max_size=200) | st.text(st.sampled_from("/._@~:-aZ\udc80\n "), max_size=300)
commands = st.builds(
    VllmCommand,
    model=st.none() | texts,
    served_names=st.lists(texts, max_size=2).map(tuple),
    port=st.integers(),
    uds=st.none() | texts,
    is_headless=st.booleans(),
    config_file=st.none() | texts,
)
sightings = st.builds(
    Sighting,
    process=st.builds(ProcessId, texts, st.integers(1, 2**22), st.integers(0, 2**63)),
    start_seconds=st.just(0.0),
    command=commands,
    uid=st.just(0),
    session=st.just(1),
    unit=st.none() | texts | texts.map(lambda text: f"{text}.service"),
    container_id=st.none() | texts | st.text("0123456789abcdef", min_size=64, max_size=64),
)


@given(seen=sightings, holders=st.integers(1, 5))
def test_names_are_valid_and_distinct_and_the_same_every_time(seen: Sighting, holders: int):
    taken: list[str] = []
    for _ in range(holders):
        name = name_of(seen, taken)
        assert is_server_name(name)
        assert name not in taken
        assert name == name_of(seen, frozenset(taken))
        taken.append(name)


@given(seen=sightings, taken=st.sets(texts))
def test_names_of_others_do_not_matter(seen: Sighting, taken: set[str]):
    name = name_of(seen, ())

    assert name_of(seen, taken - {name}) == name
