"""The lifecycle and the facts it decides by stay pure: no clock, no log, no I/O."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vllm_agent

PACKAGE = Path(vllm_agent.__file__).parent
SOURCES = [
    path
    for folder in ("lifecycle", "observations")
    for path in sorted((PACKAGE / folder).glob("**/*.py"))
]

ALLOWED_IMPORTS = {
    "__future__",
    "bisect",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "hashlib",
    "http",
    "math",
    "os",
    "signal",
    "string",
    "types",
    "typing",
}
ALLOWED_PROJECT_IMPORTS = ("vllm_agent.lifecycle", "vllm_agent.observations")
ALLOWED_ATTRIBUTES = {
    "os": {"WIFEXITED", "WEXITSTATUS", "WIFSIGNALED", "WTERMSIG"},
    "signal": {"SIGHUP", "SIGTERM", "SIGINT", "SIGKILL"},
}
"""What the modules with side effects are there for: reading wait statuses, naming signals."""
FORBIDDEN_CALLS = {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module is not None
            found.add(node.module)
    return found


def impurities(source: str) -> list[str]:
    """Everything in `source` that could reach outside, in words."""
    tree = ast.parse(source)
    found = [
        f"imports {module}"
        for module in imports(tree)
        if module not in ALLOWED_IMPORTS and not module.startswith(ALLOWED_PROJECT_IMPORTS)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ALLOWED_ATTRIBUTES:
            found.append(f"imports from {node.module}")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            allowed = ALLOWED_ATTRIBUTES.get(node.value.id)
            if allowed is not None and node.attr not in allowed:
                found.append(f"uses {node.value.id}.{node.attr}")
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_CALLS:
            found.append(f"uses {node.id}")
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.Global | ast.Nonlocal):
            found.append(f"has {type(node).__name__}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_lifecycle_reaches_nothing_outside(path: Path) -> None:
    assert impurities(path.read_text()) == []


def test_all_of_the_lifecycle_is_looked_at() -> None:
    assert {"step.py", "ending.py", "transitions.py", "by_process.py", "processes.py"} <= {
        path.name for path in SOURCES
    }


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from datetime import datetime",
        "import logging",
        "import asyncio",
        "import aiohttp",
        "from vllm_agent.snapshot import AgentSnapshot",
        "import os\nos.getpid()",
        "import os\nos.environ",
        "from os import kill",
        "import signal\nsignal.alarm(1)",
        "open('x')",
        "print('x')",
        "async def f(): pass",
        "def f():\n    global x",
    ],
)
def test_every_kind_of_impurity_is_found(source: str) -> None:
    assert impurities(source)
