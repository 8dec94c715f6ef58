"""cloud-hypervisor's command line, as v53 takes it (its `main.rs`, `vmm/src/config.rs` and `option_parser`).

`parse` makes of it what the real program makes: the options of its own, and a `VmConfig` in the API's form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

VERSION = "cloud-hypervisor v53.0.0"

# Options of the VMM and of the machine; how many values each takes ("+" for one or more, repeatable).
_VMM = {"api-socket": 1, "event-monitor": 1, "log-file": 1, "no-shutdown": 0, "restore": 1, "seccomp": 1}
_PAYLOAD = {"kernel": 1, "firmware": 1}
_VM: dict[str, int | str] = {
    "balloon": 1,
    "cmdline": 1,
    "console": 1,
    "cpus": 1,
    "device": "+",
    "disk": "+",
    "fs": "+",
    "initramfs": 1,
    "memory": 1,
    "memory-zone": "+",
    "net": "+",
    "numa": "+",
    "pci-segment": "+",
    "platform": 1,
    "pmem": "+",
    "pvpanic": 0,
    "rate-limit-group": "+",
    "rng": 1,
    "serial": 1,
    "tpm": 1,
    "user-device": "+",
    "vdpa": "+",
    "vsock": 1,
    "watchdog": 0,
    "landlock": 0,
    "landlock-rules": "+",
    "debug-console": 1,
}
_KEYS = {
    "cpus": "boot max topology kvm_hyperv max_phys_bits affinity features nested core_scheduling",
    "memory": "size mergeable shared hugepages hugepage_size hotplug_method hotplug_size hotplugged_size prefault thp",
    "memory-zone": "id size file shared hugepages hugepage_size host_numa_node hotplug_size hotplugged_size prefault",
    "disk": "path readonly direct iommu num_queues queue_size vhost_user socket bw_size bw_one_time_burst"
    " bw_refill_time ops_size ops_one_time_burst ops_refill_time id pci_segment pci_device_id rate_limit_group"
    " queue_affinity serial backing_files sparse image_type lock_granularity",
    "net": "tap ip mask mac fd iommu num_queues queue_size id vhost_user socket vhost_mode bw_size bw_one_time_burst"
    " bw_refill_time ops_size ops_one_time_burst ops_refill_time pci_segment pci_device_id offload_tso offload_ufo"
    " offload_csum host_mac mtu",
    "balloon": "size deflate_on_oom free_page_reporting id pci_segment pci_device_id",
    "rng": "src iommu id pci_segment pci_device_id",
    "serial": "off null pty tty file socket",
    "console": "off null pty tty file iommu id pci_segment pci_device_id",
    "restore": "source_url prefault net_fds memory_restore_mode resume",
}


class UsageError(Exception):
    """What the program says of a command line that it does not take; it exits with 2."""


class ConfigError(Exception):
    """What it says of values that it does not take; it exits with 1."""


def parse(argv: Sequence[str]) -> tuple[dict[str, str], dict[str, Any] | None]:
    """The VMM's own options, and the machine's configuration when one is to be booted.

    Raises UsageError and ConfigError.
    """
    values = _options(argv)
    if (values.keys() & _VM.keys()) and not values.keys() & _PAYLOAD.keys():
        raise UsageError("required arguments were not provided:\n  <--kernel <kernel>|--firmware <firmware>>")
    own = {name: found[0] if found else "" for name, found in values.items() if name in _VMM}
    return own, _vm_config(values) if values.keys() & _PAYLOAD.keys() else None


def _options(argv: Sequence[str]) -> dict[str, list[str]]:
    known = {**_VMM, **_PAYLOAD, **_VM}
    found: dict[str, list[str]] = {}
    arguments = list(argv)
    if not arguments:
        raise UsageError("Launch a cloud-hypervisor VMM.")
    while arguments:
        option = arguments.pop(0)
        if option.lstrip("-") == "v" * len(option.lstrip("-")) and option.startswith("-v"):
            continue
        name, _, attached = option.removeprefix("--").partition("=")
        if not option.startswith("--") or name not in known:
            raise UsageError(f"unexpected argument '{option}' found")
        count = known[name]
        taken = [attached] if attached else []
        while arguments and not arguments[0].startswith("-") and (count == "+" or len(taken) < int(count)):
            taken.append(arguments.pop(0))
        if (count == "+" and not taken) or (count != "+" and len(taken) != count):
            raise UsageError(f"a value is required for '--{name}'")
        if name in found and count != "+":
            raise UsageError(f"the argument '--{name}' cannot be used multiple times")
        found.setdefault(name, []).extend(taken)
    return found


def split_commas(text: str) -> list[str]:
    """`option_parser::split_commas`: commas in quotes and brackets do not split; quotes go."""
    parts, current, brackets, quoted = [], "", 0, False
    for c in text.strip():
        if c == "[":
            brackets += 1
        elif c == "]":
            brackets -= 1
        if c == '"':
            quoted = not quoted
        elif c == "," and not brackets and not quoted:
            parts.append(current)
            current = ""
        else:
            current += c
        if brackets < 0:
            break
    if brackets or quoted:
        raise ConfigError(f"invalid syntax:{text}")
    return [*parts, current]


def keys(option: str, text: str) -> dict[str, str]:
    """An option's `key=value,…`. Raises ConfigError."""
    allowed = set(_KEYS[option].split())
    found = {}
    for part in split_commas(text):
        key, equals, value = part.partition("=")
        if key not in allowed:
            raise ConfigError(f"Error parsing --{option}: unknown option: {key}")
        if not equals and key not in ("off", "null", "pty", "tty"):
            raise ConfigError(f"Error parsing --{option}: invalid syntax:{part}")
        found[key] = value.strip()
    return found


