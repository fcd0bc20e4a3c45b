// Cuts the caller's workspace into aligned arrays. Without a base it only counts, so that the size query and
// the op run the same code and cannot disagree. What int64 cannot count is kTooMuch, which no caller has.
#pragma once

#include <cstdint>

#include "core/config.h"

namespace ala {
namespace ALA_ISA {

class Arena {
 public:
  static constexpr int64_t kAlign = 64;
  static constexpr int64_t kTooMuch = INT64_MAX;

  Arena() = default;
  Arena(void* base, int64_t bytes) : base_(static_cast<char*>(base)), capacity_(bytes) {
    const auto address = reinterpret_cast<uintptr_t>(base);
    used_ = static_cast<int64_t>((kAlign - address % kAlign) % kAlign);
  }

  template <class T>
  T* array(int64_t count) {
    T* out = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    int64_t bytes;
    if (__builtin_mul_overflow(count, static_cast<int64_t>(sizeof(T)), &bytes) ||
        bytes > kTooMuch - used_ - 2 * kAlign)
      used_ = kTooMuch;
    else
      used_ += (bytes + kAlign - 1) / kAlign * kAlign;
    return out;
  }

  bool counting() const { return base_ == nullptr; }
  bool fits() const { return used_ <= capacity_; }
  int64_t bytes_with_slack() const { return used_ == kTooMuch ? kTooMuch : used_ + kAlign; }

 private:
  char* base_ = nullptr;
  int64_t capacity_ = 0;
  int64_t used_ = 0;
};

}  // namespace ALA_ISA
}  // namespace ala
