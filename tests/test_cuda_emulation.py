"""The CUDA sources on this CPU: every op, dtype, odd shape and path against float64, and planted faults.

The emulation (tests/cuda_emulation) runs the threads of a block as fibres, poisons shared memory, and names
the threads that wait where others never arrive. The sources are compiled in small units, which are kept by
their hash under the temporary folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_emulation import cases, library
from tests.toolchain import compiler

ROOT = Path(__file__).resolve().parents[1]
FAST = ["*-float32-67xNonex31-*", "*-float32-131xNonex128-fused", "near-mixture-0.001-*", "ranks-wide"]


@pytest.fixture(scope="session")
def emulated() -> Path:
    return library.build(compiler=compiler())


def run(path: Path, *patterns: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.cuda_emulation.cases", str(path), *patterns]
    # a fault that was planted may as well make a loop endless
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=280,
    )


@pytest.mark.slow
def test_every_kernel_agrees_with_float64(emulated: Path) -> None:
    done = run(emulated)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) > 140


@pytest.mark.slow
@pytest.mark.parametrize("order", ["backward", "shuffled"])
def test_no_order_of_threads_matters(emulated: Path, order: str) -> None:
    """Other threads first, and copies that land as late as they may."""
    done = run(emulated, *FAST, ALA_EMULATION_ORDER=order, ALA_EMULATION_COPIES="late")
    assert done.returncode == 0, done.stdout + done.stderr


def test_own_is_refused(emulated: Path) -> None:
    done = run(emulated, "own-is-refused")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_same_bits_whatever_the_order(emulated: Path) -> None:
    """In one process per order, because the emulation reads its settings once."""
    program = (
        "import sys, hashlib; from tests.cuda_emulation import cases as c, library as l;"
        "lib = l.Emulated(sys.argv[1]); case = c.near_case('float32', 1e-3, 40); digest = hashlib.sha256()\n"
        "for path in (1, 2):\n"
        "    out = {'loss': c.empty('float32', 70), **case.grads(10)}\n"
        "    lib.use(path=path).call('distance_mixture', case.x, None, phi=c.PHI, **case.common(), **out)\n"
        "    [digest.update(value.tobytes()) for value in out.values()]\n"
        "print(digest.hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program, emulated],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env=os.environ | {"ALA_EMULATION_ORDER": order},
        ).stdout
        for order in library.ORDERS
    }
    assert len(found) == 1


# What is broken -> (file, the line, what stands there instead, cases that must notice, copies late?)
FAULTS = {
    "no barrier after a tile was loaded": (
        "fused.cuh",
        "    copies_wait();\n    __syncthreads();",
        "    copies_wait();",
        ["mixture-float32-131xNonex128-fused"],
    ),
    "no barrier before a tile is overwritten": (
        "product.cuh",
        "sum[r][q] += part[r][q];\n    __syncthreads();",
        "sum[r][q] += part[r][q];",
        ["mixture-float64-37x53x130-auto"],
    ),
    "the product starts before the copies have landed": (
        "fused.cuh",
        "    copies_wait();\n",
        "",
        ["mixture-float32-131xNonex128-fused"],
    ),
    "shared memory is too short": (
        "pass.h",
        "fused_shared_bytes<kDims>(), p, op",
        "fused_shared_bytes<kDims>() - 512, p, op",
        ["mixture-float32-131xNonex128-fused"],
    ),
    "the guard of the last columns is gone": (
        "fused.cuh",
        "is_row && j < end &&",
        "is_row &&",
        ["statistics-float32-5x199x67-fused"],
    ),
    "a pair of a row with itself counts": (
        "strip.cuh",
        "j < end && !(p.symmetric && j == i)",
        "j < end",
        ["mixture-float32-67xNonex31-strips"],
    ),
    "the operands of a difference are exchanged": (
        "strip.cuh",
        "g * (x[k] - y[k])",
        "g * (y[k] - x[k])",
        ["near-mixture-0.001-strips"],
    ),
    "the rank of a tie is off by one": (
        "ranks.cu",
        "pessimistic[start + j] = j + 1 + nearer[0];",
        "pessimistic[start + j] = j + nearer[0];",
        ["ranks-tied-float32"],
    ),
    "ties are read the other way": (
        "ranks.cu",
        "        low = keys_before(keys, wanted, key, false);",
        "        low = keys_before(keys, wanted, key, true);",
        ["ranks-tied-float32"],
    ),
    "all lanes race for the loss of their row": (
        "strip.cuh",
        "      Op::merge(acc, other);\n    }\n    if (lane == 0)",
        "      static_cast<void>(other);\n    }\n    if (lane >= 0)",
        ["focal-float32-67xNonex31-strips"],
    ),
    "the loss is summed over half a warp": (
        "strip.cuh",
        "for (int step = kWarp / 2; step > 0; step /= 2) {\n      T other",
        "for (int step = kWarp / 4; step > 0; step /= 2) {\n      T other",
        ["mixture-float32-67xNonex31-strips"],
    ),
    "some threads miss a barrier": (
        "fused.cuh",
        "    __syncthreads();  // S is complete",
        "    if (is_row) __syncthreads();  // S is complete",
        ["mixture-float32-67xNonex31-fused"],
    ),
    "near pairs stay in the sums": (
        "fused.cuh",
        "if (!near) tile_row_sum += g;",
        "tile_row_sum += g;",
        ["near-mixture-0.001-fused"],
    ),
    "rows are not rounded though they may be": (
        "rows.cuh",
        "rounded(x, splitter)",
        "x",
        ["tf32-statistics-139xNonex37"],
    ),
    "products are lowered without being asked": (
        "pass.h",
        "return static_cast<ala_precision>(context.precision);",
        "return ALA_PRECISION_TF32;",
        ["mixture-blas"],
    ),
    "weights lose their low bits in the product only": (
        "strip.cuh",
        "g = rounded(g, strip.splitter);",
        "",
        ["tf32-focal-67xNonex3"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(emulated: Path, tmp_path: Path, fault: str) -> None:
    file, line, broken, noticed_by = FAULTS[fault]
    healthy = run(emulated, *noticed_by, ALA_EMULATION_COPIES="late")
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    source = tmp_path / "csrc" / "cuda" / file
    text = source.read_text()
    assert line in text, "the fault has no place any more"
    source.write_text(text.replace(line, broken))
    # only what the cases need: statistics are a part of the mixture
    units = tuple(
        u for u in library.UNITS if any(u in c.replace("statistics", "mixture") for c in noticed_by)
    )
    library_path = library.build(tmp_path / "csrc", compiler=compiler(), units=units)
    done = run(library_path, *noticed_by, ALA_EMULATION_COPIES="late")
    assert done.returncode != 0, f"not caught: {fault}"
    assert "Traceback" not in done.stderr, done.stderr  # noticed, and not only broken


def test_the_watchdog_names_who_waits(tmp_path: Path) -> None:
    source = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", source)
    fault = FAULTS["some threads miss a barrier"]
    path = source / "cuda" / fault[0]
    path.write_text(path.read_text().replace(fault[1], fault[2]))
    done = run(library.build(source, compiler=compiler()), *fault[3])
    assert done.returncode == 86
    assert "fused.cuh:" in done.stderr
    assert "thread" in done.stderr


SANITIZED = {
    "address": ["*-float32-67xNonex31-*", "*-float32-5x199x67-*", "*-float16-65x*", "near-mixture-1e-05-*"],
    # OS threads instead of fibres, a hundred times slower
    "thread": ["mixture-float32-67xNonex31-*", "ranks-float32-67xNonex31-cosine0"],
}


@pytest.mark.slow
def test_kernels_under_a_sanitizer(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    name: str = request.config.getoption("--sanitizer")
    flags = library.SANITIZERS[name]
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}\n")
    command = [compiler(), *flags, probe, "-o", tmp_path / "probe"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip(f"the compiler has no {flags[0]}")
    runtime = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}[name]
    files = [
        subprocess.run(
            [compiler(), f"-print-file-name={file}"], capture_output=True, text=True
        ).stdout.strip()
        for file in runtime
    ]
    if not all("/" in file for file in files):
        pytest.skip("the sanitizer has no shared library to load before Python")
    done = run(
        library.build(sanitizer=name, compiler=compiler()),
        *SANITIZED[name],
        LD_PRELOAD=" ".join(files),
        ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0",
        TSAN_OPTIONS="report_signal_unsafe=0",
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


def test_a_failed_case_is_reported() -> None:
    one = cases.np.ones(3)
    with pytest.raises(AssertionError, match="relative error"):
        cases.compare({"loss": one * 1.01}, {"loss": one}, 1e-6)
