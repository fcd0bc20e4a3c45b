// Thresholds of the queries - the distances of their positives - and how many negatives stand before each.
//
// A float e that is off by at most `slack` is surely before the threshold t if e < t - slack, and surely
// behind it if e > t + slack. What lies between is settled by exact keys, so the counts are those of exact
// arithmetic.
#pragma once

#include "cpu/rank_rows.h"

namespace ala {
namespace ALA_ISA {

struct RankScratch {
  double* query;  // a row each
  double* other;
  float* column;  // kRun floats
};

class RankCounts {
 public:
  using S = Simd<float>;
  using V = S::V;
  using I = S::I;
  static constexpr int kLanes = S::kLanes;
  static constexpr int kRun = 256;    // most elements of a row or column of a tile
  static constexpr int kLinear = 48;  // with more thresholds than this, search them instead of trying each

  int32_t* wanted = nullptr;  // [padded] thresholds of each query

  // `slots`: see slots_for().
  void allocate(int64_t padded, int64_t slots, Arena& arena) {
    padded_ = padded;
    wanted = arena.array<int32_t>(padded);
    start_ = arena.array<int64_t>(padded / kLanes + 1);
    exact_ = arena.array<double>(slots);
    nominal_ = arena.array<float>(slots);
    pessimistic_ = arena.array<int32_t>(slots);
    optimistic_ = arena.array<int32_t>(slots);
  }
  // Groups of kLanes queries get room for the most thresholds of one of them. Queries come in ascending order
  // of that number, so the waste is at most one group of the largest, and another for the padding.
  static int64_t slots_for(int64_t thresholds, int64_t most) { return thresholds + 2 * kLanes * (most + 1); }

  void lay_out() {
    start_[0] = 0;
    for (int64_t g = 0; g < padded_ / kLanes; ++g) {
      int32_t most = 0;
      for (int l = 0; l < kLanes; ++l)
        if (wanted[g * kLanes + l] > most) most = wanted[g * kLanes + l];
      start_[g + 1] = start_[g] + static_cast<int64_t>(most) * kLanes;
    }
    const int64_t slots = start_[padded_ / kLanes];
    for (int64_t s = 0; s < slots; ++s) nominal_[s] = -kFar;
    std::memset(pessimistic_, 0, static_cast<size_t>(slots) * sizeof(int32_t));
    std::memset(optimistic_, 0, static_cast<size_t>(slots) * sizeof(int32_t));
  }

  // Level 0 is the farthest positive.
  void set(int64_t query, int64_t level, double key, double nominal) {
    const int64_t s = slot(query, level);
    exact_[s] = key;
    nominal_[s] = static_cast<float>(nominal);
  }
  int64_t pessimistic(int64_t query, int64_t level) const { return pessimistic_[slot(query, level)]; }
  int64_t optimistic(int64_t query, int64_t level) const { return optimistic_[slot(query, level)]; }

  // e[0 ... n) belong to the references `first` ... of one query; n is a multiple of the lanes.
  void count_row(int64_t query, const float* e, int64_t n, float slack, const RankRows& queries,
                 const RankRows& references, int64_t first, const RankScratch& scratch) {
    const int64_t levels = wanted[query];
    if (levels == 0) return;
    if (searched(query / kLanes)) return search(query, e, n, slack, queries, references, first, scratch);
    uint64_t unsettled = 0;
    for (int64_t level = 0; level < levels; ++level) {
      const int64_t s = slot(query, level);
      const V nearer = S::set(nominal_[s] - slack), farther = S::set(nominal_[s] + slack);
      int surely = 0, maybe = 0;
      for (int64_t v = 0; v < n; v += kLanes) {
        const V x = S::load(e + v);
        surely += lanes_set(S::less(x, nearer));
        maybe += lanes_set(S::less_equal(x, farther));
      }
      if (maybe == 0) break;
      pessimistic_[s] += surely;
      optimistic_[s] += surely;
      if (maybe != surely) unsettled |= uint64_t{1} << level;
    }
    if (__builtin_expect(unsettled != 0, 0))
      settle(query, unsettled, e, n, slack, queries, references, first, scratch);
  }

