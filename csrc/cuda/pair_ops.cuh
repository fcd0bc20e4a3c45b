// What is done with one pair, for every op. A pass walks over the pairs (row i, column j) and keeps, per row,
// kValues accumulators `acc`, and per thread kSums totals `sums`. pair() returns G_ij, the factor of
// (x_i - y_j) in the gradient of row i (kGradient), or a value to be stored (kStores).
//
// Gradients of rows only: with symmetric references the two roles of a pair are both in G_ij, and for
// references of their own a second pass runs with rows and columns exchanged. So every row has one owner, no
// sums are shared, and results have the same bits in every run.
#pragma once

#include "cuda/device.h"

namespace ala::cuda {

template <class T>
struct Pairs {
  const T *x, *y;  // [rows, pitch], [cols, pitch]
  const T *x_square, *y_square;
  const int64_t *x_labels, *y_labels;  // NULL where labels do not matter
  int64_t rows, cols;
  int dims, pitch;
  int32_t symmetric;
};

template <class T>
struct Distance {
  T d, inverse;
};
template <class T>
__device__ inline Distance<T> distance_of(T square) {
  const T raised = ScalarMath<T>::max(square, static_cast<T>(kSmallestSquare));
  const T inverse = reciprocal_root(raised);
  return {square * inverse, inverse};
}

// Distance mixture (Eq. 9). acc: the loss; sums: of weight * F_k, the gradient of phi. `kind` is 1 for a
// positive pair, 0 for a negative one.
template <class T, bool kPhi>
struct MixtureOp {
  static constexpr int kValues = 1, kSums = kPhi ? 10 : 0;
  static constexpr bool kGradient = true, kStores = false;
  using M = ScalarMath<T>;

  const double* phi;    // [10]; NULL: zeros
  const T* row_mean;    // [2, rows]: shares of a pair in the loss of its row; NULL: no loss
  const T* row_weight;  // [2, rows] in the gradient; NULL: rows are references only
  const T* col_weight;  // [2, cols] the columns' as anchors; NULL: columns are references only

  struct Row {  // of negatives, of positives; never indexed by a variable, which would be local memory
    T mean[2], weight[2];
  };
  struct Shared {
    T phi[10];
    bool all;  // is any weight but the first of each kind in use?
  };

  __device__ Shared shared() const {
    Shared s;
    s.all = kPhi;
    for (int k = 0; k < 10; ++k) {
      s.phi[k] = phi ? static_cast<T>(phi[k]) : T(0);
      if (k % kShapes != 0 && s.phi[k] != T(0)) s.all = true;
    }
    return s;
  }
  __device__ Row row(int64_t i, int64_t rows) const {
    Row r;
    for (int kind = 0; kind < 2; ++kind) {
      r.mean[kind] = row_mean ? row_mean[kind * rows + i] : T(0);
      r.weight[kind] = row_weight ? row_weight[kind * rows + i] : T(0);
    }
    return r;
  }
  __device__ static void start(T* acc) { acc[0] = 0; }
  __device__ static void merge(T* acc, const T* other) { acc[0] += other[0]; }

  template <bool kAll>
  __device__ static Shapes<M> shapes(bool positive, Distance<T> at) {
    return positive ? ala::ALA_ISA::increasing_shapes<M, kAll>(at.d)
                    : ala::ALA_ISA::decreasing_shapes<M, kAll>(at.d, at.inverse);
  }

  __device__ T pair(const Shared& s, const Row& row, Distance<T> at, bool positive, int64_t, int64_t j,
                    int64_t cols, T* acc, T* sums) const {
    T value, slope;
    if (s.all) {
      const auto f = shapes<true>(positive, at);
      value = (positive ? s.phi[0] : s.phi[kShapes]) * f.value[0];
      slope = (positive ? s.phi[0] : s.phi[kShapes]) * f.slope[0];
#pragma unroll
      for (int k = 1; k < kShapes; ++k) {
        const T mine = positive ? s.phi[k] : s.phi[kShapes + k];
        value += mine * f.value[k];
        slope += mine * f.slope[k];
      }
      if constexpr (kPhi) {
        const T w = positive ? row.weight[1] : row.weight[0];
#pragma unroll
        for (int k = 0; k < kShapes; ++k) {
          sums[k] += positive ? w * f.value[k] : T(0);
          sums[kShapes + k] += positive ? T(0) : w * f.value[k];
        }
      }
    } else {
      const auto f = shapes<false>(positive, at);
      value = (positive ? s.phi[0] : s.phi[kShapes]) * f.value[0];
      slope = (positive ? s.phi[0] : s.phi[kShapes]) * f.slope[0];
    }
    acc[0] += (positive ? row.mean[1] : row.mean[0]) * value;
    T weight = positive ? row.weight[1] : row.weight[0];
    if (col_weight) weight += col_weight[positive * cols + j];
    return slope * at.inverse * weight;
  }
};

// First pass of focal weighting (Eq. 10): acc holds, for negatives and positives, m >= 0 and sum exp(z - m).
template <class T>
struct LogSumOp {
  static constexpr int kValues = 4, kSums = 0;
  static constexpr bool kGradient = false, kStores = false;
  using M = ScalarMath<T>;

