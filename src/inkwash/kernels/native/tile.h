// What the kernels share. A matrix is read in words of 32 bits: one float, or two neighbouring bfloat16 of the
// summed axis. So everything but the product itself is the same for both types.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

using word = uint32_t;

// 2^x to float precision, 0 far below.
static inline __m512 exp2(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200), x);  // in this order, which lets through what is no number
  const __m512 whole = _mm512_roundscale_ps(x, 0), f = x - whole;
  __m512 y = _mm512_set1_ps(1.54035304e-4f);  // ln(2)^n / n!
#pragma GCC unroll 8
  for (float term : {1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f, 2.40226507e-1f, 6.93147181e-1f, 1.f})
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(term));
  return _mm512_scalef_ps(y, whole);
}

struct Float {
  using type = float;
  static constexpr int per_word = 1;
  static constexpr long step = 1;  // words of the summed axis that a product takes at a time
  struct State {};                 // of a thread, while it multiplies
  static __m512 product(__m512 sum, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
  static __m512 exp2(__m512 x) { return ::exp2(x); }
  static __m512 load(const type* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }
  static void store(type* to, __mmask16 mask, __m512 x) { _mm512_mask_storeu_ps(to, mask, x); }
};

struct BFloat16 {
  using type = uint16_t;
  static constexpr int per_word = 2;
  static constexpr long step = 1;
  struct State {};
  static __m512 product(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
  static __m512 exp2(__m512 x) {  // to 7.5e-5, much less than the type's rounding
    const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);
    __m512 y = _mm512_set1_ps(7.80245210e-02f);
    for (float term : {2.26067175e-01f, 6.95833524e-01f, 9.99925221e-01f}) y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(term));
    return _mm512_scalef_ps(y, x);
  }
  static __m512 load(const type* from, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
  }
  static void store(type* to, __mmask16 mask, __m512 x) {
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(x));
  }
};

// The lanes of the vector that starts at `i` of `n`.
static inline __mmask16 lanes(long i, long n) { return n - i >= 16 ? 0xffff : n <= i ? 0 : (1u << (n - i)) - 1; }

static inline float* scratch(long floats) { return (float*)aligned_alloc(64, (floats * 4 + 63) / 64 * 64); }

// c (R x 16V) = scale * c + a (R x k words) b (k x 16V words); scale has a number for each row, or is null for c = ab.
// Turned, a lies as k rows of R.
template <class T, bool turned, int R, int V>
static void tile(const word* a, long lda, const word* b, long k, float* c, long ldc, const float* scale) {
  __m512 sum[R][V];
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < V; j++)
      sum[i][j] = _mm512_setzero_ps();
  for (long p = 0; p < k; p++, b += 16 * V) {
    if (!turned) _mm_prefetch((const char*)(a + (R + p % 8) * lda + p / 8 * 8), _MM_HINT_T0);  // the rows that follow, half a line each
    __m512i column[V];
#pragma GCC unroll 8
    for (int j = 0; j < V; j++) column[j] = _mm512_loadu_si512(b + 16 * j);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
      __m512i row = _mm512_set1_epi32(turned ? a[p * lda + i] : a[i * lda + p]);
#pragma GCC unroll 8
      for (int j = 0; j < V; j++) sum[i][j] = T::product(sum[i][j], row, column[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < V; j++) {
      float* to = c + i * ldc + 16 * j;  // what was there is added last, so that long sums round less
      if (scale) sum[i][j] = _mm512_fmadd_ps(_mm512_set1_ps(scale[i]), _mm512_loadu_ps(to), sum[i][j]);
      _mm512_storeu_ps(to, sum[i][j]);
    }
}

constexpr int ROWS = 6;  // of a full tile; six by four vectors fill the registers

// The same for any number of rows.
template <class T, bool turned, int V>
static void tiles(long rows, const word* a, long lda, const word* b, long k, float* c, long ldc, const float* scale) {
  long i = 0;
  auto step = [&](auto full, int r) {
    full(a + (turned ? i : i * lda), lda, b, k, c + i * ldc, ldc, scale ? scale + i : nullptr);
    i += r;
  };
  while (rows - i >= ROWS) step(tile<T, turned, ROWS, V>, ROWS);
  if (rows - i >= 4) step(tile<T, turned, 4, V>, 4);
  if (rows - i >= 2) step(tile<T, turned, 2, V>, 2);
  if (rows - i >= 1) step(tile<T, turned, 1, V>, 1);
}

// The same for one to four vectors.
template <class T, bool turned = false>
static void tiles(long vectors, long rows, const word* a, long lda, const word* b, long k, float* c, long ldc,
                      const float* scale) {
  const auto run = vectors == 4   ? tiles<T, turned, 4>
                   : vectors == 3 ? tiles<T, turned, 3>
                   : vectors == 2 ? tiles<T, turned, 2>
                                  : tiles<T, turned, 1>;
  run(rows, a, lda, b, k, c, ldc, scale);
}

// The transpose of 16 x 16 words.
static inline void transpose(__m512i r[16]) {
  __m512i t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Sixteen rows of k words as k rows of sixteen, `ld` words apart: what `tile` takes as b. A null row is of zeros.
static inline void pack(const word* const rows[16], long k, word* to, long ld) {
  for (long p = 0; p < k; p += 16) {
    __m512i r[16];
    const __mmask16 mask = lanes(p, k);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) _mm_prefetch((const char*)(rows[i] + p + 48), _MM_HINT_T0);  // three lines on
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = rows[i] ? _mm512_maskz_loadu_epi32(mask, rows[i] + p) : _mm512_setzero_si512();
    transpose(r);
    for (long i = 0; i < 16 && p + i < k; i++) _mm512_storeu_si512(to + (p + i) * ld, r[i]);
  }
}
