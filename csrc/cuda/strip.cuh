// One strip of pairs: S = X_c Y^T, made by a BLAS, becomes G in place. A warp takes one row of one span of
// columns. Near pairs are recomputed by their difference; their gradient goes straight to `near`, because
// rowsum(G) x - G Y would cancel, and their place in G is 0.
#pragma once

#include "cuda/pair_ops.cuh"
#include "cuda/rows.cuh"

namespace ala::cuda {

// What is left of the rows when a pass is over: partial sums of `spans` spans of columns each.
template <class T>
struct Partials {
  int64_t spans;
  T* values;           // [rows, spans, kValues]
  T* row_sum;          // [rows, spans] of G without near pairs
  T* near;             // [rows, spans, pitch]: written where near_used
  int32_t* near_used;  // [rows, spans]
  double* sums;        // [rows or row tiles, spans, kSums]
};

template <class T>
struct Strip {
  T* s;  // [rows, pitch]
  int64_t pitch, first, rows, span;
  T splitter;  // rounds G for its product
};

constexpr int kStripThreads = 256, kStripRows = kStripThreads / kWarp, kStripUnroll = 4;

// Bounds: no shared memory, at most 128 registers for float, 255 for double, no spills.
template <class T, class Op>
__global__ void __launch_bounds__(kStripThreads, sizeof(T) == 8 ? 1 : 2)
    strip_kernel(Pairs<T> p, Op op, Strip<T> strip, Partials<T> out) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t block = blockIdx.x, span = block % out.spans;
  const int64_t r = block / out.spans * kStripRows + threadIdx.x / kWarp;
  if (r >= strip.rows) return;  // the whole warp
  const int64_t i = strip.first + r, item = r * out.spans + span;
  const int64_t begin = span * strip.span;
  const int64_t end = begin + strip.span < p.cols ? begin + strip.span : p.cols;
  const T* x = p.x + i * p.pitch;
  T* s = strip.s + r * strip.pitch;
  const T x_square = p.x_square[i];
  const int64_t label = p.x_labels ? p.x_labels[i] : 0;
  const auto shared = op.shared();
  const auto row = op.row(i, p.rows);
  T acc[Op::kValues + 1], row_sum = 0;
  T sums[Op::kSums + 1] = {};
  Op::start(acc);
  bool used = false;

  for (int64_t j0 = begin; j0 < end; j0 += kWarp * kStripUnroll) {
    T square[kStripUnroll], low[kStripUnroll], pull[kStripUnroll];
    bool pairs[kStripUnroll], near[kStripUnroll];
    unsigned bits[kStripUnroll];
#pragma unroll
    for (int u = 0; u < kStripUnroll; ++u) {
      const int64_t j = j0 + u * kWarp + lane;
      pairs[u] = j < end && !(p.symmetric && j == i);
      const auto at = pairs[u] ? square_of(x_square, p.y_square[j], s[j]) : Square<T>{1, 0, 0};
      square[u] = at.value;
      low[u] = at.low;
      near[u] = at.value <= static_cast<T>(kNearPair) * at.limit;
      bits[u] = __ballot_sync(kAllLanes, near[u]);
      pull[u] = 0;
    }
    for (int u = 0; u < kStripUnroll; ++u)
      for (unsigned left = bits[u]; left; left &= left - 1) {
        const int l = __ffs(static_cast<int>(left)) - 1;
        const T exact = warp_square(x, p.y + (j0 + u * kWarp + l) * p.pitch, p.dims, lane);
        if (lane == l) square[u] = exact, low[u] = 0;
      }
#pragma unroll
    for (int u = 0; u < kStripUnroll; ++u) {
      const int64_t j = j0 + u * kWarp + lane;
      T g = 0;
      if (pairs[u]) {
        const bool positive = p.y_labels && p.y_labels[j] == label;
        g = op.pair(shared, row, distance_of(square[u], low[u]), positive, i, j, p.cols, acc, sums);
      }
      if (Op::kStores) {
        if (j < end) s[j] = g;
      } else if (Op::kGradient) {
        if (near[u]) {
          pull[u] = g;
        } else {
          g = rounded(g, strip.splitter);
          row_sum += g;
        }
        if (j < end) s[j] = near[u] ? T(0) : g;
      }
    }
    if (Op::kGradient)
      for (int u = 0; u < kStripUnroll; ++u)
        for (unsigned left = bits[u]; left; left &= left - 1) {
          const int l = __ffs(static_cast<int>(left)) - 1;
          const T g = __shfl_sync(kAllLanes, pull[u], l);
          const T* y = p.y + (j0 + u * kWarp + l) * p.pitch;
          for (int k = lane; k < p.pitch; k += kWarp) {  // a lane's own dimensions: no others write them
            T* to = out.near + item * p.pitch + k;
            *to = (used ? *to : T(0)) + g * (x[k] - y[k]);
          }
          used = true;
        }
  }
  if constexpr (Op::kValues > 0) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      T other[Op::kValues];
#pragma unroll
      for (int v = 0; v < Op::kValues; ++v) other[v] = __shfl_xor_sync(kAllLanes, acc[v], step);
      Op::merge(acc, other);
    }
    if (lane == 0)
      for (int v = 0; v < Op::kValues; ++v) out.values[item * Op::kValues + v] = acc[v];
  }
  if constexpr (Op::kSums > 0) {
#pragma unroll
    for (int k = 0; k < Op::kSums; ++k) {
      const double total = warp_sum(static_cast<double>(sums[k]));
      if (lane == 0) out.sums[item * Op::kSums + k] = total;
    }
  }
  if constexpr (Op::kGradient) {
    row_sum = warp_sum(row_sum);
    if (lane == 0) {
      out.row_sum[item] = row_sum;
      out.near_used[item] = used;
    }
  }
}

}  // namespace ala::cuda
