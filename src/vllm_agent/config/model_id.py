"""What can be the id of a model on the Hugging Face Hub. Nothing is asked, no library imported."""

from __future__ import annotations

import re
from typing import Final

MAX_REVISION_LENGTH: Final = 255
"""Of a branch, tag or commit: git holds each part of a reference in a file name of that length."""

MAX_MODEL_LENGTH: Final = 512
"""Of what names a model: an id of the Hub has 96 to a name, and a path is longer."""

# The rules of huggingface_hub's validate_repo_id, which vLLM goes by.
_REPO_ID: Final = re.compile(r"(\b[\w\-.]{1,96}\b/)?\b[\w\-.]{1,96}\b", re.ASCII)
_GGUF: Final = ".gguf"
_QUANTIZATION: Final = re.compile(r"[A-Za-z0-9_]{1,32}")


def why_no_repo_id(text: str) -> str:
    """What keeps `text` from being the id of a repository, as a clause; empty where it is one."""
    if text.count("/") > 1:
        return "an id of the Hub is `name` or `organization/name`"
    if not _REPO_ID.fullmatch(text):
        return (
            "an id of the Hub has letters, digits, '-', '_' and '.' only, at most 96 to a name, and"
            " no name begins or ends with '-' or '.'"
        )
    if "--" in text or ".." in text:
        return "an id of the Hub has no '--' and no '..'"
    if text.endswith(".git"):
        return "an id of the Hub does not end with '.git'"
    return ""


def why_no_model(text: str) -> str:
    """What keeps `text` from being the model that a vLLM is started with, as a clause, or empty.

    That is an id of the Hub, a path, or what else a version of vLLM takes (`s3://...`).
    """
    if not 0 < len(text) <= MAX_MODEL_LENGTH or not text.isprintable() or text != text.strip():
        return f"a model is 1 to {MAX_MODEL_LENGTH} printable characters, no space around them"
    if text.startswith("-"):
        return "a model does not begin with '-': that would be a flag"
    return ""


def divide_model(model: str) -> tuple[str, str] | None:
    """The repository and the part of it that a model names; None where it names none.

    The part is the GGUF file or quantization, as in `org/name:Q4_K_M`; empty for all.
    """
    if not why_no_repo_id(model):
        return model, ""
    repo, _, part = model.rpartition(":")
    if not _QUANTIZATION.fullmatch(part):
        repo, _, part = model.rpartition("/")
        if not part.endswith(_GGUF):
            return None
    # Both forms need the organization, else `name/file.gguf` would be one of them.
    return None if "/" not in repo or why_no_repo_id(repo) else (repo, part)


def is_revision(text: str) -> bool:
    """Whether `text` can be a branch, tag or commit, and is no way out of a folder of them."""
    return (
        0 < len(text) <= MAX_REVISION_LENGTH
        and text.isprintable()
        and not text.startswith("-")
        and all(part not in {"", ".", ".."} for part in text.split("/"))
    )
