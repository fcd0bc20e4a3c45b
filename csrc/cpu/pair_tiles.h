// The walk over all pairs, tile by tile: dot products, distances, the op's own row function, gradient
// products.
//
// An op is a class with a nested `Tile` (one per tile, on the stack):
//   Tile(op, I, J, i0, j0, rows, cols, diagonal)   I, J: block numbers; diagonal: rows and columns are the
//   same points begin_row(i, first, distances)                  i: row inside the tile; pairs from lane
//   `first` V pair<kMasked>(d, inverse, v, valid)          lanes v ... of the row: adds to the op's sums,
//   returns G = slope / d
//                                                  times the pair's weight; lanes outside `valid` must not
//                                                  count
//   end_row(i)
//   finish(tile)                                   after the last row; `tile` holds what pair() returned
// and constants kStores (finish reads the tile), kGradient (the G of the tile are multiplied out) and kRests
// (distances have rests).
#pragma once

#include <cstdint>

#include "core/shapes.h"
#include "cpu/column_sums.h"
#include "cpu/near_pairs.h"
#include "cpu/points.h"
#include "cpu/schedule.h"
#include "cpu/tile.h"
#include "cpu/vector_math.h"
#if defined(__AMX_BF16__)
#include "cpu/split_products.h"
#endif

namespace ala {
namespace ALA_ISA {

// Gradients grow in two parts: `out` collects -G Y and the near pairs, `weight_sums` the row sums of G, which
// finish() turns into rowsum(G) x.
template <class T>
struct GradientSink {
  static constexpr int64_t kChunk = 256;  // rows of one item of work
  T* out = nullptr;                       // [count, dims]; NULL: not wanted
  double* weight_sums = nullptr;

  void allocate(T* destination, const Points<T>& points, Arena& arena) {
    out = destination;
    if (out) weight_sums = arena.array<double>(points.padded);
  }
  void clear(const Points<T>& points, const Workers& workers) {
    if (!out) return;
    std::memset(weight_sums, 0, static_cast<size_t>(points.padded) * sizeof(double));
    workers.run((points.count + kChunk - 1) / kChunk, [&](int64_t c, int64_t) {
      const int64_t first = c * kChunk, rows = smaller(kChunk, points.count - first);
      std::memset(out + first * points.dims, 0, static_cast<size_t>(rows * points.dims) * sizeof(T));
    });
  }
  void finish(const Points<T>& points, const Workers& workers) {
    if (!out) return;
    workers.run((points.count + kChunk - 1) / kChunk, [&](int64_t c, int64_t) {
      for (int64_t i = c * kChunk; i < smaller(points.count, (c + 1) * kChunk); ++i) {
        const T sum = static_cast<T>(weight_sums[i]);
        T* to = out + i * points.dims;
        const T* from = points.row(i);
        for (int64_t k = 0; k < points.dims; k += Points<T>::kPanel, from += Points<T>::kSlice) {
          const int64_t width = smaller(Points<T>::kPanel, points.dims - k);
          for (int64_t c = 0; c < width; ++c) to[k + c] += sum * from[c];
        }
      }
    });
  }
};

template <class T>
struct Products {
  using Type = RegisterProducts<T>;
};
#if defined(__AMX_BF16__)
template <>
struct Products<float> {
  using Type = SplitProducts;
};
#endif

template <class T>
class PairTiles {
 public:
  using S = Simd<T>;
  using V = typename S::V;
  using Mask = typename S::Mask;
  using Square = Tile<T>;

  Points<T> x, y;  // symmetric: y is x
  bool symmetric = false;
  int64_t row_block = 0, col_block = 0;
  GradientSink<T> grad_x, grad_y;
  const int64_t* own = nullptr;  // not symmetric: of each row of x the row of y that is no pair of it, or -1

  // once: there is one visit, and nobody asks for y but that. twice: a second visit takes the products again.
  enum class Visits { once, any, twice };

