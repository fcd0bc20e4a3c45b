// The C API: checks the requests and hands them to the kernels of the chosen instruction set. No arithmetic.
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "ala_metric/ala_metric.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace {

// The first fault found; ALA_OK as long as there is none.
class Check {
 public:
  explicit Check(ala_error* error) : error_(error) {}

  __attribute__((format(printf, 3, 4))) bool fail(ala_status status, const char* format, ...) {
    if (status_ != ALA_OK) return false;
    status_ = status;
    if (error_) {
      va_list arguments;
      va_start(arguments, format);
      std::vsnprintf(error_->message, sizeof error_->message, format, arguments);
      va_end(arguments);
    }
    return false;
  }
  ala_status status() const { return status_; }
  bool ok() const { return status_ == ALA_OK; }

  void required(const void* pointer, const char* name) {
    if (!pointer) fail(ALA_INVALID_ARGUMENT, "%s must not be NULL", name);
  }

  void matrix(const ala_matrix& m, const char* name) {
    int32_t dtype;  // a C caller may have stored anything
    std::memcpy(&dtype, &m.dtype, sizeof dtype);
    if (dtype < ALA_F32 || dtype > ALA_BF16)
      fail(ALA_INVALID_ARGUMENT, "%s.dtype must be an ala_dtype, got %d", name, static_cast<int>(dtype));
    if (m.rows < 0 || m.cols < 0)
      fail(ALA_INVALID_ARGUMENT, "%s must have rows, cols >= 0, got %lld, %lld", name,
           static_cast<long long>(m.rows), static_cast<long long>(m.cols));
    if (m.rows > kMostRows)
      fail(ALA_INVALID_ARGUMENT, "%s must have at most 2^31 - 1025 rows, got %lld", name,
           static_cast<long long>(m.rows));
    if (ok() && m.rows > 0 && m.cols > kMostNumbers / m.rows)
      fail(ALA_INVALID_ARGUMENT, "%s must have at most 2^50 numbers, got %lld rows of %lld", name,
           static_cast<long long>(m.rows), static_cast<long long>(m.cols));
    if (ok() && m.rows > 0 && m.cols > 0) required(m.data, name);
  }

  void points(const ala_matrix& x, const ala_matrix& y, bool symmetric) {
    matrix(x, "x");
    if (symmetric) return;
    matrix(y, "y");
    if (ok() && y.dtype != x.dtype) fail(ALA_INVALID_ARGUMENT, "y.dtype must be that of x");
    if (y.cols != x.cols)
      fail(ALA_INVALID_ARGUMENT, "y must have as many columns as x (%lld), got %lld",
           static_cast<long long>(x.cols), static_cast<long long>(y.cols));
  }

  template <class Request>
  void labelled(const Request& r) {
    points(r.x, r.y, r.symmetric);
    if (ok() && r.x.rows > 0) required(r.x_labels, "x_labels");
    if (ok() && !r.symmetric && r.y.rows > 0) required(r.y_labels, "y_labels");
  }

  void indices(const int64_t* list, int64_t count, int64_t rows, const char* name, int64_t lowest = 0) {
    if (!ok() || count == 0) return;
    if (!list) {
      required(list, name);
      return;
    }
    for (int64_t t = 0; t < count; ++t)
      if (list[t] < lowest || list[t] >= rows) {
        fail(ALA_INVALID_ARGUMENT, "%s[%lld] must be in [%lld, %lld), got %lld", name,
             static_cast<long long>(t), static_cast<long long>(lowest), static_cast<long long>(rows),
             static_cast<long long>(list[t]));
        return;
      }
  }

  void count(int64_t n, const char* name) {
    if (n < 0 || n > kMostNumbers)
      fail(ALA_INVALID_ARGUMENT, "%s must be in [0, 2^50], got %lld", name, static_cast<long long>(n));
  }

 private:
  static constexpr int64_t kMostRows = (int64_t{1} << 31) - 1025;
  static constexpr int64_t kMostNumbers = int64_t{1} << 50;
  ala_error* error_;
  ala_status status_ = ALA_OK;
};

void check(Check& c, const ala_pairwise_distance_request& r, bool) {
  c.points(r.x, r.y, r.symmetric);
  if (c.ok() && r.x.rows > 0 && (r.symmetric || r.y.rows > 0)) c.required(r.distances, "distances");
}

