// Rows of floats as operands of the tile products of the ranking, and what those products may get wrong.
#pragma once

#include "cpu/tile.h"

namespace ala {
namespace ALA_ISA {

template <class N>
constexpr N larger(N a, N b) {
  return a > b ? a : b;
}

// For Tile's micro-kernel: number k of row r of panel p at panels[(p * dims + k) * kPanel + r].
class FloatPanels {
 public:
  using S = Simd<float>;
  using V = S::V;
  using Square = Tile<float>;
  struct Session {};
  static constexpr int64_t kPanel = Square::kPanel;
  static constexpr int64_t kDeep = S::kLanes;  // pack() reads whole multiples

  // half_square: of the rows, once they are packed.
  void allocate(int64_t padded, int64_t dims, const float* half_square, bool, bool, Arena& arena) {
    dims_ = dims;
    half_square_ = half_square;
    panels_ = arena.array<float>(padded * dims);
  }

  // Panel p from rows `stride` apart, filled up with zeros.
  void pack(int64_t p, const float* from, int64_t stride, const float*) {
    float* to = panels_ + p * kPanel * dims_;
    for (int half = 0; half < 2; ++half, from += S::kLanes * stride, to += S::kLanes)
      for (int64_t k = 0; k < dims_; k += S::kLanes) {
        V block[S::kLanes];
        for (int r = 0; r < S::kLanes; ++r) block[r] = S::load(from + r * stride + k);
        S::transpose(block);
        const int64_t n = smaller(S::kLanes, dims_ - k);
        for (int64_t c = 0; c < n; ++c) S::store(to + (k + c) * kPanel, block[c]);
      }
  }

  // |sum - <x, y>| <= error(x, y) |x| |y|: the chains of products and their partial sums.
  static double error(const FloatPanels& x, const FloatPanels&) {
    const double dims = static_cast<double>(x.dims_), chain = static_cast<double>(smaller(kDepth, x.dims_));
    return std::ldexp(chain + dims / kDepth, -24);
  }

  // e[r, c] = |x|^2 / 2 + |y|^2 / 2 - <x, y> for x = row i0 + r of these and y = row j0 + c of others; whole
  // panels.
  void distances(int64_t i0, int64_t rows, const FloatPanels& others, int64_t j0, int64_t cols,
                 float* e) const {
    for (int64_t j = 0; j < cols; j += kPanel)
      for (int64_t i = 0; i < rows; i += kPanel) {
        int64_t k = 0;
        do {
          const int64_t depth = smaller(kDepth, dims_ - k);
          const float* a = panels_ + (i0 + i) * dims_ + k * kPanel;
          const float* b = others.panels_ + (j0 + j) * dims_ + k * kPanel;
          const float* y = k + depth >= dims_ ? others.half_square_ + j0 + j : nullptr;
          const float* x = half_square_ + i0 + i;
          float* to = e + i * Square::kStride + j;
          int r = 0;
          for (; r + Square::kRows <= kPanel; r += Square::kRows)
            fill_rows<Square::kRows>(a + r, b, depth, k == 0, x + r, y, to + r * Square::kStride);
          if constexpr (kPanel % Square::kRows != 0)
            fill_rows<kPanel % Square::kRows>(a + r, b, depth, k == 0, x + r, y, to + r * Square::kStride);
          k += depth;
        } while (k < dims_);
      }
  }

 private:
  static constexpr int64_t kDepth = 64;  // longest chain of additions

  // y: after the last numbers.
  template <int kM>
  static ALA_HD void fill_rows(const float* a, const float* b, int64_t depth, bool first, const float* x,
                               const float* y, float* e) {
    V sum[kM][2];
    Square::multiply<kM, 1, kPanel>(a, b, kPanel, depth, sum);
    if (!first)
      for (int m = 0; m < kM; ++m) {
        sum[m][0] += S::load(e + m * Square::kStride);
        sum[m][1] += S::load(e + m * Square::kStride + S::kLanes);
      }
    if (y) {
      const V h0 = S::load(y), h1 = S::load(y + S::kLanes);
      for (int m = 0; m < kM; ++m) {
        const V h = S::set(x[m]);
        sum[m][0] = (h + h0) - sum[m][0];
        sum[m][1] = (h + h1) - sum[m][1];
      }
    }
    for (int m = 0; m < kM; ++m) {
      S::store(e + m * Square::kStride, sum[m][0]);
      S::store(e + m * Square::kStride + S::kLanes, sum[m][1]);
    }
  }

  int64_t dims_ = 0;
  const float* half_square_ = nullptr;
  float* panels_ = nullptr;
};

}  // namespace ALA_ISA
}  // namespace ala
