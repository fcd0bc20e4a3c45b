"""``python -m benchmarks NAME [options]``: run one benchmark."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = {
    "classification": "the methods of the paper's classification tables, with their compute counted",
    "classification_speed": "the classification loss and its controller against cross_entropy",
    "evaluation": "retrieval metrics against faiss, pytorch-metric-learning, torch and scikit-learn",
    "kill_race": "a race of two processes whose workers are killed two hundred times",
    "memory_bank": "CrossBatchMemory against that of pytorch-metric-learning",
    "gpu": "CUDA kernels against cuBLAS, PyTorch and its compiler, pytorch-metric-learning (see gpu.sh)",
    "kernels": "fused pair losses against torch.compile, dense PyTorch and pytorch-metric-learning",
    "precision": "errors of TF32 and bfloat16 products, on the emulated CUDA kernels",
    "ptxas": "registers, spills and shared memory of the CUDA kernels, from the compiler",
    "small_batches": "where the time of a small batch goes, and peers of pytorch-metric-learning",
    "study": "adaptive losses against every control at equal compute",
    "threads": "fused pair losses with all threads against one, and what the machine has to give",
    "vectorised": "arms of a race that train at once against arms in turn",
}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in BENCHMARKS:
        print("usage: python -m benchmarks NAME [options]\n")
        for name, what in BENCHMARKS.items():
            print(f"  {name:20} {what}")
        return 0 if sys.argv[1:] in ([], ["-h"], ["--help"]) else 2
    return importlib.import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
