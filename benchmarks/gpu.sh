#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU: build there, test, look for memory faults and races, measure.
#
#   benchmarks/gpu.sh                everything; writes gpu.json, gpu.md and logs to benchmarks/results (or $OUT)
#   benchmarks/gpu.sh --minutes 9    stops by then; the same command again goes on where it stopped
#   benchmarks/gpu.sh --quick        small sizes only
#   benchmarks/gpu.sh --again        forgets what was done before
#   benchmarks/gpu.sh --dry-run      no GPU: the same steps through the emulation; its times mean nothing
#
# A step that fails is noted, and the next one runs; only without a build nothing follows. What is done is
# remembered in build/gpu, by the hash of the sources; every measured row is written at once.
#
# Needs no network. It must find there: nvcc (CUDA 12.8 or newer for Blackwell; also looked for in
# /usr/local/cuda/bin), a C++17 compiler, cmake >= 3.24, and Python >= 3.11 with torch >= 2.10 for CUDA, numpy,
# safetensors, setuptools and pytest. Used where present: ninja, pybind11, compute-sanitizer,
# pytorch-metric-learning, faiss with GPU support.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
[ -d /usr/local/cuda/bin ] && PATH="$PATH:/usr/local/cuda/bin"

minutes=600 dry='' quick='' again=''
while [ $# -gt 0 ]; do
  case $1 in
  --minutes) minutes=$2 && shift ;;
  --dry-run) dry=--dry-run ;;
  --quick) quick=--quick ;;
  --again) again=1 ;;
  *) echo "gpu.sh: unknown option $1; see the head of this file" >&2 && exit 2 ;;
  esac
  shift
done
key=$(find csrc cmake tests/test_cuda.py setup.py -type f | LC_ALL=C sort | xargs cat | sha256sum | cut -c1-12)
state=build/gpu/$key$dry
[ -n "$again" ] && rm -rf "$state"
mkdir -p "$out" "$state" || exit 1
left() { echo $((minutes * 60 - SECONDS)); }

# step NAME SECONDS COMMAND ...: at most so long, its output in a log, and not again when it was done
step() {
  local name=$1 most=$2 status start=$SECONDS
  shift 2
  [ -e "$state/$name.done" ] && echo "== $name: done before" && return 0
  [ "$(left)" -lt 20 ] && echo "== $name: no time left" && return 1
  [ "$most" -gt "$(left)" ] && most=$(left)
  echo "== $name"
  timeout --kill-after=20 "$most" "$@" >"$out/gpu-$name.log" 2>&1
  status=$?
  tail -n 3 "$out/gpu-$name.log"
  echo "$name: exit status $status after $((SECONDS - start)) s" | tee -a "$out/gpu-steps.log"
  [ $status -ne 0 ] && return 1
  touch "$state/$name.done"
}

build() {
  for need in nvcc cmake; do
    command -v $need || { echo "gpu.sh: $need was not found; see the head of this file" && return 1; }
  done
  "$python" - <<'PY' || return 1
import importlib.util, sys
needed = "torch", "numpy", "safetensors", "setuptools", "pytest"
if missing := [name for name in needed if not importlib.util.find_spec(name)]:
    sys.exit(f"gpu.sh: missing Python packages: {', '.join(missing)}")
import torch
if not torch.cuda.is_available():
    sys.exit(f"gpu.sh: torch {torch.__version__} at {torch.__file__} sees no GPU")
PY
  local arch
  arch=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || return 1
  echo "for sm_$arch: this machine's GPU only; the wheel has all of them"
  ALA_METRIC_BUILD=cuda CMAKE_ARGS="${CMAKE_ARGS:-} -DCMAKE_CUDA_ARCHITECTURES=$arch-real" \
    "$python" setup.py build_native --inplace || return 1
  "$python" -c 'import ala_metric as a; i = a.native_info(); print(i); raise SystemExit(not i.cuda_available)'
}
# without the project's own settings, which name plugins that may be missing
tests() { "$python" -m pytest -q -c /dev/null --rootdir . -p no:cacheprovider tests/test_cuda.py "$@"; }
sanitize() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 \
    --kernel-regex kns=ala4cuda "$python" -m pytest -q -c /dev/null --rootdir . -p no:cacheprovider \
    tests/test_cuda.py -k small
}
speed() {
  # shellcheck disable=SC2086 # no words when empty
  "$python" -m benchmarks gpu $quick $dry --out "$out" --state "$state" --minutes "$(($(left) / 60))" "$@"
}
export -f build tests sanitize speed left
export python out state quick dry minutes

run() { step "$1" "$2" bash -c 'SECONDS=$1; shift; "$@"' - "$SECONDS" "${@:3}"; }
failed=0
if [ -n "$dry" ]; then
  run tests 300 tests -rs || failed=1 # all skipped: that the file can be read
  run speed 1800 speed || failed=1
  exit $failed
fi
usable() { "$python" -c 'import ala_metric as a; raise SystemExit(not a.native_info().cuda_available)'; }
usable 2>/dev/null || rm -f "$state/build.done" # another machine, or built otherwise since
run build 900 build || { tail -n 40 "$out/gpu-build.log" && exit 1; }
run tests 400 tests || failed=1
run speed-ours 600 speed --stage ours || failed=1
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck initcheck; do
    run $tool 300 sanitize $tool || failed=1
  done
else
  echo "== compute-sanitizer was not found: left out"
fi
run speed-peers 3600 speed --stage peers || failed=1
cat "$out/gpu.md"
exit $failed