  // Cuts everything the walk needs out of the arena. gx, gy: gradients wanted, or NULL.
  void allocate(const ala_matrix& mx, const ala_matrix& my, bool is_symmetric, T* gx, T* gy, Visits visits,
                const Workers& workers, Arena& arena) {
    symmetric = is_symmetric;
    x.allocate(mx, arena, Products<T>::Type::kLayout);
    if (symmetric)
      y = x;
    else
      y.describe(my);
    col_block = block_size(y.count, y.dims);
    row_block = symmetric ? col_block : block_size(x.count, x.dims);
    // With one thread a column block is packed once either way, else once for each row block.
    streams_ =
        visits == Visits::once && !symmetric && !gy && (workers.slots() == 1 || row_blocks() <= kStreamed);
    Points<T> block;
    if (streams_) {
      windows_ = arena.array<Window>(workers.slots());
      for (int64_t slot = 0; slot < workers.slots(); ++slot) {
        block.allocate(rows_of(my, 0, smaller(col_block, y.count)), arena, Products<T>::Type::kLayout);
        if (!arena.counting() && arena.fits()) windows_[slot].points = block;
      }
    } else if (!symmetric) {
      y.allocate(my, arena, Products<T>::Type::kLayout);
    }
    grad_x.allocate(gx, x, arena);
    if (symmetric)
      grad_y = grad_x;
    else
      grad_y.allocate(gy, y, arena);
    if (symmetric) progress_.allocate(row_blocks(), arena);
    products_.allocate(streams_ ? block : y, row_block, col_block, streams_, workers.slots(), arena);
    keeps_all_ =
        visits == Visits::twice && tiles() <= kMostKept / (tile_size() * static_cast<int64_t>(sizeof(T)));
    scratch_ = arena.array<T>(keeps_all_ ? tiles() * tile_size() : workers.slots() * kScratch);
    slots_ = workers.slots();
  }

  int64_t row_blocks() const { return (x.count + row_block - 1) / row_block; }
  int64_t col_blocks() const { return (y.count + col_block - 1) / col_block; }
  double multiply_adds() const {
    return static_cast<double>(x.count) * static_cast<double>(y.count) * static_cast<double>(x.dims + 16);
  }

  void pack(const ala_matrix& mx, const ala_matrix& my, const Workers& workers) {
    products_.forget();
    products_there_ = false;
    if (!symmetric) x.pack(mx, workers);
    source_ = my;
    if (streams_)
      for (int64_t slot = 0; slot < slots_; ++slot) windows_[slot].block = -1;
    else
      y.pack(symmetric ? mx : my, workers, [&](int64_t p) { products_.pack_panel(y, p, 0); });
  }

  template <class Op>
  void visit(Op& op, const Workers& workers) {
    if (Op::kGradient) {
      grad_x.clear(x, workers);
      if (!symmetric) grad_y.clear(y, workers);
    }
    const auto body = [&](int64_t I, int64_t J, int64_t slot) { visit_tile(op, I, J, slot); };
    if (symmetric)
      visit_symmetric(row_blocks(), workers, body, group_size(row_blocks()), progress_);
    else if (x.count > 0 && y.count > 0 && !(Op::kGradient && grad_y.out))
      visit_rows(row_blocks(), col_blocks(), workers, body);
    else if (x.count > 0 && y.count > 0)
      visit_rectangular(row_blocks(), col_blocks(), workers, body);
    if (Op::kGradient) {
      grad_x.finish(x, workers);
      if (!symmetric) grad_y.finish(y, workers);
    }
    products_there_ = keeps_all_ && !Op::kGradient && !Op::kStores;
  }

  // Distances of one row of a tile; bit l of close[v / kLanes]: lane v + l is a near pair. In steps of their
  // own, so that the long chains of dependent operations of several registers overlap.
  struct RowDistances {
    alignas(64) T distance[Square::kSide];
    alignas(64) T inverse[Square::kSide];
    alignas(64) T rest[Square::kSide];  // of the distance: what its rounding has cut off; for ops with kRests
    uint32_t close[Square::kSide / S::kLanes];
  };

 private:
  static constexpr int64_t kScratch = int64_t{Square::kSide} * Square::kStride;
  // Small batches keep their products between two visits: at most this many bytes, which an L2 cache holds.
  static constexpr int64_t kMostKept = 1 << 18;

  int64_t tiles() const { return symmetric ? tile_number(0, col_blocks()) : row_blocks() * col_blocks(); }
  int64_t tile_number(int64_t I, int64_t J) const {
    return symmetric ? J * (J + 1) / 2 + I : I * col_blocks() + J;
  }
  int64_t tile_size() const { return row_block * Square::kStride; }

