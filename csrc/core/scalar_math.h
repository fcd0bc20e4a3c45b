// The Math of one float or double: what a CUDA thread or plain C++ uses for the templates of shapes.h.
#pragma once

#include <cmath>

#include "core/config.h"

namespace ala {
namespace ALA_ISA {

template <class T>
struct ScalarMath {
  using Value = T;
  static ALA_HD T set(double x) { return static_cast<T>(x); }
  static ALA_HD T exp(T x) { return ::exp(x); }
  static ALA_HD T log(T x) { return ::log(x); }
  static ALA_HD T sqrt(T x) { return ::sqrt(x); }
  static ALA_HD T reciprocal(T x) { return T(1) / x; }
  // NaN in the first argument stays.
  static ALA_HD T max(T x, T bound) { return x < bound ? bound : x; }
  static ALA_HD T min(T x, T bound) { return x > bound ? bound : x; }
  static ALA_HD bool less(T a, T b) { return a < b; }
  static ALA_HD T select(bool condition, T yes, T no) { return condition ? yes : no; }
};

template <>
ALA_HD float ScalarMath<float>::exp(float x) {
  return ::expf(x);
}
template <>
ALA_HD float ScalarMath<float>::log(float x) {
  return ::logf(x);
}
template <>
ALA_HD float ScalarMath<float>::sqrt(float x) {
  return ::sqrtf(x);
}

}  // namespace ALA_ISA
}  // namespace ala
