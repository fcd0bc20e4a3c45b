"""What the CUDA compiler made of every kernel: registers, spills, shared memory, blocks that fit on one SM.

``make cuda-report`` compiles csrc/cuda for every architecture of csrc/cuda/sources.cmake and writes
docs/ptxas.md. Needs nvcc, but no GPU. Reports are kept by the hash of what was compiled.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNITS = ("mixture", "focal", "distance", "mined", "ranks")
FLAGS = ("-std=c++17", "-O3", "-cubin", "-Xptxas", "-v", "-Xcompiler", "-fvisibility=hidden")

# Dynamic shared memory of the kernels that ask for some, in bytes; the same numbers are static_asserts in
# csrc/cuda. Threads per block. Kernels that are not named use 256 threads and little or no shared memory.
SHARED = {"fused_kernel<64": 66048, "fused_kernel<128": 115200, "rank_count": 49152, "product_kernel": 16640}
THREADS = {"fused_kernel": 128, "rank_count": 128, "write_sums": 32}
# Of one SM: shared memory (each block takes 1 KiB more than it asks for) and warps.
SM = {80: (164, 64), 90: (228, 64), 100: (228, 64)}


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture, as ptxas reports it."""

    name: str
    arch: int
    registers: int
    spill_bytes: int
    stack_bytes: int
    static_shared: int

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block, static and dynamic."""
        return self.static_shared + next((b for k, b in SHARED.items() if self.name.startswith(k)), 0)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return next((t for k, t in THREADS.items() if self.name.startswith(k)), 256)

    def blocks(self) -> int:
        """Blocks that fit on one SM by registers (256 at a time per warp), warps and shared memory."""
        kib, most_warps = SM[self.arch]
        warps = self.threads // 32
        per_warp = -(-self.registers * 32 // 256) * 256
        return min(65536 // per_warp // warps, most_warps // warps, kib * 1024 // (self.shared + 1024), 32)


def nvcc() -> str | None:
    """The CUDA compiler, or None."""
    return shutil.which(os.environ.get("CUDACXX", "nvcc"))


def architectures() -> list[int]:
    """Those of csrc/cuda/sources.cmake."""
    recipe = (ROOT / "csrc/cuda/sources.cmake").read_text()
    found = re.search(r"CMAKE_CUDA_ARCHITECTURES ((?:\d+(?:-real)? ?)+)\)", recipe)
    assert found is not None
    return [int(word.split("-")[0]) for word in found[1].split()]


def report(unit: str, arch: int) -> str:
    """Output of ptxas for one unit and architecture."""
    csrc = ROOT / "csrc"
    sources = sorted([*csrc.glob("cuda/*"), *csrc.glob("core/*"), *csrc.glob("include/*/*")])
    mine = [p for p in sources if p.suffix != ".cu" or p.stem == unit]
    seen = hashlib.sha256(repr((FLAGS, arch)).encode() + b"".join(p.read_bytes() for p in mine))
    folder = Path(tempfile.gettempdir()) / f"ala_metric-ptxas-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    kept = folder / f"{unit}-{arch}-{seen.hexdigest()[:24]}.txt"
    if not kept.exists():
        include = [f"-I{csrc}", f"-I{csrc / 'include'}"]
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch, "out.cubin")
            command = [
                nvcc(),
                *FLAGS,
                f"-arch=sm_{arch}",
                *include,
                csrc / "cuda" / f"{unit}.cu",
                "-o",
                target,
            ]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{unit}.cu does not compile for sm_{arch}:\n{done.stderr}")
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_text(done.stderr)
        part.replace(kept)
    return kept.read_text()


def kernels(text: str, arch: int) -> list[Kernel]:
    """Read what ptxas says."""
    found = []
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for '\w+'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        re.DOTALL,
    )
    for symbol, stack, stores, loads, registers, rest in pattern.findall(text):
        shared = re.search(r"(\d+) bytes smem", rest)
        spills = int(stores) + int(loads)
        static = int(shared[1]) if shared else 0
        found.append(Kernel(readable(symbol), arch, int(registers), spills, int(stack), static))
    return found


def readable(symbol: str) -> str:
    """``fused_kernel<64, MixtureOp<float, true>>`` from the mangled name."""
    found = re.search(r"ala4cuda(?:\w*?_GLOBAL__N__\w+?E)?L?(\d+)", symbol)
    if found is None:
        return symbol
    length = int(found[1])
    name = symbol[found.end() : found.end() + length]
    rest = symbol[found.end() + length :]
    if not rest.startswith("I"):
        return name
    arguments = []
    rest = re.split(r"EEv|Evv?", rest)[0]
    if dims := re.match(r"ILi(\d+)E", symbol[found.end() + length :]):
        arguments.append(dims[1])
    plain = re.match(r"I([fd])", symbol[found.end() + length :])
    types = {"f": "float", "d": "double"}
    if op := re.search(r"\d+([A-Z][A-Za-z]*Op)I([fd])(?:Lb([01]))?", symbol[found.end() + length :]):
        flag = {None: "", "0": ", false", "1": ", true"}[op[3]]
        if plain and not dims:
            arguments.append(types[plain[1]])
        arguments.append(f"{op[1]}<{types[op[2]]}{flag}>")
    elif plain:
        arguments.append(types[plain[1]])
        if flag := re.match(r"I[fd]Lb([01])", symbol[found.end() + length :]):
            arguments.append("true" if flag[1] == "1" else "false")
    return f"{name}<{', '.join(arguments)}>"


def compile_all(archs: list[int], jobs: int) -> list[Kernel]:
    """All kernels on all of ``archs``; those that several units share once."""
    with ThreadPoolExecutor(jobs) as pool:
        texts = list(pool.map(lambda job: (job[1], report(*job)), [(u, a) for a in archs for u in UNITS]))
    return list({(k.name, k.arch): k for arch, text in texts for k in kernels(text, arch)}.values())


def table(found: list[Kernel]) -> str:
    """Kernels down, architectures across."""
    archs = [arch for arch in SM if any(k.arch == arch for k in found)]
    head = [f"sm_{arch}: registers, blocks per SM" for arch in archs]
    lines = [
        f"| kernel | threads | shared, bytes | {' | '.join(head)} | spills, any architecture |",
        "|---" * (4 + len(archs)) + "|",
    ]
    for name in sorted({k.name for k in found}):
        mine = {k.arch: k for k in found if k.name == name}
        one = next(iter(mine.values()))
        cells = [f"{mine[a].registers}, {mine[a].blocks()}" if a in mine else "" for a in archs]
        spilled = {k.arch: k.spill_bytes for k in mine.values() if k.spill_bytes}
        spills = ", ".join(f"{b} B on sm_{a}" for a, b in sorted(spilled.items())) or "none"
        lines.append(f"| `{name}` | {one.threads} | {one.shared} | {' | '.join(cells)} | {spills} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=architectures())
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "ptxas.md")
    options = parser.parse_args(arguments)
    compiler = nvcc()
    if compiler is None:
        print("no CUDA compiler was found (looked for nvcc on PATH, and for CUDACXX)")
        return 1
    found = compile_all(options.arch, options.jobs)
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release ([\d.]+), V([\d.]+)", version)
    options.out.write_text(
        "# What ptxas reports\n\n"
        f"Written by `make cuda-report` with nvcc {release[2] if release else '?'}, `-O3`, for "
        f"{', '.join(f'sm_{a}' for a in options.arch)}. No GPU is needed or was used. Blocks per SM are what "
        "registers, warps and shared memory allow (164 KiB on sm_80, 228 KiB on sm_90 and sm_100).\n\n"
        f"{table(found)}\n"
    )
    print(f"{len(found)} kernels, {sum(k.spill_bytes > 0 for k in found)} with spills -> {options.out}")
    return 0
