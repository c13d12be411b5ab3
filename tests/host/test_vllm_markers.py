"""Which lines of which vLLM say that it was told to stop, and which that a part of it died."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.host.log_line import MAX_LINE_BYTES, lines_of, read_line
from vllm_agent.host.vllm_markers import (
    LATE_STOP_SECONDS,
    MARKER_CANDIDATE,
    MARKERS,
    Marked,
    MarkKind,
    decisive,
    mark_of,
)

LOGS = Path(__file__).parents[1] / "testdata" / "logs"
STOP, DEATH = MarkKind.STOP, MarkKind.DEATH


def candidates(content: bytes) -> list[bytes]:
    return [raw for _, raw in lines_of(content, len(content), [MARKER_CANDIDATE], lambda _: False)]


def marks_of(content: bytes) -> list[Marked]:
    marks = (mark_of(read_line(raw)) for raw in candidates(content))
    return [mark for mark in marks if mark is not None]


# The endings of real servers, recorded from vLLM 0.32.
RECORDED = {
    "vllm-0.32-stop": STOP,
    "vllm-0.32-interrupt": STOP,
    "vllm-0.32-group-stop": STOP,
    "vllm-0.32-several-stop": STOP,
    "vllm-0.32-engine-killed": DEATH,
    "vllm-0.32-worker-killed": DEATH,
    "vllm-0.32-worker-crashed-then-stop": DEATH,
    "vllm-0.32-several-api-server-killed": DEATH,
    "vllm-0.32-several-engine-killed": DEATH,
}


@pytest.mark.parametrize(("name", "kind"), RECORDED.items())
def test_each_recorded_ending_is_told_rightly(name, kind):
    mark = decisive(marks_of((LOGS / f"{name}.log").read_bytes()))
    assert mark is not None
    assert mark.kind is kind


@pytest.mark.parametrize("name", [name for name, kind in RECORDED.items() if kind is STOP])
def test_a_stop_has_no_marker_of_a_death(name):
    assert {mark.kind for mark in marks_of((LOGS / f"{name}.log").read_bytes())} == {STOP}


@pytest.mark.parametrize("name", ["vllm-0.32-engine-killed", "vllm-0.32-worker-killed"])
def test_a_death_of_a_single_server_has_no_marker_of_a_stop(name):
    assert {mark.kind for mark in marks_of((LOGS / f"{name}.log").read_bytes())} == {DEATH}


# What each version logs on its way out, by its source: a stop by a signal to the main process, a
# death of the engine, of a worker; and the same with several API servers.
FATAL = "EngineCore encountered a fatal error."
LOST = "AsyncLLM output_handler failed."
OLD_STOP = ("Shutting down FastAPI HTTP server.",)
NEW_STOP = (
    "[shutdown] API server: shutdown triggered",
    "[shutdown] API server: stopping engine client mode=abort timeout=0s",
    "[shutdown] API server: engine client stopped",
)
OLD_WORKER = "Worker proc VllmWorker-0 died unexpectedly, shutting down executor."
NEW_WORKER = "Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down executor."
OLD_ENGINE = "Engine core proc EngineCore_DP0 died unexpectedly, shutting down client."
NEW_ENGINE = "[shutdown] MPClient: engine core exited unexpectedly; starting cleanup"
RAISED = "Exception occurred while running API servers: "
API_DIED = f"{RAISED}Process ApiServer_0 (PID: 77) died with exit code -9"
OLD_CORE_DIED = f"{RAISED}Process EngineCore_DP0 (PID: 78) died with exit code -9"
NEW_CORE_DIED = f"{RAISED}Engine core process EngineCore_DP0 died unexpectedly."
WAITING = "Waiting up to 0 seconds for processes to exit"

BY_VERSION: dict[str, list[tuple[MarkKind, tuple[str, ...]]]] = {
    # Up to 0.18 the client takes the end of an engine that it stopped itself for a death.
    "0.11.0": [
        (STOP, OLD_STOP),
        (STOP, (*OLD_STOP, OLD_ENGINE)),
        (STOP, (OLD_ENGINE, *OLD_STOP)),
        (DEATH, (OLD_ENGINE, LOST)),
        (DEATH, (OLD_WORKER, FATAL, LOST)),
        (DEATH, (OLD_CORE_DIED, *OLD_STOP)),
        (DEATH, (API_DIED, *OLD_STOP)),
        (STOP, ("Received KeyboardInterrupt, shutting down API servers...",)),
    ],
    "0.18.1": [
        (STOP, OLD_STOP),
        (STOP, (OLD_WORKER, FATAL, LOST, *OLD_STOP)),
        (DEATH, (OLD_ENGINE, LOST)),
        (STOP, (WAITING, *OLD_STOP)),
    ],
    "0.22.1": [
        (STOP, OLD_STOP),
        (STOP, (OLD_WORKER, FATAL, LOST, *OLD_STOP)),
        (DEATH, (LOST,)),
        (DEATH, (OLD_WORKER, FATAL, LOST)),
        (DEATH, (NEW_CORE_DIED, *OLD_STOP)),
        (STOP, ("DPSupervisor received SIGTERM, shutting down.", *OLD_STOP)),
        (DEATH, ("DPSupervisor found 1 exited DP Servers.", *OLD_STOP)),
        (DEATH, ("DPSupervisor probe found 2 unhealthy DP Servers.", *OLD_STOP)),
    ],
    "0.23.0": [(STOP, NEW_STOP), (DEATH, (NEW_ENGINE, LOST)), (DEATH, (OLD_WORKER, FATAL, LOST))],
    "0.28.0": [
        (STOP, NEW_STOP),
        (STOP, (*NEW_STOP, NEW_WORKER, FATAL, LOST)),
        (DEATH, (NEW_WORKER, FATAL, LOST, *NEW_STOP)),
        (DEATH, (NEW_ENGINE, LOST)),
        (DEATH, (NEW_WORKER, FATAL, LOST)),
        (DEATH, (NEW_CORE_DIED, *NEW_STOP)),
        (DEATH, (FATAL, LOST, NEW_CORE_DIED, *NEW_STOP)),
        (DEATH, (API_DIED, *NEW_STOP)),
        (STOP, (WAITING, *NEW_STOP)),
        (DEATH, ("RayWorkerProc rank=3 died unexpectedly, shutting down executor.", FATAL)),
    ],
}


def written(message: str, seconds: int = 0, pid: int = 77) -> bytes:
    stamp = time.strftime("%m-%d %H:%M:%S", time.localtime(time.time() - 100 + seconds))
    return f"(APIServer pid={pid}) INFO {stamp} [launcher.py:254] {message}\n".encode()


@pytest.mark.parametrize(
    ("kind", "messages"),
    [ending for endings in BY_VERSION.values() for ending in endings],
    ids=[f"{version}-{n}" for version, all_ in BY_VERSION.items() for n in range(len(all_))],
)
def test_each_version_is_told_rightly(kind, messages):
    mark = decisive(marks_of(b"".join(written(message) for message in messages)))
    assert mark is not None
    assert mark.kind is kind


@pytest.mark.parametrize("marker", MARKERS, ids=lambda m: m.begins)
def test_each_marker_is_found_in_a_log_of_its_versions(marker):
    message = f"{marker.begins}x{marker.holds}."
    [mark] = marks_of(b"INFO:     before\n" + written(message) + b"after\n")
    assert mark.kind is marker.kind
    assert len(mark.name) < 40


FORMS = {
    "plain": b"(APIServer pid=77) ERROR 11-23 09:06:58 [async_llm.py:906] %s",
    "debug": b"(APIServer pid=77) ERROR 11-23 09:06:58 [v1/engine/async_llm.py:906] %s",
    "0.11 in colours": b"\x1b[1;36m(APIServer pid=77)\x1b[0;0m ERROR 11-23 09:06:58 "
    b"[async_llm.py:480] %s",
    "0.32 in colours": b"\x1b[0;36m(APIServer pid=77)\x1b[0;0m \x1b[31mERROR\x1b[0m "
    b"\x1b[90m11-23 09:06:58\x1b[0m \x1b[90m[async_llm.py:906]\x1b[0m %s",
    "ranked": b"(VllmWorker rank=0 pid=77) ERROR 11-23 09:06:58 [x.py:1] %s",
    "prefixed": b"[my server](APIServer pid=77) ERROR 11-23 09:06:58 [x.py:1] %s",
    "after a bar": b"Loading: 50%%|###  | 1/2\rLoading: 100%%|#####| 2/2(APIServer pid=77) "
    b"ERROR 11-23 09:06:58 [x.py:1] %s",
    "after many bars": b"Loading: 50%%|###  | 1/2\r" * 50 + b"(APIServer pid=77) ERROR "
    b"11-23 09:06:58 [x.py:1] %s",
    "no UTF-8": b"\xff\xfe(APIServer pid=77) ERROR 11-23 09:06:58 [x.py:1] %s \xff",
    "CRLF": b"(APIServer pid=77) ERROR 11-23 09:06:58 [x.py:1] %s\r",
    "JSON": b'{"asctime": "2026-11-23 09:06:58,123", "levelname": "ERROR", "name": "vllm", '
    b'"processName": "MainProcess", "process": 77, "message": "%s"}',
    "zeros of a truncated file": b"\0" * 300
    + b"(APIServer pid=77) ERROR 11-23 09:06:58 [x.py:1] %s",
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_line_is_understood(form):
    [raw] = candidates(FORMS[form] % LOST.encode() + b"\n")
    line = read_line(raw)
    mark = mark_of(line)
    assert mark is not None
    assert mark.name == "API server lost its engine"
    assert line.pid == 77
    assert line.written_seconds is not None
    assert time.strftime("%m-%d %H:%M:%S", time.localtime(line.written_seconds)) == "11-23 09:06:58"


@pytest.mark.parametrize("form", ["%s", "(EngineCore_DP0 pid=77) %s", "ERROR: %s"])
def test_a_line_without_header_has_no_stamp(form):
    line = read_line((form % FATAL).encode())
    assert line.written_seconds is None


# What users send may be logged; it must not pass for a line of vLLM.
QUOTED = [
    "(APIServer pid=77) INFO 11-23 09:06:58 [logger.py:40] Received request cmpl-1: prompt: %r",
    "(APIServer pid=77) INFO 11-23 09:06:58 [logger.py:40] Received request cmpl-1: prompt: '%s'",
    'INFO:     127.0.0.1:1 - "GET /%s HTTP/1.1" 404 Not Found',
    "ValueError: %s",
]


@pytest.mark.parametrize("frame", QUOTED)
@pytest.mark.parametrize("message", [LOST, NEW_STOP[0], API_DIED])
def test_a_quoted_marker_is_none(frame, message):
    assert marks_of((frame % message).encode()) == []


def test_a_header_in_a_message_does_not_begin_another_line():
    fake = written(NEW_STOP[0]).decode().strip()
    assert marks_of(written(f"Received request: prompt: {fake!r}")) == []


def test_json_that_quotes_a_marker_is_none():
    record = {"process": 1, "message": f"prompt: {LOST}", "levelname": "INFO"}
    assert marks_of(json.dumps(record).encode() + b"\n") == []


NORMAL = [
    "[shutdown] Process manager: send sigterm to process EngineCore",
    "[shutdown] Process manager: force killing remaining process EngineCore pid 32564",
    "[shutdown] force killing sub process VLLM::Worker pid 32649",
    "[shutdown] EngineCore: trigger received signal=SIGTERM",
    "[shutdown] MPClient: complete",
    "Parent process exited, terminating worker queues",
    "port 8000 is used by process psutil.Process(pid=1, name='vllm') launched with command:",
    "Waiting for application shutdown.",
    "EngineCore failed to start.",
]


@pytest.mark.parametrize("message", NORMAL)
def test_a_line_that_stops_and_deaths_both_have_is_no_marker(message):
    assert marks_of(written(message)) == []


def test_of_a_long_line_only_the_beginning_is_read():
    long = written(f"{LOST} {'x' * 100_000}")
    [raw] = candidates(long)
    assert len(raw) == MAX_LINE_BYTES
    assert len(marks_of(long)) == 1


def test_a_marker_far_into_a_line_of_megabytes_is_none():
    assert marks_of(b"(" * 3_000_000 + LOST.encode() + b"\n") == []


@given(st.binary(max_size=300))
def test_any_line_is_read_without_an_error(raw):
    read_line(raw)


@given(st.lists(st.binary(max_size=40).filter(lambda b: b"\n" not in b), max_size=20), st.data())
def test_a_marker_is_found_among_any_other_lines(others, data):
    place = data.draw(st.integers(0, len(others)))
    lines = [*others[:place], written(LOST).rstrip(), *others[place:]]
    names = [mark.name for mark in marks_of(b"\n".join(lines))]
    assert names.count("API server lost its engine") == 1


def mark(kind: MarkKind, at: float | None = None, **facts: bool) -> Marked:
    return Marked(kind, "x", at, **facts)


def test_nothing_is_decided_by_nothing():
    assert decisive([]) is None


def test_the_first_mark_decides():
    for first, second in ((STOP, DEATH), (DEATH, STOP)):
        marks = [mark(first, 1.0), mark(second, 1.1)]
        assert decisive(marks) is marks[0]


def test_a_late_stop_right_after_a_death_caused_it():
    marks = [mark(DEATH, 1.0), mark(STOP, 1.0 + LATE_STOP_SECONDS, is_late=True)]
    assert decisive(marks) is marks[1]


def test_a_late_stop_long_after_a_death_did_not():
    marks = [mark(DEATH, 1.0), mark(STOP, 1.1 + LATE_STOP_SECONDS, is_late=True)]
    assert decisive(marks) is marks[0]


def test_the_time_between_is_told_by_the_stamps_of_the_lines_too():
    death, stop = Marked(DEATH, "x", None, 100.0), Marked(STOP, "x", None, 130.0, is_late=True)
    assert decisive([death, stop]) is death


def test_without_any_moment_they_are_taken_for_close():
    marks = [mark(DEATH), mark(STOP, is_late=True)]
    assert decisive(marks) is marks[1]


def test_the_last_word_is_not_undone_by_what_follows():
    marks = [mark(DEATH, 1.0), mark(DEATH, 1.1, is_last_word=True), mark(STOP, 1.2, is_late=True)]
    assert decisive(marks) is marks[0]


def test_a_death_during_a_stop_is_the_stops():
    marks = [mark(STOP, 1.0), mark(DEATH, 1.1, is_last_word=True)]
    assert decisive(marks) is marks[0]
