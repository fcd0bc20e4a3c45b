// What the kernels need of CUDA beyond plain C++, in one place: launches, shared memory, asynchronous copies,
// sums over a warp. tests/cuda_emulation/ has a cuda_runtime.h of its own that runs the same sources on a
// CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ala_metric/cuda.h"
#include "core/scalar_math.h"
#include "core/shapes.h"

namespace ala::cuda {

using ala::ALA_ISA::kNearPair;
using ala::ALA_ISA::kShapes;
using ala::ALA_ISA::kSmallestSquare;
using ala::ALA_ISA::ScalarMath;
using ala::ALA_ISA::Shapes;

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
constexpr T round_up(T value, T step) {
  return (value + step - 1) / step * step;
}
template <class T>
constexpr T ceil_div(T value, T step) {
  return (value + step - 1) / step;
}

#if defined(ALA_CUDA_EMULATION)

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
                   cudaStream_t, Arguments... arguments) {
  return emulation::run(blocks, threads, shared_bytes, [=] { kernel(arguments...); });
}
#define ALA_SHARED(name) unsigned char* name = emulation::shared_memory()

__device__ inline void copy16_async(void* to, const void* from, bool inside) {
  emulation::copy_async(to, from, 16, inside);
}
__device__ inline void copies_commit() {
  emulation::copies_commit();
}
__device__ inline void copies_wait() {
  emulation::copies_wait();
}

#else

// Grids have one dimension: 2^31 - 1 blocks is the only limit, and the callers stay below it.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
                   cudaStream_t stream, Arguments... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  if (shared_bytes > 48 * 1024) {  // above the default a kernel must ask
    auto status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return status;
    // of the SM's cache so much that as many blocks fit as the bounds count on
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared);
    if (status != cudaSuccess) return status;
  }
  const auto grid = static_cast<unsigned>(blocks);
  // clang-format off
  kernel<<<grid, threads, static_cast<size_t>(shared_bytes), stream>>>(arguments...);
  // clang-format on
  return cudaGetLastError();
}
#define ALA_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

// 16 bytes from global to shared memory behind the back of the registers; zeros where `inside` is false.
__device__ inline void copy16_async(void* to, const void* from, bool inside) {
#if __CUDA_ARCH__ >= 800
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(at), "l"(from), "r"(bytes) : "memory");
#else
  *static_cast<float4*>(to) = inside ? *static_cast<const float4*>(from) : float4{0, 0, 0, 0};
#endif
}
__device__ inline void copies_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}
// Until all copies of this thread have landed; other threads see them after a barrier.
__device__ inline void copies_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group 0;\n" ::: "memory");
#endif
}

#endif

// The sum over all lanes, in one fixed tree, in every lane.
template <class T>
__device__ inline T warp_sum(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// a * b, rounded whatever is added to it: where the rounding is accounted for, no compiler may fuse the two.
__device__ inline float rounded_product(float a, float b) {
  return __fmul_rn(a, b);
}
__device__ inline double rounded_product(double a, double b) {
  return __dmul_rn(a, b);
}
// x to the nearest number of k fewer bits, for splitter = 2^k + 1 (T. J. Dekker, 1971). 0: x itself.
template <class T>
__device__ inline T rounded(T x, T splitter) {
  if (splitter == T(0)) return x;
  const T scaled = rounded_product(x, splitter);
  return scaled - (scaled - x);
}
__device__ inline float multiply_add(float a, float b, float c) {
  return ::fmaf(a, b, c);
}
__device__ inline double multiply_add(double a, double b, double c) {
  return ::fma(a, b, c);
}
__device__ inline float reciprocal_root(float x) {
  return rsqrtf(x);
}
__device__ inline double reciprocal_root(double x) {
  return rsqrt(x);
}

}  // namespace ala::cuda
