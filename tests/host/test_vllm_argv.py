from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.host.vllm_argv import (
    MAX_ARGUMENTS,
    MAX_COUNT,
    MAX_SERVED_NAMES,
    MAX_SOCKET_PATH_LENGTH,
    MAX_TITLE_LENGTH,
    MAX_VALUE_LENGTH,
    is_main,
    parse_command,
    role_of,
)
from vllm_agent.host.vllm_flags import LISTS, OPTIONALS, SHORT, SINGLES, SWITCHES
from vllm_agent.observations import ComponentRole, VllmCommand

if TYPE_CHECKING:
    from collections.abc import Mapping

API, ENGINE, WORKER = ComponentRole.API_SERVER, ComponentRole.ENGINE_CORE, ComponentRole.WORKER
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def command(line: str, config: Mapping[str, object] | None = None) -> VllmCommand:
    """Parse what follows `vllm serve`; the file of `--config` holds `config`."""
    return parse_command(["vllm", "serve", *shlex.split(line)], lambda _: config or {})


def no_config(path: str) -> Mapping[str, object]:
    raise AssertionError(path)


MAINS = [
    # a shell, a virtual environment, conda, uv
    ("/usr/bin/python3 /usr/local/bin/vllm serve M", "M", 8000),
    ("python3 /usr/local/bin/vllm serve M --port 8001", "M", 8001),
    ("/opt/vllm/.venv/bin/python /opt/vllm/.venv/bin/vllm serve M --port=8001", "M", 8001),
    ("/opt/conda/envs/llm/bin/python3.11 /opt/conda/envs/llm/bin/vllm serve M", "M", 8000),
    ("/home/op/.uv/python/cpython-3.12/bin/python3.12 .venv/bin/vllm serve M", "M", 8000),
    ("pypy3 /usr/local/bin/vllm serve M", "M", 8000),
    # NixOS
    ("/nix/store/x-python3/bin/python3.12 /nix/store/x-vllm/bin/.vllm-wrapped serve M", "M", 8000),
    # the script itself, or a bare name (an embedded interpreter)
    ("/usr/local/bin/vllm serve M", "M", 8000),
    ("vllm serve M", "M", 8000),
    ("vllm serve", None, 8000),
    # the official images: 0.12 and newer, 0.11
    ("/usr/bin/python3 /usr/local/bin/vllm serve --model M --host 0.0.0.0", "M", 8000),
    ("python3 -m vllm.entrypoints.openai.api_server --model M --port 8001", "M", 8001),
    # Kubernetes manifests, KServe, other images
    ("python3 -m vllm.entrypoints.openai.api_server --port=8001 --model=/mnt/models",
     "/mnt/models", 8001),
    ("python -u -m vllm.entrypoints.openai.api_server --model M", "M", 8000),
    ("python -um vllm.entrypoints.openai.api_server --model M", "M", 8000),
    ("python -mvllm.entrypoints.openai.api_server --model M", "M", 8000),
    ("python -X faulthandler -I -m vllm.entrypoints.openai.api_server --model M", "M", 8000),
    ("python -Xdev -OO -Wignore -W error -m vllm.entrypoints.openai.api_server", None, 8000),
    ("python --check-hash-based-pycs never -bb -m vllm.entrypoints.cli.main serve M", "M", 8000),
    ("python -m vllm.entrypoints.launchers.api_server.entry --model M", "M", 8000),
    ("python -m vllm.entrypoints.cli.main serve M --port 8001", "M", 8001),
    ("python -u -- /usr/local/bin/vllm serve M", "M", 8000),
    ("python /src/vllm/entrypoints/openai/api_server.py --model M --port 8001", "M", 8001),
    ("python vllm/entrypoints/openai/api_server.py --model M", "M", 8000),
    ("python /src/vllm/entrypoints/cli/main.py serve M", "M", 8000),
    # no engine, but an API with health, models and metrics
    ("python3 /usr/local/bin/vllm launch render M --port 8100", "M", 8100),
    # no HTTP of its own
    ("vllm serve M --headless --data-parallel-address 10.0.0.1", "M", 8000),
    ("vllm serve M -dpm -dp 8 -dpl 4 --port 9000", "M", 9000),
    # delegates to vllm-omni, which serves the same API
    ("vllm serve M --omni", "M", 8000),
    # a restored snapshot
    ("python -m vllm.snapshot.server --ready-file r --release-file s -- M --port 8001", "M", 8001),
]  # fmt: skip


