// An executor of threads that start anew for every run.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

#include "ala_metric/ala_metric.h"

namespace test {

struct Threads {
  ala_executor executor;
  explicit Threads(int64_t threads) : executor{nullptr, threads, run} {}
  static void run(void*, int64_t n, ala_task task, void* context) {
    std::vector<std::thread> pool;
    for (int64_t t = 1; t < n; ++t) pool.emplace_back(task, context, t);
    if (n > 0) task(context, 0);
    for (auto& thread : pool) thread.join();
  }
};

}  // namespace test
