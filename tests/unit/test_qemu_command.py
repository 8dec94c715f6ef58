"""QEMU's command line: a pure function, and what users' names and paths cannot do to it."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetbox.backends.base import DirectBoot, Disk, FirmwareBoot, VMConfig
from fleetbox.backends.host.saved import describe
from fleetbox.backends.qemu import command
from fleetbox.backends.qemu.binary import Qemu
from fleetbox.backends.qemu.command import Surroundings, build
from fleetbox.backends.vmm.runfiles import RunFiles
from fleetbox.sizes import MIB

QEMU = Qemu(Path("/usr/bin/qemu-system-x86_64"), (7, 2, 22), sandbox=True)
CONFIG = VMConfig(
    name="mycluster/node-1",
    run_dir=Path("/run/fleetbox/0/abc"),
    disks=(Disk(Path("/data/disk.qcow2"), "qcow2"),),
    seed=Path("/data/seed.iso"),
    boot=DirectBoot(Path("/img/vmlinuz"), Path("/img/initrd"), "root=UUID=1 ro"),
    mac="02:00:00:00:00:01",
    cpus=2,
    memory_bytes=512 * MIB,
    serial_log=Path("/data/serial.log"),
    fixtures=(Disk(Path("/data/fixture-0.img"), "raw", read_only=True, serial="fixture-0"),),
    assigned_ip="192.168.7.2",
)
HERE = Surroundings(QEMU, "tcg", qmp_fd=7, console_fd=8, tap="fb1", vhost=True)


def values(argv: list[str], option: str) -> list[str]:
    return [argv[i + 1] for i, argument in enumerate(argv) if argument == option]


def nodes(argv: list[str]) -> list[dict[str, object]]:
    return [json.loads(text) for text in values(argv, "-blockdev")]


def split_options(text: str) -> list[str]:
    """QEMU's own reading of `a,b,,c`: a comma separates, two are one (util/keyval.c)."""
    parts, current, i = [], "", 0
    while i < len(text):
        if text[i] == ",":
            if text[i + 1 : i + 2] == ",":
                current, i = current + ",", i + 2
                continue
            parts.append(current)
            current = ""
        else:
            current += text[i]
        i += 1
    return [*parts, current]


def test_kvm_and_emulation_differ_in_processor_and_network() -> None:
    kvm, tcg = build(CONFIG, replace(HERE, accelerator="kvm")), build(CONFIG, HERE)
    assert values(kvm, "-cpu") == ["host"]
    assert values(tcg, "-cpu") == [command.cpu("tcg")]
    assert values(kvm, "-accel") == ["kvm"]
    assert "thread=multi" in values(tcg, "-accel")[0]
    assert "vhost=on" in values(kvm, "-netdev")[0]
    assert "vhost" not in values(tcg, "-netdev")[0]
    assert "vhost" not in values(build(CONFIG, replace(HERE, accelerator="kvm", vhost=False)), "-netdev")[0]


def test_disks_stand_in_order_with_their_formats_said() -> None:
    found = nodes(build(CONFIG, HERE))
    assert [node["driver"] for node in found] == ["qcow2", "raw", "raw"]
    assert [node["read-only"] for node in found] == [False, True, True]
    assert [node.get("discard") for node in found] == ["unmap", None, None]
    devices = [text for text in values(build(CONFIG, HERE), "-device") if text.startswith("virtio-blk")]
    assert devices[0] == "virtio-blk-pci,drive=disk0,bootindex=1"
    assert devices[1] == "virtio-blk-pci,drive=disk1,serial=cidata"
    assert split_options(devices[2]) == [
        "virtio-blk-pci",
        "id=fixture0-device",
        "drive=fixture0",
        "serial=fixture-0",
        "bus=fixtures",
        "addr=0x1",
    ]


def test_direct_and_firmware_boot() -> None:
    direct = build(CONFIG, HERE)
    assert values(direct, "-kernel") == ["/img/vmlinuz"]
    assert values(direct, "-initrd") == ["/img/initrd"]
    assert values(direct, "-append") == ["root=UUID=1 ro"]
    alone = build(replace(CONFIG, boot=DirectBoot(Path("/k"), None, "")), HERE)
    assert values(alone, "-initrd") == []
    firmware = build(replace(CONFIG, boot=FirmwareBoot(Path("/ovmf, 1.fd"))), HERE)
    assert values(firmware, "-bios") == ["/ovmf, 1.fd"]
    assert "-kernel" not in firmware
    assert "-bios" not in build(replace(CONFIG, boot=FirmwareBoot()), HERE)


def test_a_guest_may_reboot() -> None:
    assert not {"-no-reboot", "-no-shutdown"} & set(build(CONFIG, HERE))


def main_bus(argv: list[str]) -> list[str]:
    """The kinds of the devices that stand on the root bus, in the order that their addresses follow."""
    return [text.partition(",")[0] for text in values(argv, "-device") if "bus=" not in text]


