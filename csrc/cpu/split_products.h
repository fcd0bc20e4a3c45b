// The same products as in tile.h by AMX, whose registers of 16 x 16 floats add up products of bfloat16. A
// float is the sum of three of those, high + middle + low, so that
//   x y = hh + hm + mh + mm + hl + lh,   but for parts below 2^-26 of it,
// as good as a product in float arithmetic (Henry, Tang, Heinecke 2019), in less time: AMX has 16 times the
// multipliers.
//
// A panel is 32 rows of a left or 32 columns of a right operand. It is stored in steps, 32 deep in the sum:
// for each part two registers, one per half of the panel. A 32-bit word of a register holds numbers w and
// w + 16 of the step, w = 0 ... 15; left registers are [row][word], right ones [word][column].
#pragma once

#include <cstdint>

#include <immintrin.h>

#include "cpu/points.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

namespace ala {
namespace ALA_ISA {

class SplitProducts {
 public:
  using Square = Tile<float>;
  using S = Simd<float>;
  using V = S::V;
  using Word = uint32_t;
  static constexpr Layout kLayout = Layout::kSlices;

  static constexpr int64_t kPanel = 32, kHalf = 16, kDeep = 32;
  static constexpr int64_t kRegister = 16 * 16;    // words
  static constexpr int64_t kPart = 2 * kRegister;  // of a step of one panel
  static_assert(kPanel == Points<float>::kPanel && kHalf == S::kLanes, "AMX comes with AVX-512");

  // While it lives, this thread's tile registers are all 16 rows of 64 bytes.
  class Session {
   public:
    Session() {
      struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
      } const config;
      _tile_loadconfig(&config);
    }
    ~Session() { _tile_release(); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
  };

  // row_block, col_block: the most rows and columns of a tile. y_per_slot: y are the points of a block, other
  // ones for each slot.
  void allocate(const Points<float>& y, int64_t row_block, int64_t col_block, bool y_per_slot, int64_t slots,
                Arena& arena) {
    dim_steps_ = round_up(y.dims, kDeep) / kDeep;
    const int64_t columns = y.padded / kPanel * dim_steps_ * kStep;
    columns_per_slot_ = y_per_slot ? columns : 0;
    columns_ = arena.array<Word>(y_per_slot ? slots * columns : columns);
    const int64_t steps = round_up(row_block > col_block ? row_block : col_block, kDeep) / kDeep;
    weights_ = steps * steps * kStep;
    rows_ = steps * smaller(dim_steps_, kDotSteps) * kStep;
    right_ = steps * (keeps() ? dim_steps_ : 1) * kStep;
    scratch_ = arena.array<Word>(slots * scratch_size());
    kept_ = arena.array<Kept>(slots);
    slots_ = slots;
  }

  void pack_panel(const Points<float>& y, int64_t p, int64_t slot) {
    Word* const columns = columns_ + slot * columns_per_slot_;
    for (int64_t s = 0; s < dim_steps_; ++s)
      pack_step<true>(columns + (p * dim_steps_ + s) * kStep, [&](int half, int l) {
        const float* from = y.row(p * kPanel + half * kHalf + l) + y.offset(s * kDeep);
        return Pair{S::load(from), S::load(from + kHalf)};
      });
  }

  // The points are new: nothing of them is packed.
  void forget() {
    for (int64_t slot = 0; slot < slots_; ++slot) kept_[slot] = Kept{};
  }
  // The same for right operands of one slot.
  void forget_right(int64_t slot) { kept_[slot].right[0] = kept_[slot].right[1] = nullptr; }

  // As in tile.h, where what is not explained here is.
  void dot_products(const Points<float>& x, int64_t i0, int64_t rows, const Points<float>&, int64_t j0,
                    int64_t cols, float* tile, bool upper, int64_t slot) const {
    Word* left = scratch_ + slot * scratch_size() + weights_;
    const Word* const columns = columns_ + slot * columns_per_slot_;
    const bool there = keeps() && kept_[slot].left == x.row(i0);
    kept_[slot].left = x.row(i0);
    int64_t s0 = 0;
    do {
      const int64_t steps = smaller(kDotSteps, dim_steps_ - s0);
      for (int64_t i = 0; i < rows && !there; i += kPanel)
        for (int64_t s = 0; s < steps; ++s)
          pack_step<false>(left + (i / kPanel * steps + s) * kStep, [&](int half, int l) {
            const float* from = x.row(i0 + i + half * kHalf + l) + x.offset((s0 + s) * kDeep);
            return Pair{S::load(from), S::load(from + kHalf)};
          });
      for (int64_t j = 0; j < cols; j += kPanel)
        for (int64_t i = 0; i < (upper ? j + 1 : rows); i += kPanel)
          multiply(left + i / kPanel * steps * kStep, columns + ((j0 + j) / kPanel * dim_steps_ + s0) * kStep,
                   steps, tile + i * Square::kStride + j, Square::kStride, s0 == 0);
      s0 += steps;
    } while (s0 < dim_steps_);
  }

