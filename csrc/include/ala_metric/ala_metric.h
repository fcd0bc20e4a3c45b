/* ala_metric: fused pair kernels over raw pointers. Plain C; a C program links the C++ runtime and libm too.
 *
 * Every op takes a request struct, an executor (NULL: this thread only) and a workspace owned by the caller:
 *
 *     int64_t bytes;
 *     ala_distance_mixture_workspace(&request, executor, &bytes, &error);     // 1. ask
 *     void* workspace = malloc(bytes);                                        // 2. allocate, any alignment
 *     ala_distance_mixture(&request, executor, workspace, bytes, &error);     // 3. run
 *
 * The library allocates nothing, keeps no state but the chosen instruction set, never throws, and may be
 * called from many threads at once. Results have the same bits for any executor and number of threads.
 *
 * Notation: N anchors x [N, D]; M references y [M, D]. `symmetric` means that the references are the anchors
 * themselves: y is ignored, M = N, and the pair (i, i) is left out by index.
 *
 * Types: the compute type is double when x is f64, else float. Every `void*` vector or gradient below is a
 * contiguous array of the compute type, written completely (no need to clear it). x and y have one dtype.
 * Distances are Euclidean. NaN and Inf in the input come out as NaN or Inf, never as an error.
 *
 * Zero-initialise a request and set the fields in need: pointers marked "optional" may be NULL.
 */
#ifndef ALA_METRIC_H
#define ALA_METRIC_H

#include <stdint.h>

#if defined(_WIN32)
#define ALA_API __declspec(dllexport)
#else
#define ALA_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define ALA_METRIC_ABI 3 /* grows when a struct or signature below changes */
#define ALA_MIXTURE_SHAPES 5
#define ALA_MIXTURE_PHI 10

typedef enum ala_status {
  ALA_OK = 0,
  ALA_INVALID_ARGUMENT = 1,    /* a size, stride, dtype, index or parameter; the message names it */
  ALA_WORKSPACE_TOO_SMALL = 2, /* fewer bytes than the size query asked for */
  ALA_UNSUPPORTED_ISA = 3,     /* ALA_METRIC_ISA names an unknown set, or one that this CPU lacks */
  ALA_NO_CUDA = 4,             /* cuda.h: the library was built without CUDA */
  ALA_CUDA_FAILED = 5          /* cuda.h: the CUDA runtime reported an error; the message has its text */
} ala_status;

/* Filled when a status is not ALA_OK; every `error` parameter may be NULL. */
typedef struct ala_error {
  char message[256];
} ala_error;

typedef enum ala_dtype { ALA_F32 = 0, ALA_F64 = 1, ALA_F16 = 2, ALA_BF16 = 3 } ala_dtype;

/* Read-only view: element (r, c) at data[r * row_stride + c * col_stride], strides in elements, any sign, 0
 * allowed. */
typedef struct ala_matrix {
  const void* data; /* may be NULL when there are no elements */
  ala_dtype dtype;
  int64_t rows, cols;
  int64_t row_stride, col_stride;
} ala_matrix;

/* Who runs the work. `run` calls task(context, t) once for every t in [0, n_tasks) and returns when all have
 * returned; tasks may start in any order and on any threads, and never throw. A task that runs may wait for
 * others that have started, so each must be let run to its end. `threads`, 1 to 65,536, is the most tasks
 * worth starting at once; n_tasks never exceeds it. `self` is the caller's.
 * The same `threads` must be given to the size query and to the op. */
typedef void (*ala_task)(void* context, int64_t t);
typedef struct ala_executor {
  void* self;
  int64_t threads;
  void (*run)(void* self, int64_t n_tasks, ala_task task, void* context);
} ala_executor;

/* ---- The library itself ------------------------------------------------------------------------------- */

ALA_API const char* ala_metric_version(void); /* "0.1.0" */
ALA_API int32_t ala_metric_abi(void);         /* ALA_METRIC_ABI of the built library */

