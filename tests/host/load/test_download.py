"""What the witness of a download makes of caches; for the real library see tests/hub."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.host.fake_proc import FakeProc
from tests.host.hf_hub.cache import COMMIT, INDEX, Cache
from vllm_agent.host.contained_tree import ContainedTree
from vllm_agent.host.hf_hub.cached_repo import MAX_NAMES
from vllm_agent.host.hf_hub.checkpoint import MAX_INDEX_BYTES
from vllm_agent.host.hf_hub.sizes import HubSizes
from vllm_agent.host.load.download import SLACK, DownloadWitness
from vllm_agent.host.load.repo_files import SETTLED_SECONDS
from vllm_agent.host.model_environment import ModelEnvironment
from vllm_agent.observations import Download, VllmCommand, Witness

if TYPE_CHECKING:
    from pathlib import Path

PID = 100
START = 1_000_000_000.0
NONE, HERE, HUB = None, Witness.HF_CACHE, Witness.HUB
SHARDS = tuple(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
ETAGS = tuple(letter * 64 for letter in "abc")
KIB = 1024
SHARD = 64 * KIB
CONFIG = len(b"{}")
ENVIRONMENT = ModelEnvironment(home="/home/op", hf_hub_cache="/cache")


class Scene(Cache):
    """A cache, and the process that loads from it, started at START."""

    def __init__(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        (root / "srv").mkdir(parents=True)
        super().__init__(root)
        self.fake = FakeProc(tmp_path / "proc")
        self.fake.add(PID, "vllm", "serve")
        folder = self.fake.root / str(PID)
        (folder / "root").symlink_to(root)
        (folder / "cwd").symlink_to(root / "srv")
        uid, gid = os.geteuid(), os.getegid()
        (folder / "status").write_text(f"Uid:\t{uid}\t0\t0\t0\nGid:\t{gid}\t0\t0\t0\n")
        self.blobs = self.repo / "blobs"

    def witness(
        self,
        model: str | None = "org/name",
        environment: ModelEnvironment | None = ENVIRONMENT,
        sizes: HubSizes | None = None,
        **said: str,
    ) -> DownloadWitness:
        command = VllmCommand(
            model=model,
            download_dir=said.get("download_dir"),
            revision=said.get("revision"),
            load_format=said.get("load_format"),
        )
        return DownloadWitness(self.fake.proc, PID, command, environment, START, sizes)

    def look(self, **how: str) -> Download | None:
        return self.witness(**how).look()  # type: ignore[arg-type]

    def write(
        self, name: str, size: int, changed: float = START + 1, *, block: bytes = b"x"
    ) -> Path:
        """A blob of that size, last written to at that time."""
        path = self.blobs / name
        path.write_bytes(block * size)
        os.utime(path, (changed, changed))
        return path

    def finish(self, etag: str, name: str) -> None:
        """What was on its way has come, and has its link."""
        (incomplete,) = self.blobs.glob(f"{etag}*.incomplete")
        incomplete.rename(self.blobs / etag)
        self.link(etag, name)

    def link(self, etag: str, name: str) -> None:
        (self.snapshot / name).symlink_to(f"../../blobs/{etag}")

    def settle(self) -> None:
        """As if nothing had changed for long."""
        for folder in (self.blobs, self.snapshot):
            os.utime(folder, (START + 1, START + 1))


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


@pytest.fixture
def sharded(scene):
    """A model of three files, of which the index has come."""
    scene.index(*SHARDS, total_size=3 * SHARD)
    return scene


def others(scene: Scene) -> int:
    """The bytes of what are no weights."""
    paths = (scene.snapshot / name for name in ("config.json", INDEX))
    return sum(path.stat().st_size for path in paths if path.exists())


def test_download_from_begin_to_end(sharded):
    witness, small = sharded.witness(), others(sharded)
    size = 3 * SHARD + small
    assert witness.look() == Download(small, size, HERE, is_under_way=False)
    for done, (etag, name) in enumerate(zip(ETAGS, SHARDS, strict=True)):
        before = done * SHARD + small
        sharded.write(f"{etag}.12345678.incomplete", SHARD // 4)
        assert witness.look() == Download(before + SHARD // 4, size, HERE, is_under_way=True)
        sharded.write(f"{etag}.12345678.incomplete", SHARD)
        assert witness.look() == Download(before + SHARD, size, HERE, is_under_way=True)
        sharded.finish(etag, name)
        is_last = name == SHARDS[-1]
        # Between two files it goes on.
        assert witness.look() == Download(before + SHARD, size, HERE, is_under_way=not is_last)


def test_bytes_are_those_on_the_disk_and_not_the_length(scene):
    path = scene.write(f"{ETAGS[0]}.incomplete", 8 * KIB)
    os.truncate(path, 1 << 30)
    os.utime(path, (START + 1, START + 1))
    assert scene.look().done_bytes == 8 * KIB + CONFIG


def test_what_an_earlier_launch_left_counts_once_it_is_written_to(scene):
    scene.write(f"{ETAGS[0]}.incomplete", KIB, START - 1)
    scene.write(f"{ETAGS[1]}.abcdef01.incomplete", KIB, START - 1)
    witness = scene.witness()
    assert witness.look() == Download(CONFIG, None, None, is_under_way=False)
    scene.write(f"{ETAGS[0]}.incomplete", 2 * KIB, START)
    assert witness.look() == Download(CONFIG + 2 * KIB, None, None, is_under_way=True)


def test_file_that_grows_before_our_eyes_counts_whatever_its_clock_says(scene):
    scene.write(f"{ETAGS[0]}.incomplete", KIB, START - 1000)
    witness = scene.witness()
    assert not witness.look().is_under_way
    scene.write(f"{ETAGS[0]}.incomplete", 2 * KIB, START - 999)
    for _ in range(2):  # and stays so
        assert witness.look() == Download(CONFIG + 2 * KIB, None, None, is_under_way=True)


def test_two_that_fetch_the_same_file_count_once(scene):
    scene.write(f"{ETAGS[0]}.11111111.incomplete", 5 * KIB)
    scene.write(f"{ETAGS[0]}.22222222.incomplete", 3 * KIB)
    assert scene.look().done_bytes == CONFIG + 5 * KIB


def test_file_that_has_come_by_another_way_is_no_longer_on_its_way(scene):
    scene.write(f"{ETAGS[0]}.11111111.incomplete", 5 * KIB)
    scene.write(ETAGS[0], SHARD)
    scene.link(ETAGS[0], "model.safetensors")
    assert scene.look() == Download(CONFIG + SHARD, None, None, is_under_way=False)


def test_retry_is_shown_to_shrink(sharded):
    witness, small = sharded.witness(), others(sharded)
    sharded.write(f"{ETAGS[0]}.11111111.incomplete", SHARD)
    assert witness.look().done_bytes == SHARD + small
    (sharded.blobs / f"{ETAGS[0]}.11111111.incomplete").unlink()
    sharded.write(f"{ETAGS[0]}.22222222.incomplete", KIB)
    size = 3 * SHARD + small
    assert witness.look() == Download(KIB + small, size, HERE, is_under_way=True)


def test_nothing_is_lost_between_the_end_of_a_file_and_its_link(sharded):
    witness, small = sharded.witness(), others(sharded)
    sharded.write(f"{ETAGS[0]}.incomplete", SHARD)
    witness.look()
    (sharded.blobs / f"{ETAGS[0]}.incomplete").rename(sharded.blobs / ETAGS[0])
    for _ in range(2):
        assert witness.look().done_bytes == SHARD + small
    sharded.link(ETAGS[0], SHARDS[0])
    assert witness.look().done_bytes == SHARD + small


def test_blob_that_is_shared_between_models_counts(sharded):
    store = sharded.root / "cache/blobs/aa"
    store.mkdir(parents=True)
    witness, small = sharded.witness(), others(sharded)
    sharded.write(f"{ETAGS[0]}.11111111.incomplete", SHARD)
    assert witness.look().is_under_way
    (sharded.blobs / f"{ETAGS[0]}.11111111.incomplete").rename(store / ETAGS[0])
    (sharded.blobs / ETAGS[0]).symlink_to(f"../../blobs/aa/{ETAGS[0]}")
    assert witness.look().done_bytes == SHARD + small
    sharded.link(ETAGS[0], SHARDS[0])
    assert witness.look().done_bytes == SHARD + small


def test_cache_without_links_has_the_files_themselves(sharded):
    for name in SHARDS:
        (sharded.snapshot / name).write_bytes(b"x" * SHARD)
    assert sharded.look().done_bytes == 3 * SHARD + others(sharded)


def test_weights_that_vllm_does_not_fetch_do_not_count(sharded):
    sharded.write(ETAGS[0], SHARD)
    sharded.link(ETAGS[0], "pytorch_model.bin")
    assert sharded.look().done_bytes == others(sharded)


def test_files_in_folders_of_the_snapshot_count(scene):
    scene.index("a/1.safetensors", "a/2.safetensors", total_size=2 * SHARD)
    witness = scene.witness()
    assert not witness.look().is_under_way
    scene.add("a/1.safetensors", b"x" * SHARD)
    assert witness.look().done_bytes == SHARD + others(scene)


def test_whole_model_is_its_own_total(sharded):
    """The headers of its files are in no index."""
    for etag, name in zip(ETAGS, SHARDS, strict=True):
        sharded.write(etag, 2 * SHARD)
        sharded.link(etag, name)
    all_bytes = 6 * SHARD + others(sharded)
    assert sharded.look() == Download(all_bytes, all_bytes, HERE, is_under_way=False)


def test_total_that_is_a_little_short_is_what_is_there(sharded):
    small = others(sharded)
    within = int((3 * SHARD + small) * (1 + SLACK)) - small
    sharded.write(f"{ETAGS[0]}.incomplete", within)
    look = sharded.look()
    assert look.size_bytes == look.done_bytes == sharded.look().done_bytes
    assert look.done_bytes >= 3 * SHARD + small


def test_total_that_is_less_than_what_is_there_is_none(sharded):
    sharded.write(f"{ETAGS[0]}.incomplete", 4 * SHARD)
    look = sharded.look()
    assert (look.done_bytes, look.size_bytes) == (4 * SHARD + others(sharded), None)


@pytest.mark.parametrize(
    "content", [b"", b"not JSON", b"\0" * 1000, b'{"weight_map": {"a": "../../../etc/x.bin"}}']
)
def test_index_that_lies_gives_no_total(scene, content):
    scene.add(INDEX, content)
    scene.write(f"{ETAGS[0]}.incomplete", KIB)
    assert scene.look().size_bytes is None
    assert scene.look().is_under_way


def test_index_that_lies_is_read_once(scene, monkeypatch):
    with (scene.blobs / "huge").open("wb") as file:
        file.truncate(MAX_INDEX_BYTES)
    (scene.snapshot / INDEX).symlink_to("../../blobs/huge")
    read = []
    pieces = ContainedTree.pieces

    def watched(self, path, limit):
        read.append(path)
        return pieces(self, path, limit)

    monkeypatch.setattr(ContainedTree, "pieces", watched)
    witness = scene.witness()
    for number in range(5):
        scene.write(f"{ETAGS[0]}.{number:08x}.incomplete", KIB)
        assert witness.look().size_bytes is None
    assert len([path for path in read if path.endswith(INDEX)]) == 1


def test_list_of_the_hub_gives_the_exact_total(scene):
    sizes = {name: {"size": SHARD + 1} for name in SHARDS} | {"README.md": {"size": 10**9}}
    scene.list({"files": sizes})
    scene.write(f"{ETAGS[0]}.incomplete", KIB)
    size = 3 * (SHARD + 1) + CONFIG
    assert scene.look() == Download(KIB + CONFIG, size, HERE, is_under_way=True)


def test_total_is_not_known_where_nothing_tells(scene):
    scene.write(f"{ETAGS[0]}.incomplete", KIB)
    assert scene.look() == Download(KIB + CONFIG, None, None, is_under_way=True)


def test_part_of_a_repository_has_no_total(sharded):
    sharded.write(f"{ETAGS[0]}.incomplete", KIB)
    look = sharded.look(model="org/name:Q4_K_M")
    assert look == Download(KIB + others(sharded), None, None, is_under_way=True)


def test_newer_commit_begins_anew(sharded):
    sharded.write(ETAGS[0], SHARD)
    sharded.link(ETAGS[0], SHARDS[0])
    witness = sharded.witness()
    assert witness.look().done_bytes == SHARD + others(sharded)
    newer = sharded.repo / "snapshots" / ("d" * 40)
    newer.mkdir()
    sharded.refer("main", "d" * 40)
    assert witness.look() == Download(0, None, None, is_under_way=False)
    (newer / "config.json").write_text("{}")
    assert witness.look().done_bytes == CONFIG


def test_revisions_have_files_of_their_own(scene):
    scene.refer("v2", "e" * 40)
    assert scene.look(revision=COMMIT).done_bytes == CONFIG
    assert scene.look(revision="v2").done_bytes == 0
    assert scene.look(revision="../../x") is None


# Where the cache is.


@pytest.mark.parametrize(
    ("download_dir", "environment"),
    [
        ("/cache", None),
        ("/cache/", None),
        ("../cache", None),  # of the working directory, /srv
        ("~/hub", ENVIRONMENT),
        ("/home/op/hub", ENVIRONMENT),
    ],
)
def test_cache_can_be_given_on_the_command_line(scene, download_dir, environment):
    home = scene.root / "home/op"
    home.mkdir(parents=True)
    (home / "hub").symlink_to("/cache")
    witness = scene.witness(environment=environment, download_dir=download_dir)
    assert witness.look().done_bytes == CONFIG


@pytest.mark.parametrize(
    ("download_dir", "environment"),
    [
        ("~/hub", None),
        ("~root/hub", ENVIRONMENT),
        ("/elsewhere", ENVIRONMENT),
        ("~/hub", ModelEnvironment(home="")),
    ],
)
def test_cache_that_is_not_known_is_not_guessed(scene, download_dir, environment):
    (scene.root / "home/oproot").mkdir(parents=True)
    (scene.root / "home/oproot/hub").symlink_to("/cache")
    assert scene.witness(environment=environment, download_dir=download_dir).look() is None


def test_cache_is_not_known_without_the_environment(scene):
    assert scene.witness(environment=None).look() is None
    assert scene.witness(environment=ModelEnvironment()).look() is None


# What nothing is told of.


@pytest.mark.parametrize(
    "model", [None, "", "org/other", "/models/x", "s3://bucket/x", "-x", "a/b/c", "org/name\0"]
)
def test_model_that_is_not_in_the_cache_has_no_download(scene, model):
    assert scene.witness(model=model).look() is None


def test_local_folder_has_no_download_though_its_name_is_one_of_the_hub(scene):
    (scene.root / "srv/org/name").mkdir(parents=True)
    assert scene.look() is None


def test_dummy_weights_have_no_download(scene):
    assert scene.look(load_format="dummy") is None
    assert scene.look(load_format="Dummy") is None
    assert scene.look(load_format="safetensors") is not None


def test_process_that_is_gone_has_no_download(scene):
    witness = scene.witness()
    assert witness.look() is not None
    scene.fake.end(PID)
    assert witness.look() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look as somebody else")
def test_folder_that_the_server_may_not_read_has_no_download(scene):
    status = scene.fake.root / str(PID) / "status"
    status.write_text("Uid:\t65534\t0\t0\t0\nGid:\t65534\t0\t0\t0\n")
    witness = scene.witness()
    assert witness.look() is not None
    scene.blobs.chmod(0o700)
    assert witness.look() is None
    scene.blobs.chmod(0o711)  # its files can be reached, and not be listed
    assert scene.witness().look() is None


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "place", ["cache", "cache/models--org--name", "cache/models--org--name/blobs"]
)
@pytest.mark.parametrize("kind", ["pipe", "loop", "file", "outside"])
def test_folder_that_is_none_has_no_download(scene, place, kind):
    path = scene.root / place
    path.rename(scene.root.parent / "away")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "file":
        path.write_text("x")
    else:
        path.symlink_to(path.name if kind == "loop" else scene.root.parent / "away")
    assert scene.look() is None


def test_incomplete_files_that_are_none_do_not_count(scene):
    (scene.root.parent / "secret").write_bytes(b"x" * KIB)
    (scene.blobs / f"{ETAGS[0]}.incomplete").symlink_to(scene.root.parent / "secret")
    os.mkfifo(scene.blobs / f"{ETAGS[1]}.incomplete")
    (scene.blobs / f"{ETAGS[2]}.incomplete").mkdir()
    (scene.blobs / ".incomplete").write_bytes(b"x")
    assert scene.look() == Download(CONFIG, None, None, is_under_way=False)


def test_folder_of_too_many_blobs_has_no_download(scene):
    witness = scene.witness()
    for number in range(MAX_NAMES):
        (scene.blobs / f"{number}").touch()
    scene.settle()
    assert not witness.has_left_out
    for _ in range(2):  # with the one of config.json it has one too many
        assert witness.look() is None
        assert witness.has_left_out


def test_only_what_is_too_much_is_left_out(scene):
    witness = scene.witness()
    assert witness.look() is not None
    scene.fake.end(PID)
    assert witness.look() is None
    assert not witness.has_left_out


# What it costs.


def test_nothing_is_listed_again_that_has_not_changed(sharded, monkeypatch):
    sharded.write(f"{ETAGS[0]}.incomplete", KIB)
    sharded.settle()
    listed = []
    names = ContainedTree.names

    def watched(self, path, limit):
        listed.append(path)
        return names(self, path, limit)

    monkeypatch.setattr(ContainedTree, "names", watched)
    witness = sharded.witness()
    for size in range(1, 9):
        sharded.write(f"{ETAGS[0]}.incomplete", size * KIB)
        assert witness.look().done_bytes == size * KIB + others(sharded)
    folder = "/cache/models--org--name"
    assert listed == [f"{folder}/blobs", f"{folder}/snapshots/{COMMIT}"]


def test_folder_that_changed_just_now_is_listed_again(scene, monkeypatch):
    """A second change may leave the time as it was."""
    witness = scene.witness()
    witness.look()
    changed_ns = scene.blobs.stat().st_mtime_ns
    scene.write(f"{ETAGS[0]}.incomplete", KIB)
    os.utime(scene.blobs, ns=(changed_ns, changed_ns))
    assert witness.look().is_under_way
    (scene.blobs / f"{ETAGS[0]}.incomplete").unlink()
    later_ns = time.time_ns() + int((SETTLED_SECONDS + 1) * 1e9)
    os.utime(scene.blobs, ns=(changed_ns, changed_ns))
    monkeypatch.setattr(time, "time_ns", lambda: later_ns)
    assert not witness.look().is_under_way
    scene.write(f"{ETAGS[0]}.incomplete", KIB)
    os.utime(scene.blobs, ns=(changed_ns, changed_ns))
    assert not witness.look().is_under_way  # by now it would have had a time of its own


def test_cost_of_a_look_is_printed(sharded):
    for number in range(200):
        sharded.write(f"{number:064x}.incomplete", 1, START - 1)
    sharded.write(f"{ETAGS[0]}.incomplete", KIB)
    sharded.settle()
    witness = sharded.witness()
    witness.look()
    start = time.thread_time()
    for _ in range(200):
        witness.look()
    print(f"{(time.thread_time() - start) / 200 * 1e6:.0f} us, with 200 files left behind")


# What the Hub is asked.


def told(environ: dict[str, str] | None = None, size: int | None = None) -> HubSizes:
    sizes = HubSizes(environ or {})
    if size is not None:
        sizes._keep(("org/name", "main"), size)
    return sizes


def test_hub_tells_the_total_where_the_cache_does_not(scene):
    scene.write(f"{ETAGS[0]}.incomplete", KIB)
    look = scene.witness(sizes=told(size=SHARD)).look()
    assert look == Download(KIB + CONFIG, SHARD + CONFIG, HUB, is_under_way=True)


def test_index_comes_before_the_hub_unless_it_lies(sharded):
    sharded.write(f"{ETAGS[0]}.incomplete", KIB)
    witness = sharded.witness(sizes=told(size=9 * SHARD))
    assert witness.look().size_source is HERE
    sharded.write(f"{ETAGS[1]}.incomplete", 4 * SHARD)
    assert witness.look().size_source is HUB


def test_hub_is_not_believed_on_other_formats(scene):
    scene.write(f"{ETAGS[0]}.incomplete", KIB)
    for how in ({"load_format": "pt"}, {"model": "org/name:Q4"}):
        assert scene.witness(sizes=told(size=SHARD), **how).look().size_bytes is None


def question(scene: Scene, witness: DownloadWitness) -> tuple[str, str] | None:
    scene.write(f"{ETAGS[0]}.incomplete", KIB)
    witness.look()
    return witness.question


def test_hub_is_asked_while_a_download_of_unknown_size_is_under_way(scene):
    witness = scene.witness(sizes=told())
    assert witness.question is None
    witness.look()
    assert witness.question is None
    assert question(scene, witness) == ("org/name", "main")
    scene.list({"files": {"model.safetensors": {"size": SHARD}}})
    assert question(scene, witness) is None


def test_hub_is_asked_for_the_revision(scene):
    scene.refer("v2", COMMIT)
    assert question(scene, scene.witness(sizes=told(), revision="v2")) == ("org/name", "v2")


@pytest.mark.parametrize(
    ("environment", "agent"),
    [
        ({"is_offline": True}, {}),
        ({"hf_endpoint": "https://mirror.example"}, {}),
        ({}, {"HF_ENDPOINT": "https://mirror.example"}),
    ],
)
def test_hub_is_not_asked_where_the_server_would_not_ask_it(scene, environment, agent):
    cache = {"hf_hub_cache": "/cache", **environment}
    witness = scene.witness(environment=ModelEnvironment(**cache), sizes=told(agent))
    assert question(scene, witness) is None


def test_hub_is_asked_where_both_use_the_same(scene):
    environment = ModelEnvironment(hf_hub_cache="/cache", hf_endpoint="https://mirror.example")
    sizes = told({"HF_ENDPOINT": "https://x:y@mirror.example/hub/"})
    assert question(scene, scene.witness(environment=environment, sizes=sizes)) is not None


def test_hub_is_not_asked_where_the_environment_is_not_known_or_it_is_forbidden(scene):
    witness = scene.witness(environment=None, sizes=told(), download_dir="/cache")
    assert question(scene, witness) is None
    assert witness.look().is_under_way
    assert question(scene, scene.witness(sizes=None)) is None
