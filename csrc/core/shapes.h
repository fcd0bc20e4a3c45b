// The ten shapes of the distance mixture (Eq. 9), written once for scalars and vectors, host and device.
//
// Math supplies the arithmetic: Value, exp, log, sqrt, reciprocal, max, min, select, less (see
// scalar_math.h). All shapes are finite at d = 0: the pole of 0.5/d and the logarithm go on as straight lines
// below kPole.
#pragma once

#include "core/config.h"

namespace ala {
namespace ALA_ISA {

constexpr int kShapes = 5;

// Relative to |x|^2 + |y|^2: squared distances at or below this share are recomputed from the difference,
// because |x|^2 + |y|^2 - 2xy has lost their digits; so are their gradients, because rowsum(G) x - G X would
// cancel.
constexpr double kNearPair = 1e-2;

// Squared distances are raised to this before 1/sqrt: keeps 1/d finite, and 1/d * (x - y) exactly 0 for equal
// rows.
constexpr double kSmallestSquare = 1e-36;

template <class Math>
struct Shapes {
  using V = typename Math::Value;
  V value[kShapes];
  V slope[kShapes];
};

// log(1 + exp(u)) and its slope sigmoid(u), for any u.
template <class Math>
ALA_HD void softplus(typename Math::Value u, typename Math::Value& value, typename Math::Value& slope) {
  using V = typename Math::Value;
  const V zero = Math::set(0), one = Math::set(1);
  const auto negative = Math::less(u, zero);
  const V q = Math::exp(Math::select(negative, u, -u));  // in (0, 1]
  const V sum = one + q;
  const V inverse = Math::reciprocal(sum);
  slope = Math::select(negative, q, one) * inverse;
  value = Math::max(u, zero) + (Math::log(sum) + (q - (sum - one)) * inverse);  // log1p(q)
}

// F+_k(d): increasing, for positives. With kAll = false only the first is filled in.
template <class Math, bool kAll = true>
ALA_HD Shapes<Math> increasing_shapes(typename Math::Value d) {
  using V = typename Math::Value;
  Shapes<Math> f;
  f.slope[0] = d + d;
  f.value[0] = d * d;
  if (!kAll) return f;

  f.slope[1] = Math::set(1);
  f.value[1] = d;

  const V root = Math::sqrt(d + Math::set(0.01));
  f.slope[2] = Math::reciprocal(root + root);
  f.value[2] =
      d * Math::reciprocal(root + Math::set(0.1));  // = sqrt(d + 0.01) - 0.1 without its cancellation

  f.slope[3] = Math::set(1.5) * (d * d);
  f.value[3] = Math::set(0.5) * (d * d) * d;

  softplus<Math>(Math::set(6) * d - Math::set(4.8), f.value[4], f.slope[4]);
  f.value[4] = f.value[4] * Math::set(1.0 / 6.0);
  return f;
}

// F-_k(d): decreasing, for negatives. `inverse` is 1/d, any finite number >= 10 at d = 0.
template <class Math, bool kAll = true>
ALA_HD Shapes<Math> decreasing_shapes(typename Math::Value d, typename Math::Value inverse) {
  using V = typename Math::Value;
  const V one = Math::set(1);
  const V pole = Math::max(d, Math::set(0.1));  // the point of tangency: d itself above 0.1
  const V inverse_pole = Math::min(inverse, Math::set(10));
  const V below = pole - d;  // > 0 only on the straight part
  Shapes<Math> f;

  f.slope[0] = Math::set(-0.5) * (inverse_pole * inverse_pole);
  f.value[0] = Math::set(0.5) * inverse_pole - f.slope[0] * below;
  if (!kAll) return f;

  f.slope[1] = Math::set(-1);
  f.value[1] = Math::set(2) - d;

  f.slope[2] = -inverse_pole;
  f.value[2] = inverse_pole * below - Math::log(Math::set(0.5) * pole);

  const V decay = Math::exp(Math::set(-2) * d);
  f.slope[3] = Math::set(-4) * decay;
  f.value[3] = decay + decay;

  const V q = Math::set(1339.4307643944178) *
              (decay * decay * decay);  // exp(6 (1.2 - d)): one exp serves both shapes
  const V sum = one + q;
  const V inverse_sum = Math::reciprocal(sum);
  f.slope[4] = -(q * inverse_sum);
  f.value[4] = Math::set(1.0 / 6.0) * (Math::log(sum) + (q - (sum - one)) * inverse_sum);  // log1p(q) / 6
  return f;
}

}  // namespace ALA_ISA
}  // namespace ala