  // to[r, :] -= sum over k of weight(r, k) * from_k, with weight(r, k) = tile[r, k], or tile[k, r] if
  // kTransposed; from_k: point first + k, other: first row of the tile's other block of points. Columns of
  // the tile are 0 from `cols` to a whole register.
  template <bool kTransposed>
  void subtract_product(float* tile, int64_t rows, int64_t cols, const Points<float>& from, int64_t first,
                        const float* other, float* to, int64_t slot) const {
    clear_margins(tile, rows, cols);
    const int64_t count = kTransposed ? cols : rows;
    const int64_t steps = round_up(kTransposed ? rows : cols, kDeep) / kDeep;
    Word* const left = scratch_ + slot * scratch_size();
    bool there = false;
    Word* right =
        left + weights_ + rows_ + (keeps() ? kept_[slot].find(from.row(first), other, there) * right_ : 0);
    for (int64_t r = 0; r < count; r += kPanel)
      for (int64_t s = 0; s < steps; ++s)
        pack_step<kTransposed>(left + (r / kPanel * steps + s) * kStep, [&](int half, int l) {
          if constexpr (kTransposed) {
            const float* at = tile + (s * kDeep + l) * Square::kStride + r + half * kHalf;
            return Pair{S::load(at), S::load(at + kHalf * Square::kStride)};
          } else {
            const float* at = tile + (r + half * kHalf + l) * Square::kStride + s * kDeep;
            return Pair{S::load(at), S::load(at + kHalf)};
          }
        });
    for (int64_t n = 0; n < from.dims; n += kPanel, right += keeps() ? steps * kStep : 0) {
      for (int64_t s = 0; s < steps && !there; ++s)
        pack_step<false>(right + s * kStep, [&](int half, int l) {
          const int64_t k = first + s * kDeep + l, at = from.offset(n) + half * kHalf;
          return Pair{S::load(from.row(k) + at), S::load(from.row(k + kHalf) + at)};
        });
      for (int64_t r = 0; r < count; r += kPanel) {
        float* const out = to + r * from.dims + n;
        const int64_t height = smaller(kPanel, count - r), width = smaller(kPanel, from.dims - n);
        for (int64_t i = 0; i < height; ++i) {
          __builtin_prefetch(out + i * from.dims, 1);
          __builtin_prefetch(out + i * from.dims + kHalf, 1);
        }
        alignas(64) float product[kPanel * kPanel];
        multiply(left + r / kPanel * steps * kStep, right, steps, product, kPanel, true);
        subtract(product, height, width, out, from.dims);
      }
    }
  }

  struct Pair {
    V low, high;  // numbers w and w + 16 of a step
  };

  // rows(half, l): the two registers of floats that make line l of a half's register; with kTranspose column
  // l.
  template <bool kTranspose, int kParts = 3, class Rows>
  static ALA_HD void pack_step(Word* to, const Rows& rows) {
    for (int half = 0; half < 2; ++half, to += kRegister) {
      V block[kParts][kHalf];
      for (int l = 0; l < kHalf; ++l) {
        V part[kParts];
        split(rows(half, l), part);
        for (int p = 0; p < kParts; ++p)
          if constexpr (kTranspose)
            block[p][l] = part[p];
          else
            store(to + 2 * p * kRegister + l * kHalf, part[p]);
      }
      if constexpr (kTranspose)
        for (int p = 0; p < kParts; ++p) {
          S::transpose(block[p]);
          for (int l = 0; l < kHalf; ++l) store(to + 2 * p * kRegister + l * kHalf, block[p][l]);
        }
    }
  }

  // Words of two bfloat16; high + middle + low = x, exactly. Returns what the parts lack of x.
  template <int kParts>
  static ALA_HD Pair split(Pair x, V (&part)[kParts]) {
    const S::Bits half_unit = S::Bits{} + 0x8000u, high_bits = S::Bits{} + 0xffff0000u;
    for (int p = 0; p < kParts; ++p) {
      // Nearest, then what is left; the third part has no bits to lose. A NaN keeps its own in the third
      // part.
      const bool last = p == 2;
      const S::Bits low = S::bits(x.low) + (last ? S::Bits{} : half_unit);
      const S::Bits high = (S::bits(x.high) + (last ? S::Bits{} : half_unit)) & high_bits;
      part[p] = S::from_bits(low >> 16 | high);
      x.low -= S::from_bits(low & high_bits);
      x.high -= S::from_bits(high);
    }
    return x;
  }
  static ALA_HD void store(Word* to, V words) { S::store(reinterpret_cast<float*>(to), words); }

