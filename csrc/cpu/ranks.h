// Ranks of the positives of every query: counted tile by tile against thresholds, nothing N x M is stored.
//
// e = |x|^2 / 2 + |y|^2 / 2 - <x, y> in float serves both its row and, when the references are the queries,
// its column.
#pragma once

#include <algorithm>

#include "cpu/classes.h"
#include "cpu/kernels.h"
#include "cpu/rank_counts.h"
#include "cpu/schedule.h"

namespace ala {
namespace ALA_ISA {

class RankTiles {
 public:
  using S = Simd<float>;
  using V = S::V;
  static constexpr int64_t kPanel = RankPanels::kPanel;
  static constexpr int64_t kStride = Tile<float>::kStride;
  static constexpr int64_t kBlock = Tile<float>::kSide;
  static constexpr int64_t kStrip = 32;  // rows whose e stay in the first caches

  RankRows queries, references;  // symmetric: the same
  RankCounts counts;
  const int32_t* first_own =
      nullptr;  // [queries] the references of a query's own class are [first_own, end_own)
  const int32_t* end_own = nullptr;
  bool symmetric = false;

  void allocate(const ala_positive_ranks_request& r, int64_t slots, Arena& arena) {
    symmetric = r.symmetric != 0;
    queries.allocate(r.x, r.cosine != 0, true, symmetric, arena);
    if (symmetric)
      references = queries;
    else
      references.allocate(r.y, r.cosine != 0, false, true, arena);
    counts.allocate(queries.padded, slots, arena);
    col_block_ = block_size(references);
    row_block_ = symmetric ? col_block_ : block_size(queries);
    if (symmetric) progress_.allocate(row_blocks(), arena);
    longest_ = arena.array<float>(2 * (row_blocks() + col_blocks()));
  }

  int64_t row_blocks() const { return (queries.count + row_block_ - 1) / row_block_; }
  int64_t col_blocks() const { return (references.count + col_block_ - 1) / col_block_; }

  void visit(float* tiles, const RankScratch* scratch, const Workers& workers) {
    // What float arithmetic may get wrong, in units of |x| |y| and of |x|^2 / 2 + |y|^2 / 2: the products;
    // rounding of x, y, their squares, the sums, and the thresholds. 1.02 covers second orders.
    const double unit = std::ldexp(1.0, -24);
    per_product_ =
        static_cast<float>(1.02 * (RankPanels::error(queries.panels, references.panels) + 2 * unit));
    per_square_ = static_cast<float>(1.02 * unit * 18);
    float *rows = longest_, *cols = longest_ + 2 * row_blocks();
    longest(queries, row_block_, rows);
    longest(references, col_block_, cols);
    const auto body = [&](int64_t I, int64_t J, int64_t slot) {
      visit_block(I, J, rows + 2 * I, cols + 2 * J, tiles + slot * kStrip * kStride, scratch[slot]);
    };
    if (symmetric)
      visit_symmetric(row_blocks(), workers, body, group_size(row_blocks()), progress_);
    else
      visit_rows(workers, body);
    counts.finish();
  }

 private:
  // Only the rows have counts: each group of their blocks meets all columns.
  template <class Body>
  void visit_rows(const Workers& workers, const Body& body) const {
    const int64_t group = group_size(row_blocks()), groups = (row_blocks() + group - 1) / group;
    workers.run(groups, [&](int64_t g, int64_t slot) {
      for (int64_t J = 0; J < col_blocks(); ++J)
        for (int64_t I = g * group; I < smaller(row_blocks(), (g + 1) * group); ++I) body(I, J, slot);
    });
  }

  static int64_t block_size(const RankRows& rows) {
    int64_t block = kBlock;
    while (block > 64 && (block * rows.dims * 8 > (3 << 19) || rows.count < 8 * block)) block /= 2;
    return block;
  }

  // Per block: the greatest length, and the greatest half square.
  static void longest(const RankRows& rows, int64_t block, float* out) {
    for (int64_t b = 0; b * block < rows.count; ++b) {
      float length = 0, half_square = 0;
      for (int64_t i = b * block; i < smaller(rows.count, (b + 1) * block); ++i) {
        length = larger(length, rows.length[i]);
        half_square = larger(half_square, rows.half_square[i]);
      }
      out[2 * b] = length;
      out[2 * b + 1] = half_square;
    }
  }

