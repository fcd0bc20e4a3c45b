// The order in which block pairs are visited. Each block's sums have one owner at a time and one fixed order
// of additions: no locks, no per-thread copies, the same bits for any number of threads.
#pragma once

#include <sched.h>

#include <cstdint>
#include <cstring>

#include "cpu/arena.h"
#include "cpu/parallel.h"
#include "cpu/points.h"

namespace ala {
namespace ALA_ISA {

// body(I, J) for I and J of two groups of consecutive blocks, or every I <= J of one group. The row block
// stays in the caches while the column blocks pass to and fro.
template <class Body>
void visit_groups(int64_t a, int64_t b, int64_t group, int64_t blocks, const Body& body) {
  const int64_t a_end = smaller(blocks, (a + 1) * group), b_end = smaller(blocks, (b + 1) * group);
  bool back = false;
  for (int64_t I = a * group; I < a_end; ++I, back = !back) {
    const int64_t first = a == b ? I : b * group;
    for (int64_t n = 0; n < b_end - first; ++n) body(I, back ? b_end - 1 - n : first + n);
  }
}

// Large groups of blocks save traffic to memory; at least 16 groups leave work for 8 threads.
inline int64_t group_size(int64_t blocks) {
  return blocks < 32 ? 1 : smaller(blocks / 16, 4);
}

// How many meetings each group of blocks has behind it; the first is that with itself.
class Progress {
 public:
  void allocate(int64_t groups, Arena& arena) { done_ = arena.array<int32_t>(groups); }
  void clear(int64_t groups) const { std::memset(done_, 0, static_cast<size_t>(groups) * sizeof(int32_t)); }
  void wait(int64_t group, int64_t meetings) const {
    for (int spins = 0; __atomic_load_n(done_ + group, __ATOMIC_ACQUIRE) < meetings;)
      if (spins == kSpins) {
        sched_yield();
      } else {
        ++spins;
        pause();
      }
  }
  void reach(int64_t group, int64_t meetings) const {
    __atomic_store_n(done_ + group, static_cast<int32_t>(meetings), __ATOMIC_RELEASE);
  }

 private:
  static constexpr int kSpins = 200;
  static ALA_HD void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  int32_t* done_ = nullptr;
};

// Blocks against blocks of the same points, `group` of them at a time: first every group with itself, then a
// round-robin tournament (circle method). body(I, J, slot) is called once for every unordered pair, I <= J.
//
// A group meets the others in the order of the rounds, but no round waits for the end of the last one: an
// item of work is a chain of meetings, match m of round r, then match m - 1 of round r + 1 and so on, which
// all have group r + m in common: it stays in the caches. A meeting waits until both its groups have had
// theirs of the round before: one in match m + 1, the meeting before in this chain, the other in match m - 1,
// two chains earlier; at the ends of a chain in the chain before. Items are taken in order, so a wait always
// ends.
template <class Body>
void visit_symmetric(int64_t blocks, const Workers& workers, const Body& body, int64_t group,
                     const Progress& progress) {
  const int64_t groups = (blocks + group - 1) / group;
  progress.clear(groups);
  const int64_t players = groups + groups % 2;  // an odd one sits out against a dummy
  const int64_t circle = players - 1, matches = players / 2;
  const int64_t chains = groups > 1 ? circle + matches - 1 : 0;
  const auto play = [&](int64_t round, int64_t match, int64_t slot) {
    const int64_t one = match == 0 ? circle : (round + match) % circle;
    const int64_t other = match == 0 ? round : (round - match + circle) % circle;
    const int64_t a = smaller(one, other), b = one + other - a;
    progress.wait(a, round + 1);
    if (b < groups) {
      progress.wait(b, round + 1);
      visit_groups(a, b, group, blocks, [&](int64_t I, int64_t J) { body(I, J, slot); });
      progress.reach(b, round + 2);
    }
    progress.reach(a, round + 2);
  };
  workers.run(
      groups + chains,
      [&](int64_t item, int64_t slot) {
        if (item < groups) {
          visit_groups(item, item, group, blocks, [&](int64_t I, int64_t J) { body(I, J, slot); });
          progress.reach(item, 1);
          return;
        }
        const int64_t shared = item - groups;
        for (int64_t match = smaller(shared, matches - 1); match >= 0 && shared - match < circle; --match)
          play(shared - match, match, slot);
      },
      matches > 2 ? matches : 2);  // more threads would only wait
}

// Every row block against every column block, where only sums of row blocks are kept. A row block meets the
// column blocks from first to last for any number of threads.
template <class Body>
void visit_rows(int64_t row_blocks, int64_t col_blocks, const Workers& workers, const Body& body) {
  if (workers.slots() == 1)  // a column block stays in the caches, and a row block for two of them
    for (int64_t J = 0; J < col_blocks; ++J)
      for (int64_t n = 0; n < row_blocks; ++n) body(J % 2 ? row_blocks - 1 - n : n, J, int64_t{0});
  else
    workers.run(row_blocks, [&](int64_t I, int64_t slot) {
      for (int64_t J = 0; J < col_blocks; ++J) body(I, J, slot);
    });
}

// The same where column blocks have sums too: rounds are the diagonals of a Latin square.
template <class Body>
void visit_rectangular(int64_t row_blocks, int64_t col_blocks, const Workers& workers, const Body& body) {
  const int64_t side = row_blocks > col_blocks ? row_blocks : col_blocks;
  for (int64_t round = 0; round < side; ++round)
    workers.run(smaller(row_blocks, col_blocks), [&](int64_t b, int64_t slot) {
      if (row_blocks <= col_blocks)
        body(b, (b + round) % side, slot);
      else
        body((b + round) % side, b, slot);
    });
}

}  // namespace ALA_ISA
}  // namespace ala
