// Distance mixture (Eq. 9): loss and gradient in one walk over the pairs; distance statistics are the same
// walk with other weights.
#pragma once

#include "core/shapes.h"
#include "cpu/classes.h"
#include "cpu/column_sums.h"
#include "cpu/curve_table.h"
#include "cpu/kernels.h"
#include "cpu/pair_tiles.h"

namespace ala {
namespace ALA_ISA {

template <class T>
struct MixtureData {
  bool symmetric = false;
  Classes<T> classes;
  PairWeights<T> mean;    // 1 / |P_i|, 1 / |N_i|; 0 for an empty set
  PairWeights<T> weight;  // the same times the anchor's weight
  T phi[ALA_MIXTURE_PHI] = {};
  CurveTable<T> negatives;     // mixture of the decreasing shapes
  double* loss = nullptr;      // [N]
  double* phi_sums = nullptr;  // [row blocks, 10]: sum of weight * F_k

  void allocate(const PairTiles<T>& tiles, Arena& arena) {
    symmetric = tiles.symmetric;
    classes.allocate(tiles.x, tiles.y, symmetric, arena);
    mean.allocate(tiles.x, arena);
    weight.allocate(tiles.x, arena);
    loss = arena.array<double>(tiles.x.padded);
    phi_sums = arena.array<double>(tiles.row_blocks() * ALA_MIXTURE_PHI);
  }
  void clear(const PairTiles<T>& tiles) {
    mean.clear(tiles.x);
    weight.clear(tiles.x);
    std::memset(loss, 0, static_cast<size_t>(tiles.x.padded) * sizeof(double));
    std::memset(phi_sums, 0, static_cast<size_t>(tiles.row_blocks() * ALA_MIXTURE_PHI) * sizeof(double));
  }
  void set_phi(const double* values) {
    for (int k = 0; k < ALA_MIXTURE_PHI; ++k) phi[k] = static_cast<T>(values[k]);
    negatives.build([this](typename Simd<double>::V d) {
      const auto f = decreasing_shapes<VectorMath<double>>(d, VectorMath<double>::reciprocal(d));
      typename Simd<double>::V sum{};
      for (int k = 0; k < kShapes; ++k) sum += static_cast<double>(phi[kShapes + k]) * f.value[k];
      return sum;
    });
  }
  double phi_sum(int k, int64_t blocks) const {
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += phi_sums[b * ALA_MIXTURE_PHI + k];
    return sum;
  }
};

// kAll = false: only the first shape of each kind has a weight. kPhi: the gradient of phi is wanted.
template <class T, bool kAll, bool kPhi, bool kGradientWanted>
struct MixtureOp {
  using S = Simd<T>;
  using V = typename S::V;
  using Mask = typename S::Mask;
  using M = VectorMath<T>;
  static constexpr bool kGradient = kGradientWanted;
  static constexpr bool kStores = false, kRests = false;
  static constexpr int kUsed = kAll ? kShapes : 1;

  MixtureData<T>& data;

  class Tile {
   public:
    static constexpr bool kGradient = MixtureOp::kGradient, kStores = MixtureOp::kStores;
    Tile(MixtureOp& op, int64_t I, int64_t, int64_t i0, int64_t j0, int64_t, int64_t cols, bool)
        : data_(op.data), block_(I), i0_(i0), j0_(j0), cols_(cols) {
      const bool symmetric = data_.symmetric;
      col_class_ = data_.classes.reference + j0;
      col_mean_positive_ = data_.mean.column_positive(symmetric, j0);
      col_mean_negative_ = data_.mean.column_negative(symmetric, j0);
      col_weight_positive_ = data_.weight.column_positive(symmetric, j0);
      col_weight_negative_ = data_.weight.column_negative(symmetric, j0);
      col_loss_.clear();
      for (auto& s : phi_sums_) s = V{};
      for (int k = 0; k < ALA_MIXTURE_PHI; ++k) phi_[k] = S::set(data_.phi[k]);
    }

    ALA_HD void begin_row(int64_t i, int64_t first, const typename PairTiles<T>::RowDistances& row) {
      row_ = i0_ + i;
      if constexpr (!kPhi) {
        int64_t v = first;
        for (; v + S::kLanes < cols_; v += 2 * S::kLanes) as_negatives<2>(row, v);
        if (v < cols_) as_negatives<1>(row, v);
      }
      row_class_ = S::set_int(data_.classes.anchor[row_]);
      row_loss_ = V{};
    }

