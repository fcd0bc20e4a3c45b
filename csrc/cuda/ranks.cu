// Ranks of positives: rank of the j-th nearest = j + number of negatives nearer than it.
//
// Products of centred, scaled float rows say for almost every pair on which side of a threshold it lies, with
// a bound on their error; the few pairs inside the bound are compared by double arithmetic on the given
// numbers, in one fixed order of additions, so that equal rows tie exactly. Similarities are never stored.
#include "cuda/pass.h"

namespace ala::cuda {

struct RankRows {
  ala_matrix raw;
  float* data;     // [count, pitch]: s (x - origin), or the unit row for cosines
  float* square;   // [count] of those
  double* scale;   // [count] power of two that brings a row to about 1
  double* length;  // [count] |scale x|; for cosines
  int pitch;
};

struct RankSet {
  RankRows queries, references;
  const int64_t *labels, *ref_labels;
  const int64_t* offsets;
  const unsigned long long* largest;  // bits of the largest |x - origin|
  int32_t symmetric, cosine, first_only;

  __device__ int64_t start(int64_t i) const { return first_only ? i : offsets[i]; }
  __device__ int64_t wanted(int64_t i) const {
    const int64_t positives = offsets[i + 1] - offsets[i];
    return first_only && positives > 1 ? 1 : positives;
  }
};

// 1 / 2^exponent of x > 0, kept in the range of double; 1 for 0.
__device__ inline double power_of_two_below(double x) {
  const auto exponent = static_cast<int64_t>(__double_as_longlong(x) >> 52) - 1022;
  if (!(x > 0)) return 1;
  const int64_t e = exponent > 1000 ? 1000 : exponent < -1000 ? -1000 : exponent;
  return __longlong_as_double(static_cast<long long>((1023 - e) << 52));
}

__device__ inline double rank_scale(const RankSet& set) {
  return power_of_two_below(__longlong_as_double(static_cast<long long>(*set.largest)));
}

// Order of a pair, the smaller the nearer. Not inlined: thresholds and recounts must round alike. For cosines
// each number of y is divided by the length (by its inverse and one step of correction, which rounds like a
// division and needs fewer registers), so that rows along one axis are the same unit row, whatever their
// lengths, and tie (as in cpu/rank_rows.h).
__device__ __noinline__ double rank_key(const RankSet& set, int64_t i, int64_t j) {
  const ala_matrix &a = set.queries.raw, &b = set.references.raw;
  const double scale = set.cosine ? 1 : rank_scale(set);
  const double length = set.cosine && set.references.length[j] > 0 ? set.references.length[j] : 1;
  const double inverse = 1 / length;
  double sum = 0;
  for (int64_t k = 0; k < a.cols; ++k) {
    const double x = element<double>(a, i * a.row_stride + k * a.col_stride);
    const double y = element<double>(b, j * b.row_stride + k * b.col_stride);
    if (set.cosine) {
      const double scaled = y * set.references.scale[j], near = scaled * inverse;
      sum += (x * set.queries.scale[i]) * ::fma(::fma(-near, length, scaled), inverse, near);
    } else {
      const double difference = x * scale - y * scale;
      sum += difference * difference;
    }
  }
  return set.cosine ? -sum : sum;
}

// The largest |x - origin|, as bits: their order is that of the numbers, and a maximum knows no order.
static __global__ void __launch_bounds__(kRowThreads)
    rank_largest(ala_matrix rows, ala_matrix origin, unsigned long long* largest) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  if (i >= rows.rows || origin.rows == 0) return;
  double most = 0;
  for (int64_t k = lane; k < rows.cols; k += kWarp) {
    const double x = element<double>(rows, i * rows.row_stride + k * rows.col_stride) -
                     element<double>(origin, k * origin.col_stride);
    const double size = ::fabs(x);  // no branch: ptxas spilled over it on sm_120
    most = most < size ? size : most;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const double other = __shfl_xor_sync(kAllLanes, most, step);
    most = most < other ? other : most;
  }
  if (lane == 0) atomicMax(largest, static_cast<unsigned long long>(__double_as_longlong(most)));
}

