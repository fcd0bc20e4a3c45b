// Focal weighting (Eq. 10): a first walk over the pairs sums each anchor's exponentials, a second one takes
// gradients.
//
// Exponents are e = phi_0 (d - offset) for positives and phi_1 (offset - d) for negatives. Where no exponent
// can pass kSafeExponent the sums need no shift and one exp serves both anchors of a pair ("narrow"). Else
// ("wide") each sum keeps its own largest exponent and a pair takes two exps.
#pragma once

#include <cmath>

#include "cpu/classes.h"
#include "cpu/column_sums.h"
#include "cpu/kernels.h"
#include "cpu/pair_tiles.h"

namespace ala {
namespace ALA_ISA {

// sum = scale of exp(-shift): the sum of exponentials, each times exp(-shift).
template <class T>
struct ExponentialSums {
  T* shift = nullptr;
  double* sum = nullptr;

  void allocate(int64_t n, Arena& arena) {
    shift = arena.array<T>(n);
    sum = arena.array<double>(n);
  }
  void clear(int64_t n) {
    std::memset(shift, 0, static_cast<size_t>(n) * sizeof(T));
    std::memset(sum, 0, static_cast<size_t>(n) * sizeof(double));
  }
  void add(int64_t i, T terms_shift, double terms) {
    sum[i] = sum[i] * ::exp(static_cast<double>(shift[i]) - static_cast<double>(terms_shift)) + terms;
    shift[i] = terms_shift;
  }
  // log(1 + sum of exponentials)
  double log_one_plus(int64_t i) const {
    const double m = static_cast<double>(shift[i]);
    return m == 0 ? ::log1p(sum[i]) : m + ::log(::exp(-m) + sum[i]);
  }
};

template <class T>
struct FocalData {
  static constexpr double kSafeExponent = sizeof(T) == 4 ? 66 : 600;

  bool symmetric = false, wide = false;
  double phi[2] = {}, offset = 0;
  double common_shift =
      0;  // narrow gradients use exp(e - common_shift), so that no factor leaves the normal range
  Classes<T> classes;
  ExponentialSums<T> positive, negative;
  PairWeights<T> weight;  // narrow: anchor's weight * exp(common_shift - lse); wide: anchor's weight
  // The logarithms, and what their rounding to T has cut off: it would be an error of all gradients of a row.
  PairWeights<T> lse, lse_rest;
  double* phi_sums =
      nullptr;  // [row blocks, 2]: sum of w log w over softmax weights w, times the anchor's weight

  void allocate(const PairTiles<T>& tiles, Arena& arena) {
    symmetric = tiles.symmetric;
    classes.allocate(tiles.x, tiles.y, symmetric, arena);
    positive.allocate(tiles.x.padded, arena);
    negative.allocate(tiles.x.padded, arena);
    weight.allocate(tiles.x, arena);
    lse.allocate(tiles.x, arena);
    lse_rest.allocate(tiles.x, arena);
    phi_sums = arena.array<double>(tiles.row_blocks() * 2);
  }
  void clear(const PairTiles<T>& tiles) {
    positive.clear(tiles.x.padded);
    negative.clear(tiles.x.padded);
    weight.clear(tiles.x);
    lse.clear(tiles.x);
    lse_rest.clear(tiles.x);
    std::memset(phi_sums, 0, static_cast<size_t>(tiles.row_blocks() * 2) * sizeof(double));
  }

  // No distance is above the sum of the largest lengths. NaN makes it wide.
  void choose_range(const PairTiles<T>& tiles) {
    double longest[2] = {0, 0};
    bool finite = true;
    const Points<T>* sides[2] = {&tiles.x, &tiles.y};
    for (int s = 0; s < 2; ++s)
      for (int64_t i = 0; i < sides[s]->count; ++i) {
        const double length = static_cast<double>(sides[s]->norms[i]);
        if (length > longest[s]) longest[s] = length;
        if (!(length < 1e37)) finite = false;
      }
    const double farthest = ::sqrt(longest[0]) + ::sqrt(longest[1]);
    const double up = phi[0] * (farthest - offset), down = phi[1] * offset;
    const double bound = up > down ? up : down;
    wide = !(finite && bound <= kSafeExponent);
    common_shift = !wide && bound > 0 ? bound / 3 : 0;
  }
};

// The exponents of a row of pairs: e = slope * d + start, by kind of pair. An exponent of 8 has lost 5e-7 to
// its rounding, and 8 d as much to that of d: exp takes both rests into account.
template <class T>
struct FocalExponent {
  using S = Simd<T>;
  using V = typename S::V;
  V slope[2], start[2], start_rest[2];  // [0] positives, [1] negatives

