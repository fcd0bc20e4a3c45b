// The operators that torch sees: schemas, checks, memory and threads from torch; the arithmetic is the
// core's. Loaded by torch.ops.load_library; fake kernels, autograd and autocast are in
// ala_metric/ops/native.py.
//
// Gradients leave in the compute type (float64 for float64, else float32); one that was not asked for is an
// empty 1-D tensor. A "unit" gradient is that of sum_i loss[i]. When all weights of a backward pass are
// equal, as after mean() or sum(), it is scaled; otherwise the pass runs again with the weights.
#include <ala_metric/ala_metric.h>

#include <algorithm>
#include <memory>
#include <new>

#include "cuda.h"
#include "stable.h"

namespace {

using ala::stable::OptionalTensor;
using ala::stable::Tensor;
using ala::stable::Word;

[[noreturn]] void refuse(const std::string& message) {
  throw std::invalid_argument(message);
}

void demand(ala_status status, const ala_error& error) {
  if (status == ALA_INVALID_ARGUMENT) refuse(error.message);
  if (status != ALA_OK) throw std::runtime_error(std::string("ala_metric: ") + error.message);
}

ala_dtype element_type(const Tensor& tensor, const char* name) {
  const int32_t found = tensor.dtype();
  if (found == aoti_torch_dtype_float32()) return ALA_F32;
  if (found == aoti_torch_dtype_float64()) return ALA_F64;
  if (found == aoti_torch_dtype_float16()) return ALA_F16;
  if (found == aoti_torch_dtype_bfloat16()) return ALA_BF16;
  refuse(std::string(name) + " must be float16, bfloat16, float32 or float64");
}

int32_t compute_type(const Tensor& emb) {
  return emb.dtype() == aoti_torch_dtype_float64() ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
}

ala_matrix matrix(const Tensor& tensor, const char* name) {
  if (tensor.dim() != 2) refuse(std::string(name) + " must have 2 dimensions");
  return {tensor.data(),  element_type(tensor, name), tensor.size(0),
          tensor.size(1), tensor.stride(0),           tensor.stride(1)};
}

const int64_t* integers(const Tensor& tensor, const char* name, int64_t count) {
  if (tensor.dtype() != aoti_torch_dtype_int64()) refuse(std::string(name) + " must be int64");
  if (tensor.dim() != 1 || tensor.size(0) != count || (count > 1 && tensor.stride(0) != 1))
    refuse(std::string(name) + " must be contiguous with shape [" + std::to_string(count) + "]");
  return static_cast<const int64_t*>(tensor.data());
}

// The parameters where the kernels can read them: copied to doubles, or on the device, as doubles already.
template <int count>
struct Parameters {
  explicit Parameters(const Tensor& phi) {
    if (phi.dim() != 1 || phi.size(0) != count) refuse("phi must have shape [" + std::to_string(count) + "]");
    const int64_t stride = phi.stride(0);
    if (phi.is_cuda()) {
      if (phi.dtype() != aoti_torch_dtype_float64() || stride != 1)
        refuse("phi must be contiguous and float64 on CUDA");
      values = static_cast<const double*>(phi.data());
      return;
    }
    for (int k = 0; k < count; ++k) {
      if (phi.dtype() == aoti_torch_dtype_float64())
        copy_[k] = static_cast<const double*>(phi.data())[k * stride];
      else if (phi.dtype() == aoti_torch_dtype_float32())
        copy_[k] = static_cast<const float*>(phi.data())[k * stride];
      else
        refuse("phi must be float32 or float64");
    }
    values = copy_;
  }
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;
  const double* values;

