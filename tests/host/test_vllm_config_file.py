from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.host import vllm_config_file
from vllm_agent.host.contained_file import UnreadableFileError
from vllm_agent.host.proc import Proc
from vllm_agent.host.vllm_config_file import MAX_CONFIG_FILE_BYTES, read_config_file

if TYPE_CHECKING:
    from collections.abc import Mapping

PROC = Proc()
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

WAIT = "print(flush=True); sys.stdin.read()"
IN_CHROOT = f"import os, sys; os.chroot(sys.argv[1]); os.chdir(sys.argv[2]); {WAIT}"
AS_NOBODY = IN_CHROOT.replace("print", f"os.setgid({NOBODY}); os.setuid({NOBODY}); print")
ON_OWN_MOUNT = (
    "import os, subprocess, sys; "
    "subprocess.run(['mount', '-t', 'tmpfs', 'none', sys.argv[1]], check=True); "
    "os.chdir(sys.argv[1]); open('a.yaml', 'w').write('port: 9001'); " + WAIT
)


@contextmanager
def process(code, *arguments, prefix=(), **more):
    """Run Python code that waits, once it has said that it is ready."""
    command = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **more
    ) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        try:
            assert started.stdout.readline() == b"\n"
            yield started.pid
        finally:
            started.stdin.close()


def read(path: object, pid: int | None = None) -> Mapping[str, object]:
    return read_config_file(PROC, os.getpid() if pid is None else pid, str(path))


def refusal(path: object, pid: int | None = None) -> str:
    with pytest.raises(UnreadableFileError) as caught:
        read(path, pid)
    return str(caught.value)


