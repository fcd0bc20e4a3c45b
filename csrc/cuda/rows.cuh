// Rows as the kernels want them: contiguous, in the compute type, padded with zeros to 16 bytes, with their
// squared norms. All dtypes and strides end here.
#pragma once

#include "cuda/device.h"

namespace ala::cuda {

// The float that 16 bits of half stand for. In words: only this kernel reads halves, and not often.
__device__ inline float half_value(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16, exponent = bits >> 10 & 31u,
                 mantissa = bits & 0x3ffu;
  if (exponent == 0) {  // 0 and denormals: exact in float
    const float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    return sign ? -value : value;
  }
  const uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
  return __uint_as_float(sign | wide << 23 | mantissa << 13);
}

// Element `at` of a matrix's storage.
template <class T>
__device__ inline T element(const ala_matrix& m, int64_t at) {
  switch (m.dtype) {
    case ALA_F32:
      return static_cast<T>(static_cast<const float*>(m.data)[at]);
    case ALA_F64:
      return static_cast<T>(static_cast<const double*>(m.data)[at]);
    case ALA_F16:
      return static_cast<T>(half_value(static_cast<const uint16_t*>(m.data)[at]));
    default:
      return static_cast<T>(
          __uint_as_float(static_cast<uint32_t>(static_cast<const uint16_t*>(m.data)[at]) << 16));
  }
}

template <class T>
struct Rows {
  T* data = nullptr;     // [count, pitch]
  T* factors = nullptr;  // the same, rounded to the precision of the products; `data` itself for float32
  T* square = nullptr;   // [count], of the factors: |x|^2 + |y|^2 - 2xy is then a true distance, of rounded
                         // rows. NaN where it overflows, so that no distance becomes a finite lie
  int64_t count = 0;
  int dims = 0, pitch = 0;
};

constexpr int kRowThreads = 256;  // one warp per row
constexpr int kRowsPerBlock = kRowThreads / kWarp;

template <class T>
__global__ void __launch_bounds__(kRowThreads) pack_rows(ala_matrix from, Rows<T> to, T splitter) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  if (i >= to.count) return;
  T sum = 0;
  for (int k = lane; k < to.pitch; k += kWarp) {
    const T x = k < to.dims ? element<T>(from, i * from.row_stride + k * from.col_stride) : T(0);
    const T factor = rounded(x, splitter);
    to.data[i * to.pitch + k] = x;
    if (splitter != T(0)) to.factors[i * to.pitch + k] = factor;
    sum += factor * factor;
  }
  sum = warp_sum(sum);
  if (lane == 0) to.square[i] = sum - sum == T(0) ? sum : T(NAN);
}

// |x - y|^2 by the difference itself, the same in every lane.
template <class T>
__device__ inline T warp_square(const T* x, const T* y, int dims, int lane) {
  T sum = 0;
  for (int k = lane; k < dims; k += kWarp) {
    const T difference = x[k] - y[k];
    sum += difference * difference;
  }
  sum = warp_sum(sum);
  return sum - sum == T(0) ? sum : T(NAN);
}

}  // namespace ala::cuda
