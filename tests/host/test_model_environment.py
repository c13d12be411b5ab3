"""The variables of real processes, and what huggingface_hub and vLLM make of them."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.host.model_environment import (
    MAX_ENVIRON_BYTES,
    MAX_VALUE_CHARACTERS,
    UNUSABLE,
    ModelEnvironment,
    _values,
    read_environ,
)
from vllm_agent.host.proc import Proc

PROC = Proc()
NOBODY = 65534
WAIT = "import sys; print(flush=True); sys.stdin.read()"
CANARY = "hf_canarycanarycanary"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change to another user")


@contextmanager
def process(environment, code=WAIT, **more):
    """Run Python code that waits with this environment, once it has said that it is ready."""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        **more,
    ) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        try:
            assert started.stdout.readline() == b"\n"
            yield started.pid
        finally:
            started.stdin.close()


def block_of(environment) -> bytes:
    return b"".join(os.fsencode(f"{name}={value}\0") for name, value in environment.items())


def parse(block: bytes, folder: str | None = "/srv") -> ModelEnvironment:
    return ModelEnvironment._of(_values(block), folder)


def of(folder: str | None = "/srv", **environment) -> ModelEnvironment:
    return parse(block_of(environment), folder)


def test_handful_is_kept_and_nothing_else():
    environment = {
        "HOME": "/home/x",
        "HF_HOME": "/hf",
        "HF_HUB_CACHE": "/hub",
        "HUGGINGFACE_HUB_CACHE": "/old",
        "XDG_CACHE_HOME": "/xdg",
        "HF_ENDPOINT": f"https://user:{CANARY}@hub.internal:8443/{CANARY}?token={CANARY}",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "0",
        "VLLM_CACHE_ROOT": "/vllm",
        "HF_TOKEN": CANARY,
        "VLLM_API_KEY": CANARY,
    }
    with process(environment) as pid:
        seen = ModelEnvironment.read(PROC, pid)
    assert seen == ModelEnvironment(
        home="/home/x",
        hf_home="/hf",
        hf_hub_cache="/hub",
        xdg_cache_home="/xdg",
        hf_endpoint="https://hub.internal:8443",
        is_offline=True,
        vllm_cache_root="/vllm",
    )
    assert CANARY not in repr(seen)


def test_whole_block_is_given_but_not_kept():
    with process({"HF_TOKEN": CANARY, "A": "1"}) as pid:
        block = read_environ(PROC, pid)
    assert block is not None
    assert {b"HF_TOKEN=" + CANARY.encode(), b"A=1"} <= set(block.split(b"\0"))


def test_older_name_counts_where_the_newer_is_not_set():
    assert of(HUGGINGFACE_HUB_CACHE="/old").hub_cache == "/old"
    assert of(HUGGINGFACE_HUB_CACHE="/old", HF_HUB_CACHE="/new").hub_cache == "/new"


def test_first_of_two_values_counts_as_in_python():
    assert parse(b"HF_HOME=/a\0HF_HOME=/b\0").hf_home == "/a"


HOMES = [
    {"HOME": "/home/x"},
    {"HOME": "/home/x/"},
    {"HOME": "/"},
    {"HOME": ""},
    {"HOME": "/home/x", "XDG_CACHE_HOME": "/xdg"},
    {"HOME": "/home/x", "XDG_CACHE_HOME": "/xdg/"},
    {"HOME": "/home/x", "XDG_CACHE_HOME": ""},
    {"HOME": "/home/x", "HF_HOME": "/hf"},
    {"HOME": "/home/x", "HF_HOME": ""},
    {"HOME": "/home/x", "HF_HOME": "~/hf"},
    {"HOME": "/home/x/", "HF_HOME": "~"},
    {"HOME": "/home/x", "HF_HOME": "$HOME/hf"},
    {"HOME": "/home/x", "XDG_CACHE_HOME": "/xdg", "HF_HOME": "${XDG_CACHE_HOME}/hf"},
    {"HOME": "/home/x", "HF_HOME": "/hf$", "HF_HUB_CACHE": "$HF_HOME/hub-$-"},
    {"HOME": "/home/x", "HF_HOME": "relative/hf"},
    {"HOME": "/home/x", "HF_HUB_CACHE": "hub"},
    {"HOME": "relative"},
    {"HOME": "/home/x", "HUGGINGFACE_HUB_CACHE": "~/old"},
    {"HOME": "/home/x", "HF_HUB_CACHE": "", "HUGGINGFACE_HUB_CACHE": "/old"},
]

CONSTANTS = """
import importlib, json, os, sys
import huggingface_hub.constants as constants
for environment in json.load(sys.stdin):
    for name in list(os.environ):
        del os.environ[name]
    os.environ |= environment
    importlib.reload(constants)
    print(json.dumps([constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE]))