void check(Check& c, const ala_pairwise_distance_backward_request& r, bool) {
  c.points(r.x, r.y, r.symmetric);
  const int64_t references = r.symmetric ? r.x.rows : r.y.rows;
  if (!c.ok()) return;
  if (r.grad_distances.rows != r.x.rows || r.grad_distances.cols != references)
    c.fail(ALA_INVALID_ARGUMENT, "grad_distances must be [%lld, %lld], got [%lld, %lld]",
           static_cast<long long>(r.x.rows), static_cast<long long>(references),
           static_cast<long long>(r.grad_distances.rows), static_cast<long long>(r.grad_distances.cols));
  if (r.grad_distances.dtype != (r.x.dtype == ALA_F64 ? ALA_F64 : ALA_F32))
    c.fail(ALA_INVALID_ARGUMENT, "grad_distances.dtype must be the compute type: f64 for f64, else f32");
  c.matrix(r.grad_distances, "grad_distances");
}

void check(Check& c, const ala_distance_mixture_request& r, bool run) {
  c.labelled(r);
  c.required(r.phi, "phi");
  if (run && r.own && !r.symmetric) c.indices(r.own, r.x.rows, r.y.rows, "own", -1);
}

void check(Check& c, const ala_distance_statistics_request& r, bool) {
  c.labelled(r);
  c.required(r.statistics, "statistics");
}

void check(Check& c, const ala_focal_weighting_request& r, bool) {
  c.labelled(r);
  c.required(r.phi, "phi");
  if (!c.ok()) return;
  const bool is_double = r.x.dtype == ALA_F64;
  const auto rounded = [&](double v) { return is_double ? v : static_cast<double>(static_cast<float>(v)); };
  for (int k = 0; k < 2; ++k)
    if (!(rounded(r.phi[k]) > 0) || !std::isfinite(rounded(r.phi[k])))
      c.fail(ALA_INVALID_ARGUMENT, "phi[%d] must be positive and finite in the compute type, got %g", k,
             r.phi[k]);
  if (!std::isfinite(rounded(r.offset)))
    c.fail(ALA_INVALID_ARGUMENT, "offset must be finite in the compute type, got %g", r.offset);
  if (r.lse_given && r.x.rows > 0) c.required(r.lse, "lse");
}

void check(Check& c, const ala_mined_pairs_request& r, bool run) {
  c.points(r.x, r.y, r.symmetric);
  c.required(r.phi, "phi");
  c.count(r.n_positive, "n_positive");
  c.count(r.n_negative, "n_negative");
  if (!run) return;
  const int64_t references = r.symmetric ? r.x.rows : r.y.rows;
  c.indices(r.positive_anchors, r.n_positive, r.x.rows, "positive_anchors");
  c.indices(r.positives, r.n_positive, references, "positives");
  c.indices(r.negative_anchors, r.n_negative, r.x.rows, "negative_anchors");
  c.indices(r.negatives, r.n_negative, references, "negatives");
}

void check(Check& c, const ala_mined_triplets_request& r, bool run) {
  c.points(r.x, r.y, r.symmetric);
  c.required(r.phi, "phi");
  c.count(r.n_triplets, "n_triplets");
  if (!run) return;
  const int64_t references = r.symmetric ? r.x.rows : r.y.rows;
  c.indices(r.anchors, r.n_triplets, r.x.rows, "anchors");
  c.indices(r.positives, r.n_triplets, references, "positives");
  c.indices(r.negatives, r.n_triplets, references, "negatives");
}

void check(Check& c, const ala_positive_ranks_request& r, bool) {
  c.labelled(r);
  c.required(r.offsets, "offsets");
  if (!c.ok()) return;
  if (r.offsets[0] != 0) c.fail(ALA_INVALID_ARGUMENT, "offsets must start at 0");
  const int64_t most = r.symmetric ? r.x.rows - 1 : r.y.rows;
  for (int64_t i = 0; i < r.x.rows && c.ok(); ++i) {
    if (r.offsets[i + 1] < r.offsets[i]) c.fail(ALA_INVALID_ARGUMENT, "offsets must not decrease");
    if (c.ok() && r.offsets[i + 1] - r.offsets[i] > most)
      c.fail(ALA_INVALID_ARGUMENT, "offsets must count at most %lld positives a row, got %lld",
             static_cast<long long>(most), static_cast<long long>(r.offsets[i + 1] - r.offsets[i]));
  }
  if (c.ok() && (r.first_only ? r.x.rows : r.offsets[r.x.rows]) > 0) {
    c.required(r.pessimistic, "pessimistic");
    c.required(r.optimistic, "optimistic");
  }
}