  FocalExponent(const FocalData<T>& data, double shift) {
    const double sign[2] = {1, -1};
    for (int c = 0; c < 2; ++c) {
      slope[c] = S::set(static_cast<T>(sign[c] * data.phi[c]));
      const double exact = -sign[c] * data.phi[c] * data.offset - shift;
      start[c] = S::set(static_cast<T>(exact));
      start_rest[c] = S::set(static_cast<T>(exact - static_cast<double>(static_cast<T>(exact))));
    }
  }
  ALA_HD V of(int kind, V d) const { return slope[kind] * d + start[kind]; }
  // What e lacks of slope * (d + d_rest) + start.
  ALA_HD V rest(int kind, V e, V d, V d_rest) const {
    return (slope[kind] * d + (start[kind] - e)) + (slope[kind] * d_rest + start_rest[kind]);
  }
  ALA_HD V exp(int kind, V d, V d_rest) const {
    const V e = of(kind, d);
    return VectorMath<T>::exp(e, rest(kind, e, d, d_rest));
  }
};

template <class T>
struct FocalNarrowSums {
  using S = Simd<T>;
  using V = typename S::V;
  using Mask = typename S::Mask;
  using M = VectorMath<T>;
  static constexpr bool kGradient = false, kStores = false, kRests = true;

  FocalData<T>& data;

  class Tile {
   public:
    static constexpr bool kGradient = FocalNarrowSums::kGradient, kStores = FocalNarrowSums::kStores;
    Tile(FocalNarrowSums& op, int64_t, int64_t, int64_t i0, int64_t j0, int64_t, int64_t cols, bool)
        : data_(op.data), i0_(i0), j0_(j0), cols_(cols), exponent_(op.data, 0) {
      col_positive_.clear();
      col_negative_.clear();
    }
    ALA_HD void begin_row(int64_t i, int64_t, const typename PairTiles<T>::RowDistances& row) {
      row_ = i0_ + i;
      rest_ = row.rest;
      row_class_ = S::set_int(data_.classes.anchor[row_]);
      positive_ = negative_ = V{};
    }
    template <bool kMasked>
    ALA_HD V pair(V d, V, int v, Mask valid) {
      Mask same = S::equal(S::load_int(data_.classes.reference + j0_ + v), row_class_);
      if constexpr (kMasked) same = S::both(same, valid);
      const V d_rest = S::load(rest_ + v);
      V term = exponent_.exp(1, d, d_rest);
      if constexpr (kMasked) term = S::select(valid, term, V{});
      if (__builtin_expect(S::any(same), 0)) {
        const V near = S::select(same, exponent_.exp(0, d, d_rest), V{});
        positive_ += near;
        col_positive_.add(v, near);
        term = S::select(same, V{}, term);
      }
      negative_ += term;
      col_negative_.add(v, term);
      return V{};
    }
    ALA_HD void end_row(int64_t i) {
      col_positive_.end_row(i, cols_);
      col_negative_.end_row(i, cols_);
      data_.positive.sum[row_] += static_cast<double>(S::sum(positive_));
      data_.negative.sum[row_] += static_cast<double>(S::sum(negative_));
    }
    void finish(const T*) {
      if (!data_.symmetric) return;
      for (int64_t j = 0; j < cols_; ++j) {
        data_.positive.sum[j0_ + j] += col_positive_.total(j);
        data_.negative.sum[j0_ + j] += col_negative_.total(j);
      }
    }

   private:
    FocalData<T>& data_;
    int64_t i0_, j0_, cols_, row_ = 0;
    const T* rest_ = nullptr;
    FocalExponent<T> exponent_;
    typename S::I row_class_{};
    V positive_{}, negative_{};
    ColumnSums<T> col_positive_, col_negative_;
  };
};

// Keeps the exponents in the tile and, when their maxima are known, goes over them again.
template <class T>
struct FocalWideSums {
  using S = Simd<T>;
  using V = typename S::V;
  using Mask = typename S::Mask;
  using M = VectorMath<T>;
  static constexpr bool kGradient = false, kStores = true, kRests = false;
  static constexpr int kSide = PairTiles<T>::Square::kSide, kStride = PairTiles<T>::Square::kStride;

  FocalData<T>& data;

