"""Which log files several launches read."""

from __future__ import annotations

from vllm_agent.host.followed_files import FollowedFiles

ONE, OTHER = (1, 2), (1, 3)


def test_a_file_that_two_follow_is_shared_by_both():
    files = FollowedFiles()
    files.hold("a", [ONE, OTHER])
    files.hold("b", [OTHER])
    files.hold("c", [(2, 2)])
    assert [files.was_shared(reader) for reader in "abca"] == [True, True, False, True]


def test_one_that_was_shared_is_told_of_once_more():
    """The other may have written before it ended."""
    files = FollowedFiles()
    files.hold("a", [ONE])
    files.hold("b", [ONE])
    files.release("b")
    assert [files.was_shared("a") for _ in range(3)] == [True, False, False]
    assert not files.was_shared("b")


def test_a_file_that_was_replaced_is_not_shared_any_more():
    files = FollowedFiles()
    files.hold("a", [ONE])
    files.hold("b", [ONE])
    files.hold("a", [OTHER])
    assert [files.was_shared("a") for _ in range(2)] == [True, False]


def test_a_reader_that_follows_nothing_shares_nothing():
    files = FollowedFiles()
    files.hold("a", [])
    files.hold("b", [])
    assert not files.was_shared("a")
    files.release("c")