  // Depends on the shapes alone, so that the bits do not depend on the number of threads. Large blocks reuse
  // more of the caches; small ones leave enough of them for every thread.
  static int64_t block_size(int64_t count, int64_t dims) {
    const int64_t bytes_per_point = (dims + 16) * 6 * static_cast<int64_t>(sizeof(T));
    int64_t block = Square::kSide;
    while (block > 64 && block * bytes_per_point > (13 << 18)) block /= 2;
    while (block > 128 && count < 16 * block) block /= 2;
    while (block > Square::kPanel && count < 2 * block) block /= 2;
    return block < Square::kPanel ? Square::kPanel : block;
  }

  template <class Op>
  __attribute__((noinline)) void visit_tile(Op& op, int64_t I, int64_t J, int64_t slot) {
    const typename Products<T>::Type::Session session;
    static_cast<void>(session);
    T* const tile = scratch_ + (keeps_all_ ? tile_number(I, J) * tile_size() : slot * kScratch);
    const int64_t i0 = I * row_block, j0 = J * col_block;
    const int64_t rows = smaller(row_block, x.count - i0), cols = smaller(col_block, y.count - j0);
    const bool diagonal = symmetric && I == J;
    // The references from `y0` on are those of the tile.
    const Points<T>& references = streams_ ? window(J, slot) : y;
    const int64_t y0 = streams_ ? 0 : j0;
    if (!products_there_)
      products_.dot_products(x, i0, round_up(rows, Square::kPanel), references, y0,
                             round_up(cols, Square::kPanel), tile, diagonal, slot);

    ColumnSums<T> col_weights;
    ColumnSums<T>* sums = nullptr;
    T* to_x = Op::kGradient ? grad_x.out : nullptr;
    T* to_y = Op::kGradient ? grad_y.out : nullptr;
    if (to_y) {
      sums = &col_weights;
      sums->clear();
    }
    typename Op::Tile state(op, I, J, i0, j0, rows, cols, diagonal);
    NearRow<T> near;
    int64_t far_pairs = diagonal ? rows * (rows - 1) / 2 : rows * cols;
    RowDistances near_row;
    for (int64_t i = 0; i < rows; ++i) {
      T* row = tile + i * Square::kStride;
      // On the diagonal the pairs to the right of it stand for both orders.
      const int self = diagonal ? static_cast<int>(i) : -1;
      const int first = diagonal ? self / S::kLanes * S::kLanes : 0;
      if (Op::kGradient) std::memset(row, 0, static_cast<size_t>(first) * sizeof(T));
      const int skipped = own ? lane_of(own[i0 + i] - j0, cols) : -1;
      if (skipped >= 0) --far_pairs;
      measure<Op::kRests>(i0 + i, references, y0, first, static_cast<int>(cols), self, skipped, row,
                          near_row);
      state.begin_row(i, first, near_row);
      V row_weight{};
      const int full = static_cast<int>(cols / S::kLanes * S::kLanes);
      // Masked are the lanes around the diagonal, those around the pair that is none, and the last ones.
      int stop = diagonal ? first : skipped >= 0 ? skipped / S::kLanes * S::kLanes : full;
      for (int v = first; v < cols; v += S::kLanes, stop = full) {
        for (; v < stop; v += S::kLanes)
          visit_lanes<false>(state, v, S::none(), near_row, row, row_weight, sums, near);
        if (v < cols)
          visit_lanes<true>(state, v, valid_lanes(v, static_cast<int>(cols), self, skipped), near_row, row,
                            row_weight, sums, near);
      }
      state.end_row(i);
      if (sums) sums->end_row(i, cols);
      if (Op::kGradient) {
        if (to_x) grad_x.weight_sums[i0 + i] += static_cast<double>(S::sum(row_weight));
        far_pairs -= near.count;
        if (near.count) {
          T* const to_row = to_x ? to_x + (i0 + i) * x.dims : nullptr;
          near.scatter(x.row(i0 + i), references, y0, to_row, to_y);
        }
      }
    }
    state.finish(tile);
    if (!Op::kGradient) return;
    if (to_y)
      for (int64_t j = 0; j < cols; ++j) grad_y.weight_sums[j0 + j] += col_weights.total(j);
    if (far_pairs == 0) return;
    if (diagonal) Square::mirror(tile, rows);  // both ends of its pairs at once
    if (to_x)
      products_.template subtract_product<false>(tile, rows, cols, references, y0, x.row(i0),
                                                 to_x + i0 * x.dims, slot);
    if (to_y && !diagonal)
      products_.template subtract_product<true>(tile, rows, cols, x, i0, y.row(j0), to_y + j0 * y.dims, slot);
  }

