// Linear layers in bfloat16: out (rows x channels) = x (rows x k) weight^T (k x channels). x is read as it lies. The
// weights are packed a few panels at a time, as many as the second cache holds, and all rows come by.
#include <algorithm>

#include "amx.h"
#include "gelu.h"

constexpr long PANEL = 64;      // channels that are packed side by side; they are summed in registers over all of k
constexpr long PACKED = 81920;  // words: of panels that are packed together, but for a single one

using type = BFloat16::type;

struct Linear {
  long rows, k, channels, gated, activation;  // 0 none, 1 gelu, 2 quick_gelu
};

// The channels [first, first + num) of the weights as a panel; where gated, their gates beside them.
static void pack_weights(const type* weight, const Linear& s, long first, long num, word* to) {
  const long vectors = (num + 15) / 16, all = vectors * (1 + s.gated);
  for (long j = 0; j < all; j++) {
    const word* rows[16];
    for (long i = 0; i < 16; i++) {
      const long c = j % vectors * 16 + i;
      rows[i] = c < num ? (const word*)(weight + (j / vectors * s.channels + first + c) * s.k) : nullptr;
    }
    pack(rows, s.k / 2, to + 16 * j, 16 * all);
  }
}

// What is done with the sums of a tile: bias, gate, activation and residual. `at`: of its first row and channel in out.
static void finish(const float* sums, long rows, long num, const type* bias, const type* residual, type* out, long at,
                   const Linear& s) {
  const long gates = (num + 15) / 16 * 16;
  for (long c = 0; c < num; c += 16) {
    const __mmask16 mask = lanes(c, num);
    const auto offset = [=](const type* of) { return bias ? BFloat16::load(of + c, mask) : _mm512_setzero_ps(); };
    const __m512 mean = offset(bias), gate = s.gated ? offset(bias + s.channels) : mean;
    for (long i = 0; i < rows; i++) {
      const float* sum = sums + i * PANEL + c;
      __m512 y = _mm512_loadu_ps(sum) + mean;
      if (s.gated) y = y * gelu(_mm512_loadu_ps(sum + gates) + gate);
      if (s.activation) y = s.activation == 1 ? gelu(y) : quick_gelu(y);
      if (residual) y = y + BFloat16::load(residual + at + i * s.channels + c, mask);
      BFloat16::store(out + at + i * s.channels + c, mask, y);
    }
  }
}

template <class T>
static void linear(const type* x, const type* weight, const type* bias, const type* residual, type* out, const Linear& s,
                   int threads) {
  constexpr long taken = T::step > 1 ? 32 : ROWS;  // rows at a time
  const long depth = s.k / 2, wide = s.gated ? PANEL / 2 : PANEL, panels = (s.channels + wide - 1) / wide;
  const long groups = (panels + std::max(PACKED / (depth * PANEL), 1L) - 1) / std::max(PACKED / (depth * PANEL), 1L);
  const long each = (panels + groups - 1) / groups;  // panels of a group
  // several tasks for each thread, unless that makes packing the greater work
  const long parts = std::max(std::min((4 * threads + groups - 1) / groups, s.rows / 384), 1L);
  const long some = ((s.rows + parts - 1) / parts + taken - 1) / taken * taken;
#pragma omp parallel num_threads(threads)
  {
    word* packed = (word*)scratch(each * PANEL * depth);
    [[maybe_unused]] typename T::State state;
    float* sums = scratch(taken * PANEL);
    word* last = T::step > 1 ? (word*)scratch(taken * depth) : nullptr;  // rows, where no whole tile of them is left
#pragma omp for schedule(dynamic)
    for (long task = 0; task < groups * parts; task++) {
      const long begin = task / parts * each * wide, end = std::min(begin + each * wide, s.channels);
      for (long c = begin; c < end; c += wide)
        pack_weights(weight, s, c, std::min(wide, end - c), packed + (c - begin) / wide * PANEL * depth);
      for (long i = task % parts * some; i < std::min((task % parts + 1) * some, s.rows); i += taken) {
        const long rows = std::min(taken, s.rows - i);
        const word* from = (const word*)x + i * depth;
        if (T::step > 1 && rows % 16) from = (const word*)std::memcpy(last, from, rows * depth * 4);
        for (long c = begin; c < end; c += wide) {
          const long num = std::min(wide, end - c), at = i * s.channels + c;
          for (long r = 0; r < rows; r++)  // where the tile goes, brought in while it is computed
            for (long line = 0; line < num; line += 32)
              _mm_prefetch((const char*)(out + at + r * s.channels + line), _MM_HINT_T0);
          tiles<T>((num + 15) / 16 * (1 + s.gated), rows, from, depth, packed + (c - begin) / wide * PANEL * depth, depth,
                   sums, PANEL, nullptr);
          finish(sums, rows, num, bias ? bias + c : nullptr, residual, out, at, s);
        }
      }
    }
    std::free(packed), std::free(sums), std::free(last);
  }
}

// x (rows, k), weight (channels, k), bias (channels) or null, residual (like out) or null, out (rows, channels). k is
// even. Gated, weight and bias have twice the channels, and out is the first half's times gelu of the second's.
extern "C" void linear_bfloat16(const type* x, const type* weight, const type* bias, const type* residual, type* out,
                                const Linear* shape, int threads) {
  linear<BFloat16>(x, weight, bias, residual, out, *shape, threads);
}
#ifdef __AMX_BF16__
// The same; k is a multiple of 32.
extern "C" void linear_amx(const type* x, const type* weight, const type* bias, const type* residual, type* out,
                           const Linear* shape, int threads) {
  linear<TiledBFloat16>(x, weight, bias, residual, out, *shape, threads);
}
#endif
