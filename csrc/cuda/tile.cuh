// Tiles of 64 x 64 pairs in shared memory, for 128 threads: rows of 16-byte chunks whose places are permuted
// (chunk c of row r lies at c ^ (r & 7)), so that neither copies nor reads meet in a bank, without padding.
#pragma once

#include "cuda/device.h"

namespace ala::cuda {

constexpr int kTile = 64, kTileThreads = 128;
constexpr int kMine = 8, kTheirs = 4;  // of a thread: 8 rows x 4 columns (columns 16 apart)

__device__ inline int chunk_place(int row, int chunk) {
  return chunk ^ (row & 7);
}

// Rows first .. first + 63 of a packed matrix of `pitch` floats, chunks first_chunk .. + kChunks of each.
// What lies outside becomes 0.
template <int kChunks>
__device__ inline void load_tile(float4* to, const float* from, int64_t first, int64_t rows, int pitch,
                                 int first_chunk) {
  for (int n = static_cast<int>(threadIdx.x); n < kTile * kChunks; n += kTileThreads) {
    const int r = n / kChunks, c = n % kChunks;
    const bool inside = first + r < rows && (first_chunk + c) * 4 < pitch;
    const float* source = inside ? from + (first + r) * pitch + (first_chunk + c) * 4 : from;
    copy16_async(to + r * kChunks + chunk_place(r, c), source, inside);
  }
}

// s += X Y^T of two tiles, `chunks` chunks deep.
template <int kChunks>
__device__ inline void multiply_tile(const float4* x, const float4* y, int chunks,
                                     float (&s)[kMine][kTheirs]) {
  const int top = static_cast<int>(threadIdx.x) / 16 * kMine, left = static_cast<int>(threadIdx.x) % 16;
#pragma unroll 2
  for (int c = 0; c < chunks; ++c) {
    float4 b[kTheirs];
#pragma unroll
    for (int q = 0; q < kTheirs; ++q) {
      const int j = left + 16 * q;
      b[q] = y[j * kChunks + chunk_place(j, c)];
    }
#pragma unroll
    for (int r = 0; r < kMine; ++r) {
      const float4 a = x[(top + r) * kChunks + chunk_place(r, c)];  // top is a multiple of 8
#pragma unroll
      for (int q = 0; q < kTheirs; ++q) {
        s[r][q] += a.x * b[q].x;
        s[r][q] += a.y * b[q].y;
        s[r][q] += a.z * b[q].z;
        s[r][q] += a.w * b[q].w;
      }
    }
  }
}

// The square [64 columns][64 rows] of scalars that passes between threads; permuted like the tiles.
__device__ inline int square_place(int row, int j) {
  return j * kTile + chunk_place(j, row / 4) * 4 + row % 4;
}
__device__ inline void store_square(float* to, const float (&s)[kMine][kTheirs]) {
  const int top = static_cast<int>(threadIdx.x) / 16 * kMine, left = static_cast<int>(threadIdx.x) % 16;
#pragma unroll
  for (int q = 0; q < kTheirs; ++q) {
    const int j = left + 16 * q;
    *reinterpret_cast<float4*>(to + square_place(top, j)) = {s[0][q], s[1][q], s[2][q], s[3][q]};
    *reinterpret_cast<float4*>(to + square_place(top + 4, j)) = {s[4][q], s[5][q], s[6][q], s[7][q]};
  }
}

}  // namespace ala::cuda
