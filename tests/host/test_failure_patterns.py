"""Which lines of a vLLM's log say why it failed, and which of them must not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.host.failure_patterns import (
    CANDIDATE,
    MAX_MESSAGE_CHARACTERS,
    START_REASONS,
    Cause,
    Rank,
    _raised,
    cause_of,
)
from vllm_agent.host.failure_table import PATTERNS
from vllm_agent.host.log_line import read_line
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from vllm_agent.host.failure_cause import Pattern

TESTDATA = Path(__file__).parents[1] / "testdata"
RECORDED = TESTDATA / "vllm-0.32.0"


def lines_of(name: str) -> list[tuple[str, str]]:
    """The indented lines of a file, each with the heading above it."""
    heading, lines = "", []
    for line in (TESTDATA / "failure-lines" / name).read_text("utf-8").splitlines():
        if line.startswith("    "):
            lines.append((heading, line.removeprefix("    ")))
        else:
            heading = line
    return lines


# How vLLM and its libraries print them, without their prefix.
LINES = {line: heading.split() for heading, line in lines_of("causes.txt")}
BARE_ONLY = (
    "vllm: ",
    "vllm serve: ",
    "api_server.py",
    "entry.py",
    "main.py",
    "Memory access fault",
)
# Told without an exception.
LOGGED = {
    "Failed to load model - not enough GPU memory. Try lowering --gpu-memory-utili": Reason.GPU_OOM,
    "[Errno 98] error while attempting to bind on address ('::', 8000): add": Reason.PORT_IN_USE,
}


def causes_in(content: bytes) -> list[Cause]:
    """What the lines of a log say, in order, by the simplest reader there is."""
    causes = []
    for raw in content.splitlines():
        if CANDIDATE.search(raw):
            line = read_line(raw)
            causes.append(cause_of(line.message, line.level))
    return [cause for cause in causes if cause is not None]


def reason_in(content: bytes) -> Reason | None:
    causes = causes_in(content)
    return min(causes, key=lambda cause: cause.rank).reason if causes else None


# Failures of the real vLLM 0.32, by what was done to bring them about.
FAILED = {
    "fail-bad-arguments": Reason.BAD_ARGUMENTS,
    "fail-context-too-long": Reason.CONTEXT_TOO_LONG,
    "fail-folder-missing": Reason.MODEL_NOT_FOUND,
    "fail-hub-gated": Reason.HF_AUTH,
    "fail-hub-not-found": Reason.MODEL_NOT_FOUND,
    "fail-hub-rate-limited": Reason.HF_NETWORK,
    "fail-hub-unreachable": Reason.HF_NETWORK,
    "fail-kv-cache-memory": Reason.KV_CACHE_TOO_SMALL,
    "fail-model-not-found-offline": Reason.AIRGAPPED,
    "fail-port-in-use": Reason.PORT_IN_USE,
}
# Its other ends, and a load: killed processes leave no cause in a log.
WITHOUT_CAUSE = sorted(
    path
    for folder in (RECORDED, TESTDATA / "logs")
    for path in folder.glob("*.log")
    if not path.stem.startswith("fail-")
)


@pytest.mark.parametrize(("name", "reason"), FAILED.items())
def test_a_recorded_failure_is_classified_as_it_was_caused(name, reason):
    assert reason_in((RECORDED / f"{name}.log").read_bytes()) is reason


def test_every_recorded_failure_is_tested():
    assert {path.stem for path in RECORDED.glob("fail-*.log")} == set(FAILED)


@pytest.mark.parametrize("path", WITHOUT_CAUSE, ids=lambda path: path.stem)
def test_a_recorded_stop_kill_or_load_has_no_cause(path):
    assert causes_in(path.read_bytes()) == []


@pytest.mark.parametrize(("line", "expected"), LINES.items())
def test_a_line_says_its_reason(line, expected):
    found = cause_of(line, None)
    assert found is not None
    assert [found.reason, found.rank.name.lower()] == expected
    assert CANDIDATE.search(line.encode())
    for level in ("ERROR", "CRITICAL"):
        assert cause_of(line, level) == (None if line.startswith(BARE_ONLY) else found)


@pytest.mark.parametrize(("message", "reason"), LOGGED.items())
def test_a_message_says_its_reason_only_as_an_error(message, reason):
    found = cause_of(message, "ERROR")
    assert found is not None
    assert found.reason is reason
    assert CANDIDATE.search(message.encode())
    assert cause_of(message, None) is None


@pytest.mark.parametrize("line", [*LINES, *LOGGED])
def test_nothing_below_an_error_counts(line):
    for level in ("DEBUG", "INFO", "WARNING"):
        assert cause_of(line, level) is None


BEFORE = (
    "Received request cmpl-1: prompt: '", "he asked: what is ", 'File "x.py", line 3: ',
    "Traceback of a friend: ", '    raise RuntimeError("', "Error in preprocessing prompt inputs ",
)  # fmt: skip


@pytest.mark.parametrize("line", [*LINES, *LOGGED])
def test_what_a_line_quotes_does_not_count(line):
    for before in BEFORE:
        for level in (None, "ERROR"):
            assert cause_of(before + line, level) is None


def matches(pattern: Pattern, line: str) -> bool:
    raised = _raised(line)
    is_alone = pattern.is_bare or pattern.is_logged
    return (raised is not None and pattern.matches(*raised)) or (
        is_alone and pattern.matches("", line)
    )


def test_every_pattern_has_a_line_for_each_of_its_ways_to_begin_and_classes():
    for pattern in PATTERNS:
        lines = [line for line in (*LINES, *LOGGED) if matches(pattern, line)]
        assert any(pattern == next(p for p in PATTERNS if matches(p, line)) for line in lines)
        for part in (*pattern.begins, *pattern.errors):
            assert any(part in line for line in lines), (pattern, part)


def test_every_part_of_a_pattern_is_needed():
    for pattern in PATTERNS:
        for line in LINES:
            error, text = _raised(line) or ("", line)
            if not pattern.matches(error, text):
                continue
            if pattern.begins != ("",):
                assert not pattern.matches(error, f"x{text}")
            if pattern.holds:
                assert not pattern.matches(error, text.replace(pattern.holds, ""))
            if pattern.errors:
                assert not pattern.matches("KeyError", text)
                assert not pattern.matches(f"{error}s", text)
                assert not pattern.matches("", text)


@pytest.mark.parametrize(("level", "message"), lines_of("no-causes.txt"))
def test_a_near_miss_says_nothing(level, message):
    assert cause_of(message, None if level == "bare" else level) is None


@pytest.mark.parametrize("message", ["", ": ", "Error", "Error: ", "[rank", "[rank0]: ", "\n"])
def test_a_piece_of_a_line_says_nothing(message):
    assert cause_of(message, None) is None
    assert cause_of(message, "ERROR") is None


OOM = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"


@pytest.mark.parametrize(
    "line",
    [
        f"RuntimeError: Worker failed with error '{OOM}', please check the stack trace above",
        f'RuntimeError: Worker failed with error "{OOM}", please check the stack trace above',
        f"[rank0]: torch.OutOfMemoryError: {OOM}",
        f"  | torch.OutOfMemoryError: {OOM}",
        f"  torch.OutOfMemoryError: {OOM}",
    ],
)
def test_the_cause_is_found_in_what_stands_around_it(line):
    found = cause_of(line, None)
    assert found is not None
    assert found.reason is Reason.GPU_OOM


def test_uvicorn_says_that_the_port_is_taken():
    message, _ = next(item for item in LOGGED.items() if item[1] is Reason.PORT_IN_USE)
    assert reason_in(f"ERROR:    {message}".encode()) is Reason.PORT_IN_USE


# What Python prints of a chain of errors, the oldest first.
HUB = "huggingface_hub.errors."
NOT_REACHED = "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and"
INVALID = "pydantic_core._pydantic_core.ValidationError: 1 validation error for"
WRAPPER = "RuntimeError: Engine core initialization failed. See root cause above."
CHAINS: dict[str, tuple[Reason | None, list[str]]] = {
    "a refused token that the cache could not make up for": (
        Reason.HF_AUTH,
        [
            "requests.exceptions.HTTPError: 403 Client Error: Forbidden for url: https://hugg",
            f"{HUB}HfHubHTTPError: (Request ID: Root=1-67)",
            f"{HUB}LocalEntryNotFoundError: An error happened while trying to locate the file",
            NOT_REACHED,
        ],
    ),
    "a private or missing model": (
        Reason.MODEL_NOT_FOUND,
        [
            "httpx.HTTPStatusError: Client error '401 Unauthorized' for url 'https://hugg'",
            f"{HUB}RepositoryNotFoundError: 401 Client Error. (Request ID: Root=1-67)",
            "OSError: org/m is not a local folder and is not a valid model identifier listed on",
        ],
    ),
    "offline with an incomplete cache": (
        Reason.AIRGAPPED,
        [
            f"{HUB}OfflineModeIsEnabled: Cannot reach https://huggingface.co/org/m: offline mode",
            f"{HUB}LocalEntryNotFoundError: An error happened while trying to locate the file on",
            NOT_REACHED,
        ],
    ),
    "a broken connection, after which vLLM doubts the name": (
        Reason.HF_NETWORK,
        [
            "httpx.ConnectError: [Errno -3] Temporary failure in name resolution",
            "ValueError: Invalid repository ID or local directory specified: 'org/m'.",
        ],
    ),
    "an invalid configuration that has a name of its own": (
        Reason.UNSUPPORTED_MODEL,
        [
            f"{INVALID} ModelConfig",
            "  Value error, Model architectures ['Foo'] are not supported for now. Supported",
        ],
    ),
    "an invalid configuration that has none": (
        Reason.BAD_ARGUMENTS,
        [f"{INVALID} VllmConfig", "  Value error, Model Runner V2 requires Triton.", WRAPPER],
    ),
    "a GPU that failed, which the others noticed first": (
        Reason.GPU_FAULT,
        [
            "RuntimeError: NCCL error: remote process exited or there was a network error",
            "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered",
            WRAPPER,
        ],
    ),
    "a worker whose own lines were lost": (
        Reason.KV_CACHE_TOO_SMALL,
        [
            "RuntimeError: Worker failed with error 'No available memory for the cache blocks",
            WRAPPER,
        ],
    ),
    "a disk that ran full in a download": (
        Reason.DISK_FULL,
        [
            "OSError: [Errno 28] No space left on device",
            "RuntimeError: Cannot find any model weights with `org/m`",
        ],
    ),
    "only that something else failed": (None, ["RuntimeError: Executor failed.", WRAPPER]),
}


@pytest.mark.parametrize(("reason", "lines"), CHAINS.values(), ids=CHAINS)
def test_the_first_line_of_the_best_rank_is_the_cause(reason, lines):
    assert reason_in("\n".join(lines).encode()) is reason


def test_a_rank_is_better_the_lower_it_is():
    assert Rank.SPECIFIC < Rank.GENERAL < Rank.WRAPPER


def test_reasons_of_a_start_do_not_explain_the_death_of_a_server_that_served():
    of_serving = {
        Reason.DISK_FULL, Reason.ENGINE_DIED, Reason.ENGINE_STALLED, Reason.GPU_FAULT,
        Reason.GPU_OOM, Reason.HOST_OOM, Reason.NCCL,
    }  # fmt: skip
    assert {pattern.cause.reason for pattern in PATTERNS} == START_REASONS | of_serving
    assert START_REASONS.isdisjoint(of_serving)


@given(st.text(), st.sampled_from([None, "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "x"]))
def test_any_text_is_read(message, level):
    cause_of(message, level)


@given(st.binary(max_size=200), st.sampled_from(list(LINES)), st.binary())
def test_any_bytes_around_a_cause_are_read(before, line, after):
    causes_in(before + line.encode() + after)


@given(st.text(st.characters(codec="utf-8")), st.sampled_from([*LINES, *LOGGED]))
def test_a_logged_prompt_is_never_a_cause(before, line):
    prompt = f"{before}{line}"
    logged = f"(APIServer pid=1) INFO 11-23 09:06:16 [logger.py:57] Received prompt: {prompt!r}"
    assert causes_in(logged.encode()) == []


def test_only_the_beginning_of_a_message_is_read():
    begin = "ValueError: To serve at least one request with the model's max seq len"
    end = " KV cache is needed"
    room = MAX_MESSAGE_CHARACTERS - len(begin + end)
    assert cause_of(begin + "x" * room + end, None) is not None
    assert cause_of(begin + "x" * (room + 1) + end, None) is None


HOSTILE = (
    "rror: ", "Error: ", ": ", "[rank1]: ", "[rank1]:[E", "[E] [", "| ", "a.", "ValueError: ",
    "Worker failed with error '", "Value error, ", "[PG ] ", "\x00", "\ud800", "é", "Error", "[[",
)  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_line_of_10_mb_takes_no_longer_than_a_short_one(piece):
    short, long = (piece * (size // len(piece)) for size in (MAX_MESSAGE_CHARACTERS, 10**7))
    assert seconds_for(long) < 20 * seconds_for(short) + 0.01


def seconds_for(message: str) -> float:
    def once() -> float:
        begun = time.process_time()
        cause_of(message, None)
        return time.process_time() - begun

    return min(once() for _ in range(5))


@pytest.mark.parametrize("piece", ["E", "Erro", "Error:", ": erro", "MemoryErro", "Value error,"])
def test_candidates_are_found_in_linear_time(piece):
    def once(size: int) -> float:
        content = piece.encode() * (size // len(piece))
        begun = time.process_time()
        assert CANDIDATE.search(content) is None
        return time.process_time() - begun

    # Twice the work would be twice the time; the square of it four times.
    assert once(4_000_000) < 8 * min(once(1_000_000) for _ in range(3)) + 0.01