static __global__ void __launch_bounds__(kRowThreads)
    pack_rank_rows(const __grid_constant__ RankSet set, RankRows to) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  const ala_matrix &m = to.raw, &origin = set.references.raw;
  if (i >= m.rows) return;
  double scale = 1, length = 0;
  if (set.cosine) {
    double most = 0, sum = 0;
    for (int64_t k = lane; k < m.cols; k += kWarp) {
      const double x = element<double>(m, i * m.row_stride + k * m.col_stride), size = x < 0 ? -x : x;
      most = most < size ? size : most;
    }
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const double other = __shfl_xor_sync(kAllLanes, most, step);
      most = most < other ? other : most;
    }
    scale = power_of_two_below(most);
    for (int64_t k = lane; k < m.cols; k += kWarp) {
      const double x = element<double>(m, i * m.row_stride + k * m.col_stride) * scale;
      sum += x * x;
    }
    sum = warp_sum(sum);
    length = ::sqrt(sum);
  } else {
    scale = rank_scale(set);
  }
  float square = 0;
  for (int k = lane; k < to.pitch; k += kWarp) {
    float x = 0;
    if (k < m.cols) {
      const double value = element<double>(m, i * m.row_stride + k * m.col_stride);
      x = static_cast<float>(set.cosine ? length > 0 ? value * scale / length : 0
                                        : (value - element<double>(origin, k * origin.col_stride)) * scale);
    }
    to.data[i * to.pitch + k] = x;
    square += x * x;
  }
  square = warp_sum(square);
  if (lane == 0) {
    to.square[i] = square;
    to.scale[i] = scale;
    to.length[i] = length;
  }
}

// Keys of every query's positives, in the order of the references; with first_only the smallest alone.
constexpr int kKeyThreads = 256, kKeyQueries = 4, kKeyRows = kKeyThreads / kWarp * kKeyQueries;

static __global__ void __launch_bounds__(kKeyThreads)
    rank_keys(const __grid_constant__ RankSet set, double* keys) {
  ALA_SHARED(memory);
  auto* labels = reinterpret_cast<int64_t*>(memory);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t n = set.queries.raw.rows, m = set.references.raw.rows;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kKeyRows + threadIdx.x / kWarp * kKeyQueries;
  int64_t found[kKeyQueries] = {};
  for (int64_t j0 = 0; j0 < m; j0 += kKeyThreads) {
    if (j0 + threadIdx.x < m) labels[threadIdx.x] = set.ref_labels[j0 + threadIdx.x];
    __syncthreads();
    for (int q = 0; q < kKeyQueries; ++q) {
      const int64_t i = first + q;
      if (i >= n) continue;  // the whole warp
      const int64_t label = set.labels[i], wanted = set.wanted(i), start = set.start(i);
      for (int c = 0; c < kKeyThreads; c += kWarp) {
        const int64_t j = j0 + c + lane;
        const bool hit = j < m && labels[c + lane] == label && !(set.symmetric && j == i);
        const unsigned bits = __ballot_sync(kAllLanes, hit);
        if (!bits) continue;
        double key = hit ? rank_key(set, i, j) : HUGE_VAL;
        if (set.first_only) {
          for (int step = kWarp / 2; step > 0; step /= 2) {
            const double other = __shfl_xor_sync(kAllLanes, key, step);
            key = other < key ? other : key;
          }
          if (lane == 0 && wanted > 0 && (found[q] == 0 || key < keys[start])) keys[start] = key;
        } else if (hit) {
          const int64_t at = found[q] + __popc(bits & ((1u << lane) - 1));
          if (at < wanted) keys[start + at] = key;  // offsets that are not those of the labels write nowhere
        }
        found[q] += __popc(bits);
      }
    }
    __syncthreads();
  }
}

// Ascending keys of every query; one warp each, every key finds its place by counting.
static __global__ void __launch_bounds__(kRowThreads)
    rank_sort(RankSet set, const double* keys, double* sorted) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  if (i >= set.queries.raw.rows) return;
  const int64_t wanted = set.wanted(i), start = set.start(i);
  for (int64_t e = threadIdx.x % kWarp; e < wanted; e += kWarp) {
    const double key = keys[start + e];
    int64_t place = 0;
    for (int64_t f = 0; f < wanted; ++f) {
      const double other = keys[start + f];
      place += other < key || (other == key && f < e);
    }
    sorted[start + place] = key;
  }
}

// Number of ascending `keys` that are < x, or <= x.
__device__ inline int64_t keys_before(const double* keys, int64_t count, double x, bool or_equal) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (keys[middle] < x || (or_equal && keys[middle] == x))
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// counts[bucket] += negatives whose first threshold behind them is `bucket`: [0] pessimistic, [1] optimistic.
// Bounds: 48 KiB of shared memory (four blocks on a Hopper SM), at most 255 registers, no spills.
constexpr int kRankChunks = 8;  // of a slice: 32 dimensions
struct RankShared {
  float4 x[2][kTile * kRankChunks], y[2][kTile * kRankChunks];
  float square[kTile * kTile];
};
static_assert(sizeof(RankShared) <= 49152);

