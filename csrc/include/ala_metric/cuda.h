/* ala_metric on CUDA: the requests of ala_metric.h, with two differences.
 *
 *   - Every pointer of a request is device memory of the current device, `phi` (double) and `offsets` too.
 *   - Nothing waits: the work is queued on a stream, nothing is allocated, and a call may be captured in a
 *     CUDA graph. Values on the device are therefore not examined: an index out of range gives NaN.
 *
 * Results have the same bits in every run on one kind of GPU. Present where the library was built for CUDA;
 * ala_cuda_built() tells. */
#ifndef ALA_METRIC_CUDA_H
#define ALA_METRIC_CUDA_H

#include "ala_metric/ala_metric.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The lowest precision that the products X Y^T and G Y of rows of f32, f16 or bf16 may be taken in. The
 * numbers multiplied are then rounded to nearest, to 11 (TF32) or 8 (BF16) bits of significand; norms are
 * those of the rounded rows. Sums, functions, near pairs and what follows a product stay f32. Listed pairs
 * and ranks have no such products and are what they are in f32. */
typedef enum ala_precision {
  ALA_PRECISION_F32 = 0,
  ALA_PRECISION_TF32 = 1,
  ALA_PRECISION_BF16 = 2
} ala_precision;

/* Row-major C = A B, or A B^T: C [rows, cols], A [rows, inner], B [inner, cols] or [cols, inner], of f32 or
 * f64, lda etc. in elements. Queues the product on the stream. F32 must not be lowered to TF32; for the
 * others A and B were rounded before, so that a unit of that precision gets them whole. Returns 0, or an
 * error. */
typedef int32_t (*ala_cuda_multiply)(void* self, void* stream, ala_dtype dtype, ala_precision precision,
                                     int32_t transpose_b, int64_t rows, int64_t cols, int64_t inner,
                                     const void* a, int64_t lda, const void* b, int64_t ldb, void* c,
                                     int64_t ldc);

typedef enum ala_cuda_path { ALA_PATH_AUTO = 0, ALA_PATH_FUSED = 1, ALA_PATH_STRIPS = 2 } ala_cuda_path;

/* Zero-initialise and set what is needed. */
typedef struct ala_cuda_context {
  void* stream;               /* a cudaStream_t; NULL: the default stream */
  ala_cuda_multiply multiply; /* a BLAS; NULL: the library's own product, exact but slower */
  void* multiply_self;
  int64_t strip_bytes; /* memory for one strip of pairs; 0: 32 MiB */
  int32_t path;        /* an ala_cuda_path; AUTO: fused where it fits (f32, D <= 128), else strips */
  int32_t precision;   /* an ala_precision; TF32 and BF16 run in strips, and not for f64 */
} ala_cuda_context;

ALA_API int32_t ala_cuda_built(void); /* 1, or 0: every op below then returns ALA_NO_CUDA */
/* Makes a device current for this thread; *previous gets the one before. */
ALA_API ala_status ala_cuda_set_device(int32_t device, int32_t* previous);

#define ALA_DECLARE_CUDA_OP(op)                                                                         \
  ALA_API ala_status ala_cuda_##op##_workspace(const ala_##op##_request*, const ala_cuda_context*,      \
                                               int64_t* bytes, ala_error* error);                       \
  ALA_API ala_status ala_cuda_##op(const ala_##op##_request*, const ala_cuda_context*, void* workspace, \
                                   int64_t workspace_bytes, ala_error* error);

ALA_DECLARE_CUDA_OP(pairwise_distance)
ALA_DECLARE_CUDA_OP(pairwise_distance_backward)
ALA_DECLARE_CUDA_OP(distance_mixture)
ALA_DECLARE_CUDA_OP(distance_statistics)
ALA_DECLARE_CUDA_OP(focal_weighting)
ALA_DECLARE_CUDA_OP(mined_pairs)
ALA_DECLARE_CUDA_OP(mined_triplets)
/* What cannot be read from the device comes with the request. */
typedef struct ala_cuda_positive_ranks_request {
  ala_positive_ranks_request host;
  int64_t positives; /* offsets[N] */
} ala_cuda_positive_ranks_request;
ALA_API ala_status ala_cuda_positive_ranks_workspace(const ala_cuda_positive_ranks_request*,
                                                     const ala_cuda_context*, int64_t* bytes,
                                                     ala_error* error);
ALA_API ala_status ala_cuda_positive_ranks(const ala_cuda_positive_ranks_request*, const ala_cuda_context*,
                                           void* workspace, int64_t workspace_bytes, ala_error* error);

#ifdef __cplusplus
}
#endif

#endif
