// One pass over all pairs, launched in one of two ways: fused, or strip by strip with a BLAS. Everything
// lives in the caller's workspace; the same code lays it out and measures it.
#pragma once

#include <cstdio>

#include "cuda/finish.cuh"
#include "cuda/fused.cuh"
#include "cuda/product.cuh"

namespace ala::cuda {

inline ala_status refuse(ala_error* error, ala_status status, const char* text) {
  if (error) std::snprintf(error->message, sizeof error->message, "%s", text);
  return status;
}

// The workspace, given out from the front in pieces of 256 bytes. Without memory it only counts; what it then
// gives out is no memory, but no NULL either, so that a measured call takes the branches of the real one.
class Memory {
 public:
  Memory(void* base, int64_t bytes)
      : base_(reinterpret_cast<uintptr_t>(base)), measures_(!base), bytes_(bytes) {
    used_ = measures_ ? kStep : static_cast<int64_t>(round_up(base_, uintptr_t{kStep}) - base_);
  }
  template <class T>
  T* array(int64_t count) {
    const int64_t at = used_;
    used_ += round_up<int64_t>(count * static_cast<int64_t>(sizeof(T)), kStep);
    return reinterpret_cast<T*>(base_ + static_cast<uintptr_t>(at));
  }
  int64_t used() const { return used_; }
  bool measures() const { return measures_; }
  bool fits() const { return used_ <= bytes_; }

 private:
  static constexpr int64_t kStep = 256;
  uintptr_t base_;
  bool measures_;
  int64_t bytes_, used_;
};

constexpr int64_t kStripBytes = 32 << 20, kNearBytes = 32 << 20;
constexpr int64_t kWarpsWanted = 8192;  // a strip's spans are so many that this many warps have work
constexpr int64_t kBlocksWanted = 512;  // the same for fused blocks; no property of a device, so that the
                                        // order of additions is one everywhere

// The state of one call: the first error stays.
struct Run {
  const ala_cuda_context& context;
  Memory& memory;
  cudaError_t error = cudaSuccess;

  ala_precision precision() const { return static_cast<ala_precision>(context.precision); }
  // See rounded(): of 24 bits, TF32 has 11 and bfloat16 8.
  float splitter() const {
    return precision() == ALA_PRECISION_TF32 ? 8193.0f : precision() == ALA_PRECISION_BF16 ? 65537.0f : 0.0f;
  }
  cudaStream_t stream() const { return static_cast<cudaStream_t>(context.stream); }
  void check(cudaError_t found) {
    if (error == cudaSuccess) error = found;
  }
  template <class... P, class... A>
  void start(void (*kernel)(P...), int64_t blocks, int threads, int64_t shared_bytes, A... arguments) {
    if (memory.measures() || blocks == 0 || error != cudaSuccess) return;
    check(launch(kernel, blocks, threads, shared_bytes, stream(), arguments...));
  }
  void clear(void* at, int64_t bytes) {
    if (!memory.measures() && bytes > 0 && error == cudaSuccess)
      check(cudaMemsetAsync(at, 0, static_cast<size_t>(bytes), stream()));
  }
  template <class T>
  void product(bool transposed, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
               int64_t rows, int64_t cols, int64_t inner) {
    if (memory.measures() || rows == 0 || cols == 0 || error != cudaSuccess) return;
    if (!context.multiply || inner == 0) {
      check(multiply(transposed, a, lda, b, ldb, c, ldc, rows, cols, inner, stream()));
      return;
    }
    const auto dtype = sizeof(T) == 8 ? ALA_F64 : ALA_F32;
    if (context.multiply(context.multiply_self, context.stream, dtype, precision(), transposed, rows, cols,
                         inner, a, lda, b, ldb, c, ldc) != 0)
      check(cudaErrorInvalidValue);
  }
};

template <class T>
Rows<T> pack(Run& run, const ala_matrix& from) {
  Rows<T> to;
  to.count = from.rows;
  to.dims = static_cast<int>(from.cols);
  to.pitch = round_up(to.dims, static_cast<int>(16 / sizeof(T)));
  to.data = to.factors = run.memory.array<T>(to.count * to.pitch);
  if (run.splitter() != 0) to.factors = run.memory.array<T>(to.count * to.pitch);
  to.square = run.memory.array<T>(to.count);
  run.start(pack_rows<T>, ceil_div<int64_t>(to.count, kRowsPerBlock), kRowThreads, 0, from, to,
            static_cast<T>(run.splitter()));
  return to;
}

// The rows of a request in their two roles.
template <class T>
struct Points {
  Rows<T> x, y;
  const int64_t *x_labels = nullptr, *y_labels = nullptr;
  bool symmetric = false;