def _on(text: str) -> bool:
    if text.lower() not in ("", "on", "off", "true", "false"):
        raise ConfigError(f"invalid value: {text}")
    return text.lower() in ("on", "true")


def _size(text: str) -> int:
    shift = {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0)
    try:
        return int(text.rstrip("KMG")) << shift
    except ValueError:
        raise ConfigError(f"invalid value: {text}") from None


def _choice(options: dict[str, str]) -> Callable[[str], str]:
    def choose(text: str) -> str:
        if text not in options:
            raise ConfigError(f"invalid value: {text}")
        return options[text]

    return choose


_IMAGE_TYPE = _choice({"raw": "Raw", "qcow2": "Qcow2", "vhd": "FixedVhd", "vhdx": "Vhdx"})
MEMORY_RESTORE_MODE = _choice({"copy": "Copy", "ondemand": "OnDemand"})


def _vm_config(values: dict[str, list[str]]) -> dict[str, Any]:
    def one(name: str, default: str = "") -> str:
        return values.get(name, [default])[0]

    cpus = keys("cpus", one("cpus", "boot=1"))
    boot = int(cpus.get("boot", "1"))
    return {
        "cpus": {"boot_vcpus": boot, "max_vcpus": int(cpus.get("max", str(boot))), "nested": True},
        "memory": _memory(one("memory", "size=512M"), values.get("memory-zone", [])),
        "payload": {
            "firmware": one("firmware") or None,
            "kernel": one("kernel") or None,
            "cmdline": one("cmdline") or None,
            "initramfs": one("initramfs") or None,
        },
        "disks": _with_ids([_disk(text) for text in values.get("disk", [])], "_disk"),
        "net": _with_ids([_net(text) for text in values.get("net", [])], "_net"),
        "rng": {"src": keys("rng", one("rng", "src=/dev/urandom")).get("src", "/dev/urandom"), "iommu": False},
        "balloon": _balloon(one("balloon")) if "balloon" in values else None,
        "serial": _console("serial", one("serial", "null")),
        "console": _console("console", one("console", "tty")),
        "watchdog": "watchdog" in values,
        "iommu": False,
    }


