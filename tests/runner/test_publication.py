"""Readers get one whole value, whatever is published meanwhile."""

from __future__ import annotations

from vllm_agent.lifecycle.server_life import Policy, ServerLife
from vllm_agent.lifecycle.states import LifecycleMode
from vllm_agent.observations import Instant
from vllm_agent.publication import Publication
from vllm_agent.snapshot import ServerSnapshot

START = Instant(0.0, 1_000.0)


def server(name: str) -> ServerSnapshot:
    return ServerSnapshot(
        name=name,
        mode=LifecycleMode.EXTERNAL,
        url="http://a",
        is_discovered=False,
        policy=Policy(),
        life=ServerLife.begun(Policy(), None, START),
    )


def test_a_value_taken_before_a_publication_does_not_change():
    publication = Publication(START, tuple, dict)
    publication.publish(server("a"))
    before = publication.current()
    publication.publish(server("b"))
    assert [s.name for s in before.servers] == ["a"]
    assert [s.name for s in publication.current().servers] == ["a", "b"]


def test_every_publication_is_a_new_generation():
    publication = Publication(START, tuple, dict)
    generations = [publication.current().generation]
    publication.publish(server("a"))
    generations.append(publication.current().generation)
    publication.become_ready()
    generations.append(publication.current().generation)
    assert generations == [0, 1, 2]
    assert publication.current().is_ready