  const double* phi;  // [2]: of positives, of negatives
  T offset;

  struct Row {};
  struct Shared {
    T phi[2];
  };
  __device__ Shared shared() const { return {{static_cast<T>(phi[0]), static_cast<T>(phi[1])}}; }
  __device__ Row row(int64_t, int64_t) const { return {}; }
  __device__ static void start(T* acc) {
    for (int k = 0; k < kValues; ++k) acc[k] = 0;
  }
  __device__ static void merge(T* acc, const T* other) {
    for (int k = 0; k < kValues; k += 2) {
      const T most = acc[k] < other[k] ? other[k] : acc[k];
      acc[k + 1] = acc[k + 1] * M::exp(acc[k] - most) + other[k + 1] * M::exp(other[k] - most);
      acc[k] = most;
    }
  }
  __device__ T pair(const Shared& s, const Row&, Distance<T> at, bool positive, int64_t, int64_t, int64_t,
                    T* acc, T*) const {
    const T z = positive ? s.phi[0] * (at.d - offset) : s.phi[1] * (offset - at.d);
    T most = positive ? acc[2] : acc[0], sum = positive ? acc[3] : acc[1];
    if (most < z) {
      sum *= M::exp(most - z);
      most = z;
    }
    sum += M::exp(z - most);
    acc[0] = positive ? acc[0] : most;
    acc[1] = positive ? acc[1] : sum;
    acc[2] = positive ? most : acc[2];
    acc[3] = positive ? sum : acc[3];
    return 0;
  }
};

// Second pass: gradients. sums: weight * share * (d - offset) of positives, then of negatives.
template <class T, bool kPhi>
struct FocalOp {
  static constexpr int kValues = 0, kSums = kPhi ? 2 : 0;
  static constexpr bool kGradient = true, kStores = false;
  using M = ScalarMath<T>;

  const double* phi;
  T offset;
  const T *row_lse, *row_weight;  // [rows, 2] positive first, [rows]; NULL: rows are references only
  const T *col_lse, *col_weight;  // the same of the columns

  struct Row {
    T lse[2], weight;
  };
  using Shared = typename LogSumOp<T>::Shared;
  __device__ Shared shared() const { return {{static_cast<T>(phi[0]), static_cast<T>(phi[1])}}; }
  __device__ Row row(int64_t i, int64_t) const {
    if (!row_lse) return {{0, 0}, 0};
    return {{row_lse[2 * i], row_lse[2 * i + 1]}, row_weight ? row_weight[i] : T(1)};
  }
  __device__ static void start(T*) {}
  __device__ static void merge(T*, const T*) {}
  __device__ T pair(const Shared& s, const Row& row, Distance<T> at, bool positive, int64_t, int64_t j,
                    int64_t, T*, T* sums) const {
    const T centred = at.d - offset;
    const T z = positive ? s.phi[0] * centred : -(s.phi[1] * centred);
    T share = 0;
    if (row_lse) {
      share = row.weight * M::exp(z - (positive ? row.lse[0] : row.lse[1]));
      if constexpr (kPhi) {
        sums[0] += positive ? share * centred : T(0);
        sums[1] += positive ? T(0) : share * centred;
      }
    }
    if (col_lse)
      share += (col_weight ? col_weight[j] : T(1)) * M::exp(z - col_lse[2 * j + (positive ? 0 : 1)]);
    return (positive ? share : -share) * at.inverse;
  }
};

// Distances, stored.
template <class T>
struct DistanceOp {
  static constexpr int kValues = 0, kSums = 0;
  static constexpr bool kGradient = false, kStores = true;
  struct Row {};
  struct Shared {};
  __device__ Shared shared() const { return {}; }
  __device__ Row row(int64_t, int64_t) const { return {}; }
  __device__ static void start(T*) {}
  __device__ static void merge(T*, const T*) {}
  __device__ T pair(const Shared&, const Row&, Distance<T> at, bool, int64_t, int64_t, int64_t, T*,
                    T*) const {
    return at.d;
  }
};

// Gradients of distances: G_ij = grad_ij / d, and grad_ji / d too if symmetric.
template <class T>
struct DistanceGradientOp {
  static constexpr int kValues = 0, kSums = 0;
  static constexpr bool kGradient = true, kStores = false;
  const T* grad;
  int64_t row_stride, col_stride;
  int32_t both;
  struct Row {};
  struct Shared {};
  __device__ Shared shared() const { return {}; }
  __device__ Row row(int64_t, int64_t) const { return {}; }
  __device__ static void start(T*) {}
  __device__ static void merge(T*, const T*) {}
  __device__ T pair(const Shared&, const Row&, Distance<T> at, bool, int64_t i, int64_t j, int64_t, T*,
                    T*) const {
    T g = grad[i * row_stride + j * col_stride];
    if (both) g += grad[j * row_stride + i * col_stride];
    return g * at.inverse;
  }
};

}  // namespace ala::cuda