@pytest.mark.parametrize(("line", "model", "port"), MAINS)
def test_main_process_is_recognised_in_each_shape(line, model, port):
    arguments = shlex.split(line)
    assert is_main(arguments)
    parsed = parse_command(arguments, no_config)
    assert (parsed.model, parsed.port) == (model, port)


@pytest.mark.parametrize(
    "line",
    [
        # wrappers: the server is a child of theirs
        "bash -c 'vllm serve M'",
        "/bin/sh /usr/local/bin/vllm serve M",
        "sudo vllm serve M",
        "sudo -u vllm /usr/bin/python3 /usr/local/bin/vllm serve M",
        "uv run vllm serve M",
        "tini -- vllm serve M",
        "/usr/bin/dumb-init -- python3 -m vllm.entrypoints.openai.api_server",
        "docker run --gpus all vllm/vllm-openai --model M",
        "python /opt/conda/bin/conda run -n llm vllm serve M",
        "python -m debugpy --listen 5678 /usr/local/bin/vllm serve M",
        "numactl -N 0 python3 /usr/local/bin/vllm serve M",
        "systemd-run --user vllm serve M",
        "nsys profile vllm serve M",
        "screen -S llm vllm serve M",
        # that only speak of it
        "grep vllm serve",
        "vim vllm serve",
        "tail -f vllm.log",
        "less /usr/local/bin/vllm serve",
        "python script.py vllm serve",
        "python vllm.py serve",
        "python /srv/api_server.py --model M",
        "python /srv/my_vllm/entrypoints/openai/api_server.py",
        "python -m http.server vllm serve",
        "python -c 'import vllm' vllm serve",
        "python - vllm serve",
        "python3 -i",
        "pythonista -m vllm.entrypoints.openai.api_server_not",
        # other commands
        "vllm",
        "vllm bench serve --model M",
        "vllm chat --url http://127.0.0.1:8000/v1",
        "vllm complete",
        "vllm collect-env",
        "vllm run-batch -i in.jsonl -o out.jsonl --model M",
        "vllm preload M",
        "vllm launch",
        "vllm launch other M",
        # these end by themselves; the restored process goes on without them
        "vllm snapshot create M --snapshot-dir d",
        "vllm snapshot inspect d",
        "vllm snapshot restore d --port 8001",
        "vllm --version",
        "vllm --help",
        "vllm serve --help",
        "vllm serve -h",
        "vllm serve --help=ModelConfig",
        "vllm serve M --help=all",
        "python -m vllm.entrypoints.openai.api_server --help",
        # no HTTP
        "vllm serve M --grpc",
        "python -m vllm.entrypoints.grpc_server --model M",
        # children
        "VLLM::EngineCore",
        "python -c 'from multiprocessing.spawn import spawn_main' --multiprocessing-fork",
        "python -c 'from multiprocessing.resource_tracker import main;main(43)'",
        "vllm-rs frontend --listen-fd 7 --args-json {}",
    ],
)
def test_nothing_else_is_a_main_process(line):
    arguments = shlex.split(line)
    assert not is_main(arguments)


@pytest.mark.parametrize(
    "arguments", [[], [""], ["", ""], ["python"], ["python", ""], ["vllm", ""]]
)
def test_short_lines_are_no_main_process(arguments):
    assert not is_main(arguments)
    assert parse_command(arguments, no_config) == VllmCommand()