  // Columns of a tile as queries, its rows as references: e[r * stride + c] is row `first` + r and query `j0`
  // + c.
  template <class Slack>
  void count_columns(int64_t j0, int64_t cols, const float* e, int64_t stride, int64_t rows,
                     const Slack& slack_of, const RankRows& queries, const RankRows& references,
                     int64_t first, const RankScratch& scratch) {
    for (int64_t c = 0; c < cols; c += kLanes) {
      const int64_t group = (j0 + c) / kLanes;
      if (start_[group + 1] == start_[group]) continue;
      const V slack = slack_of(j0 + c);
      if (searched(group)) {
        for (int l = 0; l < kLanes; ++l) {
          if (wanted[j0 + c + l] == 0) continue;
          const int64_t n = gather(e + c + l, stride, rows, scratch.column);
          search(j0 + c + l, scratch.column, n, slack[l], queries, references, first, scratch);
        }
        continue;
      }
      uint64_t unsettled[kLanes] = {};
      uint64_t bit = 1;
      uint32_t any = 0;
      for (int64_t s = start_[group]; s < start_[group + 1]; s += kLanes, bit *= 2) {
        const V threshold = S::load(nominal_ + s);
        const V nearer = threshold - slack, farther = threshold + slack;
        I surely{}, maybe{};
        for (int64_t r = 0; r < rows; ++r) {
          const V x = S::load(e + r * stride + c);
          surely = tally(surely, S::less(x, nearer));
          maybe = tally(maybe, S::less_equal(x, farther));
        }
        if (!S::any(S::less_int(I{}, maybe))) break;
        add(pessimistic_ + s, surely);
        add(optimistic_ + s, surely);
        uint32_t open = S::lane_bits(S::less_int(surely, maybe));
        for (any |= open; open; open &= open - 1) unsettled[__builtin_ctz(open)] |= bit;
      }
      for (; any; any &= any - 1) {
        const int l = __builtin_ctz(any);
        const int64_t n = gather(e + c + l, stride, rows, scratch.column);
        settle(j0 + c + l, unsettled[l], scratch.column, n, slack[l], queries, references, first, scratch);
      }
    }
  }

  // Searched queries were counted between thresholds: sum up.
  void finish() {
    for (int64_t i = 0; i < padded_; ++i)
      if (searched(i / kLanes))
        for (int64_t level = wanted[i] - 2; level >= 0; --level) {
          pessimistic_[slot(i, level)] += pessimistic_[slot(i, level + 1)];
          optimistic_[slot(i, level)] += optimistic_[slot(i, level + 1)];
        }
  }

 private:
  bool searched(int64_t group) const { return start_[group + 1] - start_[group] > kLinear * kLanes; }

  // Side by side for vectors of queries; one query's thresholds in a row where they are searched.
  int64_t slot(int64_t query, int64_t level) const {
    const int64_t group = query / kLanes, lane = query % kLanes;
    return searched(group) ? start_[group] + lane * ((start_[group + 1] - start_[group]) / kLanes) + level
                           : start_[group] + level * kLanes + lane;
  }

  static ALA_HD int lanes_set(S::Mask m) {
#if defined(__AVX2__)
    return __builtin_popcount(S::lane_bits(m));
#else
    int n = 0;
    for (int l = 0; l < kLanes; ++l) n -= static_cast<int>(m[l]);
    return n;
#endif
  }
  static ALA_HD I tally(I count, S::Mask m) {
#if defined(__AVX512F__)
    return (I)_mm512_mask_add_epi32((__m512i)count, static_cast<__mmask16>(m), (__m512i)count,
                                    _mm512_set1_epi32(1));
#else
    return count - m;
#endif
  }
  static ALA_HD void add(int32_t* to, I amount) {
    const I sum = S::load_int(to) + amount;
    std::memcpy(to, &sum, sizeof sum);
  }

