// Every op against the double loops of oracle.h: dtypes, odd shapes, strides, near-duplicates, threads.
// The instruction set is that of ALA_METRIC_ISA; exit code 77 (skipped) where this CPU lacks it.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>

#include "ala_metric/ala_metric.h"
#include "check.h"
#include "core/scalar_math.h"
#include "core/shapes.h"
#include "oracle.h"
#include "threads.h"

namespace {

using oracle::Problem;
using oracle::Vector;
using test::Threads;

// ---- Inputs -------------------------------------------------------------------------------------------

uint16_t to_half(float value) {  // round to nearest even; test values are normal halves or zero
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits < 0x38800000u) return static_cast<uint16_t>(sign);
  bits += 0xfffu + (bits >> 13 & 1u);
  return static_cast<uint16_t>(sign | ((bits >> 13) - (112u << 10)));
}
uint16_t to_bfloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
double from_half(uint16_t h) {
  const int exponent = h >> 10 & 31;
  const double size =
      exponent == 0 ? std::ldexp(h & 1023, -24) : std::ldexp(1024 + (h & 1023), exponent - 25);
  return h & 0x8000 ? -size : size;
}
double from_bfloat(uint16_t b) {
  const uint32_t bits = static_cast<uint32_t>(b) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

enum class Layout { contiguous, padded_rows, transposed, reversed };
constexpr Layout kLayouts[] = {Layout::contiguous, Layout::padded_rows, Layout::transposed, Layout::reversed};

// Stores values in a dtype and layout, and rounds `values` to what was stored.
struct Stored {
  std::vector<char> bytes;
  ala_matrix view;

  Stored(Vector& values, int64_t rows, int64_t cols, ala_dtype dtype, Layout layout) {
    const int64_t size = dtype == ALA_F64 ? 8 : dtype == ALA_F32 ? 4 : 2;
    view = {nullptr, dtype, rows, cols, cols, 1};
    int64_t start = 0;
    if (layout == Layout::padded_rows) view.row_stride = cols + 3;
    if (layout == Layout::transposed) view.row_stride = 1, view.col_stride = rows;
    if (layout == Layout::reversed && rows > 0) view.row_stride = -cols, start = (rows - 1) * cols;
    bytes.resize(static_cast<size_t>((rows * (cols + 3) + 1) * size));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) {
        double& value = values[r * cols + c];
        char* at = bytes.data() + (start + r * view.row_stride + c * view.col_stride) * size;
        const float single = static_cast<float>(value);
        const uint16_t half = dtype == ALA_F16 ? to_half(single) : to_bfloat(single);
        if (dtype == ALA_F64) {
          std::memcpy(at, &value, 8);
        } else if (dtype == ALA_F32) {
          std::memcpy(at, &single, 4);
          value = static_cast<double>(single);
        } else {
          std::memcpy(at, &half, 2);
          value = dtype == ALA_F16 ? from_half(half) : from_bfloat(half);
        }
      }
    view.data = rows * cols > 0 ? bytes.data() + start * size : nullptr;  // as the header allows
  }
};

enum class Kind { unit, large, near_duplicates, collapsed, equal };

Problem random_problem(int64_t n, int64_t m, int64_t dims, int64_t classes, Kind kind, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Problem p;
  p.n = n;
  p.symmetric = m < 0;
  p.m = p.symmetric ? n : m;
  p.dims = dims;
  const auto points = [&](int64_t count) {
    Vector v(static_cast<size_t>(count * dims));
    for (int64_t i = 0; i < count; ++i) {
      double length = 0;
      for (int64_t k = 0; k < dims; ++k) length += std::pow(v[i * dims + k] = normal(random), 2);
      for (int64_t k = 0; k < dims; ++k)
        v[i * dims + k] *= (kind == Kind::large ? 12 : 1) / std::sqrt(length);
    }
    for (int64_t i = 1; i < count; ++i)
      for (int64_t k = 0; k < dims; ++k) {
        const double first = v[k], noise = normal(random) / std::sqrt(static_cast<double>(dims));
        if (kind == Kind::near_duplicates && i % 3 == 0)
          v[i * dims + k] = v[(i - 1) * dims + k] + 1e-3 * noise;
        if (kind == Kind::collapsed) v[i * dims + k] = first + 1e-3 * noise;
        if (kind == Kind::equal) v[i * dims + k] = first;
      }
    return v;
  };
  const auto labels = [&](int64_t count) {
    oracle::Labels v(static_cast<size_t>(count));
    for (auto& l : v) l = static_cast<int64_t>(random() % static_cast<unsigned>(classes)) * 4294967311 - 7;
    return v;
  };
  p.x = points(n);
  p.x_labels = labels(n);
  if (!p.symmetric) p.y = points(p.m), p.y_labels = labels(p.m);
  p.weights.resize(static_cast<size_t>(n));
  for (auto& w : p.weights) w = 0.25 * (1 + random() % 8);  // exact in every type
  return p;
}

// ---- Calls --------------------------------------------------------------------------------------------