LINES: list[tuple[str, dict[str, Any]]] = [
    # the model
    ("M", {"model": "M"}),
    ("--model M", {"model": "M"}),
    ("--model=M", {"model": "M"}),
    ("--port 8001 M", {"model": "M", "port": 8001}),
    ("--enforce-eager M", {"model": "M"}),
    ("--no-enable-prefix-caching M --port 8001", {"model": "M", "port": 8001}),
    ("--port 8001 -- M", {"model": "M", "port": 8001}),
    ("M --model N", {"model": "N"}),
    ("--model M --port 8001 --model N", {"model": "M", "port": 8001}),
    ("--hf-token hf_1 M", {"model": "M"}),
    ("--hf-token --port 8001 M", {"model": "M", "port": 8001}),
    # one name, several, the last ones
    ("M --served-model-name a", {"model": "M", "served_names": ("a",)}),
    ("M --served-model-name a b c --port 8001", {"served_names": ("a", "b", "c"), "port": 8001}),
    ("M --served-model-name a b", {"served_names": ("a", "b")}),
    ("M --served_model_name=a --port 8001", {"served_names": ("a",)}),
    ("--served-model-name=a M", {"served_names": ("a",), "model": "M"}),
    ("--served-model-name a M", {"served_names": ("a", "M"), "model": None}),
    ("M --served-model-name a b --served-model-name c", {"served_names": ("c",)}),
    ("M --served-model-name", {"served_names": ()}),
    ("M --served-model-name ''", {"served_names": ()}),
    # where it listens
    ("M --port 8001", {"port": 8001}),
    ("M --port=8001 --port 8002", {"port": 8002}),
    ("M --host 127.0.0.1", {"host": "127.0.0.1"}),
    ("M --host ::1", {"host": "::1"}),
    ("M --host 0.0.0.0", {"host": None}),
    ("M --host ::", {"host": None}),
    ("M --host ''", {"host": None}),
    ("M --host None", {"host": None}),
    ("M --uds /run/vllm.sock --port 8001", {"uds": "/run/vllm.sock", "port": 8001}),
    ("M --root-path /v", {"root_path": "/v"}),
    ("M --root_path=/v", {"root_path": "/v"}),
    ("M --ssl-keyfile k --ssl-certfile c", {"is_https": True}),
    ("M --ssl-keyfile k", {"is_https": False}),
    ("M --ssl-certfile=c", {"is_https": False}),
    ("M --ssl-certfile c --ssl-keyfile ''", {"is_https": False}),
    # what vLLM would refuse counts as not said
    ("M --port abc", {"port": 8000}),
    ("M --port 99999", {"port": 8000}),
    ("M --port 0", {"port": 8000}),
    ("M --port -1", {"port": 8000}),
    ("M --port", {"port": 8000}),
    ("M --port --host h", {"port": 8000, "host": "h"}),
    (f"M --port {'9' * 5000}", {"port": 8000}),
    ("M -dp x", {"engines": None}),
    (f"M -dp {MAX_COUNT + 1}", {"engines": None}),
    # abbreviations that only one flag can mean
    ("M --served a --por 8001", {"served_names": ("a",), "port": 8001}),
    ("M --tensor-par 2 --data-parallel-size-l 2 --hos h", {"engines": 2, "host": "h"}),
    ("M --headles", {"is_headless": True}),
    ("M --ssl-k=k --ssl-certf=c", {"is_https": True}),
    ("M --data-parallel-s 4", {"engines": 1}),  # -size, -size-local, -start-rank, -supervisor-port
    ("M -n2", {"engines": None}),
    ("M -as 2", {"api_servers": 2}),
    # of flags that are not known, no value passes for another
    ("--not-yet-known 1 --port 8001", {"model": None, "port": 8001}),
    ("--not-yet-known=1 M", {"model": "M"}),
    ("--not-yet-known a M", {"model": None}),
    # JSON and levels
    ("M --compilation-config.level 3 --port 8001", {"model": "M", "port": 8001}),
    ("--compilation_config.pass_config.x=1 M", {"model": "M"}),
    ("--speculative-config.model org/draft M", {"model": "M"}),
    ("-cc.level 3 M", {"model": "M"}),
    ("-O3 M", {"model": "M"}),
    ("-O 3 M", {"model": "M"}),
    ("-O.level=3 M", {"model": "M"}),
    ("""M --override-generation-config '{"temperature": 1}' --port 8001""", {"port": 8001}),
    ("M --host=10.1.2.3", {"host": "10.1.2.3"}),
    ("--max-model-len -1 M", {"model": "M"}),
    ("--chat-template '--x y' M", {"model": "M"}),
    # engines and API servers of this node
    ("M", {"engines": 1, "api_servers": 1}),
    ("M -tp 8 -pp 2", {"engines": 1, "api_servers": 1}),
    ("M -dp 4", {"engines": 4, "api_servers": None}),
    ("M -dp=4 -asc=2", {"engines": 4, "api_servers": 2}),
    ("M -dp 4 --api-server-count 1", {"engines": 4, "api_servers": 1}),
    ("M -dp 4 --enable-elastic-ep", {"engines": 4, "api_servers": 1}),
    ("M -dp 8 -dpl 4 -dph", {"engines": 4, "api_servers": None}),
    ("M -dp 8 -dpl 4 -dpr 4 -asc 4", {"engines": 4, "api_servers": 4}),
    ("M -dp 8 -dpl 0", {"engines": 0}),
    ("M -dp 8 -dpn 3", {"engines": 1, "api_servers": 1}),
    ("M -dp 8 --data-parallel-external-lb", {"engines": 1, "api_servers": 1}),
    ("M -dp 8 -dpe --no-data-parallel-external-lb", {"engines": 8}),
    ("M -dp 8 -dpb ray -dpa 10.0.0.1 -dpp 13345", {"engines": None}),
    ("M --nnodes 2 --node-rank 1 -tp 16 --headless", {"engines": None, "api_servers": 0}),
    ("M --nnodes 1", {"engines": 1}),
    (
        "M --headless -dp 8 -dpl 4 -dpr 4",
        {"is_headless": True, "engines": 4, "api_servers": 0},
    ),
    ("M -asc 0", {"is_headless": True, "api_servers": 0}),
    ("M --headless --no-headless", {"is_headless": False}),
    ("M --enable-headless", {"is_headless": True}),  # 0.33
    ("M --disable-headless", {"is_headless": False}),
    (
        "M -dpm -dp 8 -dpl 4 --port 9000 --data-parallel-supervisor-port 9256",
        {"is_supervisor": True, "engines": 4, "api_servers": 4, "port": 9000},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_flags_are_read_as_vllm_reads_them(line, expected):
    parsed = command(line)
    assert {name: getattr(parsed, name) for name in expected} == expected


def test_module_has_one_api_server_and_no_positional_model():
    line = "python -m vllm.entrypoints.openai.api_server X --headless -dp 4 -dpm --model M"
    parsed = parse_command(line.split(), no_config)
    assert (parsed.model, parsed.engines, parsed.api_servers) == ("M", 4, 1)
    assert not parsed.is_headless
    assert not parsed.is_supervisor


def test_render_server_has_no_engine_and_reads_no_file():
    line = "vllm launch render M --config a.yaml --port 8100"
    parsed = parse_command(line.split(), no_config)
    assert parsed == VllmCommand(model="M", port=8100, engines=0, api_servers=1)


FILE = {
    "model": "F",
    "port": 9001,
    "served_model_name": ["a", "b"],
    "data-parallel-size": 2,
    "headless": False,
    "compilation-config": {"level": 3},
    "uvicorn-log-level": "info",
}


@pytest.mark.parametrize(
    ("line", "config", "expected"),
    [
        ("--config f.yaml", FILE, {"model": "F", "port": 9001, "served_names": ("a", "b")}),
        ("--config f.yml", FILE, {"model": "F", "engines": 2, "config_file": "f.yml"}),
        ("M --config f.yaml --port 8001", FILE, {"model": "M", "port": 8001, "engines": 2}),
        ("M --port 8001 --config f.yaml", FILE, {"model": "M", "port": 8001}),
        ("--model M --config f.yaml", FILE, {"model": "M"}),
        ("--port 8001 --config f.yaml", FILE, {"model": "F", "port": 8001}),
        ("M --config=f.yaml", FILE, {"port": 8000, "config_file": None}),
        ("M --conf f.yaml", FILE, {"port": 8000, "config_file": None}),
        ("M --config f.json", FILE, {"port": 8000, "config_file": "f.json"}),
        ("M --config", FILE, {"port": 8000, "config_file": None}),
        ("M --config f.yaml", {"headless": True}, {"is_headless": True}),
        ("M --config f.yaml", {"headless": "yes"}, {"is_headless": True}),
        ("M --config f.yaml", {"headless": "Off"}, {"is_headless": False}),
        ("M --config f.yaml --no-headless", {"headless": True}, {"is_headless": False}),
        ("M --config f.yaml", {"port": "9001"}, {"port": 9001}),
        ("M --config f.yaml", {"host": None, "uds": None}, {"host": None, "uds": None}),
        ("M --config f.yaml", {"served-model-name": 7}, {"served_names": ("7",)}),
        ("M --config f.yaml", {"served-model-name": []}, {"served_names": ()}),
        ("M --config f.yaml", {"port": {"a": 1}}, {"port": 8000}),
        ("M --config f.yaml", {"port": 10**5000}, {"port": 8000}),
        ("M --config f.yaml", {"api-key": ["sk", "sk"]}, {"model": "M", "served_names": ()}),
        ("--config f.yaml M", {"api-key": ["sk", "sk"]}, {"model": None}),
    ],
)
def test_file_stands_behind_the_line(line, config, expected):
    parsed = command(line, config)
    assert {name: getattr(parsed, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("M", (None, None, None, False)),
        ("M --download-dir /d --revision v2 --load-format dummy", ("/d", "v2", "dummy", False)),
        ("M --download_dir=../d --load fastsafetensors", ("../d", None, "fastsafetensors", False)),
        ("M --revision a --revision refs/pr/1", (None, "refs/pr/1", None, False)),
        ("M --download-dir None --load-format=", (None, None, None, False)),
        ("M --code-revision x --tokenizer-revision y", (None, None, None, False)),
        ("--enforce-eager M", (None, None, None, True)),
        ("M --enforce_eager", (None, None, None, True)),
        ("M --enforce-eager --no-enforce-eager", (None, None, None, False)),
        ("M --disable-enforce-eager", (None, None, None, False)),
        ("M -O0", (None, None, None, True)),
        ("M -O 0", (None, None, None, True)),
        ("M -O3", (None, None, None, False)),
        ("M -O0 -O2", (None, None, None, False)),
        ("M --optimization-level 0", (None, None, None, True)),
        ('M --compilation-config {"mode":0}', (None, None, None, False)),
    ],
)
def test_what_is_loaded_and_how(line, expected):
    parsed = command(line)
    loaded = (parsed.download_dir, parsed.revision, parsed.load_format, parsed.is_eager)
    assert (parsed.model, loaded) == ("M", expected)


def test_what_is_loaded_can_stand_in_the_file():
    config = {"download_dir": "/d", "revision": "v2", "load-format": "hf", "enforce_eager": True}
    parsed = command("M --config f.yaml", config)
    assert (parsed.download_dir, parsed.revision, parsed.load_format) == ("/d", "v2", "hf")
    assert parsed.is_eager
    assert not command("M --config f.yaml --no-enforce-eager", config).is_eager
    assert command("M --config f.yaml", {"enforce-eager": "yes"}).is_eager


def test_file_is_asked_for_as_the_process_wrote_it():
    asked = []

    def read_config(path: str) -> Mapping[str, object]:
        asked.append(path)
        return {}

    parsed = parse_command(["vllm", "serve", "--config", "../a\udcff.yaml"], read_config)
    assert asked == ["../a\udcff.yaml"]
    assert parsed.config_file == "../a\ufffd.yaml"


@pytest.mark.parametrize(
    "line",
    [
        "M --api-key sk-1 sk-2 --hf-token sk-3",
        "--api-key sk-1 sk-2 --port 8001",
        "--api-key=sk-1 --hf-token=sk-3",
        "--api sk-1 sk-2",  # two flags begin so: vLLM ends, but only after some seconds
        "--api-keys sk-1 sk-2 --future-token sk-3",
        "--speculative-config.token sk-1 --hf_tok sk-3 --api_k sk-1 sk-2",
        "-apikey sk-1 sk-2",
        "M -- sk-1",
        "M sk-1 sk-2",
        '--default-chat-template-kwargs {"k":"sk-1"} --middleware sk-1',
    ],
)
def test_no_secret_is_kept(line):
    assert "sk-" not in repr(command(line))


def test_values_are_bounded():
    long = "n" * (MAX_VALUE_LENGTH + 1)
    assert command(long[1:]).model == long[1:]
    assert command(long) == VllmCommand(engines=1, api_servers=1)
    parsed = command(f"M --host {long} --root-path {long} --served-model-name {long} b")
    assert (parsed.host, parsed.root_path, parsed.served_names) == (None, "", ("b",))
    assert command(f"M --uds {long[:MAX_SOCKET_PATH_LENGTH]}").uds is not None
    assert command(f"M --uds {long[: MAX_SOCKET_PATH_LENGTH + 1]}").uds is None
    names = " ".join(f"n{number}" for number in range(100))
    assert len(command(f"M --served-model-name {names}").served_names) == MAX_SERVED_NAMES
    assert command("M " + "--seed " * MAX_ARGUMENTS + "--port 8001").port == 8000
    assert (
        command("M --config a.yaml", {f"k{n}": n for n in range(9000)} | {"port": 1}).port == 8000
    )


def test_values_are_fit_for_a_terminal():
    line = ["vllm", "serve", "a\x1b[31m\n\u202eb\udcff é", "--host", "h\t"]
    parsed = parse_command(line, no_config)
    assert parsed.model == "a\ufffd[31m\ufffd\ufffdb\ufffd é"
    assert parsed.host == "h\ufffd"


def test_tables_of_flags_are_sound():
    kinds = (SWITCHES, LISTS, OPTIONALS, SINGLES)
    assert sum(map(len, kinds)) == len(frozenset().union(*kinds))
    assert set(SHORT.values()) <= frozenset().union(*kinds)
    assert not any(
        "_" in name or name.startswith(("-", "no-")) for name in frozenset().union(*kinds)
    )


# Pieces that make lines which get far, and any text between.
PIECES = st.sampled_from(
    shlex.split(
        "python python3 -m -u -X -c vllm /usr/bin/vllm serve launch render -- - --config a.yaml"
        " vllm.entrypoints.openai.api_server vllm.snapshot.server --port --port=1 -O -O3 -dp -dp=2"
        " --served-model-name --a.b --a.b=1 -cc.x --model --model= --model=x -asc 0 --api- -n2 -="
        " --host= --="
    )
)
ARGUMENTS = st.lists(st.one_of(PIECES, st.text(st.characters(), max_size=8)), max_size=12)
CONFIGS = st.dictionaries(
    st.one_of(PIECES, st.text(max_size=8)),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner)),
        max_leaves=4,
    ),
    max_size=5,
)


