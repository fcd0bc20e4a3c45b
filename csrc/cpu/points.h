// Embeddings in the layout of the micro-kernels.
#pragma once

#include <cstdint>
#include <cstring>

#include "ala_metric/ala_metric.h"
#include "cpu/arena.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace ala {
namespace ALA_ISA {

constexpr int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}
constexpr int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu, mantissa = h & 0x3ffu;
  uint32_t bits;
  float out;
  if (exponent == 0) {  // zero and subnormal: mantissa * 2^-24
    out = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &out, sizeof bits);
    bits |= sign;
  } else if (exponent == 31) {
    bits = sign | 0x7f800000u | (mantissa << 13);
  } else {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  }
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

inline float bfloat_to_float(uint16_t b) {
  const uint32_t bits = static_cast<uint32_t>(b) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

inline double read_element(const void* data, ala_dtype dtype, int64_t offset) {
  switch (dtype) {
    case ALA_F64:
      return static_cast<const double*>(data)[offset];
    case ALA_F16:
      return half_to_float(static_cast<const uint16_t*>(data)[offset]);
    case ALA_BF16:
      return bfloat_to_float(static_cast<const uint16_t*>(data)[offset]);
    default:
      return static_cast<const float*>(data)[offset];
  }
}

template <class T, class From, class Convert>
ALA_HD void read_row_as(const From* from, int64_t stride, int64_t n, T* to, Convert convert) {
  if (stride == 1)
    for (int64_t k = 0; k < n; ++k) to[k] = convert(from[k]);
  else
    for (int64_t k = 0; k < n; ++k) to[k] = convert(from[k * stride]);
}

// `n` numbers of a row, from column `first` on.
template <class T>
ALA_HD void read_part(const ala_matrix& m, int64_t row, int64_t first, int64_t n, T* to) {
  const int64_t start = row * m.row_stride + first * m.col_stride;
  const auto same = [](auto x) { return static_cast<T>(x); };
  switch (m.dtype) {
    case ALA_F64:
      return read_row_as(static_cast<const double*>(m.data) + start, m.col_stride, n, to, same);
    case ALA_F32:
      return read_row_as(static_cast<const float*>(m.data) + start, m.col_stride, n, to, same);
    case ALA_F16:
      return read_row_as(static_cast<const uint16_t*>(m.data) + start, m.col_stride, n, to,
                         [](uint16_t h) { return static_cast<T>(half_to_float(h)); });
    case ALA_BF16:
      return read_row_as(static_cast<const uint16_t*>(m.data) + start, m.col_stride, n, to,
                         [](uint16_t b) { return static_cast<T>(bfloat_to_float(b)); });
  }
}

template <class T>
inline void read_row(const ala_matrix& m, int64_t row, T* to) {
  read_part(m, row, 0, m.cols, to);
}

// `count` rows of a matrix from row `first` on.
inline ala_matrix rows_of(ala_matrix m, int64_t first, int64_t count) {
  const int64_t size = m.dtype == ALA_F64 ? 8 : m.dtype == ALA_F32 ? 4 : 2;
  m.data = static_cast<const char*>(m.data) + first * m.row_stride * size;
  m.rows = count;
  return m;
}

// `count` points of `dims` numbers, packed in one of three ways:
//   Layout::kRows   row-major; each row is padded with zeros to whole registers, the row stride is an odd
//                   number of cache lines
//   Layout::kSlices slices of kPanel dimensions (the last padded with zeros), each holding its part of the
//                   kBlock points of a block one after the other
//   Layout::kTiles  the same, and panels: kPanel points side by side, number k of point r of panel p at
//                   panels[(p * dims + k) * kPanel + r]
// In all, number k of point i is at row(i)[offset(k)]. Points are padded with zeros to a whole panel;
// `norms` holds their squared lengths.
enum class Layout { kRows, kSlices, kTiles };

template <class T>
struct Points {
  using S = Simd<T>;
  static constexpr int kPanel = 2 * S::kLanes;
  static constexpr int64_t kBlock = 1024 / sizeof(T);
  static constexpr int64_t kSlice = (kBlock + 4) * kPanel;  // the gap spreads slices over the cache's sets

  int64_t count = 0, padded = 0, dims = 0, width = 0;
  T* rows = nullptr;
  T* panels = nullptr;
  T* norms = nullptr;

  const T* row(int64_t i) const { return rows + i / kBlock * block_stride_ + i % kBlock * stride_; }
  int64_t offset(int64_t k) const { return k / kPanel * slice_ + k % kPanel; }
  const T* panel(int64_t i) const { return panels + i * dims; }  // i: a multiple of kPanel

  // Names the points without room for them.
  void describe(const ala_matrix& m) {
    count = m.rows;
    dims = m.cols;
    padded = round_up(count, kPanel);
  }

  void allocate(const ala_matrix& m, Arena& arena, Layout layout) {
    constexpr int64_t line = 64 / sizeof(T);
    describe(m);
    width = round_up(dims, S::kLanes);
    norms = arena.template array<T>(padded);
    if (layout != Layout::kRows) {
      width = round_up(dims, kPanel);
      stride_ = kPanel;
      slice_ = kSlice;
      block_stride_ = round_up(dims, kPanel) / kPanel * kSlice;
      rows = arena.template array<T>(round_up(count, kBlock) / kBlock * block_stride_);
      if (layout == Layout::kTiles) panels = arena.template array<T>(padded * dims);
    } else {
      stride_ = round_up(dims, line);
      if (stride_ / line % 2 == 0) stride_ += line;
      slice_ = kPanel;
      block_stride_ = kBlock * stride_;
      rows = arena.template array<T>(padded * stride_);
    }
  }

  void pack(const ala_matrix& m, const Workers& workers) {
    pack(m, workers, [](int64_t) {});
  }

  // also(p) after panel p, which is in the caches then
  template <class Also>
  void pack(const ala_matrix& m, const Workers& workers, const Also& also) {
    workers.run(padded / kPanel, [&](int64_t p, int64_t) {
      for (int64_t i = p * kPanel; i < (p + 1) * kPanel; ++i) norms[i] = pack_row(m, i);
      if (panels) pack_panel(p);
      also(p);
    });
  }

 private:
  // Returns its squared length.
  T pack_row(const ala_matrix& m, int64_t i) {
    T* const to = rows + (row(i) - rows);
    const int64_t filled = i < count ? dims : 0;
    const bool plain = filled > 0 && m.dtype == (sizeof(T) == 4 ? ALA_F32 : ALA_F64) && m.col_stride == 1;
    const T* const from = plain ? static_cast<const T*>(m.data) + i * m.row_stride : nullptr;
    typename S::V sum[2] = {};
    for (int64_t k = 0; k < width; k += kPanel) {
      T* const slice = to + offset(k);
      // only the last slice of Layout::kRows may be half a panel
      const int64_t here = smaller(kPanel, width - k), given = smaller(here, filled > k ? filled - k : 0);
      if (given < kPanel) {
        if (given) read_part(m, i, k, given, slice);
        for (int64_t c = given; c < here; ++c) slice[c] = T(0);
      } else if (plain) {
        S::store(slice, S::load(from + k));
        S::store(slice + S::kLanes, S::load(from + k + S::kLanes));
      } else {
        read_part(m, i, k, kPanel, slice);  // of a length known when compiled
      }
      sum[0] += S::load(slice) * S::load(slice);
      if (here > S::kLanes) sum[1] += S::load(slice + S::kLanes) * S::load(slice + S::kLanes);
    }
    return S::sum(sum[0] + sum[1]);
  }

  void pack_panel(int64_t p) {
    T* to = panels + p * kPanel * dims;
    for (int half = 0; half < 2; ++half) {
      const T* from = row(p * kPanel + half * S::kLanes);
      for (int64_t k = 0; k < dims; k += S::kLanes) {
        typename S::V block[S::kLanes];
        for (int r = 0; r < S::kLanes; ++r) block[r] = S::load(from + r * stride_ + offset(k));
        S::transpose(block);
        const int n = static_cast<int>(smaller(S::kLanes, dims - k));
        for (int c = 0; c < n; ++c) S::store(to + (k + c) * kPanel + half * S::kLanes, block[c]);
      }
    }
  }

  int64_t stride_ = 0, slice_ = kPanel, block_stride_ = 0;  // between rows, slices, blocks of `rows`
};

}  // namespace ALA_ISA
}  // namespace ala