 private:
  double copy_[count];
};

// Fields that every request shares. Without ref_emb the references are the anchors themselves.
template <class Request>
void set_points(Request& request, const Tensor& x, const Tensor& y, const char* x_name, const char* y_name) {
  request.x = matrix(x, x_name);
  request.symmetric = !y;
  request.y = y ? matrix(y, y_name) : request.x;
}

template <class Request>
void set_labels(Request& request, const Tensor& labels, const Tensor& ref_labels) {
  if (bool(ref_labels) != !request.symmetric) refuse("ref_emb and ref_labels must be given together");
  request.x_labels = integers(labels, "labels", request.x.rows);
  request.y_labels = ref_labels ? integers(ref_labels, "ref_labels", request.y.rows) : request.x_labels;
}

// An output of the compute type; undefined sizes stand for "not wanted".
Tensor output(bool wanted, const std::vector<int64_t>& sizes, const Tensor& like) {
  return Tensor::empty(wanted ? sizes : std::vector<int64_t>{0}, compute_type(like), like);
}

struct Gradients {
  Gradients(const ala_matrix& x, const ala_matrix& y, bool symmetric, int64_t n_phi, bool wants_x,
            bool wants_y, bool wants_phi, const Tensor& like)
      : wants{wants_x, wants_y && !symmetric, wants_phi},
        x(output(wants[0], {x.rows, x.cols}, like)),
        y(output(wants[1], {y.rows, y.cols}, like)),
        phi(output(wants[2], {n_phi}, like)) {}
  template <class Request>
  void attach(Request& request) {
    if (wants[0]) request.grad_x = x.mutable_data();
    if (wants[1]) request.grad_y = y.mutable_data();
    if (wants[2]) request.grad_phi = phi.mutable_data();
  }
  bool wants[3];
  Tensor x, y, phi;
};

// An ala_precision; the CPU's products are float32 whatever it is.
void check_precision(int64_t precision, const Tensor& like) {
  if (precision < ALA_PRECISION_F32 || precision > ALA_PRECISION_BF16) refuse("precision must be 0, 1 or 2");
  if (precision != ALA_PRECISION_F32 && like.dtype() == aoti_torch_dtype_float64())
    refuse("precision must be 0 for float64");
}

#if defined(ALA_WITH_CUDA)
// Queues an op on torch's current stream of the tensors' device, in memory that torch allocated there.
template <class Request>
void run_on_cuda(const Request& request, const Tensor& like, int64_t precision,
                 ala_status (*workspace_size)(const Request*, const ala_cuda_context*, int64_t*, ala_error*),
                 ala_status (*op)(const Request*, const ala_cuda_context*, void*, int64_t, ala_error*)) {
  if (const char* why = ala::cuda_binding::obstacle()) throw std::runtime_error(why);
  const int32_t device = like.device_index();
  const ala::cuda_binding::Device guard(device);
  ala_cuda_context context{};
  context.precision = static_cast<int32_t>(precision);
  ala::stable::check(aoti_torch_get_current_cuda_stream(device, &context.stream), "tell its CUDA stream");
  // torch's allocator keeps both alive for this stream after they are freed here
  Tensor blas_memory = Tensor::empty({ala::cuda_binding::kBlasBytes}, aoti_torch_dtype_uint8(), like);
  ala::cuda_binding::Blas blas(device, context.stream, blas_memory.mutable_data());
  if (blas.works()) {
    context.multiply = ala::cuda_binding::Blas::multiply;
    context.multiply_self = &blas;
  }
  ala_error error{};
  int64_t bytes = 0;
  demand(workspace_size(&request, &context, &bytes, &error), error);
  Tensor workspace = Tensor::empty({bytes}, aoti_torch_dtype_uint8(), like);
  demand(op(&request, &context, workspace.mutable_data(), bytes, &error), error);
}
#define ALA_RUN(op, request, like, precision)                                                         \
  (check_precision(precision, like),                                                                  \
   (like).is_cuda() ? run_on_cuda(request, like, precision, ala_cuda_##op##_workspace, ala_cuda_##op) \
                    : run(request, like, ala_##op##_workspace, ala_##op))
#else
#define ALA_RUN(op, request, like, precision) \
  (check_precision(precision, like), run(request, like, ala_##op##_workspace, ala_##op))
#endif

// The workspace of small calls, kept by the calling thread: the system's zeroed pages cost a batch of 256
// rows a sixth of its kernel's time. Larger ones are torch's, and gone after the call.
class SmallWorkspace {
 public:
  static constexpr int64_t kMost = 3 << 19;
  void* of(int64_t bytes) {
    if (bytes > bytes_) {
      memory_.reset(::operator new(static_cast<size_t>(bytes), kAlignment));
      bytes_ = bytes;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, kAlignment); }
  };
  std::unique_ptr<void, Free> memory_;
  int64_t bytes_ = 0;
};
thread_local SmallWorkspace small_workspace;

// Runs an op of the core on torch's threads, in memory that torch allocated or this thread has kept.
template <class Request>
void run(const Request& request, const Tensor& like,
         ala_status (*workspace_size)(const Request*, const ala_executor*, int64_t*, ala_error*),
         ala_status (*op)(const Request*, const ala_executor*, void*, int64_t, ala_error*)) {
  struct Work {
    ala_task task;
    void* context;
  };
  uint32_t threads = 1;
  ala::stable::check(torch_get_num_threads(&threads), "tell its number of threads");
  bool failed = false;
  const ala_executor executor{&failed, static_cast<int64_t>(threads),
                              [](void* self, int64_t n_tasks, ala_task task, void* context) {
                                Work work{task, context};
                                const auto code = torch_parallel_for(
                                    0, n_tasks, 1,
                                    [](int64_t begin, int64_t end, void* pointer) {
                                      auto* mine = static_cast<Work*>(pointer);
                                      for (int64_t t = begin; t < end; ++t) mine->task(mine->context, t);
                                    },
                                    &work);
                                if (code != 0) *static_cast<bool*>(self) = true;
                              }};
  ala_error error{};
  int64_t bytes = 0;
  demand(workspace_size(&request, &executor, &bytes, &error), error);
  if (bytes <= SmallWorkspace::kMost) {
    demand(op(&request, &executor, small_workspace.of(bytes), bytes, &error), error);
  } else {
    Tensor workspace = Tensor::empty({bytes}, aoti_torch_dtype_uint8(), like);
    demand(op(&request, &executor, workspace.mutable_data(), bytes, &error), error);
  }
  if (failed) throw std::runtime_error("ala_metric: torch's thread pool failed");
}

// Weights of a backward pass, one per anchor, pair or triplet.
const void* one_each(const Tensor& grad, int64_t count, const Tensor& like) {
  if (grad.dim() != 1 || grad.size(0) != count || grad.dtype() != compute_type(like))
    refuse("grad must have shape [" + std::to_string(count) + "] and the dtype of the result");
  if (count > 1 && grad.stride(0) != 1) refuse("grad must be contiguous");
  return grad.data();
}

template <class T>
bool all_equal(const void* pointer, int64_t count) {
  const T* values = static_cast<const T*>(pointer);
  return std::all_of(values, values + count, [=](T value) { return value == values[0]; });
}

// The weight that all anchors share, as a tensor of no dimensions; nothing where they differ.
Tensor shared_weight(const Tensor& grad, const void* weights) {
  if (grad.is_cuda()) return Tensor();  // not to be read without waiting; see _scaled in native.py
  const int64_t count = grad.size(0);
  const bool is_double = grad.dtype() == aoti_torch_dtype_float64();
  if (count == 0 || !(is_double ? all_equal<double>(weights, count) : all_equal<float>(weights, count)))
    return Tensor();
  Tensor weight = Tensor::empty({}, grad.dtype(), grad);
  std::memcpy(weight.mutable_data(), weights, is_double ? sizeof(double) : sizeof(float));
  return weight;
}

// gradient * weight, by torch; one that was not wanted stays empty.
Tensor product(const Tensor& gradient, const Tensor& weight) {
  if (gradient.dim() == 1 && gradient.size(0) == 0) return Tensor::empty({0}, gradient.dtype(), gradient);
  StableIValue stack[2] = {Word<Tensor>::give(gradient.share()), Word<Tensor>::give(weight.share())};
  ala::stable::check(torch_call_dispatcher("aten::mul", "Tensor", stack, ala::stable::kAbiVersion),
                     "scale a gradient");
  return Word<Tensor>::take(stack[0]);
}

using Three = std::tuple<Tensor, Tensor, Tensor>;

// ---- pairwise_distance

std::tuple<Tensor> pairwise_distance(const Tensor& x, const OptionalTensor& y, const int64_t& precision) {
  ala_pairwise_distance_request request{};
  set_points(request, x, y, "x", "y");
  Tensor distances = output(true, {request.x.rows, request.y.rows}, x);
  request.distances = distances.mutable_data();
  ALA_RUN(pairwise_distance, request, x, precision);
  return {std::move(distances)};
}

std::tuple<Tensor, Tensor> pairwise_distance_backward(const Tensor& grad, const Tensor& x,
                                                      const OptionalTensor& y, const bool& x_grad,
                                                      const bool& y_grad, const int64_t& precision) {
  ala_pairwise_distance_backward_request request{};
  set_points(request, x, y, "x", "y");
  request.grad_distances = matrix(grad, "grad");
  const bool wants_y = y_grad && !request.symmetric;
  Tensor grad_x = output(x_grad, {request.x.rows, request.x.cols}, x);
  Tensor grad_y = output(wants_y, {request.y.rows, request.y.cols}, x);
  if (x_grad) request.grad_x = grad_x.mutable_data();
  if (wants_y) request.grad_y = grad_y.mutable_data();
  ALA_RUN(pairwise_distance_backward, request, x, precision);
  return {std::move(grad_x), std::move(grad_y)};
}

// ---- distance_mixture

ala_distance_mixture_request mixture_request(const Tensor& emb, const Tensor& labels,
                                             const Parameters<ALA_MIXTURE_PHI>& phi, const Tensor& ref_emb,
                                             const Tensor& ref_labels, const Tensor& own) {
  ala_distance_mixture_request request{};
  set_points(request, emb, ref_emb, "emb", "ref_emb");
  set_labels(request, labels, ref_labels);
  request.phi = phi.values;
  if (own && request.symmetric) refuse("own must not be given without ref_emb");
  if (own && emb.is_cuda()) refuse("own is not supported on CUDA");
  if (own) request.own = integers(own, "own", request.x.rows);
  return request;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> distance_mixture(const Tensor& emb, const Tensor& labels,
                                                            const Tensor& phi, const OptionalTensor& ref_emb,
                                                            const OptionalTensor& ref_labels,
                                                            const bool& emb_grad, const bool& ref_grad,
                                                            const bool& phi_grad, const int64_t& precision,
                                                            const OptionalTensor& own) {
  const Parameters<ALA_MIXTURE_PHI> parameters(phi);
  auto request = mixture_request(emb, labels, parameters, ref_emb, ref_labels, own);
  Gradients unit(request.x, request.y, request.symmetric, ALA_MIXTURE_PHI, emb_grad, ref_grad, phi_grad, emb);
  unit.attach(request);
  Tensor loss = output(true, {request.x.rows}, emb);
  request.loss = loss.mutable_data();
  ALA_RUN(distance_mixture, request, emb, precision);
  return {std::move(loss), std::move(unit.x), std::move(unit.y), std::move(unit.phi)};
}

Three distance_mixture_backward(const Tensor& grad, const Tensor& emb, const Tensor& labels,
                                const Tensor& phi, const OptionalTensor& ref_emb,
                                const OptionalTensor& ref_labels, const Tensor& unit_emb,
                                const Tensor& unit_ref, const Tensor& unit_phi, const int64_t& precision,
                                const OptionalTensor& own) {
  const void* weights = one_each(grad, emb.size(0), emb);
  if (const Tensor shared = shared_weight(grad, weights))
    return {product(unit_emb, shared), product(unit_ref, shared), product(unit_phi, shared)};
  const Parameters<ALA_MIXTURE_PHI> parameters(phi);
  auto request = mixture_request(emb, labels, parameters, ref_emb, ref_labels, own);
  Gradients result(request.x, request.y, request.symmetric, ALA_MIXTURE_PHI, unit_emb.dim() == 2,
                   unit_ref.dim() == 2, unit_phi.size(0) > 0, emb);
  result.attach(request);
  request.weights = weights;
  ALA_RUN(distance_mixture, request, emb, precision);
  return {std::move(result.x), std::move(result.y), std::move(result.phi)};
}

// ---- focal_weighting

ala_focal_weighting_request focal_request(const Tensor& emb, const Tensor& labels, const Parameters<2>& phi,
                                          double offset, const Tensor& ref_emb, const Tensor& ref_labels) {
  ala_focal_weighting_request request{};
  set_points(request, emb, ref_emb, "emb", "ref_emb");
  set_labels(request, labels, ref_labels);
  request.phi = phi.values;
  request.offset = offset;
  return request;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> focal_weighting(
    const Tensor& emb, const Tensor& labels, const Tensor& phi, const double& offset,
    const OptionalTensor& ref_emb, const OptionalTensor& ref_labels, const bool& emb_grad,
    const bool& ref_grad, const bool& phi_grad, const int64_t& precision) {
  const Parameters<2> parameters(phi);
  auto request = focal_request(emb, labels, parameters, offset, ref_emb, ref_labels);
  Gradients unit(request.x, request.y, request.symmetric, 2, emb_grad, ref_grad, phi_grad, emb);
  unit.attach(request);
  Tensor loss = output(true, {request.x.rows}, emb);
  Tensor lse = Tensor::empty({request.x.rows, 2}, aoti_torch_dtype_float64(), emb);
  request.loss = loss.mutable_data();
  request.lse = static_cast<double*>(lse.mutable_data());
  ALA_RUN(focal_weighting, request, emb, precision);
  return {std::move(loss), std::move(lse), std::move(unit.x), std::move(unit.y), std::move(unit.phi)};
}

Three focal_weighting_backward(const Tensor& grad, const Tensor& emb, const Tensor& labels, const Tensor& phi,
                               const double& offset, const OptionalTensor& ref_emb,
                               const OptionalTensor& ref_labels, const Tensor& lse, const Tensor& unit_emb,
                               const Tensor& unit_ref, const Tensor& unit_phi, const int64_t& precision) {
  const void* weights = one_each(grad, emb.size(0), emb);
  if (const Tensor shared = shared_weight(grad, weights))
    return {product(unit_emb, shared), product(unit_ref, shared), product(unit_phi, shared)};
  const Parameters<2> parameters(phi);
  auto request = focal_request(emb, labels, parameters, offset, ref_emb, ref_labels);
  Gradients result(request.x, request.y, request.symmetric, 2, unit_emb.dim() == 2, unit_ref.dim() == 2,
                   unit_phi.size(0) > 0, emb);
  result.attach(request);
  request.weights = weights;
  request.lse = static_cast<double*>(const_cast<void*>(lse.data()));
  request.lse_given = 1;
  ALA_RUN(focal_weighting, request, emb, precision);
  return {std::move(result.x), std::move(result.y), std::move(result.phi)};
}

// ---- distance_statistics

std::tuple<Tensor> distance_statistics(const Tensor& emb, const Tensor& labels, const OptionalTensor& ref_emb,
                                       const OptionalTensor& ref_labels, const int64_t& precision) {
  ala_distance_statistics_request request{};
  set_points(request, emb, ref_emb, "emb", "ref_emb");
  set_labels(request, labels, ref_labels);
  Tensor statistics = output(true, {ALA_MIXTURE_PHI}, emb);
  request.statistics = statistics.mutable_data();
  ALA_RUN(distance_statistics, request, emb, precision);
  return {std::move(statistics)};
}

// ---- mixture_pairs: listed pairs, all positive or all negative; phi has the five weights of that kind

struct Pairs {
  static constexpr int kShapes = ALA_MIXTURE_SHAPES;
  Pairs(const Tensor& emb, const Tensor& anchors, const Tensor& others, const Tensor& phi, bool positive,
        const Tensor& ref_emb)
      : count(anchors.size(0)), positive(positive), given(phi) {
    set_points(request, emb, ref_emb, "emb", "ref_emb");
    if (emb.is_cuda()) {
      request.phi = given.values - first();  // the other kind has no pairs: its weights are not read
    } else {
      std::copy_n(given.values, kShapes, parameters + first());
      request.phi = parameters;
    }
    const int64_t* a = integers(anchors, "anchors", count);
    const int64_t* o = integers(others, "others", count);
    (positive ? request.n_positive : request.n_negative) = count;
    (positive ? request.positive_anchors : request.negative_anchors) = a;
    (positive ? request.positives : request.negatives) = o;
  }
  int first() const { return positive ? 0 : kShapes; }
  int64_t count;
  bool positive;
  Parameters<kShapes> given;
  double parameters[ALA_MIXTURE_PHI] = {};
  ala_mined_pairs_request request{};
};

std::tuple<Tensor> mixture_pairs(const Tensor& emb, const Tensor& anchors, const Tensor& others,
                                 const Tensor& phi, const bool& positive, const OptionalTensor& ref_emb) {
  Pairs pairs(emb, anchors, others, phi, positive, ref_emb);
  Tensor values = output(true, {pairs.count}, emb);
  (positive ? pairs.request.positive_values : pairs.request.negative_values) = values.mutable_data();
  ALA_RUN(mined_pairs, pairs.request, emb, ALA_PRECISION_F32);
  return {std::move(values)};
}

Three mixture_pairs_backward(const Tensor& grad, const Tensor& emb, const Tensor& anchors,
                             const Tensor& others, const Tensor& phi, const bool& positive,
                             const OptionalTensor& ref_emb, const bool& emb_grad, const bool& ref_grad,
                             const bool& phi_grad) {
  Pairs pairs(emb, anchors, others, phi, positive, ref_emb);
  auto& request = pairs.request;
  Gradients result(request.x, request.y, request.symmetric, 0, emb_grad, ref_grad, false, emb);
  result.attach(request);
  (positive ? request.positive_weights : request.negative_weights) = one_each(grad, pairs.count, emb);
  Tensor all_phi = output(phi_grad, {ALA_MIXTURE_PHI}, emb);
  if (phi_grad) request.grad_phi = all_phi.mutable_data();
  ALA_RUN(mined_pairs, request, emb, ALA_PRECISION_F32);
  if (phi_grad) result.phi = all_phi.part(pairs.first(), Pairs::kShapes);
  return {std::move(result.x), std::move(result.y), std::move(result.phi)};
}

// ---- mixture_triplets

ala_mined_triplets_request triplet_request(const Tensor& emb, const Tensor& anchors, const Tensor& positives,
                                           const Tensor& negatives, const Parameters<ALA_MIXTURE_PHI>& phi,
                                           const Tensor& ref_emb) {
  ala_mined_triplets_request request{};
  set_points(request, emb, ref_emb, "emb", "ref_emb");
  request.phi = phi.values;
  request.n_triplets = anchors.size(0);
  request.anchors = integers(anchors, "anchors", request.n_triplets);
  request.positives = integers(positives, "positives", request.n_triplets);
  request.negatives = integers(negatives, "negatives", request.n_triplets);
  return request;
}

std::tuple<Tensor> mixture_triplets(const Tensor& emb, const Tensor& anchors, const Tensor& positives,
                                    const Tensor& negatives, const Tensor& phi,
                                    const OptionalTensor& ref_emb) {
  const Parameters<ALA_MIXTURE_PHI> parameters(phi);
  auto request = triplet_request(emb, anchors, positives, negatives, parameters, ref_emb);
  Tensor values = output(true, {request.n_triplets}, emb);
  request.values = values.mutable_data();
  ALA_RUN(mined_triplets, request, emb, ALA_PRECISION_F32);
  return {std::move(values)};
}

Three mixture_triplets_backward(const Tensor& grad, const Tensor& emb, const Tensor& anchors,
                                const Tensor& positives, const Tensor& negatives, const Tensor& phi,
                                const OptionalTensor& ref_emb, const bool& emb_grad, const bool& ref_grad,
                                const bool& phi_grad) {
  const Parameters<ALA_MIXTURE_PHI> parameters(phi);
  auto request = triplet_request(emb, anchors, positives, negatives, parameters, ref_emb);
  Gradients result(request.x, request.y, request.symmetric, ALA_MIXTURE_PHI, emb_grad, ref_grad, phi_grad,
                   emb);
  result.attach(request);
  request.weights = one_each(grad, request.n_triplets, emb);
  ALA_RUN(mined_triplets, request, emb, ALA_PRECISION_F32);
  return {std::move(result.x), std::move(result.y), std::move(result.phi)};
}

// ---- positive_ranks

std::tuple<Tensor> positive_ranks(const Tensor& emb, const Tensor& labels, const Tensor& offsets,
                                  const int64_t& count, const OptionalTensor& ref_emb,
                                  const OptionalTensor& ref_labels, const bool& cosine,
                                  const bool& first_only) {
  ala_positive_ranks_request request{};
  set_points(request, emb, ref_emb, "emb", "ref_emb");
  set_labels(request, labels, ref_labels);
  request.cosine = cosine;
  request.first_only = first_only;
  request.offsets = integers(offsets, "offsets", request.x.rows + 1);
  if (first_only && count != request.x.rows) refuse("count must be the number of ranks");
  Tensor ranks = Tensor::empty({2, count}, aoti_torch_dtype_int64(), emb);
  request.pessimistic = static_cast<int64_t*>(ranks.mutable_data());
  request.optimistic = request.pessimistic + count;
#if defined(ALA_WITH_CUDA)
  if (emb.is_cuda()) {
    const ala_cuda_positive_ranks_request on_device{request, first_only ? 0 : count};
    run_on_cuda(on_device, emb, ALA_PRECISION_F32, ala_cuda_positive_ranks_workspace,
                ala_cuda_positive_ranks);
    return {std::move(ranks)};
  }
#endif
  if (!first_only && count != request.offsets[request.x.rows]) refuse("count must be the number of ranks");
  run(request, emb, ala_positive_ranks_workspace, ala_positive_ranks);
  return {std::move(ranks)};
}

// ---- registration, while the library is loaded

struct Operators {
#if defined(ALA_WITH_CUDA)
  Operators() : schemas("ala_metric"), cpu("ala_metric", "CPU"), cuda("ala_metric", "CUDA") {
#else
  Operators() : schemas("ala_metric"), cpu("ala_metric", "CPU") {
#endif
    add<&pairwise_distance>("pairwise_distance", "(Tensor x, Tensor? y, int precision=0) -> Tensor");
    add<&pairwise_distance_backward>(
        "pairwise_distance_backward",
        "(Tensor grad, Tensor x, Tensor? y, bool x_grad, bool y_grad, int precision=0) -> (Tensor, Tensor)");
    add<&distance_mixture>(
        "distance_mixture",
        "(Tensor emb, Tensor labels, Tensor phi, Tensor? ref_emb, Tensor? ref_labels, bool emb_grad, "
        "bool ref_grad, bool phi_grad, int precision=0, Tensor? own=None) -> (Tensor, Tensor, Tensor, "
        "Tensor)");
    add<&distance_mixture_backward>(
        "distance_mixture_backward",
        "(Tensor grad, Tensor emb, Tensor labels, Tensor phi, Tensor? ref_emb, Tensor? "
        "ref_labels, Tensor unit_emb, Tensor unit_ref, Tensor unit_phi, int precision=0, Tensor? own=None) "
        "-> "
        "(Tensor, Tensor, Tensor)");
    add<&focal_weighting>(
        "focal_weighting",
        "(Tensor emb, Tensor labels, Tensor phi, float offset, Tensor? ref_emb, Tensor? ref_labels, "
        "bool emb_grad, bool ref_grad, bool phi_grad, int precision=0) -> (Tensor, Tensor, Tensor, Tensor, "
        "Tensor)");
    add<&focal_weighting_backward>(
        "focal_weighting_backward",
        "(Tensor grad, Tensor emb, Tensor labels, Tensor phi, float offset, Tensor? ref_emb, "
        "Tensor? ref_labels, Tensor lse, Tensor unit_emb, Tensor unit_ref, Tensor unit_phi, int precision=0) "
        "-> "
        "(Tensor, Tensor, Tensor)");
    add<&distance_statistics>(
        "distance_statistics",
        "(Tensor emb, Tensor labels, Tensor? ref_emb, Tensor? ref_labels, int precision=0) "
        "-> Tensor");
    add<&mixture_pairs>(
        "mixture_pairs",
        "(Tensor emb, Tensor anchors, Tensor others, Tensor phi, bool positive, Tensor? ref_emb) -> Tensor");
    add<&mixture_pairs_backward>(
        "mixture_pairs_backward",
        "(Tensor grad, Tensor emb, Tensor anchors, Tensor others, Tensor phi, bool positive, "
        "Tensor? ref_emb, bool emb_grad, bool ref_grad, bool phi_grad) -> (Tensor, Tensor, Tensor)");
    add<&mixture_triplets>(
        "mixture_triplets",
        "(Tensor emb, Tensor anchors, Tensor positives, Tensor negatives, Tensor phi, Tensor? ref_emb) "
        "-> Tensor");
    add<&mixture_triplets_backward>(
        "mixture_triplets_backward",
        "(Tensor grad, Tensor emb, Tensor anchors, Tensor positives, Tensor negatives, Tensor phi, "
        "Tensor? ref_emb, bool emb_grad, bool ref_grad, bool phi_grad) -> (Tensor, Tensor, Tensor)");
    add<&positive_ranks>(
        "positive_ranks",
        "(Tensor emb, Tensor labels, Tensor offsets, int count, Tensor? ref_emb, Tensor? ref_labels, "
        "bool cosine, bool first_only) -> Tensor");
  }
  template <auto function>
  void add(const std::string& name, const std::string& signature) {
    schemas.define((name + signature).c_str());
    cpu.implement<function>(name.c_str());
#if defined(ALA_WITH_CUDA)
    cuda.implement<function>(name.c_str());
  }
  ala::stable::Library schemas, cpu, cuda;
#else
  }
  ala::stable::Library schemas, cpu;
#endif
};

// A static object must not throw: the failure is kept for ala_metric/_native.py, which asks.
std::string register_operators() {
  try {
    static const Operators operators;
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}
const std::string problem = register_operators();

}  // namespace

// Why the operators are not registered, or NULL.
extern "C" ALA_API const char* ala_metric_torch_problem(void) {
  return problem.empty() ? nullptr : problem.c_str();
}

// Why CUDA tensors cannot be served, or NULL. Asks no driver: that would spoil a later fork.
extern "C" ALA_API const char* ala_metric_torch_cuda_obstacle(void) {
  return ala::cuda_binding::obstacle();
}

// Whether torch's cuBLAS was found; without it the products are the library's own, several times slower.
extern "C" ALA_API int32_t ala_metric_torch_finds_cublas(void) {
  return ala::cuda_binding::finds_cublas();
}