@given(ARGUMENTS, CONFIGS)
def test_any_line_is_read(arguments, config):
    role_of(arguments)
    is_main(arguments)
    for line in (arguments, ["vllm", "serve", *arguments], ["python", "-m", *arguments]):
        parsed = parse_command(line, lambda _: config)
        assert 1 <= parsed.port <= 65535
        texts = (parsed.model, parsed.host, parsed.uds, parsed.config_file, *parsed.served_names)
        assert all(text is None or (text and text.isprintable()) for text in texts)


@given(st.lists(st.sampled_from(["--port", "--host", "--served-model-name"]), unique=True))
def test_order_of_flags_does_not_matter(order):
    values = {"--port": "8001", "--host": "h", "--served-model-name": "a b"}
    parsed = command("M " + " ".join(f"{flag} {values[flag]}" for flag in order))
    assert parsed.port == (8001 if "--port" in order else 8000)
    assert parsed.host == ("h" if "--host" in order else None)
    assert parsed.served_names == (("a", "b") if "--served-model-name" in order else ())


@pytest.mark.parametrize(
    ("title", "role"),
    [
        ("VLLM::EngineCore", (ENGINE, "")),
        ("VLLM::EngineCore_DP1", (ENGINE, "dp1")),
        ("VLLM::EngineCore_0", (ENGINE, "0")),
        ("VLLM::Worker", (WORKER, "")),
        ("VLLM::Worker_TP0", (WORKER, "tp0")),
        ("VLLM::Worker_PP1_TP0", (WORKER, "pp1_tp0")),
        ("VLLM::Worker_DP0_PP1_TP0_EP0", (WORKER, "dp0_pp1_tp0_ep0")),
        ("VLLM::Worker_DP0_PP1_PCP0_TP3_DCP1_EP7", (WORKER, "dp0_pp1_pcp0_tp3_dcp1_ep7")),
        ("VLLM::APIServer_0", (API, "0")),
        ("VLLM::APIServer_DP0", (API, "dp0")),
        ("llama::EngineCore", (ENGINE, "")),
        ("team a::llama::Worker_TP1", (WORKER, "tp1")),
        ("::EngineCore", (ENGINE, "")),
        ("VLLM::DPCoordinator", None),
        ("VLLM::EngineCor", None),
        ("VLLM::Worker_", None),
        ("VLLM::Worker_TP", None),
        ("VLLM::Worker_tp0", None),
        ("VLLM::Worker_TP123456", None),
        ("VLLM::Worker" + "_TP0" * 9, None),
        ("VLLM::Workers", None),
        ("VLLM::EngineCore extra", None),
        ("EngineCore", None),
        ("ray::Worker", None),
        ("ray::RayWorkerWrapper.execute_method", None),
        ("sglang::scheduler_TP0", None),
        ("VLLM::", None),
        ("", None),
        ("p" * MAX_TITLE_LENGTH + "::Worker", None),
    ],
)
def test_titles_tell_role_and_rank(title, role):
    assert role_of([title]) == role


