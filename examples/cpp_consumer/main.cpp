// Gradient descent on the distance-mixture loss from plain C++: 3 classes of points in the plane come apart.
// No torch, no Python: the C API works on any memory, here on std::vector.
#include <ala_metric/ala_metric.h>

#include <cstdio>
#include <random>
#include <system_error>
#include <thread>
#include <vector>

namespace {

// The core asks for threads through a callback, so that it fits into any program's thread pool.
void run_on_threads(void*, int64_t n_tasks, ala_task task, void* context) {
  std::vector<std::thread> threads;
  int64_t t = 1;
  try {
    for (; t < n_tasks; ++t) threads.emplace_back(task, context, t);
  } catch (const std::system_error&) {  // no more threads to be had: the rest runs here
    for (; t < n_tasks; ++t) task(context, t);
  }
  if (n_tasks > 0) task(context, 0);
  for (auto& thread : threads) thread.join();
}

}  // namespace

int main() {
  const int64_t rows = 300, dimensions = 2;
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  std::vector<float> points(rows * dimensions), gradient(points.size()), loss(rows);
  std::vector<int64_t> labels(rows);
  for (auto& value : points) value = normal(random);
  for (int64_t i = 0; i < rows; ++i) labels[i] = i % 3;
  const std::vector<double> phi = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0};  // d^2 to pull, 0.5/d to push

  ala_distance_mixture_request request{};
  request.x = {points.data(), ALA_F32, rows, dimensions, dimensions, 1};
  request.symmetric = 1;
  request.x_labels = labels.data();
  request.phi = phi.data();
  request.loss = loss.data();
  request.grad_x = gradient.data();

  const ala_executor executor{nullptr, 2, run_on_threads};
  ala_error error;
  int64_t bytes = 0;
  if (ala_distance_mixture_workspace(&request, &executor, &bytes, &error) != ALA_OK) {
    std::fprintf(stderr, "%s\n", error.message);
    return 1;
  }
  std::vector<unsigned char> workspace(bytes);

  double first = 0, mean = 0;
  for (int step = 0; step <= 100; ++step) {
    if (ala_distance_mixture(&request, &executor, workspace.data(), bytes, &error) != ALA_OK) {
      std::fprintf(stderr, "%s\n", error.message);
      return 1;
    }
    mean = 0;
    for (float value : loss) mean += value / rows;
    if (step == 0) first = mean;
    for (size_t i = 0; i < points.size(); ++i) points[i] -= 0.1f * gradient[i];
  }
  std::printf("ala_metric %s: mean loss %.4f -> %.4f\n", ala_metric_version(), first, mean);
  return mean < 0.5 * first ? 0 : 1;
}
