// What layers in eight bits share: bytes of what they see, sums of whole numbers, and what the sums mean.
#pragma once
#include <algorithm>

#include "amx.h"

constexpr long COLUMNS = 64;  // of a panel of weights

// n numbers as whole ones of 1/factor each, plus zero.
template <class T>
static void whole(const typename T::type* x, uint8_t* to, long n, float factor, int zero) {
  const __m512 by = _mm512_set1_ps(factor);
  const __m512i more = _mm512_set1_epi32(zero);
  for (long j = 0; j < n; j += 16) {
    const __m512i bytes = _mm512_add_epi32(_mm512_cvtps_epi32(T::load(x + j, lanes(j, n)) * by), more);
    _mm_mask_storeu_epi8(to + j, lanes(j, n), _mm512_cvtepi32_epi8(bytes));
  }
}

// sums (R x 64) of a (R x k words, unsigned bytes) and b (k x 64 words, signed ones), and of as many parts more of a, which
// lie `apart` from each other, and of b, which follow.
template <int R>
static void sum_tile(const word* a, long lda, const word* b, long k, long parts, long apart, int* sums) {
  __m512i sum[R][4];
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < 4; j++) sum[i][j] = _mm512_setzero_si512();
  for (; parts; parts--, a += apart)
    for (long p = 0; p < k; p++, b += COLUMNS) {
      __m512i column[4];
#pragma GCC unroll 8
      for (int j = 0; j < 4; j++) column[j] = _mm512_loadu_si512(b + 16 * j);
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) {
        const __m512i row = _mm512_set1_epi32(a[i * lda + p]);
#pragma GCC unroll 8
        for (int j = 0; j < 4; j++) sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], row, column[j]);
      }
    }
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < 4; j++) _mm512_storeu_si512(sums + i * COLUMNS + 16 * j, sum[i][j]);
}

// Sums of up to `rows` rows, as sum_tile has them, by AVX-512.
struct Vectors {
  static constexpr long rows = ROWS, beyond = 0;
  struct State {};
  static void sum(long num, const word* a, long lda, const word* b, long k, long parts, long apart, int* sums) {
    static constexpr decltype(&sum_tile<1>) run[] = {sum_tile<1>, sum_tile<2>, sum_tile<3>, sum_tile<4>, sum_tile<5>, sum_tile<6>};
    run[num - 1](a, lda, b, k, parts, apart, sums);
  }
};

#ifdef __AMX_BF16__
// The same by AMX, k a multiple of 16: the same whole numbers. It reads, and sums up, `beyond` rows more at most.
struct Tiles {
  static constexpr long rows = 32, beyond = 15;
  using State = TiledBFloat16::State;
  static void sum(long num, const word* a, long lda, const word* b, long k, long parts, long apart, int* sums) {
    written(a), written(b), written(sums);
    for (long part = 0; part < parts; part++, a += apart, b += k * COLUMNS)
      all_tiled<BYTES>(COLUMNS / 16, num, a, lda, b, COLUMNS, k, sums, COLUMNS, part > 0);
  }
};
#endif

// What the sums of sixteen channels mean, of bytes that were raised by `zero`.
template <class T>
struct Channels {
  __m512i more;  // of the sums, by what was raised
  __m512 scale, bias;
  Channels(const float* scales, const int* sums, const typename T::type* biases, long c, __mmask16 mask, int zero)
      : more(_mm512_mullo_epi32(_mm512_maskz_loadu_epi32(mask, sums + c), _mm512_set1_epi32(zero))),
        scale(_mm512_maskz_loadu_ps(mask, scales + c)),
        bias(biases ? T::load(biases + c, mask) : _mm512_setzero_ps()) {}
  __m512 of(const int* made, float by) const {
    const __m512 y = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(made), more)) * scale;
    return _mm512_fmadd_ps(y, _mm512_set1_ps(by), bias);
  }
};
