from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vllm_agent.host.contained_file import UnreadableFileError
from vllm_agent.host.contained_tree import (
    PIECE_BYTES,
    MissingFileError,
    open_tree,
    open_tree_of,
    working_folder,
)
from vllm_agent.host.proc import Proc

NOBODY = (65534, 65534)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change to another user")


@pytest.fixture
def root(tmp_path):
    """A root with a folder of files, beside a secret that is not below it."""
    (tmp_path / "secret").write_text("outside")
    (tmp_path / "root/srv/app").mkdir(parents=True)
    (tmp_path / "root/srv/app/a").write_text("inside")
    (tmp_path / "root/srv/app/link").symlink_to("/srv/app/a")
    (tmp_path / "root/srv/app/out").symlink_to(tmp_path / "secret")
    (tmp_path / "root/srv/app/loop").symlink_to("loop")
    os.mkfifo(tmp_path / "root/srv/app/pipe")
    return tmp_path / "root"


@pytest.fixture
def tree(root):
    before = len([*Path("/proc/self/fd").iterdir()])
    with open_tree(str(root), "/srv/app") as opened:
        yield opened
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_links_are_followed_below_the_root(tree):
    for path in ("a", "link", "/srv/app/a", "../../../../srv/app/a"):
        assert tree.status(path).st_size == len("inside")
        assert tree.file_status(path).st_size == len("inside")
        assert tree.read(path, 100) == b"inside"


@pytest.mark.parametrize("path", ["nothing", "out", "a/b", "../../../secret"])
def test_what_the_process_would_not_find_is_missing(tree, path):
    for ask in (tree.status, lambda path: tree.read(path, 9), lambda path: tree.names(path, 9)):
        with pytest.raises(MissingFileError):
            ask(path)
    assert tree.file_status(path) is None


@pytest.mark.parametrize("path", ["loop", "a\0b", "", "\ud800"])
def test_what_is_no_path_is_unreadable_and_not_missing(tree, path):
    with pytest.raises(UnreadableFileError) as caught:
        tree.status(path)
    assert not isinstance(caught.value, MissingFileError)
    assert tree.file_status(path) is None


@pytest.mark.timeout(10)
def test_only_regular_files_are_read_and_only_folders_are_listed(tree):
    assert tree.file_status("pipe") is None
    for path in ("pipe", "."):
        with pytest.raises(UnreadableFileError, match="not a regular file"):
            tree.read(path, 100)
    for path in ("pipe", "a"):
        with pytest.raises(MissingFileError):
            tree.names(path, 100)


def test_large_file_comes_in_pieces_and_one_too_large_not_at_all(root, tree):
    (root / "srv/app/large").write_bytes(b"x" * (PIECE_BYTES + 1))
    sizes = [len(piece) for piece in tree.pieces("large", PIECE_BYTES + 1)]
    assert sizes == [PIECE_BYTES, 1]
    with pytest.raises(UnreadableFileError, match=f"longer than {PIECE_BYTES} bytes"):
        next(tree.pieces("large", PIECE_BYTES))


def test_file_that_grows_while_it_is_read_is_given_up(root, tree):
    (root / "srv/app/large").write_bytes(b"x" * (PIECE_BYTES + 1))
    pieces = tree.pieces("large", PIECE_BYTES + 1)
    next(pieces)
    with (root / "srv/app/large").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UnreadableFileError, match="longer than"):
        list(pieces)


def test_empty_file_is_empty(root, tree):
    (root / "srv/app/empty").touch()
    assert tree.read("empty", 0) == b""


def test_folder_is_listed_up_to_a_limit(tree):
    assert sorted(tree.names(".", 5)) == ["a", "link", "loop", "out", "pipe"]
    with pytest.raises(UnreadableFileError, match="more than 4 names"):
        tree.names(".", 4)


def test_folder_without_end_is_listed_no_further_than_the_limit(tree, monkeypatch):
    class Entries:
        """More than there is memory for."""

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __iter__(self):
            entry = type("Entry", (), {"name": "x"})
            for _ in range(101):
                yield entry
            pytest.fail("listed on")

    monkeypatch.setattr(os, "scandir", lambda _: Entries())
    with pytest.raises(UnreadableFileError, match="more than 100 names"):
        tree.names(".", 100)


def test_own_statuses_follow_no_link(tree):
    statuses = tree.own_statuses(".", ["a", "out", "nothing"])
    assert statuses.keys() == {"a", "out"}
    assert stat.S_ISREG(statuses["a"].st_mode)
    assert stat.S_ISLNK(statuses["out"].st_mode)
    for path in ("../app", "..", "/etc"):
        with pytest.raises(UnreadableFileError, match="is a path"):
            tree.own_statuses(".", [path])


@as_root
def test_rights_are_those_of_the_user(root):
    (root / "srv/app/mine").write_text("x")
    (root / "srv/app/mine").chmod(0o600)
    (root / "srv/closed").mkdir(mode=0o700)
    with open_tree(str(root), "/srv/app", NOBODY) as tree:
        assert tree.read("a", 100) == b"inside"
        for ask in (lambda: tree.read("mine", 100), lambda: tree.names("../closed", 100)):
            with pytest.raises(UnreadableFileError, match="it may not be read"):
                ask()


def test_root_that_is_not_there(tmp_path):
    with (
        pytest.raises(UnreadableFileError, match="its root cannot be opened"),
        open_tree(str(tmp_path / "no")),
    ):
        pytest.fail("opened")


def test_tree_of_a_process_is_what_it_sees(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("mine")
    proc = Proc()
    assert working_folder(proc, os.getpid()) == str(tmp_path)
    with open_tree_of(proc, os.getpid()) as tree:
        assert tree.read("a", 100) == b"mine"


def test_process_that_is_gone(tmp_path):
    with pytest.raises(UnreadableFileError), open_tree_of(Proc(), 2**22 + 1):
        pytest.fail("opened")