def test_devices_of_a_template_and_its_clones_have_the_same_places() -> None:
    template = replace(CONFIG, fixtures=(), memory_file=Path("/cache/memory"), mac="02:00:00:00:00:09")
    saved = describe(template, {}, control_line=True)
    clone = build(CONFIG, replace(HERE, tap="fb2", control_fd=9, saved=saved, saved_memory=Path("/cache/t/memory")))
    made = build(template, replace(HERE, control_fd=8))
    assert main_bus(made) == main_bus(clone) == main_bus(build(CONFIG, HERE))
    assert values(made, "-smp") == values(clone, "-smp")
    assert values(made, "-m") == values(clone, "-m")
    assert len(values(made, "-serial")) == len(values(clone, "-serial")) == 2


def test_fixtures_that_the_saved_machine_had_not_are_left_for_later() -> None:
    two = replace(CONFIG, fixtures=CONFIG.fixtures * 2)
    for had in (0, 1):
        saved = describe(replace(CONFIG, fixtures=CONFIG.fixtures[:had]), {}, control_line=False)
        found = nodes(build(two, replace(HERE, saved=saved)))
        assert sum(str(node["node-name"]).startswith("fixture") for node in found) == had


def test_memory_is_shared_in_a_template_private_in_a_clone_and_named_alike() -> None:
    saved = describe(CONFIG, {}, control_line=False)
    plain, template, clone, restored = (
        values(argv, "-object")
        for argv in (
            build(CONFIG, HERE),
            build(replace(CONFIG, memory_file=Path("/cache/a, b")), HERE),
            build(CONFIG, replace(HERE, saved=saved, saved_memory=Path("/cache/memory"))),
            build(CONFIG, replace(HERE, saved=saved)),
        )
    )
    assert plain[0] == restored[0] == "memory-backend-ram,id=ram,size=512M"
    assert split_options(template[0])[1:] == ["id=ram", "size=512M", "mem-path=/cache/a, b", "share=on"]
    assert split_options(clone[0])[1:] == ["id=ram", "size=512M", "mem-path=/cache/memory", "share=off"]
    assert "memory-backend=ram" in values(build(CONFIG, HERE), "-machine")[0].split(",")


def test_only_a_restored_machine_waits_for_its_state() -> None:
    restored = build(CONFIG, replace(HERE, saved=describe(CONFIG, {}, control_line=False)))
    assert values(restored, "-incoming") == ["defer"]
    assert "-S" in restored
    assert not {"-S", "-incoming"} & set(build(CONFIG, HERE))


def test_machines_of_one_member_are_told_apart_by_their_slot() -> None:
    names = {command.name_option(replace(CONFIG, slot=slot)) for slot in (0, 1)}
    assert len(names) == 2
    files = [RunFiles.of(replace(CONFIG, slot=slot)) for slot in (0, 1)]
    paths = [getattr(of, field.name) for of in files for field in fields(of)]
    assert len(set(paths)) == len(paths) == 14


def test_what_is_not_there_is_not_said() -> None:
    bare = build(replace(CONFIG, seed=None, fixtures=()), replace(HERE, tap="", qemu=replace(QEMU, sandbox=False)))
    assert len(values(bare, "-serial")) == 1
    assert len(nodes(bare)) == 1
    assert "-netdev" not in bare
    assert "-sandbox" not in bare


@pytest.mark.parametrize(("memory_bytes", "said"), [(512 * MIB, "512M"), (512 * MIB + 1, "513M"), (3 << 30, "3072M")])
def test_memory_is_never_less_than_asked_for(memory_bytes: int, said: str) -> None:
    assert values(build(replace(CONFIG, memory_bytes=memory_bytes), HERE), "-m") == [f"size={said}"]


@given(st.text(alphabet=st.characters(exclude_characters="\0\n/", exclude_categories=["Cs"]), min_size=1))
def test_no_path_can_become_an_option(name: str) -> None:
    folder = Path("/data") / name
    config = replace(
        CONFIG,
        run_dir=folder,
        disks=(Disk(folder / "disk", "raw"),),
        seed=folder / "seed.iso",
        serial_log=folder / "serial.log",
        boot=DirectBoot(folder / "vmlinuz", folder / "initrd", "root=/dev/vda"),
    )
    argv, plain = build(config, HERE), build(CONFIG, HERE)
    assert [a for a in argv if a.startswith("-")] == [a for a in plain if a.startswith("-")]
    assert f"logfile={folder / 'serial.log'}" in split_options(values(argv, "-chardev")[1])
    assert split_options(values(argv, "-name")[0]) == [f"guest=mycluster/node-1@{folder}"]
    assert nodes(argv)[0]["file"]["filename"] == str(folder / "disk")  # type: ignore[index]
