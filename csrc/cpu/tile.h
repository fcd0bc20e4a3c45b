// Matrix products of one tile, in registers. A tile is a kSide x kSide square of floats or doubles with a
// fixed row stride, so that every operand address of the micro-kernel is one pointer plus a constant.
#pragma once

#include <cstdint>

#include "cpu/points.h"
#include "cpu/simd.h"

namespace ala {
namespace ALA_ISA {

template <class T>
struct Tile {
  using S = Simd<T>;
  using V = typename S::V;
  static constexpr int kLanes = S::kLanes;
  static constexpr int kPanel = Points<T>::kPanel;
  static constexpr int kSide = 1024 / sizeof(T);
  static constexpr int kStride =
      kSide + 64 / sizeof(T);             // odd in cache lines: columns spread over the cache's sets
  static constexpr int64_t kDepth = 128;  // dimensions per pass: two panels of them leave room in L1
#if defined(__AVX512F__)
  static constexpr int kRows = 12;
#elif defined(__AVX2__)
  static constexpr int kRows = 6;
#elif defined(__aarch64__)
  static constexpr int kRows = 8;
#else
  static constexpr int kRows = 4;
#endif

  // acc[m] = sum over k of a[m * kRowStride + k * kStep] * b[k * b_stride ...], one panel wide.
  template <int kM, int kRowStride, int kStep>
  static ALA_HD void multiply(const T* a, const T* b, int64_t b_stride, int64_t depth, V (&acc)[kM][2]) {
#pragma GCC unroll 16
    for (int m = 0; m < kM; ++m) acc[m][0] = acc[m][1] = V{};
#pragma GCC unroll 2
    for (int64_t k = 0; k < depth; ++k) {
      const V b0 = S::load(b), b1 = S::load(b + kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < kM; ++m) {
        const V am = S::set(a[m * kRowStride]);
        acc[m][0] += am * b0;
        acc[m][1] += am * b1;
      }
      a += kStep;
      b += b_stride;
    }
  }

  // tile[i, j] = <x_i, y_j> for whole panels of rows and columns starting at i0 and j0; with `upper` only
  // for panels that touch i < j.
  static void dot_products(const Points<T>& x, int64_t i0, int64_t rows, const Points<T>& y, int64_t j0,
                           int64_t cols, T* tile, bool upper) {
    if (x.dims == 0)
      for (int64_t i = 0; i < rows; ++i)
        std::memset(tile + i * kStride, 0, static_cast<size_t>(cols) * sizeof(T));
    for (int64_t k = 0; k < x.dims; k += kDepth) {
      const int64_t depth = smaller(kDepth, x.dims - k);
      const int64_t row_panels = rows / kPanel, products = row_panels * (cols / kPanel);
      const int64_t ahead = k + kDepth < x.dims ? smaller(kDepth, x.dims - k - kDepth) : 0;
      const int64_t lines = (row_panels + cols / kPanel) * ahead;
      int64_t product = 0, panel = -1,
              within = ahead;  // panel, dimension: how far the next pass is asked for
      const T* next = nullptr;
      for (int64_t j = 0; j < cols; j += kPanel) {
        const T* b = y.panel(j0 + j) + k * kPanel;
        for (int64_t i = 0; i < (upper ? j + 1 : rows); i += kPanel, ++product) {
          // A share of the next pass, so that the caches fill at an even pace.
          for (int64_t l = product * lines / products; l < (product + 1) * lines / products; ++l) {
            if (within == ahead) {
              within = 0;
              ++panel;
              next = (panel < row_panels ? x.panel(i0 + panel * kPanel)
                                         : y.panel(j0 + (panel - row_panels) * kPanel)) +
                     (k + kDepth) * kPanel;
            }
            prefetch<1, 2>(next + within++ * kPanel, 0);
          }
          const T* a = x.panel(i0 + i) + k * kPanel;
          T* c = tile + i * kStride + j;
          int r = 0;
          for (; r + kRows <= kPanel; r += kRows) dot_rows<kRows>(a + r, b, depth, c + r * kStride, k == 0);
          if constexpr (kPanel % kRows != 0)
            dot_rows<kPanel % kRows>(a + r, b, depth, c + r * kStride, k == 0);
        }
      }
    }
  }