  class Tile {
   public:
    static constexpr bool kGradient = FocalWideSums::kGradient, kStores = FocalWideSums::kStores;
    Tile(FocalWideSums& op, int64_t, int64_t, int64_t i0, int64_t j0, int64_t rows, int64_t cols,
         bool diagonal)
        : data_(op.data),
          i0_(i0),
          j0_(j0),
          rows_(rows),
          cols_(cols),
          diagonal_(diagonal),
          exponent_(op.data, 0) {
      std::memset(largest_, 0, sizeof largest_);
    }
    ALA_HD void begin_row(int64_t i, int64_t, const typename PairTiles<T>::RowDistances&) {
      row_class_ = S::set_int(data_.classes.anchor[i0_ + i]);
      row_largest_[0] = row_largest_[1] = V{};
    }
    template <bool kMasked>
    ALA_HD V pair(V d, V, int v, Mask valid) {
      Mask same = same_class(v);
      V e[2] = {exponent_.of(0, d), exponent_.of(1, d)};
      const V out = S::select(same, e[0], e[1]);
      e[0] = S::select(kMasked ? S::both(same, valid) : same, e[0], V{});
      e[1] = S::select(S::but_not(valid_or_every<kMasked>(valid), same), e[1], V{});
      for (int c = 0; c < 2; ++c) {
        row_largest_[c] = M::max(row_largest_[c], e[c]);
        S::store(largest_[1][c] + v, M::max(S::load(largest_[1][c] + v), e[c]));
      }
      return out;
    }
    void end_row(int64_t i) {
      for (int c = 0; c < 2; ++c) {
        T lane[S::kLanes];
        S::store(lane, row_largest_[c]);
        for (T e : lane)
          if (e > largest_[0][c][i]) largest_[0][c][i] = e;
      }
    }
    void finish(const T* tile) {
      ExponentialSums<T>* sums[2] = {&data_.positive, &data_.negative};
      const bool both_ends = data_.symmetric;
      const int64_t first[2] = {i0_, j0_}, count[2] = {rows_, cols_};
      for (int end = 0; end < (both_ends ? 2 : 1); ++end)
        for (int c = 0; c < 2; ++c)
          for (int64_t i = 0; i < count[end]; ++i) {
            const T old = sums[c]->shift[first[end] + i];
            if (!(largest_[end][c][i] > old)) largest_[end][c][i] = old;
          }
      if (diagonal_)  // both ends are the same anchors: one shift for both
        for (int c = 0; c < 2; ++c)
          for (int64_t i = 0; i < rows_; ++i)
            largest_[0][c][i] = largest_[1][c][i] =
                largest_[0][c][i] > largest_[1][c][i] ? largest_[0][c][i] : largest_[1][c][i];
      ColumnSums<T> col_sums[2];
      for (auto& column : col_sums) column.clear();
      for (int64_t i = 0; i < rows_; ++i) {
        row_class_ = S::set_int(data_.classes.anchor[i0_ + i]);
        V row_sums[2] = {V{}, V{}};
        const int64_t first = diagonal_ ? i / S::kLanes * S::kLanes : 0;
        for (int64_t v = first; v < cols_; v += S::kLanes) {
          const auto lane = S::lane_numbers() + static_cast<typename S::Int>(v);
          Mask valid = S::less_int(lane, S::set_int(static_cast<typename S::Int>(cols_)));
          if (diagonal_)
            valid = S::both(valid, S::less_int(S::set_int(static_cast<typename S::Int>(i)), lane));
          const Mask same = same_class(v);
          const Mask kind[2] = {S::both(same, valid), S::but_not(valid, same)};
          const V e = S::load(tile + i * kStride + v);
          for (int c = 0; c < 2; ++c) {
            if (!S::any(kind[c])) continue;
            row_sums[c] += S::select(kind[c], M::exp(e - S::set(largest_[0][c][i])), V{});
            if (both_ends)
              col_sums[c].add(v, S::select(kind[c], M::exp(e - S::load(largest_[1][c] + v)), V{}));
          }
        }
        for (int c = 0; c < 2; ++c) {
          col_sums[c].end_row(i, cols_);
          sums[c]->add(i0_ + i, largest_[0][c][i], static_cast<double>(S::sum(row_sums[c])));
        }
      }
      if (both_ends)
        for (int c = 0; c < 2; ++c)
          for (int64_t j = 0; j < cols_; ++j) sums[c]->add(j0_ + j, largest_[1][c][j], col_sums[c].total(j));
    }

   private:
    template <bool kMasked>
    static ALA_HD Mask valid_or_every(Mask valid) {
      return kMasked ? valid : S::every();
    }
    ALA_HD Mask same_class(int64_t v) const {
      return S::equal(S::load_int(data_.classes.reference + j0_ + v), row_class_);
    }