template <class Request>
using Query = ala_status (*)(const Request*, const ala_executor*, int64_t*, ala_error*);
template <class Request>
using Run = ala_status (*)(const Request*, const ala_executor*, void*, int64_t, ala_error*);

template <class Request>
ala_status call(Query<Request> query, Run<Request> run, const Request& request,
                const ala_executor* executor) {
  ala_error error{};
  int64_t bytes = 0;
  ala_status status = query(&request, executor, &bytes, &error);
  if (status == ALA_OK) {
    // An odd address, poisoned with NaN: nothing may rely on alignment or cleared memory.
    std::vector<char> workspace(static_cast<size_t>(bytes) + 1, static_cast<char>(0xff));
    status = run(&request, executor, workspace.data() + 1, bytes, &error);
  }
  if (status != ALA_OK) test::fail(__FILE__, __LINE__, error.message);
  return status;
}
#define CALL(op, request, executor) call(ala_##op##_workspace, ala_##op, request, executor)

template <class T>
struct Outputs {
  std::vector<T> loss, grad_x, grad_y, grad_phi;
  Outputs(const Problem& p, int n_phi)
      : loss(p.n, T(7)),
        grad_x(p.n * p.dims, T(7)),
        grad_y(p.symmetric ? 0 : p.m * p.dims, T(7)),
        grad_phi(n_phi, T(7)) {}
  bool operator==(const Outputs& o) const {
    return loss == o.loss && grad_x == o.grad_x && grad_y == o.grad_y && grad_phi == o.grad_phi;
  }
};

template <class Request, class T>
Request labelled_request(const Problem& p, const ala_matrix& x, const ala_matrix& y,
                         const std::vector<T>& weights, const Vector& phi, Outputs<T>& out, bool phi_wanted) {
  Request r{};
  r.x = x;
  r.y = y;
  r.symmetric = p.symmetric;
  r.x_labels = p.x_labels.data();
  r.y_labels = p.symmetric ? nullptr : p.y_labels.data();
  r.phi = phi.data();
  r.weights = weights.data();
  r.loss = out.loss.data();
  r.grad_x = out.grad_x.data();
  r.grad_y = p.symmetric ? nullptr : out.grad_y.data();
  r.grad_phi = phi_wanted ? out.grad_phi.data() : nullptr;
  return r;
}

const Vector kAllShapes = {0.75, 0.25, 1, 0.5, 1.25, 0.75, 0.25, 0.5, 0.5, 1.5};
const Vector kDefaultPhi = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0};

// The mixture alone, with the problem's own rows: all gradients, then the losses alone.
template <class T>
void check_mixture(Problem p, ala_dtype dtype) {
  const Stored x(p.x, p.n, p.dims, dtype, Layout::contiguous), y(p.y, p.m, p.dims, dtype, Layout::contiguous);
  const std::vector<T> weights(p.weights.begin(), p.weights.end());
  const double tolerance = sizeof(T) == 4 ? 2e-5 : 2e-12;  // as for near duplicates below
  for (const Vector& phi : {kAllShapes, kDefaultPhi}) {
    const auto wanted = oracle::mixture(p, phi);
    for (bool phi_wanted : {true, false}) {
      Outputs<T> got(p, 10), losses(p, 10);
      auto request =
          labelled_request<ala_distance_mixture_request>(p, x.view, y.view, weights, phi, got, phi_wanted);
      request.own = p.own.data();
      CALL(distance_mixture, request, nullptr);
      CHECK_CLOSE(got.loss, wanted.loss, tolerance);
      CHECK_CLOSE(got.grad_x, wanted.grad_x, tolerance);
      CHECK_CLOSE(got.grad_y, wanted.grad_y, tolerance);
      if (phi_wanted) CHECK_CLOSE(got.grad_phi, wanted.grad_phi, tolerance);
      request.loss = losses.loss.data();
      request.grad_x = request.grad_y = nullptr;
      CALL(distance_mixture, request, nullptr);
      CHECK_CLOSE(losses.loss, wanted.loss, tolerance);
    }
  }
}

