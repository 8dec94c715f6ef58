"""Run a little guest code through KVM; a script of its own, as it may be killed or hang.

Opens /dev/kvm, makes a machine with the in-kernel interrupt controller and timer as QEMU does, puts one processor
straight into 64-bit mode behind a page table, and lets it count. Every `CHUNK` instructions it exits by an `out`, so
that a processor which is interpreted (paravirtual KVM in nested clouds: some 1.5 million instructions a second, where
hardware does a thousand times that) is told from one that is slow to start, without waiting for its end. What counts
is the thread's processor time, which includes the guest's: a busy host changes nothing.

Prints one JSON object: `instructions` and `seconds`, or `error` and `denied`. x86-64 only. Structures and numbers are
those of `linux/kvm.h` and `asm/kvm.h`; Documentation/virt/kvm/api.rst says what each call does.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import struct
import sys
import time

INSTRUCTIONS = 8_000_000
LIMIT_S = 0.4
LOOPS = 62_500
CHUNK = 2 * LOOPS + 3

KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_CREATE_VCPU = 0xAE41
KVM_SET_TSS_ADDR = 0xAE47
KVM_CREATE_IRQCHIP = 0xAE60
KVM_RUN = 0xAE80
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_CREATE_PIT2 = 0x4040AE77
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_EXIT_IO = 2

MEMORY_BYTES = 2 << 20  # one large page
CODE, PML4, PDPT, PAGE_DIRECTORY = 0x1000, 0x2000, 0x3000, 0x4000
PRESENT_WRITABLE, LARGE_PAGE = 0x3, 0x80
# again: mov ecx, LOOPS; count: dec ecx; jnz count; out 0x10, al; jmp again
PROGRAM = b"\xb9" + struct.pack("<I", LOOPS) + bytes.fromhex("ffc975fc e610 ebf3")

CODE_SEGMENT, DATA_SEGMENTS = 0, (24, 48, 72, 96, 120)  # cs; ds, es, fs, gs, ss: offsets in struct kvm_sregs
CONTROL_REGISTERS = 224  # cr0, cr2, cr3, cr4, cr8, efer
CR0_PAGING_PROTECTED, CR4_PAE, EFER_LONG = 0x80000031, 0x20, 0x500


def _segment(sregs: bytearray, offset: int, selector: int, kind: int, wide: int, long: int) -> None:
    # struct kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding
    struct.pack_into("<QIH10B", sregs, offset, 0, 0xFFFFFFFF, selector, kind, 1, 0, wide, 1, long, 1, 0, 0, 0)


def run_guest() -> dict[str, float]:
    """Count up to INSTRUCTIONS for at most about LIMIT_S; raises OSError naming nothing but the errno."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    fcntl.ioctl(vm, KVM_SET_TSS_ADDR, 0x3FFBD000)
    fcntl.ioctl(vm, KVM_CREATE_IRQCHIP)
    fcntl.ioctl(vm, KVM_CREATE_PIT2, bytes(64))

    memory = mmap.mmap(-1, MEMORY_BYTES)
    memory[CODE : CODE + len(PROGRAM)] = PROGRAM
    struct.pack_into("<Q", memory, PML4, PDPT | PRESENT_WRITABLE)
    struct.pack_into("<Q", memory, PDPT, PAGE_DIRECTORY | PRESENT_WRITABLE)
    struct.pack_into("<Q", memory, PAGE_DIRECTORY, LARGE_PAGE | PRESENT_WRITABLE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, MEMORY_BYTES, address))

    vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
    state = mmap.mmap(vcpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE))
    sregs = bytearray(312)
    fcntl.ioctl(vcpu, KVM_GET_SREGS, sregs)
    _segment(sregs, CODE_SEGMENT, selector=8, kind=11, wide=0, long=1)
    for offset in DATA_SEGMENTS:
        _segment(sregs, offset, selector=16, kind=3, wide=1, long=0)
    struct.pack_into("<6Q", sregs, CONTROL_REGISTERS, CR0_PAGING_PROTECTED, 0, PML4, CR4_PAE, 0, EFER_LONG)
    fcntl.ioctl(vcpu, KVM_SET_SREGS, bytes(sregs))
    regs = bytearray(144)
    struct.pack_into("<QQ", regs, 128, CODE, 2)  # rip, rflags
    fcntl.ioctl(vcpu, KVM_SET_REGS, bytes(regs))

    done, begin = 0, time.thread_time()
    while done < INSTRUCTIONS and time.thread_time() - begin < LIMIT_S:
        fcntl.ioctl(vcpu, KVM_RUN, 0)
        reason = struct.unpack_from("<I", state, 8)[0]
        if reason != KVM_EXIT_IO:
            raise RuntimeError(f"KVM_RUN ended with exit reason {reason}")
        done += CHUNK
    return {"instructions": done, "seconds": time.thread_time() - begin}


def main() -> None:
    """Print the outcome."""
    try:
        outcome: dict[str, object] = {**run_guest()}
    except OSError as e:
        outcome = {"error": e.strerror, "denied": isinstance(e, PermissionError)}
    except RuntimeError as e:
        outcome = {"error": str(e), "denied": False}
    json.dump(outcome, sys.stdout)


if __name__ == "__main__":
    main()
