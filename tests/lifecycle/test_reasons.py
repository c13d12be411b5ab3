"""Every reason has a text, and advice that is as specific as what is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.lifecycle.advice import MAX_FACT_CHARACTERS, Facts, advice_on
from vllm_agent.lifecycle.reasons import REASON_TEXT, Reason
from vllm_agent.observations import Stage

EVERYTHING = Facts(
    hub_id="org/name",
    revision="v1",
    port="8000",
    holder="python3 (PID 7)",
    logged="llama",
    xid="79",
    stage=Stage.COMPILE,
    quiet="310 s",
    limit="300 s",
    limit_key="servers[].start.load_timeout",
)
FOLDER = Facts(folder="/models/llama")
UNSEEN = Facts(stage=Stage.COMPILE, limit="300 s", limit_key="servers[].start.load_timeout")


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_sentences(reason):
    text = REASON_TEXT[reason]
    for sentence in (text.meaning, text.advice, *text.specific, *text.managed):
        assert sentence.endswith(".")
        assert not sentence[0].islower() or sentence.startswith("vLLM ")
    assert "{" not in text.meaning + text.advice


@pytest.mark.parametrize("reason", Reason)
def test_without_facts_advice_is_general(reason):
    assert advice_on(reason, Facts()) == REASON_TEXT[reason].advice


@pytest.mark.parametrize("reason", Reason)
def test_every_specific_advice_can_be_given(reason):
    known = (EVERYTHING, FOLDER, Facts(port="8000"), Facts(holder="python3 (PID 7)"), UNSEEN)
    given_ = {advice_on(reason, facts) for facts in known}
    for template in REASON_TEXT[reason].specific:
        # What follows the last fact, for some begin with one.
        end = template.rpartition("}")[2]
        assert any(text.endswith(end) for text in given_), template


@pytest.mark.parametrize("reason", Reason)
def test_every_advice_of_a_managed_server_can_be_given(reason):
    known = (EVERYTHING, FOLDER, Facts(port="8000"), Facts(holder="python3 (PID 7)"), Facts())
    given_ = {advice_on(reason, replace(facts, server="llama")) for facts in known}
    for template in REASON_TEXT[reason].managed:
        end = template.rpartition("}")[2]
        assert any(text.endswith(end) for text in given_), template


@pytest.mark.parametrize("reason", Reason)
def test_only_a_managed_server_is_advised_with_keys_of_managed_mode(reason):
    known = (EVERYTHING, FOLDER, Facts(port="8000"), Facts(holder="python3 (PID 7)"), Facts())
    if reason is not Reason.SPAWN_FAILED:
        assert not any("managed." in advice_on(reason, facts) for facts in known)


MANAGED = Facts(server="llama")


@pytest.mark.parametrize(
    ("reason", "facts", "expected"),
    [
        (
            Reason.GPU_MEMORY_TAKEN,
            replace(MANAGED, holder="python3 (PID 7)"),
            (
                "GPU memory is held by python3 (PID 7): end that, or lower "
                "managed.gpu_memory_utilization."
            ),
        ),
        (
            Reason.GPU_MEMORY_TAKEN,
            MANAGED,
            (
                "End who holds GPU memory (see 'vllm-agent gpus'), or lower "
                "managed.gpu_memory_utilization."
            ),
        ),
        (
            Reason.AIRGAPPED,
            replace(MANAGED, hub_id="org/name"),
            (
                "Run 'hf download org/name' on a host with a network and copy its HF_HOME to the "
                "server's, or set managed.airgapped: false."
            ),
        ),
        (
            Reason.PORT_IN_USE,
            replace(MANAGED, port="8000", holder="nginx (PID 9)"),
            "Port 8000 is held by nginx (PID 9): end that, or write another port in `url`.",
        ),
        (
            Reason.HOST_OOM,
            replace(MANAGED, is_left_down=True),
            (
                "Give its cgroup or host more memory, or lower swap space and --max-model-len. "
                "The agent leaves it down until 'vllm-agent start llama'."
            ),
        ),
        (
            Reason.SPAWN_FAILED,
            replace(MANAGED, is_left_down=True, model_before="org/old"),
            (
                "Run managed.command with --help as managed.user: the command has to be there, "
                "and that user has to exist and may run it. "
                "The agent leaves it down until 'vllm-agent start llama'. "
                "'vllm-agent set-model llama org/old' brings back the model before."
            ),
        ),
        (
            Reason.UNHEALTHY,
            MANAGED,
            (
                "Read its newest log, below logs/ in the state directory; "
                "'vllm-agent restart llama' restarts it at once."
            ),
        ),
    ],
)
def test_advice_on_a_managed_server(reason, facts, expected):
    assert advice_on(reason, facts) == expected


@pytest.mark.parametrize(
    ("reason", "facts", "expected"),
    [
        (
            Reason.MODEL_NOT_FOUND,
            Facts(hub_id="org/name"),
            "Check that https://huggingface.co/org/name exists, or it is private: set HF_TOKEN.",
        ),
        (
            Reason.MODEL_NOT_FOUND,
            Facts(hub_id="org/name", revision="v1"),
            (
                "Check that https://huggingface.co/org/name/tree/v1 exists, "
                "or it is private: set HF_TOKEN."
            ),
        ),
        (
            Reason.MODEL_NOT_FOUND,
            FOLDER,
            "/models/llama is not there, holds no model, or the server's user may not read it.",
        ),
        (
            Reason.HF_AUTH,
            Facts(hub_id="org/name"),
            (
                "Accept the terms at https://huggingface.co/org/name "
                "and set HF_TOKEN to a token of that account."
            ),
        ),
        (
            Reason.AIRGAPPED,
            Facts(hub_id="org/name", revision="v1"),
            (
                "Run 'hf download org/name --revision v1' on a host with a network, "
                "then copy its HF_HOME to the server's."
            ),
        ),
        (
            Reason.PORT_IN_USE,
            EVERYTHING,
            "Port 8000 is held by python3 (PID 7): end that, or choose another --port.",
        ),
        (
            Reason.PORT_IN_USE,
            Facts(port="8000"),
            "Find who holds port 8000 with `ss -ltnp`, end it, or choose another --port.",
        ),
        (
            Reason.PORT_IN_USE,
            Facts(holder="python3 (PID 7)"),
            "Its port is held by python3 (PID 7): end that, or choose another --port.",
        ),
        (
            Reason.GPU_FAULT,
            EVERYTHING,
            (
                "Look up XID 79 in NVIDIA's catalogue (https://docs.nvidia.com/deploy/xid-errors); "
                "drain the host if it comes back."
            ),
        ),
        (
            Reason.GPU_MEMORY_TAKEN,
            Facts(holder="python3 (PID 7)"),
            "GPU memory is held by python3 (PID 7): end that, or lower --gpu-memory-utilization.",
        ),
        (
            Reason.CONTEXT_TOO_LONG,
            FOLDER,
            "Lower --max-model-len to what /models/llama/config.json states.",
        ),
        (
            Reason.LOAD_STALLED,
            EVERYTHING,
            (
                "No progress in stage compile for 310 s: look at the compiler's processes, and the "
                "disk of VLLM_CACHE_ROOT. If it is only slow, raise servers[].start.load_timeout, "
                "which is 300 s."
            ),
        ),
        (
            Reason.LOAD_STALLED,
            UNSEEN,
            (
                "No progress in stage compile: look at the compiler's processes, and the disk of "
                "VLLM_CACHE_ROOT. If it is only slow, raise servers[].start.load_timeout, which is "
                "300 s."
            ),
        ),
        (
            Reason.UNKNOWN,
            EVERYTHING,
            "Run 'vllm-agent history --log llama' on its host for the last lines of its log.",
        ),
    ],
)
def test_advice_with_what_is_known(reason, facts, expected):
    assert advice_on(reason, facts) == expected


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.NONE])
def test_every_stage_has_something_to_look_at(stage):
    stalled = Facts(stage=stage, quiet="1 s", limit="1 s", limit_key="key")
    assert f"in stage {stage} for 1 s: look at " in advice_on(Reason.LOAD_STALLED, stalled)


@given(st.text(max_size=300), st.sampled_from(Reason))
def test_whatever_a_command_line_holds_advice_is_one_printable_bounded_line(text, reason):
    facts = Facts(hub_id=text, revision=text, folder=text, port=text, holder=text, logged=text)
    advice = advice_on(reason, facts)
    assert advice.isprintable()
    assert len(advice) <= 200 + 3 * MAX_FACT_CHARACTERS
    managed = replace(facts, server=text, model_before=text, is_left_down=bool(text))
    advice = advice_on(reason, managed)
    assert advice.isprintable()
    assert len(advice) <= 400 + 6 * MAX_FACT_CHARACTERS


def test_a_fact_is_cut_at_its_bound_and_braces_in_it_stay_text():
    cut = advice_on(Reason.PORT_IN_USE, Facts(port="1", holder="x" * 201))
    assert f"{'x' * MAX_FACT_CHARACTERS}...:" in cut
    assert "x" * (MAX_FACT_CHARACTERS + 1) not in cut
    whole = advice_on(Reason.PORT_IN_USE, Facts(port="1", holder="x" * MAX_FACT_CHARACTERS))
    assert f"{'x' * MAX_FACT_CHARACTERS}:" in whole
    assert "{port}" in advice_on(Reason.PORT_IN_USE, Facts(port="1", holder="{port}"))


def test_advice_on_a_fault_that_only_the_log_told_of_presumes_no_xid():
    advice = advice_on(Reason.GPU_FAULT, Facts(logged="llama"))
    assert "If 'vllm-agent history' names an XID" in advice
    assert "log" in advice


def test_a_log_that_only_points_elsewhere_is_not_said_to_name_the_cause():
    advice = advice_on(Reason.EXIT_NONZERO, Facts(logged="llama"))
    assert "'vllm-agent history --log llama'" in advice
    assert advice.endswith("; if they point to an earlier error, its whole log has that.")