// One problem through all labelled ops. T is the compute type of dtype.
template <class T>
void check_problem(Problem p, ala_dtype dtype, Layout layout, Kind kind) {
  Stored x(p.x, p.n, p.dims, dtype, layout);
  Stored y(p.y, p.symmetric ? 0 : p.m, p.dims, dtype, layout);
  if (p.symmetric) p.y = p.x, p.y_labels = p.x_labels;
  const std::vector<T> weights(p.weights.begin(), p.weights.end());

  // Rounding of d costs a few units in the last place of the compute type; few or one-dimensional points do
  // not average it, and collapsed points lose digits when they are stored (the oracle reads the stored
  // values).
  const bool single = sizeof(T) == 4;
  const double tolerance = (single ? 1e-6 : 1e-13) * (p.dims < 4 || p.n < 20 || kind != Kind::unit ? 20 : 1);

  for (const Vector& phi : {kAllShapes, kDefaultPhi}) {
    const auto wanted = oracle::mixture(p, phi);
    for (bool phi_wanted : {true, false}) {
      Outputs<T> got(p, 10);
      CALL(distance_mixture,
           labelled_request<ala_distance_mixture_request>(p, x.view, y.view, weights, phi, got, phi_wanted),
           nullptr);
      CHECK_CLOSE(got.loss, wanted.loss, tolerance);
      CHECK_CLOSE(got.grad_x, wanted.grad_x, tolerance);
      CHECK_CLOSE(got.grad_y, wanted.grad_y, tolerance);
      if (phi_wanted) CHECK_CLOSE(got.grad_phi, wanted.grad_phi, tolerance);
    }
  }

  for (const Vector& phi : {Vector{2, 8}, Vector{64, 64}}) {
    const auto wanted = oracle::focal(p, phi, 1);
    // e = phi (d - offset): its rounding error grows with phi and d.
    const double scale = std::max(1.0, phi[1] / 8) * (kind == Kind::large ? 4 : 1);
    Outputs<T> got(p, 2), again(p, 2);
    std::vector<double> lse(2 * p.n);
    auto request = labelled_request<ala_focal_weighting_request>(p, x.view, y.view, weights, phi, got, true);
    request.offset = 1;
    request.lse = lse.data();
    CALL(focal_weighting, request, nullptr);
    CHECK_CLOSE(got.loss, wanted.loss, tolerance);
    CHECK_CLOSE(got.grad_x, wanted.grad_x, 2 * scale * tolerance);
    CHECK_CLOSE(got.grad_y, wanted.grad_y, 2 * scale * tolerance);
    // A sum of w log w over softmax weights w cancels to almost 0 where one w is almost 1, so its error is
    // measured against the size of one term, 1 / phi^2 per anchor, appended to both sides.
    const double term = std::accumulate(p.weights.begin(), p.weights.end(), 1e-3) / (phi[1] * phi[1]);
    auto got_phi = got.grad_phi;
    auto wanted_phi = wanted.grad_phi;
    got_phi.push_back(static_cast<T>(term));
    wanted_phi.push_back(static_cast<double>(static_cast<T>(term)));
    CHECK_CLOSE(got_phi, wanted_phi, 4 * scale * tolerance);
    request = labelled_request<ala_focal_weighting_request>(p, x.view, y.view, weights, phi, again, false);
    request.offset = 1;
    request.lse = lse.data();
    request.lse_given = 1;
    CALL(focal_weighting, request, nullptr);
    CHECK_CLOSE(again.loss, wanted.loss, 4 * tolerance);
    CHECK_CLOSE(again.grad_x, wanted.grad_x, 4 * scale * tolerance);
    CHECK_CLOSE(again.grad_y, wanted.grad_y, 4 * scale * tolerance);
  }

  std::vector<T> statistics(10, T(7));
  ala_distance_statistics_request s{};
  s.x = x.view, s.y = y.view, s.symmetric = p.symmetric;
  s.x_labels = p.x_labels.data(), s.y_labels = p.y_labels.data(), s.statistics = statistics.data();
  CALL(distance_statistics, s, nullptr);
  CHECK_CLOSE(statistics, oracle::statistics(p), 3 * tolerance);

  std::vector<T> distances(p.n * p.m, T(7));
  Vector wanted_distances(p.n * p.m);
  for (int64_t i = 0; i < p.n; ++i)
    for (int64_t j = 0; j < p.m; ++j) wanted_distances[i * p.m + j] = p.distance(i, j);
  ala_pairwise_distance_request d{};
  d.x = x.view, d.y = y.view, d.symmetric = p.symmetric, d.distances = distances.data();
  CALL(pairwise_distance, d, nullptr);
  CHECK_CLOSE(distances, wanted_distances, tolerance);
  if (p.symmetric)
    for (int64_t i = 0; i < p.n; ++i)
      for (int64_t j = 0; j < p.n; ++j) {
        CHECK(distances[i * p.n + j] == distances[j * p.n + i]);
        CHECK(i != j || distances[i * p.n + j] == T(0));
      }

  Vector upstream(p.n * p.m);
  for (size_t t = 0; t < upstream.size(); ++t) upstream[t] = static_cast<double>(t * 7 % 13) / 8 - 0.5;
  const Stored grad(upstream, p.n, p.m, single ? ALA_F32 : ALA_F64, layout);
  Outputs<T> got(p, 0);
  auto wanted = oracle::empty_result(p, 0);
  for (int64_t i = 0; i < p.n; ++i)
    for (int64_t j = 0; j < p.m; ++j) oracle::pull(p, i, j, upstream[i * p.m + j], wanted);
  ala_pairwise_distance_backward_request b{};
  b.x = x.view, b.y = y.view, b.symmetric = p.symmetric, b.grad_distances = grad.view;
  b.grad_x = got.grad_x.data(), b.grad_y = p.symmetric ? nullptr : got.grad_y.data();
  CALL(pairwise_distance_backward, b, nullptr);
  CHECK_CLOSE(got.grad_x, wanted.grad_x, 2 * tolerance);
  CHECK_CLOSE(got.grad_y, wanted.grad_y, 2 * tolerance);
}

