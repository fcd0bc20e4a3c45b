// The part of LibTorch's stable C ABI (2.10 and later) that the binding uses, declared here so that the
// build needs no torch: one library loads under every torch >= 2.10. tests/test_build_abi.py compiles these
// declarations next to torch's own headers, where a difference is an error, and checks the symbol list.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

struct AtenTensorOpaque;
using AtenTensorHandle = AtenTensorOpaque*;
struct TorchLibraryOpaque;
using TorchLibraryHandle = TorchLibraryOpaque*;
using AOTITorchError = int32_t;
using StableIValue = uint64_t;
typedef void (*ParallelFunc)(int64_t begin, int64_t end, void* ctx);

extern "C" {
AOTITorchError aoti_torch_library_init_def(const char* ns, const char* file, uint32_t line,
                                           TorchLibraryHandle* ret);
AOTITorchError aoti_torch_library_init_impl(const char* ns, const char* k, const char* file, uint32_t line,
                                            TorchLibraryHandle* ret);
AOTITorchError aoti_torch_library_def(TorchLibraryHandle self, const char* schema);
AOTITorchError torch_library_impl(TorchLibraryHandle self, const char* name,
                                  void (*fn)(StableIValue*, uint64_t, uint64_t),
                                  uint64_t extension_build_version);
AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle handle);

AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle tensor, AtenTensorHandle* ret);
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor);
AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* ret);
AOTITorchError aoti_torch_get_size(AtenTensorHandle tensor, int64_t d, int64_t* ret);
AOTITorchError aoti_torch_get_stride(AtenTensorHandle tensor, int64_t d, int64_t* ret);
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* ret);
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle tensor, int32_t* ret);
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle tensor, int32_t* ret);
AOTITorchError aoti_torch_empty_strided(int64_t ndim, const int64_t* sizes, const int64_t* strides,
                                        int32_t dtype, int32_t device_type, int32_t device_index,
                                        AtenTensorHandle* ret);
AOTITorchError aoti_torch__reinterpret_tensor(AtenTensorHandle self, int64_t ndim, const int64_t* sizes,
                                              const int64_t* strides, int64_t storage_offset,
                                              AtenTensorHandle* ret);
int32_t aoti_torch_device_type_cuda();
AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** ret);
AOTITorchError torch_get_const_data_ptr(AtenTensorHandle tensor, const void** ret);

int32_t aoti_torch_dtype_float16();
int32_t aoti_torch_dtype_bfloat16();
int32_t aoti_torch_dtype_float32();
int32_t aoti_torch_dtype_float64();
int32_t aoti_torch_dtype_int64();
int32_t aoti_torch_dtype_uint8();

AOTITorchError torch_call_dispatcher(const char* name, const char* overload, StableIValue* stack,
                                     uint64_t extension_build_version);
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain_size, ParallelFunc func,
                                  void* ctx);
AOTITorchError torch_get_num_threads(uint32_t* ret);
}

namespace ala::stable {

// torch 2.10.0, the version whose conventions the values on the stack follow
inline constexpr uint64_t kAbiVersion = (uint64_t{2} << 56) | (uint64_t{10} << 48);

inline void check(AOTITorchError code, const char* what) {
  if (code != 0) throw std::runtime_error(std::string("ala_metric: torch could not ") + what);
}

// An owned reference to a tensor, or nothing.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(other.release()) {}
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() {
    if (handle_) aoti_torch_delete_tensor_object(handle_);
  }

