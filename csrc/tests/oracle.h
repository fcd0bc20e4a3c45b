// The equations as plain double loops: the independent side of every comparison.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace oracle {

using Vector = std::vector<double>;
using Labels = std::vector<int64_t>;

inline double softplus(double u) {
  return u > 0 ? u + std::log1p(std::exp(-u)) : std::log1p(std::exp(u));
}
inline double sigmoid(double u) {
  return u > 0 ? 1 / (1 + std::exp(-u)) : std::exp(u) / (1 + std::exp(u));
}

// F+_k for k < 5, F-_{k - 5} from there on.
inline double shape(int k, double d) {
  switch (k) {
    case 0:
      return d * d;
    case 1:
      return d;
    case 2:
      return std::sqrt(d + 0.01) - 0.1;
    case 3:
      return 0.5 * d * d * d;
    case 4:
      return softplus(6 * (d - 0.8)) / 6;
    case 5:
      return d < 0.1 ? 5 - 50 * (d - 0.1) : 0.5 / d;
    case 6:
      return 2 - d;
    case 7:
      return d < 0.1 ? -std::log(0.05) - 10 * (d - 0.1) : -std::log(d / 2);
    case 8:
      return 2 * std::exp(-2 * d);
    default:
      return softplus(6 * (1.2 - d)) / 6;
  }
}
inline double slope(int k, double d) {
  switch (k) {
    case 0:
      return 2 * d;
    case 1:
      return 1;
    case 2:
      return 0.5 / std::sqrt(d + 0.01);
    case 3:
      return 1.5 * d * d;
    case 4:
      return sigmoid(6 * (d - 0.8));
    case 5:
      return d < 0.1 ? -50 : -0.5 / (d * d);
    case 6:
      return -1;
    case 7:
      return d < 0.1 ? -10 : -1 / d;
    case 8:
      return -4 * std::exp(-2 * d);
    default:
      return -sigmoid(6 * (1.2 - d));
  }
}

// N anchors x and M references y of D numbers; symmetric: y is a copy of x. own: empty, or of each anchor the
// reference that is no pair of it, or -1.
struct Problem {
  int64_t n = 0, m = 0, dims = 0;
  bool symmetric = true;
  Vector x, y;
  Labels x_labels, y_labels, own;
  Vector weights;  // [n]

  bool is_pair(int64_t i, int64_t j) const {
    return !(symmetric && i == j) && !(!own.empty() && own[i] == j);
  }
  bool same(int64_t i, int64_t j) const { return x_labels[i] == y_labels[j]; }
  double distance(int64_t i, int64_t j) const {
    double sum = 0;
    for (int64_t k = 0; k < dims; ++k) sum += std::pow(x[i * dims + k] - y[j * dims + k], 2);
    return std::sqrt(sum);
  }
};

struct Result {
  Vector loss, grad_x, grad_y, grad_phi;
};

// Adds g times the gradient of d_ij; symmetric: both into grad_x.
inline void pull(const Problem& p, int64_t i, int64_t j, double g, Result& r) {
  const double d = p.distance(i, j);
  if (d == 0) return;
  for (int64_t k = 0; k < p.dims; ++k) {
    const double push = g * (p.x[i * p.dims + k] - p.y[j * p.dims + k]) / d;
    r.grad_x[i * p.dims + k] += push;
    (p.symmetric ? r.grad_x : r.grad_y)[j * p.dims + k] -= push;
  }
}

inline Result empty_result(const Problem& p, int n_phi) {
  return {Vector(p.n), Vector(p.n * p.dims), Vector(p.symmetric ? 0 : p.m * p.dims), Vector(n_phi)};
}

