// One vector register of float or double by the compiler's vector extension; intrinsics only where it has no
// word for the operation (masks of AVX-512, approximate 1/sqrt and 1/x).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/config.h"

#if defined(__AVX512F__)
#define ALA_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define ALA_VECTOR_BYTES 32
#else
#define ALA_VECTOR_BYTES 16
#endif

namespace ala {
namespace ALA_ISA {

template <class T>
struct Lane;
template <>
struct Lane<float> {
  using Int = int32_t;
  static constexpr int kMantissaBits = 23;
  typedef float Vector __attribute__((vector_size(ALA_VECTOR_BYTES)));
  typedef float Unaligned __attribute__((vector_size(ALA_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t IntVector __attribute__((vector_size(ALA_VECTOR_BYTES)));
  typedef uint32_t BitVector __attribute__((vector_size(ALA_VECTOR_BYTES)));
};
template <>
struct Lane<double> {
  using Int = int64_t;
  static constexpr int kMantissaBits = 52;
  typedef double Vector __attribute__((vector_size(ALA_VECTOR_BYTES)));
  typedef double Unaligned __attribute__((vector_size(ALA_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t IntVector __attribute__((vector_size(ALA_VECTOR_BYTES)));
  typedef uint64_t BitVector __attribute__((vector_size(ALA_VECTOR_BYTES)));
};

template <class T>
struct Simd {
  using Int = typename Lane<T>::Int;
  using V = typename Lane<T>::Vector;
  using I = typename Lane<T>::IntVector;
  using Bits = typename Lane<T>::BitVector;  // unsigned: may wrap
  static constexpr int kLanes = ALA_VECTOR_BYTES / sizeof(T);

  static ALA_HD V set(T x) { return x - V{}; }  // x - 0 folds into a broadcast, 0 + x does not (-0)
  static ALA_HD I set_int(Int x) { return I{} + x; }
  static ALA_HD V load(const T* p) { return *reinterpret_cast<const typename Lane<T>::Unaligned*>(p); }
  static ALA_HD void store(T* p, V v) { *reinterpret_cast<typename Lane<T>::Unaligned*>(p) = v; }
  static ALA_HD I load_int(const Int* p) {
    I v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static ALA_HD Bits bits(V v) { return reinterpret_cast<Bits>(v); }
  static ALA_HD V from_bits(Bits v) { return reinterpret_cast<V>(v); }

  static ALA_HD I lane_numbers() {
    I v;
    for (int l = 0; l < kLanes; ++l) v[l] = l;
    return v;
  }

  // Sum of the lanes, in a fixed tree.
  static ALA_HD T sum(V v) {
    T lane[kLanes];
    std::memcpy(lane, &v, sizeof v);
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
    return lane[0];
  }

#if defined(__AVX512F__)
  using Mask = uint32_t;
  static constexpr Mask kAll = (1u << kLanes) - 1;
  static ALA_HD Mask none() { return 0; }
  static ALA_HD Mask every() { return kAll; }
  static ALA_HD Mask less(V a, V b) {
    if constexpr (sizeof(T) == 4)
      return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
    else
      return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ);
  }
  static ALA_HD Mask less_equal(V a, V b) {
    if constexpr (sizeof(T) == 4)
      return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ);
    else
      return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LE_OQ);
  }
  static ALA_HD Mask equal(I a, I b) {
    if constexpr (sizeof(T) == 4)
      return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b);
    else
      return _mm512_cmpeq_epi64_mask((__m512i)a, (__m512i)b);
  }
  static ALA_HD Mask less_int(I a, I b) {
    if constexpr (sizeof(T) == 4)
      return _mm512_cmplt_epi32_mask((__m512i)a, (__m512i)b);
    else
      return _mm512_cmplt_epi64_mask((__m512i)a, (__m512i)b);
  }
  static ALA_HD Mask both(Mask a, Mask b) { return a & b; }
  static ALA_HD Mask but_not(Mask a, Mask b) { return a & ~b; }
  static ALA_HD V select(Mask m, V yes, V no) {
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_mask_blend_ps((__mmask16)m, (__m512)no, (__m512)yes);
    else
      return (V)_mm512_mask_blend_pd((__mmask8)m, (__m512d)no, (__m512d)yes);
  }
  static ALA_HD uint32_t lane_bits(Mask m) { return m; }
  static ALA_HD Mask from_lane_bits(uint32_t bits) { return bits; }
#else
  using Mask = I;
  static ALA_HD Mask none() { return I{}; }
  static ALA_HD Mask every() { return I{} == I{}; }
  static ALA_HD Mask less(V a, V b) { return a < b; }
  static ALA_HD Mask less_equal(V a, V b) { return a <= b; }
  static ALA_HD Mask equal(I a, I b) { return a == b; }
  static ALA_HD Mask less_int(I a, I b) { return a < b; }
  static ALA_HD Mask both(Mask a, Mask b) { return a & b; }
  static ALA_HD Mask but_not(Mask a, Mask b) { return a & ~b; }
  static ALA_HD V select(Mask m, V yes, V no) { return m ? yes : no; }
  // Bit l is lane l.
  static ALA_HD uint32_t lane_bits(Mask m) {
#if defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
      return static_cast<uint32_t>(_mm256_movemask_ps((__m256)m));
    else
      return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)m));
#elif defined(__x86_64__)
    if constexpr (sizeof(T) == 4)
      return static_cast<uint32_t>(_mm_movemask_ps((__m128)m));
    else
      return static_cast<uint32_t>(_mm_movemask_pd((__m128d)m));
#else
    uint32_t out = 0;
    for (int l = 0; l < kLanes; ++l) out |= (m[l] ? 1u : 0u) << l;
    return out;
#endif
  }
  static ALA_HD Mask from_lane_bits(uint32_t bits) {
    I out;
    for (int l = 0; l < kLanes; ++l) out[l] = bits >> l & 1 ? -1 : 0;
    return out;
  }
#endif
  static ALA_HD bool any(Mask m) { return lane_bits(m) != 0; }

  // Perfect shuffle of two registers: lanes a0 b0 a1 b1 ... of their low or high halves.
  static ALA_HD V interleave(V a, V b, bool high) {
    I index;
    for (int l = 0; l < kLanes; ++l) index[l] = l / 2 + (l % 2) * kLanes + (high ? kLanes / 2 : 0);
#if defined(__clang__)
    V out;
    for (int l = 0; l < kLanes; ++l) out[l] = index[l] < kLanes ? a[index[l]] : b[index[l] - kLanes];
    return out;
#else
    return __builtin_shuffle(a, b, index);
#endif
  }

  // Transposes kLanes registers in place.
  static ALA_HD void transpose(V (&row)[kLanes]) {
    V next[kLanes];
#pragma GCC unroll 4
    for (int stage = 1; stage < kLanes; stage *= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < kLanes / 2; ++i) {
        next[2 * i] = interleave(row[i], row[i + kLanes / 2], false);
        next[2 * i + 1] = interleave(row[i], row[i + kLanes / 2], true);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) row[i] = next[i];
    }
  }
};

}  // namespace ALA_ISA
}  // namespace ala
