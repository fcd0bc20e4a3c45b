// The Math of shapes.h for one register. NaN in gives NaN out; errors are one or two units in the last place.
#pragma once

#include "core/config.h"
#include "cpu/simd.h"

namespace ala {
namespace ALA_ISA {

template <class T>
struct VectorMath {
  using S = Simd<T>;
  using Value = typename S::V;
  using V = Value;
  using Mask = typename S::Mask;
  static constexpr bool kFloat = sizeof(T) == 4;

  static ALA_HD V set(double x) { return S::set(static_cast<T>(x)); }
  // NaN in the first argument stays (x86 instructions return their second operand then).
  static ALA_HD V max(V x, V bound) {
#if defined(__AVX512F__)
    if constexpr (kFloat)
      return (V)_mm512_max_ps((__m512)bound, (__m512)x);
    else
      return (V)_mm512_max_pd((__m512d)bound, (__m512d)x);
#else
    return S::select(S::less(x, bound), bound, x);
#endif
  }
  static ALA_HD V min(V x, V bound) {
#if defined(__AVX512F__)
    if constexpr (kFloat)
      return (V)_mm512_min_ps((__m512)bound, (__m512)x);
    else
      return (V)_mm512_min_pd((__m512d)bound, (__m512d)x);
#else
    return S::select(S::less(bound, x), bound, x);
#endif
  }
  static ALA_HD Mask less(V a, V b) { return S::less(a, b); }
  static ALA_HD V select(Mask m, V yes, V no) { return S::select(m, yes, no); }

  // c[0] + c[1] x + ... by pairs (Estrin): short chains keep both multipliers busy.
  template <int n>
  static ALA_HD V polynomial(V x, const double (&c)[n]) {
    V term[(n + 1) / 2];
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) term[i] = set(c[2 * i]) + set(c[2 * i + 1]) * x;
    if (n % 2) term[n / 2] = set(c[n - 1]);
#pragma GCC unroll 8
    for (int left = (n + 1) / 2; left > 1; left = (left + 1) / 2) {
      x = x * x;
#pragma GCC unroll 8
      for (int i = 0; i < left / 2; ++i) term[i] = term[2 * i] + term[2 * i + 1] * x;
      if (left % 2) term[left / 2] = term[left - 1];
    }
    return term[0];
  }

  // Newton steps on the hardware's estimate, or plain division where there is none. x > 0, finite.
  static ALA_HD V reciprocal(V x) {
#if defined(__AVX512F__)
    const V two = set(2);
    if constexpr (kFloat) {
      const V y = (V)_mm512_rcp14_ps((__m512)x);
      return y * (two - x * y);
    } else {
      V y = (V)_mm512_rcp14_pd((__m512d)x);
      y = y * (two - x * y);
      return y * (two - x * y);
    }
#else
    return set(1) / x;
#endif
  }

  // 1 / sqrt(x) for x >= kSmallestSquare.
  static ALA_HD V reciprocal_sqrt(V x) {
#if defined(__AVX512F__)
    const V half = set(0.5) * x, three_halves = set(1.5);
    if constexpr (kFloat) {
      const V y = (V)_mm512_rsqrt14_ps((__m512)x);
      return y * (three_halves - half * y * y);
    } else {
      V y = (V)_mm512_rsqrt14_pd((__m512d)x);
      y = y * (three_halves - half * y * y);
      return y * (three_halves - half * y * y);
    }
#elif defined(__x86_64__)
    if constexpr (kFloat) {
#if defined(__AVX2__)
      const V y = (V)_mm256_rsqrt_ps((__m256)x);
#else
      const V y = (V)_mm_rsqrt_ps((__m128)x);
#endif
      return y * (set(1.5) - set(0.5) * x * y * y);
    } else {
      return set(1) / sqrt(x);
    }
#else
    return set(1) / sqrt(x);
#endif
  }