inline Result mixture(const Problem& p, const Vector& phi) {
  Result r = empty_result(p, 10);
  for (int64_t i = 0; i < p.n; ++i) {
    double count[2] = {0, 0};
    for (int64_t j = 0; j < p.m; ++j)
      if (p.is_pair(i, j)) count[p.same(i, j) ? 0 : 1] += 1;
    for (int64_t j = 0; j < p.m; ++j) {
      if (!p.is_pair(i, j)) continue;
      const int kind = p.same(i, j) ? 0 : 1;
      const double d = p.distance(i, j);
      double g = 0;
      for (int k = 5 * kind; k < 5 * kind + 5; ++k) {
        r.loss[i] += phi[k] * shape(k, d) / count[kind];
        g += phi[k] * slope(k, d);
        r.grad_phi[k] += p.weights[i] * shape(k, d) / count[kind];
      }
      pull(p, i, j, p.weights[i] * g / count[kind], r);
    }
  }
  return r;
}

inline Vector statistics(const Problem& p) {
  Vector sum(10);
  double count[2] = {0, 0};
  for (int64_t i = 0; i < p.n; ++i)
    for (int64_t j = 0; j < p.m; ++j) {
      if (!p.is_pair(i, j)) continue;
      const int kind = p.same(i, j) ? 0 : 1;
      count[kind] += 1;
      for (int k = 5 * kind; k < 5 * kind + 5; ++k) sum[k] += shape(k, p.distance(i, j));
    }
  for (int k = 0; k < 10; ++k) sum[k] = count[k / 5] > 0 ? sum[k] / count[k / 5] : 0;
  return sum;
}

// Ranks of the positives of every query, nearest first: j + negatives nearer (optimistic) or not farther.
struct Ranks {
  Labels offsets, pessimistic, optimistic;
  bool operator==(const Ranks& o) const {
    return offsets == o.offsets && pessimistic == o.pessimistic && optimistic == o.optimistic;
  }
};

inline Ranks ranks(const Problem& p) {
  Ranks r;
  r.offsets.push_back(0);
  for (int64_t i = 0; i < p.n; ++i) {
    Vector near, far;
    for (int64_t j = 0; j < p.m; ++j)
      if (p.is_pair(i, j)) (p.same(i, j) ? near : far).push_back(p.distance(i, j));
    std::sort(near.begin(), near.end());
    std::sort(far.begin(), far.end());
    for (size_t j = 0; j < near.size(); ++j) {
      const auto before = std::lower_bound(far.begin(), far.end(), near[j]);
      const auto behind = std::upper_bound(far.begin(), far.end(), near[j]);
      r.optimistic.push_back(static_cast<int64_t>(j) + 1 + (before - far.begin()));
      r.pessimistic.push_back(static_cast<int64_t>(j) + 1 + (behind - far.begin()));
    }
    r.offsets.push_back(static_cast<int64_t>(r.optimistic.size()));
  }
  return r;
}

inline Result focal(const Problem& p, const Vector& phi, double offset) {
  Result r = empty_result(p, 2);
  for (int64_t i = 0; i < p.n; ++i)
    for (int kind = 0; kind < 2; ++kind) {
      const double sign = kind == 0 ? 1 : -1;
      const auto exponent = [&](int64_t j) { return sign * phi[kind] * (p.distance(i, j) - offset); };
      const auto counts = [&](int64_t j) { return p.is_pair(i, j) && p.same(i, j) == (kind == 0); };
      double largest = 0;
      for (int64_t j = 0; j < p.m; ++j)
        if (counts(j)) largest = std::fmax(largest, exponent(j));
      double sum = 0;
      for (int64_t j = 0; j < p.m; ++j)
        if (counts(j)) sum += std::exp(exponent(j) - largest);
      const double lse = largest == 0 ? std::log1p(sum) : largest + std::log(std::exp(-largest) + sum);
      r.loss[i] += lse / phi[kind];
      // d/dphi of lse / phi = (sum_j w_j e_j - lse) / phi^2
      double mean = 0;
      for (int64_t j = 0; j < p.m; ++j) {
        if (!counts(j)) continue;
        const double w = std::exp(exponent(j) - lse);
        mean += w * exponent(j);
        pull(p, i, j, p.weights[i] * sign * w, r);
      }
      r.grad_phi[kind] += p.weights[i] * (mean - lse) / (phi[kind] * phi[kind]);
    }
  return r;
}

}  // namespace oracle
