"""cloud-hypervisor's command line, the configuration of its snapshots, and the host's memory as it uses it."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleetbox.backends.base import DirectBoot, Disk, FirmwareBoot, VMConfig
from fleetbox.backends.cloud_hypervisor import command, configuration
from fleetbox.backends.cloud_hypervisor.memory import HugePages
from fleetbox.backends.host import saved
from fleetbox.errors import MachineError
from fleetbox.sizes import GIB, MIB
from tests.simulators import ch_options, description
from tests.simulators.cloud_hypervisor import CONFIG_FIELDS

PROGRAM = Path("/opt/cloud-hypervisor")
SOCKET = Path("/run/fleetbox/0/abc/1.sock")
CONFIG = VMConfig(
    name="mycluster/node-1",
    run_dir=Path("/run/fleetbox/0/abc"),
    disks=(Disk(Path("/a, b=c/disk.raw"), "raw"),),
    seed=Path("/a, b=c/seed.iso"),
    boot=DirectBoot(Path("/img/vm linuz"), Path("/img/initrd"), "root=UUID=1 ro console=ttyS0"),
    mac="02:00:00:00:00:01",
    cpus=2,
    memory_bytes=512 * MIB,
    serial_log=Path("/a, b=c/serial.log"),
    fixtures=(Disk(Path("/a, b=c/fixture.img"), "raw", read_only=True, serial="one"),),
)


def parsed(config: VMConfig = CONFIG, *, tap: str = "tap0", hugepages: bool = False) -> dict[str, Any]:
    """The machine's configuration as the program takes it from its command line."""
    argv = command.build(PROGRAM, config, SOCKET, Path("/fw"), tap=tap, hugepages=hugepages)
    own, found = ch_options.parse(argv[1:])
    assert own == {"api-socket": str(SOCKET)}
    assert found is not None
    if described := description.load("cloud-hypervisor.yaml"):
        assert described.differs(found, "VmConfig") == ""
    return found


def test_the_whole_machine_is_on_the_command_line() -> None:
    found = parsed()
    assert found["cpus"]["boot_vcpus"] == 2
    assert found["payload"] == {
        "kernel": "/img/vm linuz",
        "initramfs": "/img/initrd",
        "cmdline": "root=UUID=1 ro console=ttyS0",
        "firmware": None,
    }
    disks = [(d["id"], d["path"], d["readonly"], d["serial"], d["image_type"]) for d in found["disks"]]
    assert disks == [
        ("disk0", "/a, b=c/disk.raw", False, None, "Raw"),
        ("seed", "/a, b=c/seed.iso", True, "cidata", "Raw"),
        ("fixture0", "/a, b=c/fixture.img", True, "one", "Raw"),
    ]
    [net] = found["net"]
    assert (net["id"], net["tap"], net["mac"]) == ("net0", "tap0", CONFIG.mac)
    assert found["serial"] == {"mode": "File", "file": "/a, b=c/serial.log"}
    assert found["console"]["mode"] == "Pty"
    [zone] = found["memory"]["zones"]
    assert (found["memory"]["size"], zone["id"], zone["size"]) == (0, "ram", CONFIG.memory_bytes)
    assert (zone["file"], zone["shared"], zone["hugepages"], zone["prefault"]) == (None, False, False, False)
    assert found["balloon"] == {"size": 128 * MIB, "deflate_on_oom": True, "free_page_reporting": True}
    assert found["rng"]["src"] == "/dev/urandom"


def test_what_is_not_there_is_not_said() -> None:
    found = parsed(replace(CONFIG, seed=None, fixtures=(), control_line=False, memory_bytes=255 * MIB), tap="")
    assert found["net"] is None
    assert found["balloon"] is None
    assert found["console"]["mode"] == "Off"
    assert len(found["disks"]) == 1
    firmware = parsed(replace(CONFIG, boot=FirmwareBoot()))["payload"]
    assert (firmware["firmware"], firmware["kernel"]) == ("/fw", None)
    assert parsed(replace(CONFIG, boot=FirmwareBoot(Path("/mine"))))["payload"]["firmware"] == "/mine"


def test_memory_of_a_template_is_a_shared_file_and_of_huge_pages_is_populated() -> None:
    [zone] = parsed(replace(CONFIG, memory_file=Path("/tmp/a, memory")))["memory"]["zones"]
    assert (zone["file"], zone["shared"]) == ("/tmp/a, memory", True)
    [zone] = parsed(hugepages=True)["memory"]["zones"]
    assert (zone["hugepages"], zone["prefault"]) == (True, True)


@pytest.mark.parametrize("name", ['a"b', "a[b", "a]b", " a", "a "])
def test_paths_that_the_syntax_cannot_say_are_refused(name: str) -> None:
    with pytest.raises(MachineError, match="cannot be told"):
        command.quote(name)


