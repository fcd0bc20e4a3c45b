// Distance mixture (Eq. 9) and distance statistics.
#include "cuda/pass.h"

namespace ala::cuda {

// positives[i] += references of the label of anchor i in one span of them, itself left out if symmetric.
constexpr int kCountThreads = 256, kCountSpan = 4096;

static __global__ void __launch_bounds__(kCountThreads)
    count_positives(const int64_t* labels, const int64_t* ref_labels, int64_t n, int64_t m, int32_t symmetric,
                    int64_t spans, unsigned long long* positives) {
  ALA_SHARED(shared);
  auto* tile = reinterpret_cast<int64_t*>(shared);
  const int64_t block = blockIdx.x, span = block % spans;
  const int64_t i = block / spans * kCountThreads + threadIdx.x;
  const int64_t end = (span + 1) * kCountSpan < m ? (span + 1) * kCountSpan : m;
  const int64_t mine = i < n ? labels[i] : 0;
  unsigned found = 0;
  for (int64_t j0 = span * kCountSpan; j0 < end; j0 += kCountThreads) {
    if (j0 + threadIdx.x < end) tile[threadIdx.x] = ref_labels[j0 + threadIdx.x];
    __syncthreads();
    const int width = static_cast<int>(end - j0 < kCountThreads ? end - j0 : kCountThreads);
    for (int j = 0; j < width; ++j) found += tile[j] == mine;
    __syncthreads();
  }
  if (i < n) {
    if (symmetric && i >= span * kCountSpan && i < end) --found;
    if (found) atomicAdd(positives + i, static_cast<unsigned long long>(found));
  }
}

// Of every anchor: 1 / |N_i| and 1 / |P_i| (0 for an empty set), and both times its weight.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    pair_weights(const unsigned long long* positives, const T* weights, int64_t n, int64_t others, T* mean,
                 T* weighted) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (i >= n) return;
  const auto found = static_cast<int64_t>(positives[i]);
  const T weight = weights ? weights[i] : T(1);
  const int64_t size[2] = {others - found, found};
  for (int kind = 0; kind < 2; ++kind) {
    const T one = size[kind] > 0 ? T(1) / static_cast<T>(size[kind]) : T(0);
    mean[kind * n + i] = one;
    weighted[kind * n + i] = size[kind] > 0 ? one * weight : T(0);
  }
}

// Number of positives of every anchor [N], by comparing all labels: no sorting, no hashing, no waiting.
template <class T, class Request>
unsigned long long* count(Run& run, Points<T>& points, const Request& r) {
  points.x_labels = r.x_labels;
  points.y_labels = points.symmetric ? r.x_labels : r.y_labels;
  const int64_t n = points.x.count, m = points.y.count, spans = ceil_div<int64_t>(m, kCountSpan);
  auto* positives = run.memory.template array<unsigned long long>(n);
  run.clear(positives, n * 8);
  run.start(count_positives, ceil_div<int64_t>(n, kCountThreads) * spans, kCountThreads, kCountThreads * 8,
            points.x_labels, points.y_labels, n, m, int32_t{points.symmetric}, spans, positives);
  return positives;
}

template <class T>
void distance_mixture(Run& run, const ala_distance_mixture_request& r) {
  Points<T> points;
  points.pack(run, r);
  const int64_t n = points.x.count;
  const auto* positives = count(run, points, r);
  T* mean = run.memory.array<T>(2 * n);
  T* weighted = run.memory.array<T>(2 * n);
  double* total = r.grad_phi ? run.memory.array<double>(10) : nullptr;
  if (total) run.clear(total, 10 * 8);
  run.start(pair_weights<T>, ceil_div<int64_t>(n, kRowThreads), kRowThreads, 0, positives,
            static_cast<const T*>(r.weights), n, points.y.count - points.symmetric, mean, weighted);

  const Results<T> results{static_cast<T*>(r.loss), static_cast<T*>(r.grad_x), total};
  const T* col_weight = points.symmetric ? weighted : nullptr;
  if (total)
    run_pass(run, points.pairs(), MixtureOp<T, true>{r.phi, mean, weighted, col_weight}, results);
  else if (results.values || results.grad)
    run_pass(run, points.pairs(), MixtureOp<T, false>{r.phi, mean, weighted, col_weight}, results);
  if (r.grad_y && !points.symmetric)
    run_pass(run, points.turned(), MixtureOp<T, false>{r.phi, nullptr, nullptr, weighted},
             Results<T>{nullptr, static_cast<T*>(r.grad_y), nullptr});
  if (total) run.start(write_sums<T>, 1, kWarp, 0, total, 10, static_cast<T*>(r.grad_phi));
}

template <class T>
__global__ void __launch_bounds__(kRowThreads) fill_ones(T* to, int64_t count) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (at < count) to[at] = T(1);
}

// statistics[k] = total[k] / number of pairs of its kind; one block.
template <class T>
__global__ void __launch_bounds__(kFinishThreads)
    divide_by_pairs(const unsigned long long* positives, int64_t n, int64_t others, const double* total,
                    T* statistics) {
  ALA_SHARED(memory);
  auto* found = reinterpret_cast<unsigned long long*>(memory);
  unsigned long long mine = 0;
  for (int64_t i = threadIdx.x; i < n; i += kFinishThreads) mine += positives[i];
  found[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x < 10) {
    unsigned long long all = 0;
    for (int t = 0; t < kFinishThreads; ++t) all += found[t];
    const bool positive = threadIdx.x < kShapes;
    const double pairs =
        positive ? static_cast<double>(all)
                 : static_cast<double>(n) * static_cast<double>(others) - static_cast<double>(all);
    statistics[threadIdx.x] = pairs > 0 ? static_cast<T>(total[threadIdx.x] / pairs) : T(0);
  }
}

template <class T>
void distance_statistics(Run& run, const ala_distance_statistics_request& r) {
  Points<T> points;
  points.pack(run, r);
  const int64_t n = points.x.count;
  const auto* positives = count(run, points, r);
  T* ones = run.memory.array<T>(2 * n);
  double* total = run.memory.array<double>(10);
  run.clear(total, 10 * 8);
  run.start(fill_ones<T>, ceil_div<int64_t>(2 * n, kRowThreads), kRowThreads, 0, ones, 2 * n);
  run_pass(run, points.pairs(), MixtureOp<T, true>{nullptr, nullptr, ones, nullptr},
           Results<T>{nullptr, nullptr, total});
  run.start(divide_by_pairs<T>, 1, kFinishThreads, kFinishThreads * 8, positives, n,
            points.y.count - points.symmetric, total, static_cast<T*>(r.statistics));
}

}  // namespace ala::cuda

int32_t ala_cuda_built(void) {
  return 1;
}
ala_status ala_cuda_set_device(int32_t device, int32_t* previous) {
  int before = 0;
  if (cudaGetDevice(&before) != cudaSuccess) return ALA_CUDA_FAILED;
  *previous = before;
  if (before != device && cudaSetDevice(device) != cudaSuccess) return ALA_CUDA_FAILED;
  return ALA_OK;
}
ALA_DEFINE_CUDA_OP(distance_mixture, ala_distance_mixture_request)
ALA_DEFINE_CUDA_OP(distance_statistics, ala_distance_statistics_request)
