"""An ending that was asked for, done to itself by the server."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from vllm_agent.demo.standin.endings import ENDINGS, Target

if TYPE_CHECKING:
    from vllm_agent.demo.standin.options import Options
    from vllm_agent.demo.standin.tree import Tree


def act(options: Options, tree: Tree) -> bool:
    """Sends the signal of the ending that the options name, if any; called in the main process.

    Without worker processes the engine stands in for the worker.
    """
    engine = tree.engines[0]
    if options.fail_serving is not None:
        return engine.send(signal.SIGUSR2)
    if options.ending is None:
        return False
    ending = ENDINGS[options.ending]
    match ending.target:
        case Target.ENGINE:
            engine.send(ending.signum)
        case Target.WORKER:
            (engine.workers or [engine])[0].send(ending.signum)
        case Target.API_SERVER:
            tree.api_servers[0].send(ending.signum)
        case Target.GROUP:
            for one in tree.everyone():
                one.send(ending.signum)
            os.kill(os.getpid(), ending.signum)
        case Target.MAIN:
            os.kill(os.getpid(), ending.signum)
    return True