void check_problem(const Problem& p, ala_dtype dtype, Layout layout, Kind kind) {
  static const char* kinds[] = {"unit", "large", "near duplicates", "collapsed", "equal"};
  test::context = "n=" + std::to_string(p.n) + " m=" + std::to_string(p.symmetric ? -1 : p.m) +
                  " D=" + std::to_string(p.dims) + " dtype=" + std::to_string(dtype) +
                  " layout=" + std::to_string(static_cast<int>(layout)) + " " + kinds[static_cast<int>(kind)];
  if (dtype == ALA_F64)
    check_problem<double>(p, dtype, layout, kind);
  else
    check_problem<float>(p, dtype, layout, kind);
}

void test_shapes_and_dtypes() {
  const int64_t sizes[][2] = {{0, -1}, {1, -1}, {2, -1}, {31, -1}, {67, -1}, {131, -1},
                              {0, 3},  {3, 0},  {1, 1},  {5, 101}, {97, 13}};
  unsigned seed = 0;
  for (const auto& size : sizes)
    for (int64_t dims : {1, 3, 16, 37})
      for (int64_t classes : {1, 5, 1000}) {
        const Problem p = random_problem(size[0], size[1], dims, classes, Kind::unit, ++seed);
        check_problem(p, ALA_F64, kLayouts[seed % 4], Kind::unit);
        check_problem(p,
                      static_cast<ala_dtype>(seed % 3 == 0   ? ALA_F32
                                             : seed % 3 == 1 ? ALA_F16
                                                             : ALA_BF16),
                      kLayouts[seed / 3 % 4], Kind::unit);
        check_problem(p, ALA_F32, kLayouts[seed / 5 % 4], Kind::unit);
      }
  // No dimensions: no rows to point to.
  for (const auto& size : sizes)
    for (ala_dtype dtype : {ALA_F32, ALA_F64})
      check_problem(random_problem(size[0], size[1], 0, 5, Kind::unit, 1), dtype, Layout::contiguous,
                    Kind::unit);
  // Deeper than one pass of the micro-kernel; several blocks.
  check_problem(random_problem(150, -1, 523, 40, Kind::unit, ++seed), ALA_F32, Layout::contiguous,
                Kind::unit);
  check_problem(random_problem(150, 170, 300, 40, Kind::unit, ++seed), ALA_F64, Layout::contiguous,
                Kind::unit);
}

void test_near_pairs_and_scales() {
  for (Kind kind : {Kind::large, Kind::near_duplicates, Kind::collapsed, Kind::equal})
    for (int64_t m : {int64_t{-1}, int64_t{45}})
      for (int64_t dims : {1, 3, 33})
        for (ala_dtype dtype : {ALA_F32, ALA_F64}) {
          if (kind == Kind::large && dims == 1)
            continue;  // +-12 only: exact ties of the focal maximum, no information
          check_problem(random_problem(61, m, dims, 6, kind, 99), dtype, Layout::contiguous, kind);
        }
}

// Own rows with and without the anchor's label and values, doubles of them that count, and none.
void test_own() {
  unsigned seed = 300;
  const int64_t sizes[][2] = {{0, 3}, {1, 1}, {1, 2}, {5, 101}, {97, 13}, {61, 1201}, {331, 347}};
  for (const auto& size : sizes)
    for (int64_t dims : {1, 3, 37})
      for (ala_dtype dtype : {ALA_F32, ALA_F64}) {
        Problem p = random_problem(size[0], size[1], dims, 4, Kind::unit, ++seed);
        p.own.resize(static_cast<size_t>(p.n));
        for (int64_t i = 0; i < p.n; ++i) {
          p.own[i] = i % 5 == 4 ? -1 : i * 7 % p.m;
          for (int64_t j : {p.own[i], (p.own[i] + 1) % p.m})
            if (i % 5 == 1 || (i % 5 == 0 && j == p.own[i])) {
              std::copy_n(p.x.begin() + i * dims, dims, p.y.begin() + j * dims);
              p.y_labels[j] = p.x_labels[i];
            }
        }
        test::context = "own n=" + std::to_string(p.n) + " m=" + std::to_string(p.m) +
                        " D=" + std::to_string(dims) + (dtype == ALA_F32 ? " float" : " double");
        if (dtype == ALA_F32)
          check_mixture<float>(p, dtype);
        else
          check_mixture<double>(p, dtype);
      }
}

// ---- Mined pairs and triplets -------------------------------------------------------------------------