"""
FLAGS = [
    {"HF_HUB_OFFLINE": offline, "TRANSFORMERS_OFFLINE": old}
    for offline in ("", "0", "1", "yes", "On", "maybe")
    for old in ("", "0", "TRUE")
]


@pytest.fixture(scope="module")
def as_the_library_has_it(tmp_path_factory):
    """What huggingface_hub itself makes of each environment, started in the given folder."""
    folder = tmp_path_factory.mktemp("cwd")
    done = subprocess.run(
        [sys.executable, "-c", CONSTANTS],
        input=json.dumps([*HOMES, *FLAGS]),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return str(folder), answers[: len(HOMES)], answers[len(HOMES) :]


@pytest.mark.parametrize("index", range(len(HOMES)))
def test_cache_is_where_huggingface_hub_has_it(as_the_library_has_it, index):
    folder, answers, _ = as_the_library_has_it
    expected = os.path.normpath(Path(folder, answers[index][0]))
    seen = of(folder, **HOMES[index]).hub_cache
    assert seen is not None
    assert os.path.normpath(seen) == expected


@pytest.mark.parametrize("index", range(len(FLAGS)))
def test_offline_is_what_huggingface_hub_takes_for_it(as_the_library_has_it, index):
    _, _, answers = as_the_library_has_it
    assert of(**FLAGS[index]).is_offline is answers[index][1]


@pytest.mark.parametrize(
    "value",
    ["$USER/hf", "/hf/$HF_TOKEN", "${HF_ENDPOINT}", "~other/hf", "/a\nb", "/a\x1b", "/\u202ea"],
)
def test_what_cannot_be_told_is_unusable_and_not_the_default(value):
    seen = of(HOME="/home/x", HF_HOME=value, HF_ENDPOINT=f"http://{CANARY}@h", HF_TOKEN=CANARY)
    assert seen.hf_home == UNUSABLE
    assert seen.hub_cache is None


def test_bytes_that_are_no_text_are_unusable():
    assert parse(b"HOME=/home/x\0HF_HUB_CACHE=/a\xff\0").hub_cache is None


def test_length_of_a_value_is_bounded():
    assert of(HF_HOME="/" + "x" * (MAX_VALUE_CHARACTERS - 1)).hf_home != UNUSABLE
    assert of(HF_HOME="/" + "x" * MAX_VALUE_CHARACTERS).hf_home == UNUSABLE
    assert of(HOME="/" + "x" * 4000, HF_HOME="~/" + "y" * 4000).hf_home == UNUSABLE


def test_nothing_is_known_without_a_home():
    assert of(HF_HUB_OFFLINE="1").hub_cache is None
    assert of(HF_HUB_OFFLINE="1").compile_cache is None
    assert of(None, HF_HOME="relative").hub_cache is None


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HOME": "/home/x"}, "/home/x/.cache/vllm/torch_compile_cache"),
        ({"XDG_CACHE_HOME": "/xdg", "HOME": "/h"}, "/xdg/vllm/torch_compile_cache"),
        ({"VLLM_CACHE_ROOT": "/vllm", "HOME": "/h"}, "/vllm/torch_compile_cache"),
        ({"VLLM_CACHE_ROOT": "~/vllm", "HOME": "/h"}, "/h/vllm/torch_compile_cache"),
        ({"VLLM_CACHE_ROOT": "~user", "HOME": "/h"}, None),
    ],
)
def test_compile_cache_is_where_vllm_has_it(environment, folder):
    assert of(**environment).compile_cache == folder


@pytest.mark.parametrize(
    ("endpoint", "origin"),
    [
        ("https://hf-mirror.com", "https://hf-mirror.com"),
        ("http://[::1]:8080/x", "http://[::1]:8080"),
        (f"https://{CANARY}@h", "https://h"),
        (f"https://h#{CANARY}", "https://h"),
        ("file:///etc/passwd", None),
        ("http://[::1", None),
        ("http://" + "h" * MAX_VALUE_CHARACTERS, None),
        ("", None),
    ],
)
def test_endpoint_is_kept_without_what_may_be_secret(endpoint, origin):
    assert of(HF_ENDPOINT=endpoint).hf_endpoint == origin


def test_relative_path_is_below_the_working_directory(tmp_path):
    with process({"HF_HOME": "cache"}, cwd=tmp_path) as pid:
        seen = ModelEnvironment.read(PROC, pid)
    assert seen is not None
    assert seen.hub_cache == f"{tmp_path}/cache/hub"


def test_home_of_the_user_database_counts_where_none_is_set():
    with process({"A": "1"}) as pid:
        seen = ModelEnvironment.read(PROC, pid)
    home = pwd.getpwuid(os.getuid()).pw_dir
    assert seen is not None
    assert seen.hub_cache == f"{home}/.cache/huggingface/hub"


def test_what_is_longer_than_the_bound_is_not_read_on():
    # One string of an environment is at most 128 KiB.
    filling = {f"FILL{number}": "x" * 100_000 for number in range(MAX_ENVIRON_BYTES // 100_000)}
    with process(filling | {"HF_HOME": "/a"}) as pid:
        assert ModelEnvironment.read(PROC, pid) is not None
    with process(filling | {"MORE": "x" * 100_000, "HF_HOME": "/a"}) as pid:
        assert ModelEnvironment.read(PROC, pid) is None
        block = read_environ(PROC, pid)
    assert block is not None
    assert len(block) <= MAX_ENVIRON_BYTES
    assert block.endswith(b"x\0")


def test_process_that_is_gone_or_shows_nothing_is_unknown(tmp_path):
    with process({"HOME": "/"}) as pid:
        pass
    assert ModelEnvironment.read(PROC, pid) is None
    assert read_environ(PROC, pid) is None
    with process({}) as pid:
        assert ModelEnvironment.read(PROC, pid) is None
    started = subprocess.Popen(["true"])
    os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)
    assert ModelEnvironment.read(PROC, started.pid) is None
    started.wait()


@as_root
def test_process_of_somebody_else_is_unknown():
    code = f"""
