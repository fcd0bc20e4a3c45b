// Listed pairs and triplets: values by direct differences, gradients gathered row by row (each row adds its
// own pairs in list order, so no two tasks write to one row and the bits do not depend on the number of
// threads).
#pragma once

#include <cstdint>

#include "core/shapes.h"
#include "cpu/kernels.h"
#include "cpu/near_pairs.h"
#include "cpu/parallel.h"
#include "cpu/points.h"
#include "cpu/vector_math.h"

namespace ala {
namespace ALA_ISA {

// The places of a list, grouped by the row that they name: order[start[i]] ... order[start[i + 1] - 1] name
// row i.
struct Groups {
  int64_t* start = nullptr;
  int64_t* order = nullptr;

  void allocate(int64_t rows, int64_t items, Arena& arena) {
    start = arena.array<int64_t>(rows + 1);
    order = arena.array<int64_t>(items);
  }
  void build(const int64_t* row_of, int64_t rows, int64_t items) {
    std::memset(start, 0, static_cast<size_t>(rows + 1) * sizeof(int64_t));
    for (int64_t t = 0; t < items; ++t) ++start[row_of[t] + 1];
    for (int64_t i = 0; i < rows; ++i) start[i + 1] += start[i];
    for (int64_t t = 0; t < items; ++t) order[start[row_of[t]]++] = t;
    for (int64_t i = rows; i > 0; --i) start[i] = start[i - 1];
    start[0] = 0;
  }
};

// One list of pairs of one kind.
template <class T>
struct MinedList {
  int64_t count = 0;
  const int64_t* anchors = nullptr;
  const int64_t* others = nullptr;
  const T* weights = nullptr;
  T* values = nullptr;
  bool add_to_values = false;  // triplets: the negative part comes on top of the positive one

  T* slopes = nullptr;         // [count]: weight * F'(d) / d
  double* phi_sums = nullptr;  // [chunks, 5]
  Groups by_anchor, by_other;
};

template <class T>
class Mined {
 public:
  using S = Simd<T>;
  using V = typename S::V;
  using M = VectorMath<T>;
  static constexpr int64_t kChunk = 2048;

  MinedList<T> lists[2];  // positives, negatives
  T phi[2 * kShapes] = {};
  bool symmetric = false;
  T *grad_x = nullptr, *grad_y = nullptr, *grad_phi = nullptr;

  void allocate(const ala_matrix& mx, const ala_matrix& my, const double* phi_in, Arena& arena) {
    for (int k = 0; k < 2 * kShapes; ++k) phi[k] = static_cast<T>(phi_in[k]);
    x_.allocate(mx, arena, Layout::kRows);
    if (symmetric)
      y_ = x_;
    else
      y_.allocate(my, arena, Layout::kRows);
    for (auto& list : lists) {
      list.phi_sums = arena.array<double>(chunks(list) * kShapes);
      if (!gradient()) continue;
      list.slopes = arena.array<T>(list.count);
      if (grad_x) list.by_anchor.allocate(x_.count, list.count, arena);
      if (symmetric || grad_y) list.by_other.allocate(y_.count, list.count, arena);
    }
  }

  void run(const ala_matrix& mx, const ala_matrix& my, Workers workers) {
    workers = workers.for_work(static_cast<double>(lists[0].count + lists[1].count) *
                               static_cast<double>(x_.dims + 16));
    x_.pack(mx, workers);
    if (!symmetric) y_.pack(my, workers);
    const int64_t most = chunks(lists[0]) > chunks(lists[1]) ? chunks(lists[0]) : chunks(lists[1]);
    workers.run(most, [&](int64_t c, int64_t) {
      if (c < chunks(lists[0])) values<true>(lists[0], c);
      if (c < chunks(lists[1])) values<false>(lists[1], c);
    });
    if (gradient()) gradients(workers);
    if (grad_phi)
      for (int k = 0; k < 2 * kShapes; ++k) {
        const auto& list = lists[k / kShapes];
        double sum = 0;
        for (int64_t c = 0; c < chunks(list); ++c) sum += list.phi_sums[c * kShapes + k % kShapes];
        grad_phi[k] = static_cast<T>(sum);
      }
  }

