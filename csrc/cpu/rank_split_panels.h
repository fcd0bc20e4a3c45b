// The same as rank_panels.h by AMX. Ranks need no float's accuracy, only a bound, for what a bound leaves
// open is settled in double. So two bfloat16 parts do, h + m = x - r, and three of their products:
//   <x, y> = <h, h'> + <h, m'> + <m, h'>   but for   <m, m'> + <x - r, r'> + <r, y>.
// In floats r <= 2^-17 |x| and m <= 2^-8 |x|, number for number; the lengths of the vectors m and r are
// measured, in units of |x|, and are about a third of that.
//
// Numbers below 2^-126 count as 0 in the products. That loses at most 2^-126 sqrt(dims) (|x| + |y| + 1), far
// less than a rounding of |x|^2 / 2, or than the least slack of RankTiles.
#pragma once

#include "cpu/rank_panels.h"
#include "cpu/split_products.h"

namespace ala {
namespace ALA_ISA {

class SplitPanels {
 public:
  using Split = SplitProducts;
  using S = Split::S;
  using V = Split::V;
  using Word = Split::Word;
  using Square = Split::Square;
  using Session = Split::Session;
  static constexpr int64_t kPanel = Split::kPanel, kDeep = Split::kDeep;

  // left, right: what they are operands of.
  void allocate(int64_t padded, int64_t dims, const float* half_square, bool left, bool right, Arena& arena) {
    steps_ = round_up(dims, kDeep) / kDeep;
    panels_ = padded / kPanel;
    half_square_ = half_square;
    if (left) left_ = arena.array<Word>(panels_ * steps_ * kStep);
    if (right) right_ = arena.array<Word>(panels_ * steps_ * kStep);
    lost_ = arena.array<Lost>(panels_);
  }

  void pack(int64_t p, const float* from, int64_t stride, const float* length) {
    for (int64_t s = 0; s < steps_; ++s) {
      const auto rows = [&](int half, int l) { return pair(from + (half * kHalf + l) * stride + s * kDeep); };
      const int64_t at = (p * steps_ + s) * kStep;
      if (left_) Split::pack_step<false, kParts>(left_ + at, rows);
      if (right_) Split::pack_step<true, kParts>(right_ + at, rows);
    }
    lost_[p] = {};
    for (int64_t r = 0; r < kPanel; ++r) lost_[p].include(lost(from + r * stride, length[r]));
  }

  // A product passes 16 additions of its step (15 to one of two sums, which are added) and those of the steps
  // to the rest, each rounded to a float.
  static double error(const SplitPanels& x, const SplitPanels& y) {
    Lost a{}, b{};
    for (int64_t p = 0; p < x.panels_; ++p) a.include(x.lost_[p]);
    for (int64_t p = 0; p < y.panels_; ++p) b.include(y.lost_[p]);
    const double m = a.middle, n = b.middle, r = a.rest, t = b.rest;
    const double products = (1 + m + r) * (1 + n + t) + (1 + m + r) * n + m * (1 + n + t);
    return std::ldexp(16 + 3.0 * static_cast<double>(x.steps_), -24) * products + m * n + (1 + r) * t + r;
  }

  // rows: one panel.
  void distances(int64_t i0, int64_t, const SplitPanels& others, int64_t j0, int64_t cols, float* e) const {
    const int64_t panel = steps_ * kStep;
    const Word* left = left_ + i0 / kPanel * panel;
    const Word* right = others.right_ + j0 / kPanel * panel;
    for (int64_t j = 0; j < cols; j += kPanel, right += panel) {
      Split::multiply<kParts>(left, right, steps_, e + j, Square::kStride, true);
      finish(half_square_ + i0, others.half_square_ + j0 + j, e + j);
    }
  }

 private:
  static constexpr int kParts = 2;
  static constexpr int64_t kHalf = Split::kHalf, kStep = kParts * Split::kPart;

  struct Lost {  // greatest |m| / |x| and |r| / |x|
    float middle, rest;
    void include(Lost other) {
      middle = larger(middle, other.middle);
      rest = larger(rest, other.rest);
    }
  };

  static ALA_HD Split::Pair pair(const float* from) { return {S::load(from), S::load(from + kHalf)}; }

  // Rows shorter than 1e-18 lose less than a rounding of |y|^2 / 2, or than the least slack.
  Lost lost(const float* row, float length) const {
    if (!(length > 1e-18f)) return {};
    const V inverse = S::set(1 / length);
    V middle{}, rest{};
    for (int64_t k = 0; k < steps_ * kDeep; k += kDeep) {
      V part[kParts];
      const Split::Pair x = pair(row + k), r = Split::split(x, part);
      const S::Bits high_bits = S::Bits{} + 0xffff0000u;
      const V low = S::from_bits(S::bits(part[1]) << 16) * inverse,
              high = S::from_bits(S::bits(part[1]) & high_bits) * inverse;
      middle += low * low + high * high;
      rest += r.low * inverse * (r.low * inverse) + r.high * inverse * (r.high * inverse);
    }
    return {std::sqrt(S::sum(middle)), std::sqrt(S::sum(rest))};
  }

  static void finish(const float* x, const float* y, float* e) {
    const V h0 = S::load(y), h1 = S::load(y + kHalf);
    for (int r = 0; r < kPanel; ++r, e += Square::kStride) {
      const V h = S::set(x[r]);
      S::store(e, (h + h0) - S::load(e));
      S::store(e + kHalf, (h + h1) - S::load(e + kHalf));
    }
  }

  int64_t steps_ = 0, panels_ = 0;
  const float* half_square_ = nullptr;
  Word *left_ = nullptr, *right_ = nullptr;  // [panels, steps]
  Lost* lost_ = nullptr;                     // [panels]
};

}  // namespace ALA_ISA
}  // namespace ala
