// The mixture on listed pairs and triplets: rows are gathered inside the kernels, nothing [P, D] is stored.
#include "cuda/pass.h"

namespace ala::cuda {

constexpr int kMinedThreads = 256, kMinedWarps = kMinedThreads / kWarp;
constexpr int kMinedOwn = 8, kMinedDims = kWarp * kMinedOwn;  // dimensions of a lane and of a warp

struct PairList {
  const int64_t *first, *second;
  int64_t count;
};

// value = sum phi_k F_k(|x_a - y_o|) and g = weight * slope / distance of each pair; one warp per pair. An
// index out of range makes the value NaN and pulls at nothing.
template <class T, bool kPositive>
__global__ void __launch_bounds__(kMinedThreads)
    mined_values(Rows<T> x, Rows<T> y, PairList list, const double* phi, const T* weights, int32_t add,
                 T* values, T* g, double* sums) {
  using M = ScalarMath<T>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kMinedWarps + threadIdx.x / kWarp;
  if (t >= list.count) return;
  const int64_t a = list.first[t], o = list.second[t];
  const bool inside = a >= 0 && a < x.count && o >= 0 && o < y.count;
  const T square = inside ? warp_square(x.data + a * x.pitch, y.data + o * y.pitch, x.dims, lane) : T(NAN);
  if (lane != 0) return;  // no warp operations below
  const auto at = distance_of(square, T(0));
  Shapes<M> f;
  if constexpr (kPositive)
    f = ala::ALA_ISA::increasing_shapes<M>(at.d);
  else
    f = ala::ALA_ISA::decreasing_shapes<M>(at.d, at.inverse);
  const T weight = weights ? weights[t] : T(1);
  T value = 0, slope = 0;
  for (int k = 0; k < kShapes; ++k) {
    const T p = static_cast<T>(phi[k]);
    value += p * f.value[k];
    slope += p * f.slope[k];
    if (sums) sums[t * kShapes + k] = static_cast<double>(weight * f.value[k]);
  }
  if (values) values[t] = (add ? values[t] : T(0)) + value;
  if (g) g[t] = inside ? weight * slope * at.inverse : T(0);
}

// grad_i (+)= sum of g_t (own_i - other_t) over the pairs t of row i, in the order of the list; one warp per
// row and piece of kMinedDims dimensions.
template <class T>
__global__ void __launch_bounds__(kMinedThreads)
    mined_gradient(Rows<T> own, Rows<T> other, PairList list, const T* g, int32_t add, int64_t pieces,
                   T* grad) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kMinedWarps + threadIdx.x / kWarp;
  const int64_t i = item / pieces;
  const int base = static_cast<int>(item % pieces) * kMinedDims + lane;
  if (i >= own.count) return;
  T mine[kMinedOwn], sum[kMinedOwn];
#pragma unroll
  for (int q = 0; q < kMinedOwn; ++q) {
    const int k = base + q * kWarp;
    mine[q] = k < own.dims ? own.data[i * own.pitch + k] : T(0);
    sum[q] = 0;
  }
  for (int64_t t0 = 0; t0 < list.count; t0 += kWarp) {
    const bool hit = t0 + lane < list.count && list.first[t0 + lane] == i;
    for (unsigned left = __ballot_sync(kAllLanes, hit); left; left &= left - 1) {
      const int64_t t = t0 + __ffs(static_cast<int>(left)) - 1, o = list.second[t];
      if (o < 0 || o >= other.count) continue;
      const T pull = g[t];
#pragma unroll
      for (int q = 0; q < kMinedOwn; ++q) {
        const int k = base + q * kWarp;
        if (k < own.dims) sum[q] += pull * (mine[q] - other.data[o * other.pitch + k]);
      }
    }
  }
#pragma unroll
  for (int q = 0; q < kMinedOwn; ++q) {
    const int k = base + q * kWarp;
    if (k < own.dims) grad[i * own.dims + k] = (add ? grad[i * own.dims + k] : T(0)) + sum[q];
  }
}

// All that one list of a request asks for. `first` of a call writes results, later lists add to them.
template <class T>
class MinedCall {
 public:
  template <class Request>
  MinedCall(Run& run, const Request& r) : run_(run), phi_(r.phi) {
    points_.pack(run, r);
    grad_x_ = static_cast<T*>(r.grad_x);
    grad_y_ = points_.symmetric ? nullptr : static_cast<T*>(r.grad_y);
    total_ = r.grad_phi ? run.memory.template array<double>(10) : nullptr;
    if (total_) run.clear(total_, 80);
  }
  template <bool kPositive>
  void list(const int64_t* anchors, const int64_t* others, int64_t count, const void* weights, void* values,
            bool add_values) {
    const PairList pairs{anchors, others, count};
    T* g = grad_x_ || grad_y_ ? run_.memory.template array<T>(count) : nullptr;
    double* sums = total_ ? run_.memory.template array<double>(count * kShapes) : nullptr;
    const int first = kPositive ? 0 : kShapes;
    run_.start(mined_values<T, kPositive>, ceil_div<int64_t>(count, kMinedWarps), kMinedThreads, 0, points_.x,
               points_.y, pairs, phi_ + first, static_cast<const T*>(weights), int32_t{add_values},
               static_cast<T*>(values), g, sums);
    if (sums)
      run_.start(add_sums<double>, kShapes, kFinishThreads, kFinishThreads / kWarp * 8, sums, count, kShapes,
                 total_ + first);
    if (grad_x_) gradient(points_.x, points_.y, pairs, g, grad_x_, wrote_x_);
    const PairList turned{others, anchors, count};
    if (grad_x_ && points_.symmetric) gradient(points_.x, points_.x, turned, g, grad_x_, wrote_x_);
    if (grad_y_) gradient(points_.y, points_.x, turned, g, grad_y_, wrote_y_);
  }
  void finish(void* grad_phi) {
    if (total_) run_.start(write_sums<T>, 1, kWarp, 0, total_, 10, static_cast<T*>(grad_phi));
  }

 private:
  void gradient(const Rows<T>& own, const Rows<T>& other, const PairList& list, const T* g, T* grad,
                bool& wrote) {
    const int64_t pieces = ceil_div<int64_t>(own.dims, kMinedDims);
    run_.start(mined_gradient<T>, ceil_div<int64_t>(own.count * pieces, kMinedWarps), kMinedThreads, 0, own,
               other, list, g, int32_t{wrote}, pieces, grad);
    wrote = true;
  }

  Run& run_;
  const double* phi_;
  Points<T> points_;
  T *grad_x_, *grad_y_;
  double* total_;
  bool wrote_x_ = false, wrote_y_ = false;
};

template <class T>
void mined_pairs(Run& run, const ala_mined_pairs_request& r) {
  MinedCall<T> call(run, r);
  call.template list<true>(r.positive_anchors, r.positives, r.n_positive, r.positive_weights,
                           r.positive_values, false);
  call.template list<false>(r.negative_anchors, r.negatives, r.n_negative, r.negative_weights,
                            r.negative_values, false);
  call.finish(r.grad_phi);
}

template <class T>
void mined_triplets(Run& run, const ala_mined_triplets_request& r) {
  MinedCall<T> call(run, r);
  call.template list<true>(r.anchors, r.positives, r.n_triplets, r.weights, r.values, false);
  call.template list<false>(r.anchors, r.negatives, r.n_triplets, r.weights, r.values, true);
  call.finish(r.grad_phi);
}

}  // namespace ala::cuda

ALA_DEFINE_CUDA_OP(mined_pairs, ala_mined_pairs_request)
ALA_DEFINE_CUDA_OP(mined_triplets, ala_mined_triplets_request)
