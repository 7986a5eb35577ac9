// Linear layers in eight bits: each row of x and each row of the weights has a scale of its own, sums are whole numbers.
#include <algorithm>

#include "tile.h"

constexpr long COLUMNS = 64, BLOCK = 384;  // of a panel of weights; rows that a panel is taken for

// Whole numbers from -127 to 127, plus 128, and what they are to be multiplied by, which hands on what is no number.
template <class T>
static float quantise(const typename T::type* x, uint8_t* to, long n) {
  __m512 most = _mm512_set1_ps(1e-30f), strange = _mm512_setzero_ps();
  for (long j = 0; j < n; j += 16) {
    const __m512 some = T::load(x + j, lanes(j, n));
    most = _mm512_max_ps(most, _mm512_abs_ps(some));
    strange = _mm512_fmadd_ps(some, _mm512_setzero_ps(), strange);
  }
  const float largest = _mm512_reduce_max_ps(most);
  const __m512 factor = _mm512_set1_ps(127 / largest);
  for (long j = 0; j < n; j += 16) {
    const __m512i whole = _mm512_cvtps_epi32(T::load(x + j, lanes(j, n)) * factor);
    const __m128i bytes = _mm_xor_si128(_mm512_cvtepi32_epi8(whole), _mm_set1_epi8((char)128));
    _mm_mask_storeu_epi8(to + j, lanes(j, n), bytes);
  }
  return largest / 127 + _mm512_reduce_add_ps(strange);
}

// sums (R x 64) of a (R x k words, unsigned bytes) and b (k x 64 words, signed ones).
template <int R>
static void sum_tile(const word* a, long lda, const word* b, long k, int* sums) {
  __m512i sum[R][4];
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < 4; j++) sum[i][j] = _mm512_setzero_si512();
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

template <class T>
static void linear(const typename T::type* x, const word* weight, const float* scale, const int* sums,
                   const typename T::type* bias, typename T::type* out, long rows, long n, long columns, int threads) {
  const long k = n / 4, blocks = (rows + BLOCK - 1) / BLOCK, panels = (columns + COLUMNS - 1) / COLUMNS;
  uint8_t* bytes = (uint8_t*)scratch(rows * k);
  float* scales = scratch(rows);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for
    for (long i = 0; i < rows; i++) scales[i] = quantise<T>(x + i * n, bytes + i * n, n);
#pragma omp for schedule(dynamic)
    for (long task = 0; task < blocks * panels; task++) {
      const long first = task / panels * BLOCK, last = std::min(rows, first + BLOCK), panel = task % panels;
      int made[ROWS * COLUMNS];
      for (long i = first, r; i < last; i += r) {
        r = last - i >= ROWS ? ROWS : last - i >= 2 ? 2 : 1;
        const auto run = r == ROWS ? sum_tile<ROWS> : r == 2 ? sum_tile<2> : sum_tile<1>;
        run((const word*)bytes + i * k, k, weight + panel * COLUMNS * k, k, made);
        for (long row = 0; row < r; row++)
          for (long j = panel * COLUMNS; j < std::min(columns, (panel + 1) * COLUMNS); j += 16) {
            const __mmask16 mask = lanes(j, columns);
            // what was added to x's bytes is taken off again
            const __m512i more = _mm512_slli_epi32(_mm512_maskz_loadu_epi32(mask, sums + j), 7);
            const __m512i whole = _mm512_loadu_si512(made + row * COLUMNS + j % COLUMNS);
            const __m512 y = _mm512_cvtepi32_ps(_mm512_sub_epi32(whole, more)) * _mm512_maskz_loadu_ps(mask, scale + j);
            const __m512 offset = bias ? T::load(bias + j, mask) : _mm512_setzero_ps();
            T::store(out + (i + row) * columns + j, mask, _mm512_fmadd_ps(y, _mm512_set1_ps(scales[i + row]), offset));
          }
      }
    }
  }
  std::free(bytes), std::free(scales);
}

// x (rows, n), n a multiple of 4. weight: panels of 64 columns, n/4 x 64 words of four bytes each. scale, sums: of each
// column's weights. bias: may be null. out (rows, columns).
extern "C" void linear_int8_float32(const float* x, const word* weight, const float* scale, const int* sums,
                                    const float* bias, float* out, long rows, long n, long columns, int threads) {
  linear<Float>(x, weight, scale, sums, bias, out, rows, n, columns, threads);
}
extern "C" void linear_int8_bfloat16(const uint16_t* x, const word* weight, const float* scale, const int* sums,
                                     const uint16_t* bias, uint16_t* out, long rows, long n, long columns,
                                     int threads) {
  linear<BFloat16>(x, weight, scale, sums, bias, out, rows, n, columns, threads);
}