static __global__ void __launch_bounds__(kTileThreads, 2)
    rank_count(const __grid_constant__ RankSet set, const double* sorted, int64_t splits, int64_t span,
               unsigned* counts, int64_t thresholds) {
  ALA_SHARED(memory);
  RankShared& tile = *reinterpret_cast<RankShared*>(memory);
  const int thread = static_cast<int>(threadIdx.x), mine = thread % kTile, half = thread / kTile;
  const int64_t n = set.queries.raw.rows, m = set.references.raw.rows;
  const int64_t first = static_cast<int64_t>(blockIdx.x) / splits * kTile;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) % splits * span;
  const int64_t end = begin + span < m ? begin + span : m;
  const int pitch = set.queries.pitch, slices = (pitch / 4 + kRankChunks - 1) / kRankChunks;

  const int64_t i = first + mine;
  const int64_t wanted = i < n ? set.wanted(i) : 0, start = wanted > 0 ? set.start(i) : 0;
  const double* keys = sorted + start;
  const int64_t label = i < n ? set.labels[i] : 0;
  const float x_square = i < n ? set.queries.square[i] : 0.0f;
  // key = unit * product form: 1, or the length of the query
  const double length = set.cosine && i < n ? set.queries.length[i] : 1.0;
  const double unit = length > 0 ? length : HUGE_VAL;  // a zero query: everything is compared exactly
  const double inverse = length > 0 ? 1 / length : 0;
  const float nearest = wanted > 0 ? static_cast<float>(keys[0] * inverse) : 0.0f;
  const float farthest = wanted > 0 ? static_cast<float>(keys[wanted - 1] * inverse) : 0.0f;
  // rounding of the rows, of dims products and their sum, of the squares, of the thresholds
  const float rounding = static_cast<float>(set.queries.raw.cols + 24) * 0x1p-23f;
  unsigned before_all = 0;  // negatives nearer than every positive, in a register

  const auto load = [&](int64_t j0, int slice, int buffer) {
    load_tile<kRankChunks>(tile.x[buffer], set.queries.data, first, n, pitch, slice * kRankChunks);
    load_tile<kRankChunks>(tile.y[buffer], set.references.data, j0, end, pitch, slice * kRankChunks);
    copies_commit();
  };
  int buffer = 0;
  if (slices > 0) load(begin, 0, 0);
  for (int64_t j0 = begin; j0 < end; j0 += kTile) {
    float s[kMine][kTheirs] = {};
    for (int slice = 0; slice < slices; ++slice, buffer ^= 1) {
      copies_wait();
      __syncthreads();  // this slice has landed, and nobody reads the last one, or the square, any more
      if (slice + 1 < slices)
        load(j0, slice + 1, buffer ^ 1);
      else if (j0 + kTile < end)
        load(j0 + kTile, 0, buffer ^ 1);
      multiply_tile<kRankChunks>(tile.x[buffer], tile.y[buffer], kRankChunks, s);
    }
    store_square(tile.square, s);
    __syncthreads();
    for (int c = 0; c < 32; ++c) {
      const int at = half * 32 + c;
      const int64_t j = j0 + at;
      if (j >= end || wanted == 0) continue;
      if (set.ref_labels[j] == label) continue;  // a positive, or the query itself
      const float product = tile.square[square_place(mine, at)];
      const float squares = x_square + set.references.square[j];
      const float value = set.cosine ? -product : squares - 2 * product;
      const float slack = rounding * (set.cosine ? 2.0f : squares) + 1e-36f;
      if (value - slack > farthest) continue;  // farther than every positive
      if (value + slack < nearest) {
        ++before_all;
        continue;
      }
      int64_t low = keys_before(keys, wanted, (static_cast<double>(value) - slack) * unit, false);
      int64_t high = keys_before(keys, wanted, (static_cast<double>(value) + slack) * unit, true);
      if (low != high || !(unit < HUGE_VAL)) {
        const double key = rank_key(set, i, j);
        low = keys_before(keys, wanted, key, false);
        high = keys_before(keys, wanted, key, true);
      }
      if (low < wanted) atomicAdd(counts + start + low, 1u);
      if (high < wanted) atomicAdd(counts + thresholds + start + high, 1u);
    }
    if (slices == 0) __syncthreads();
  }
  if (before_all > 0) {
    atomicAdd(counts + start, before_all);
    atomicAdd(counts + thresholds + start, before_all);
  }
}