template <class T>
void check_mined(int64_t n, int64_t m, int64_t dims, int64_t items, Kind kind, const ala_executor* executor) {
  Problem p = random_problem(n, m, dims, 5, kind, 7);
  test::context =
      "mined n=" + std::to_string(n) + " D=" + std::to_string(dims) + " items=" + std::to_string(items);
  const ala_dtype dtype = sizeof(T) == 4 ? ALA_F32 : ALA_F64;
  const Stored x(p.x, p.n, dims, dtype, Layout::transposed),
      y(p.y, p.symmetric ? 0 : p.m, dims, dtype, Layout::reversed);
  if (p.symmetric) p.y = p.x;
  const double tolerance = sizeof(T) == 4 ? 3e-6 : 1e-13;

  std::mt19937 random(3);
  oracle::Labels a(items), q(items), b(items), r(items);
  std::vector<T> w(items), v(items);
  for (int64_t t = 0; t < items; ++t) {
    a[t] = random() % p.n, b[t] = random() % p.n, q[t] = random() % p.m, r[t] = random() % p.m;
    w[t] = T(0.25) * static_cast<T>(random() % 9), v[t] = T(0.25) * static_cast<T>(random() % 9);
  }
  const auto value = [&](int first, double d) {
    double sum = 0;
    for (int k = first; k < first + 5; ++k) sum += kAllShapes[k] * oracle::shape(k, d);
    return sum;
  };
  const auto add = [&](int first, int64_t i, int64_t j, double weight, oracle::Result& to) {
    double g = 0;
    for (int k = first; k < first + 5; ++k) {
      g += kAllShapes[k] * oracle::slope(k, p.distance(i, j));
      to.grad_phi[k] += weight * oracle::shape(k, p.distance(i, j));
    }
    oracle::pull(p, i, j, weight * g, to);
  };

  auto wanted = oracle::empty_result(p, 10);
  Vector positive(items), negative(items), both(items);
  for (int64_t t = 0; t < items; ++t) {
    positive[t] = value(0, p.distance(a[t], q[t]));
    negative[t] = value(5, p.distance(b[t], r[t]));
    both[t] = positive[t] + value(5, p.distance(a[t], r[t]));
    add(0, a[t], q[t], static_cast<double>(w[t]), wanted);
    add(5, b[t], r[t], static_cast<double>(v[t]), wanted);
  }
  Outputs<T> got(p, 10);
  std::vector<T> got_positive(items, T(7)), got_negative(items, T(7)), got_both(items, T(7));
  ala_mined_pairs_request pairs{};
  pairs.x = x.view, pairs.y = y.view, pairs.symmetric = p.symmetric, pairs.phi = kAllShapes.data();
  pairs.n_positive = pairs.n_negative = items;
  pairs.positive_anchors = a.data(), pairs.positives = q.data();
  pairs.negative_anchors = b.data(), pairs.negatives = r.data();
  pairs.positive_weights = w.data(), pairs.negative_weights = v.data();
  pairs.positive_values = got_positive.data(), pairs.negative_values = got_negative.data();
  pairs.grad_x = got.grad_x.data(), pairs.grad_y = p.symmetric ? nullptr : got.grad_y.data();
  pairs.grad_phi = got.grad_phi.data();
  CALL(mined_pairs, pairs, executor);
  CHECK_CLOSE(got_positive, positive, tolerance);
  CHECK_CLOSE(got_negative, negative, tolerance);
  CHECK_CLOSE(got.grad_x, wanted.grad_x, tolerance);
  CHECK_CLOSE(got.grad_y, wanted.grad_y, tolerance);
  CHECK_CLOSE(got.grad_phi, wanted.grad_phi, tolerance);

  wanted = oracle::empty_result(p, 10);
  for (int64_t t = 0; t < items; ++t) {
    add(0, a[t], q[t], static_cast<double>(w[t]), wanted);
    add(5, a[t], r[t], static_cast<double>(w[t]), wanted);
  }
  Outputs<T> triplet(p, 10);
  ala_mined_triplets_request triplets{};
  triplets.x = x.view, triplets.y = y.view, triplets.symmetric = p.symmetric,
  triplets.phi = kAllShapes.data();
  triplets.n_triplets = items;
  triplets.anchors = a.data(), triplets.positives = q.data(), triplets.negatives = r.data();
  triplets.weights = w.data(), triplets.values = got_both.data();
  triplets.grad_x = triplet.grad_x.data(), triplets.grad_y = p.symmetric ? nullptr : triplet.grad_y.data();
  triplets.grad_phi = triplet.grad_phi.data();
  CALL(mined_triplets, triplets, executor);
  CHECK_CLOSE(got_both, both, tolerance);
  CHECK_CLOSE(triplet.grad_x, wanted.grad_x, tolerance);
  CHECK_CLOSE(triplet.grad_y, wanted.grad_y, tolerance);
  CHECK_CLOSE(triplet.grad_phi, wanted.grad_phi, tolerance);

  if (items == 0) return;
  q[items / 2] = p.m;  // one past the end
  int64_t bytes = 0;
  ala_error error{};
  CHECK(ala_mined_triplets_workspace(&triplets, executor, &bytes, &error) == ALA_OK);
  std::vector<char> workspace(bytes);
  CHECK(ala_mined_triplets(&triplets, executor, workspace.data(), bytes, &error) == ALA_INVALID_ARGUMENT);
  CHECK(std::strstr(error.message, "positives") != nullptr);
}

