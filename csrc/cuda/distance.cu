// Pairwise distances and their backward.
#include "cuda/pass.h"

namespace ala::cuda {

// The lower half becomes the mirror of the upper: symmetric to the bit whatever the BLAS did.
template <class T>
__global__ void __launch_bounds__(kRowThreads) mirror(T* d, int64_t n) {
  const int64_t i = blockIdx.x;
  for (int64_t j = threadIdx.x; j < i; j += kRowThreads) d[i * n + j] = d[j * n + i];
}

template <class T>
void pairwise_distance(Run& run, const ala_pairwise_distance_request& r) {
  Points<T> points;
  points.pack(run, r);
  auto* distances = static_cast<T*>(r.distances);
  run_strips(run, points.pairs(), DistanceOp<T>{}, Results<T>{}, distances);
  if (points.symmetric && run.context.multiply)
    run.start(mirror<T>, points.x.count, kRowThreads, 0, distances, points.x.count);
}

template <class T>
void pairwise_distance_backward(Run& run, const ala_pairwise_distance_backward_request& r) {
  Points<T> points;
  points.pack(run, r);
  const auto& g = r.grad_distances;
  const auto* grad = static_cast<const T*>(g.data);
  if (r.grad_x)
    run_pass(run, points.pairs(),
             DistanceGradientOp<T>{grad, g.row_stride, g.col_stride, int32_t{points.symmetric}},
             Results<T>{nullptr, static_cast<T*>(r.grad_x), nullptr});
  if (r.grad_y && !points.symmetric)
    run_pass(run, points.turned(), DistanceGradientOp<T>{grad, g.col_stride, g.row_stride, 0},
             Results<T>{nullptr, static_cast<T*>(r.grad_y), nullptr});
}

}  // namespace ala::cuda

ALA_DEFINE_CUDA_OP(pairwise_distance, ala_pairwise_distance_request)
ALA_DEFINE_CUDA_OP(pairwise_distance_backward, ala_pairwise_distance_backward_request)
