"""Asks the Hub for the size of one model, in a process of its own: `python -m … REPO REVISION`.

Prints the bytes of the weights that vLLM fetches, or fails with a clause that says why.
"""

from __future__ import annotations

import sys
from typing import Final

from vllm_agent import __version__
from vllm_agent.host.hf_hub.checkpoint import MAX_WEIGHT_BYTES, weights_of

REQUEST_SECONDS: Final = 10.0
"""For the one request, and each step of it; the agent ends the process if it takes much longer."""

MAX_FILES: Final = 20_000
"""Files of a repository that are looked at: the largest have some thousands."""


def main(repo: str, revision: str) -> int:
    """Asks, prints, and gives the exit code."""
    # Only here: the agent itself never holds this library.
    from huggingface_hub import HfApi, get_session  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    # The library would tell the versions of itself and of Python, and give each request an id.
    api = HfApi(token=False, headers={"user-agent": f"vllm-agent/{__version__}"})
    get_session().event_hooks = {}
    try:
        found = api.model_info(
            repo, revision=revision, timeout=REQUEST_SECONDS, files_metadata=True, token=False
        )
        files = {file.rfilename: file.size for file in (found.siblings or [])[:MAX_FILES]}
    except HfHubHTTPError as error:
        return _failed(f"it answered {error.response.status_code} ({type(error).__name__})")
    except Exception as error:  # noqa: BLE001 - whatever a library of others may raise
        return _failed(f"it could not be asked ({type(error).__name__})")
    weights = weights_of(files.keys(), None)
    if not weights:
        return _failed("it lists no weights, or several kinds")
    sizes = [files[name] for name in weights]
    if not all(type(size) is int and 0 <= size <= MAX_WEIGHT_BYTES for size in sizes):
        return _failed("it does not tell all sizes")
    print(sum(size for size in sizes if size is not None))  # noqa: T201 - the answer
    return 0


def _failed(why: str) -> int:
    print(why, file=sys.stderr)  # noqa: T201 - read by who asked
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
