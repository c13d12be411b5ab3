"""`vllm-agent doctor`: what the agent may not see, why, and what would change that.

Exit codes: 0 everything can be seen, 1 something cannot or does not work, 3 no agent runs.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.agent_client import SERVERS_PATH, AgentClient
from vllm_agent.cli.arguments import add_client_flags, state_dir
from vllm_agent.cli.configuration import describe, load_all
from vllm_agent.cli.finding import Finding, Level, has_problem, report_lines
from vllm_agent.cli.findings import agent_findings
from vllm_agent.cli.load_findings import configured_findings
from vllm_agent.cli.outcome import CommandError, ConfigurationError, ExitCode
from vllm_agent.config.flags import FLAGS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping
    from typing import TypeAlias

    from vllm_agent.expose.gpu_view import GpusView

    LocalLook: TypeAlias = Callable[[argparse.Namespace, Mapping[str, str]], Iterator[Finding]]

_FILE_FLAG: Final = next(flag for flag in FLAGS if flag.setting == "config_file")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the file to check, and how to show what was found."""
    parser.add_argument(
        _FILE_FLAG.name,
        dest=_FILE_FLAG.setting,
        metavar=_FILE_FLAG.metavar,
        help=f"Check this configuration file too. [${_FILE_FLAG.variable}]",
    )
    parser.add_argument("--json", action="store_true", help="Print the findings as JSON.")
    add_client_flags(parser)
    parser.epilog = (
        "The exit code is 0 if everything can be seen, 1 if something cannot or does not work, "
        "and 3 if no agent runs."
    )


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Looks at the agent and at what can be judged without one, and tells it all."""
    findings, code = _of_agent(arguments, environ)
    findings += [finding for look in LOCAL_LOOKS for finding in look(arguments, environ)]
    if code is ExitCode.DONE and has_problem(findings):
        code = ExitCode.FAILED
    if arguments.json:
        view = {"exit_code": code, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(view, ensure_ascii=False, separators=(",", ":")))
    else:
        print("\n".join(report_lines(findings)))
    return code


def _of_agent(
    arguments: argparse.Namespace, environ: Mapping[str, str]
) -> tuple[list[Finding], ExitCode]:
    """What the agent says, and the exit code if all of it is well; without one, why not."""
    with AgentClient(state_dir(arguments, environ)) as client:
        try:
            view = client.read(SERVERS_PATH).json
        except CommandError as error:
            return [Finding(Level.PROBLEM, "agent", str(error))], error.exit_code
        gpus, trouble = _gpus(client)
        findings = agent_findings(view, gpus, client.socket_path, time.time())
    return findings + trouble, ExitCode.DONE


def _gpus(client: AgentClient) -> tuple[GpusView | None, list[Finding]]:
    """What the agent says of GPUs, None from one that does not, and why not."""
    try:
        answer = client.gpus()
    except CommandError as error:
        return None, [Finding(Level.PROBLEM, "gpus", str(error))]
    return None if answer is None else answer.json, []


def _configuration(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Iterator[Finding]:
    about = "configuration"
    try:
        _, config = load_all(arguments, environ)
    except ConfigurationError as error:
        for line in str(error).splitlines():
            yield Finding(Level.PROBLEM, about, line)
        return
    if config.source is not None:
        yield Finding(Level.OK, about, describe(config))
    yield from configured_findings(config)


LOCAL_LOOKS: Final[tuple[LocalLook, ...]] = (_configuration,)
"""What can be judged without an agent, and so before the first one is started."""
