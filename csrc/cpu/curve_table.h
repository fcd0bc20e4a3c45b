// A smooth function of the distance and its slope, at the cost of one polynomial: most pairs of a batch are
// negatives, and their mixture is the same function for all of them. Built anew for every call.
//
// [kLow, kHigh) is cut into 32 segments, eight to a factor of two, so that a segment is at most an eighth of
// its distances. On each, the polynomial through the seven Chebyshev nodes is within 1e-9 of the mixture, its
// slope within 1e-7. Two registers hold one coefficient of all segments, and one instruction looks 16 up.
#pragma once

#include <cmath>

#include "cpu/simd.h"
#include "cpu/vector_math.h"

namespace ala {
namespace ALA_ISA {

// Where a lookup would cost more than it saves.
template <class T>
class CurveTable {
 public:
  using V = typename Simd<T>::V;
  template <class Curve>
  void build(const Curve&) {}
  static ALA_HD bool covers(V) { return false; }
  static ALA_HD void evaluate(V, V&, V&) {}
};

#if defined(__AVX512F__)
template <>
class CurveTable<float> {
 public:
  using S = Simd<float>;
  using V = S::V;
  using Wide = Simd<double>;

  // curve(d): its values, in double precision.
  template <class Curve>
  void build(const Curve& curve) {
    double node[kTerms];
    for (int n = 0; n < kTerms; ++n) node[n] = ::cos(3.14159265358979324 * (n + 0.5) / kTerms);
    for (int first = 0; first < kSegments; first += Wide::kLanes) {
      Wide::V centre, half;
      for (int l = 0; l < Wide::kLanes; ++l) {
        const double low = edge(first + l), high = edge(first + l + 1);
        centre[l] = 0.5 * (low + high);
        half[l] = 0.5 * (high - low);
      }
      // Newton's divided differences of u = (d - centre) / half, then the powers of u.
      Wide::V difference[kTerms], power[kTerms] = {};
      for (int n = 0; n < kTerms; ++n) difference[n] = curve(centre + node[n] * half);
      for (int order = 1; order < kTerms; ++order)
        for (int n = kTerms - 1; n >= order; --n)
          difference[n] = (difference[n] - difference[n - 1]) * (1 / (node[n] - node[n - order]));
      for (int n = kTerms - 1; n >= 0; --n) {
        for (int k = kTerms - 1; k > 0; --k) power[k] = power[k - 1] - node[n] * power[k];
        power[0] = difference[n] - node[n] * power[0];
      }
      Wide::V scale = Wide::set(1);
      for (int k = 0; k < kTerms; ++k, scale /= half)
        for (int l = 0; l < Wide::kLanes; ++l)
          coefficients_[k][(kFirst + first + l) % kSegments] = static_cast<float>(power[k][l] * scale[l]);
    }
  }

  static ALA_HD bool covers(V d) {
    return S::both(S::less_equal(S::set(kLow), d), S::less(d, S::set(kHigh))) == S::every();
  }

  ALA_HD void evaluate(V d, V& value, V& slope) const {
    const S::Bits bits = S::bits(d), segment = bits >> kShift;
    const V t = d - S::from_bits((bits & -(1u << kShift)) | 1u << (kShift - 1));
    value = look_up(segment, kTerms - 1);
    slope = value;
#pragma GCC unroll 8
    for (int k = kTerms - 2; k > 0; --k) {
      value = value * t + look_up(segment, k);
      slope = slope * t + value;
    }
    value = value * t + look_up(segment, 0);
  }

 private:
  static constexpr int kTerms = 7, kSegments = 32;
  static constexpr int kShift = 20;  // leaves the exponent and three bits of the mantissa
  static constexpr float kLow = 0.1875f, kHigh = 3.0f;
  static constexpr uint32_t kFirst = 0x3e400000u >> kShift;  // the bits of kLow

  static double edge(int segment) {
    const uint32_t bits = (kFirst + static_cast<uint32_t>(segment)) << kShift;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return static_cast<double>(out);
  }
  ALA_HD V look_up(S::Bits segment, int k) const {
    return (V)_mm512_permutex2var_ps((__m512)S::load(coefficients_[k]), (__m512i)segment,
                                     (__m512)S::load(coefficients_[k] + S::kLanes));
  }

  alignas(64) float coefficients_[kTerms][kSegments];
};
#endif

}  // namespace ALA_ISA
}  // namespace ala
