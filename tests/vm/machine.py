"""A virtual machine of qemu with Debian's kernel: booted of an initramfs, with the host's files read-only, and in it a
program that answers calls (`end_host.py`).

Its network card is a tap of the calling thread's network namespace. Everything ends with `booted`, whatever becomes of
it; no disk is made and nothing is installed.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.vm.initramfs import BUSYBOX, initramfs, modules

ROOT = Path(__file__).resolve().parents[2]
KERNEL = ROOT / "build/vm/kernel"
QEMU = "qemu-system-x86_64"
MODULES = (
    "virtio_pci", "virtio_net", "virtio_console", "9pnet_virtio", "9p", "ipip", "wireguard", "veth", "virtio_rng",
)  # fmt: skip
PORT = "airmesh"
BOOT_SECONDS = 240.0
CALL_SECONDS = 420.0
"""By an emulated processor on a busy machine."""
ACCEL = os.environ.get("AIRMESH_VM_ACCEL", "tcg")
"""What qemu runs the machine by. That a /dev/kvm does not work shows in nothing but a boot that never ends."""


def lacking() -> str:
    """What keeps a VM from being booted, with the remedy; empty: nothing."""
    found = [f"program {name}" for name in (QEMU, "wg", "ip") if not shutil.which(name)]
    found += [] if BUSYBOX.exists() else [str(BUSYBOX)]
    found += [] if (KERNEL / ".ready").exists() else ["a kernel in build/vm/kernel"]
    found += [] if os.geteuid() == 0 else ["root"]
    return f"no VM: {', '.join(found)} is missing; run `make vm-setup` as root" if found else ""


class EndHost:
    """One end host's program, by its channel."""

    def __init__(self, sink: int, source: int, name: str) -> None:
        """Descriptors that calls are written to and answers are read from."""
        self._sink, self._source, self._name = sink, source, name
        self._rest = b""

    def __call__(self, name: str, /, **arguments: Any) -> Any:
        """The value of a call. Raises AssertionError with what failed there."""
        os.write(self._sink, json.dumps({"call": name, **arguments}).encode() + b"\n")
        return self.answer(CALL_SECONDS)

    def answer(self, seconds: float) -> Any:
        """The next answer."""
        end = time.monotonic() + seconds
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._source], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{self._name}: no answer within {seconds:.0f} s"
            part = os.read(self._source, 1 << 16)
            assert part, f"{self._name}: it has ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        said = json.loads(line)
        assert "is" in said, f"{self._name}: {said.get('failed')}"
        return said["is"]

    def run(self, command: str) -> str:
        """What a program prints there."""
        return str(self("run", words=shlex.split(command)))


@contextmanager
def booted(folder: Path, tap: str, mac: str) -> Iterator[EndHost]:
    """The machine, with a network card on this tap of the thread's network namespace."""
    release = next((KERNEL / "lib/modules").iterdir())
    folder.mkdir(parents=True, exist_ok=True)
    end_host = shlex.join([sys.executable, "-I", str(ROOT / "tests/vm/end_host.py"), PORT])
    script = (
        f"export TMPDIR=/run/tmp HOME=/run/tmp PATH={os.environ['PATH']}\ncd {shlex.quote(str(ROOT))}\n{end_host}\n"
    )
    archive, channel, console = folder / "initramfs", folder / "channel", folder / "console"
    archive.write_bytes(initramfs(modules(release, MODULES), script))
    with socket.socket(socket.AF_UNIX) as listening, console.open("wb") as log:
        listening.bind(str(channel))
        listening.listen()
        listening.settimeout(30)
        command = _command(release.name, archive, channel, tap, mac)
        machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            connection, _ = listening.accept()
            with connection:
                host = EndHost(connection.fileno(), connection.fileno(), "the VM")
                assert host.answer(BOOT_SECONDS) == "ready"
                yield host
        except (AssertionError, TimeoutError):
            print("console of the VM:", console.read_text(errors="replace")[-3000:])
            raise
        finally:
            with suppress(ProcessLookupError):
                machine.send_signal(signal.SIGKILL)
            machine.wait(15)


def _command(release: str, archive: Path, channel: Path, tap: str, mac: str) -> list[str]:
    kernel = KERNEL / f"boot/vmlinuz-{release}"
    words = f"""
        {QEMU} -accel {ACCEL} -cpu max -smp 1 -m 768 -nographic -no-reboot -nodefaults -serial stdio
        -kernel {kernel} -initrd {archive}
        -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap
        -netdev tap,id=wire,ifname={tap},script=no,downscript=no
        -device virtio-net-pci,netdev=wire,mac={mac},romfile=
        -device virtio-serial-pci -chardev socket,id=channel,path={channel}
        -device virtserialport,chardev=channel,name={PORT},nr=1
        -device virtio-rng-pci
    """.split()
    options = "console=ttyS0 quiet mitigations=off panic=-1 tsc=reliable no_timer_check audit=0 random.trust_cpu=on"
    return [*words, "-append", options]


@contextmanager
def in_namespace(netns: str) -> Iterator[EndHost]:
    """The same program in a network namespace of this machine."""
    command = ["nsenter", f"--net=/run/netns/{netns}", sys.executable, "-I", str(ROOT / "tests/vm/end_host.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        try:
            host = EndHost(program.stdin.fileno(), program.stdout.fileno(), netns)
            host.answer(30)
            yield host
        finally:
            program.kill()