void test_mined() {
  const Threads threads(3);
  for (int64_t items : {0, 1, 17, 5003})
    for (int64_t dims : {1, 3, 16, 150}) {
      check_mined<float>(41, -1, dims, items, Kind::unit, nullptr);
      check_mined<double>(41, 23, dims, items, Kind::unit, &threads.executor);
      check_mined<float>(41, 23, dims, items, Kind::collapsed, &threads.executor);
    }
}

// ---- Ranks --------------------------------------------------------------------------------------------

// p: as stored. Ranks of all positives and of the first.
void check_ranks(const Problem& p, const ala_matrix& x, const ala_matrix& y, const ala_executor* executor) {
  const auto wanted = oracle::ranks(p);
  for (bool first_only : {false, true}) {
    const int64_t count = first_only ? p.n : wanted.offsets[p.n];
    oracle::Ranks got{wanted.offsets, oracle::Labels(count, 7), oracle::Labels(count, 7)}, first = wanted;
    if (first_only) {
      first.pessimistic.assign(p.n, 0), first.optimistic.assign(p.n, 0);
      for (int64_t i = 0; i < p.n; ++i)
        if (const int64_t at = wanted.offsets[i]; at < wanted.offsets[i + 1])
          first.pessimistic[i] = wanted.pessimistic[at], first.optimistic[i] = wanted.optimistic[at];
    }
    ala_positive_ranks_request r{};
    r.x = x, r.y = y, r.symmetric = p.symmetric, r.first_only = first_only;
    r.x_labels = p.x_labels.data(), r.y_labels = p.symmetric ? nullptr : p.y_labels.data();
    r.offsets = wanted.offsets.data();
    r.pessimistic = got.pessimistic.data(), r.optimistic = got.optimistic.data();
    CALL(positive_ranks, r, executor);
    CHECK(got == (first_only ? first : wanted));
  }
}

// Blocks of 64, of 128, several groups of them; classes that are tried one by one, and that are searched.
void test_ranks() {
  const Threads three(3);
  unsigned seed = 0;
  for (const auto& size :
       {std::array<int64_t, 2>{0, -1}, {1, -1}, {67, -1}, {2300, -1}, {0, 3}, {3, 0}, {97, 1300}, {1300, 97}})
    for (int64_t dims : {1, 37, 130})
      for (Kind kind : {Kind::unit, Kind::near_duplicates, Kind::equal}) {
        if (size[0] > 2000 && (dims != 37 || kind != Kind::near_duplicates)) continue;
        ++seed;
        Problem p = random_problem(size[0], size[1], dims, seed % 2 ? 3 : 200, kind, seed);
        test::context = "ranks n=" + std::to_string(p.n) + " m=" + std::to_string(p.symmetric ? -1 : p.m) +
                        " D=" + std::to_string(dims) + " kind=" + std::to_string(static_cast<int>(kind));
        const ala_dtype dtype = seed % 3 ? ALA_F32 : ALA_F64;
        const Layout layout = kLayouts[seed / 2 % 4];
        const Stored x(p.x, p.n, dims, dtype, layout);
        const Stored y(p.y, p.symmetric ? 0 : p.m, dims, dtype, layout);
        if (p.symmetric) p.y = p.x, p.y_labels = p.x_labels;
        check_ranks(p, x.view, y.view, seed % 4 < 2 ? &three.executor : nullptr);
      }
}

// ---- Threads, NaN, arguments --------------------------------------------------------------------------

template <class T>
void check_same_bits(Problem&& p) {
  const ala_dtype dtype = sizeof(T) == 4 ? ALA_F32 : ALA_F64;
  const Stored x(p.x, p.n, p.dims, dtype, Layout::contiguous);
  const Stored y(p.y, p.symmetric ? 0 : p.m, p.dims, dtype, Layout::contiguous);
  const std::vector<T> weights(p.weights.begin(), p.weights.end());
  Outputs<T> mixture(p, 10), focal(p, 2);
  for (int64_t threads : {1, 2, 3, 8}) {
    const Threads pool(threads);
    Outputs<T> got(p, 10), got_focal(p, 2);
    CALL(distance_mixture,
         labelled_request<ala_distance_mixture_request>(p, x.view, y.view, weights, kAllShapes, got, true),
         &pool.executor);
    const Vector phi = {2, 8};
    auto request =
        labelled_request<ala_focal_weighting_request>(p, x.view, y.view, weights, phi, got_focal, true);
    request.offset = 1;
    CALL(focal_weighting, request, &pool.executor);
    if (threads == 1)
      mixture = got, focal = got_focal;
    else
      CHECK(got == mixture && got_focal == focal);
  }
}