def test_only_a_title_or_the_rust_frontend_tells_a_role():
    rust = ["/usr/lib/vllm/vllm-rs", "frontend", "--listen-fd", "7", "--args-json", "{}"]
    assert role_of(rust) == (API, "")
    assert role_of(["vllm-rs", "frontend"]) == (API, "")
    for arguments in ([], ["vllm-rs"], ["vllm-rs", "bench"], ["x", "frontend"], rust[1:]):
        assert role_of(arguments) is None
    assert role_of(["VLLM::Worker", "x"]) is None
    assert role_of(["vllm", "serve", "VLLM::Worker"]) is None


def test_longest_lines_cost_milliseconds():
    hostile = ["vllm", "serve", *(f"--s{n}" for n in range(30_000))]
    nested = ["vllm", "serve", *(["--served-model-name"] + ["a"] * 50) * 600]
    start = time.perf_counter()
    for line in (hostile, nested):
        assert is_main(line)
        parse_command(line, no_config)
    print(f"both: {(time.perf_counter() - start) * 1e3:.1f} ms")


def test_time_per_process_is_printed():
    lines = [
        "/usr/lib/systemd/systemd --switched-root --system",
        "[kworker/0:1]",
        "/usr/bin/bash -c 'vllm serve M'",
        "/usr/bin/python3 /usr/bin/networkd-dispatcher --run-startup-triggers",
        "python -c 'from multiprocessing.spawn import spawn_main' --multiprocessing-fork",
        "VLLM::Worker_TP0",
        "/usr/bin/python3 /usr/local/bin/vllm serve M --port 8000",
    ]
    for line in lines:
        arguments = shlex.split(line)
        best = min(_seconds(arguments) for _ in range(5))
        print(f"{best * 1e9:6.0f} ns  {line}")


