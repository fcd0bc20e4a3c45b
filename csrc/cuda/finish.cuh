// From partial sums to results, in a fixed order.
#pragma once

#include "cuda/strip.cuh"

namespace ala::cuda {

constexpr int kFinishThreads = 256;

// Accumulators of rows first .. first + rows, merged over their spans, to values [rows, kValues].
template <class T, class Op>
__global__ void __launch_bounds__(kFinishThreads)
    finish_values(Partials<T> from, int64_t first, int64_t rows, T* values) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kFinishThreads + threadIdx.x;
  if (r >= rows) return;
  T acc[Op::kValues + 1];
  Op::start(acc);
  for (int64_t span = 0; span < from.spans; ++span)
    Op::merge(acc, from.values + (r * from.spans + span) * Op::kValues);
  for (int v = 0; v < Op::kValues; ++v) values[(first + r) * Op::kValues + v] = acc[v];
}

// grad_i = rowsum(G)_i x_i - (G Y)_i + near pairs, where G Y lies in `parts` pieces. One warp per row.
template <class T>
struct GradientSum {
  const T* product;  // [parts, part_rows, pitch]
  int64_t parts, part_rows;
  const T* x;  // of the first row
  T* grad;     // [rows, dims], of the first row
  int64_t rows;
  int dims, pitch;
};

template <class T>
__global__ void __launch_bounds__(kFinishThreads) finish_gradient(GradientSum<T> g, Partials<T> from) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kFinishThreads / kWarp) + threadIdx.x / kWarp;
  if (r >= g.rows) return;
  T row_sum = 0;
  for (int64_t span = 0; span < from.spans; ++span) row_sum += from.row_sum[r * from.spans + span];
  for (int k = lane; k < g.dims; k += kWarp) {
    T product = 0, near = 0;
    for (int64_t part = 0; part < g.parts; ++part)
      product += g.product[(part * g.part_rows + r) * g.pitch + k];
    if (from.near_used)
      for (int64_t span = 0; span < from.spans; ++span)
        if (from.near_used[r * from.spans + span]) near += from.near[(r * from.spans + span) * g.pitch + k];
    g.grad[r * g.dims + k] = (row_sum * g.x[r * g.pitch + k] - product) + near;
  }
}

// total[k] += the `items` partial sums of k: one block for each k.
template <class Sum>
__global__ void __launch_bounds__(kFinishThreads)
    add_sums(const Sum* sums, int64_t items, int count, Sum* total) {
  ALA_SHARED(memory);
  auto* warps = reinterpret_cast<Sum*>(memory);
  const int64_t k = blockIdx.x;
  Sum sum = 0;
  for (int64_t n = threadIdx.x; n < items; n += kFinishThreads) sum += sums[n * count + k];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    Sum all = 0;
    for (int w = 0; w < kFinishThreads / kWarp; ++w) all += warps[w];
    total[k] += all;
  }
}

template <class T>
__global__ void __launch_bounds__(kWarp) write_sums(const double* total, int count, T* to) {
  const int k = static_cast<int>(threadIdx.x);
  if (k < count) to[k] = static_cast<T>(total[k]);
}

}  // namespace ala::cuda