  __attribute__((noinline)) void visit_block(int64_t I, int64_t J, const float* row_most,
                                             const float* col_most, float* e, const RankScratch& scratch) {
    const RankPanels::Session session;
    static_cast<void>(session);
    const int64_t i0 = I * row_block_, j0 = J * col_block_;
    const int64_t end = smaller(queries.count, i0 + row_block_);
    const int64_t cols = smaller(col_block_, references.padded - j0);
    const auto row_slack = [&](int64_t i) {
      return per_product_ * queries.length[i] * col_most[0] +
             per_square_ * (queries.half_square[i] + col_most[1]) + kLeastSlack;
    };
    const auto col_slack = [&](int64_t j) {
      return S::set(per_product_ * row_most[0]) * S::load(queries.length + j) +
             S::set(per_square_) * (S::load(queries.half_square + j) + S::set(row_most[1])) +
             S::set(kLeastSlack);
    };
    const bool diagonal = symmetric && I == J;
    for (int64_t i = i0; i < end; i += kStrip) {
      const int64_t rows = smaller(kStrip, end - i);
      // On the diagonal the pairs to the left are those of earlier strips.
      const int64_t left = diagonal ? i : j0, n = j0 + cols - left;
      queries.panels.distances(i, round_up(rows, kPanel), references.panels, left, n, e);
      for (int64_t r = 0; r < rows; ++r) {
        float* row = e + r * kStride;
        const int64_t from = larger<int64_t>(first_own[i + r] - left, 0);
        const int64_t to = smaller(end_own[i + r] - left, n);
        for (int64_t c = from; c < to; ++c) row[c] = kFar;
        counts.count_row(i + r, row, n, row_slack(i + r), queries, references, left, scratch);
      }
      const int64_t skip = diagonal ? smaller(kStrip, n) : 0;
      if (symmetric)
        counts.count_columns(left + skip, n - skip, e + skip, kStride, rows, col_slack, queries, references,
                             i, scratch);
    }
  }

  static constexpr float kLeastSlack = 1e-30f;  // products that underflow
  int64_t row_block_ = 0, col_block_ = 0;
  Progress progress_;
  float* longest_ = nullptr;
  float per_product_ = 0, per_square_ = 0;
};

// Rows in the order of their classes, classes by ascending size, so that own classes are ranges and
// neighbouring queries have about as many positives.
class RankOrder {
 public:
  int32_t *first_own = nullptr, *end_own = nullptr;  // [padded queries]

  void allocate(const RankTiles& tiles, Arena& arena) {
    x_.count = tiles.queries.count;
    x_.padded = tiles.queries.padded;
    y_.count = tiles.references.count;
    y_.padded = tiles.references.padded;
    classes_.allocate(x_, y_, tiles.symmetric, arena);
    first_own = arena.array<int32_t>(x_.padded);
    end_own = arena.array<int32_t>(x_.padded);
    places_ = arena.array<Place>(y_.count);
    place_of_ = arena.array<int32_t>(y_.count);
    begin_ = arena.array<int32_t>(y_.count + 1);
    next_ = arena.array<int32_t>(y_.count + 1);
  }

  // Fills the orders of `tiles` and the ranges of own classes.
  void build(RankTiles& tiles, const int64_t* x_labels, const int64_t* y_labels) {
    classes_.build(tiles.symmetric ? y_labels : x_labels, y_labels);
    int32_t n = 0;
    for (int64_t j = 0; j < y_.count; ++j) n = larger(n, classes_.reference[j] + 1);
    for (int32_t c = 0; c < n; ++c) places_[c] = {0, c};
    for (int64_t j = 0; j < y_.count; ++j) ++places_[classes_.reference[j]].size;
    std::sort(places_, places_ + n,
              [](Place a, Place b) { return a.size != b.size ? a.size < b.size : a.label < b.label; });
    begin_[0] = 0;
    for (int32_t p = 0; p < n; ++p) {
      place_of_[places_[p].label] = p;
      next_[p] = begin_[p];
      begin_[p + 1] = begin_[p] + places_[p].size;
    }
    for (int64_t j = 0; j < y_.count; ++j)
      tiles.references.order[next_[place_of_[classes_.reference[j]]]++] = static_cast<int32_t>(j);
    if (!tiles.symmetric) order_queries(tiles.queries.order, n);
    for (int64_t i = 0; i < x_.padded; ++i) {
      const int32_t c = i < x_.count ? classes_.anchor[tiles.queries.order[i]] : -2;
      first_own[i] = c < 0 ? 0 : begin_[place_of_[c]];
      end_own[i] = c < 0 ? 0 : begin_[place_of_[c] + 1];
    }
  }