 private:
  static int64_t chunks(const MinedList<T>& list) { return (list.count + kChunk - 1) / kChunk; }
  bool gradient() const { return grad_x || (!symmetric && grad_y); }

  template <bool kPositive>
  void values(MinedList<T>& list, int64_t chunk) {
    V sums[kShapes] = {};
    const int64_t end = smaller(list.count, (chunk + 1) * kChunk);
    for (int64_t t = chunk * kChunk; t < end; t += S::kLanes) {
      const int lanes = static_cast<int>(smaller(S::kLanes, end - t));
      const uint32_t bits = (1u << lanes) - 1;
      const V square = squared_differences<T>(
          bits, x_, [&](int l) { return x_.row(list.anchors[t + l]); },
          [&](int l) { return y_.row(list.others[t + l]); });
      const V inverse = M::reciprocal_sqrt(M::max(square, M::set(kSmallestSquare)));
      const V d = square * inverse;
      const auto f = kPositive ? increasing_shapes<M>(d) : decreasing_shapes<M>(d, inverse);
      const T* weight_of = phi + (kPositive ? 0 : kShapes);
      V value{}, slope{};
      for (int k = 0; k < kShapes; ++k) {
        value += weight_of[k] * f.value[k];
        slope += weight_of[k] * f.slope[k];
      }
      V weight = S::set(T(1));
      if (list.weights) weight = partial_load(list.weights + t, lanes);
      if (lanes < S::kLanes)
        weight = S::select(S::less_int(S::lane_numbers(), S::set_int(lanes)), weight, V{});
      if (list.values) {
        if (list.add_to_values) value += partial_load(list.values + t, lanes);
        partial_store(list.values + t, value, lanes);
      }
      if (list.slopes) partial_store(list.slopes + t, weight * slope * inverse, lanes);
      for (int k = 0; k < kShapes; ++k) sums[k] += weight * f.value[k];
    }
    for (int k = 0; k < kShapes; ++k)
      list.phi_sums[chunk * kShapes + k] = static_cast<double>(S::sum(sums[k]));
  }

  static V partial_load(const T* from, int lanes) {
    T lane[S::kLanes] = {};
    std::memcpy(lane, from, static_cast<size_t>(lanes) * sizeof(T));
    return S::load(lane);
  }
  static void partial_store(T* to, V v, int lanes) {
    std::memcpy(to, &v, static_cast<size_t>(lanes) * sizeof(T));
  }

  void gradients(const Workers& workers) {
    workers.run(4, [&](int64_t task, int64_t) {
      auto& list = lists[task / 2];
      if (task % 2 == 0 && grad_x) list.by_anchor.build(list.anchors, x_.count, list.count);
      if (task % 2 == 1 && (symmetric || grad_y)) list.by_other.build(list.others, y_.count, list.count);
    });
    constexpr int64_t rows = 16;
    if (grad_x)
      workers.run((x_.count + rows - 1) / rows, [&](int64_t b, int64_t) {
        for (int64_t i = b * rows; i < smaller(x_.count, (b + 1) * rows); ++i) {
          Source sources[4];
          int n = 0;
          for (auto& list : lists) {
            sources[n++] = source(list, list.by_anchor, list.others, y_, i);
            if (symmetric) sources[n++] = source(list, list.by_other, list.anchors, x_, i);
          }
          gather(sources, n, x_.row(i), grad_x + i * x_.dims);
        }
      });
    if (!symmetric && grad_y)
      workers.run((y_.count + rows - 1) / rows, [&](int64_t b, int64_t) {
        for (int64_t j = b * rows; j < smaller(y_.count, (b + 1) * rows); ++j) {
          Source sources[2];
          int n = 0;
          for (auto& list : lists) sources[n++] = source(list, list.by_other, list.anchors, x_, j);
          gather(sources, n, y_.row(j), grad_y + j * y_.dims);
        }
      });
  }

  // The pairs of one list in which a row has one role.
  struct Source {
    const int64_t *item, *end, *partner;
    const T* slopes;
    const Points<T>* partners;
  };
  static Source source(const MinedList<T>& list, const Groups& groups, const int64_t* partner,
                       const Points<T>& partners, int64_t row) {
    return {groups.order + groups.start[row], groups.order + groups.start[row + 1], partner, list.slopes,
            &partners};
  }

