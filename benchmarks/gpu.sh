#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU: build there, test, look for memory faults and races, measure.
#
#   benchmarks/gpu.sh              everything; writes gpu.json and gpu.md to benchmarks/results (or $OUT)
#   benchmarks/gpu.sh --quick      small sizes only
#   benchmarks/gpu.sh --dry-run    no GPU: the same cases through the emulation; its times mean nothing
#
# Needs no network. It must find there: nvcc (CUDA 12.8 or newer for Blackwell), a C++17 compiler, cmake >= 3.24,
# Python >= 3.11 with torch >= 2.10 for CUDA, numpy, safetensors, pytorch-metric-learning and pytest. Used
# where present: ninja, pybind11, compute-sanitizer, faiss with GPU support.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

case " $* " in
*" --dry-run "*) exec "$python" -m benchmarks gpu --dry-run --out "$out" ;;
esac

for need in nvcc cmake; do
  command -v "$need" >/dev/null || { echo "gpu.sh: $need was not found; see the head of this file" >&2; exit 1; }
done
"$python" - <<'PY'
import importlib.util, sys
missing = [n for n in ("torch", "numpy", "safetensors", "pytorch_metric_learning", "pytest") if not importlib.util.find_spec(n)]
sys.exit(f"gpu.sh: missing Python packages: {', '.join(missing)}" if missing else 0)
PY
arch=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
echo "== build for sm_$arch"
# this machine's GPU only: the wheel has all of them
ALA_METRIC_BUILD=cuda CMAKE_ARGS="${CMAKE_ARGS:-} -DCMAKE_CUDA_ARCHITECTURES=$arch-real" \
  "$python" setup.py build_native --inplace >"$out/gpu-build.log" 2>&1 || { tail -40 "$out/gpu-build.log"; exit 1; }
"$python" -c 'import ala_metric as a; i = a.native_info(); print(i.cuda_available, i.cuda_reason); raise SystemExit(not i.cuda_available)'

echo "== tests"
"$python" -m pytest -q -m cuda tests/test_cuda.py 2>&1 | tee "$out/gpu-tests.log"

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck initcheck; do
    echo "== compute-sanitizer $tool"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      --kernel-regex kns=ala4cuda "$python" -m pytest -q -m cuda tests/test_cuda.py -k small 2>&1 |
      tee "$out/gpu-$tool.log" | tail -3
  done
else
  echo "== compute-sanitizer was not found: left out"
fi

echo "== speed"
"$python" -m benchmarks gpu --out "$out" "$@"
