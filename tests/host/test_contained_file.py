from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vllm_agent.host import contained_file
from vllm_agent.host.contained_file import UnreadableFileError, read_inside

LIMIT = 100
NOBODY = (65534, 65534)
PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change to another user")


@pytest.fixture
def tree(tmp_path):
    """A root with a file of its own, beside a secret that is not below it."""
    (tmp_path / "secret").write_text("outside")
    root = tmp_path / "root"
    (root / "srv/app").mkdir(parents=True)
    (root / "srv/app/a.yaml").write_text("inside")
    return root


def read(root, path, folder="/srv/app", **more) -> bytes:
    return read_inside(str(root), folder, path, LIMIT, **more)


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def refusal(root, path, folder="/srv/app", **more) -> str:
    before = open_files()
    with pytest.raises(UnreadableFileError) as caught:
        read(root, path, folder, **more)
    assert open_files() == before
    return str(caught.value)


@pytest.mark.parametrize(
    "path", ["a.yaml", "./a.yaml", "../app/a.yaml", "/srv/app/a.yaml", "../../../../srv/app/a.yaml"]
)
def test_paths_are_those_of_the_process(tree, path):
    assert read(tree, path) == b"inside"


@pytest.mark.parametrize(
    "target",
    ["/srv/app/a.yaml", "a.yaml", "../app/a.yaml", "../../../../../../../srv/app/a.yaml"],
)
def test_links_lead_to_where_the_process_would_come(tree, target):
    (tree / "srv/app/link.yaml").symlink_to(target)
    assert read(tree, "link.yaml") == b"inside"


def test_folders_can_be_links_as_those_of_kubernetes_are(tree):
    (tree / "srv/app/..data").symlink_to("/srv/app")
    (tree / "srv/app/b.yaml").symlink_to("..data/a.yaml")
    assert read(tree, "b.yaml") == b"inside"


def test_no_link_leads_out(tree):
    outside = tree.parent / "secret"
    (tree / "absolute").symlink_to(outside)
    (tree / "relative").symlink_to("../secret")
    (tree / "srv/app/up").symlink_to("../../../secret")
    (tree / "folder").symlink_to(tree.parent)
    for path in ("/absolute", "/relative", "up", "/folder/secret", "../../../secret", str(outside)):
        assert refusal(tree, path) == "there is no such file"


def test_no_link_of_proc_is_followed(tree):
    with (tree.parent / "secret").open() as held:
        path = f"/proc/self/fd/{held.fileno()}"
        assert read_inside("/", "/", "/proc/sys/kernel/ostype", LIMIT) == b""
        for one in (path, f"/proc/{os.getpid()}/root{tree}/srv/app/a.yaml", "/proc/self/exe"):
            assert "links, or one of /proc" in refusal("/", one, "/")


def test_loop_of_links_is_refused(tree):
    (tree / "srv/app/loop").symlink_to("loop")
    assert "too many links" in refusal(tree, "loop")


def test_what_is_no_file_is_named_and_never_opened(tree, monkeypatch):
    app = tree / "srv/app"
    os.mkfifo(app / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(app / "socket"))
    opened = []
    real_open = os.open

    def watched(path, *arguments, **more):
        opened.append(path)
        return real_open(path, *arguments, **more)

    monkeypatch.setattr(os, "open", watched)
    assert refusal(tree, "pipe") == "it is a pipe, not a regular file"
    assert refusal(tree, "socket") == "it is a socket, not a regular file"
    assert refusal(tree, ".") == "it is a directory, not a regular file"
    assert refusal("/", "/dev/zero") == "it is a device, not a regular file"
    assert refusal("/", "/dev/tty") == "it is a device, not a regular file"
    assert set(opened) == {str(tree), "/"}


