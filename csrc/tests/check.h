// Thirty lines of test harness.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

namespace test {

inline int failures = 0;
inline std::string context;

inline void fail(const char* file, int line, const std::string& what) {
  if (++failures <= 30) std::printf("%s:%d: %s [%s]\n", file, line, what.c_str(), context.c_str());
}

// |got - wanted| relative to |wanted|, in the Euclidean norm; NaN and different lengths count as infinite.
template <class T>
double relative_error(const std::vector<T>& got, const std::vector<double>& wanted) {
  if (got.size() != wanted.size()) return INFINITY;
  double error = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - wanted[i], 2);
    size += wanted[i] * wanted[i];
  }
  if (std::isnan(error)) return INFINITY;
  return error == 0 ? 0 : std::sqrt(error / (size + 1e-60));
}

}  // namespace test

#define CHECK(condition)                                          \
  do {                                                            \
    if (!(condition)) test::fail(__FILE__, __LINE__, #condition); \
  } while (0)

#define CHECK_CLOSE(got, wanted, tolerance)                                                     \
  do {                                                                                          \
    const double error_ = test::relative_error(got, wanted);                                    \
    if (!(error_ <= (tolerance)))                                                               \
      test::fail(__FILE__, __LINE__,                                                            \
                 std::string(#got ": relative error ") + std::to_string(error_ * 1e9) + "e-9"); \
  } while (0)
