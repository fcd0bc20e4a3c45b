// All of a pass in one launch, for float rows of at most kDims dimensions: a block holds 64 rows in shared
// memory and walks over a share of the columns, 64 at a time, the next ones on their way meanwhile. Products
// in registers, then one row per thread for what is done with a pair, then G Y in registers (8 rows x 8
// dimensions a thread). S and G never leave the chip.
#pragma once

#include "cuda/strip.cuh"
#include "cuda/tile.cuh"

namespace ala::cuda {

template <int kDims>
struct FusedShared {
  static constexpr int kChunks = kDims / 4;
  float4 x[kTile * kChunks];
  float4 y[2][kTile * kChunks];
  float square[kTile * kTile];  // S, then G
  uint32_t near[kTile][2];      // bit r of word h of column j: is the pair (32 h + r, j) near?
};

// Bounds: 64.5 KiB of shared memory for 64 dimensions, 112.5 KiB for 128, so that two blocks fit on a Hopper
// SM (228 KiB, and each block takes 1 KiB more); at most 255 registers, no spills. Where a GPU has less, the
// pass goes by strips.
static_assert(sizeof(FusedShared<64>) <= 66048 && sizeof(FusedShared<128>) <= 115200);
template <int kDims>
constexpr int64_t fused_shared_bytes() {
  return sizeof(FusedShared<kDims>);
}

template <int kDims, class Op>
__global__ void __launch_bounds__(kTileThreads, 2)
    fused_kernel(Pairs<float> p, Op op, int64_t span, int32_t gradient, float* grad, Partials<float> out) {
  using F = FusedShared<kDims>;
  constexpr int kChunks = F::kChunks, kOwn = kDims / 64;  // float4 of the gradient per row and thread
  [[maybe_unused]] constexpr int kAhead =
      kOwn == 1 ? 4 : 1;  // columns in flight; more would spill on Blackwell
  ALA_SHARED(memory);
  F& tile = *reinterpret_cast<F*>(memory);
  const int thread = static_cast<int>(threadIdx.x);
  // two spans of `out` per block: of each 64 columns the first and the last 32
  const int64_t splits = out.spans / 2, split = static_cast<int64_t>(blockIdx.x) % splits;
  const int64_t first = static_cast<int64_t>(blockIdx.x) / splits * kTile;
  const int64_t begin = split * span, end = begin + span < p.cols ? begin + span : p.cols;
  const int chunks = p.pitch / 4;

  // for the pairs: this thread's row, and its half of every 64 columns
  const int mine = thread % kTile, half = thread / kTile;
  const int64_t i = first + mine;
  const bool is_row = i < p.rows;
  const float x_square = is_row ? p.x_square[i] : 0.0f;
  const int64_t label = is_row && p.x_labels ? p.x_labels[i] : 0;
  const auto shared = op.shared();
  const auto row = op.row(is_row ? i : p.rows - 1, p.rows);
  float acc[Op::kValues + 1], row_sum = 0;
  double sums[Op::kSums + 1] = {};
  Op::start(acc);
  // for the product with Y: 8 rows, dimensions 4 left .. and 64 + 4 left ..
  const int top = thread / 16 * kMine, left = thread % 16;
  float4 g_y[kMine][kOwn] = {};

  load_tile<kChunks>(tile.x, p.x, first, p.rows, p.pitch, 0);
  load_tile<kChunks>(tile.y[0], p.y, begin, end, p.pitch, 0);
  copies_commit();
  int buffer = 0;
  for (int64_t j0 = begin; j0 < end; j0 += kTile, buffer ^= 1) {
    copies_wait();
    __syncthreads();  // this tile has landed, and nobody reads the last one any more
    if (j0 + kTile < end) {
      load_tile<kChunks>(tile.y[buffer ^ 1], p.y, j0 + kTile, end, p.pitch, 0);
      copies_commit();
    }
    const float4* y = tile.y[buffer];
    {
      float s[kMine][kTheirs] = {};
      multiply_tile<kChunks>(tile.x, y, chunks, s);
      store_square(tile.square, s);
    }
    __syncthreads();  // S is complete

    float tile_sums[Op::kSums + 1] = {}, tile_row_sum = 0;  // of one tile: rounding grows with its root
    bool any_near = false;
#pragma unroll 2
    for (int c = 0; c < 32; ++c) {
      const int at = half * 32 + c;
      const int64_t j = j0 + at;
      const bool is_pair = is_row && j < end && !(p.symmetric && j == i);
      float* place = tile.square + square_place(mine, at);
      float g = 0;
      bool near = false;
      if (is_pair) {
        auto [square, low, limit] = square_of(x_square, p.y_square[j], *place);
        near = square <= static_cast<float>(kNearPair) * limit;
        if (near) {
          square = low = 0;
          for (int k = 0; k < chunks; ++k) {
            const float4 a = tile.x[mine * kChunks + chunk_place(mine, k)];
            const float4 b = y[at * kChunks + chunk_place(at, k)];
            square += (a.x - b.x) * (a.x - b.x) + (a.y - b.y) * (a.y - b.y) + (a.z - b.z) * (a.z - b.z) +
                      (a.w - b.w) * (a.w - b.w);
          }
        }
        const bool positive = p.y_labels && p.y_labels[j] == label;
        g = op.pair(shared, row, distance_of(square, low), positive, i, j, p.cols, acc, tile_sums);
      }
      if (Op::kGradient) {
        if (!near) tile_row_sum += g;
        *place = g;
        const unsigned bits = __ballot_sync(kAllLanes, near);
        if (thread % kWarp == 0) tile.near[at][mine / kWarp] = bits;
        any_near |= near;
      }
    }
#pragma unroll
    for (int k = 0; k < Op::kSums; ++k) sums[k] += static_cast<double>(tile_sums[k]);

    row_sum += tile_row_sum;
    if constexpr (Op::kGradient) {
      const bool has_near = __syncthreads_or(any_near);  // G is complete
      if (gradient) {
#pragma unroll kAhead
        for (int j = 0; j < kTile; ++j) {
          const float4 g0 = *reinterpret_cast<const float4*>(tile.square + square_place(top, j));
          const float4 g1 = *reinterpret_cast<const float4*>(tile.square + square_place(top + 4, j));
          float g[kMine] = {g0.x, g0.y, g0.z, g0.w, g1.x, g1.y, g1.z, g1.w};
          const uint32_t near = has_near ? tile.near[j][top / 32] >> top % 32 & 0xffu : 0u;
#pragma unroll
          for (int q = 0; q < kOwn; ++q) {
            const float4 b = y[j * kChunks + chunk_place(j, left + 16 * q)];
#pragma unroll
            for (int r = 0; r < kMine; ++r) {
              float4 from = b;
              if (near >> r & 1) {  // G (y - x), the difference taken first, instead of G y
                const float4 a = tile.x[(top + r) * kChunks + chunk_place(r, left + 16 * q)];
                from = {b.x - a.x, b.y - a.y, b.z - a.z, b.w - a.w};
              }
              float4& sum = g_y[r][q];
              sum.x += g[r] * from.x;
              sum.y += g[r] * from.y;
              sum.z += g[r] * from.z;
              sum.w += g[r] * from.w;
            }
          }
        }
      }
    }
  }

  const int64_t item = i * out.spans + split * 2 + half;
  if (is_row) {
    if constexpr (Op::kValues > 0)
      for (int v = 0; v < Op::kValues; ++v) out.values[item * Op::kValues + v] = acc[v];
    if constexpr (Op::kGradient) out.row_sum[item] = row_sum;
  }
  if constexpr (Op::kSums > 0) {
    const int64_t warps = kTileThreads / kWarp;
    const int64_t at = (static_cast<int64_t>(blockIdx.x) * warps + thread / kWarp) * Op::kSums;
#pragma unroll
    for (int k = 0; k < Op::kSums; ++k) {
      const double total = warp_sum(sums[k]);
      if (thread % kWarp == 0) out.sums[at + k] = total;
    }
  }
  if (Op::kGradient && gradient)
#pragma unroll
    for (int r = 0; r < kMine; ++r)
      if (first + top + r < p.rows)
#pragma unroll
        for (int q = 0; q < kOwn; ++q) {
          const int at = 4 * (left + 16 * q);
          if (at < p.pitch)
            *reinterpret_cast<float4*>(grad + (split * p.rows + first + top + r) * p.pitch + at) = g_y[r][q];
        }
}

}  // namespace ala::cuda
