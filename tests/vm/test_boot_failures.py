"""Machines that do not come up: the error says what the guest said, and nothing stays."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import fleetbox
from fleetbox import paths
from fleetbox.errors import MachineError
from tests.vm.conftest import Lab


def test_a_guest_that_never_answers_ends_with_its_serial_log(lab: Lab, tmp_path: Path) -> None:
    """An image with a kernel, an initrd and nothing to run after them."""
    [good] = fleetbox.images.list_images()
    root = tmp_path / "root"
    for folder in ("boot", "etc", "usr"):  # what a root file system is known by
        (root / folder).mkdir(parents=True)
    shutil.copy(good.kernel, root / "boot" / "vmlinuz-6.1.0-test")
    shutil.copy(good.initrd, root / "boot" / "initrd.img-6.1.0-test")
    disk = tmp_path / "empty.raw"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(disk), "64M"], check=True)
    assert fleetbox.images.import_(str(disk), name="empty").boot == "direct"
    with pytest.raises(MachineError) as failed:
        fleetbox.up("hollow", image="empty", memory_bytes=256 << 20, timeout_s=25, cold=True)
    said = "\n".join(failed.value.details)
    assert "Linux" in said or "init" in said or "Kernel" in said, said
    assert fleetbox.clusters() == []
    assert not paths.cluster_data_dir("hollow").exists()
    fleetbox.images.remove(["empty"])
    assert [image.digest for image in fleetbox.images.list_images()] == [good.digest]