def test_path_is_relative_to_the_working_directory_of_the_process(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/a.yaml").write_text("port: 9001\nserved_model_name: [a, b]\n")
    with process(f"import sys; {WAIT}", cwd=tmp_path) as pid:
        expected = {"port": 9001, "served_model_name": ["a", "b"]}
        assert read("configs/a.yaml", pid) == expected
        assert read(tmp_path / "configs/a.yaml", pid) == expected
        assert refusal("b.yaml", pid) == "there is no such file"


def test_working_directory_that_was_deleted_holds_nothing(tmp_path):
    (tmp_path / "gone").mkdir()
    with process(f"import sys; {WAIT}", cwd=tmp_path / "gone") as pid:
        (tmp_path / "gone").rmdir()
        assert refusal("a.yaml", pid) == "there is no such file"


@as_root
@pytest.mark.parametrize("folder", ["/", "/srv"])
def test_chroot_is_the_root(tmp_path, folder):
    (tmp_path / "jail/srv").mkdir(parents=True)
    (tmp_path / "a.yaml").write_text("port: 1")
    (tmp_path / f"jail{folder}/a.yaml").write_text("port: 9001")
    (tmp_path / f"jail{folder}/out.yaml").symlink_to(tmp_path / "a.yaml")
    (tmp_path / f"jail{folder}/up.yaml").symlink_to("../../../a.yaml")
    with process(IN_CHROOT, tmp_path / "jail", folder) as pid:
        assert read("a.yaml", pid) == {"port": 9001}
        assert read(f"{folder}/a.yaml", pid) == {"port": 9001}
        assert refusal("out.yaml", pid) == "there is no such file"
        (tmp_path / "jail/a.yaml").write_text("port: 9002")
        assert read("up.yaml", pid) == {"port": 9002}


@as_root
def test_folder_that_only_begins_like_the_root_is_not_below_it(tmp_path):
    for name in ("jail", "jail2"):
        (tmp_path / name).mkdir()
    (tmp_path / "jail/2").mkdir()
    for folder in ("jail/2", "jail2"):
        (tmp_path / folder / "a.yaml").write_text("port: 1")
    code = f"import os, sys; os.chdir(sys.argv[2]); os.chroot(sys.argv[1]); {WAIT}"
    with process(code, tmp_path / "jail", tmp_path / "jail2") as pid:
        assert refusal("a.yaml", pid) == "there is no such file"


@as_root
def test_mounts_of_the_process_are_seen(tmp_path):
    prefix = ("unshare", "--mount")
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    with process(ON_OWN_MOUNT, tmp_path, prefix=prefix) as pid:
        assert not (tmp_path / "a.yaml").exists()
        assert read("a.yaml", pid) == {"port": 9001}
        assert read(tmp_path / "a.yaml", pid) == {"port": 9001}


@as_root
def test_nobody_makes_the_agent_read_what_only_root_may(tmp_path):
    jail = tmp_path / "jail"
    (jail / "private").mkdir(parents=True)
    (jail / "private").chmod(0o700)
    (jail / "private/secret.yaml").write_text("host: secret.internal")
    (jail / "a.yaml").symlink_to("/private/secret.yaml")
    (jail / "b.yaml").write_text("host: mine")
    with process(AS_NOBODY, jail, "/") as pid:
        assert PROC.real_user(pid) == (NOBODY, NOBODY)
        assert refusal("a.yaml", pid) == "it may not be read"
        assert read("b.yaml", pid) == {"host": "mine"}
    with process(IN_CHROOT, jail, "/") as pid:
        assert read("a.yaml", pid) == {"host": "secret.internal"}


def test_process_that_is_gone_is_told():
    with process(f"import sys; {WAIT}") as pid:
        pass
    assert refusal("a.yaml", pid) == "its process is gone"


def test_process_that_ends_meanwhile_is_told(tmp_path):
    class Ended(Proc):
        def path(self, pid, name):
            return str(tmp_path / f"{pid}/{name}")

    with pytest.raises(UnreadableFileError, match="may not be looked into"):
        read_config_file(Ended(), os.getpid(), "a.yaml")


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        (b"port: 9001 # why\n", {"port": 9001}),
        (b"\xef\xbb\xbfport: 9001\n", {"port": 9001}),
        (b'{"port": 9001}', {"port": 9001}),
        (b"headless: yes\nhost: null\n", {"headless": "yes", "host": None}),
        (b"a: &x {k: v}\nb: *x\n", {"a": {"k": "v"}, "b": {"k": "v"}}),
    ],
)
def test_yaml_is_read(tmp_path, content, keys):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    assert read(path) == keys


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 19))
MERGES = "m0: &m0 {k: v}\n" + "".join(
    f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 15)
)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it is not a mapping of keys"),
        (b"just text", "it is not a mapping of keys"),
        (b"- port\n", "it is not a mapping of keys"),
        (b"\xff\xfe", "it is not UTF-8 text"),
        (b"a: [1", "its line 1: not valid YAML: a '[' that opens here is not closed with ']'"),
        (b"a: 1\nport: 1\nport: 2\n", "its line 3: is written twice, first in line 2"),
        (b"a: \x1b[31m", "its line 1: contains the control character '\\x1b'"),
        (b"a: !!python/object:os.system x", "its line 1: YAML tags are not used here"),
        (b"[" * 60_000, "its line 1: nested deeper than 20 levels"),
        (BOMB.encode(), "values, aliases counted where they are used"),
        (MERGES.encode(), "values, aliases counted where they are used"),
        (b"#" * (MAX_CONFIG_FILE_BYTES + 1), "it is longer than 65536 bytes"),
    ],
)
def test_what_is_no_configuration_is_told_in_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    assert sentence in refusal(path)


def test_no_sentence_repeats_what_the_file_holds(tmp_path):
    path = tmp_path / "a.yaml"
    for content in ("sk1: 1\nsk1: 2", "sk1: *sk1", "!sk1 sk1", "sk1: [sk1", "<<: sk1", "sk1: @sk1"):
        path.write_text(content)
        assert "sk1" not in refusal(path)


TEXTS = st.text("ab:-[]{}&*!|>%@`'\"#,? \n\t<\x00\u2028é", max_size=60).map(str.encode)


@given(st.one_of(st.binary(max_size=60), TEXTS))
def test_any_content_gives_keys_or_a_sentence(content):
    with suppress(UnreadableFileError):
        assert isinstance(vllm_config_file._parse(content), dict)


def test_yaml_is_imported_only_for_a_file():
    code = (
        "import sys, vllm_agent.host.vllm_argv, vllm_agent.host.vllm_config_file; "
        "sys.exit('yaml' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
