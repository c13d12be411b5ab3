"""A download seen from the cache, which the real huggingface_hub then finds complete."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir, snapshot_download
from huggingface_hub._tree_cache import read_tree_cache

from vllm_agent.demo.launch import NotServingError
from vllm_agent.demo.standin.options import parse

MODEL = "org/tiny"
BYTES = 8 * 2**20
INCOMPLETE = re.compile(r"([0-9a-f]{64})\.([0-9a-f]{8})\.incomplete")


def blobs(home: Path) -> dict[str, int]:
    """The files of the cache with their blocks, in bytes."""
    found = {}
    for path in home.glob("hub/models--org--tiny/blobs/*"):
        try:
            found[path.name] = path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return found


@pytest.fixture
def download(start, tmp_path):
    """Starts servers whose cache is in `tmp_path`."""

    def started(*arguments: str):
        sizes = ("--shards", "3", "--download-bytes", str(BYTES))
        return start(*sizes, *arguments, model=MODEL, environment={"HF_HOME": str(tmp_path)})

    return started


def watch(server, home: Path) -> list[dict[str, int]]:
    """What was in the cache, again and again, until the server listens."""
    seen = []
    deadline = time.monotonic() + 20
    while "startup complete" not in server.log_text():
        assert time.monotonic() < deadline, server.log_text()
        seen.append(blobs(home))
        time.sleep(0.01)
    return seen


def test_the_cache_grows_as_that_of_the_hub(download, tmp_path):
    seen = watch(download("--download-seconds", "0.6"), tmp_path)

    names = {name for look in seen for name in look if name.endswith(".incomplete")}
    assert len(names) == 3
    assert all(INCOMPLETE.fullmatch(name) for name in names)
    totals = [sum(look.values()) for look in seen]
    assert totals == sorted(totals)
    assert len({total for total in totals if BYTES // 10 < total < BYTES}) > 3
    assert not [name for name in blobs(tmp_path) if "incomplete" in name]


def test_the_library_of_the_hub_finds_it_complete(download, tmp_path):
    download("--download-seconds", "0").wait_serving()

    (repo,) = scan_cache_dir(tmp_path / "hub").repos
    folder = Path(snapshot_download(MODEL, cache_dir=tmp_path / "hub", local_files_only=True))

    assert (repo.repo_id, repo.size_on_disk // 2**20) == (MODEL, BYTES // 2**20)
    shards = sorted(folder.glob("*.safetensors"))
    assert [path.name for path in shards] == [
        f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    ]
    assert sum(path.stat().st_size for path in shards) == BYTES
    listed = read_tree_cache(str(folder.parents[1]), folder.name)
    assert listed is not None
    assert {name: entry.size for name, entry in listed.items()} == {
        path.name: path.stat().st_size for path in folder.iterdir()
    }


def test_the_worker_maps_the_blobs(download, tmp_path):
    server = download("--download-seconds", "0", "--load-seconds", "2")
    seen: set[str] = set()
    while "Loading weights took" not in server.log_text():
        for pid in server.worker_pids:
            seen |= set(re.findall(r"/blobs/([0-9a-f]{64})$", maps(pid), flags=re.MULTILINE))
        time.sleep(0.01)

    assert seen == {name for name in blobs(tmp_path) if len(name) == 64}


def maps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def test_it_says_how_long_it_took_and_how_much_there_is(download):
    log = download("--download-seconds", "0.7").wait_serving().log_text()

    assert re.search(r"Time spent downloading weights for org/tiny: 0\.[78]\d+ seconds", log)
    assert "Checkpoint size: 0.01 GiB" in log


def test_what_is_there_is_not_fetched_again(download):
    download("--download-seconds", "0").wait_serving().close()

    server = download("--download-seconds", "600").wait_serving()

    assert "Time spent downloading" not in server.log_text()


def test_a_stalled_download_stays_where_it_is(download, tmp_path):
    server = download("--download-seconds", "0.2", "--stall-download", "0.5")
    deadline = time.monotonic() + 10
    while sum(blobs(tmp_path).values()) < BYTES // 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    before = blobs(tmp_path)

    with pytest.raises(NotServingError):
        server.wait_serving(timeout=0.3)

    assert blobs(tmp_path) == before
    assert len([name for name in before if INCOMPLETE.fullmatch(name)]) == 3


def test_a_retry_begins_anew_in_other_files(download, tmp_path):
    seen = watch(download("--download-seconds", "0.4", "--retry-download", "0.5"), tmp_path)

    found = {match for look in seen for name in look if (match := INCOMPLETE.fullmatch(name))}
    assert len({match[1] for match in found}) == 3
    assert len({match[0] for match in found}) == 6
    totals = [sum(look.values()) for look in seen]
    assert totals != sorted(totals)
    assert sum(size for name, size in blobs(tmp_path).items() if len(name) == 64) >= BYTES


def test_several_workers_download_once(download, tmp_path):
    seen = watch(download("--download-seconds", "0.4", "-tp", "2"), tmp_path)

    assert len({name for look in seen for name in look if INCOMPLETE.fullmatch(name)}) == 3


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("serve org/tiny --download-seconds 1", "needs HF_HOME or --download-dir"),
        ("serve /models/x --download-seconds 1 --download-dir /x", "needs a model of the Hub"),
        ("serve org/tiny --stall-download 1.5", "must be from 0 to 1"),
    ],
)
def test_it_never_fills_the_cache_of_the_user(line, problem, monkeypatch, capsys):
    for variable in [name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE_"))]:
        monkeypatch.delenv(variable)

    with pytest.raises(SystemExit):
        parse(line.split())

    assert problem in capsys.readouterr().err
