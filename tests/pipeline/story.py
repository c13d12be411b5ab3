"""Two hours in the life of a small fleet: who there is, and what happens to whom.

Minutes count from `START`.

- gpu1 (8 GPUs), agent up throughout; a configuration that cannot be read from 40 to 55, a driver
  that does not answer from 92 to 97.
  - `llama` (monitored, 4 GPUs) crashes at 60: its engine died, and two workers outlive it. Its
    restart finds no memory and crashes, too; at 72 somebody ends the orphans, and from 78 it runs.
  - `qwen` (managed, 2 GPUs) is given a model at 8 that it has to download, and passes through all
    stages to 23. At 115 it is asked to restart: at the end it loads its weights.
  - `phi` (managed, 1 GPU) runs out of GPU memory at 80 and at each restart: limit reached.
  - `gemma` (monitored, 1 GPU) is stopped in maintenance at 97, and stays down.
- gpu2 (4 GPUs), its agent down from 20 to 30.
  - `mistral` (monitored, 2 GPUs) crashes at 45 of XID 48. Its restart stalls; told to stop at 55
    it loads anew and serves from 59.
  - `embed@8001` was started in a shell: nobody wants it up. It sleeps from 60 to 75, and until 90
    a training job shares its GPU.
- edge, without a GPU, watches by URL.
  - `remote` runs; it is busy, so that checks time out, for half a minute at 50 and at 52.
  - `partner` is unreachable from 100: its name cannot be resolved.
  - `planned` was never there.
- lab: an agent that is down throughout.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tests.pipeline.story_host import Device, Host
from tests.pipeline.story_load import GIB, Model
from tests.pipeline.story_server import About, Span, StoryServer
from vllm_agent.lifecycle.ending import EndingEvidence
from vllm_agent.lifecycle.management import Wish
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import LifecycleMode
from vllm_agent.observations import ProbeCause, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Script: TypeAlias = Callable[[StoryServer], None]

MINUTES: Final = 120
STEP_SECONDS: Final = 15
"""Between two scrapes, as deploy/prometheus has it."""
# Any past moment works; a whole number of minutes since 1970 keeps the steps aligned.
START: Final = 1_760_000_040
END: Final = START + 60 * MINUTES
LAG_SECONDS: Final = 8
"""How long ago the newest scrape was at each step of a graph: scrapes are not in step with graphs,
and two windows that touch would both count what happened at a scrape that is in both."""
SCRAPES: Final = tuple(range(START - LAG_SECONDS, END, STEP_SECONDS))
_BEGIN: Final = START - 600
"""The agents have run for ten minutes when the story begins."""

INSTANCES: Final = ("gpu1:10060", "gpu2:10060", "edge:10060")
INSTANCE_DOWN: Final = "lab:10060"


def at(minute: float) -> int:
    """A minute of the story in unix time."""
    return START + round(60 * minute)


AGENT_AWAY: Final = Span(at(20), at(30))
BAD_CONFIGURATION: Final = Span(at(40), at(55))
GPU_BLIND: Final = Span(at(92), at(97))
ASLEEP: Final = Span(at(60), at(75))
OTHERS_ON_GPU: Final = Span(at(0), at(90))
XID_AT: Final = at(45)
LLAMA_CRASHED_AT: Final = at(60)
ORPHANS_LEFT_AT: Final = at(72)
LLAMA_RESTARTED_AT: Final = at(74)
QWEN_ASKED_AT: Final = at(8)
PHI_CRASHED_AT: Final = at(80)
PARTNER_LOST_AT: Final = at(100)
BUSY: Final = (Span(at(50), at(50) + 25), Span(at(52), at(52) + 25))
"""Twice: a counter that is born in the first spell shows what it counts in the second only."""
QWEN_STAGES: Final = (
    (Stage.INIT, 25),
    (Stage.DOWNLOAD, 480),
    (Stage.LOAD_WEIGHTS, 240),
    (Stage.COMPILE, 90),
    (Stage.WARMUP, 45),
)
QWEN_LOADS_WEIGHTS_SECONDS: Final = 300
LLAMA_STAGES: Final = (
    (Stage.INIT, 30),
    (Stage.LOAD_WEIGHTS, 150),
    (Stage.COMPILE, 40),
    (Stage.WARMUP, 30),
)
LLAMA_SERVES_AT: Final = LLAMA_RESTARTED_AT + sum(seconds for _, seconds in LLAMA_STAGES)
LLAMA_GPU_BYTES: Final = 70 * GIB
_MISTRAL_STAGES: Final = (
    (Stage.INIT, 25),
    (Stage.LOAD_WEIGHTS, 120),
    (Stage.COMPILE, 60),
    (Stage.WARMUP, 30),
)

LLAMA: Final = Model("meta-llama/Llama-3.3-70B-Instruct", 132 * GIB, 30)
QWEN_BEFORE: Final = Model("Qwen/Qwen2.5-32B-Instruct", 61 * GIB, 17)
QWEN: Final = Model("Qwen/Qwen3-32B", 62 * GIB, 17)
PHI: Final = Model("microsoft/phi-4", 28 * GIB, 6)
GEMMA: Final = Model("google/gemma-3-27b-it", 52 * GIB, 12)
MISTRAL: Final = Model("mistralai/Mistral-Small-24B-Instruct-2501", 44 * GIB, 10)
EMBED: Final = Model("BAAI/bge-m3", 2 * GIB, 1)

_ENGINE_DIED: Final = EndingEvidence(main_wait_status=0, engine_death_logged_seconds=1.0)
_MEMORY_TAKEN: Final = EndingEvidence(
    main_wait_status=1 << 8,
    logged_cause=Reason.GPU_MEMORY_TAKEN,
    gpu_holder="orphan of llama (PID 4112): 72.0 GiB of GPU 2",
)
_OUT_OF_MEMORY: Final = EndingEvidence(main_wait_status=1 << 8, logged_cause=Reason.GPU_OOM)
_GPU_FAULT: Final = EndingEvidence(main_wait_status=1 << 8, gpu_fault="XID 48 on GPU 1")
_TOLD_TO_STOP: Final = EndingEvidence(main_wait_status=signal.SIGTERM, stop_sign_seconds=1.0)
_SYSTEMD_RESTARTS_SECONDS: Final = 10


# What each server does.


def _llama(server: StoryServer) -> None:
    server.is_there_already(age_seconds=86_400)
    server.until(LLAMA_CRASHED_AT)
    server.crash(_ENGINE_DIED, orphans=("2", "3"))
    server.wait(_SYSTEMD_RESTARTS_SECONDS)
    server.launch()
    server.load((Stage.INIT, 45))
    server.crash(_MEMORY_TAKEN)
    server.until(ORPHANS_LEFT_AT)
    server.kill_orphans()
    server.until(LLAMA_RESTARTED_AT)
    server.launch()
    server.load_and_serve(*LLAMA_STAGES)


def _qwen(server: StoryServer) -> None:
    server.model = QWEN_BEFORE
    server.is_not_there()
    server.launch()
    server.load_and_serve((Stage.INIT, 20), (Stage.LOAD_WEIGHTS, 120), (Stage.COMPILE, 60))
    server.until(QWEN_ASKED_AT)
    server.ask(Wish.RESTART, QWEN)
    server.stop_as_told(_TOLD_TO_STOP, seconds=6)
    server.launch()
    server.load_and_serve(*QWEN_STAGES)
    server.until(at(115))
    server.ask(Wish.RESTART)
    server.stop_as_told(_TOLD_TO_STOP, seconds=8)
    server.launch()
    server.begin_load((Stage.INIT, 120), (Stage.LOAD_WEIGHTS, QWEN_LOADS_WEIGHTS_SECONDS))


def _phi(server: StoryServer) -> None:
    server.is_not_there()
    server.launch()
    server.load_and_serve((Stage.INIT, 20), (Stage.LOAD_WEIGHTS, 60), (Stage.WARMUP, 20))
    server.until(PHI_CRASHED_AT)
    server.crash(_OUT_OF_MEMORY)
    for _ in range(server.about.policy.max_restarts):
        server.launch()
        server.load((Stage.INIT, 20), (Stage.LOAD_WEIGHTS, 70))
        server.crash(_OUT_OF_MEMORY)


def _gemma(server: StoryServer) -> None:
    server.is_there_already(age_seconds=200_000)
    server.until(at(95))
    server.maintain()
    server.until(at(97))
    server.stop_as_told(_TOLD_TO_STOP, seconds=5)


def _mistral(server: StoryServer) -> None:
    server.is_there_already(age_seconds=50_000)
    server.until(XID_AT + 2)
    server.crash(_GPU_FAULT)
    server.wait(_SYSTEMD_RESTARTS_SECONDS)
    server.launch()
    # All files but the last are loaded, then nothing moves any more.
    server.begin_load((Stage.INIT, 25), (Stage.LOAD_WEIGHTS, 60))
    server.until(at(55))
    server.stop_as_told(_TOLD_TO_STOP, seconds=10)
    server.wait(_SYSTEMD_RESTARTS_SECONDS)
    server.launch()
    server.load_and_serve(*_MISTRAL_STAGES)


def _embed(server: StoryServer) -> None:
    server.is_there_already(age_seconds=3_000)
    server.until(ASLEEP.start)
    server.is_asleep = True
    server.until(ASLEEP.end)
    server.is_asleep = False


def _remote(server: StoryServer) -> None:
    for busy in BUSY:
        server.until(busy.start)
        server.fails_by = ProbeCause.TIMEOUT
        server.until(busy.end)
        server.fails_by = None


def _partner(server: StoryServer) -> None:
    server.until(PARTNER_LOST_AT)
    server.fails_by = ProbeCause.DNS


def _planned(server: StoryServer) -> None:
    server.fails_by = ProbeCause.REFUSED


# Who there is, and where.


def hosts() -> Sequence[Host]:
    """Every agent, when its servers have lived through the story."""
    gpu1 = Host(
        "gpu1:10060",
        [
            _lived(_local("llama", LLAMA, 4000, "0123", unit="llama.service"), _llama),
            _lived(_managed("qwen", QWEN_BEFORE, 5000, "45"), _qwen),
            _lived(_managed("phi", PHI, 6000, "6", restart_delay_seconds=10.0), _phi),
            _lived(_local("gemma", GEMMA, 7000, "7", unit="gemma.service"), _gemma),
        ],
        began=_BEGIN,
        devices=[_h100(number) for number in range(8)],
        bad_configuration=BAD_CONFIGURATION,
        gpu_blind=GPU_BLIND,
        dropped=[("component_exit", at(61)), ("process", at(85)), ("process", at(86))],
    )
    mistral = _local("mistral", MISTRAL, 4000, "01", unit="mistral.service", is_discovered=True)
    embed = _local("embed@8001", EMBED, 5000, "2", is_discovered=True)
    gpu2 = Host(
        "gpu2:10060",
        [_lived(mistral, _mistral, AGENT_AWAY), _lived(embed, _embed, AGENT_AWAY)],
        began=_BEGIN,
        devices=[
            _l40s(0),
            _l40s(1, faults=[(48, XID_AT), (45, XID_AT + 3), (45, XID_AT + 3)], uncorrected=XID_AT),
            _l40s(2, others=OTHERS_ON_GPU, others_bytes=21 * GIB),
            _l40s(3),
        ],
        away=AGENT_AWAY,
    )
    edge = Host(
        "edge:10060",
        [
            _lived(_external("remote", LLAMA, "https://llm.example.com", 0.045), _remote),
            _lived(_external("partner", EMBED, "https://embed.example.net", 0.12), _partner),
            _lived(_external("planned", None, "http://10.0.0.7:8000", 0.01), _planned),
        ],
        began=_BEGIN,
    )
    return gpu1, gpu2, edge, Host(INSTANCE_DOWN, [], began=_BEGIN, away=Span(_BEGIN, END + 1))


def _lived(about: About, script: Script, away: Span | None = None) -> StoryServer:
    server = StoryServer(about, begin=_BEGIN, scrapes=SCRAPES, away=away)
    script(server)
    server.until(END)
    return server


def _local(name: str, model: Model, first_pid: int, gpus: str, **more: Any) -> About:
    mode = LifecycleMode.MONITORED
    url = f"http://127.0.0.1:{8000 + first_pid // 1000}"
    # Most of a GPU, as --gpu-memory-utilization says; of a small model's less.
    gib = 3 if model is EMBED else 38 if model is MISTRAL else 70
    known: dict[str, Any] = {
        "mode": mode,
        "url": url,
        "gpus": tuple(gpus),
        "gpu_bytes": gib * GIB,
    }
    return About(name=name, model=model, first_pid=first_pid, **known | more)


def _managed(name: str, model: Model, first_pid: int, gpus: str, **more: Any) -> About:
    return _local(name, model, first_pid, gpus, mode=LifecycleMode.MANAGED, **more)


def _external(name: str, model: Model | None, url: str, latency_seconds: float) -> About:
    mode = LifecycleMode.EXTERNAL
    return About(name=name, mode=mode, model=model, url=url, latency_seconds=latency_seconds)


def _h100(number: int) -> Device:
    return Device(
        index=str(number), name="NVIDIA H100 80GB HBM3", total_bytes=80 * GIB, limit_watts=700.0
    )


def _l40s(number: int, **more: Any) -> Device:
    return Device(
        index=str(number), name="NVIDIA L40S", total_bytes=45 * GIB, limit_watts=350.0, **more
    )