def _memory(text: str, zones: list[str]) -> dict[str, Any]:
    memory = keys("memory", text)
    size = _size(memory.get("size", "512M"))
    if zones and size:
        raise ConfigError("Invalid memory size: it must be 0 when zones are given")
    found = [_zone(zone) for zone in zones]
    if len({zone["id"] for zone in found}) != len(found):
        raise ConfigError("Memory zone identifier found more than once")
    return {
        "size": size,
        "mergeable": _on(memory.get("mergeable", "")),
        "shared": _on(memory.get("shared", "")),
        "hugepages": _on(memory.get("hugepages", "")),
        "prefault": _on(memory.get("prefault", "")),
        "thp": _on(memory.get("thp", "on")),
        "zones": found or None,
    }


def _zone(text: str) -> dict[str, Any]:
    zone = keys("memory-zone", text)
    if not zone.get("id") or not zone.get("size"):
        raise ConfigError("Error parsing --memory-zone: id and size are needed")
    return {
        "id": zone["id"],
        "size": _size(zone["size"]),
        "file": zone.get("file") or None,
        "shared": _on(zone.get("shared", "")),
        "hugepages": _on(zone.get("hugepages", "")),
        "prefault": _on(zone.get("prefault", "")),
    }


def _disk(text: str) -> dict[str, Any]:
    disk = keys("disk", text)
    return {
        "path": disk.get("path") or None,
        "readonly": _on(disk.get("readonly", "")),
        "direct": _on(disk.get("direct", "")),
        "iommu": False,
        "num_queues": int(disk.get("num_queues", "1")),
        "queue_size": int(disk.get("queue_size", "128")),
        "vhost_user": False,
        "id": disk.get("id") or None,
        "serial": disk.get("serial") or None,
        "backing_files": _on(disk.get("backing_files", "")),
        "sparse": _on(disk.get("sparse", "on")),
        "image_type": _IMAGE_TYPE(disk["image_type"]) if "image_type" in disk else "Unknown",
    }


def _net(text: str) -> dict[str, Any]:
    net = keys("net", text)
    if "mac" in net and len(net["mac"].split(":")) != 6:
        raise ConfigError("Error parsing --net: mac")
    queues = int(net.get("num_queues", "2"))
    return {
        "tap": net.get("tap") or None,
        "mac": net.get("mac") or None,
        "iommu": False,
        "num_queues": queues,
        "queue_size": int(net.get("queue_size", "256")),
        "vhost_user": False,
        "vhost_mode": "Client",
        "id": net.get("id") or None,
    }


def _balloon(text: str) -> dict[str, Any]:
    balloon = keys("balloon", text)
    if "size" not in balloon:
        raise ConfigError("Error parsing --balloon: size is needed")
    return {
        "size": _size(balloon["size"]),
        "deflate_on_oom": _on(balloon.get("deflate_on_oom", "")),
        "free_page_reporting": _on(balloon.get("free_page_reporting", "")),
    }


def _console(option: str, text: str) -> dict[str, Any]:
    console = keys(option, text)
    for key, mode in (("off", "Off"), ("null", "Null"), ("pty", "Pty"), ("tty", "Tty")):
        if key in console:
            return {"mode": mode, "file": None}
    if not console.get("file"):
        raise ConfigError(f"Error parsing --{option}: file mode needs a path")
    return {"mode": "File", "file": console["file"]}


def _with_ids(devices: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]] | None:
    for number, device in enumerate(devices):
        device["id"] = device["id"] or f"{prefix}{number}"
        if device["id"].startswith("_") and not device["id"].startswith(prefix):
            raise ConfigError("Identifiers must not begin with __")
    if len({device["id"] for device in devices}) != len(devices):
        raise ConfigError("Identifier is not unique")
    return devices or None
