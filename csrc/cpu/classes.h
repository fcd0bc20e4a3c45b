// Labels as small numbers that fit a lane, and how many positives and negatives each anchor has.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/arena.h"
#include "cpu/points.h"
#include "cpu/simd.h"

namespace ala {
namespace ALA_ISA {

template <class T>
struct Classes {
  using Int = typename Simd<T>::Int;

  Int* anchor = nullptr;         // [padded N]; -2 where no reference has the label
  Int* reference = nullptr;      // [padded M]; -1 in the padding, so that it equals no anchor
  int32_t* positives = nullptr;  // [N]
  int64_t anchors = 0, references = 0;

  void allocate(const Points<T>& x, const Points<T>& y, bool symmetric, Arena& arena) {
    anchors = x.count;
    references = y.count;
    padded_references_ = y.padded;
    symmetric_ = symmetric;
    reference = arena.array<Int>(y.padded);
    anchor = symmetric ? reference : arena.array<Int>(x.padded);
    positives = arena.array<int32_t>(anchors);
    for (slots_ = 16; slots_ < 2 * references;) slots_ *= 2;
    table_ = arena.array<int32_t>(slots_);
    sizes_ = arena.array<int32_t>(references);
  }

  // Symmetric: anchor_labels are both. own: NULL, or of each anchor the reference that is no pair of it, or
  // -1.
  void build(const int64_t* anchor_labels, const int64_t* reference_labels, const int64_t* own = nullptr) {
    if (symmetric_) reference_labels = anchor_labels;
    own_ = symmetric_ ? nullptr : own;
    std::memset(table_, 0xff, static_cast<size_t>(slots_) * sizeof(int32_t));
    int32_t classes = 0;
    for (int64_t j = 0; j < references; ++j) {
      int32_t& first = table_[find(reference_labels[j], reference_labels)];
      if (first < 0) {
        first = static_cast<int32_t>(j);
        reference[j] = classes;
        sizes_[classes++] = 0;
      } else {
        reference[j] = reference[first];
      }
      ++sizes_[reference[j]];
    }
    for (int64_t j = references; j < padded_references_; ++j) reference[j] = -1;
    for (int64_t i = 0; i < anchors; ++i) {
      if (!symmetric_) {
        const int32_t first = table_[find(anchor_labels[i], reference_labels)];
        anchor[i] = first < 0 ? -2 : reference[first];
      }
      positives[i] = anchor[i] < 0 ? 0 : sizes_[anchor[i]] - (symmetric_ ? 1 : 0);
      if (has_own(i) && reference[own_[i]] == anchor[i]) --positives[i];
    }
  }

  int64_t negatives(int64_t i) const {
    return references - positives[i] - (symmetric_ || has_own(i) ? 1 : 0);
  }

 private:
  bool has_own(int64_t i) const { return own_ && own_[i] >= 0; }

  // Slot of the label, or the free slot where it belongs (linear probing; SplitMix64's finaliser as hash).
  int64_t find(int64_t label, const int64_t* labels) const {
    uint64_t h = static_cast<uint64_t>(label);
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
    h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
    h ^= h >> 31;
    for (uint64_t slot = h;; ++slot) {
      const int64_t s = static_cast<int64_t>(slot & static_cast<uint64_t>(slots_ - 1));
      if (table_[s] < 0 || labels[table_[s]] == label) return s;
    }
  }

  int64_t padded_references_ = 0, slots_ = 0;
  bool symmetric_ = false;
  const int64_t* own_ = nullptr;
  int32_t* table_ = nullptr;
  int32_t* sizes_ = nullptr;
};

// One number per anchor and kind of pair, and the same as seen from the columns of a tile: the other anchors'
// numbers when the references are the anchors, else zeros.
template <class T>
struct PairWeights {
  T* positive = nullptr;
  T* negative = nullptr;

  void allocate(const Points<T>& x, Arena& arena) {
    positive = arena.array<T>(x.padded);
    negative = arena.array<T>(x.padded);
    zeros_ = arena.array<T>(1024 / sizeof(T));
  }
  void clear(const Points<T>& x) {
    std::memset(positive, 0, static_cast<size_t>(x.padded) * sizeof(T));
    std::memset(negative, 0, static_cast<size_t>(x.padded) * sizeof(T));
    std::memset(zeros_, 0, 1024);
  }
  const T* column_positive(bool symmetric, int64_t j0) const { return symmetric ? positive + j0 : zeros_; }
  const T* column_negative(bool symmetric, int64_t j0) const { return symmetric ? negative + j0 : zeros_; }

 private:
  T* zeros_ = nullptr;
};

}  // namespace ALA_ISA
}  // namespace ala