    FocalData<T>& data_;
    int64_t i0_, j0_, rows_, cols_;
    bool diagonal_;
    FocalExponent<T> exponent_;
    typename S::I row_class_{};
    V row_largest_[2];
    T largest_[2][2][kSide];  // [rows | columns][positives | negatives], at least 0: the 1 in log(1 + ...)
  };
};

template <class T, bool kWide, bool kPhi>
struct FocalGradient {
  using S = Simd<T>;
  using V = typename S::V;
  using Mask = typename S::Mask;
  using M = VectorMath<T>;
  static constexpr bool kGradient = true, kStores = false, kRests = true;

  FocalData<T>& data;

  class Tile {
   public:
    static constexpr bool kGradient = FocalGradient::kGradient, kStores = FocalGradient::kStores;
    Tile(FocalGradient& op, int64_t I, int64_t, int64_t i0, int64_t j0, int64_t, int64_t, bool)
        : data_(op.data),
          block_(I),
          i0_(i0),
          j0_(j0),
          exponent_(op.data, op.data.common_shift),
          shift_(S::set(static_cast<T>(op.data.common_shift))) {
      col_weight_[0] = data_.weight.column_positive(data_.symmetric, j0);
      col_weight_[1] = data_.weight.column_negative(data_.symmetric, j0);
      col_lse_[0] = data_.lse.column_positive(data_.symmetric, j0);
      col_lse_[1] = data_.lse.column_negative(data_.symmetric, j0);
      col_lse_rest_[0] = data_.lse_rest.column_positive(data_.symmetric, j0);
      col_lse_rest_[1] = data_.lse_rest.column_negative(data_.symmetric, j0);
      phi_sums_[0] = phi_sums_[1] = V{};
    }
    ALA_HD void begin_row(int64_t i, int64_t, const typename PairTiles<T>::RowDistances& row) {
      row_ = i0_ + i;
      rest_ = row.rest;
      row_class_ = S::set_int(data_.classes.anchor[row_]);
      row_weight_[0] = data_.weight.positive[row_];
      row_weight_[1] = data_.weight.negative[row_];
      row_lse_[0] = data_.lse.positive[row_];
      row_lse_[1] = data_.lse.negative[row_];
      row_lse_rest_[0] = data_.lse_rest.positive[row_];
      row_lse_rest_[1] = data_.lse_rest.negative[row_];
    }
    template <bool kMasked>
    ALA_HD V pair(V d, V inverse, int v, Mask valid) {
      Mask same = S::equal(S::load_int(data_.classes.reference + j0_ + v), row_class_);
      if constexpr (kMasked) same = S::both(same, valid);
      V entropy;
      const V push = softmax(1, d, v, entropy);
      if constexpr (kPhi)
        phi_sums_[1] += S::select(S::but_not(kMasked ? valid : S::every(), same), entropy, V{});
      V g = -push;
      if (__builtin_expect(S::any(same), 0)) {
        const V pull = softmax(0, d, v, entropy);
        if constexpr (kPhi) phi_sums_[0] += S::select(same, entropy, V{});
        g = S::select(same, pull, g);
      }
      return g * inverse;
    }
    ALA_HD void end_row(int64_t) {}
    void finish(const T*) {
      if (!kPhi) return;
      for (int c = 0; c < 2; ++c) data_.phi_sums[block_ * 2 + c] += static_cast<double>(S::sum(phi_sums_[c]));
    }

   private:
    // Sum over both anchors of their weight times w, their softmax weight of this pair; `entropy`: times w
    // log w.
    ALA_HD V softmax(int kind, V d, int v, V& entropy) const {
      const V e = exponent_.of(kind, d);
      const V row_weight = S::set(row_weight_[kind]), col_weight = S::load(col_weight_[kind] + v);
      const V row_log = e + shift_ - S::set(row_lse_[kind]) - S::set(row_lse_rest_[kind]),
              col_log = e + shift_ - S::load(col_lse_[kind] + v) - S::load(col_lse_rest_[kind] + v);
      V row, col;
      if constexpr (kWide) {  // e <= lse but for rounding
        row = M::exp(M::min(row_log, V{})) * row_weight;
        col = M::exp(M::min(col_log, V{})) * col_weight;
      } else {
        const V term = M::exp(e, exponent_.rest(kind, e, d, S::load(rest_ + v)));
        row = term * row_weight;
        col = term * col_weight;
      }
      if constexpr (kPhi) entropy = row * row_log + col * col_log;
      return row + col;
    }

