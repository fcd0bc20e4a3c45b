// AMX serves the ops that multiply tiles of floats; the rest is AVX-512's.
#define ALA_ISA isa_amx
#include "cpu/distance.h"
#include "cpu/focal.h"
#include "cpu/kernels.h"
#include "cpu/mixture.h"
#include "cpu/ranks.h"

namespace ala {
namespace {

template <class Request>
using Op = ala_status (*)(const Request&, const Call&);

template <class Request, Op<Request> as_float, Op<Request> Kernels::* otherwise>
ala_status by_dtype(const Request& request, const Call& call) {
  return request.x.dtype == ALA_F64 ? (kKernelsAvx512.*otherwise)(request, call) : as_float(request, call);
}

}  // namespace

#define ALA_BY_DTYPE(op) by_dtype<ala_##op##_request, ALA_ISA::op<float>, &Kernels::op>
const Kernels kKernelsAmx = {
    "amx",
    ALA_BY_DTYPE(pairwise_distance),
    ALA_BY_DTYPE(pairwise_distance_backward),
    ALA_BY_DTYPE(distance_mixture),
    ALA_BY_DTYPE(distance_statistics),
    ALA_BY_DTYPE(focal_weighting),
    kKernelsAvx512.mined_pairs,
    kKernelsAvx512.mined_triplets,
    ALA_ISA::positive_ranks,
};
#undef ALA_BY_DTYPE

}  // namespace ala