void test_same_bits_for_any_threads() {
  test::context = "threads";
  // Focal weighting keeps the products of the last two for its second visit.
  const int64_t sizes[][3] = {{421, -1, 40}, {421, 331, 40}, {250, -1, 150}, {120, 130, 300}};
  for (const auto& size : sizes) {
    const auto problem = [&] {
      return random_problem(size[0], size[1], size[2], 50, Kind::near_duplicates, 5);
    };
    check_same_bits<float>(problem());
    check_same_bits<double>(problem());
  }
}

void test_nan_flows() {
  for (const double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY)})
    for (int64_t classes : {1, 3}) {
      test::context = "NaN and Inf";
      Problem p = random_problem(40, -1, 19, classes, Kind::unit, 11);
      p.x[3 * 19 + 18] = bad;
      const Stored x(p.x, p.n, p.dims, ALA_F32, Layout::contiguous);
      const std::vector<float> weights(p.weights.begin(), p.weights.end());
      const Vector phi = {2, 8};
      for (const Vector& mixture : {kAllShapes, kDefaultPhi}) {
        Outputs<float> got(p, 10);
        CALL(distance_mixture,
             labelled_request<ala_distance_mixture_request>(p, x.view, {}, weights, mixture, got, true),
             nullptr);
        for (float l : got.loss) CHECK(!std::isfinite(l));  // row 3 is a pair of every other row
        for (float g : got.grad_x) CHECK(!std::isfinite(g));
      }
      Outputs<float> got(p, 2);
      auto request = labelled_request<ala_focal_weighting_request>(p, x.view, {}, weights, phi, got, true);
      request.offset = 1;
      CALL(focal_weighting, request, nullptr);
      for (float l : got.loss) CHECK(!std::isfinite(l));
      for (float g : got.grad_x) CHECK(!std::isfinite(g));
    }
}

void test_bad_arguments() {
  test::context = "arguments";
  Problem p = random_problem(9, 7, 4, 3, Kind::unit, 1);
  const Stored x(p.x, p.n, p.dims, ALA_F32, Layout::contiguous),
      y(p.y, p.m, p.dims, ALA_F32, Layout::contiguous);
  const std::vector<float> weights(9, 1.f);
  Outputs<float> out(p, 2);
  Vector phi = {2, 8};
  const auto good = labelled_request<ala_focal_weighting_request>(p, x.view, y.view, weights, phi, out, true);
  ala_error error;
  int64_t bytes;
  const auto refused = [&](const ala_focal_weighting_request& r, const char* name) {
    error.message[0] = 0;
    CHECK(ala_focal_weighting_workspace(&r, nullptr, &bytes, &error) == ALA_INVALID_ARGUMENT);
    CHECK(std::strstr(error.message, name) != nullptr);
    CHECK(ala_focal_weighting_workspace(&r, nullptr, &bytes, nullptr) == ALA_INVALID_ARGUMENT);
  };
  auto r = good;
  r.x.rows = -1, refused(r, "x");
  r = good, r.y.cols = 5, refused(r, "y");
  r = good, r.y.dtype = ALA_F64, refused(r, "y.dtype");
  r = good, r.x.dtype = static_cast<ala_dtype>(9), refused(r, "x.dtype");
  r = good, r.x.data = nullptr, refused(r, "x");
  r = good, r.y_labels = nullptr, refused(r, "y_labels");
  r = good, r.phi = nullptr, refused(r, "phi");
  r = good, r.offset = NAN, refused(r, "offset");
  r = good, r.lse_given = 1, refused(r, "lse");
  r = good, r.offset = 1e50, refused(r, "offset");  // as a float: Inf
  r = good, r.x.cols = r.y.cols = int64_t{1} << 60, refused(r, "2^50 numbers");
  for (double wrong : {0.0, -1.0, static_cast<double>(NAN), static_cast<double>(INFINITY), 1e39, 1e-50})
    phi[1] = wrong, refused(good, "phi[1]");
  phi[1] = 8;
  CHECK(ala_focal_weighting_workspace(nullptr, nullptr, &bytes, &error) == ALA_INVALID_ARGUMENT);
  CHECK(ala_focal_weighting_workspace(&good, nullptr, &bytes, &error) == ALA_OK);
  std::vector<char> workspace(bytes);
  CHECK(ala_focal_weighting(&good, nullptr, workspace.data(), bytes - 1, &error) == ALA_WORKSPACE_TOO_SMALL);
  CHECK(ala_focal_weighting(&good, nullptr, nullptr, bytes, &error) == ALA_WORKSPACE_TOO_SMALL);
  Threads none(0);
  CHECK(ala_focal_weighting(&good, &none.executor, workspace.data(), bytes, &error) == ALA_INVALID_ARGUMENT);
  for (int64_t threads : {int64_t{65537}, int64_t{1} << 62, INT64_MAX}) {
    none.executor.threads = threads;
    CHECK(ala_focal_weighting_workspace(&good, &none.executor, &bytes, &error) == ALA_INVALID_ARGUMENT);
    CHECK(std::strstr(error.message, "executor.threads") != nullptr);
  }
  none.executor.threads = 65536;  // and wide rows: together more than int64 counts, but not each alone
  ala_pairwise_distance_request wide{};
  wide.x = wide.y = {x.view.data, ALA_F32, 1000, int64_t{1} << 40, 0, 0};
  CHECK(ala_pairwise_distance_workspace(&wide, &none.executor, &bytes, &error) == ALA_INVALID_ARGUMENT ||
        bytes > 0);
}

