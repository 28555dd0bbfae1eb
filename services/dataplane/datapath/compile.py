"""The child that compiles: C on standard input, a cache file as its result. The only module that imports bcc.

bcc wants kernel headers; tc and cgroup programs need nothing of them, so it is shown a folder of shims
(``BCC_KERNEL_SOURCE``) that joins ``bpf/shim`` with links to the uapi headers of linux-libc-dev, ``bpf.h`` left out
(bcc brings its own).
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from linux import bpf
from services.dataplane.datapath.bytecode import CFLAGS, Bytecode, CompiledMap, Program, Relocation
from services.dataplane.datapath.header import SOURCES

UAPI = Path("/usr/include/linux")
_LD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1


def build_kernel_source(folder: Path) -> None:
    """Fills ``folder`` with what bcc takes for a kernel's source tree. Raises SystemExit without linux-libc-dev."""
    if not UAPI.is_dir():
        sys.exit(f"{UAPI} is missing: install linux-libc-dev")
    shutil.copytree(SOURCES / "shim", folder, dirs_exist_ok=True)
    uapi = folder / "include" / "uapi" / "linux"
    uapi.mkdir(parents=True)
    for header in UAPI.glob("*.h"):
        if header.name != "bpf.h":
            (uapi / header.name).symlink_to(header)
    (uapi / "bpf.h").touch()


def compile_source(source: str) -> Bytecode:
    """Compiles ``source`` with bcc. Its maps come into being for a moment and go with this process."""
    with tempfile.TemporaryDirectory(prefix="airmesh-shim-") as folder:
        build_kernel_source(Path(folder))
        os.environ["BCC_KERNEL_SOURCE"] = folder
        import bcc  # noqa: PLC0415 - after the environment is set; the agent never gets here

        triplet = f"/usr/include/{platform.machine()}-linux-gnu"
        module = bcc.BPF(text=source, cflags=[*CFLAGS, "-isystem", "/usr/include", "-isystem", triplet])
        maps = _maps(bcc.lib, module.module)
        return Bytecode(
            maps=dict(maps.values()),
            programs=_programs(bcc.lib, module.module, {fd: name for fd, (name, _) in maps.items()}),
        )


def _maps(lib: Any, module: Any) -> dict[int, tuple[str, CompiledMap]]:
    lib.bpf_num_tables.restype, lib.bpf_num_tables.argtypes = ctypes.c_ulonglong, [ctypes.c_void_p]
    lib.bpf_table_name.restype, lib.bpf_table_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_ulonglong]
    lib.bpf_table_fd_id.restype, lib.bpf_table_fd_id.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_ulonglong]
    found: dict[int, tuple[str, CompiledMap]] = {}
    for index in range(lib.bpf_num_tables(module)):
        fd = lib.bpf_table_fd_id(module, index)
        shape = bpf.map_info(fd)
        found[fd] = (
            lib.bpf_table_name(module, index).decode(),
            CompiledMap(shape.kind, shape.key_size, shape.value_size, shape.entries, shape.flags),
        )
    return found


def _programs(lib: Any, module: Any, names: dict[int, str]) -> dict[str, Program]:
    programs: dict[str, Program] = {}
    for index in range(lib.bpf_num_functions(module)):
        name = lib.bpf_function_name(module, index)
        start, size = lib.bpf_function_start(module, name), lib.bpf_function_size(module, name)
        code = bytearray(ctypes.string_at(start, size))
        relocations = []
        for offset in range(0, len(code), 8):
            if code[offset] == _LD_IMM64 and code[offset + 1] >> 4 == _PSEUDO_MAP_FD:
                (fd,) = struct.unpack_from("<i", code, offset + 4)
                relocations.append(Relocation(offset, names[fd]))
                struct.pack_into("<i", code, offset + 4, 0)
        programs[name.decode()] = Program(bytes(code), tuple(relocations))
    return programs


def main() -> None:
    """Writes the bytecode of standard input to the path in the first argument, whole or not at all."""
    path = Path(sys.argv[1])
    bytecode = compile_source(sys.stdin.read())
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_bytes(msgspec.msgpack.encode(bytecode))
    partial.rename(path)


if __name__ == "__main__":
    main()
