// Sums over the rows of a tile, one per column, in two steps: a run of rows, then the runs. A float that
// takes hundreds of additions one after the other would lose as much as the dot products do.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd.h"

namespace ala {
namespace ALA_ISA {

template <class T>
class ColumnSums {
 public:
  using S = Simd<T>;

  void clear() {
    std::memset(run_, 0, sizeof run_);
    std::memset(runs_, 0, sizeof runs_);
  }
  ALA_HD void add(int64_t column, typename S::V terms) {
    S::store(run_ + column, S::load(run_ + column) + terms);
  }
  // After row i; the sums are those of `columns`.
  ALA_HD void end_row(int64_t i, int64_t columns) {
    if (i % kRun != kRun - 1) return;
    for (int64_t v = 0; v < columns; v += S::kLanes) {
      S::store(runs_ + v, S::load(runs_ + v) + S::load(run_ + v));
      S::store(run_ + v, typename S::V{});
    }
  }
  double total(int64_t column) const {
    return static_cast<double>(runs_[column]) + static_cast<double>(run_[column]);
  }

 private:
  static constexpr int kRun = 16, kMost = 1024 / sizeof(T);
  alignas(64) T run_[kMost];
  alignas(64) T runs_[kMost];
};

}  // namespace ALA_ISA
}  // namespace ala