void test_bad_counts() {
  test::context = "counts";
  Problem p = random_problem(4, -1, 3, 2, Kind::unit, 5);
  const Stored x(p.x, p.n, p.dims, ALA_F32, Layout::contiguous);
  ala_error error;
  int64_t bytes;
  ala_positive_ranks_request ranks{};
  ranks.x = x.view;
  ranks.symmetric = 1;
  ranks.x_labels = p.x_labels.data();
  int64_t found[4];
  ranks.pessimistic = ranks.optimistic = found;
  for (int64_t each : {int64_t{4}, int64_t{1} << 57, int64_t{1} << 60}) {
    const int64_t offsets[] = {0, each, each, each, each};
    ranks.offsets = offsets;
    CHECK(ala_positive_ranks_workspace(&ranks, nullptr, &bytes, &error) == ALA_INVALID_ARGUMENT);
    CHECK(std::strstr(error.message, "at most 3 positives") != nullptr);
  }
  const Vector phi(10, 1.0);
  ala_mined_pairs_request mined{};
  mined.x = x.view;
  mined.symmetric = 1;
  mined.phi = phi.data();
  mined.n_positive = INT64_MAX;
  CHECK(ala_mined_pairs_workspace(&mined, nullptr, &bytes, &error) == ALA_INVALID_ARGUMENT);
  CHECK(std::strstr(error.message, "n_positive") != nullptr);
}

// Negatives so far for their sharpness that they weigh nothing.
void test_extreme_sharpness() {
  test::context = "sharpness";
  Problem p = random_problem(40, -1, 19, 4, Kind::unit, 12);
  const Stored x(p.x, p.n, p.dims, ALA_F32, Layout::contiguous);
  const std::vector<float> weights(p.weights.begin(), p.weights.end());
  Outputs<float> none(p, 2);
  for (double sharpness : {1e6, 1e13, 1e15, 1e30}) {
    const Vector phi = {2, sharpness};
    Outputs<float> got(p, 2);
    auto request = labelled_request<ala_focal_weighting_request>(p, x.view, {}, weights, phi, got, true);
    CALL(focal_weighting, request, nullptr);  // offset 0: every negative is far
    for (float l : got.loss) CHECK(std::isfinite(l));
    for (float g : got.grad_x) CHECK(std::isfinite(g));
    if (sharpness == 1e6) none = got;
    CHECK_CLOSE(Vector(got.grad_x.begin(), got.grad_x.end()), Vector(none.grad_x.begin(), none.grad_x.end()),
                1e-6);
  }
}

void test_scalar_shapes() {
  using Math = ala::portable::ScalarMath<double>;
  for (double d : {0.0, 0.03, 0.0999, 0.1001, 0.5, 0.8, 1.2, 1.9, 40.0}) {
    test::context = "shapes at d=" + std::to_string(d);
    const auto up = ala::portable::increasing_shapes<Math>(d);
    const auto down = ala::portable::decreasing_shapes<Math>(d, 1 / std::max(d, 1e-18));
    for (int k = 0; k < 5; ++k) {
      CHECK_CLOSE((Vector{up.value[k], up.slope[k]}), (Vector{oracle::shape(k, d), oracle::slope(k, d)}),
                  1e-14);
      CHECK_CLOSE((Vector{down.value[k], down.slope[k]}),
                  (Vector{oracle::shape(k + 5, d), oracle::slope(k + 5, d)}), 1e-14);
    }
    // The oracle's own slopes, by central differences (away from the kink at 0.1).
    for (int k = 0; k < 10; ++k)
      if (d > 0) {
        const double step = 1e-5,
                     numeric = (oracle::shape(k, d + step) - oracle::shape(k, d - step)) / (2 * step);
        CHECK(std::fabs(numeric - oracle::slope(k, d)) <= 1e-6 * (1 + std::fabs(numeric)));
      }
  }
}

}  // namespace

int main() {
  const char* isa = nullptr;
  ala_error error{};
  if (ala_metric_isa(&isa, &error) != ALA_OK) {
    std::printf("skipped: %s\n", error.message);
    return 77;
  }
  CHECK(std::strlen(ala_metric_version()) > 0);
  CHECK(ala_metric_abi() == ALA_METRIC_ABI);
  test_scalar_shapes();
  test_shapes_and_dtypes();
  test_near_pairs_and_scales();
  test_own();
  test_mined();
  test_ranks();
  test_same_bits_for_any_threads();
  test_nan_flows();
  test_bad_arguments();
  test_bad_counts();
  test_extreme_sharpness();
  std::printf("%s: %d failures\n", isa, test::failures);
  return test::failures != 0;
}
