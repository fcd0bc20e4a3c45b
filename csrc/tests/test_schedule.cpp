// Who meets whom, and in which order, for any number of blocks and threads. A data race is ThreadSanitizer's
// to find: the diary of a block is written without a lock.
#include "cpu/schedule.h"

#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "check.h"
#include "threads.h"

namespace {

using namespace ala::ALA_ISA;
using Diaries = std::vector<std::vector<int64_t>>;  // of each block: whom it met, in order

// Workers that start late and stop for a while now and then: others run ahead of them, as far as they may.
void dawdle(int64_t I, int64_t J, int64_t slot) {
  if (slot > 0 && (I * 7 + J * 3) % 11 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
}

// Not at once, and the last task first: as good an executor as any.
void run_backwards(void*, int64_t n, ala_task task, void* context) {
  while (n-- > 0) task(context, n);
}

Diaries meetings(int64_t blocks, int64_t group, const ala_executor* executor) {
  std::vector<int32_t> room(static_cast<size_t>(blocks) + 64, -1);  // not cleared before
  Arena arena(room.data(), static_cast<int64_t>(room.size() * sizeof(int32_t)));
  Progress progress;
  progress.allocate((blocks + group - 1) / group, arena);
  CHECK(arena.fits());
  Diaries diaries(static_cast<size_t>(blocks));
  const auto body = [&](int64_t I, int64_t J, int64_t slot) {
    CHECK(I <= J);
    if (executor) dawdle(I, J, slot);
    diaries[static_cast<size_t>(I)].push_back(J);
    if (I != J) diaries[static_cast<size_t>(J)].push_back(I);
  };
  visit_symmetric(blocks, Workers(executor), body, group, progress);
  return diaries;
}

void test_everyone_meets_everyone_in_one_order() {
  for (int64_t blocks : {0, 1, 2, 3, 4, 5, 8, 13, 33, 66, 131})
    for (int64_t group : {int64_t{1}, int64_t{3}, group_size(blocks)}) {
      test::context = std::to_string(blocks) + " blocks in groups of " + std::to_string(group);
      const Diaries alone = meetings(blocks, group, nullptr);
      for (const auto& diary : alone) {
        std::vector<int> times(static_cast<size_t>(blocks), 0);
        for (int64_t other : diary) ++times[static_cast<size_t>(other)];
        for (int once : times) CHECK(once == 1);
      }
      for (int64_t threads : {2, 3, 8}) {
        const test::Threads pool(threads);
        CHECK(meetings(blocks, group, &pool.executor) == alone);
      }
      const ala_executor backwards{nullptr, 8, run_backwards};
      CHECK(meetings(blocks, group, &backwards) == alone);
    }
}

}  // namespace

int main() {
  test_everyone_meets_everyone_in_one_order();
  std::printf("%d failures\n", test::failures);
  return test::failures != 0;
}