/* Name of the instruction set in use: "baseline", "avx2", "avx512", "amx" or "neon". The environment
 * variable ALA_METRIC_ISA (baseline | avx2 | avx512 | amx) forces one; it is read once, at the first call of
 * any function that needs it. Returns ALA_UNSUPPORTED_ISA, as every op then does, when the forced one cannot
 * run here; *name is then what was asked for. */
ALA_API ala_status ala_metric_isa(const char** name, ala_error* error);

/* ---- Pairwise distances ------------------------------------------------------------------------------- */

/* distances[i, j] = |x_i - y_j|, contiguous [N, M]; nearly equal rows are recomputed from their difference.
 * Symmetric: [N, N], bit-symmetric, exactly 0 on the diagonal. */
typedef struct ala_pairwise_distance_request {
  ala_matrix x, y;
  int32_t symmetric;
  void* distances;
} ala_pairwise_distance_request;

ALA_API ala_status ala_pairwise_distance_workspace(const ala_pairwise_distance_request*, const ala_executor*,
                                                   int64_t* bytes, ala_error* error);
ALA_API ala_status ala_pairwise_distance(const ala_pairwise_distance_request*, const ala_executor*,
                                         void* workspace, int64_t workspace_bytes, ala_error* error);

/* Given grad_distances = dL/d distances [N, M] (a view in the compute type), writes dL/dx [N, D] and dL/dy
 * [M, D]. The direction of a pair at distance 0 is 0. Symmetric: grad_x gets both roles of a row; grad_y is
 * not written. */
typedef struct ala_pairwise_distance_backward_request {
  ala_matrix x, y;
  int32_t symmetric;
  ala_matrix grad_distances;
  void* grad_x; /* optional */
  void* grad_y; /* optional */
} ala_pairwise_distance_backward_request;

ALA_API ala_status ala_pairwise_distance_backward_workspace(const ala_pairwise_distance_backward_request*,
                                                            const ala_executor*, int64_t* bytes,
                                                            ala_error* error);
ALA_API ala_status ala_pairwise_distance_backward(const ala_pairwise_distance_backward_request*,
                                                  const ala_executor*, void* workspace,
                                                  int64_t workspace_bytes, ala_error* error);

/* ---- Distance mixture (Eq. 9) ------------------------------------------------------------------------- */

/* loss[i] = mean over positives p of sum_k phi[k] F+_k(d_ip) + mean over negatives n of sum_k phi[5 + k]
 * F-_k(d_in); an empty mean is 0. Positives of i are the references with its label.
 *
 *     k   F+_k(d)                           F-_k(d)
 *     1   d^2                               0.5/d, continued by its tangent below d = 0.1
 *     2   d                                 2 - d
 *     3   sqrt(d + 0.01) - 0.1              -log(d/2), continued by its tangent below d = 0.1
 *     4   0.5 d^3                           2 exp(-2d)
 *     5   log(1 + exp(6 (d - 0.8))) / 6     log(1 + exp(6 (1.2 - d))) / 6
 *
 * Gradients are those of sum_i weights[i] * loss[i], from the same pass as the loss. */
typedef struct ala_distance_mixture_request {
  ala_matrix x, y;
  int32_t symmetric;
  const int64_t* x_labels; /* [N] */
  const int64_t* y_labels; /* [M]; ignored when symmetric */
  const double* phi;       /* [10], rounded to the compute type */
  const void* weights;     /* optional [N]; NULL: all ones */
  void* loss;              /* optional [N], not weighted */
  void* grad_x;            /* optional [N, D]; symmetric: includes the rows' role as references */
  void* grad_y;            /* optional [M, D]; not written when symmetric */
  void* grad_phi;          /* optional [10] */
  const int64_t* own;      /* optional [N]: the reference that is this anchor itself, and no pair of it; -1:
                              none. Ignored when symmetric. On CPU only. */
} ala_distance_mixture_request;