constexpr int64_t kMostThreads = 65536;

template <class Request>
using Op = ala_status (*ala::Kernels::*)(const Request&, const ala::Call&);

template <class Request>
ala_status dispatch(Op<Request> op, const Request* request, const ala_executor* executor, void* workspace,
                    int64_t workspace_bytes, int64_t* bytes, ala_error* error) {
  Check c(error);
  c.required(request, "request");
  if (!c.ok()) return c.status();
  const char* isa;
  const ala::Kernels* kernels = ala::chosen_kernels(&isa);
  if (!kernels)
    c.fail(ALA_UNSUPPORTED_ISA, "ALA_METRIC_ISA=%s: unknown, or not supported by this CPU", isa);
  else
    check(c, *request, bytes == nullptr);
  if (executor && (executor->threads < 1 || executor->threads > kMostThreads))
    c.fail(ALA_INVALID_ARGUMENT, "executor.threads must be in [1, %lld], got %lld",
           static_cast<long long>(kMostThreads), static_cast<long long>(executor->threads));
  if (executor) c.required(reinterpret_cast<const void*>(executor->run), "executor.run");
  int64_t needed = 0;
  if (c.ok()) (kernels->*op)(*request, {executor, nullptr, 0, &needed});
  if (c.ok() && needed == INT64_MAX)
    c.fail(ALA_INVALID_ARGUMENT, "x, y and executor.threads ask for more workspace than int64 counts");
  if (c.ok() && bytes) *bytes = needed;
  if (c.ok() && !bytes && (!workspace || workspace_bytes < needed))
    c.fail(ALA_WORKSPACE_TOO_SMALL, "workspace must have %lld bytes, got %lld",
           static_cast<long long>(needed), static_cast<long long>(workspace ? workspace_bytes : 0));
  if (!c.ok() || bytes) return c.status();
  const ala_status status = (kernels->*op)(*request, {executor, workspace, workspace_bytes, nullptr});
  if (status == ALA_INVALID_ARGUMENT)  // ranks only: the others look at no values
    c.fail(status, "x and y must be finite, and offsets those of the labels");
  return status;
}

}  // namespace

const char* ala_metric_version(void) {
  return ALA_METRIC_VERSION;
}
int32_t ala_metric_abi(void) {
  return ALA_METRIC_ABI;
}

ala_status ala_metric_isa(const char** name, ala_error* error) {
  Check c(error);
  const char* isa;
  if (!ala::chosen_kernels(&isa))
    c.fail(ALA_UNSUPPORTED_ISA, "ALA_METRIC_ISA=%s: unknown, or not supported by this CPU", isa);
  if (name) *name = isa;
  return c.status();
}

#define ALA_DEFINE_OP(op)                                                                               \
  ala_status ala_##op##_workspace(const ala_##op##_request* request, const ala_executor* executor,      \
                                  int64_t* bytes, ala_error* error) {                                   \
    int64_t unused;                                                                                     \
    return dispatch(&ala::Kernels::op, request, executor, nullptr, 0, bytes ? bytes : &unused, error);  \
  }                                                                                                     \
  ala_status ala_##op(const ala_##op##_request* request, const ala_executor* executor, void* workspace, \
                      int64_t workspace_bytes, ala_error* error) {                                      \
    return dispatch(&ala::Kernels::op, request, executor, workspace, workspace_bytes, nullptr, error);  \
  }

ALA_DEFINE_OP(pairwise_distance)
ALA_DEFINE_OP(pairwise_distance_backward)
ALA_DEFINE_OP(distance_mixture)
ALA_DEFINE_OP(distance_statistics)
ALA_DEFINE_OP(focal_weighting)
ALA_DEFINE_OP(mined_pairs)
ALA_DEFINE_OP(mined_triplets)
ALA_DEFINE_OP(positive_ranks)
