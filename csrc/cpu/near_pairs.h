// Pairs so close that |x|^2 + |y|^2 - 2xy has lost their digits: distances and gradients by the direct
// difference.
#pragma once

#include <cstdint>

#include "core/shapes.h"
#include "cpu/points.h"
#include "cpu/simd.h"

namespace ala {
namespace ALA_ISA {

// |a_l - b_l|^2 for the lanes l named in `lanes`; 0 elsewhere. a(l), b(l): rows of points laid out as
// `points`.
template <class T, class RowA, class RowB>
ALA_HD typename Simd<T>::V squared_differences(uint32_t lanes, const Points<T>& points, const RowA& a,
                                               const RowB& b) {
  using S = Simd<T>;
  typename S::V total[S::kLanes];
  for (int l = 0; l < S::kLanes; ++l) {
    typename S::V sum{};
    if (lanes >> l & 1) {
      const T *p = a(l), *q = b(l);
      for (int64_t k = 0; k < points.width; k += S::kLanes) {
        const auto diff = S::load(p + points.offset(k)) - S::load(q + points.offset(k));
        sum += diff * diff;
      }
    }
    total[l] = sum;
  }
  S::transpose(total);
  for (int step = 1; step < S::kLanes; step *= 2)
    for (int l = 0; l < S::kLanes; l += 2 * step) total[l] += total[l + step];
  return total[0];
}

// The near pairs of one row of a tile and their weights G, until the row is done.
template <class T>
struct NearRow {
  int count = 0;
  int16_t column[1024 / sizeof(T)];
  T weight[1024 / sizeof(T)];

  void add(uint32_t lanes, int v, typename Simd<T>::V g) {
    T weights[Simd<T>::kLanes];
    Simd<T>::store(weights, g);
    for (; lanes; lanes &= lanes - 1) {
      const int l = __builtin_ctz(lanes);
      column[count] = static_cast<int16_t>(v + l);
      weight[count++] = weights[l];
    }
  }

  // to_x += sum G (x - y_j); to_y_j -= G (x - y_j) for each row j of to_y. Either may be NULL.
  __attribute__((noinline)) void scatter(const T* x, const Points<T>& y, int64_t j0, T* to_x, T* to_y) {
    for (int n = 0; n < count; n += kGroup)
      group(n, count - n < kGroup ? count - n : kGroup, x, y, j0, to_x, to_y);
    count = 0;
  }

 private:
  static constexpr int kGroup = 4;

  void group(int first, int n, const T* x, const Points<T>& y, int64_t j0, T* to_x, T* to_y) {
    using S = Simd<T>;
    const T* rows[kGroup];
    T* outs[kGroup];
    T g[kGroup];
    for (int m = 0; m < kGroup; ++m) {
      const int64_t j = j0 + column[first + (m < n ? m : 0)];
      rows[m] = y.row(j);
      outs[m] = to_y ? to_y + j * y.dims : nullptr;
      g[m] = m < n ? weight[first + m] : T(0);
    }
    int64_t k = 0;
    for (; k + S::kLanes <= y.dims; k += S::kLanes) {
      const int64_t at = y.offset(k);
      const auto own = S::load(x + at);
      auto sum = to_x ? S::load(to_x + k) : typename S::V{};
#pragma GCC unroll 4
      for (int m = 0; m < kGroup; ++m) {  // beyond n the weight is 0 and the row that of m = 0, not stored
        const auto diff = own - S::load(rows[m] + at);
        sum += g[m] * diff;
        if (to_y && m < n) S::store(outs[m] + k, S::load(outs[m] + k) - g[m] * diff);
      }
      if (to_x) S::store(to_x + k, sum);
    }
    for (; k < y.dims; ++k)
      for (int m = 0; m < n; ++m) {
        const T push = g[m] * (x[y.offset(k)] - rows[m][y.offset(k)]);
        if (to_x) to_x[k] += push;
        if (to_y) outs[m][k] -= push;
      }
  }
};

}  // namespace ALA_ISA
}  // namespace ala