ALA_API ala_status ala_distance_mixture_workspace(const ala_distance_mixture_request*, const ala_executor*,
                                                  int64_t* bytes, ala_error* error);
ALA_API ala_status ala_distance_mixture(const ala_distance_mixture_request*, const ala_executor*,
                                        void* workspace, int64_t workspace_bytes, ala_error* error);

/* statistics[k] = mean of F+_k over all positive pairs, statistics[5 + k] = mean of F-_k over all negative
 * pairs; 0 where there is no such pair. */
typedef struct ala_distance_statistics_request {
  ala_matrix x, y;
  int32_t symmetric;
  const int64_t* x_labels; /* [N] */
  const int64_t* y_labels; /* [M]; ignored when symmetric */
  void* statistics;        /* [10] */
} ala_distance_statistics_request;

ALA_API ala_status ala_distance_statistics_workspace(const ala_distance_statistics_request*,
                                                     const ala_executor*, int64_t* bytes, ala_error* error);
ALA_API ala_status ala_distance_statistics(const ala_distance_statistics_request*, const ala_executor*,
                                           void* workspace, int64_t workspace_bytes, ala_error* error);

/* ---- Focal weighting (Eq. 10) ------------------------------------------------------------------------- */

/* loss[i] = log(1 + sum_p exp(phi[0] (d_ip - offset))) / phi[0] + log(1 + sum_n exp(phi[1] (offset - d_in)))
 * / phi[1]. phi > 0 and finite, or ALA_INVALID_ARGUMENT. Gradients are those of sum_i weights[i] * loss[i].
 *
 * lse [N, 2] holds each row's two logarithms, double whatever x is: their rounding would be that of all
 * gradients of a row. Forward: pass lse to keep them (lse_given = 0). Backward with other weights: pass the
 * kept ones with lse_given = 1; the first of the two passes over the pairs is then left out. */
typedef struct ala_focal_weighting_request {
  ala_matrix x, y;
  int32_t symmetric;
  const int64_t* x_labels; /* [N] */
  const int64_t* y_labels; /* [M]; ignored when symmetric */
  const double* phi;       /* [2] */
  double offset;
  const void* weights; /* optional [N]; NULL: all ones */
  int32_t lse_given;   /* 0: lse is written if not NULL; 1: lse is read and must not be NULL */
  double* lse;         /* optional [N, 2] */
  void* loss;          /* optional [N], not weighted */
  void* grad_x;        /* optional [N, D]; symmetric: includes the rows' role as references */
  void* grad_y;        /* optional [M, D]; not written when symmetric */
  void* grad_phi;      /* optional [2] */
} ala_focal_weighting_request;

ALA_API ala_status ala_focal_weighting_workspace(const ala_focal_weighting_request*, const ala_executor*,
                                                 int64_t* bytes, ala_error* error);
ALA_API ala_status ala_focal_weighting(const ala_focal_weighting_request*, const ala_executor*,
                                       void* workspace, int64_t workspace_bytes, ala_error* error);

/* ---- Mined pairs and triplets ------------------------------------------------------------------------- */

/* Values of listed pairs by their direct differences, with no [P, D] temporaries:
 *   positive_values[t] = sum_k phi[k]     F+_k(|x_a - y_p|),  a = positive_anchors[t], p = positives[t]
 *   negative_values[t] = sum_k phi[5 + k] F-_k(|x_a - y_n|),  a = negative_anchors[t], n = negatives[t]
 * Gradients are those of sum_t positive_weights[t] positive_values[t] + sum_t negative_weights[t]
 * negative_values[t]. An index outside [0, N) or [0, M) is ALA_INVALID_ARGUMENT. Symmetric: y is x, and
 * grad_x gets both roles. */