    FocalData<T>& data_;
    int64_t block_, i0_, j0_, row_ = 0;
    const T* rest_ = nullptr;
    FocalExponent<T> exponent_;
    V shift_;
    const T *col_weight_[2], *col_lse_[2], *col_lse_rest_[2];
    T row_weight_[2], row_lse_[2], row_lse_rest_[2];
    typename S::I row_class_{};
    V phi_sums_[2];
  };
};

template <class T, bool kWide, bool kPhi>
void visit_focal_gradient(FocalData<T>& data, PairTiles<T>& tiles, const Workers& workers) {
  FocalGradient<T, kWide, kPhi> op{data};
  tiles.visit(op, workers);
}

template <class T>
ala_status focal_weighting(const ala_focal_weighting_request& r, const Call& call) {
  Workers workers(call.executor);
  Arena arena(call.workspace, call.workspace_bytes);
  PairTiles<T> tiles;
  FocalData<T> data;
  using Visits = typename PairTiles<T>::Visits;
  const bool gradient = r.grad_phi || r.grad_x || (!r.symmetric && r.grad_y);
  tiles.allocate(r.x, r.y, r.symmetric != 0, static_cast<T*>(r.grad_x), static_cast<T*>(r.grad_y),
                 gradient && !r.lse_given ? Visits::twice : Visits::any, workers, arena);
  data.allocate(tiles, arena);
  if (call.bytes) return *call.bytes = arena.bytes_with_slack(), ALA_OK;
  if (!arena.fits()) return ALA_WORKSPACE_TOO_SMALL;

  workers = workers.for_work(tiles.multiply_adds());
  tiles.pack(r.x, r.y, workers);
  data.clear(tiles);
  data.classes.build(r.x_labels, r.y_labels);
  data.phi[0] = static_cast<T>(r.phi[0]);
  data.phi[1] = static_cast<T>(r.phi[1]);
  data.offset = static_cast<T>(r.offset);
  data.choose_range(tiles);
  if (!r.lse_given && data.wide) {
    FocalWideSums<T> op{data};
    tiles.visit(op, workers);
  } else if (!r.lse_given) {
    FocalNarrowSums<T> op{data};
    tiles.visit(op, workers);
  }

  T* const loss = static_cast<T*>(r.loss);
  const T* weights = static_cast<const T*>(r.weights);
  double phi_grad[2] = {0, 0};
  for (int64_t i = 0; i < tiles.x.count; ++i) {
    const double row[2] = {r.lse_given ? r.lse[2 * i] : data.positive.log_one_plus(i),
                           r.lse_given ? r.lse[2 * i + 1] : data.negative.log_one_plus(i)};
    if (r.lse && !r.lse_given)
      for (int c = 0; c < 2; ++c) r.lse[2 * i + c] = row[c];
    if (loss) loss[i] = static_cast<T>(row[0] / data.phi[0] + row[1] / data.phi[1]);
    const double weight = weights ? static_cast<double>(weights[i]) : 1.0;
    T* const to_weight[2] = {data.weight.positive + i, data.weight.negative + i};
    T* const to_lse[2] = {data.lse.positive + i, data.lse.negative + i};
    T* const to_rest[2] = {data.lse_rest.positive + i, data.lse_rest.negative + i};
    for (int c = 0; c < 2; ++c) {
      phi_grad[c] -= weight * row[c] * ::exp(-row[c]);  // w log w of the 1 in log(1 + ...)
      *to_weight[c] = static_cast<T>(data.wide ? weight : weight * ::exp(data.common_shift - row[c]));
      *to_lse[c] = static_cast<T>(row[c]);
      *to_rest[c] = static_cast<T>(row[c] - static_cast<double>(*to_lse[c]));
    }
  }

  if (r.grad_phi && data.wide)
    visit_focal_gradient<T, true, true>(data, tiles, workers);
  else if (r.grad_phi)
    visit_focal_gradient<T, false, true>(data, tiles, workers);
  else if (gradient) {
    if (data.wide)
      visit_focal_gradient<T, true, false>(data, tiles, workers);
    else
      visit_focal_gradient<T, false, false>(data, tiles, workers);
  }
  if (r.grad_phi)
    for (int c = 0; c < 2; ++c) {
      for (int64_t b = 0; b < tiles.row_blocks(); ++b) phi_grad[c] += data.phi_sums[2 * b + c];
      static_cast<T*>(r.grad_phi)[c] = static_cast<T>(phi_grad[c] / (data.phi[c] * data.phi[c]));
    }
  return ALA_OK;
}

}  // namespace ALA_ISA
}  // namespace ala