def _seconds(arguments: list[str], times: int = 2000) -> float:
    start = time.perf_counter()
    for _ in range(times):
        is_main(arguments)
    return (time.perf_counter() - start) / times


AWS_SECRET = "wJalr/UtnFEMI+K7MDENGbPxRfiCYEXAMPLEKEY0"
SECRETS = ("AKIAIOSFODNN7EXAMPLE", AWS_SECRET, "hunter2", "topsecret", "canary-7f3a9c", "EMPTY")


@pytest.mark.parametrize(
    ("line", "field", "shown"),
    [
        (f"s3://AKIAIOSFODNN7EXAMPLE:{AWS_SECRET}@bucket/model", "model",
         "s3://[redacted]@bucket/model"),
        ("--model=s3://u:hunter2@bucket/model", "model", "s3://[redacted]@bucket/model"),
        ("M --served-model-name https://u:hunter2@h/m?token=X&x=1 name", "served_names",
         ("https://[redacted]@h/m?token=[redacted]&x=1", "name")),
        ("M --root-path http://u:hunter2@x/", "root_path", "http://[redacted]@x/"),
        ("M --download-dir s3://u:hunter2@x/", "download_dir", "s3://[redacted]@x/"),
        ("M --revision https://h?sig=topsecret", "revision", "https://h?sig=[redacted]"),
        ("M --config https://u:hunter2@h/x", "config_file", "https://[redacted]@h/x"),
        ("M --load-format https://u:hunter2@h/x", "load_format", "https://[redacted]@h/x"),
        ("M --api-key canary-7f3a9c --served-model-name canary-7f3a9c", "served_names",
         ("[redacted]",)),
        ("M --api-key EMPTY --served-model-name EMPTY", "served_names", ("[redacted]",)),
        ("/models/canary-7f3a9c/x --hf-token=canary-7f3a9c", "model", "/models/[redacted]/x"),
    ],
)  # fmt: skip
def test_no_secret_of_the_line_is_in_what_is_kept(line, field, shown):
    parsed = parse_command(["vllm", "serve", *line.split()], lambda _: {})
    assert getattr(parsed, field) == shown
    assert not any(secret in repr(parsed) for secret in SECRETS)


