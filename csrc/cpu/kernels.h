// The ops of one instruction set. Each runs the op, or, with `bytes` set, only answers the workspace query.
#pragma once

#include "ala_metric/ala_metric.h"

namespace ala {

struct Call {
  const ala_executor* executor;
  void* workspace;
  int64_t workspace_bytes;
  int64_t* bytes;  // not NULL: size query
};

struct Kernels {
  const char* name;
  ala_status (*pairwise_distance)(const ala_pairwise_distance_request&, const Call&);
  ala_status (*pairwise_distance_backward)(const ala_pairwise_distance_backward_request&, const Call&);
  ala_status (*distance_mixture)(const ala_distance_mixture_request&, const Call&);
  ala_status (*distance_statistics)(const ala_distance_statistics_request&, const Call&);
  ala_status (*focal_weighting)(const ala_focal_weighting_request&, const Call&);
  ala_status (*mined_pairs)(const ala_mined_pairs_request&, const Call&);
  ala_status (*mined_triplets)(const ala_mined_triplets_request&, const Call&);
  ala_status (*positive_ranks)(const ala_positive_ranks_request&, const Call&);
};

extern const Kernels kKernelsBaseline;
#if defined(__x86_64__)
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512;
#endif
#if defined(ALA_HAS_AMX)
extern const Kernels kKernelsAmx;
#endif

}  // namespace ala