typedef struct ala_mined_pairs_request {
  ala_matrix x, y;
  int32_t symmetric;
  const double* phi; /* [10] */
  int64_t n_positive, n_negative;
  const int64_t *positive_anchors, *positives; /* [n_positive] each */
  const int64_t *negative_anchors, *negatives; /* [n_negative] each */
  const void* positive_weights;                /* optional [n_positive]; NULL: all ones */
  const void* negative_weights;                /* optional [n_negative]; NULL: all ones */
  void* positive_values;                       /* optional [n_positive], not weighted */
  void* negative_values;                       /* optional [n_negative], not weighted */
  void* grad_x;                                /* optional [N, D] */
  void* grad_y;                                /* optional [M, D]; not written when symmetric */
  void* grad_phi;                              /* optional [10] */
} ala_mined_pairs_request;

ALA_API ala_status ala_mined_pairs_workspace(const ala_mined_pairs_request*, const ala_executor*,
                                             int64_t* bytes, ala_error* error);
ALA_API ala_status ala_mined_pairs(const ala_mined_pairs_request*, const ala_executor*, void* workspace,
                                   int64_t workspace_bytes, ala_error* error);

/* values[t] = sum_k phi[k] F+_k(|x_a - y_p|) + sum_k phi[5 + k] F-_k(|x_a - y_n|) for the listed (a, p, n);
 * gradients of sum_t weights[t] values[t]. Otherwise as for pairs. */
typedef struct ala_mined_triplets_request {
  ala_matrix x, y;
  int32_t symmetric;
  const double* phi; /* [10] */
  int64_t n_triplets;
  const int64_t *anchors, *positives, *negatives; /* [n_triplets] each */
  const void* weights;                            /* optional [n_triplets]; NULL: all ones */
  void* values;                                   /* optional [n_triplets], not weighted */
  void* grad_x;                                   /* optional [N, D] */
  void* grad_y;                                   /* optional [M, D]; not written when symmetric */
  void* grad_phi;                                 /* optional [10] */
} ala_mined_triplets_request;

ALA_API ala_status ala_mined_triplets_workspace(const ala_mined_triplets_request*, const ala_executor*,
                                                int64_t* bytes, ala_error* error);
ALA_API ala_status ala_mined_triplets(const ala_mined_triplets_request*, const ala_executor*, void* workspace,
                                      int64_t workspace_bytes, ala_error* error);

/* ---- Ranks of positives -------------------------------------------------------------------------------- */

/* For every query x_i the ranks of its positives - the references with its label - among all references: rank
 * of the j-th nearest positive = j + number of negatives nearer than it. Pessimistic: negatives at the same
 * distance are nearer; optimistic: they are not. Distances are compared as by double arithmetic on the given
 * numbers; equal rows tie exactly. "cosine" orders by 1 - cosine, where a zero row has cosine 0 with
 * everything.
 *
 * offsets[i + 1] - offsets[i] must be the number of positives of i (the query itself not counted when
 * symmetric), and offsets[0] = 0; ranks of i, ascending, go to [offsets[i], offsets[i + 1]). With first_only:
 * one rank per query, that of its nearest positive, 0 where there is none. NaN, Inf and other offsets are
 * ALA_INVALID_ARGUMENT. */
typedef struct ala_positive_ranks_request {
  ala_matrix x, y;
  int32_t symmetric;
  const int64_t* x_labels; /* [N] */
  const int64_t* y_labels; /* [M]; ignored when symmetric */
  int32_t cosine;          /* 0: Euclidean */
  int32_t first_only;
  const int64_t* offsets; /* [N + 1] */
  int64_t* pessimistic;   /* [offsets[N]], or [N] if first_only */
  int64_t* optimistic;    /* the same */
} ala_positive_ranks_request;

ALA_API ala_status ala_positive_ranks_workspace(const ala_positive_ranks_request*, const ala_executor*,
                                                int64_t* bytes, ala_error* error);
ALA_API ala_status ala_positive_ranks(const ala_positive_ranks_request*, const ala_executor*, void* workspace,
                                      int64_t workspace_bytes, ala_error* error);

#ifdef __cplusplus
}
#endif

#endif
