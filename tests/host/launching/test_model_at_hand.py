"""What of a launch's model is on this host: real folders and caches."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING, Any

import pytest

from tests.host.hf_hub.cache import Cache
from tests.host.launching.plans import a_plan, some_patience, somebody
from vllm_agent.host.hf_hub.completeness import Presence
from vllm_agent.host.hf_hub.identity import HubRepo
from vllm_agent.host.launching.model_at_hand import CachedModel, model_at_hand
from vllm_agent.host.launching.refusal import Refusal
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from vllm_agent.host.launching.plan import LaunchPlan
    from vllm_agent.host.launching.user import User

WEIGHTS = "model.safetensors"


async def said_of(plan: LaunchPlan, user: User | None = None) -> CachedModel | Refusal | None:
    with some_patience() as patience:
        return await model_at_hand(plan, user, patience)


async def refused(plan: LaunchPlan) -> str:
    refusal = await said_of(plan)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.MODEL_NOT_FOUND
    return refusal.detail


async def cached(plan: LaunchPlan) -> CachedModel:
    found = await said_of(plan)
    assert isinstance(found, CachedModel)
    return found


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path)


def of(cache: Cache, *flags: str, **changes: Any) -> LaunchPlan:
    env = {"HF_HUB_CACHE": f"{cache.root}/cache"} | changes.pop("env", {})
    return a_plan(*flags, env=env, **changes)


@pytest.mark.parametrize("model", ["--trust-remote-code", "", "a\nb", "x" * 600])
async def test_what_can_be_no_model_is_refused(model):
    assert await refused(a_plan(model=model))


@pytest.mark.parametrize("model", ["a/b/c", "org//name", "org/name--x", "~/models/x", "./x"])
async def test_what_is_neither_of_the_hub_nor_on_the_disk_is_refused(model):
    assert model in await refused(a_plan(model=model))


async def test_a_folder_that_is_not_there(tmp_path):
    path = f"{tmp_path}/none"
    text = "there is no such folder or file on the server's disk"
    assert await refused(a_plan(model=path)) == f"{path}: {text}"


async def test_a_folder_without_a_configuration_holds_no_model(tmp_path):
    plan = a_plan(model=str(tmp_path))
    assert await refused(plan) == f"the folder {tmp_path} has no config.json"
    elsewhere = a_plan("--hf-config-path", "org/name", model=str(tmp_path))
    assert await said_of(elsewhere) is None
    (tmp_path / "params.json").write_text("{}")
    assert await said_of(plan) is None


async def test_a_folder_with_one_and_a_file_are_models(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert await said_of(a_plan(model=str(tmp_path))) is None
    (tmp_path / "m.gguf").write_text("")
    assert await said_of(a_plan(model=f"{tmp_path}/m.gguf")) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root looks with the rights of others")
async def test_a_folder_that_may_not_be_looked_into_can_be_there_for_a_group(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir(mode=0o750)
    plan = a_plan(model=f"{folder}/tiny")
    assert isinstance(await said_of(plan), Refusal)
    assert await said_of(plan, somebody()) is None


@pytest.mark.parametrize("model", ["s3://bucket/model", "gs://bucket/a/b/c"])
async def test_a_model_of_an_object_store_is_left_to_vllm(model):
    assert await said_of(a_plan(model=model, is_airgapped=True)) is None


@pytest.mark.parametrize(
    "env", [{"VLLM_USE_MODELSCOPE": "True"}, {"VLLM_MODEL_REDIRECT_PATH": "/etc/models"}]
)
async def test_where_names_mean_something_else_nothing_is_judged(env):
    assert await said_of(a_plan(model="a/b/c", env=env)) is None


async def test_a_model_that_is_to_be_downloaded(cache):
    plan = a_plan(env={"HF_HOME": "/nonexistent/hf"})
    found = await cached(plan)
    assert (found.repo, found.revision) == (HubRepo("org/name"), "main")
    assert found.folder == "/nonexistent/hf/hub"
    assert found.completeness.presence is Presence.ABSENT
    assert (found.done_bytes, found.total_bytes) == (0, None)
    assert (found.is_offline, found.can_ask) == (False, True)


async def test_a_model_that_is_complete(cache):
    cache.index(WEIGHTS)
    cache.add(WEIGHTS, b"12345")
    found = await cached(of(cache, is_airgapped=True))
    assert found.completeness.is_complete
    assert found.done_bytes == 5


async def test_what_is_missing_of_a_model_is_known_by_its_index(cache):
    cache.index("a.safetensors", "b.safetensors", total_size=100)
    cache.add("a.safetensors", b"x" * 40)
    (cache.repo / "blobs/abc.incomplete").write_bytes(b"y" * 5)
    found = await cached(of(cache))
    assert found.completeness.missing == ("b.safetensors",)
    assert (found.done_bytes, found.total_bytes) == (45, 100)


async def test_the_folder_is_that_of_the_server(cache):
    elsewhere = {"HF_HUB_CACHE": "/nonexistent"}
    found = await cached(of(cache, "--download-dir", f"{cache.root}/cache", env=elsewhere))
    assert found.folder == f"{cache.root}/cache"
    assert found.completeness.presence is Presence.INCOMPLETE
    below_home = await cached(a_plan(env={"HOME": "/nonexistent/home"}))
    assert below_home.folder == "/nonexistent/home/.cache/huggingface/hub"
    relative = await cached(a_plan(env={"HF_HOME": "hf"}))
    assert relative.folder == "/hf/hub"
    assert (await cached(a_plan("--download-dir", "models"))).folder == "/models"


async def test_without_a_home_it_is_that_of_the_user_database():
    plan = a_plan()
    homeless = a_plan(env={"HOME": ""})
    assert (await cached(homeless)).folder == "/.cache/huggingface/hub"
    object.__setattr__(plan, "environ", {})
    found = await said_of(plan, somebody())
    assert isinstance(found, CachedModel)
    assert found.folder == "/nonexistent/.cache/huggingface/hub"
    own_home = pwd.getpwuid(os.geteuid()).pw_dir
    assert (await cached(plan)).folder == f"{own_home}/.cache/huggingface/hub"


@pytest.mark.parametrize(
    ("is_airgapped", "env"),
    [
        (True, {}),
        (False, {"HF_HUB_OFFLINE": "1"}),
        (False, {"TRANSFORMERS_OFFLINE": "yes"}),
    ],
)
async def test_without_a_network_all_of_it_must_be_there(cache, is_airgapped, env):
    cache.index(WEIGHTS)
    plan = of(cache, env=env, is_airgapped=is_airgapped)
    assert await said_of(plan) == Refusal(
        Reason.AIRGAPPED,
        "org/name: nothing may be downloaded here, and it lacks model.safetensors "
        f"({cache.root}/cache)",
    )
    cache.add(WEIGHTS)
    found = await cached(plan)
    assert (found.is_offline, found.can_ask) == (True, False)


async def test_without_a_network_the_right_revision_must_be_there(cache):
    refusal = await said_of(of(cache, "--revision", "v2", is_airgapped=True))
    assert isinstance(refusal, Refusal)
    assert "revision v2 is not in the cache" in refusal.detail


async def test_a_part_of_a_model_is_not_judged_by_all_of_it(cache):
    part = of(cache, model="org/name:Q4_K_M", is_airgapped=True)
    found = await cached(part)
    assert found.repo == HubRepo("org/name", "Q4_K_M")
    assert found.completeness.presence is Presence.UNKNOWN
    absent = await said_of(of(cache, model="org/other:Q4_K_M", is_airgapped=True))
    assert isinstance(absent, Refusal)
    # Nor is one whose configuration is elsewhere.
    elsewhere = await cached(of(cache, "--hf-config-path", "org/x", is_airgapped=True))
    assert elsewhere.completeness.presence is Presence.UNKNOWN


async def test_the_size_is_asked_for_only_where_the_hub_can_tell_it(cache):
    assert (await cached(of(cache, "--load-format", "hf"))).can_ask
    assert not (await cached(of(cache, "--load-format", "mistral"))).can_ask
    assert not (await cached(of(cache, model="org/name:Q4_K_M"))).can_ask
