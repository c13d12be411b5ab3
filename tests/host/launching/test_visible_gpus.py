"""Which GPUs a server will see."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.gpu.scene import gpu
from vllm_agent.host.launching.visible_gpus import are_hidden, named, visible_gpus
from vllm_agent.observations import GpuVendor

UUIDS = ("GPU-8932f937-d72c", "GPU-8932aaaa-0000", "GPU-11111111-0000")
CARDS = tuple(gpu(str(n), uuid=uuid) for n, uuid in enumerate(UUIDS))
CUT = gpu("3", uuid="GPU-33333333-0000", memory_total_bytes=None, memory_free_bytes=None)
PARTS = tuple(
    gpu(f"3:{n}", uuid=f"MIG-0{n}000000-0000", parent_uuid=CUT.uuid, name="NVIDIA H100 MIG 1g")
    for n in range(2)
)
ALL = (*CARDS, CUT, *PARTS)


def seen(asked: str | None = None, devices=ALL, **environ: str) -> list[str]:
    if asked is not None:
        environ["CUDA_VISIBLE_DEVICES"] = asked
    visible = visible_gpus(devices, environ)
    assert visible.count == len(visible.candidates)
    assert visible.is_ordered
    return [one.index for one in visible.candidates]


def test_without_the_variable_every_device_is_seen_and_no_instance_of_one():
    assert seen() == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("0", ["0"]),
        ("2,1", ["2", "1"]),
        (" 2 , 0", ["2", "0"]),
        ("0,2,-1,1", ["0", "2"]),  # the example of the CUDA Programming Guide
        ("0,9,1", ["0"]),
        ("0,0", ["0"]),
        ("1x,2", ["1", "2"]),
        ("x", []),
        (UUIDS[0], ["0"]),
        ("GPU-8932f,GPU-1", ["0", "2"]),
        ("GPU-8932", []),  # which of two?
        ("GPU-1,GPU-no", ["2"]),
        ("GPU-1,0", ["2"]),
        ("GPU-1,MIG-01000000-0000", ["2"]),
        ("MIG-01000000-0000", ["3:1"]),
        (f"MIG-{CUT.uuid}/1/0".replace("33333333-0000", "no"), []),
        ("MIG-0", []),
        ("GPU-33333333-0000", ["3"]),
    ],
)
def test_the_variable_chooses_in_its_order_up_to_what_is_none(asked, expected):
    assert seen(asked) == expected


def test_the_older_name_of_an_instance_stands_for_its_device_whose_memory_is_unknown():
    cut = gpu("0", uuid="GPU-8932f937-d72c")
    assert seen("MIG-GPU-8932f937-d72c/1/2", (cut,)) == ["0"]


def test_a_lost_device_is_not_seen():
    lost = (CARDS[0], CARDS[1].lost(), CARDS[2])
    assert seen(None, lost) == ["0", "2"]
    assert seen("0,1,2", lost) == ["0"]


def test_with_devices_of_several_kinds_an_index_may_mean_any():
    devices = (CARDS[0], gpu("1", uuid="GPU-2", name="NVIDIA L4"))
    visible = visible_gpus(devices, {"CUDA_VISIBLE_DEVICES": "1"})
    assert (visible.candidates, visible.count, visible.is_ordered) == (devices, 1, False)
    assert seen("1", devices, CUDA_DEVICE_ORDER="PCI_BUS_ID") == ["1"]
    assert seen("GPU-2", devices) == ["1"]


def test_of_amd_nothing_is_known_of_order_and_number():
    card = gpu("0", uuid="GPU-00ff", vendor=GpuVendor.AMD)
    graphics = gpu("1", uuid="0000:0c:00.0", vendor=GpuVendor.AMD)
    visible = visible_gpus((card, graphics), {"CUDA_VISIBLE_DEVICES": "0"})
    assert (visible.candidates, visible.count, visible.is_ordered) == ((card,), None, False)
    # Beside an NVIDIA device it is meant only where it is named.
    assert seen(None, (card, graphics, CARDS[0])) == ["0"]
    asked = visible_gpus((card, CARDS[0]), {"HIP_VISIBLE_DEVICES": "0"})
    assert asked.candidates == (card,)


@pytest.mark.parametrize(
    ("environ", "is_hidden"),
    [
        ({}, False),
        ({"CUDA_VISIBLE_DEVICES": "0"}, False),
        ({"CUDA_VISIBLE_DEVICES": ""}, True),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, True),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, True),
        ({"VLLM_CPU_KVCACHE_SPACE": "4"}, True),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, False),
    ],
)
def test_a_server_may_be_shown_none(environ, is_hidden):
    assert are_hidden(environ) is is_hidden


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ""),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "CUDA_VISIBLE_DEVICES=0,1"),
        ({"CUDA_VISIBLE_DEVICES": ""}, ""),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, ""),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, ""),
        ({"NVIDIA_VISIBLE_DEVICES": "1"}, "NVIDIA_VISIBLE_DEVICES=1"),
        ({"ROCR_VISIBLE_DEVICES": "1"}, "ROCR_VISIBLE_DEVICES=1"),
    ],
)
def test_what_names_gpus(environ, expected):
    assert named(environ) == expected


@given(st.text(alphabet="0123456789-+,GPUMIabcf/ \u0661", max_size=40))
def test_no_value_is_too_strange(asked):
    visible = visible_gpus(ALL, {"CUDA_VISIBLE_DEVICES": asked})
    assert visible.count == len(set(visible.candidates))
