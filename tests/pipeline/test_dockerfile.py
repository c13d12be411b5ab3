"""The Dockerfile, carried out in clean roots, and its image as docker-compose.yml runs it.

This machine's Python stands in for the base image, which cannot be had here.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tomllib
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.site import Site
from tests.pipeline import compose
from tests.pipeline.clean_root import PROGRAMS, User, may_mount
from tests.pipeline.compose import COMPOSE_FILE, ROOT, ROOT_FILE
from tests.pipeline.dockerfile import DockerfileError, Ignore, parse
from tests.pipeline.image import Builder, BuildError, Image
from tests.pipeline.processes import wait_until
from tests.pipeline.wheelhouse import pack
from vllm_agent import __version__
from vllm_agent.config.flags import DEFAULT_PORT
from vllm_agent.demo.launch import StandIn, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STAGES = parse((ROOT / "Dockerfile").read_text(encoding="utf-8"))
IGNORE = Ignore((ROOT / ".dockerignore").read_text(encoding="utf-8"))
REVISION = "0123456789abcdef0123456789abcdef01234567"
AGENT = "vllm-agent"
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "PIP_CONFIG_FILE": os.devnull}
STATE_FOLDER = "/var/lib/vllm-agent"

READY_SECONDS = 30.0
"""An agent needs one second; this ends a hang, as the others do."""
COMMAND_SECONDS = 60.0
STOP_SECONDS = 20.0

in_clean_root = [
    pytest.mark.needs(*PROGRAMS),
    # The first of them waits for the build: ten seconds, and a minute on a machine that is busy.
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        shutil.which("unshare") is not None and not may_mount(),
        reason="a clean root is made of mounts: only root may, and not in each container",
    ),
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image, built from the checkout and from what is installed in this environment."""
    folder = tmp_path_factory.mktemp("image")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheels = folder / "wheels"
    wheels.mkdir()
    needed = ["pip", *project["build-system"]["requires"], *project["project"]["dependencies"]]
    pack(needed, wheels)
    context = folder / "context"
    for path in IGNORE.files(ROOT):
        (context / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, context / path)
    yield Builder(
        folder=folder,
        context=context,
        arguments={"REVISION": REVISION},
        environment=OFFLINE,
        shown=[(wheels, "/wheels")],
    ).build(STAGES)
    # pytest keeps the folders of three runs, and this is as large as an image.
    shutil.rmtree(folder)