import os, sys
from vllm_agent.host.model_environment import ModelEnvironment, read_environ
from vllm_agent.host.proc import Proc
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
pid = int(sys.argv[1])
print(ModelEnvironment.read(Proc(), pid), read_environ(Proc(), pid))
"""
    with process({"HOME": "/"}) as pid:
        done = subprocess.run(
            [sys.executable, "-c", code, str(pid)], capture_output=True, text=True, check=True
        )
    assert done.stdout == "None None\n"


NAMES = [
    b"HOME",
    b"HF_HOME",
    b"HF_HUB_CACHE",
    b"XDG_CACHE_HOME",
    b"HF_ENDPOINT",
    b"VLLM_CACHE_ROOT",
]
SIGNS = [b"=", b"\0", b"/", b"~", b"$", b"{", b"}", b"..", b"a", b"\xff", b"http://", b"@", b"["]
PIECES = st.sampled_from([*NAMES, *SIGNS])


@given(st.one_of(st.binary(max_size=100), st.lists(PIECES, max_size=40).map(b"".join)))
def test_any_block_gives_absolute_paths_or_nothing(block):
    seen = parse(block)
    paths = (seen.home, seen.hf_home, seen.hf_hub_cache, seen.xdg_cache_home, seen.vllm_cache_root)
    for path in paths:
        assert path is None or path == UNUSABLE or (path.startswith("/") and path.isprintable())
    for found in (seen.hub_cache, seen.compile_cache):
        assert found is None or found.startswith("/")


def test_the_environment_of_a_start_is_read_like_that_of_a_process():
    variables = {"HF_HOME": "$HOME/hf", "VLLM_CACHE_ROOT": "cache", "HF_HUB_OFFLINE": "1"}
    seen = ModelEnvironment.of_start(variables | {"SECRET": "x"}, "/srv", "/home/v")
    assert seen == ModelEnvironment(
        home="/home/v", hf_home="/home/v/hf", vllm_cache_root="/srv/cache", is_offline=True
    )
    given = ModelEnvironment.of_start({"HOME": "/root"}, "/", "/home/v")
    assert given.home == "/root"
    assert ModelEnvironment.of_start({}, "/", None) == ModelEnvironment()
    assert ModelEnvironment.of_start({"HF_HOME": "/\udcff"}, "/", None).hf_home == UNUSABLE
    assert ModelEnvironment.of_start({"HF_HOME": "/\ud800"}, "/", None).hf_home == UNUSABLE
