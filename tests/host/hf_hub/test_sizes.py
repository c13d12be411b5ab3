from __future__ import annotations

import asyncio
import json
import logging
import site
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from vllm_agent.host.hf_hub import sizes as sizes_module
from vllm_agent.host.hf_hub.checkpoint import MAX_WEIGHT_BYTES
from vllm_agent.host.hf_hub.hub_variables import PUBLIC_HUB
from vllm_agent.host.hf_hub.sizes import (
    KEPT_FAILURE_SECONDS,
    KEPT_SECONDS,
    MAX_ANSWER_BYTES,
    MAX_COMPLAINT_LENGTH,
    MAX_KEPT,
    HubSizes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CANARY = "hf_canary"


class Asked:
    """Sizes told by a shell command, which notes what it is asked for; the time is set."""

    def __init__(
        self, tmp_path: Path, command: str, environ: Mapping[str, str] | None = None
    ) -> None:
        self.notes = tmp_path / "asked"
        self.now = 0.0
        script = f'echo "$@" >> {self.notes}; {command}'
        question = ("sh", "-c", script, "sh")
        self.sizes = HubSizes(environ or {}, clock_seconds=lambda: self.now, question=question)

    @property
    def questions(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []


async def test_answer_is_kept_for_a_while(tmp_path):
    asked = Asked(tmp_path, "echo 1$(wc -l < " + str(tmp_path / "asked") + ")")
    sizes = asked.sizes
    assert sizes.known("org/name") is None
    assert await sizes.ask("org/name") == 11
    asked.now = KEPT_SECONDS - 1
    assert await sizes.ask("org/name", "main") == 11
    assert await sizes.ask("org/name", "v2") == 12
    asked.now = KEPT_SECONDS
    assert await sizes.ask("org/name") == 13
    assert sizes.known("org/name") == 13
    assert asked.questions == ["org/name main", "org/name v2", "org/name main"]


async def test_failure_is_kept_for_less_and_told_once(tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "vllm_agent")
    asked = Asked(tmp_path, "echo it answered 429 >&2; exit 1")
    for moment in (0.0, KEPT_FAILURE_SECONDS - 1, KEPT_FAILURE_SECONDS):
        asked.now = moment
        assert await asked.sizes.ask("org/name") is None
    assert len(asked.questions) == 2
    (record,) = caplog.records
    assert record.getMessage() == "the Hub does not tell the size of a model"
    assert record.__dict__["repo"] == "org/name"
    assert record.__dict__["error"] == "it answered 429"
    assert await asked.sizes.ask("org/other") is None
    assert len(caplog.records) == 2


async def test_last_line_of_a_complaint_is_told_up_to_a_length(tmp_path, caplog):
    asked = Asked(tmp_path, "echo warning >&2; printf '%0999d' 7 >&2; exit 1")
    assert await asked.sizes.ask("org/name") is None
    assert caplog.records[0].__dict__["error"] == "0" * MAX_COMPLAINT_LENGTH


async def test_failure_after_an_answer_takes_nothing_back(tmp_path):
    marker = tmp_path / "fail"
    asked = Asked(tmp_path, f"test -e {marker} && exit 1; echo 5")
    assert await asked.sizes.ask("org/name") == 5
    marker.touch()
    asked.now = KEPT_SECONDS
    assert await asked.sizes.ask("org/name") == 5


@pytest.mark.parametrize(
    "output", ["", "x", "-5", "0", "1.5", "nan", "1 2", str(MAX_WEIGHT_BYTES + 1), "٣", "1" * 100]
)
async def test_answer_that_is_no_size_is_none(tmp_path, caplog, output):
    asked = Asked(tmp_path, f"echo '{output}'")
    assert await asked.sizes.ask("org/name") is None
    # To kill what has printed too much makes asyncio warn, too, where that has just ended.
    told = [record for record in caplog.records if record.name == sizes_module.__name__]
    assert [record.__dict__["error"] for record in told] == ["its answer is no size"]


async def test_answer_without_end_is_cut(tmp_path, monkeypatch):
    asked = Asked(tmp_path, "yes 1 | tr -d '\\n'")
    assert await asked.sizes.ask("org/name") is None
    assert MAX_ANSWER_BYTES < 1000


async def test_hub_that_hangs_is_given_up(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sizes_module, "DEADLINE_SECONDS", 0.05)
    asked = Asked(tmp_path, "exec sleep 100")
    assert await asked.sizes.ask("org/name") is None
    assert caplog.records[0].__dict__["error"].endswith("did not answer within 0.05 s")


async def test_questions_wait_for_one_another_and_are_asked_once(tmp_path):
    asked = Asked(tmp_path, "echo 7")
    answers = await asyncio.gather(*(asked.sizes.ask(f"org/{name}") for name in "aabab"))
    assert answers == [7] * 5
    assert sorted(asked.questions) == ["org/a main", "org/b main"]


async def test_answers_are_bounded(tmp_path):
    asked = Asked(tmp_path, "echo 7")
    sizes = asked.sizes
    for number in range(MAX_KEPT + 2):
        sizes._keep((f"org/{number}", "main"), 7)
    assert len(sizes._answers) == MAX_KEPT
    assert sizes.known("org/1") is None
    assert sizes.known("org/2") == 7


@pytest.mark.parametrize(
    "environ",
    [
        {"HF_HUB_OFFLINE": "1"},
        {"HF_HUB_OFFLINE": "yes"},
        {"TRANSFORMERS_OFFLINE": "True"},
        {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "on"},
    ],
)
async def test_offline_agent_asks_nothing(tmp_path, environ):
    asked = Asked(tmp_path, "echo 7", environ)
    assert await asked.sizes.ask("org/name") is None
    assert asked.questions == []


@pytest.mark.parametrize(
    ("repo", "revision"),
    [
        ("--help", None),
        ("/models/x", None),
        ("a/b/c", None),
        ("org/name;reboot", None),
        ("org/name", "../x"),
        ("org/name", "--x"),
    ],
)
async def test_what_is_no_model_is_not_asked_for(tmp_path, repo, revision):
    asked = Asked(tmp_path, "echo 7")
    assert await asked.sizes.ask(repo, revision) is None
    assert asked.questions == []


async def test_process_gets_the_way_and_nothing_else(tmp_path):
    environ = {
        "HOME": "/home/x",
        "HF_TOKEN": CANARY,
        "HUGGING_FACE_HUB_TOKEN": CANARY,
        "HF_TOKEN_PATH": "/home/x/token",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "HTTPS_PROXY": f"http://user:{CANARY}@proxy:3128",
        "HTTP_PROXY": "http://proxy:3128",
        "NO_PROXY": "localhost",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "PYTHONPATH": "/srv/python",
        "HF_ENDPOINT": f"https://user:{CANARY}@hub.example/hf/",
    }
    shown = tmp_path / "environ"
    asked = Asked(tmp_path, f"cat /proc/$$/environ > {shown}; echo 7", environ)
    assert await asked.sizes.ask("org/name") == 7
    given = dict(entry.split("=", 1) for entry in shown.read_text().split("\0") if entry)
    given.pop("PATH")
    assert given == {
        "LC_ALL": "C.UTF-8",
        "HOME": "/nonexistent",
        "HF_ENDPOINT": "https://hub.example/hf",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HTTP_PROXY": "http://proxy:3128",
        "NO_PROXY": "localhost",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "PYTHONPATH": "/srv/python",
        "PYTHONUSERBASE": site.getuserbase(),
    }
    assert CANARY not in asked.sizes.endpoint


def test_hub_is_the_public_one_unless_told():
    assert HubSizes({}).endpoint == PUBLIC_HUB
    assert HubSizes({"HF_ENDPOINT": ""}).endpoint == PUBLIC_HUB
    assert HubSizes({"HF_ENDPOINT": "http://mirror:8080/"}).endpoint == "http://mirror:8080"


def test_agent_itself_never_holds_the_library():
    code = (
        "import sys, json, vllm_agent.host.load.download, vllm_agent.host.hf_hub.sizes, "
        "vllm_agent.host.hf_hub.completeness, vllm_agent.host.hf_hub.size_question; "
        "print(json.dumps([name for name in sys.modules if name.startswith('huggingface')]))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(told.stdout) == []
