from __future__ import annotations

import os
from contextlib import suppress

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id
from hypothesis import example, given
from hypothesis import strategies as st

from vllm_agent.config.model_id import MAX_REVISION_LENGTH, is_revision, why_no_repo_id
from vllm_agent.host.contained_tree import open_tree
from vllm_agent.host.hf_hub.identity import (
    HubRepo,
    LocalFile,
    LocalFolder,
    Model,
    Unidentified,
    identify,
)

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def is_valid(text: str) -> bool:
    with suppress(HFValidationError):
        validate_repo_id(text)
        return True
    return False


@given(st.text() | st.text("ab-_./é\n", max_size=12) | st.from_regex(r"[\w.\-]{90,100}/?[\w.]*"))
@example("a" * 96 + "/" + "b" * 96)
@example("a" * 97)
@example("a/b\n")
@example("a.git")
@example("a/-b")
@example("_a/b_")
def test_ids_are_those_that_the_real_library_takes(text):
    assert (why_no_repo_id(text) == "") is is_valid(text)


@given(st.text() | st.text("ab-_./:~é\n", max_size=12))
def test_whatever_is_given_is_something(text):
    model = identify(text)
    if isinstance(model, HubRepo):
        assert is_valid(model.id)
        assert not model.id.startswith("-")
        assert model.page_url == f"https://huggingface.co/{model.id}"
        assert text.startswith(model.id)
    elif isinstance(model, Unidentified):
        assert model.why


@pytest.mark.parametrize(
    ("given_as", "expected"),
    [
        (LLAMA, HubRepo(LLAMA)),
        ("gpt2", HubRepo("gpt2")),
        ("org/name-GGUF:Q4_K_M", HubRepo("org/name-GGUF", "Q4_K_M")),
        ("org/name-GGUF/sub-q4.gguf", HubRepo("org/name-GGUF", "sub-q4.gguf")),
        ("/models/llama", LocalFolder("/models/llama")),
        ("./llama", LocalFolder("./llama")),
        ("..", LocalFolder("..")),
        ("~/llama", LocalFolder("~/llama")),
        ("/models/llama-q4.gguf", LocalFile("/models/llama-q4.gguf")),
    ],
)
def test_model_is_told_by_its_name_alone(given_as, expected):
    assert identify(given_as) == expected


@pytest.mark.parametrize(
    ("given_as", "why"),
    [
        (None, "no model is given, and vLLM takes its default"),
        ("", "no model is given, and vLLM takes its default"),
        ("--help", "no model begins with '-'"),
        ("-org/name", "no model begins with '-'"),
        ("s3://bucket/model", "it is the address of an object store, not of the Hub"),
        ("https://huggingface.co/org/name", "it is the address of an object store, not of the Hub"),
        ("a/b/c", "an id of the Hub is `name` or `organization/name`"),
        ("a--b", "an id of the Hub has no '--' and no '..'"),
        ("org/a..b", "an id of the Hub has no '--' and no '..'"),
        ("org/name.git", "an id of the Hub does not end with '.git'"),
        (":Q4", "an id of the Hub has letters,"),
        ("name/file.gguf/", "an id of the Hub is"),
        ("x\x1b[2J", "an id of the Hub has letters,"),
    ],
)
def test_what_is_no_model_is_told_in_a_sentence(given_as, why):
    model = identify(given_as)
    assert isinstance(model, Unidentified)
    assert model.why.startswith(why)


def test_what_is_on_the_disk_comes_before_the_hub(tmp_path):
    (tmp_path / "root/srv/org/name").mkdir(parents=True)
    (tmp_path / "root/srv/model.gguf").write_text("x")
    (tmp_path / "root/srv/link").symlink_to("/srv/org")
    (tmp_path / "root/srv/out").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "root/srv/pipe")
    with open_tree(str(tmp_path / "root"), "/srv") as files:

        def told(model: str) -> Model:
            return identify(model, files)

        assert told("org/name") == LocalFolder("org/name")
        assert told("/srv/org/name") == LocalFolder("/srv/org/name")
        assert told("./org") == LocalFolder("./org")
        assert told("link/name") == LocalFolder("link/name")
        assert told("model.gguf") == LocalFile("model.gguf")
        assert told("org/other") == HubRepo("org/other")
        assert told("out") == HubRepo("out")  # it leads to nothing that the process can see
        assert told("pipe") == HubRepo("pipe")
        for missing in ("/srv/nothing", "./nothing", "~/x", str(tmp_path)):
            assert told(missing) == Unidentified(
                "there is no such folder or file on the server's disk"
            )


@pytest.mark.parametrize("text", ["main", "v1.0", "refs/pr/1", "a" * MAX_REVISION_LENGTH, "0" * 40])
def test_revisions(text):
    assert is_revision(text)


@pytest.mark.parametrize(
    "text",
    ["", "/", "..", "a/../b", "a//b", "a/", "-x", "a\nb", "a\0b", "a" * (MAX_REVISION_LENGTH + 1)],
)
def test_no_revision_leads_out_of_its_folder(text):
    assert not is_revision(text)
