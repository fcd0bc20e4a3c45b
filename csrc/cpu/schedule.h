// The order in which block pairs are visited. Blocks of one round are disjoint, so each block's sums have one
// owner at a time and one fixed order of additions: no locks, no per-thread copies, the same bits for any
// number of threads.
#pragma once

#include <cstdint>

#include "cpu/parallel.h"

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

// Blocks against blocks of the same points, `group` of them at a time: first every group with itself, then a
// round-robin tournament (circle method). body(I, J, slot) is called once for every unordered pair, I <= J.
template <class Body>
void visit_symmetric(int64_t blocks, const Workers& workers, const Body& body, int64_t group = 1) {
  const int64_t groups = (blocks + group - 1) / group;
  const auto meet = [&](int64_t a, int64_t b, int64_t slot) {
    visit_groups(a, b, group, blocks, [&](int64_t I, int64_t J) { body(I, J, slot); });
  };
  workers.run(groups, [&](int64_t g, int64_t slot) { meet(g, g, slot); });
  const int64_t players = groups + groups % 2;  // an odd one sits out against a dummy
  const int64_t circle = players - 1, matches = players / 2;
  const auto play = [&](int64_t round, int64_t match, int64_t slot) {
    const int64_t a = match == 0 ? circle : (round + match) % circle;
    const int64_t b = match == 0 ? round : (round - match + circle) % circle;
    if (a < groups && b < groups) meet(a < b ? a : b, a < b ? b : a, slot);
  };
  if (workers.slots() == 1) {
    // Match m of round r and match m - 1 of the next one share group r + m, and this order too keeps the
    // rounds of every group in theirs.
    for (int64_t shared = 0; shared < circle + matches - 1; ++shared)
      for (int64_t match = smaller(shared, matches - 1); match >= 0 && shared - match < circle; --match)
        play(shared - match, match, 0);
    return;
  }
  for (int64_t round = 0; round < circle; ++round)
    workers.run(matches, [&](int64_t match, int64_t slot) { play(round, match, slot); });
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
