// The kernels for NumPy arrays: memory and threads, no arithmetic. ala_metric/numpy_api.py has checked and
// converted the arguments; it is the only caller.
#include <ala_metric/ala_metric.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace py = pybind11;

namespace {

using Labels = py::array_t<int64_t, py::array::c_style>;
using Phi = py::array_t<double, py::array::c_style>;
using Array = std::optional<py::array>;

void demand(ala_status status, const ala_error& error) {
  if (status == ALA_INVALID_ARGUMENT) throw py::value_error(error.message);
  if (status != ALA_OK) throw std::runtime_error(std::string("ala_metric: ") + error.message);
}

ala_dtype element_type(const py::array& a) {
  switch (a.itemsize()) {
    case 2:
      return ALA_F16;
    case 4:
      return ALA_F32;
    default:
      return ALA_F64;
  }
}

ala_matrix matrix(const py::array& a) {
  const auto size = a.itemsize();
  return {a.data(), element_type(a), a.shape(0), a.shape(1), a.strides(0) / size, a.strides(1) / size};
}

py::array output(const py::array& like, std::vector<py::ssize_t> shape) {
  return py::array(element_type(like) == ALA_F64 ? py::dtype::of<double>() : py::dtype::of<float>(), shape);
}

template <class Request>
void set_points(Request& request, const py::array& x, const Array& y) {
  request.x = matrix(x);
  request.symmetric = !y.has_value();
  request.y = y ? matrix(*y) : request.x;
}

template <class Request>
void set_labels(Request& request, const Labels& labels, const std::optional<Labels>& ref_labels) {
  request.x_labels = labels.data();
  request.y_labels = ref_labels ? ref_labels->data() : labels.data();
}

// Each task on a thread of its own, the first on this one.
void run_on_threads(void*, int64_t n_tasks, ala_task task, void* context) {
  std::vector<std::thread> threads;
  int64_t next = 1;
  try {
    for (; next < n_tasks; ++next) threads.emplace_back(task, context, next);
  } catch (const std::exception&) {  // no more threads to be had: the rest runs here
    for (; next < n_tasks; ++next) task(context, next);
  }
  if (n_tasks > 0) task(context, 0);
  for (auto& thread : threads) thread.join();
}

template <class Request>
void run(const Request& request, int64_t threads,
         ala_status (*workspace_size)(const Request*, const ala_executor*, int64_t*, ala_error*),
         ala_status (*op)(const Request*, const ala_executor*, void*, int64_t, ala_error*)) {
  const py::gil_scoped_release release;
  const ala_executor executor{nullptr, threads, run_on_threads};
  ala_error error{};
  int64_t bytes = 0;
  ala_status status = workspace_size(&request, &executor, &bytes, &error);
  if (status == ALA_OK) {
    const std::unique_ptr<unsigned char[]> workspace(new unsigned char[static_cast<size_t>(bytes)]);
    status = op(&request, &executor, workspace.get(), bytes, &error);
  }
  demand(status, error);
}

// (loss, gradient of the anchors, of the references, of phi); gradients that were not asked for are None.
template <class Request>
py::tuple loss_and_gradients(
    Request& request, const py::array& x, const Array& y, const Phi& phi, const Array& weights, bool gradient,
    int64_t threads, ala_status (*workspace_size)(const Request*, const ala_executor*, int64_t*, ala_error*),
    ala_status (*op)(const Request*, const ala_executor*, void*, int64_t, ala_error*)) {
  py::array loss = output(x, {x.shape(0)});
  request.phi = phi.data();
  request.weights = weights ? weights->data() : nullptr;
  request.loss = loss.mutable_data();
  py::object grad_x = py::none(), grad_y = py::none(), grad_phi = py::none();
  const auto wanted = [&](py::object& slot, std::vector<py::ssize_t> shape) {
    py::array room = output(x, std::move(shape));
    slot = room;
    return room.mutable_data();
  };
  if (gradient) {
    request.grad_x = wanted(grad_x, {x.shape(0), x.shape(1)});
    if (y) request.grad_y = wanted(grad_y, {y->shape(0), y->shape(1)});
    request.grad_phi = wanted(grad_phi, {phi.shape(0)});
  }
  run(request, threads, workspace_size, op);
  return py::make_tuple(loss, grad_x, grad_y, grad_phi);
}

py::array pairwise_distance(const py::array& x, const Array& y, int64_t threads) {
  ala_pairwise_distance_request request{};
  set_points(request, x, y);
  py::array distances = output(x, {x.shape(0), y ? y->shape(0) : x.shape(0)});
  request.distances = distances.mutable_data();
  run(request, threads, ala_pairwise_distance_workspace, ala_pairwise_distance);
  return distances;
}

py::tuple distance_mixture(const py::array& x, const Labels& labels, const Phi& phi, const Array& y,
                           const std::optional<Labels>& ref_labels, const Array& weights, bool gradient,
                           int64_t threads) {
  ala_distance_mixture_request request{};
  set_points(request, x, y);
  set_labels(request, labels, ref_labels);
  return loss_and_gradients(request, x, y, phi, weights, gradient, threads, ala_distance_mixture_workspace,
                            ala_distance_mixture);
}

py::tuple focal_weighting(const py::array& x, const Labels& labels, const Phi& phi, double offset,
                          const Array& y, const std::optional<Labels>& ref_labels, const Array& weights,
                          bool gradient, int64_t threads) {
  ala_focal_weighting_request request{};
  set_points(request, x, y);
  set_labels(request, labels, ref_labels);
  request.offset = offset;
  return loss_and_gradients(request, x, y, phi, weights, gradient, threads, ala_focal_weighting_workspace,
                            ala_focal_weighting);
}

py::array distance_statistics(const py::array& x, const Labels& labels, const Array& y,
                              const std::optional<Labels>& ref_labels, int64_t threads) {
  ala_distance_statistics_request request{};
  set_points(request, x, y);
  set_labels(request, labels, ref_labels);
  py::array statistics = output(x, {ALA_MIXTURE_PHI});
  request.statistics = statistics.mutable_data();
  run(request, threads, ala_distance_statistics_workspace, ala_distance_statistics);
  return statistics;
}

// [2, ranks], pessimistic and optimistic, or [2, N] with first_only; offsets count the positives.
py::array_t<int64_t> positive_ranks(const py::array& x, const Labels& labels, const Labels& offsets,
                                    const Array& y, const std::optional<Labels>& ref_labels, bool cosine,
                                    bool first_only, int64_t threads) {
  ala_positive_ranks_request request{};
  set_points(request, x, y);
  set_labels(request, labels, ref_labels);
  const int64_t count = first_only ? x.shape(0) : offsets.at(x.shape(0));
  py::array_t<int64_t> ranks({int64_t{2}, count});
  request.cosine = cosine;
  request.first_only = first_only;
  request.offsets = offsets.data();
  request.pessimistic = ranks.mutable_data();
  request.optimistic = ranks.mutable_data() + count;
  run(request, threads, ala_positive_ranks_workspace, ala_positive_ranks);
  return ranks;
}

std::string isa() {
  const char* name = nullptr;
  ala_error error{};
  demand(ala_metric_isa(&name, &error), error);
  return name;
}

}  // namespace

PYBIND11_MODULE(_numpy, module) {
  module.def("version", &ala_metric_version);
  module.def("isa", &isa);
  module.def("pairwise_distance", &pairwise_distance);
  module.def("distance_mixture", &distance_mixture);
  module.def("focal_weighting", &focal_weighting);
  module.def("distance_statistics", &distance_statistics);
  module.def("positive_ranks", &positive_ranks);
}
