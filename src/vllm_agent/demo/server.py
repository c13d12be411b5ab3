"""`python -m vllm_agent.demo.server [serve] [MODEL] …`: the stand-in vLLM as a program."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
from typing import TYPE_CHECKING

from vllm_agent.demo.standin import process
from vllm_agent.demo.standin.load import Load, LoadFailed, report_port_in_use
from vllm_agent.demo.standin.log import Log
from vllm_agent.demo.standin.metrics_page import MetricsPage
from vllm_agent.demo.standin.options import parse

if TYPE_CHECKING:
    import socket

    from vllm_agent.demo.standin.options import Options

# Set by the launcher: a descriptor that is written once the port listens …
READY_FD_VARIABLE = "VLLM_STANDIN_READY_FD"
# … and the seconds after which a forgotten server ends by SIGALRM.
LIFETIME_VARIABLE = "VLLM_STANDIN_LIFETIME"


def main() -> int:
    """Runs one server in this process and its children; returns the exit status."""
    options = parse(sys.argv[1:])
    process.forbid_core_dumps()
    process.set_name("vllm")
    process.die_slowly()
    lifetime = os.environ.get(LIFETIME_VARIABLE)
    if lifetime is not None:
        signal.alarm(int(lifetime))
    log = Log("MainProcess" if options.several_processes else "APIServer")
    try:
        status = _run(options, log)
    except LoadFailed as failed:
        if failed.status < 0:
            process.die_by(-failed.status)
        return failed.status
    return status if options.exit_code is None else options.exit_code


def _run(options: Options, log: Log) -> int:
    load = Load(options, log)
    sock = load.begin()
    load.start_engines()
    metrics = MetricsPage(options)
    # aiohttp is slow to import: the engines load meanwhile, and stay free of it. A third of
    # that is the CA bundle for its client, which no server needs.
    os.environ["SSL_CERT_FILE"] = os.environ["SSL_CERT_DIR"] = os.devnull
    if options.several_processes:
        from vllm_agent.demo.standin.several import Watcher  # noqa: PLC0415  see above

        return Watcher(options, log, load, sock, metrics).run(_tell_launcher)
    return _run_single(options, log, load, sock, metrics)


def _run_single(
    options: Options, log: Log, load: Load, sock: socket.socket, metrics: MetricsPage
) -> int:
    from vllm_agent.demo.standin.single import SingleServer  # noqa: PLC0415  see above

    load.wait()

    async def serve() -> int:
        server = SingleServer(options, log, metrics, load.tree)
        server.watch_engines()
        clients = [engine.clients[0] for engine in load.tree.engines]
        return await server.serve(sock, clients, _tell_launcher)

    try:
        return asyncio.run(serve())
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # Two servers may bind one port; the second to listen loses, after its whole load.
        report_port_in_use(log)
        load.tree.kill_engines()
        return 1


def _tell_launcher() -> None:
    fd = os.environ.pop(READY_FD_VARIABLE, None)
    if fd is not None:
        with contextlib.suppress(OSError):
            os.write(int(fd), b"\n")
            os.close(int(fd))


if __name__ == "__main__":
    sys.exit(main())