  // to[r, :] -= sum over k of weight(r, k) * from[k, :], `dims` wide, with weight(r, k) = tile[r, k], or
  // tile[k, r] if kTransposed. `from`: a row of sliced points.
  template <bool kTransposed>
  static void subtract_product(const T* tile, int64_t rows, int64_t depth, const T* from, T* to,
                               int64_t dims) {
    constexpr int row_stride = kTransposed ? 1 : kStride, step = kTransposed ? kStride : 1;
    // A column of the tile has a cache line for each k: more of them would leave L1 before their neighbours
    // are used.
    constexpr int64_t deepest = kTransposed ? kDepth : kSide;
    for (int64_t n = 0; n < dims; n += kPanel, from += Points<T>::kSlice) {
      const int64_t width = smaller(kPanel, dims - n);
      for (int64_t first = 0; first < depth; first += deepest) {
        const int64_t deep = smaller(deepest, depth - first);
        const T *const weights = tile + first * step, *const part = from + first * kPanel;
        int64_t r = 0;
        const auto rows_of = [&](auto count) {
          constexpr int kM = decltype(count)::value;
          for (; r + kM <= rows; r += kM) {
            V acc[kM][2];
            prefetch<kM>(to + r * dims + n, dims);
            // A share of the next slice: on pages of its own, which the hardware does not foresee.
            if (n + kPanel < dims)
              for (int64_t k = r * deep / rows; k < (r + kM) * deep / rows; ++k)
                prefetch<1>(part + Points<T>::kSlice + k * kPanel, 0);
            multiply<kM, row_stride, step>(weights + r * row_stride, part, kPanel, deep, acc);
            subtract<kM>(acc, to + r * dims + n, dims, width);
          }
        };
        rows_of(Count<kRows>{});
        if constexpr (kRows > 8) rows_of(Count<8>{});
        if constexpr (kRows > 4) rows_of(Count<4>{});
        rows_of(Count<2>{});
        rows_of(Count<1>{});
      }
    }
  }

  // tile[j, i] = tile[i, j] for i < j < count, where all else in `count` rows and whole registers is 0.
  static void mirror(T* tile, int64_t count) {
    const int64_t width = (count + kLanes - 1) / kLanes * kLanes;
    for (int64_t i = count; i < width; ++i)
      std::memset(tile + i * kStride, 0, static_cast<size_t>(width) * sizeof(T));
    for (int64_t i = 0; i < width; i += kLanes)
      for (int64_t j = i; j < width; j += kLanes) {
        V block[kLanes];
        for (int l = 0; l < kLanes; ++l) block[l] = S::load(tile + (i + l) * kStride + j);
        S::transpose(block);
        for (int l = 0; l < kLanes; ++l) {
          T* to = tile + (j + l) * kStride + i;
          S::store(to, i == j ? S::load(to) + block[l] : block[l]);
        }
      }
  }

 private:
  // The panel's width of kM rows.
  template <int kM, int kLevel = 3>
  static ALA_HD void prefetch(const T* p, int64_t stride) {
#pragma GCC unroll 16
    for (int m = 0; m < kM; ++m, p += stride) {
      __builtin_prefetch(p, 0, kLevel);
      if (kPanel * sizeof(T) > 64) __builtin_prefetch(p + 64 / sizeof(T), 0, kLevel);
    }
  }

  template <int n>
  struct Count {
    static constexpr int value = n;
  };

  template <int kM>
  static void dot_rows(const T* a, const T* b, int64_t depth, T* c, bool first) {
    V acc[kM][2];
    multiply<kM, 1, kPanel>(a, b, kPanel, depth, acc);
#pragma GCC unroll 16
    for (int m = 0; m < kM; ++m) {
      T* row = c + m * kStride;
      if (!first) {
        acc[m][0] += S::load(row);
        acc[m][1] += S::load(row + kLanes);
      }
      S::store(row, acc[m][0]);
      S::store(row + kLanes, acc[m][1]);
    }
  }

  template <int kM>
  static ALA_HD void subtract(const V (&acc)[kM][2], T* to, int64_t stride, int64_t width) {
    if (width == kPanel) {
#pragma GCC unroll 16
      for (int m = 0; m < kM; ++m, to += stride) {
        S::store(to, S::load(to) - acc[m][0]);
        S::store(to + kLanes, S::load(to + kLanes) - acc[m][1]);
      }
    } else {
#pragma GCC unroll 16
      for (int m = 0; m < kM; ++m, to += stride) {
        T row[kPanel];
        S::store(row, acc[m][0]);
        S::store(row + kLanes, acc[m][1]);
        for (int64_t c = 0; c < width; ++c) to[c] -= row[c];
      }
    }
  }
};

// The products of PairTiles by Tile's micro-kernel.
template <class T>
class RegisterProducts {
 public:
  using Square = Tile<T>;
  static constexpr Layout kLayout = Layout::kTiles;
  struct Session {};

  void allocate(const Points<T>&, int64_t, int64_t, bool, int64_t, Arena&) {}
  void pack_panel(const Points<T>&, int64_t, int64_t) {}
  void forget() {}
  void forget_right(int64_t) {}
  void dot_products(const Points<T>& x, int64_t i0, int64_t rows, const Points<T>& y, int64_t j0,
                    int64_t cols, T* tile, bool upper, int64_t) const {
    Square::dot_products(x, i0, rows, y, j0, cols, tile, upper);
  }
  template <bool kTransposed>
  void subtract_product(const T* tile, int64_t rows, int64_t cols, const Points<T>& from, int64_t first,
                        const T*, T* to, int64_t) const {
    Square::template subtract_product<kTransposed>(tile, kTransposed ? cols : rows, kTransposed ? rows : cols,
                                                   from.row(first), to, from.dims);
  }
};

}  // namespace ALA_ISA
}  // namespace ala