def test_a_secret_of_the_config_file_is_known_too():
    config = {"served-model-name": "canary-7f3a9c", "api-key": ["canary-7f3a9c"]}
    assert command("M --config x.yaml", config).served_names == ("[redacted]",)


name_parts = st.text(
    st.sampled_from("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+~ä"),
    max_size=40,
)
hashes = st.text(st.sampled_from("0123456789abcdef"), min_size=32, max_size=64)
ordinary_names = st.one_of(
    st.sampled_from(
        [LLAMA, "/models/x", "org/name:Q4_K_M", "qwen2.5-coder", "Qwen/Qwen3-0.6B", "~/models/x",
         "s3://bucket/model", "gs://bucket/a/b", "https://host:8000/m?x=1", "org/model@main",
         "/models/hf_checkpoints", "keyword-tokenizer", "sk-learn", "gpt-4o", "my model"]
    ),
    st.builds("/{}/{}/{}".format, name_parts, hashes, name_parts),
    st.builds("o{}/{}:Q4_K_M".format, name_parts, name_parts),
)  # fmt: skip


@given(ordinary_names)
def test_ordinary_names_stay_as_they_are(name):
    parsed = parse_command(
        ["vllm", "serve", name, "--api-key=canary-7f3a9c", f"--served-model-name={name}",
         f"--root-path={name}", f"--download-dir={name}", f"--revision={name}"],
        lambda _: {},
    )  # fmt: skip
    assert parsed.model == parsed.root_path == parsed.download_dir == parsed.revision == name
    assert parsed.served_names == (name,)
