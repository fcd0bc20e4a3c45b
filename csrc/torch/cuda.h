// What the binding needs of CUDA: torch's current stream, and the BLAS that torch has loaded.
//
// All of it is weak: a torch without CUDA lacks these names, and the library must load there all the same.
// The BLAS gets a handle of our own, so that no flag of torch's turns a float32 product into a TF32 one: the
// type of every product is said with it.
#pragma once

#include <ala_metric/cuda.h>

#include <climits>
#include <mutex>
#include <vector>

#include "stable.h"

extern "C" {
__attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** ret);
__attribute__((weak)) int cublasCreate_v2(void** handle);
__attribute__((weak)) int cublasSetStream_v2(void* handle, void* stream);
__attribute__((weak)) int cublasSetWorkspace_v2(void* handle, void* workspace, size_t bytes);
__attribute__((weak)) int cublasGemmEx(void* handle, int op_a, int op_b, int m, int n, int k,
                                       const void* alpha, const void* a, int a_type, int lda, const void* b,
                                       int b_type, int ldb, const void* beta, void* c, int c_type, int ldc,
                                       int compute, int algorithm);
}

namespace ala::cuda_binding {

// Why CUDA tensors cannot be served by this library in this process, or NULL.
inline const char* obstacle() {
#if !defined(ALA_WITH_CUDA)
  return "the native library was built without CUDA (ALA_METRIC_BUILD=cuda builds it where nvcc is)";
#else
  return aoti_torch_get_current_cuda_stream ? nullptr : "this torch was built without CUDA";
#endif
}

inline bool finds_cublas() {
  return cublasCreate_v2 && cublasSetStream_v2 && cublasSetWorkspace_v2 && cublasGemmEx;
}

#if defined(ALA_WITH_CUDA)
inline constexpr int kMostDevices = 64;
inline constexpr int64_t kBlasBytes = 32 << 20;  // cuBLAS asks for this much on Hopper

// The device is current while this lives.
class Device {
 public:
  explicit Device(int32_t index) { ala_cuda_set_device(index, &before_); }
  ~Device() {
    int32_t unused;
    ala_cuda_set_device(before_, &unused);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

 private:
  int32_t before_ = 0;
};

// Handles of cuBLAS that nobody uses just now: not one for each thread, for threads come and go (DataParallel
// starts new ones at every step). They live as long as the process.
class Handles {
 public:
  static void* take(int32_t device) {
    Handles& all = instance();
    {
      const std::lock_guard<std::mutex> lock(all.mutex_);
      auto& free = all.free_[device];
      if (!free.empty()) {
        void* const handle = free.back();
        free.pop_back();
        return handle;
      }
    }
    void* handle = nullptr;
    return cublasCreate_v2(&handle) == 0 ? handle : nullptr;
  }
  static void give_back(int32_t device, void* handle) {
    Handles& all = instance();
    const std::lock_guard<std::mutex> lock(all.mutex_);
    all.free_[device].push_back(handle);
  }

 private:
  static Handles& instance() {
    static auto* const all = new Handles;  // never destroyed: CUDA may be gone when the process ends
    return *all;
  }
  std::mutex mutex_;
  std::vector<void*> free_[kMostDevices];
};

// Products by cuBLAS, on one stream, by a handle that is nobody else's while this lives.
class Blas {
 public:
  Blas(int32_t device, void* stream, void* workspace) : device_(device) {
    if (!finds_cublas() || device < 0 || device >= kMostDevices) return;
    handle_ = Handles::take(device);
    works_ = handle_ && cublasSetStream_v2(handle_, stream) == 0 &&
             cublasSetWorkspace_v2(handle_, workspace, static_cast<size_t>(kBlasBytes)) == 0;
  }
  ~Blas() {
    if (handle_) Handles::give_back(device_, handle_);
  }
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;
  bool works() const { return works_; }

  // Row-major C = A B or A B^T is column-major C^T = B^T A^T or B A^T of the same memory.
  static int32_t multiply(void* self, void*, ala_dtype dtype, ala_precision precision, int32_t transpose_b,
                          int64_t rows, int64_t cols, int64_t inner, const void* a, int64_t lda,
                          const void* b, int64_t ldb, void* c, int64_t ldc) {
    for (const int64_t size : {rows, cols, inner, lda, ldb, ldc})
      if (size > INT_MAX) return 1;
    const auto i = [](int64_t size) { return static_cast<int>(size); };
    constexpr int kR32F = 0, kR64F = 1, kCompute32F = 68, kCompute64F = 70, kFast16BF = 75, kFastTF32 = 77;
    constexpr int kDefaultAlgorithm = -1;
    const bool is_double = dtype == ALA_F64;
    const int type = is_double ? kR64F : kR32F;
    const int compute = is_double                         ? kCompute64F
                        : precision == ALA_PRECISION_TF32 ? kFastTF32
                        : precision == ALA_PRECISION_BF16 ? kFast16BF
                                                          : kCompute32F;
    const double one64 = 1, zero64 = 0;
    const float one32 = 1, zero32 = 0;
    const void* one = is_double ? static_cast<const void*>(&one64) : &one32;
    const void* zero = is_double ? static_cast<const void*>(&zero64) : &zero32;
    return cublasGemmEx(static_cast<Blas*>(self)->handle_, transpose_b ? 1 : 0, 0, i(cols), i(rows), i(inner),
                        one, b, type, i(ldb), a, type, i(lda), zero, c, type, i(ldc), compute,
                        kDefaultAlgorithm);
  }

 private:
  int32_t device_;
  void* handle_ = nullptr;
  bool works_ = false;
};
#endif

}  // namespace ala::cuda_binding
