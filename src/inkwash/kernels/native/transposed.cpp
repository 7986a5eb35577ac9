// A convolution's gradient by what it saw: the convolution turned round, with the weights read as they lie. Under each
// tap the pixels that it reaches are multiplied by a panel of weights, and added to the pixels that they come from.
#include <algorithm>

#include "convolve.h"

constexpr long PIXELS = 256, COLUMNS = 64;  // of a block; input channels
constexpr long DEPTH = 128;                 // words of output channels at a time: a panel stays in the first cache
constexpr long AHEAD = 16;                  // rows of weights
constexpr int FULL = 6;                     // rows of a full tile

// c[i] (16V) += a[i] (k words) b (k x 16V words), for R rows.
template <int R, int V>
static void add_tile(const word* const* a, const word* b, long k, float* const* c) {
  __m512 sum[R][V];
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < V; j++)
      sum[i][j] = _mm512_setzero_ps();
  for (long p = 0; p < k; p++, b += 16 * V) {
    __m512i column[V];
#pragma GCC unroll 8
    for (int j = 0; j < V; j++) column[j] = _mm512_loadu_si512(b + 16 * j);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
      const __m512i row = _mm512_set1_epi32(a[i][p]);
#pragma GCC unroll 8
      for (int j = 0; j < V; j++) sum[i][j] = BFloat16::product(sum[i][j], row, column[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < V; j++)
      _mm512_storeu_ps(c[i] + 16 * j, sum[i][j] + _mm512_loadu_ps(c[i] + 16 * j));
}

template <int V>
static void add_tiles(long rows, const word* const* a, const word* b, long k, float* const* c) {
  long i = 0;
  for (; rows - i >= FULL; i += FULL) add_tile<FULL, V>(a + i, b, k, c + i);
  for (; rows - i >= 3; i += 3) add_tile<3, V>(a + i, b, k, c + i);
  for (; rows - i >= 1; i++) add_tile<1, V>(a + i, b, k, c + i);
}

// Two rows of weights as pairs, for each pair of output channels: what `add_tile` takes as b.
static void pack_pairs(const uint16_t* w, long ld, long pairs, long columns, long vectors, word* to) {
  for (long k = 0; k < pairs; k++, w += 2 * ld)
    for (long j = 0; j < vectors; j++, to += 16) {
      // rows are pages apart, where the processor foresees nothing
      _mm_prefetch((const char*)(w + AHEAD * ld + 16 * j), _MM_HINT_T0);
      _mm_prefetch((const char*)(w + (AHEAD + 1) * ld + 16 * j), _MM_HINT_T0);
      const __mmask16 mask = lanes(16 * j, columns);
      const __m512i even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, w + 16 * j));
      const __m512i odd = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, w + ld + 16 * j));
      _mm512_storeu_si512(to, _mm512_or_si512(_mm512_slli_epi32(odd, 16), even));
    }
}

// Of the pixels in [first, first + count) those that a tap takes from: their sums and the gradients that reach them.
static long reached(const Shape& s, const word* grad, long first, long count, long tap, float* sums, const word** from,
                    float** to) {
  const long depth = s.out_channels / 2;
  long num = 0;
  for (long i = 0; i < count; i++) {
    const long at = first + i, b = at / (s.width * s.height);
    const long y = at / s.width % s.height + s.pad - tap / s.kernel, x = at % s.width + s.pad - tap % s.kernel;
    if (y < 0 || x < 0 || y % s.stride || x % s.stride || y / s.stride >= s.out_height || x / s.stride >= s.out_width)
      continue;
    from[num] = grad + ((b * s.out_height + y / s.stride) * s.out_width + x / s.stride) * depth;
    to[num++] = sums + i * COLUMNS;
  }
  return num;
}

static void block(const uint16_t* grad, const uint16_t* w, uint16_t* out, const Shape& s, long first, long column,
                  float* sums, word* packed) {
  const long taps = s.kernel * s.kernel, depth = s.out_channels / 2, row = taps * s.channels;
  const long count = std::min(PIXELS, s.batch * s.height * s.width - first);
  const long columns = std::min(COLUMNS, s.channels - column), vectors = (columns + 15) / 16;
  const word *from[PIXELS], *at[PIXELS];
  float* to[PIXELS];
  std::memset(sums, 0, count * COLUMNS * sizeof(float));
  for (long tap = 0; tap < taps; tap++) {
    const long num = reached(s, (const word*)grad, first, count, tap, sums, from, to);
    for (long k = 0; num && k < depth; k += DEPTH) {
      const long deep = std::min(DEPTH, depth - k);
      pack_pairs(w + 2 * k * row + tap * s.channels + column, row, deep, columns, vectors, packed);
      for (long i = 0; i < num; i++) at[i] = from[i] + k;
      const auto run = vectors == 4   ? add_tiles<4>
                       : vectors == 3 ? add_tiles<3>
                       : vectors == 2 ? add_tiles<2>
                                      : add_tiles<1>;
      run(num, at, packed, deep, to);
    }
  }
  for (long i = 0; i < count; i++)
    for (long c = 0; c < columns; c += 16)
      BFloat16::store(out + (first + i) * s.channels + column + c, lanes(c, columns),
                      _mm512_loadu_ps(sums + i * COLUMNS + c));
}

// grad (batch, out_height, out_width, out_channels), w (out_channels, kernel, kernel, channels), out (batch, height,
// width, channels). out_channels is a multiple of 2.
extern "C" void transposed_bfloat16(const uint16_t* grad, const uint16_t* w, uint16_t* out, const Shape* shape,
                                    int threads) {
  const Shape s = *shape;
  const long parts = (s.channels + COLUMNS - 1) / COLUMNS, blocks = (s.batch * s.height * s.width + PIXELS - 1) / PIXELS;
#pragma omp parallel num_threads(threads)
  {
    float* sums = scratch(PIXELS * COLUMNS);
    word* packed = (word*)scratch(DEPTH * COLUMNS);
#pragma omp for schedule(dynamic)
    for (long task = 0; task < parts * blocks; task++)
      block(grad, w, out, s, task % blocks * PIXELS, task / blocks * COLUMNS, sums, packed);
    std::free(sums), std::free(packed);
  }
}