static __global__ void __launch_bounds__(kRowThreads)
    rank_finish(RankSet set, const unsigned* counts, int64_t thresholds, int64_t* pessimistic,
                int64_t* optimistic) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (i >= set.queries.raw.rows) return;
  const int64_t wanted = set.wanted(i), start = set.start(i);
  int64_t nearer[2] = {0, 0};
  for (int64_t j = 0; j < wanted; ++j) {
    nearer[0] += counts[start + j];
    nearer[1] += counts[thresholds + start + j];
    pessimistic[start + j] = j + 1 + nearer[0];
    optimistic[start + j] = j + 1 + nearer[1];
  }
  if (set.first_only && wanted == 0) pessimistic[i] = optimistic[i] = 0;
}

inline RankRows rank_rows(Run& run, const ala_matrix& raw) {
  RankRows rows{};
  rows.raw = raw;
  rows.pitch = round_up(static_cast<int>(raw.cols), 4);
  rows.data = run.memory.array<float>(raw.rows * rows.pitch);
  rows.square = run.memory.array<float>(raw.rows);
  rows.scale = run.memory.array<double>(raw.rows);
  rows.length = run.memory.array<double>(raw.rows);
  return rows;
}

template <class T>  // float and double alike: keys are double
void positive_ranks(Run& run, const ala_cuda_positive_ranks_request& request) {
  const ala_positive_ranks_request& r = request.host;
  const int64_t n = r.x.rows, thresholds = r.first_only ? n : request.positives;
  RankSet set{};
  auto* largest = run.memory.array<unsigned long long>(1);
  set.queries = rank_rows(run, r.x);
  set.references = r.symmetric ? set.queries : rank_rows(run, r.y);
  set.labels = r.x_labels;
  set.ref_labels = r.symmetric ? r.x_labels : r.y_labels;
  set.offsets = r.offsets;
  set.largest = largest;
  set.symmetric = r.symmetric != 0;
  set.cosine = r.cosine != 0;
  set.first_only = r.first_only != 0;
  double* keys = run.memory.array<double>(thresholds);
  double* sorted = r.first_only ? keys : run.memory.array<double>(thresholds);
  auto* counts = run.memory.array<unsigned>(2 * thresholds);
  const int64_t m = set.references.raw.rows;

  run.clear(largest, 8);
  run.clear(counts, 8 * thresholds);
  for (int side = 0; side < (r.symmetric ? 1 : 2); ++side) {
    const RankRows& rows = side == 0 ? set.references : set.queries;
    if (!r.cosine && m > 0)
      run.start(rank_largest, ceil_div<int64_t>(rows.raw.rows, kRowsPerBlock), kRowThreads, 0, rows.raw,
                set.references.raw, largest);
  }
  if (m > 0)
    for (int side = 0; side < (r.symmetric ? 1 : 2); ++side) {
      const RankRows& rows = side == 0 ? set.references : set.queries;
      run.start(pack_rank_rows, ceil_div<int64_t>(rows.raw.rows, kRowsPerBlock), kRowThreads, 0, set, rows);
    }
  run.start(rank_keys, ceil_div<int64_t>(n, kKeyRows), kKeyThreads, kKeyThreads * 8, set, keys);
  const int64_t row_blocks = ceil_div<int64_t>(n, kRowsPerBlock);
  if (!r.first_only)
    run.start(rank_sort, row_blocks, kRowThreads, 0, set, static_cast<const double*>(keys), sorted);
  const int64_t row_tiles = ceil_div<int64_t>(n, kTile), col_tiles = ceil_div<int64_t>(m, kTile);
  const int64_t wanted = ceil_div(2 * kBlocksWanted, row_tiles > 0 ? row_tiles : 1);
  const int64_t tiles = col_tiles > wanted ? ceil_div(col_tiles, wanted) : 1;
  const int64_t splits = ceil_div(col_tiles, tiles);
  if (thresholds > 0)
    run.start(rank_count, row_tiles * splits, kTileThreads, int64_t{sizeof(RankShared)}, set,
              static_cast<const double*>(sorted), splits, tiles * kTile, counts, thresholds);
  run.start(rank_finish, ceil_div<int64_t>(n, kRowThreads), kRowThreads, 0, set,
            static_cast<const unsigned*>(counts), thresholds, r.pessimistic, r.optimistic);
}

}  // namespace ala::cuda

ALA_DEFINE_CUDA_OP(positive_ranks, ala_cuda_positive_ranks_request)