  // c (=, +=) left right, a panel high and wide. Of three parts the six largest products; small ones first,
  // those of all steps, so that few additions round at the size of the sum. Of two parts the three largest.
  template <int kParts = 3>
  static void multiply(const Word* a, const Word* b, int64_t steps, float* c, int64_t stride, bool first) {
    const int64_t c_bytes = stride * static_cast<int64_t>(sizeof(float));
    float* const below = c + kHalf * stride;
    asm volatile("" ::: "memory");  // the intrinsics do not tell the compiler what they read
    if (first) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      _tile_loadd(0, c, c_bytes);
      _tile_loadd(1, c + kHalf, c_bytes);
      _tile_loadd(2, below, c_bytes);
      _tile_loadd(3, below + kHalf, c_bytes);
    }
#define ALA_LEFT(part)                            \
  _tile_loadd(4, a + (2 * part) * kRegister, 64); \
  _tile_loadd(5, a + (2 * part + 1) * kRegister, 64)
#define ALA_RIGHT(part)                           \
  _tile_loadd(6, b + (2 * part) * kRegister, 64); \
  _tile_loadd(7, b + (2 * part + 1) * kRegister, 64)
#define ALA_PRODUCT()      \
  _tile_dpbf16ps(0, 4, 6); \
  _tile_dpbf16ps(1, 4, 7); \
  _tile_dpbf16ps(2, 5, 6); \
  _tile_dpbf16ps(3, 5, 7)
    if constexpr (kParts == 2) {
      for (int64_t s = 0; s < steps; ++s, a += 2 * kPart, b += 2 * kPart) {
        ALA_LEFT(1);
        ALA_RIGHT(0);
        ALA_PRODUCT();
        ALA_LEFT(0);
        ALA_PRODUCT();
        ALA_RIGHT(1);
        ALA_PRODUCT();
      }
    } else {
      for (int64_t s = 0; s < steps; ++s, a += kStep, b += kStep) {
        ALA_LEFT(2);
        ALA_RIGHT(0);
        ALA_PRODUCT();
        ALA_LEFT(0);
        ALA_RIGHT(2);
        ALA_PRODUCT();
        ALA_RIGHT(1);
        ALA_PRODUCT();
        ALA_LEFT(1);
        ALA_PRODUCT();
        ALA_RIGHT(0);
        ALA_PRODUCT();
      }
      for (int64_t s = 0; s < steps; ++s) {
        a -= kStep;
        b -= kStep;
        ALA_LEFT(0);
        ALA_RIGHT(0);
        ALA_PRODUCT();
      }
    }
#undef ALA_LEFT
#undef ALA_RIGHT
#undef ALA_PRODUCT
    _tile_stored(0, c, c_bytes);
    _tile_stored(1, c + kHalf, c_bytes);
    _tile_stored(2, below, c_bytes);
    _tile_stored(3, below + kHalf, c_bytes);
    asm volatile("" ::: "memory");
  }

 private:
  static constexpr int64_t kStep = 3 * kPart;
  static constexpr int64_t kDotSteps = 4;  // keeps a pair of panels in L1

  // Blocks of points that a slot has packed, named by their first row: the next tile often shares one.
  struct Kept {
    const float* left = nullptr;
    const float* right[2] = {nullptr, nullptr};

    // Place of the block as a right operand; `there`: it is packed already. Else it takes the place of one
    // that is not `other`, the second block of the tile.
    int64_t find(const float* block, const float* other, bool& there) {
      there = right[0] == block || right[1] == block;
      const int64_t place = there ? right[1] == block : right[0] == other;
      right[place] = block;
      return place;
    }
    char pad[40];  // a cache line each
  };
  static_assert(sizeof(Kept) == 64, "slots must not share a line");

  // Few dimensions: whole blocks of points stay packed.
  bool keeps() const { return dim_steps_ <= kDotSteps; }
  int64_t scratch_size() const { return weights_ + rows_ + (keeps() ? 2 : 1) * right_; }

  // Whole panels are read: what lies outside rows and cols counts as 0.
  static void clear_margins(float* tile, int64_t rows, int64_t cols) {
    const int64_t written = round_up(cols, kHalf), width = round_up(cols, kPanel);
    if (written < width)
      for (int64_t i = 0; i < rows; ++i) S::store(tile + i * Square::kStride + written, V{});
    for (int64_t i = rows; i < round_up(rows, kPanel); ++i)
      std::memset(tile + i * Square::kStride, 0, static_cast<size_t>(width) * sizeof(float));
  }

  static void subtract(const float* product, int64_t rows, int64_t cols, float* to, int64_t stride) {
    for (int64_t i = 0; i < rows; ++i, to += stride, product += kPanel) {
      if (cols == kPanel) {
        S::store(to, S::load(to) - S::load(product));
        S::store(to + kHalf, S::load(to + kHalf) - S::load(product + kHalf));
      } else {
        for (int64_t c = 0; c < cols; ++c) to[c] -= product[c];
      }
    }
  }

  int64_t dim_steps_ = 0, slots_ = 0;
  Word* columns_ = nullptr;       // y as a right operand, [panels, steps]
  int64_t columns_per_slot_ = 0;  // their words, where each slot has its own
  // For each slot a tile of weights and a block of points as left operands, and points as right operands.
  Word* scratch_ = nullptr;
  int64_t weights_ = 0, rows_ = 0, right_ = 0;  // their words
  Kept* kept_ = nullptr;
};

}  // namespace ALA_ISA
}  // namespace ala