    template <bool kMasked>
    ALA_HD V pair(V d, V inverse, int v, Mask valid) {
      Shapes<M> f;
      V value, slope;
      if constexpr (kPhi) {
        f = decreasing_shapes<M, kAll>(d, inverse);
        value = mix(phi_ + kShapes, f.value);
        slope = mix(phi_ + kShapes, f.slope);
      } else {
        value = S::load(value_ + v);
        slope = kGradient ? S::load(slope_ + v) : V{};
      }
      V row_mean = S::set(data_.mean.negative[row_]), col_mean = S::load(col_mean_negative_ + v);
      V weight = S::set(data_.weight.negative[row_]) + S::load(col_weight_negative_ + v);
      Mask same = S::equal(S::load_int(col_class_ + v), row_class_);
      if constexpr (kMasked) same = S::both(same, valid);
      if (__builtin_expect(S::any(same), 0)) {
        const auto g = increasing_shapes<M, kAll>(d);
        const V near_value = mix(phi_, g.value), near_slope = mix(phi_, g.slope);
        const V near_weight = S::set(data_.weight.positive[row_]) + S::load(col_weight_positive_ + v);
        if constexpr (kPhi)
          for (int k = 0; k < kShapes; ++k) phi_sums_[k] += S::select(same, near_weight * g.value[k], V{});
        value = S::select(same, near_value, value);
        slope = S::select(same, near_slope, slope);
        row_mean = S::select(same, S::set(data_.mean.positive[row_]), row_mean);
        col_mean = S::select(same, S::load(col_mean_positive_ + v), col_mean);
        if constexpr (kPhi) {
          const Mask negative = kMasked ? S::but_not(valid, same) : S::but_not(S::every(), same);
          for (int k = 0; k < kShapes; ++k)
            phi_sums_[kShapes + k] += S::select(negative, weight * f.value[k], V{});
        }
        weight = S::select(same, near_weight, weight);
      } else if constexpr (kPhi) {
        for (int k = 0; k < kShapes; ++k) {
          const V term = weight * f.value[k];
          phi_sums_[kShapes + k] += kMasked ? S::select(valid, term, V{}) : term;
        }
      }
      if constexpr (kMasked) value = S::select(valid, value, V{});
      row_loss_ += row_mean * value;
      col_loss_.add(v, col_mean * value);
      return slope * inverse * weight;
    }

    ALA_HD void end_row(int64_t i) {
      col_loss_.end_row(i, cols_);
      data_.loss[row_] += static_cast<double>(S::sum(row_loss_));
    }

    void finish(const T*) {
      if (data_.symmetric)
        for (int64_t j = 0; j < cols_; ++j) data_.loss[j0_ + j] += col_loss_.total(j);
      if (!kPhi) return;
      for (int k = 0; k < ALA_MIXTURE_PHI; ++k)
        data_.phi_sums[block_ * ALA_MIXTURE_PHI + k] += static_cast<double>(S::sum(phi_sums_[k]));
    }

   private:
    // Values and slopes of the row's pairs from lane v on, in so many registers.
    template <int kRegisters>
    ALA_HD void as_negatives(const typename PairTiles<T>::RowDistances& row, int64_t v) {
      V d[kRegisters], value[kRegisters], slope[kRegisters];
      for (int r = 0; r < kRegisters; ++r) d[r] = S::load(row.distance + v + r * S::kLanes);
      if (__builtin_expect(!data_.negatives.covers(d), 0)) return beyond_table<kRegisters>(row, v);
      data_.negatives.evaluate(d, value, slope);
      for (int r = 0; r < kRegisters; ++r) {
        S::store(value_ + v + r * S::kLanes, value[r]);
        S::store(slope_ + v + r * S::kLanes, slope[r]);
      }
    }

    template <int kRegisters>
    __attribute__((noinline)) void beyond_table(const typename PairTiles<T>::RowDistances& row, int64_t v) {
      for (const int64_t end = v + kRegisters * S::kLanes; v < end; v += S::kLanes) {
        const auto f = decreasing_shapes<M, kAll>(S::load(row.distance + v), S::load(row.inverse + v));
        S::store(value_ + v, mix(phi_ + kShapes, f.value));
        S::store(slope_ + v, mix(phi_ + kShapes, f.slope));
      }
    }

    static ALA_HD V mix(const V* phi, const V* f) {
      V sum = phi[0] * f[0];
      for (int k = 1; k < kUsed; ++k) sum += phi[k] * f[k];
      return sum;
    }