def written(folder: Path, was: dict[str, Any], *, ranges: bool) -> Path:
    """A snapshot as the program writes it."""
    folder.mkdir()
    (folder / configuration.CONFIG).write_text(json.dumps(was))
    (folder / configuration.STATE).write_text('{"snapshots": {"kept": [1, 2.5, "as it is"]}}')
    if ranges:
        (folder / configuration.RANGES).write_bytes(b"memory")
    return folder


@pytest.mark.parametrize("template", [True, False], ids=["template", "user's snapshot"])
def test_a_snapshot_is_kept_in_our_form_and_comes_back_rewritten(tmp_path: Path, template: bool) -> None:
    memory = tmp_path / "ram"
    memory.write_bytes(b"\0" * MIB)
    config = replace(CONFIG, memory_bytes=MIB, memory_file=memory if template else None)
    folder = written(tmp_path / "snapshot", parsed(config), ranges=not template)
    configuration.pack(folder, config.memory_file)
    assert {p.name for p in folder.iterdir()} == {saved.STATE, saved.MEMORY}
    assert (folder / saved.STATE).stat().st_mode & 0o777 == 0o600

    target = tmp_path / "restore"
    target.mkdir()
    clone = replace(
        CONFIG,
        name="mycluster/node-2",
        mac="02:00:00:00:00:02",
        disks=(Disk(Path("/new/disk.raw"), "raw"),),
        seed=Path("/new/seed.iso"),
        serial_log=Path("/new/serial.log"),
        memory_bytes=MIB,
        fixtures=(Disk(Path("/new/fixture.img"), "raw", read_only=True), Disk(Path("/new/2.img"), "raw")),
        boot=DirectBoot(Path("/new/kernel"), None, "ignored"),
    )
    assert configuration.unpack(folder, target, clone, "tap1", fixtures=1) is not template
    assert json.loads((target / configuration.STATE).read_text())["snapshots"]["kept"] == [1, 2.5, "as it is"]
    found = json.loads((target / configuration.CONFIG).read_text())
    assert found.keys() <= CONFIG_FIELDS
    if described := description.load("cloud-hypervisor.yaml"):
        assert described.differs(found, "VmConfig") == ""
    assert [d["path"] for d in found["disks"]] == ["/new/disk.raw", "/new/seed.iso", "/new/fixture.img"]
    assert [(n["tap"], n["mac"]) for n in found["net"]] == [("tap1", "02:00:00:00:00:02")]
    assert found["serial"]["file"] == "/new/serial.log"
    assert found["payload"]["kernel"] == "/new/kernel"
    assert found["payload"]["cmdline"] == CONFIG.boot.cmdline  # type: ignore[union-attr]
    [zone] = found["memory"]["zones"]
    assert (zone["file"], zone["shared"]) == (str(folder / saved.MEMORY) if template else None, False)
    ranges = target / configuration.RANGES
    assert ranges.exists() is not template
    assert template or ranges.read_bytes() == b"memory"


def test_a_template_whose_memory_was_copied_is_no_template(tmp_path: Path) -> None:
    memory = tmp_path / "ram"
    memory.touch()
    folder = written(tmp_path / "snapshot", parsed(), ranges=True)
    with pytest.raises(MachineError, match="cannot be given to clones"):
        configuration.pack(folder, memory)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"disks": []}, "its disks are"),
        ({"disks": None}, "not one of ours"),
        ({"net": None}, "network"),
        ({"memory": {"zones": []}}, "not one of ours"),
        ({"serial": None}, "not one of ours"),
    ],
)
def test_configurations_that_are_not_ours_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(MachineError) as caught:
        configuration.rewrite(parsed() | change, CONFIG, "tap0", 1, None)
    assert words in caught.value.why


def test_huge_pages_are_taken_by_one_machine_at_a_time(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"

    def free(pages: int, reserved: int = 0) -> None:
        lines = f"HugePages_Free: {pages}\nHugePages_Rsvd: {reserved}\nHugepagesize: 2048 kB\nHugetlb: 0 kB\n"
        meminfo.write_text(f"MemTotal: 1 kB\n{lines}")

    async def test() -> None:
        pages = HugePages(meminfo)
        free(512)
        assert not await pages.take(2 * GIB, AsyncExitStack())
        async with AsyncExitStack() as first:
            assert await pages.take(GIB, first)
            second = AsyncExitStack()
            waiting = asyncio.create_task(pages.take(GIB, second))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            free(0)  # the first has populated its memory
        assert not await waiting, "what the first was given is gone"
        await second.aclose()
        free(512, reserved=1)
        assert not await pages.take(GIB, AsyncExitStack())

    asyncio.run(test())
