// Focal weighting (Eq. 10): a pass for the log-sums, a pass for the gradients.
#include "cuda/pass.h"

namespace ala::cuda {

// From m and sum exp(z - m) of negatives and positives to lse = log(1 + sum exp z), positives first.
template <class T>
__global__ void __launch_bounds__(kRowThreads) focal_log_sums(const T* values, int64_t n, double* lse) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (i >= n) return;
  for (int kind = 0; kind < 2; ++kind) {
    const T* from = values + 6 * i + 3 * kind;
    const double most = from[0], sum = static_cast<double>(from[1]) + static_cast<double>(from[2]);
    lse[2 * i + 1 - kind] = most == 0 ? ::log1p(sum) : most + ::log(::exp(-most) + sum);
  }
}

// The loss of every anchor, and lse as the gradients read it.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    focal_loss(const double* lse, const double* phi, int64_t n, T* loss, Split<T>* parts) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (i >= n) return;
  const double p[2] = {static_cast<double>(static_cast<T>(phi[0])),
                       static_cast<double>(static_cast<T>(phi[1]))};
  if (loss) loss[i] = static_cast<T>(lse[2 * i] / p[0] + lse[2 * i + 1] / p[1]);
  for (int kind = 0; kind < 2; ++kind) parts[2 * i + kind] = split<T>(lse[2 * i + kind]);
}

// d/dphi of lse / phi, from the sums of FocalOp. A block for each. (With the bound of two blocks; without
// one ptxas spilled for the sake of more.)
template <class T>
__global__ void __launch_bounds__(kFinishThreads, 2)
    focal_phi(const double* total, const double* lse, const T* weights, const double* phi, int64_t n,
              T* grad_phi) {
  ALA_SHARED(memory);
  auto* sums = reinterpret_cast<double*>(memory);  // [threads]
  const int64_t k = blockIdx.x;
  double mine = 0;
  for (int64_t i = threadIdx.x; i < n; i += kFinishThreads) {
    const double log_sum = lse[2 * i + k];
    mine += log_sum * ::exp(-log_sum) * (weights ? static_cast<double>(weights[i]) : 1.0);
  }
  sums[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double all = 0;
  for (int t = 0; t < kFinishThreads; ++t) all += sums[t];
  const double p = static_cast<double>(static_cast<T>(phi[k]));
  grad_phi[k] = static_cast<T>((total[k] - all) / (p * p));
}

template <class T>
void focal_weighting(Run& run, const ala_focal_weighting_request& r) {
  Points<T> points;
  points.pack(run, r);
  points.x_labels = r.x_labels;
  points.y_labels = points.symmetric ? r.x_labels : r.y_labels;
  const int64_t n = points.x.count, blocks = ceil_div<int64_t>(n, kRowThreads);
  const auto* weights = static_cast<const T*>(r.weights);
  auto* lse = r.lse ? r.lse : run.memory.array<double>(2 * n);
  auto* parts = run.memory.array<Split<T>>(2 * n);
  if (!r.lse_given) {
    T* values = run.memory.array<T>(6 * n);
    run_pass(run, points.pairs(), LogSumOp<T>{r.phi, r.offset}, Results<T>{values, nullptr, nullptr});
    run.start(focal_log_sums<T>, blocks, kRowThreads, 0, values, n, lse);
  }
  run.start(focal_loss<T>, blocks, kRowThreads, 0, lse, r.phi, n, static_cast<T*>(r.loss), parts);
  const Split<T>* col_lse = points.symmetric ? parts : nullptr;
  const Results<T> results{nullptr, static_cast<T*>(r.grad_x),
                           r.grad_phi ? run.memory.array<double>(2) : nullptr};
  if (results.total) {
    run.clear(results.total, 16);
    run_pass(run, points.pairs(), FocalOp<T, true>{r.phi, r.offset, parts, weights, col_lse, weights},
             results);
    run.start(focal_phi<T>, 2, kFinishThreads, kFinishThreads * 8, results.total, lse, weights, r.phi, n,
              static_cast<T*>(r.grad_phi));
  } else if (results.grad) {
    run_pass(run, points.pairs(), FocalOp<T, false>{r.phi, r.offset, parts, weights, col_lse, weights},
             results);
  }
  if (r.grad_y && !points.symmetric)
    run_pass(run, points.turned(), FocalOp<T, false>{r.phi, r.offset, nullptr, nullptr, parts, weights},
             Results<T>{nullptr, static_cast<T*>(r.grad_y), nullptr});
}

}  // namespace ala::cuda

ALA_DEFINE_CUDA_OP(focal_weighting, ala_focal_weighting_request)