    MixtureData<T>& data_;
    int64_t block_, i0_, j0_, cols_, row_ = 0;
    const typename S::Int* col_class_;
    const T *col_mean_positive_, *col_mean_negative_, *col_weight_positive_, *col_weight_negative_;
    typename S::I row_class_{};
    V row_loss_{};
    V phi_[ALA_MIXTURE_PHI], phi_sums_[ALA_MIXTURE_PHI];
    ColumnSums<T> col_loss_;
    alignas(64) T value_[1024 / sizeof(T)], slope_[1024 / sizeof(T)];  // of the row, as if all were negatives
  };
};

template <class T, bool kAll, bool kPhi, bool kGradient>
void visit_mixture(MixtureData<T>& data, PairTiles<T>& tiles, const Workers& workers) {
  MixtureOp<T, kAll, kPhi, kGradient> op{data};
  tiles.visit(op, workers);
}

template <class T>
ala_status distance_mixture(const ala_distance_mixture_request& r, const Call& call) {
  Workers workers(call.executor);
  Arena arena(call.workspace, call.workspace_bytes);
  PairTiles<T> tiles;
  MixtureData<T> data;
  tiles.allocate(r.x, r.y, r.symmetric != 0, static_cast<T*>(r.grad_x), static_cast<T*>(r.grad_y),
                 PairTiles<T>::Visits::once, workers, arena);
  data.allocate(tiles, arena);
  if (call.bytes) return *call.bytes = arena.bytes_with_slack(), ALA_OK;
  if (!arena.fits()) return ALA_WORKSPACE_TOO_SMALL;

  workers = workers.for_work(tiles.multiply_adds());
  tiles.pack(r.x, r.y, workers);
  tiles.own = r.symmetric ? nullptr : r.own;
  data.clear(tiles);
  data.classes.build(r.x_labels, r.y_labels, r.own);
  const T* weights = static_cast<const T*>(r.weights);
  const int64_t n = tiles.x.count;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t positives = data.classes.positives[i], negatives = data.classes.negatives(i);
    const T weight = weights ? weights[i] : T(1);
    data.mean.positive[i] = positives > 0 ? T(1) / static_cast<T>(positives) : T(0);
    data.mean.negative[i] = negatives > 0 ? T(1) / static_cast<T>(negatives) : T(0);
    data.weight.positive[i] = weight * data.mean.positive[i];
    data.weight.negative[i] = weight * data.mean.negative[i];
  }
  data.set_phi(r.phi);
  bool all = false;
  for (int k = 0; k < ALA_MIXTURE_PHI; ++k)
    if (k % kShapes != 0 && data.phi[k] != T(0)) all = true;
  const bool gradient = r.grad_x || (!r.symmetric && r.grad_y);
  if (gradient && r.grad_phi)
    visit_mixture<T, true, true, true>(data, tiles, workers);
  else if (gradient && all)
    visit_mixture<T, true, false, true>(data, tiles, workers);
  else if (gradient)
    visit_mixture<T, false, false, true>(data, tiles, workers);
  else if (r.grad_phi)
    visit_mixture<T, true, true, false>(data, tiles, workers);
  else if (all)
    visit_mixture<T, true, false, false>(data, tiles, workers);
  else
    visit_mixture<T, false, false, false>(data, tiles, workers);

  if (r.loss)
    for (int64_t i = 0; i < n; ++i) static_cast<T*>(r.loss)[i] = static_cast<T>(data.loss[i]);
  if (r.grad_phi)
    for (int k = 0; k < ALA_MIXTURE_PHI; ++k)
      static_cast<T*>(r.grad_phi)[k] = static_cast<T>(data.phi_sum(k, tiles.row_blocks()));
  return ALA_OK;
}

template <class T>
ala_status distance_statistics(const ala_distance_statistics_request& r, const Call& call) {
  Workers workers(call.executor);
  Arena arena(call.workspace, call.workspace_bytes);
  PairTiles<T> tiles;
  MixtureData<T> data;
  tiles.allocate(r.x, r.y, r.symmetric != 0, nullptr, nullptr, PairTiles<T>::Visits::once, workers, arena);
  data.allocate(tiles, arena);
  if (call.bytes) return *call.bytes = arena.bytes_with_slack(), ALA_OK;
  if (!arena.fits()) return ALA_WORKSPACE_TOO_SMALL;

  workers = workers.for_work(tiles.multiply_adds());
  tiles.pack(r.x, r.y, workers);
  data.clear(tiles);
  data.classes.build(r.x_labels, r.y_labels);
  double pairs[2] = {0, 0};
  for (int64_t i = 0; i < tiles.x.count; ++i) {
    data.weight.positive[i] = data.weight.negative[i] = T(1);
    pairs[0] += static_cast<double>(data.classes.positives[i]);
    pairs[1] += static_cast<double>(data.classes.negatives(i));
  }
  visit_mixture<T, true, true, false>(data, tiles, workers);
  for (int k = 0; k < ALA_MIXTURE_PHI; ++k) {
    const double n = pairs[k / kShapes];
    static_cast<T*>(r.statistics)[k] = n > 0 ? static_cast<T>(data.phi_sum(k, tiles.row_blocks()) / n) : T(0);
  }
  return ALA_OK;
}

}  // namespace ALA_ISA
}  // namespace ala