  // to = sum of slope * (own - partner), a few registers of dimensions at a time.
  static void gather(const Source* sources, int n_sources, const T* own, T* to) {
    const int64_t dims = sources[0].partners->dims, width = sources[0].partners->width;
    int64_t k = 0;
    for (; k + kWidest * S::kLanes <= width; k += kWidest * S::kLanes)
      gather_part<kWidest>(sources, n_sources, own, to, k, dims);
    for (; k < width; k += S::kLanes) gather_part<1>(sources, n_sources, own, to, k, dims);
  }
  static constexpr int kWidest = ALA_VECTOR_BYTES == 64 ? 8 : 4;

  template <int kRegisters>
  static void gather_part(const Source* sources, int n_sources, const T* own, T* to, int64_t k,
                          int64_t dims) {
    V sum[kRegisters] = {}, x[kRegisters];
    for (int m = 0; m < kRegisters; ++m) x[m] = S::load(own + k + m * S::kLanes);
    for (int s = 0; s < n_sources; ++s)
      for (const int64_t* item = sources[s].item; item != sources[s].end; ++item) {
        const V slope = S::set(sources[s].slopes[*item]);
        const T* partner = sources[s].partners->row(sources[s].partner[*item]) + k;
        for (int m = 0; m < kRegisters; ++m) sum[m] += slope * (x[m] - S::load(partner + m * S::kLanes));
      }
    for (int m = 0; m < kRegisters; ++m) {
      const int64_t at = k + m * S::kLanes;
      if (at < dims) partial_store(to + at, sum[m], static_cast<int>(smaller(S::kLanes, dims - at)));
    }
  }

  Points<T> x_, y_;
};

template <class T>
ala_status run_mined(Mined<T>& mined, const ala_matrix& x, const ala_matrix& y, const double* phi,
                     const Call& call) {
  Arena arena(call.workspace, call.workspace_bytes);
  mined.allocate(x, y, phi, arena);
  if (call.bytes) return *call.bytes = arena.bytes_with_slack(), ALA_OK;
  if (!arena.fits()) return ALA_WORKSPACE_TOO_SMALL;
  mined.run(x, y, Workers(call.executor));
  return ALA_OK;
}

template <class T, class Request>
Mined<T> mined_outputs(const Request& r) {
  Mined<T> mined;
  mined.symmetric = r.symmetric != 0;
  mined.grad_x = static_cast<T*>(r.grad_x);
  mined.grad_y = static_cast<T*>(r.grad_y);
  mined.grad_phi = static_cast<T*>(r.grad_phi);
  return mined;
}

template <class T>
ala_status mined_pairs(const ala_mined_pairs_request& r, const Call& call) {
  auto mined = mined_outputs<T>(r);
  mined.lists[0].count = r.n_positive;
  mined.lists[0].anchors = r.positive_anchors;
  mined.lists[0].others = r.positives;
  mined.lists[0].weights = static_cast<const T*>(r.positive_weights);
  mined.lists[0].values = static_cast<T*>(r.positive_values);
  mined.lists[1].count = r.n_negative;
  mined.lists[1].anchors = r.negative_anchors;
  mined.lists[1].others = r.negatives;
  mined.lists[1].weights = static_cast<const T*>(r.negative_weights);
  mined.lists[1].values = static_cast<T*>(r.negative_values);
  return run_mined(mined, r.x, r.y, r.phi, call);
}

template <class T>
ala_status mined_triplets(const ala_mined_triplets_request& r, const Call& call) {
  auto mined = mined_outputs<T>(r);
  for (auto& list : mined.lists) {
    list.count = r.n_triplets;
    list.anchors = r.anchors;
    list.weights = static_cast<const T*>(r.weights);
    list.values = static_cast<T*>(r.values);
  }
  mined.lists[0].others = r.positives;
  mined.lists[1].others = r.negatives;
  mined.lists[1].add_to_values = true;
  return run_mined(mined, r.x, r.y, r.phi, call);
}

}  // namespace ALA_ISA
}  // namespace ala
