"""A recorded ending, done to itself by the server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vllm_agent.demo.standin.endings import ENDINGS, Target

if TYPE_CHECKING:
    from vllm_agent.demo.standin.tree import Tree


def act(name: str, tree: Tree) -> None:
    """Sends the signal of the named ending; called in the main process.

    Without worker processes the engine stands in for the worker.
    """
    ending = ENDINGS[name]
    engine = tree.engines[0]
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