  static ALA_HD V sqrt(V x) {
#if defined(__AVX512F__)
    if constexpr (kFloat)
      return (V)_mm512_sqrt_ps((__m512)x);
    else
      return (V)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX2__)
    if constexpr (kFloat)
      return (V)_mm256_sqrt_ps((__m256)x);
    else
      return (V)_mm256_sqrt_pd((__m256d)x);
#elif defined(__x86_64__)
    if constexpr (kFloat)
      return (V)_mm_sqrt_ps((__m128)x);
    else
      return (V)_mm_sqrt_pd((__m128d)x);
#else
    V out;
    for (int l = 0; l < S::kLanes; ++l) out[l] = kFloat ? __builtin_sqrtf(x[l]) : __builtin_sqrt(x[l]);
    return out;
#endif
  }

  // For x <= 88 (float) or 709 (double); far below, the smallest normal number instead of 0. Of x + rest,
  // with |rest| a few units in the last place of x.
  static ALA_HD V exp(V x) { return exp(x, V{}); }
  static ALA_HD V exp(V x, V rest) {
    constexpr int bits = Lane<T>::kMantissaBits;
    const V lowest = set(kFloat ? -87.3 : -708.3);
    rest = S::select(S::less(x, lowest), V{}, rest);  // units of a large x are larger than the range
    x = max(x, lowest);
    const V magic =
        set(kFloat ? 12582912.0 : 6755399441055744.0);  // 1.5 * 2^bits: adding it rounds to an integer
    const V shifted = x * set(1.4426950408889634) + magic;
    const V n = shifted - magic;
    V r = x - n * set(kFloat ? 0.693359375 : 6.93145751953125e-1);
    r = r - n * set(kFloat ? -2.12194440e-4 : 1.42860682030941723212e-6);
    r += rest;
    V p;
    if constexpr (kFloat) {  // Cephes' minimax polynomial of (exp(r) - 1 - r) / r^2
      p = polynomial(r, {5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3,
                         1.9875691500e-4});
    } else {  // Taylor to r^13: |r| <= 0.347 leaves 4e-18
      p = polynomial(
          r, {0.5, 1.0 / 6.0, 1.0 / 24.0, 1.0 / 120.0, 1.0 / 720.0, 1.0 / 5040.0, 1.0 / 40320.0,
              1.0 / 362880.0, 1.0 / 3628800.0, 1.0 / 39916800.0, 1.0 / 479001600.0, 1.0 / 6227020800.0});
    }
    p = (p * (r * r) + r) + set(1);
    return p * S::from_bits((S::bits(shifted) << bits) + S::bits(set(1)));
  }

  // For normal x > 0.
  static ALA_HD V log(V x) {
    constexpr int bits = Lane<T>::kMantissaBits;
    const auto e = reinterpret_cast<typename S::I>(S::bits(x) - S::bits(set(0.70710678118654752))) >> bits;
    const V m = S::from_bits(S::bits(x) -
                             (reinterpret_cast<typename S::Bits>(e) << bits));  // in [sqrt(1/2), sqrt(2))
    const V n = __builtin_convertvector(e, V);
    const V f = x * set(0) + (m - set(1));  // x * 0 brings NaN and Inf along
    if constexpr (kFloat) {                 // Cephes' minimax polynomial
      const V p = polynomial(
          f, {3.3333331174e-1, -2.4999993993e-1, 2.0000714765e-1, -1.6668057665e-1, 1.4249322787e-1,
              -1.2420140846e-1, 1.1676998740e-1, -1.1514610310e-1, 7.0376836292e-2});
      const V square = f * f;
      V low = p * (f * square) + n * set(-2.12194440e-4);
      low = low - set(0.5) * square;
      return n * set(0.693359375) + (f + low);
    } else {  // 2 atanh(s), s = f / (2 + f), |s| <= 0.172
      const V s = f / (set(2) + f);
      const V z = s * s;
      const V p = polynomial(z, {1.0 / 3.0, 1.0 / 5.0, 1.0 / 7.0, 1.0 / 9.0, 1.0 / 11.0, 1.0 / 13.0,
                                 1.0 / 15.0, 1.0 / 17.0, 1.0 / 19.0, 1.0 / 21.0, 1.0 / 23.0});
      const V tail = (s + s) * z * p;
      return n * set(6.93145751953125e-1) + ((s + s) + (tail + n * set(1.42860682030941723212e-6)));
    }
  }
};

}  // namespace ALA_ISA
}  // namespace ala
