// Rows as the ranking sees them: in the order of their classes, as floats for the tile products, exact on
// demand.
//
// "Exact" is the key of a pair in double, from the caller's own numbers and in one fixed order of additions:
//   euclidean  sum over k of (s x_k - s y_k)^2, s one power of two for all rows
//   cosine     -<s_x x, s_y y / |s_y y|>, s_x and s_y powers of two; 0 for a zero row
// so that equal rows have equal keys. Each number of y is divided, rounded once: rows along one axis become
// the same unit row to the last bit, whatever their lengths, and tie. The floats are rounded from s x - c, c
// near the mean (euclidean), or from the unit row (cosine): their products order pairs up to a known error.
#pragma once

#include <cmath>

#include "cpu/points.h"
#include "cpu/rank_panels.h"
#if defined(__AMX_BF16__)
#include "cpu/rank_split_panels.h"
#endif

namespace ala {
namespace ALA_ISA {

constexpr double kInfinite = __builtin_huge_val();
constexpr float kFar = __builtin_huge_valf();

#if defined(__AMX_BF16__)
using RankPanels = SplitPanels;
#else
using RankPanels = FloatPanels;
#endif

// What all rows of one call share.
struct RankFrame {
  bool cosine = false;
  double scale = 1;          // s: the largest number becomes about 1
  double spread = 1;         // power of two that brings s x - c to about 1
  double* centre = nullptr;  // c [dims]

  // A float product is compared with this many units of a key.
  double nominal(double key, double query_length) const {
    return cosine ? 1 + key / query_length : 0.5 * (key * spread * spread);
  }
};

inline double power_of_two_below(double largest) {  // 1 / 2^exponent; never denormal, never infinite
  if (!(largest > 0)) return 1;
  int exponent;
  std::frexp(largest, &exponent);
  return std::ldexp(1.0, exponent > 1020 ? -1020 : exponent < -1020 ? 1020 : -exponent);
}

class RankRows {
 public:
  using S = Simd<float>;
  using D = Simd<double>;
  static constexpr int64_t kPanel = RankPanels::kPanel;

  int64_t count = 0, padded = 0, dims = 0;
  int32_t* order = nullptr;  // [count] the caller's number of each row
  RankPanels panels;
  float* half_square = nullptr;  // [padded]; Inf in the padding, which is then far from everything
  float* length = nullptr;       // [padded]

  // Numbers in a buffer for one row, or for a panel of them, on the way to their places.
  static int64_t row_size(int64_t dims) { return round_up(dims, RankPanels::kDeep); }
  static int64_t panel_size(int64_t dims) {
    return kPanel * (row_size(dims) + 64 / static_cast<int64_t>(sizeof(float)));
  }

  // left, right: what the panels are operands of.
  void allocate(const ala_matrix& m, bool cosine, bool left, bool right, Arena& arena) {
    raw_ = m;
    count = m.rows;
    dims = m.cols;
    padded = round_up(count, kPanel);
    order = arena.array<int32_t>(count);
    half_square = arena.array<float>(padded);
    length = arena.array<float>(padded);
    panels.allocate(padded, dims, half_square, left, right, arena);
    if (cosine) scale_ = arena.array<double>(count);
    if (cosine) scaled_length_ = arena.array<double>(count);
  }

  // Row i, with zeros up to row_size().
  void read(int64_t i, double* row) const {
    read_row(raw_, order[i], row);
    for (int64_t k = dims; k < row_size(dims); ++k) row[k] = 0;
  }
  double largest_of(const double* row) const {
    D::V most{};
    for (int64_t k = 0; k < dims; k += D::kLanes) {
      const D::V x = D::load(row + k), a = D::select(D::less(x, D::V{}), -x, x);
      most = D::select(D::less(most, a), a, most);
    }
    double found = 0;
    for (int l = 0; l < D::kLanes; ++l) found = larger(found, static_cast<double>(most[l]));
    return found;
  }
  bool all_finite(double* row) const {
    for (int64_t i = 0; i < count; ++i) {
      read(i, row);
      double zeros = 0;
      for (int64_t k = 0; k < dims; ++k) zeros += row[k] * 0;
      if (zeros != 0) return false;
    }
    return true;
  }

