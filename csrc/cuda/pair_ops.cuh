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
  const T *x, *y;                  // [rows, pitch], [cols, pitch]
  const T *x_factors, *y_factors;  // the same in the precision of the products
  const T *x_square, *y_square;
  const int64_t *x_labels, *y_labels;  // NULL where labels do not matter
  int64_t rows, cols;
  int dims, pitch;
  int32_t symmetric;
};

// |x - y|^2 = |x|^2 + |y|^2 - 2 x y, and what rounding left out of it; `limit` is |x|^2 + |y|^2.
template <class T>
struct Square {
  T value, low, limit;
};
template <class T>
__device__ inline Square<T> square_of(T x_square, T y_square, T product) {
  const T limit = x_square + y_square, value = limit - 2 * product;
  const T y_part = limit - x_square, x_part = limit - y_part;
  return {value, ((x_square - x_part) + (y_square - y_part)) + ((limit - value) - 2 * product), limit};
}

template <class T>
struct Distance {
  T d, inverse, square, square_low;
  // What rounding, and the hardware's root, left out of d.
  __device__ T low() const { return (multiply_add(-d, d, square) + square_low) * (T(0.5) * inverse); }
};
template <class T>
__device__ inline Distance<T> distance_of(T square, T low) {
  const T raised = ScalarMath<T>::max(square, static_cast<T>(kSmallestSquare));
  const T inverse = reciprocal_root(raised);
  return {rounded_product(square, inverse), inverse, square, low};
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

// A number in two parts: high + low, where low is below the last digit of high.
template <class T>
struct alignas(2 * sizeof(T)) Split {
  T high, low;
  __device__ T minus(Split other) const { return (high - other.high) + (low - other.low); }
};
template <class T>
__device__ inline Split<T> split(double x) {
  const T high = static_cast<T>(x);
  return {high, static_cast<T>(x - static_cast<double>(high))};
}

// z = +-phi (d - offset) of focal weighting (Eq. 10). In two parts: exponents are absolute, so with phi = 8
// the rounding of d alone would be 8 times as large in the gradient, and that of log-sum-exp is the same for
// a whole row, where it does not average out. Both passes get the same bits.
template <class T>
struct FocalExponent {
  T phi[2];  // of positives, of negatives
  Split<T> offset;

  __device__ FocalExponent(const double* given, double off) : offset(split<T>(off)) {
    for (int kind = 0; kind < 2; ++kind) phi[kind] = static_cast<T>(given[kind]);
  }
  __device__ T centred(Distance<T> at) const { return (at.d - offset.high) + (at.low() - offset.low); }
  __device__ Split<T> of(T centred, bool positive) const {
    const T factor = positive ? phi[0] : -phi[1];
    const T z = rounded_product(factor, centred);
    return {z, multiply_add(factor, centred, -z)};
  }
};

// First pass of focal weighting: acc holds, for negatives and positives, m >= 0, sum exp(z - m), and what
// rounding left out of that sum.
template <class T>
struct LogSumOp {
  static constexpr int kValues = 6, kSums = 0;
  static constexpr bool kGradient = false, kStores = false;
  using M = ScalarMath<T>;

  const double* phi;  // [2]: of positives, of negatives
  double offset;

  struct Row {};
  using Shared = FocalExponent<T>;
  __device__ Shared shared() const { return {phi, offset}; }
  __device__ Row row(int64_t, int64_t) const { return {}; }
  __device__ static void start(T* acc) {
    for (int k = 0; k < kValues; ++k) acc[k] = 0;
  }
  // Exact where sum >= term, and no worse than a plain sum where it is not.
  __device__ static void add(T& sum, T& low, T term) {
    const T before = sum;
    sum += term;
    low += term - (sum - before);
  }
  __device__ static void merge(T* acc, const T* other) {
    for (int k = 0; k < kValues; k += 3) {
      const T most = acc[k] < other[k] ? other[k] : acc[k];
      const T mine = M::exp(acc[k] - most), theirs = M::exp(other[k] - most);
      acc[k] = most;
      acc[k + 1] *= mine;
      acc[k + 2] = acc[k + 2] * mine + other[k + 2] * theirs;
      add(acc[k + 1], acc[k + 2], other[k + 1] * theirs);
    }
  }
  __device__ T pair(const Shared& s, const Row&, Distance<T> at, bool positive, int64_t, int64_t, int64_t,
                    T* acc, T*) const {
    const Split<T> z = s.of(s.centred(at), positive);
    T most = positive ? acc[3] : acc[0], sum = positive ? acc[4] : acc[1], low = positive ? acc[5] : acc[2];
    if (most < z.high) {
      const T factor = M::exp(most - z.high);
      sum *= factor;
      low *= factor;
      most = z.high;
    }
    add(sum, low, M::exp((z.high - most) + z.low));
    acc[0] = positive ? acc[0] : most;
    acc[1] = positive ? acc[1] : sum;
    acc[2] = positive ? acc[2] : low;
    acc[3] = positive ? most : acc[3];
    acc[4] = positive ? sum : acc[4];
    acc[5] = positive ? low : acc[5];
    return 0;
  }
};

// Second pass: gradients. sums: weight * share * log(share) of positives, then of negatives. From it follows
// the gradient of phi: d/dphi (lse / phi) = (sum share log(share) - lse exp(-lse)) / phi^2, without the
// cancellation of sum share (d - offset) / phi - lse / phi^2.
template <class T, bool kPhi>
struct FocalOp {
  static constexpr int kValues = 0, kSums = kPhi ? 2 : 0;
  static constexpr bool kGradient = true, kStores = false;
  using M = ScalarMath<T>;

  const double* phi;
  double offset;
  const Split<T>* row_lse;  // [rows, 2] positive first; NULL: rows are references only
  const T* row_weight;      // [rows]; NULL: ones
  const Split<T>* col_lse;  // the same of the columns
  const T* col_weight;

  struct Row {
    Split<T> lse[2];
    T weight;
  };
  using Shared = FocalExponent<T>;
  __device__ Shared shared() const { return {phi, offset}; }
  __device__ Row row(int64_t i, int64_t) const {
    if (!row_lse) return {{{0, 0}, {0, 0}}, 0};
    return {{row_lse[2 * i], row_lse[2 * i + 1]}, row_weight ? row_weight[i] : T(1)};
  }
  __device__ static void start(T*) {}
  __device__ static void merge(T*, const T*) {}
  __device__ T pair(const Shared& s, const Row& row, Distance<T> at, bool positive, int64_t, int64_t j,
                    int64_t, T*, T* sums) const {
    const Split<T> z = s.of(s.centred(at), positive);
    T share = 0;
    if (row_lse) {
      const T log_share = z.minus(positive ? row.lse[0] : row.lse[1]);
      share = row.weight * M::exp(log_share);
      if constexpr (kPhi) {
        sums[0] += positive ? share * log_share : T(0);
        sums[1] += positive ? T(0) : share * log_share;
      }
    }
    if (col_lse) share += (col_weight ? col_weight[j] : T(1)) * M::exp(z.minus(col_lse[2 * j + !positive]));
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
