// The product of tile.h in AMX's registers, eight tiles of 16 x 16 words, where the compiler is told to know them.
#pragma once
#include "tile.h"
#ifdef __AMX_BF16__

// GCC's intrinsics don't say what memory they read; this does, so that it is written before, and kept.
static inline void written(const void* at) { asm volatile("" : : "r"(at) : "memory"); }

struct Configuration {  // LDTILECFG's operand: eight tiles of 16 rows of 64 bytes
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// A thread's configuration, while it is ours; oneDNN works in the same threads, so its own is put back.
__attribute__((noinline)) static void configure(Configuration& before) {
  static constexpr Configuration full;
  _tile_storeconfig(&before);
  written(&before), written(&full);
  _tile_loadconfig(&full);
}
__attribute__((noinline)) static void restore(const Configuration& before) {
  written(&before);
  _tile_loadconfig(&before);  // where there was none, this releases the tiles
}

struct TiledBFloat16 : BFloat16 {
  static constexpr long step = 16;
  struct State {
    Configuration before;
    State() { configure(before); }
    ~State() { restore(before); }
  };
};

// What a product is of: pairs of bfloat16 to floats, or four bytes, a's without a sign and b's with one, to whole numbers.
enum Of { PAIRS, BYTES };

// c (16R x 16V) = ab, or c + ab if `more`, k a multiple of 16. Two by two fills the registers: the four loads of a step, 8
// cycles each, hide behind its four products, 16 each, and four sums hide a product's latency of 52.
template <Of of, int R, int V>
static void tiled(const word* a, long lda, const word* b, long ldb, long k, void* to, long ldc, bool more) {
#define MULTIPLY(sum, left, right) \
  if constexpr (of == BYTES) _tile_dpbusd(sum, left, right); \
  else _tile_dpbf16ps(sum, left, right)
  constexpr bool right = V > 1, below = R > 1;
  word *const c = (word*)to, *const c10 = c + 16 * ldc, *const c01 = c + 16, *const c11 = c10 + 16;
  if (more) {
    _tile_loadd(0, c, 4 * ldc);
    if constexpr (right) _tile_loadd(1, c01, 4 * ldc);
    if constexpr (below) _tile_loadd(2, c10, 4 * ldc);
    if constexpr (below && right) _tile_loadd(3, c11, 4 * ldc);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (long p = 0; p < k; p += 16, a += 16, b += 16 * ldb) {
    _tile_loadd(4, a, 4 * lda);
    _tile_loadd(6, b, 4 * ldb);
    MULTIPLY(0, 4, 6);
    if constexpr (right) {
      _tile_loadd(7, b + 16, 4 * ldb);
      MULTIPLY(1, 4, 7);
    }
    if constexpr (below) {
      _tile_loadd(5, a + 16 * lda, 4 * lda);
      MULTIPLY(2, 5, 6);
    }
    if constexpr (below && right) {
      MULTIPLY(3, 5, 7);
    }
  }
  _tile_stored(0, c, 4 * ldc);
  if constexpr (right) _tile_stored(1, c01, 4 * ldc);
  if constexpr (below) _tile_stored(2, c10, 4 * ldc);
  if constexpr (below && right) _tile_stored(3, c11, 4 * ldc);
#undef MULTIPLY
}

// The same for any number of rows, in whole tiles of them, and of vectors.
template <Of of>
static void all_tiled(long vectors, long rows, const word* a, long lda, const word* b, long ldb, long k, void* c, long ldc,
                      bool more) {
  for (long i = 0; i < rows; i += 32)
    for (long j = 0; j < vectors; j += 2) {
      const bool right = vectors - j > 1, below = rows - i > 16;
      const auto run = below ? right ? tiled<of, 2, 2> : tiled<of, 2, 1> : right ? tiled<of, 1, 2> : tiled<of, 1, 1>;
      run(a + i * lda, lda, b + 16 * j, ldb, k, (word*)c + i * ldc + 16 * j, ldc, more);
    }
}

// As tile.h has it, but k is a multiple of 16, and a and c have whole tiles of rows; what lies in those beyond `rows` may
// be anything. Most often no factor has changed: then c is only read and written as the products' sums.
template <>
void tiles<TiledBFloat16>(long vectors, long rows, const word* a, long lda, const word* b, long k, float* c, long ldc,
                          const float* scale) {
  for (long i = 0; scale && i < rows; i++)
    for (float* to = c + i * ldc; scale[i] != 1 && to < c + i * ldc + 16 * vectors; to += 16)
      _mm512_storeu_ps(to, _mm512_loadu_ps(to) * _mm512_set1_ps(scale[i]));
  written(a), written(b), written(c);
  all_tiled<PAIRS>(vectors, rows, a, lda, b, 16 * vectors, k, c, ldc, scale != nullptr);
}
#endif