  static int64_t gather(const float* e, int64_t stride, int64_t rows, float* out) {
    for (int64_t r = 0; r < rows; ++r) out[r] = e[r * stride];
    const int64_t n = round_up(rows, kLanes);
    for (int64_t r = rows; r < n; ++r) out[r] = kFar;
    return n;
  }

  // Keys of the references that a threshold leaves open, each computed once.
  __attribute__((noinline)) void settle(int64_t query, uint64_t levels, const float* e, int64_t n,
                                        float slack, const RankRows& queries, const RankRows& references,
                                        int64_t first, const RankScratch& scratch) {
    double keys[kRun];
    uint32_t known[kRun / kLanes] = {};
    queries.query(query, scratch.query);
    for (; levels; levels &= levels - 1) {
      const int64_t s = slot(query, __builtin_ctzll(levels));
      const V nearer = S::set(nominal_[s] - slack), farther = S::set(nominal_[s] + slack);
      for (int64_t v = 0; v < n; v += kLanes) {
        const V x = S::load(e + v);
        uint32_t open = S::lane_bits(S::but_not(S::less_equal(x, farther), S::less(x, nearer)));
        for (; open; open &= open - 1) {
          const int l = __builtin_ctz(open);
          if (!(known[v / kLanes] >> l & 1))
            keys[v + l] = references.key(scratch.query, first + v + l, scratch.other);
          known[v / kLanes] |= 1u << l;
          pessimistic_[s] += keys[v + l] <= exact_[s];
          optimistic_[s] += keys[v + l] < exact_[s];
        }
      }
    }
  }

  // Many thresholds: binary search, and counts between neighbouring thresholds.
  __attribute__((noinline)) void search(int64_t query, const float* e, int64_t n, float slack,
                                        const RankRows& queries, const RankRows& references, int64_t first,
                                        const RankScratch& scratch) {
    const int64_t base = slot(query, 0), levels = wanted[query];
    const float* thresholds = nominal_ + base;  // descending
    const V farthest = S::set(thresholds[0] + slack);
    bool read = false;
    for (int64_t v = 0; v < n; v += kLanes) {
      uint32_t candidates = S::lane_bits(S::less_equal(S::load(e + v), farthest));
      for (; candidates; candidates &= candidates - 1) {
        const int64_t c = v + __builtin_ctz(candidates);
        const int64_t sure = above(thresholds, levels, e[c] + slack);
        if (__builtin_expect(sure == levels || thresholds[sure] < e[c] - slack, 1)) {
          if (sure > 0) ++pessimistic_[base + sure - 1], ++optimistic_[base + sure - 1];
          continue;
        }
        if (!read) queries.query(query, scratch.query), read = true;
        const double key = references.key(scratch.query, first + c, scratch.other);
        int64_t reached = sure;
        while (reached < levels && exact_[base + reached] > key) ++reached;
        if (reached > 0) ++optimistic_[base + reached - 1];
        while (reached < levels && exact_[base + reached] >= key) ++reached;
        if (reached > 0) ++pessimistic_[base + reached - 1];
      }
    }
  }

  // How many of the descending thresholds are greater than x.
  static int64_t above(const float* thresholds, int64_t n, float x) {
    const float* from = thresholds;
    while (n > 1) {
      const int64_t half = n / 2;
      from = from[half - 1] > x ? from + half : from;
      n -= half;
    }
    return from - thresholds + (n == 1 && *from > x);
  }

  int64_t padded_ = 0;
  int64_t* start_ = nullptr;        // [groups + 1]
  double* exact_ = nullptr;         // per slot: key of the positive,
  float* nominal_ = nullptr;        //   the same in units of e,
  int32_t* pessimistic_ = nullptr;  // and negatives not behind it,
  int32_t* optimistic_ = nullptr;   //   before it
};

}  // namespace ALA_ISA
}  // namespace ala