def test_file_is_read_up_to_the_limit_and_no_more(tree):
    path = tree / "srv/app/a.yaml"
    path.write_bytes(b"x" * LIMIT)
    assert len(read(tree, "a.yaml")) == LIMIT
    path.write_bytes(b"x" * (LIMIT + 1))
    assert refusal(tree, "a.yaml") == "it is longer than 100 bytes"
    os.truncate(path, 2**40)
    assert refusal(tree, "a.yaml") == "it is longer than 100 bytes"


def test_file_that_grows_while_it_is_read_is_refused(tree, monkeypatch):
    path = tree / "srv/app/a.yaml"
    real_read = os.read

    def growing(descriptor, count):
        with path.open("ab") as file:
            file.write(b"x" * 60)
        return real_read(descriptor, min(count, 60))

    monkeypatch.setattr(os, "read", growing)
    assert refusal(tree, "a.yaml") == "it is longer than 100 bytes"


def test_file_that_is_swapped_after_it_was_looked_at_is_not_opened(tree, monkeypatch):
    path = tree / "srv/app/a.yaml"
    real_fstat = os.fstat

    def swapping(descriptor):
        information = real_fstat(descriptor)
        if stat.S_ISREG(information.st_mode) and path.exists():
            path.unlink()
            os.mkfifo(path)
        return information

    monkeypatch.setattr(os, "fstat", swapping)
    assert read(tree, "a.yaml") == b"inside"
    assert path.is_fifo()


def test_empty_file_is_empty(tree):
    (tree / "srv/app/a.yaml").write_bytes(b"")
    assert read(tree, "a.yaml") == b""


@pytest.mark.parametrize("path", ["", "\0", "a\0.yaml", "\ud800"])
def test_text_that_is_no_path_is_refused(tree, path):
    assert refusal(tree, path) == "its path is not one"


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("absent.yaml", "there is no such file"),
        ("a.yaml/b", "a part of its path is no directory"),
        ("x" * 300, "file name too long"),
        ("\udcff", "there is no such file"),
    ],
)
def test_refusals_are_sentences(tree, path, sentence):
    assert refusal(tree, path) == sentence


def test_root_that_cannot_be_opened_is_refused(tree):
    assert refusal(tree / "none", "a.yaml") == "its root cannot be opened: there is no such file"


def test_old_kernel_is_told(tree, monkeypatch):
    def no_such_call(*_):
        ctypes.set_errno(errno.ENOSYS)
        return -1

    monkeypatch.setattr(contained_file._libc, "syscall", no_such_call)
    assert "Linux 5.6 or newer" in refusal(tree, "a.yaml")


@as_root
def test_rights_are_those_of_the_user_and_only_for_the_reading(tree):
    private = tree / "srv/private"
    private.mkdir(mode=0o700)
    (private / "a.yaml").write_text("inside")
    (tree / "srv/app/private.yaml").symlink_to("/srv/private/a.yaml")
    (tree / "srv/app/own.yaml").write_text("mine")
    (tree / "srv/app/own.yaml").chmod(0o600)
    assert refusal(tree, "private.yaml", user=NOBODY) == "it may not be read"
    assert refusal(tree, "own.yaml", user=NOBODY) == "it may not be read"
    assert read(tree, "a.yaml", user=NOBODY) == b"inside"
    assert read(tree, "private.yaml") == b"inside"
    os.chown(tree / "srv/app/own.yaml", *NOBODY)
    assert read(tree, "own.yaml", user=NOBODY) == b"mine"


@as_root
def test_other_threads_and_the_process_keep_their_rights(tree, monkeypatch):
    private = tree / "private"
    private.write_text("agent's")
    private.chmod(0o600)
    seen = []
    real_fstat = os.fstat
    contained_file._libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    with ThreadPoolExecutor(1) as other:
        other.submit(private.read_text).result()

        def look(descriptor):
            seen.append(other.submit(private.read_text).result())
            return real_fstat(descriptor)

        monkeypatch.setattr(os, "fstat", look)
        assert read(tree, "a.yaml", user=NOBODY) == b"inside"
        monkeypatch.undo()
    assert seen == ["agent's"]
    assert private.read_text() == "agent's"
    assert contained_file._libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 1