class Service:
    """A service of docker-compose.yml, run from the image on a port of its own."""

    def __init__(self, image: Image, folder: Path, *files: Path, name: str = AGENT) -> None:
        project = compose.read(COMPOSE_FILE, *files)
        self.port = free_port()
        self.definition: dict[str, Any] = project["services"][name]
        self.log = folder / "log"
        self._image = image
        self._root = image.root
        for mount in compose.mounts(project):
            if mount.service == name and mount.source.exists():
                self._root = self._root.seeing(mount.source, str(mount.target))
        self._volumes = {}
        for path in image.volumes:
            volume = self._volumes[path] = folder / path.strip("/").replace("/", "-")
            # An engine gives a new volume the owner and the mode of what it covers.
            covered = (image.root.folder / path.lstrip("/")).stat()
            volume.mkdir()
            os.chown(volume, covered.st_uid, covered.st_gid)
            volume.chmod(covered.st_mode)

    def show(self, outside: Path, inside: str) -> None:
        """Has it see another file, in place of what it saw there."""
        self._root = self._root.seeing(outside, inside)

    def command(self, *words: str, **how: Any) -> list[str]:
        """The command line of a program in the container."""
        assert self.definition["read_only"] is True
        return self._root.command(
            [word.replace(str(DEFAULT_PORT), str(self.port)) for word in words],
            environment=self._image.environment,
            work_folder=self._image.work_folder,
            user=self._user(),
            volumes=self._volumes,
            memory=self.definition["tmpfs"],
            is_sealed=True,
            **how,
        )

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a program in the container to its end."""
        return subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
            stdin=subprocess.DEVNULL,
        )

    @contextlib.contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        """The service itself, ready; ends it."""
        words = [*self._image.entrypoint, *self.definition["command"]]
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                self.command(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            wait_until(lambda: self._is_ready(process), "the agent is ready", READY_SECONDS)
            yield process
        finally:
            process.kill()
            process.wait()

    def get(self, path: str) -> str:
        """What the agent answers."""
        url = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(url, timeout=READY_SECONDS) as response:
            return str(response.read().decode())

    def _is_ready(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, self.log.read_text(encoding="utf-8")
        try:
            return bool(self.get("/-/ready"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def _user(self) -> User:
        kept = tuple(self.definition.get("cap_add", ()))
        assert self.definition["cap_drop"] == ["ALL"]
        if (said := self.definition.get("user")) is None:
            return User(self._image.user.uid, self._image.user.gid, kept)
        uid, _, gid = said.partition(":")
        return User(int(uid), int(gid), kept)


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


class TestReading:
    """The Dockerfile and .dockerignore as they are read here."""

    def test_lines_are_joined_and_comments_left_out(self):
        [stage] = parse("# one\nFROM base AS first\nRUN a \\\n  # two\n\n  && b\nENV X=1 Y='2 3'\n")
        assert (stage.base, stage.name) == ("base", "first")
        assert re.sub(r"\s+", " ", stage.values("RUN")[0]) == "a && b"
        assert stage.instructions[0].line == 3
        assert stage.instructions[1].pairs({}) == {"X": "1", "Y": "2 3"}

    def test_variables_are_those_from_before(self):
        [stage] = parse("FROM base\nENV PATH=/a:$PATH Z=${X}z\n")
        assert stage.instructions[0].pairs({"PATH": "/b"}) == {"PATH": "/a:/b", "Z": "z"}

    def test_stages_without_a_name_are_numbered(self):
        assert [stage.name for stage in parse("FROM a\nFROM b AS c\nFROM d\n")] == ["0", "c", "2"]

    @pytest.mark.parametrize(
        "text",
        [
            "RUN a\n",
            "FROM a\nADD b c\n",
            "FROM a\nRUN <<E\nb\nE\n",
            "# syntax=docker/dockerfile:1\nFROM a\n",
            "FROM --platform=x a\n",
            "FROM a\nRUN b \\\n",
        ],
    )
    def test_what_is_not_known_is_refused(self, text):
        with pytest.raises(DockerfileError, match=r"line \d"):
            parse(text)

    @settings(database=None)
    @given(st.text(alphabet="FROMARGUNaz#=\\$\"' \n", max_size=80))
    def test_any_text_is_read_or_refused(self, text):
        with contextlib.suppress(DockerfileError):
            parse(text)

    @pytest.mark.parametrize(
        ("path", "is_out"),
        [
            ("other", True),
            ("src/a.py", False),
            ("src/a/__pycache__/a.pyc", True),
            ("alerts/rules.yml", False),
            ("alerts/rules.py", True),
            ("alerts/tests/down.yml", True),
        ],
    )
    def test_last_pattern_that_matches_decides(self, path, is_out):
        ignore = Ignore("# all\n*\n!src\n!alerts/*.yml\n**/__pycache__\n")
        assert ignore.leaves_out(path) is is_out


class TestFile:
    """What can be said of the Dockerfile without carrying it out."""

    def test_base_is_pinned_and_the_same_for_all_stages(self):
        [base] = {stage.base for stage in STAGES}
        assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base)

    def test_only_what_it_is_built_from_is_sent(self):
        sent = list(IGNORE.files(ROOT))
        tops = {path.split("/")[0] for path in sent}
        copied = [
            word
            for stage in STAGES
            for one in stage.instructions
            if one.keyword == "COPY" and not one.value.startswith("--from")
            for word in one.words[:-1]
        ]
        assert tops == {word.split("/")[0] for word in copied}
        assert {path.split("/")[0] for path in sent if path.endswith(".py")} == {"src"}
        assert not [path for path in sent if "__pycache__" in path]

    def test_nothing_of_pip_is_kept(self):
        said = " ".join(value for stage in STAGES for value in stage.values("ENV"))
        assert "PIP_NO_CACHE_DIR=1" in said


class TestImage:
    """The image that the steps make, and the agent in it."""

    pytestmark = in_clean_root

    def test_engine_is_told_what_it_is(self, image):
        assert image.user.uid > 0
        assert image.user.gid > 0
        assert image.entrypoint == ["vllm-agent"]
        assert image.volumes == [STATE_FOLDER]
        assert image.ports == [str(DEFAULT_PORT)]
        assert image.stop_signal == "SIGTERM"

    def test_labels_are_those_of_the_project(self, image):
        said = {
            name.removeprefix("org.opencontainers.image."): value
            for name, value in image.labels.items()
        }
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert said.pop("title") == project["name"]
        assert said.pop("version") == project["version"] == __version__
        assert said.pop("licenses") == project["license"]
        assert said.pop("revision") == REVISION
        assert said.pop("description") in project["description"]
        assert set(said) == {"url", "source", "documentation"}
        assert all(link.startswith(Site().repository_url) for link in said.values())

    def test_image_holds_the_agent_compiled_and_nothing_to_build_with(self, image):
        found = files_below(image.root.folder / "opt")
        assert not (image.root.folder / "source").exists()
        assert not [path for path in found if path.endswith(("/pip", "/pip3", "/hatchling"))]
        compiled = [
            path for path in found if re.search(r"/vllm_agent/__pycache__/agent\.\S+\.pyc$", path)
        ]
        assert len(compiled) == 1

    def test_state_folder_is_the_users_and_nobody_elses(self, image):
        state = (image.root.folder / STATE_FOLDER.lstrip("/")).stat()
        assert (state.st_uid, state.st_gid) == (image.user.uid, image.user.gid)
        assert state.st_mode & 0o007 == 0

    def test_root_folder_cannot_be_written(self, image, tmp_path):
        service = Service(image, tmp_path, ROOT_FILE)
        done = service.run("sh", "-c", f"touch /tmp/a {STATE_FOLDER}/a && touch /opt/a")
        assert "'/opt/a': Read-only file system" in done.stderr
        assert done.returncode != 0

    def test_version_is_told(self, image, tmp_path):
        done = Service(image, tmp_path).run(*image.entrypoint, "--version")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[-1] == __version__

    def test_mounted_configuration_is_accepted(self, image, tmp_path):
        service = Service(image, tmp_path)
        words = [word for word in service.definition["command"] if "config.file" in word]
        done = service.run(*image.entrypoint, "check-config", *words)
        assert (done.returncode, done.stderr) == (0, "")

    def test_agent_serves_on_a_root_that_cannot_be_written_and_ends_when_told(
        self, image, tmp_path
    ):
        service = Service(image, tmp_path)
        before = files_below(image.root.folder)
        with service.started() as process:
            assert "vllm_agent_build_info{" in service.get("/metrics")
            assert 'vllm_agent_collector_up{collector="discovery"} 1' in service.get("/metrics")
            assert 'vllm_agent_collector_up{collector="store"} 1' in service.get("/metrics")
            assert service.run(*service.definition["healthcheck"]["test"][1:]).returncode == 0
            assert service.run(*image.entrypoint, "status").returncode == 0
            process.send_signal(signal.Signals[image.stop_signal])
            assert process.wait(STOP_SECONDS) == 0
        assert "level=warn" not in service.log.read_text(encoding="utf-8")
        assert files_below(image.root.folder) == before

    def test_health_check_fails_without_an_agent(self, image, tmp_path):
        service = Service(image, tmp_path)
        assert service.run(*service.definition["healthcheck"]["test"][1:]).returncode != 0

    @pytest.mark.parametrize(
        ("files", "is_seen"), [((), False), ((ROOT_FILE,), True)], ids=["as shipped", "as root"]
    )
    def test_only_root_sees_what_another_user_reads_and_writes(
        self, image, tmp_path, files, is_seen
    ):
        log = tmp_path / "vllm.log"
        with StandIn.start(log=log) as server:
            log.chmod(0o600)
            server.wait_serving()
            config = tmp_path / "config.yml"
            config.write_text(
                "discovery: {enabled: false}\n"
                f"servers: [{{name: other, match: {{port: {server.port}}}}}]\n"
            )
            config.chmod(0o644)
            service = Service(image, tmp_path, *files)
            service.show(config, "/etc/vllm-agent/config.yml")
            with service.started():
                wait_until(
                    lambda: 'state="running"} 1' in service.get("/metrics"), "seen", READY_SECONDS
                )
                told = service.run(*image.entrypoint, "doctor").stdout
        [visible] = re.findall(r"^ok +visible +(.+)$", told, flags=re.MULTILINE)
        assert ({"fds", "log"} <= set(visible.split(", "))) is is_seen, told

    def test_demo_plays_on_a_root_that_cannot_be_written(self, image, tmp_path):
        service = Service(image, tmp_path, name="demo")
        command, option, _ = service.definition["command"]
        done = service.run(*image.entrypoint, command, option, "3s")
        assert done.returncode == 0, done.stderr
        assert re.search(r"steady +starting", done.stdout), done.stdout + done.stderr


class TestBuild:
    """How a build goes wrong."""

    pytestmark = in_clean_root

    def test_a_step_that_fails_ends_it(self, tmp_path):
        builder = Builder(tmp_path / "roots", tmp_path, {}, {})
        with pytest.raises(BuildError, match="line 2: echo told; exit 3\ntold"):
            builder.build(parse("FROM any\nRUN echo told; exit 3\n"))

    def test_what_was_not_sent_cannot_be_copied(self, tmp_path):
        builder = Builder(tmp_path / "roots", tmp_path, {}, {})
        with pytest.raises(DockerfileError, match="line 2: not sent, or not there: a b"):
            builder.build(parse("FROM any\nCOPY a b\n"))
