// A smooth function of the distance and its slope, at the cost of one polynomial: most pairs of a batch are
// negatives, and their mixture is the same function for all of them. Built anew for every call.
//
// [kLow, kHigh) is cut into 32 segments, eight to a factor of two, so that a segment is at most an eighth of
// its distances. On each, the polynomial through the seven Chebyshev nodes is within 1e-9 of the mixture, its
// slope within 1e-7. AVX-512 looks one coefficient of 16 distances up by one instruction, in two registers
// that hold it for all segments; elsewhere each distance loads the row of its segment, and the rows are
// transposed.
#pragma once

#include <cmath>

#include "cpu/simd.h"
#include "cpu/vector_math.h"

namespace ala {
namespace ALA_ISA {

// Doubles: a table of their precision would be too long.
template <class T>
class CurveTable {
 public:
  using V = typename Simd<T>::V;
  template <class Curve>
  void build(const Curve&) {}
  template <int kRegisters>
  static ALA_HD bool covers(const V (&)[kRegisters]) {
    return false;
  }
  template <int kRegisters>
  static ALA_HD void evaluate(const V (&)[kRegisters], V (&)[kRegisters], V (&)[kRegisters]) {}
};

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
          coefficient(k, (kFirst + first + l) % kSegments) = static_cast<float>(power[k][l] * scale[l]);
    }
  }

  // Of all lanes of all registers.
  template <int kRegisters>
  static ALA_HD bool covers(const V (&d)[kRegisters]) {
    for (int r = 0; r < kRegisters; ++r) {
      const auto inside = S::both(S::less_equal(S::set(kLow), d[r]), S::less(d[r], S::set(kHigh)));
      if (S::lane_bits(inside) != S::lane_bits(S::every())) return false;
    }
    return true;
  }

  // Several registers at once, so that their chains of dependent operations overlap.
  template <int kRegisters>
  ALA_HD void evaluate(const V (&d)[kRegisters], V (&value)[kRegisters], V (&slope)[kRegisters]) const {
    V t[kRegisters], c[kRegisters][kRow];
    for (int r = 0; r < kRegisters; ++r) {
      const S::Bits bits = S::bits(d[r]);
      t[r] = d[r] - S::from_bits((bits & -(1u << kShift)) | 1u << (kShift - 1));
      look_up(bits, c[r]);
    }
    for (int r = 0; r < kRegisters; ++r) value[r] = slope[r] = c[r][kTerms - 1];
#pragma GCC unroll 8
    for (int k = kTerms - 2; k > 0; --k) {
      for (int r = 0; r < kRegisters; ++r) value[r] = value[r] * t[r] + c[r][k];
      for (int r = 0; r < kRegisters; ++r) slope[r] = slope[r] * t[r] + value[r];
    }
    for (int r = 0; r < kRegisters; ++r) value[r] = value[r] * t[r] + c[r][0];
  }

 private:
  static constexpr int kTerms = 7, kRow = 8, kSegments = 32;  // an eighth term pads the rows
  static constexpr int kShift = 20;  // leaves the exponent and three bits of the mantissa
  static constexpr float kLow = 0.1875f, kHigh = 3.0f;
  static constexpr uint32_t kFirst = 0x3e400000u >> kShift;  // the bits of kLow

  static double edge(int segment) {
    const uint32_t bits = (kFirst + static_cast<uint32_t>(segment)) << kShift;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return static_cast<double>(out);
  }
#if defined(__AVX512F__)
  float& coefficient(int k, uint32_t segment) { return table_[k][segment]; }
  ALA_HD void look_up(S::Bits d, V (&c)[kRow]) const {
#pragma GCC unroll 8
    for (int k = 0; k < kTerms; ++k)
      c[k] = (V)_mm512_permutex2var_ps((__m512)S::load(table_[k]), (__m512i)(d >> kShift),
                                       (__m512)S::load(table_[k] + S::kLanes));
  }

  alignas(64) float table_[kTerms][kSegments];
#else
  float& coefficient(int k, uint32_t segment) { return table_[segment][k]; }
  ALA_HD void look_up(S::Bits d, V (&c)[kRow]) const {
    // Offsets of the rows in bytes, two to a word: half as many words leave the vector.
    const S::Bits offsets = d >> (kShift - 5) & (kSegments - 1) << 5;
    static_assert(kRow * sizeof(float) == 1 << 5);
    uint64_t words[S::kLanes / 2];
    std::memcpy(words, &offsets, sizeof offsets);
    const auto row = [&](int lane) {
      const uint64_t offset = lane % 2 ? words[lane / 2] >> 32 : static_cast<uint32_t>(words[lane / 2]);
      return reinterpret_cast<const float*>(reinterpret_cast<const char*>(table_) + offset);
    };
#if defined(__AVX2__)
    // Lanes l and l + 4 side by side: two transpositions of 4 x 4 do for all eight coefficients.
    __m256 pairs[kRow];
#pragma GCC unroll 8
    for (int l = 0; l < kRow; ++l) {
      const int part = l / 4 * 4;
      pairs[l] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(row(l % 4) + part)),
                                      _mm_load_ps(row(l % 4 + 4) + part), 1);
    }
#pragma GCC unroll 2
    for (int part = 0; part < kRow; part += 4) {
      const __m256 low0 = _mm256_unpacklo_ps(pairs[part], pairs[part + 1]);
      const __m256 high0 = _mm256_unpackhi_ps(pairs[part], pairs[part + 1]);
      const __m256 low1 = _mm256_unpacklo_ps(pairs[part + 2], pairs[part + 3]);
      const __m256 high1 = _mm256_unpackhi_ps(pairs[part + 2], pairs[part + 3]);
      c[part] = (V)_mm256_shuffle_ps(low0, low1, 0x44);
      c[part + 1] = (V)_mm256_shuffle_ps(low0, low1, 0xee);
      c[part + 2] = (V)_mm256_shuffle_ps(high0, high1, 0x44);
      c[part + 3] = (V)_mm256_shuffle_ps(high0, high1, 0xee);
    }
#else
    static_assert(S::kLanes == 4 && kRow == 8);
    V low[4], high[4];
#pragma GCC unroll 4
    for (int l = 0; l < 4; ++l) {
      low[l] = S::load(row(l));
      high[l] = S::load(row(l) + 4);
    }
    S::transpose(low);
    S::transpose(high);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      c[k] = low[k];
      c[k + 4] = high[k];
    }
#endif
  }

  alignas(64) float table_[kSegments][kRow] = {};
#endif
};

}  // namespace ALA_ISA
}  // namespace ala