  template <class Request>
  void pack(Run& run, const Request& r) {
    symmetric = r.symmetric != 0;
    x = cuda::pack<T>(run, r.x);
    y = symmetric ? x : cuda::pack<T>(run, r.y);
  }
  Pairs<T> pairs() const {
    return {x.data,   y.data,  x.factors, y.factors, x.square, y.square, x_labels,
            y_labels, x.count, y.count,   x.dims,    x.pitch,  symmetric};
  }
  // References as rows, anchors as columns.
  Pairs<T> turned() const {
    return {y.data,   x.data,  y.factors, x.factors, y.square, x.square, y_labels,
            x_labels, y.count, x.count,   x.dims,    x.pitch,  0};
  }
};

// Wanted of a pass; NULL: not.
template <class T>
struct Results {
  T* values = nullptr;      // [rows, kValues]
  T* grad = nullptr;        // [rows, dims]
  double* total = nullptr;  // [kSums], added to
};

inline int shared_limit() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

template <int kDims, class Op>
void run_fused(Run& run, const Pairs<float>& p, const Op& op, const Results<float>& results) {
  const int64_t row_tiles = ceil_div<int64_t>(p.rows, kTile), col_tiles = ceil_div<int64_t>(p.cols, kTile);
  const int64_t wanted = ceil_div(kBlocksWanted, row_tiles > 0 ? row_tiles : 1);
  const int64_t tiles = col_tiles > wanted ? ceil_div(col_tiles, wanted) : 1;  // of one split
  const int64_t splits = ceil_div(col_tiles, tiles), blocks = row_tiles * splits;
  constexpr int64_t kWarps = kTileThreads / kWarp;
  Partials<float> out{};
  out.spans = 2 * splits;
  if (Op::kValues) out.values = run.memory.array<float>(p.rows * out.spans * Op::kValues);
  if (Op::kGradient) out.row_sum = run.memory.array<float>(p.rows * out.spans);
  if (Op::kSums) out.sums = run.memory.array<double>(blocks * kWarps * Op::kSums);
  float* product = results.grad ? run.memory.array<float>(splits * p.rows * p.pitch) : nullptr;
  run.start(fused_kernel<kDims, Op>, blocks, kTileThreads, fused_shared_bytes<kDims>(), p, op, tiles * kTile,
            results.grad != nullptr, product, out);
  if constexpr (Op::kValues > 0)
    if (results.values)
      run.start(finish_values<float, Op>, ceil_div<int64_t>(p.rows, kFinishThreads), kFinishThreads, 0, out,
                int64_t{0}, p.rows, results.values);
  if (results.grad) {
    const GradientSum<float> sum{product, splits, p.rows, p.x, results.grad, p.rows, p.dims, p.pitch};
    run.start(finish_gradient<float>, ceil_div<int64_t>(p.rows, kFinishThreads / kWarp), kFinishThreads, 0,
              sum, out);
  }
  if (Op::kSums && results.total)
    run.start(add_sums<double>, Op::kSums, kFinishThreads, kFinishThreads / kWarp * 8, out.sums,
              blocks * kWarps, Op::kSums, results.total);
}

// `stored`: where kStores puts the whole matrix [rows, cols]; else strips share one buffer.
template <class T, class Op>
void run_strips(Run& run, const Pairs<T>& p, const Op& op, const Results<T>& results, T* stored = nullptr) {
  const int64_t pitch = Op::kStores ? p.cols : round_up<int64_t>(p.cols, 4);
  const int64_t budget = run.context.strip_bytes > 0 ? run.context.strip_bytes : kStripBytes;
  const int64_t row_bytes = (pitch > 0 ? pitch : 1) * static_cast<int64_t>(sizeof(T));
  int64_t height = budget / row_bytes;
  height = height < 1 ? 1 : height > p.rows ? p.rows : height;
  if (height > 64) height = height / 64 * 64;
  // spans of columns: enough warps, but a bounded memory for the gradients of near pairs
  int64_t warps = kNearBytes / ((p.pitch > 0 ? p.pitch : 1) * static_cast<int64_t>(sizeof(T)));
  warps = warps > kWarpsWanted ? kWarpsWanted : warps;
  const int64_t step = kWarp * kStripUnroll;
  int64_t spans = height > 0 && warps / height > 1 ? warps / height : 1;
  int64_t span = round_up(ceil_div(p.cols > 0 ? p.cols : int64_t{1}, spans), step);
  spans = ceil_div(p.cols > 0 ? p.cols : int64_t{1}, span);

  Partials<T> out{};
  out.spans = spans;
  const int64_t items = height * spans;
  if (Op::kValues) out.values = run.memory.array<T>(items * Op::kValues);
  if (Op::kSums) out.sums = run.memory.array<double>(items * Op::kSums);
  if (Op::kGradient) {
    out.row_sum = run.memory.array<T>(items);
    out.near_used = run.memory.array<int32_t>(items);
    out.near = run.memory.array<T>(items * p.pitch);
  }
  T* s = Op::kStores ? stored : run.memory.array<T>(height * pitch);
  T* product = results.grad ? run.memory.array<T>(height * p.pitch) : nullptr;
  if (run.memory.measures()) return;
  for (int64_t first = 0; first < p.rows && run.error == cudaSuccess; first += height) {
    const int64_t rows = first + height < p.rows ? height : p.rows - first;
    const Strip<T> strip{Op::kStores ? s + first * pitch : s, pitch, first, rows, span,
                         static_cast<T>(run.splitter())};
    run.product(true, p.x_factors + first * p.pitch, p.pitch, p.y_factors, p.pitch, strip.s, pitch, rows,
                p.cols, p.pitch);
    run.start(strip_kernel<T, Op>, ceil_div<int64_t>(rows, kStripRows) * spans, kStripThreads, 0, p, op,
              strip, out);
    if constexpr (Op::kValues > 0)
      if (results.values)
        run.start(finish_values<T, Op>, ceil_div<int64_t>(rows, kFinishThreads), kFinishThreads, 0, out,
                  first, rows, results.values);
    if (results.grad) {
      run.product(false, strip.s, pitch, p.y_factors, p.pitch, product, p.pitch, rows, p.pitch, p.cols);
      if (p.cols == 0) run.clear(product, rows * p.pitch * static_cast<int64_t>(sizeof(T)));
      // the row itself, not rounded: its error would be that of all its pairs, where the others' average out
      const T* x = p.x + first * p.pitch;
      const GradientSum<T> sum{product, 1, rows, x, results.grad + first * p.dims, rows, p.dims, p.pitch};
      run.start(finish_gradient<T>, ceil_div<int64_t>(rows, kFinishThreads / kWarp), kFinishThreads, 0, sum,
                out);
    }
    if (Op::kSums && results.total)
      run.start(add_sums<double>, Op::kSums, kFinishThreads, kFinishThreads / kWarp * 8, out.sums,
                rows * spans, Op::kSums, results.total);
  }
}

template <class T, class Op>
void run_pass(Run& run, const Pairs<T>& p, const Op& op, const Results<T>& results) {
  if constexpr (sizeof(T) == 4) {
    const int path = run.context.path;
    const bool small = p.dims <= 64;
    const int64_t bytes = small ? fused_shared_bytes<64>() : fused_shared_bytes<128>();
    const bool exact = run.precision() == ALA_PRECISION_F32;
    if (path != ALA_PATH_STRIPS && exact && p.dims <= 128 && p.dims > 0 && bytes <= shared_limit())
      return small ? run_fused<64>(run, p, op, results) : run_fused<128>(run, p, op, results);
  }
  run_strips(run, p, op, results);
}

// ---- what every op of the API does

template <class Request>
ala_status check_points(const Request& r, ala_error* error) {
  const auto bad = [&](const char* text) { return refuse(error, ALA_INVALID_ARGUMENT, text); };
  const auto fits = [](const ala_matrix& m) {
    return m.dtype >= ALA_F32 && m.dtype <= ALA_BF16 && m.rows >= 0 && m.rows < (int64_t{1} << 31) - 1024 &&
           m.cols >= 0 && m.cols < (int64_t{1} << 24) && (m.data || m.rows == 0 || m.cols == 0);
  };
  if (!fits(r.x)) return bad("x must be a matrix of an ala_dtype, at most 2^31 - 1025 rows and 2^24 columns");
  if (!r.symmetric && (!fits(r.y) || r.y.dtype != r.x.dtype || r.y.cols != r.x.cols))
    return bad("y must be a matrix of the dtype and width of x");
  return ALA_OK;
}

// body(run, T{}) queues everything, or measures the workspace.
template <class Body>
ala_status run_op(ala_dtype dtype, const ala_cuda_context* context, void* workspace, int64_t workspace_bytes,
                  int64_t* bytes, ala_error* error, const Body& body) {
  static const ala_cuda_context plain{};
  const ala_cuda_context& chosen = context ? *context : plain;
  if (chosen.precision < ALA_PRECISION_F32 || chosen.precision > ALA_PRECISION_BF16)
    return refuse(error, ALA_INVALID_ARGUMENT, "precision must be an ala_precision");
  if (chosen.precision != ALA_PRECISION_F32 && dtype == ALA_F64)
    return refuse(error, ALA_INVALID_ARGUMENT, "precision must be F32 for rows of f64");
  const auto walk = [&](Memory& memory) {
    Run run{chosen, memory};
    if (dtype == ALA_F64)
      body(run, double{});
    else
      body(run, float{});
    return run.error;
  };
  Memory measured(nullptr, 0);
  walk(measured);
  if (bytes) return *bytes = measured.used(), ALA_OK;
  if (!workspace || workspace_bytes < measured.used())
    return refuse(error, ALA_WORKSPACE_TOO_SMALL, "workspace is smaller than the size query asked for");
  Memory memory(workspace, workspace_bytes);
  const cudaError_t status = walk(memory);
  if (!memory.fits()) return refuse(error, ALA_WORKSPACE_TOO_SMALL, "the workspace was measured wrongly");
  if (status != cudaSuccess) return refuse(error, ALA_CUDA_FAILED, cudaGetErrorString(status));
  return ALA_OK;
}

template <class Request>
const Request& points_of(const Request& r) {
  return r;
}
inline const ala_positive_ranks_request& points_of(const ala_cuda_positive_ranks_request& r) {
  return r.host;
}

// Whether pairs are to be left out, which is not supported here.
inline bool leaves_out(const ala_distance_mixture_request& r) {
  return r.own && !r.symmetric;
}
template <class Request>
bool leaves_out(const Request&) {
  return false;
}

template <class Request, class Body>
ala_status serve(const Request* request, const ala_cuda_context* context, void* workspace,
                 int64_t workspace_bytes, int64_t* bytes, ala_error* error, const Body& body) {
  if (!request) return refuse(error, ALA_INVALID_ARGUMENT, "request must not be NULL");
  const ala_status status = check_points(points_of(*request), error);
  if (status != ALA_OK) return status;
  if (leaves_out(*request)) return refuse(error, ALA_INVALID_ARGUMENT, "own is not supported on CUDA");
  return run_op(points_of(*request).x.dtype, context, workspace, workspace_bytes, bytes, error, body);
}

// The two functions of the C API of one op, for a template op<T>(Run&, request).
#define ALA_DEFINE_CUDA_OP(op, request_type)                                                              \
  ala_status ala_cuda_##op##_workspace(const request_type* request, const ala_cuda_context* context,      \
                                       int64_t* bytes, ala_error* error) {                                \
    int64_t unused;                                                                                       \
    return ala::cuda::serve(                                                                              \
        request, context, nullptr, 0, bytes ? bytes : &unused, error,                                     \
        [&](ala::cuda::Run& run, auto zero) { ala::cuda::op<decltype(zero)>(run, *request); });           \
  }                                                                                                       \
  ala_status ala_cuda_##op(const request_type* request, const ala_cuda_context* context, void* workspace, \
                           int64_t workspace_bytes, ala_error* error) {                                   \
    return ala::cuda::serve(                                                                              \
        request, context, workspace, workspace_bytes, nullptr, error,                                     \
        [&](ala::cuda::Run& run, auto zero) { ala::cuda::op<decltype(zero)>(run, *request); });           \
  }

}  // namespace ala::cuda
