// Products for strips where no BLAS was given: C = A B^T or A B, row-major, exact arithmetic of the type.
#pragma once

#include "cuda/device.h"

namespace ala::cuda {

constexpr int kProductTile = 64, kProductDepth = 16, kProductThreads = 256;

// Bounds: 2 * 16 * 65 elements of shared memory (16.6 KiB for double), at most 128 registers.
template <class T, bool kTransposed>
__global__ void __launch_bounds__(kProductThreads, 2)
    product_kernel(const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc, int64_t rows,
                   int64_t cols, int64_t inner, int64_t col_tiles) {
  constexpr int kStride = kProductTile + 1;
  ALA_SHARED(memory);
  T* a_tile = reinterpret_cast<T*>(memory);
  T* b_tile = a_tile + kProductDepth * kStride;
  const int thread = static_cast<int>(threadIdx.x), ty = thread / 16, tx = thread % 16;
  const int64_t i0 = static_cast<int64_t>(blockIdx.x) / col_tiles * kProductTile;
  const int64_t j0 = static_cast<int64_t>(blockIdx.x) % col_tiles * kProductTile;
  T sum[4][4] = {};
  for (int64_t k0 = 0; k0 < inner; k0 += kProductDepth) {
    for (int n = thread; n < kProductTile * kProductDepth; n += kProductThreads) {
      const int r = n / kProductDepth, k = n % kProductDepth;
      const bool in_a = i0 + r < rows && k0 + k < inner;
      a_tile[k * kStride + r] = in_a ? a[(i0 + r) * lda + k0 + k] : T(0);
      if (kTransposed) {
        const bool in_b = j0 + r < cols && k0 + k < inner;
        b_tile[k * kStride + r] = in_b ? b[(j0 + r) * ldb + k0 + k] : T(0);
      } else {
        const int depth = n / kProductTile, j = n % kProductTile;
        const bool in_b = j0 + j < cols && k0 + depth < inner;
        b_tile[depth * kStride + j] = in_b ? b[(k0 + depth) * ldb + j0 + j] : T(0);
      }
    }
    __syncthreads();
    T part[4][4] = {};  // summed on its own: the rounding grows with the root of the number of tiles
#pragma unroll
    for (int k = 0; k < kProductDepth; ++k) {
      T x[4], y[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        x[q] = a_tile[k * kStride + ty + 16 * q];
        y[q] = b_tile[k * kStride + tx + 16 * q];
      }
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int q = 0; q < 4; ++q) part[r][q] += x[r] * y[q];
    }
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int q = 0; q < 4; ++q) sum[r][q] += part[r][q];
    __syncthreads();
  }
  for (int r = 0; r < 4; ++r)
    for (int q = 0; q < 4; ++q) {
      const int64_t i = i0 + ty + 16 * r, j = j0 + tx + 16 * q;
      if (i < rows && j < cols) c[i * ldc + j] = sum[r][q];
    }
}

template <class T>
cudaError_t multiply(bool transposed, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
                     int64_t rows, int64_t cols, int64_t inner, cudaStream_t stream) {
  const int64_t col_tiles = ceil_div<int64_t>(cols, kProductTile);
  const int64_t blocks = ceil_div<int64_t>(rows, kProductTile) * col_tiles;
  const int64_t bytes = 2 * kProductDepth * (kProductTile + 1) * static_cast<int64_t>(sizeof(T));
  const auto kernel = transposed ? product_kernel<T, true> : product_kernel<T, false>;
  return launch(kernel, blocks, kProductThreads, bytes, stream, a, lda, b, ldb, c, ldc, rows, cols, inner,
                col_tiles);
}

}  // namespace ala::cuda
