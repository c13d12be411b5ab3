"""AMD GPUs, in a tree of files as the kernel shows them."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.gpu.amd_tree import GIB, AmdTree, drm_info, location
from tests.host.gpu.scene import no_fault
from vllm_agent.host.gpu import amdgpu, amdgpu_processes
from vllm_agent.host.gpu.amdgpu import (
    ECC_SECONDS,
    AmdgpuReader,
    parse_err_count,
    parse_unique_id,
    parse_watts,
)
from vllm_agent.host.gpu.amdgpu_processes import (
    MAX_FDS,
    DrmClient,
    parse_bus_id,
    parse_drm_client,
)
from vllm_agent.host.gpu.reader import DriverError, NoDriverError
from vllm_agent.host.gpu.sysfs import MAX_TEXT_LENGTH, parse_number, parse_text
from vllm_agent.observations import Gpu, GpuProcess, GpuVendor

if TYPE_CHECKING:
    from collections.abc import Collection

FIRST = "0000:0c:00.0"
SECOND = "0000:c3:00.0"
SERVER, WORKER, OTHER = 4001, 4002, 9000


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def tree(tmp_path):
    return AmdTree(tmp_path)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def card(tree):
    return tree.add_card(1, FIRST, unique_id="9f3c6e1d2b4a5870")


@pytest.fixture
def reader(tree, clock):
    return AmdgpuReader(tree.sys_root, tree.proc_root, clock=clock)


def opened(reader: AmdgpuReader) -> AmdgpuReader:
    reader.open()
    return reader


def one(reader: AmdgpuReader, pids: Collection[int] = ()) -> Gpu:
    """What is told of the only device."""
    if not reader._devices:
        reader.open()
    (gpu,) = reader.read(pids, no_fault)
    return gpu


# --- which devices there are


def test_no_drm(tmp_path):
    with pytest.raises(NoDriverError, match="/class/drm"):
        AmdgpuReader(tmp_path).open()


def test_drm_that_cannot_be_listed(tmp_path):
    (tmp_path / "class").mkdir()
    (tmp_path / "class/drm").write_text("no folder")
    with pytest.raises(DriverError, match="cannot be listed: Not a directory"):
        AmdgpuReader(tmp_path).open()


@pytest.mark.parametrize("driver", ["i915", "nvidia", "radeon", "vfio-pci"])
def test_no_card_is_one_of_amdgpu(tree, reader, driver):
    tree.add_card(0, FIRST, driver=driver)
    with pytest.raises(NoDriverError, match="amdgpu"):
        reader.open()


def test_devices_are_numbered_by_their_place_on_the_bus(tree, reader):
    # The domain is as long as it needs to be: the order is not that of text.
    for number, bus_id in enumerate(["10000:01:00.0", "c05a:00:00.0", FIRST], 1):
        tree.add_card(number, bus_id)
    tree.add_card(0, "0000:00:02.0", driver="i915")
    gpus = opened(reader).read((), no_fault)
    assert [(gpu.index, gpu.pci_bus_id) for gpu in gpus] == [
        ("0", FIRST),
        ("1", "c05a:00:00.0"),
        ("2", "10000:01:00.0"),
    ]


def test_a_partition_of_a_device_is_no_device(tree, card, reader):
    platform = tree.sys_root / "devices/platform/amdgpu_xcp_0/drm/card2"
    platform.mkdir(parents=True)
    (platform / "device").symlink_to("../..")
    (platform / "../../driver").symlink_to("../../bus/platform/drivers/amdgpu")
    (tree.drm / "card2").symlink_to(platform)
    assert one(reader).pci_bus_id == FIRST


def test_many_devices(tree, reader, monkeypatch, caplog):
    monkeypatch.setattr(amdgpu, "MAX_DEVICES", 1)
    tree.add_card(0, SECOND)
    tree.add_card(1, FIRST)
    assert one(reader).pci_bus_id == FIRST
    assert caplog.records[0].gpus == 2


# --- what is told of one


def test_a_device(tree, card, reader):
    card.write("product_name", "AMD Instinct MI300X OAM")
    card.write("mem_info_vram_used", 150 * GIB)
    card.write("gpu_busy_percent", 97)
    card.sensor("temp1_label", "edge")
    card.sensor("temp1_input", 61000)
    card.sensor("temp2_label", "junction")
    card.sensor("temp2_input", 72000)
    card.sensor("power1_average", 612_000_000)
    card.sensor("power1_cap", 750_000_000)
    card.write("ras/umc_err_count", "ue: 1\nce: 40\nde: 3")
    card.write("ras/gfx_err_count", "ue: 0\nce: 2")
    card.write("ras/features", "ue: 9\nce: 9")
    (tree.sys_root / "module/amdgpu").mkdir(parents=True)
    (tree.sys_root / "module/amdgpu/version").write_text("6.12.12\n")
    tree.add_node(0)
    tree.add_node(4711, location(FIRST))
    tree.add_compute_process(WORKER, vram_4711=140 * GIB, sdma_4711=5)
    assert one(reader) == Gpu(
        index="0",
        uuid="GPU-9f3c6e1d2b4a5870",
        vendor=GpuVendor.AMD,
        name="AMD Instinct MI300X OAM",
        driver_version="6.12.12",
        pci_bus_id=FIRST,
        memory_total_bytes=192 * GIB,
        memory_used_bytes=150 * GIB,
        memory_free_bytes=42 * GIB,
        utilization_ratio=0.97,
        temperature_celsius=61.0,
        power_watts=612.0,
        power_limit_watts=750.0,
        ecc_uncorrected_errors=1,
        ecc_corrected_errors=42,
        processes=(GpuProcess(WORKER, 140 * GIB),),
    )


def test_a_device_that_tells_little(tree, reader):
    card = tree.add_card(0, FIRST)
    for name in ("mem_info_vram_total", "mem_info_vram_used", "gpu_busy_percent", "device"):
        card.remove(name)
    next((card.folder / "hwmon").iterdir()).rmdir()
    assert one(reader) == Gpu(
        index="0", uuid=FIRST, vendor=GpuVendor.AMD, pci_bus_id=FIRST, processes=()
    )


def test_garbage(tree, card, reader):
    for name in ("unique_id", "product_name", "device", "power/runtime_status"):
        card.write(name, "")
    for name in ("mem_info_vram_total", "mem_info_vram_used", "gpu_busy_percent"):
        card.write(name, "Query currently inaccessible")
    card.write("ras/umc_err_count", "Query currently inaccessible")
    for name in ("temp1_label", "temp1_input", "power1_average", "power1_cap"):
        card.sensor(name, "\0\0")
    assert one(reader) == Gpu(
        index="0", uuid=FIRST, vendor=GpuVendor.AMD, pci_bus_id=FIRST, processes=()
    )


@pytest.mark.parametrize("size", [-1, "18446744073709551616000"])
def test_sizes_that_cannot_be(card, reader, size):
    card.write("mem_info_vram_used", size)
    gpu = one(reader)
    assert (gpu.memory_used_bytes, gpu.memory_free_bytes) == (None, None)


def test_a_name_is_made_of_the_device_id(card, reader):
    assert one(reader).name == "AMD 0x74a1"


@pytest.mark.parametrize(
    ("text", "uuid"),
    [
        ("9f3c6e1d2b4a5870", "GPU-9f3c6e1d2b4a5870"),
        ("1D2B4A5870", "GPU-0000001d2b4a5870"),
        ("0000000000000000", None),
        ("N/A", None),
        ("12345678123456781", None),
        (None, None),
    ],
)
def test_unique_id(text, uuid):
    assert parse_unique_id(text) == uuid


@pytest.mark.parametrize(
    ("labels", "celsius"),
    [
        (["edge", "junction", "mem"], 41.0),
        (["junction", "mem"], 41.0),
        (["mem", "junction"], 42.0),
        (["mem"], None),
    ],
)
def test_temperature(card, reader, labels, celsius):
    for number, label in enumerate(labels, 1):
        card.sensor(f"temp{number}_label", label)
        card.sensor(f"temp{number}_input", 40_000 + number * 1000)
    assert one(reader).temperature_celsius == celsius


def test_the_next_temperature_where_the_first_fails(card, reader):
    card.sensor("temp1_label", "edge")
    card.sensor("temp2_label", "junction")
    card.sensor("temp2_input", -3500)
    assert one(reader).temperature_celsius == -3.5


def test_power_of_now_where_there_is_no_average(card, reader):
    card.sensor("power1_input", 90_500_000)
    assert one(reader).power_watts == 90.5
    card.sensor("power1_average", 4_294_967_295)  # EPERM of a kernel around 6.6
    assert one(reader).power_watts == 90.5


def test_a_limit_of_nothing_is_unknown(card, reader):
    card.sensor("power1_cap", 0)
    assert one(reader).power_limit_watts is None


@pytest.mark.parametrize("percent", [101, -1])
def test_utilization_beyond_reason(card, reader, percent):
    card.write("gpu_busy_percent", percent)
    assert one(reader).utilization_ratio is None


@pytest.mark.parametrize("status", ["suspended", "suspending"])
def test_a_device_that_sleeps_is_not_woken(card, reader, status):
    card.write("power/runtime_status", status)
    card.write("gpu_busy_percent", 5)
    card.sensor("power1_average", 1_000_000)
    card.write("ras/umc_err_count", "ue: 1\nce: 1")
    gpu = one(reader)
    assert gpu.memory_used_bytes == 2 * GIB
    assert (gpu.utilization_ratio, gpu.power_watts, gpu.ecc_corrected_errors) == (None,) * 3


def test_ecc_is_asked_for_rarely(card, reader, clock):
    card.write("ras/umc_err_count", "ue: 0\nce: 1")
    assert one(reader).ecc_corrected_errors == 1
    card.write("ras/umc_err_count", "ue: 0\nce: 5")
    clock.seconds += ECC_SECONDS - 1
    assert one(reader).ecc_corrected_errors == 1
    clock.seconds += 1
    assert one(reader).ecc_corrected_errors == 5


def test_the_sum_of_ecc_errors_does_not_fall_while_a_block_is_silent(card, reader, clock):
    card.write("ras/umc_err_count", "ue: 0\nce: 7")
    card.write("ras/gfx_err_count", "ue: 2\nce: 1")
    card.write("ras/mp0_err_count", "")
    assert one(reader).ecc_corrected_errors == 8
    card.write("ras/umc_err_count", "Query currently inaccessible")
    card.write("ras/gfx_err_count", "ue: 2\nce: 2")
    clock.seconds += ECC_SECONDS
    gpu = one(reader)
    assert (gpu.ecc_corrected_errors, gpu.ecc_uncorrected_errors) == (9, 2)


def test_many_blocks(card, reader, monkeypatch):
    monkeypatch.setattr(amdgpu, "MAX_RAS_BLOCKS", 2)
    for name in ("a", "b", "c"):
        card.write(f"ras/{name}_err_count", "ue: 0\nce: 1")
    assert one(reader).ecc_corrected_errors == 2


# --- devices that are lost


def test_a_device_that_vanishes_is_lost_and_the_other_goes_on(tree, card, reader):
    other = tree.add_card(2, SECOND)
    tree.add_node(11, location(FIRST))
    tree.add_node(22, location(SECOND))
    assert [gpu.is_lost for gpu in opened(reader).read((), no_fault)] == [False, False]
    tree.pull(card)
    lost, there = reader.read((), no_fault)
    assert lost == Gpu(
        index="0",
        uuid="GPU-9f3c6e1d2b4a5870",
        vendor=GpuVendor.AMD,
        name="AMD 0x74a1",
        pci_bus_id=FIRST,
        is_lost=True,
    )
    assert (there.index, there.pci_bus_id, there.is_lost) == ("1", SECOND, False)
    assert there.memory_total_bytes == 192 * GIB
    other.unbind()
    assert all(gpu.is_lost for gpu in reader.read((), no_fault))


def test_a_device_comes_back_under_its_number(tree, card, reader):
    tree.add_card(2, SECOND)
    reader.open()
    card.unbind()
    assert [gpu.is_lost for gpu in reader.read((), no_fault)] == [True, False]
    card.bind()
    tree.link_card(7, card)  # the kernel gives it another name
    assert [gpu.is_lost for gpu in reader.read((), no_fault)] == [False, False]


def test_a_device_that_comes_late_is_found(tree, card, reader):
    assert one(reader).pci_bus_id == FIRST
    tree.add_card(2, SECOND)
    assert [gpu.pci_bus_id for gpu in reader.read((), no_fault)] == [FIRST, SECOND]


def test_devices_are_looked_for_when_it_is_opened_again(tree, card, reader):
    card.unbind()
    tree.add_card(2, SECOND)
    assert one(reader).pci_bus_id == SECOND
    card.bind()
    reader.open()
    assert [gpu.pci_bus_id for gpu in reader.read((), no_fault)] == [FIRST, SECOND]


def test_a_device_whose_memory_cannot_be_read_is_lost(tree, card, reader):
    reader.open()
    card.break_file("mem_info_vram_used")
    assert one(reader).is_lost
    assert one(reader).memory_total_bytes is None


@pytest.mark.parametrize(
    ("number", "is_lost"), [(errno.ENODEV, True), (errno.EIO, True), (errno.EPERM, False)]
)
def test_errors_of_the_kernel(card, reader, monkeypatch, number, is_lost):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    reader.open()
    monkeypatch.setattr(amdgpu, "open", fail, raising=False)
    assert one(reader).is_lost is is_lost


def test_a_sensor_that_fails_does_not_make_it_lost(card, reader):
    card.break_file("gpu_busy_percent")
    gpu = one(reader)
    assert (gpu.is_lost, gpu.utilization_ratio) == (False, None)


def test_close_does_nothing(card, reader):
    reader.close()
    one(reader)
    reader.close()
    reader.close()
    assert reader.name == "amdgpu"


# --- who holds the memory, by KFD


def test_processes_of_two_devices(tree, card, reader):
    tree.add_card(2, SECOND)
    tree.add_node(0)
    tree.add_node(11, location(FIRST))
    tree.add_node(22, location(SECOND))
    tree.add_compute_process(SERVER, vram_11=0, vram_22=0)
    tree.add_compute_process(WORKER, vram_11=GIB, vram_22=7)
    tree.add_compute_process(OTHER, vram_11=0, vram_22=2 * GIB)
    first, second = opened(reader).read([SERVER], no_fault)
    assert first.processes == (GpuProcess(WORKER, GIB),)
    assert second.processes == (GpuProcess(WORKER, 7), GpuProcess(OTHER, 2 * GIB))


def test_nobody_holds_anything(tree, card, reader):
    tree.add_node(0, location(FIRST))  # a processor
    tree.add_node(11, location(FIRST))
    tree.add_compute_process(WORKER, vram_0=GIB)
    assert one(reader).processes == ()


def test_a_process_that_ends_between_two_files(tree, card, reader):
    tree.add_node(11, location(FIRST))
    tree.add_compute_process(WORKER)
    assert one(reader).processes == ()


@pytest.mark.parametrize("amount", ["", "much", -1])
def test_an_amount_that_is_none_is_unknown(tree, card, reader, amount):
    tree.add_node(11, location(FIRST))
    tree.add_compute_process(WORKER, vram_11=amount)
    assert one(reader).processes == (GpuProcess(WORKER, None),)


def test_the_partitions_of_a_device_are_one(tree, card, reader):
    # The number of the partition is in the function, or in the highest bits.
    tree.add_node(11, location(FIRST))
    tree.add_node(12, location(FIRST) | 1)
    tree.add_node(13, location(FIRST) | 2 << 28)
    tree.add_compute_process(WORKER, vram_11=1, vram_12=10, vram_13=100)
    assert one(reader).processes == (GpuProcess(WORKER, 111),)


def test_the_functions_of_a_device_are_several(tree, reader):
    tree.add_card(0, "0000:0c:00.1")
    tree.add_card(1, "0000:0c:00.0")
    tree.add_node(10, location("0000:0c:00.0"))
    tree.add_node(11, location("0000:0c:00.1"))
    tree.add_compute_process(WORKER, vram_10=3, vram_11=4)
    first, second = opened(reader).read((), no_fault)
    assert first.processes == (GpuProcess(WORKER, 3),)
    assert second.processes == (GpuProcess(WORKER, 4),)


def test_many_processes_those_asked_for_first(tree, card, reader, monkeypatch, caplog):
    monkeypatch.setattr(amdgpu_processes, "MAX_PROCESSES", 2)
    tree.add_node(11, location(FIRST))
    for pid in (1001, 1002, 1003, 1004):
        tree.add_compute_process(pid, vram_11=pid)
    told = one(reader, [1004]).processes
    assert told == (GpuProcess(1004, 1004), GpuProcess(1001, 1001))
    one(reader)
    (record,) = caplog.records
    assert (record.processes, record.looked_at) == (4, 2)


def test_many_nodes(tree, card, reader, monkeypatch):
    monkeypatch.setattr(amdgpu_processes, "MAX_NODES", 0)
    tree.add_node(11, location(FIRST))
    tree.add_compute_process(WORKER, vram_11=GIB)
    assert one(reader).processes == ()


# --- who holds the memory, by DRM


def test_drm_where_there_is_no_kfd(tree, card, reader):
    tree.add_card(2, SECOND)
    tree.open_device(WORKER, 8, FIRST, client=5, vram="3 MiB")
    tree.open_device(WORKER, 9, FIRST, client=5, vram="3 MiB")  # duplicated
    tree.open_device(WORKER, 10, FIRST, client=6, vram="1024 KiB", key="memory")
    tree.open_device(WORKER, 11, SECOND, client=5, vram="100")
    tree.open_device(OTHER, 4, FIRST, client=5, vram="3 MiB")  # inherited
    tree.open_file(OTHER, 5, "/dev/null", drm_info(SECOND, 77, "9 MiB"))
    tree.open_file(OTHER, 6, "socket:[1234]")
    tree.open_device(OTHER, 7, SECOND, client=8, vram="0")
    tree.open_device(OTHER, 8, "0000:ff:00.0", client=8, vram="1 MiB")
    tree.open_device(SERVER, 3, FIRST, client=9, vram="7 MiB")  # not asked for
    first, second = opened(reader).read([OTHER, WORKER, 99999], no_fault)
    assert first.processes == (GpuProcess(WORKER, 4 * 1024**2),)
    assert second.processes == (GpuProcess(WORKER, 100),)


def test_drm_where_the_topology_is_hidden(tree, card, reader):
    # as in a container that may not use the device
    node = tree.add_node(11, location(FIRST))
    (node / "gpu_id").unlink()
    tree.add_compute_process(WORKER, vram_11=GIB)
    assert one(reader).processes == ()
    tree.open_device(WORKER, 8, FIRST, client=5, vram="3 MiB")
    assert one(reader, [WORKER]).processes == (GpuProcess(WORKER, 3 * 1024**2),)


def test_neither_kfd_nor_drm_tells(tree, card, reader):
    refused = tree.proc_root / str(WORKER)
    refused.mkdir()
    (refused / "fd").write_text("cannot be listed")
    assert one(reader, [WORKER]).processes is None
    tree.open_device(OTHER, 8, FIRST, client=5, vram="3 MiB")
    assert one(reader, [WORKER, OTHER]).processes == (GpuProcess(OTHER, 3 * 1024**2),)


def test_processes_that_are_gone_refuse_nothing(card, reader):
    assert one(reader, [WORKER]).processes == ()


def test_a_file_that_was_closed(tree, card, reader):
    tree.open_device(WORKER, 8, FIRST, client=5, vram="3 MiB")
    (tree.proc_root / f"{WORKER}/fdinfo/8").unlink()
    (tree.proc_root / f"{WORKER}/fd/9").write_text("no link")
    assert one(reader, [WORKER]).processes == ()


def test_many_open_files(tree, card, reader, monkeypatch):
    monkeypatch.setattr(amdgpu_processes, "MAX_FDS", 0)
    tree.open_device(WORKER, 8, FIRST, client=5, vram="3 MiB")
    assert one(reader, [WORKER]).processes == ()
    assert MAX_FDS == 4096


def test_many_processes_with_open_files(tree, card, reader, monkeypatch, caplog):
    monkeypatch.setattr(amdgpu_processes, "MAX_PROCESSES", 1)
    tree.open_device(WORKER, 8, FIRST, client=5, vram="3 MiB")
    tree.open_device(OTHER, 8, FIRST, client=6, vram="3 MiB")
    assert one(reader, [OTHER, WORKER]).processes == (GpuProcess(WORKER, 3 * 1024**2),)
    assert caplog.records[0].processes == 2


# --- the formats


def test_drm_client():
    info = drm_info(FIRST, 5, "12 KiB").encode()
    assert parse_drm_client(info) == DrmClient(FIRST, 5, 12 * 1024)
    both = info + b"drm-memory-vram:\t99 MiB\n"
    assert parse_drm_client(both) == DrmClient(FIRST, 5, 12 * 1024)
    for old, new in [
        (b"amdgpu", b"i915"),
        (b"drm-client-id", b"drm-other"),
        (b"drm-pdev", b"drm-other"),
        (b"drm-resident-vram", b"drm-other"),
        (b"12 KiB", b"12 GB"),
        (b"12 KiB", b""),
    ]:
        assert parse_drm_client(info.replace(old, new)) is None


@given(st.text("0123456789abcdef:.-drmvaersidnt \t\nKMiB") | st.text())
def test_drm_client_never_raises(text):
    content = text.encode()
    for prefix in (b"", b"drm-driver: amdgpu\ndrm-pdev: 0000:01:00.0\ndrm-client-id: 1\n"):
        found = parse_drm_client(prefix + content)
        assert found is None or found.vram_bytes >= 0


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 255), st.integers(0, 31), st.integers(0, 7))
def test_bus_id(domain, bus, device, function):
    bus_id = f"{domain:04x}:{bus:02x}:{device:02x}.{function}"
    text = f"name gfx\nlocation_id {location(bus_id)}\ndomain {domain}\n"
    assert parse_bus_id(text.encode()) == bus_id


@pytest.mark.parametrize(
    ("properties", "bus_id"),
    [
        (b"location_id 4294904835\ndomain 0", "0000:0c:00.3"),  # 0xffff0c03
        (b"location_id 3072\n", None),
        (b"domain 0\n", None),
        (b"location_id -1\ndomain 0", None),
        (b"location_id 3072\ndomain -1", None),
    ],
)
def test_bus_ids_of_few_bits(properties, bus_id):
    assert parse_bus_id(properties) == bus_id


@given(st.text("location_id domain 0123456789-\n") | st.text())
def test_bus_id_never_raises(text):
    found = parse_bus_id(text.encode())
    assert found is None or found.count(":") == 2


@given(st.integers(0, 2**64), st.integers(0, 2**64))
def test_err_count(uncorrected, corrected):
    assert parse_err_count(f"ue: {uncorrected}\nce: {corrected}\n".encode()) == (
        uncorrected,
        corrected,
    )
    assert parse_err_count(f"ue: {uncorrected}\n".encode()) is None


@given(st.text("uce: 0123456789\n") | st.text())
def test_err_count_never_raises(text):
    found = parse_err_count(text.encode())
    assert found is None or min(found) >= 0


@given(st.integers(-(10**20) + 1, 10**20 - 1))
def test_number(number):
    assert parse_number(f" {number}\n".encode()) == number


@given(st.binary(max_size=30))
def test_number_never_raises(content):
    found = parse_number(content)
    assert found is None or int(content.strip()) == found


@pytest.mark.parametrize("content", [None, b"", b"1_000", b"+1", b"0x10", b"1 2", b"9" * 5000])
def test_no_number(content):
    assert parse_number(content) is None


@given(st.binary(max_size=2 * MAX_TEXT_LENGTH))
def test_text_fits_a_label(content):
    text = parse_text(content)
    assert text is None or (0 < len(text) <= MAX_TEXT_LENGTH and text.isprintable())


def test_text():
    assert parse_text(b" Radeon \n more") == "Radeon"
    assert parse_text(b"a\x1b[31m") == "a\ufffd[31m"
    assert parse_text(b"\n") is None
    assert parse_text(b"x" * (MAX_TEXT_LENGTH + 1)) is None
    assert parse_text(None) is None


@pytest.mark.parametrize(("content", "watts"), [(b"0\n", 0.0), (b"-1", None), (None, None)])
def test_few_watts(content, watts):
    assert parse_watts(content) == watts


@given(st.binary(max_size=30))
def test_watts(content):
    watts = parse_watts(content)
    assert watts is None or 0 <= watts < 4294.967296