  // `rows`, `panel`: buffers of each slot.
  void pack(const RankFrame& frame, const Workers& workers, double* rows, float* panel) {
    frame_ = frame;
    workers.run(padded / kPanel, [&](int64_t p, int64_t slot) {
      double* row = rows + slot * row_size(dims);
      float* from = panel + slot * panel_size(dims);
      const int64_t stride = panel_size(dims) / kPanel;
      for (int r = 0; r < kPanel; ++r) {
        const int64_t i = p * kPanel + r;
        if (i < count) {
          pack_row(i, row, from + r * stride);
        } else {
          std::memset(from + r * stride, 0, static_cast<size_t>(stride) * sizeof(float));
          half_square[i] = kFar;
          length[i] = 0;
        }
      }
      panels.pack(p, from, stride, length + p * kPanel);
    });
  }

  // The numbers of row i as key() wants its query.
  void query(int64_t i, double* row) const {
    read(i, row);
    const double s = scale(i);
    for (int64_t k = 0; k < dims; ++k) row[k] *= s;
  }
  // Its length by those numbers, for nominal(); 1 for a zero row.
  double scaled_length(int64_t i) const { return frame_.cosine ? scaled_length_[i] : 1; }

  // Key of the pair (query, row j); smaller is nearer. `spare`: a buffer for a row.
  double key(const double* query, int64_t j, double* spare) const {
    const int64_t start = order[j] * raw_.row_stride;
    if (raw_.col_stride == 1 && raw_.dtype == ALA_F32)
      return key_of(query, static_cast<const float*>(raw_.data) + start, j);
    if (raw_.col_stride == 1 && raw_.dtype == ALA_F64)
      return key_of(query, static_cast<const double*>(raw_.data) + start, j);
    read(j, spare);
    return key_of(query, static_cast<const double*>(spare), j);
  }

 private:
  double scale(int64_t i) const { return frame_.cosine ? scale_[i] : frame_.scale; }

  void pack_row(int64_t i, double* row, float* to) {
    read(i, row);
    const int64_t n = row_size(dims);
    if (frame_.cosine) {
      scale_[i] = power_of_two_below(largest_of(row));
      D::V sum{};
      for (int64_t k = 0; k < n; k += D::kLanes) {
        const D::V x = D::load(row + k) * D::set(scale_[i]);
        sum += x * x;
      }
      const double square = D::sum(sum);
      scaled_length_[i] = square == 0 ? 1 : std::sqrt(square);
      for (int64_t k = 0; k < n; ++k) to[k] = static_cast<float>(row[k] * scale_[i] / scaled_length_[i]);
    } else {
      for (int64_t k = 0; k < dims; ++k)
        to[k] = static_cast<float>((row[k] * frame_.scale - frame_.centre[k]) * frame_.spread);
      for (int64_t k = dims; k < n; ++k) to[k] = 0;
    }
    D::V sum{};
    for (int64_t k = 0; k < n; k += D::kLanes) sum += load(to + k) * load(to + k);
    const double square = D::sum(sum);
    half_square[i] = frame_.cosine ? 0.5f : static_cast<float>(square / 2);
    length[i] = static_cast<float>(std::sqrt(square));
  }

  static ALA_HD D::V load(const double* p) { return D::load(p); }
  static ALA_HD D::V load(const float* p) {
    typedef float Half __attribute__((vector_size(ALA_VECTOR_BYTES / 2)));
    Half half;
    std::memcpy(&half, p, sizeof half);
    return __builtin_convertvector(half, D::V);
  }

  template <class From>
  double key_of(const double* query, const From* row, int64_t j) const {
    return frame_.cosine ? -sum_of<true>(query, row, dims, scale_[j], scaled_length_[j])
                         : sum_of<false>(query, row, dims, frame_.scale, 1);
  }

  template <bool kProduct, class From>
  static double sum_of(const double* query, const From* row, int64_t n, double scale, double length) {
    constexpr int64_t step = D::kLanes;
    const auto term = [](auto x, auto y, auto s, auto to) {
      return kProduct ? x * (y * s / to) : (x - y * s) * (x - y * s);
    };
    typename D::V sum[2] = {};
    const typename D::V s = D::set(scale), l = D::set(length);
    int64_t k = 0;
    for (; k + 2 * step <= n; k += 2 * step) {
      sum[0] += term(load(query + k), load(row + k), s, l);
      sum[1] += term(load(query + k + step), load(row + k + step), s, l);
    }
    double tail = 0;
    for (; k < n; ++k) tail += term(query[k], static_cast<double>(row[k]), scale, length);
    return D::sum(sum[0] + sum[1]) + tail;
  }

  ala_matrix raw_{};
  RankFrame frame_;
  double* scale_ = nullptr;  // cosine: s of each row, and |s x|
  double* scaled_length_ = nullptr;
};

}  // namespace ALA_ISA
}  // namespace ala