  static Tensor empty(const std::vector<int64_t>& sizes, int32_t dtype, const Tensor& like) {
    std::vector<int64_t> strides(sizes.size(), 1);
    for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * (sizes[i] > 0 ? sizes[i] : 1);
    AtenTensorHandle handle = nullptr;
    check(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
                                   like.get(aoti_torch_get_device_type),
                                   like.get(aoti_torch_get_device_index), &handle),
          "allocate a tensor");
    return Tensor(handle);
  }

  explicit operator bool() const { return handle_ != nullptr; }
  int64_t dim() const {
    int64_t result = 0;
    check(aoti_torch_get_dim(handle_, &result), "tell the rank of a tensor");
    return result;
  }
  int64_t size(int64_t d) const {
    int64_t result = 0;
    check(aoti_torch_get_size(handle_, d, &result), "tell the size of a tensor");
    return result;
  }
  int64_t stride(int64_t d) const {
    int64_t result = 0;
    check(aoti_torch_get_stride(handle_, d, &result), "tell the stride of a tensor");
    return result;
  }
  int32_t dtype() const { return get(aoti_torch_get_dtype); }
  const void* data() const {
    const void* result = nullptr;
    check(torch_get_const_data_ptr(handle_, &result), "read a tensor");
    return result;
  }
  void* mutable_data() {
    void* result = nullptr;
    check(torch_get_mutable_data_ptr(handle_, &result), "write a tensor");
    return result;
  }
  Tensor share() const {
    AtenTensorHandle handle = nullptr;
    check(aoti_torch_new_tensor_handle(handle_, &handle), "share a tensor");
    return Tensor(handle);
  }
  bool is_cuda() const { return get(aoti_torch_get_device_type) == aoti_torch_device_type_cuda(); }
  int32_t device_index() const { return get(aoti_torch_get_device_index); }
  // `count` elements of a contiguous tensor that owns its storage, from `first` on.
  Tensor part(int64_t first, int64_t count) const {
    AtenTensorHandle handle = nullptr;
    const int64_t stride = 1;
    check(aoti_torch__reinterpret_tensor(handle_, 1, &count, &stride, first, &handle), "view a tensor");
    return Tensor(handle);
  }
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }

 private:
  int32_t get(AOTITorchError (*question)(AtenTensorHandle, int32_t*)) const {
    int32_t result = 0;
    check(question(handle_, &result), "describe a tensor");
    return result;
  }
  AtenTensorHandle handle_ = nullptr;
};

// Values travel as 64-bit words: a tensor as an owned handle, an optional as a pointer to a heap word.
template <class T>
struct Word {
  static_assert(sizeof(T) <= sizeof(StableIValue));
  static T take(StableIValue word) {
    T value;
    std::memcpy(&value, &word, sizeof(T));
    return value;
  }
};
struct OptionalTensor : Tensor {
  using Tensor::Tensor;
};
template <>
struct Word<Tensor> {
  static Tensor take(StableIValue word) { return Tensor(reinterpret_cast<AtenTensorHandle>(word)); }
  static StableIValue give(Tensor&& tensor) { return reinterpret_cast<StableIValue>(tensor.release()); }
};
template <>
struct Word<OptionalTensor> {
  static OptionalTensor take(StableIValue word) {
    auto* inner = reinterpret_cast<StableIValue*>(word);
    if (inner == nullptr) return OptionalTensor();
    OptionalTensor tensor(reinterpret_cast<AtenTensorHandle>(*inner));
    delete inner;
    return tensor;
  }
};

template <class... Results, class... Arguments, size_t... I>
void call(std::tuple<Results...> (*function)(Arguments...), StableIValue* stack, std::index_sequence<I...>) {
  // every argument is owned before the function can throw
  std::tuple<std::decay_t<Arguments>...> arguments{Word<std::decay_t<Arguments>>::take(stack[I])...};
  auto results = std::apply([&](auto&... a) { return function(a...); }, arguments);
  size_t next = 0;
  std::apply([&](auto&... r) { ((stack[next++] = Word<Results>::give(std::move(r))), ...); }, results);
}
template <class... Results, class... Arguments>
void call(std::tuple<Results...> (*function)(Arguments...), StableIValue* stack) {
  call(function, stack, std::index_sequence_for<Arguments...>{});
}
template <auto function>
void boxed(StableIValue* stack, uint64_t, uint64_t) {
  call(function, stack);
}

// Operators of one namespace, registered while the object lives.
class Library {
 public:
  explicit Library(const char* ns) {
    check(aoti_torch_library_init_def(ns, "ala_metric", 0, &handle_), "open the operator library");
  }
  Library(const char* ns, const char* dispatch_key) {
    check(aoti_torch_library_init_impl(ns, dispatch_key, "ala_metric", 0, &handle_),
          "open the operator library");
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() { aoti_torch_delete_library_object(handle_); }
  void define(const char* schema) { check(aoti_torch_library_def(handle_, schema), "define an operator"); }
  template <auto function>
  void implement(const char* name) {
    check(torch_library_impl(handle_, name, &boxed<function>, kAbiVersion), "register an operator");
  }

 private:
  TorchLibraryHandle handle_ = nullptr;
};

}  // namespace ala::stable
