// CUDA on a CPU, for tests: the sources of csrc/cuda compile against this header with a C++ compiler.
//
// Every block runs its threads as fibres (one switch per barrier or warp operation), or, under
// ThreadSanitizer, as OS threads. Shared memory starts as NaN and has a guard behind it; a barrier or warp
// operation that some thread never reaches ends the program with the names of the threads that wait.
// Environment: ALA_EMULATION_ORDER = forward | backward | shuffled (which thread runs first),
// ALA_EMULATION_COPIES = now | late (asynchronous copies land at once, or not before they are waited for).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define ALA_CUDA_EMULATION 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__
#define __grid_constant__
#define __launch_bounds__(...)

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
using cudaStream_t = struct CUstream_st*;
struct alignas(16) float4 {
  float x, y, z, w;
};
struct emulated_dim3 {
  int64_t x;
};

namespace emulation {
cudaError_t run(int64_t blocks, int threads, int64_t shared_bytes, const std::function<void()>& kernel);
unsigned char* shared_memory();
void copy_async(void* to, const void* from, int bytes, bool inside);
void copies_commit();
void copies_wait();
int barrier(int vote, const char* file, int line);
// All lanes of `mask` give a word; each gets the words of all.
const uint64_t* exchange(unsigned mask, uint64_t word, const char* file, int line);
int lane();
void start_atomic();
void end_atomic();

template <class T>
T shuffle(unsigned mask, T value, int from, const char* file, int line) {
  static_assert(sizeof(T) <= 8);
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  const uint64_t* words = exchange(mask, word, file, line);
  std::memcpy(&value, &words[from & 31], sizeof value);
  return value;
}
inline unsigned ballot(unsigned mask, bool vote, const char* file, int line) {
  const uint64_t* words = exchange(mask, vote, file, line);
  unsigned bits = 0;
  for (int l = 0; l < 32; ++l)
    if (mask >> l & 1 && words[l]) bits |= 1u << l;
  return bits;
}
template <class T>
T atomic(T* at, T value, T (*combine)(T, T)) {
  start_atomic();
  const T before = *at;
  *at = combine(before, value);
  end_atomic();
  return before;
}
}  // namespace emulation

extern thread_local emulated_dim3 threadIdx, blockIdx, blockDim, gridDim;

#define __syncthreads() static_cast<void>(emulation::barrier(0, __FILE__, __LINE__))
#define __syncthreads_or(vote) emulation::barrier((vote) != 0, __FILE__, __LINE__)
#define __syncwarp() static_cast<void>(emulation::exchange(0xffffffffu, 0, __FILE__, __LINE__))
#define __shfl_sync(mask, value, from) emulation::shuffle(mask, value, from, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, step) \
  emulation::shuffle(mask, value, emulation::lane() ^ (step), __FILE__, __LINE__)
#define __ballot_sync(mask, vote) emulation::ballot(mask, (vote) != 0, __FILE__, __LINE__)
#define __any_sync(mask, vote) (emulation::ballot(mask, (vote) != 0, __FILE__, __LINE__) != 0)

template <class T>
T atomicAdd(T* at, T value) {
  return emulation::atomic<T>(at, value, [](T a, T b) { return static_cast<T>(a + b); });
}
template <class T>
T atomicMax(T* at, T value) {
  return emulation::atomic<T>(at, value, [](T a, T b) { return a < b ? b : a; });
}
inline int __ffs(int bits) {
  return __builtin_ffs(bits);
}
inline int __popc(unsigned bits) {
  return __builtin_popcount(bits);
}
// As inexact as the hardware may be: up to 2 units in the last place, either way.
inline float rsqrtf(float x) {
  float root = 1.0f / std::sqrt(x);
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const int off = static_cast<int>((bits * 2654435761u >> 16) % 5u) - 2;
  for (int k = 0; k < 2; ++k)
    if (k < std::abs(off)) root = std::nextafter(root, off < 0 ? 0.0f : HUGE_VALF);
  return root;
}
// Rounded, and not fused with what follows: the compiler must not look through it.
template <class T>
T opaque(T value) {
  asm volatile("" : "+m"(value));
  return value;
}
inline float __fmul_rn(float a, float b) {
  return opaque(a * b);
}
inline double __dmul_rn(double a, double b) {
  return opaque(a * b);
}
inline double rsqrt(double x) {
  return 1.0 / std::sqrt(x);
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline long long __double_as_longlong(double x) {
  long long bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline double __longlong_as_double(long long bits) {
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) {
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 227 * 1024;
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) {
  return "an emulated error";
}