  static int lane_of(int64_t column, int64_t cols) {
    return column >= 0 && column < cols ? static_cast<int>(column) : -1;
  }

  static ALA_HD Mask valid_lanes(int v, int cols, int self, int skipped) {
    using Int = typename S::Int;
    const auto lane = S::lane_numbers() + static_cast<Int>(v);
    const Mask inside = S::less_int(lane, S::set_int(static_cast<Int>(cols)));
    const Mask valid = S::but_not(inside, S::equal(lane, S::set_int(static_cast<Int>(skipped))));
    return S::both(valid, S::less_int(S::set_int(static_cast<Int>(self)), lane));
  }

  template <bool kRests>
  ALA_HD void measure(int64_t i, const Points<T>& references, int64_t y0, int first, int cols, int self,
                      int skipped, const T* dots, RowDistances& to) const {
    using M = VectorMath<T>;
    const V length = S::set(x.norms[i]);
    for (int v = first; v < cols; v += S::kLanes) {
      const V lengths = length + S::load(references.norms + y0 + v);
      V square = lengths - T(2) * S::load(dots + v);
      uint32_t close = S::lane_bits(S::less_equal(square, M::set(kNearPair) * lengths));
      if (self >= v) close &= ~((2u << (self - v)) - 1);
      if (__builtin_expect(close != 0, 0)) {
        close &= S::lane_bits(valid_lanes(v, cols, self, skipped));
        square = direct(i, references, y0 + v, close, square);
      }
      to.close[v / S::kLanes] = close;
      const V inverse = M::reciprocal_sqrt(M::max(square, M::set(kSmallestSquare)));
      const V half = T(0.5) * inverse;
      V d = square * inverse;
      d += (square - d * d) * half;  // what the inverse lacks
      S::store(to.inverse + v, inverse);
      S::store(to.distance + v, d);
      if constexpr (kRests) S::store(to.rest + v, (square - d * d) * half);
    }
  }

  template <bool kMasked, class TileOf>
  ALA_HD void visit_lanes(TileOf& state, int v, Mask valid, const RowDistances& from, T* row, V& row_weight,
                          ColumnSums<T>* col_weights, NearRow<T>& near) {
    V g = state.template pair<kMasked>(S::load(from.distance + v), S::load(from.inverse + v), v, valid);
    if constexpr (kMasked) g = S::select(valid, g, V{});
    if constexpr (TileOf::kGradient) {
      const uint32_t close = from.close[v / S::kLanes];
      if (__builtin_expect(close != 0, 0)) {
        near.add(close, v, g);
        g = S::select(S::from_lane_bits(close), V{}, g);
      }
      row_weight += g;
      if (col_weights) col_weights->add(v, g);
    }
    if constexpr (TileOf::kGradient || TileOf::kStores) S::store(row + v, g);
  }

  // `square` with the lanes named in `lanes` recomputed.
  __attribute__((noinline)) V direct(int64_t i, const Points<T>& references, int64_t j, uint32_t lanes,
                                     V square) const {
    const T* own = x.row(i);
    const V recomputed = squared_differences<T>(
        lanes, x, [&](int) { return own; }, [&](int l) { return references.row(j + l); });
    return S::select(S::from_lane_bits(lanes), recomputed, square);
  }

  // The references of column block J, packed for this slot.
  const Points<T>& window(int64_t J, int64_t slot) {
    Window& found = windows_[slot];
    if (found.block != J) {
      const int64_t first = J * col_block;
      const ala_matrix rows = rows_of(source_, first, smaller(col_block, y.count - first));
      found.block = J;
      found.points.describe(rows);
      found.points.pack(rows, Workers(nullptr),
                        [&](int64_t p) { products_.pack_panel(found.points, p, slot); });
      products_.forget_right(slot);
    }
    return found.points;
  }

  typename Products<T>::Type products_;
  T* scratch_ = nullptr;         // a tile for each slot, or all tiles
  bool keeps_all_ = false;       // the latter
  bool products_there_ = false;  // which hold the products
  // References that only the tiles of few row blocks look at are packed when their block's turn comes: they
  // are in the caches then, and need no room of their own.
  static constexpr int64_t kStreamed = 2;
  struct alignas(64) Window {
    Points<T> points;
    int64_t block = -1;
  };
  Progress progress_;
  bool streams_ = false;
  Window* windows_ = nullptr;
  ala_matrix source_{};
  int64_t slots_ = 0;
};

}  // namespace ALA_ISA
}  // namespace ala
