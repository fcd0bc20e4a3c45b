// Pairwise Euclidean distances and their backward.
#pragma once

#include "cpu/kernels.h"
#include "cpu/pair_tiles.h"

namespace ala {
namespace ALA_ISA {

template <class T>
struct DistanceOp {
  using V = typename Simd<T>::V;
  static constexpr bool kGradient = false, kStores = true, kRests = false;

  T* out;
  int64_t stride;
  bool symmetric;

  class Tile {
   public:
    static constexpr bool kGradient = DistanceOp::kGradient, kStores = DistanceOp::kStores;
    Tile(DistanceOp& op, int64_t, int64_t, int64_t i0, int64_t j0, int64_t rows, int64_t cols, bool diagonal)
        : op_(op), i0_(i0), j0_(j0), rows_(rows), cols_(cols), diagonal_(diagonal) {}
    void begin_row(int64_t, int64_t, const typename PairTiles<T>::RowDistances&) {}
    template <bool kMasked>
    ALA_HD V pair(V d, V, int, typename Simd<T>::Mask) {
      return d;
    }
    void end_row(int64_t) {}
    void finish(const T* tile) {
      constexpr int stride = PairTiles<T>::Square::kStride;
      for (int64_t i = 0; i < rows_; ++i)
        std::memcpy(op_.out + (i0_ + i) * op_.stride + j0_, tile + i * stride,
                    static_cast<size_t>(cols_) * sizeof(T));
      if (!op_.symmetric) return;
      // The mirrored half; on the diagonal tile only the upper half was visited.
      for (int64_t j = 0; j < cols_; ++j)
        for (int64_t i = 0; i < (diagonal_ ? j : rows_); ++i)
          op_.out[(j0_ + j) * op_.stride + i0_ + i] = tile[i * stride + j];
    }

   private:
    DistanceOp& op_;
    int64_t i0_, j0_, rows_, cols_;
    bool diagonal_;
  };
};

template <class T>
ala_status pairwise_distance(const ala_pairwise_distance_request& r, const Call& call) {
  Workers workers(call.executor);
  Arena arena(call.workspace, call.workspace_bytes);
  PairTiles<T> tiles;
  tiles.allocate(r.x, r.y, r.symmetric != 0, nullptr, nullptr, PairTiles<T>::Visits::once, workers, arena);
  if (call.bytes) return *call.bytes = arena.bytes_with_slack(), ALA_OK;
  if (!arena.fits()) return ALA_WORKSPACE_TOO_SMALL;

  workers = workers.for_work(tiles.multiply_adds());
  tiles.pack(r.x, r.y, workers);
  DistanceOp<T> op{static_cast<T*>(r.distances), tiles.y.count, tiles.symmetric};
  tiles.visit(op, workers);
  return ALA_OK;
}

template <class T>
struct DistanceBackwardOp {
  using S = Simd<T>;
  using V = typename S::V;
  static constexpr bool kGradient = true, kStores = false, kRests = false;
  static constexpr int kStride = PairTiles<T>::Square::kStride;

  ala_matrix grad;
  bool symmetric;

  T at(int64_t i, int64_t j) const {
    return static_cast<const T*>(grad.data)[i * grad.row_stride + j * grad.col_stride];
  }

  class Tile {
   public:
    static constexpr bool kGradient = DistanceBackwardOp::kGradient, kStores = DistanceBackwardOp::kStores;
    Tile(DistanceBackwardOp& op, int64_t, int64_t, int64_t i0, int64_t j0, int64_t, int64_t cols, bool)
        : op_(op), i0_(i0), j0_(j0), cols_(cols) {
      std::memset(row_grad_, 0, sizeof row_grad_);
    }
    void begin_row(int64_t i, int64_t, const typename PairTiles<T>::RowDistances&) {
      for (int64_t j = 0; j < cols_; ++j) row_grad_[j] = op_.at(i0_ + i, j0_ + j);
      if (op_.symmetric)
        for (int64_t j = 0; j < cols_; ++j) row_grad_[j] += op_.at(j0_ + j, i0_ + i);
    }
    template <bool kMasked>
    ALA_HD V pair(V, V inverse, int v, typename S::Mask) {
      return S::load(row_grad_ + v) * inverse;
    }
    void end_row(int64_t) {}
    void finish(const T*) {}

   private:
    DistanceBackwardOp& op_;
    int64_t i0_, j0_, cols_;
    T row_grad_[1024 / sizeof(T)];
  };
};

template <class T>
ala_status pairwise_distance_backward(const ala_pairwise_distance_backward_request& r, const Call& call) {
  Workers workers(call.executor);
  Arena arena(call.workspace, call.workspace_bytes);
  PairTiles<T> tiles;
  tiles.allocate(r.x, r.y, r.symmetric != 0, static_cast<T*>(r.grad_x), static_cast<T*>(r.grad_y),
                 PairTiles<T>::Visits::once, workers, arena);
  if (call.bytes) return *call.bytes = arena.bytes_with_slack(), ALA_OK;
  if (!arena.fits()) return ALA_WORKSPACE_TOO_SMALL;

  workers = workers.for_work(tiles.multiply_adds());
  tiles.pack(r.x, r.y, workers);
  DistanceBackwardOp<T> op{r.grad_distances, tiles.symmetric};
  tiles.visit(op, workers);
  return ALA_OK;
}

}  // namespace ALA_ISA
}  // namespace ala