 private:
  struct Place {
    int32_t size, label;
  };

  // Queries without positives first, then by place of their class.
  void order_queries(int32_t* order, int32_t n) {
    for (int32_t p = 0; p <= n; ++p) next_[p] = 0;
    const auto place = [&](int64_t i) {
      return classes_.anchor[i] < 0 ? 0 : place_of_[classes_.anchor[i]] + 1;
    };
    for (int64_t i = 0; i < x_.count; ++i) ++next_[place(i)];
    for (int32_t p = 0, at = 0; p <= n; ++p) {
      const int32_t size = next_[p];
      next_[p] = at;
      at += size;
    }
    for (int64_t i = 0; i < x_.count; ++i) order[next_[place(i)]++] = static_cast<int32_t>(i);
  }

  Points<float> x_, y_;  // only their counts
  Classes<float> classes_;
  Place* places_ = nullptr;      // of the references' classes, by size
  int32_t* place_of_ = nullptr;  // of each class
  int32_t* begin_ = nullptr;     // of each place: its first reference
  int32_t* next_ = nullptr;
};

// The scales and the centre that all rows share, from some of the references. Any would do; centred and
// scaled rows are the most exact as floats.
inline void choose_frame(RankFrame& frame, const RankRows& references, double* row) {
  const int64_t dims = references.dims, samples = smaller(references.count, 256);
  const auto each_sample = [&](auto visit) {
    for (int64_t s = 0; s < samples; ++s) {
      references.read(s * references.count / samples, row);
      visit();
    }
  };
  double most = 0, spread = 0;
  each_sample([&] { most = larger(most, references.largest_of(row)); });
  frame.scale = power_of_two_below(most);
  for (int64_t k = 0; k < dims; ++k) frame.centre[k] = 0;
  each_sample([&] {
    for (int64_t k = 0; k < dims; ++k) frame.centre[k] += row[k] * frame.scale / static_cast<double>(samples);
  });
  each_sample([&] {
    for (int64_t k = 0; k < dims; ++k) row[k] = row[k] * frame.scale - frame.centre[k];
    spread = larger(spread, references.largest_of(row));
  });
  frame.spread = spread < 0x1p-50 ? 0x1p50 : power_of_two_below(spread);
}

// The same where the sample was far from typical: floats would overflow.
inline void choose_safe_frame(RankFrame& frame, const RankRows& queries, const RankRows& references,
                              double* row) {
  double most = 0;
  for (const RankRows* rows : {&queries, &references})
    for (int64_t i = 0; i < rows->count; ++i) {
      rows->read(i, row);
      most = larger(most, rows->largest_of(row));
    }
  frame.scale = power_of_two_below(most);
  frame.spread = 1;
  for (int64_t k = 0; k < references.dims; ++k) frame.centre[k] = 0;
}

inline bool fit_floats(const RankRows& rows) {
  for (int64_t i = 0; i < rows.count; ++i)
    if (!(rows.length[i] < 1e15f)) return false;
  return true;
}

// Distances of query i to its positives, farthest first, into counts; only the nearest if first_only.
struct RankKey {  // a type of this instruction set's own, as for all that std::sort is compiled for
  double value;
};
inline void set_thresholds(RankTiles& tiles, const RankFrame& frame, int64_t i, const RankScratch& scratch,
                           RankKey* keys) {
  const int64_t wanted = tiles.counts.wanted[i];
  if (wanted == 0) return;
  tiles.queries.query(i, scratch.query);
  int64_t n = 0;
  for (int64_t j = tiles.first_own[i]; j < tiles.end_own[i]; ++j)
    if (!tiles.symmetric || j != i) {
      const RankKey key{tiles.references.key(scratch.query, j, scratch.other)};
      if (wanted > 1 || n == 0)
        keys[n++] = key;
      else if (key.value < keys[0].value)
        keys[0] = key;
    }
  std::sort(keys, keys + n, [](RankKey a, RankKey b) { return a.value > b.value; });
  for (int64_t level = 0; level < n; ++level) {
    const double key = keys[level].value;
    tiles.counts.set(i, level, key, frame.nominal(key, tiles.queries.scaled_length(i)));
  }
}

inline ala_status positive_ranks(const ala_positive_ranks_request& r, const Call& call) {
  Workers workers(call.executor);
  Arena arena(call.workspace, call.workspace_bytes);
  const int64_t n = r.x.rows, dims = r.x.cols;
  int64_t most = 0;
  for (int64_t i = 0; i < n; ++i) most = larger(most, r.offsets[i + 1] - r.offsets[i]);
  const int64_t thresholds = r.first_only ? n : r.offsets[n], levels = r.first_only ? 1 : most;

  RankTiles tiles;
  RankOrder order;
  RankFrame frame;
  tiles.allocate(r, RankCounts::slots_for(thresholds, levels), arena);
  order.allocate(tiles, arena);
  frame.cosine = r.cosine != 0;
  frame.centre = arena.array<double>(dims);
  const int64_t slots = workers.slots(), size = RankRows::row_size(dims);
  double* rows = arena.array<double>(2 * slots * size);
  float* panels = arena.array<float>(slots * RankRows::panel_size(dims));
  RankKey* keys = arena.array<RankKey>(slots * levels);
  float* columns = arena.array<float>(slots * RankCounts::kRun);
  float* strips = arena.array<float>(slots * RankTiles::kStrip * RankTiles::kStride);
  RankScratch* scratch = arena.array<RankScratch>(slots);
  if (call.bytes) return *call.bytes = arena.bytes_with_slack(), ALA_OK;
  if (!arena.fits()) return ALA_WORKSPACE_TOO_SMALL;

  for (int64_t s = 0; s < slots; ++s)
    scratch[s] = {rows + 2 * s * size, rows + (2 * s + 1) * size, columns + s * RankCounts::kRun};
  order.build(tiles, r.x_labels, r.symmetric ? r.x_labels : r.y_labels);
  tiles.first_own = order.first_own;
  tiles.end_own = order.end_own;
  for (int64_t i = 0; i < tiles.queries.padded; ++i) {
    int64_t positives = 0;
    if (i < n) {
      positives = order.end_own[i] - order.first_own[i] - (r.symmetric && order.end_own[i] > 0 ? 1 : 0);
      const int64_t* offset = r.offsets + tiles.queries.order[i];
      if (offset[1] - offset[0] != positives) return ALA_INVALID_ARGUMENT;
    }
    tiles.counts.wanted[i] = static_cast<int32_t>(r.first_only ? smaller(positives, 1) : positives);
  }
  tiles.counts.lay_out();

  workers = workers.for_work(static_cast<double>(n) * static_cast<double>(tiles.references.count) *
                             static_cast<double>(dims + 16));
  const auto pack = [&] {
    tiles.queries.pack(frame, workers, rows, panels);
    if (tiles.symmetric)
      tiles.references = tiles.queries;
    else
      tiles.references.pack(frame, workers, rows, panels);
    return fit_floats(tiles.queries) && fit_floats(tiles.references);
  };
  choose_frame(frame, tiles.references, rows);
  if (!pack()) {
    if (!tiles.queries.all_finite(rows) || !tiles.references.all_finite(rows)) return ALA_INVALID_ARGUMENT;
    choose_safe_frame(frame, tiles.queries, tiles.references, rows);
    pack();
  }
  constexpr int64_t chunk = 16;
  workers.run((n + chunk - 1) / chunk, [&](int64_t c, int64_t slot) {
    for (int64_t i = c * chunk; i < smaller(n, (c + 1) * chunk); ++i)
      set_thresholds(tiles, frame, i, scratch[slot], keys + slot * levels);
  });
  tiles.visit(strips, scratch, workers);

  for (int64_t i = 0; i < n; ++i) {
    const int64_t query = tiles.queries.order[i], wanted = tiles.counts.wanted[i];
    int64_t to = r.first_only ? query : r.offsets[query];
    if (r.first_only && wanted == 0) r.pessimistic[to] = r.optimistic[to] = 0;
    for (int64_t j = 1; j <= wanted; ++j, ++to) {
      r.pessimistic[to] = j + tiles.counts.pessimistic(i, wanted - j);
      r.optimistic[to] = j + tiles.counts.optimistic(i, wanted - j);
    }
  }
  return ALA_OK;
}

}  // namespace ALA_ISA
}  // namespace ala
