// The CUDA part of the C API in a build without CUDA: everything is there and says so.
#include <cstdio>

#include "ala_metric/cuda.h"

namespace {
ala_status refuse(ala_error* error) {
  if (error) std::snprintf(error->message, sizeof error->message, "the library was built without CUDA");
  return ALA_NO_CUDA;
}
}  // namespace

int32_t ala_cuda_built(void) {
  return 0;
}
ala_status ala_cuda_set_device(int32_t, int32_t*) {
  return ALA_NO_CUDA;
}

#define ALA_ABSENT(op, request)                                                                           \
  ala_status ala_cuda_##op##_workspace(const request*, const ala_cuda_context*, int64_t*, ala_error* e) { \
    return refuse(e);                                                                                     \
  }                                                                                                       \
  ala_status ala_cuda_##op(const request*, const ala_cuda_context*, void*, int64_t, ala_error* e) {       \
    return refuse(e);                                                                                     \
  }
ALA_ABSENT(pairwise_distance, ala_pairwise_distance_request)
ALA_ABSENT(pairwise_distance_backward, ala_pairwise_distance_backward_request)
ALA_ABSENT(distance_mixture, ala_distance_mixture_request)
ALA_ABSENT(distance_statistics, ala_distance_statistics_request)
ALA_ABSENT(focal_weighting, ala_focal_weighting_request)
ALA_ABSENT(mined_pairs, ala_mined_pairs_request)
ALA_ABSENT(mined_triplets, ala_mined_triplets_request)
ALA_ABSENT(positive_ranks, ala_cuda_positive_ranks_request)
