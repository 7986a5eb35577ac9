// Softmax attention in one pass over the keys (Dao et al. 2022, algorithm 1; Milakov and Gimelshein 2018).
#include <algorithm>
#include <cmath>

#include "amx.h"
#include "tile.h"

constexpr long KEYS = 256, PANEL = 64;  // of a block; packed side by side

// One row of scores to weights, in place of `kept`, the largest score so far, and `sum`; returns what earlier weights
// are to be multiplied by.
template <class T>
static float softmax(const float* scores, long n, long padded, float scale, float& kept, float& sum,
                     typename T::type* weights) {
  __m512 most[4];  // four, so that none waits for the one before
  for (__m512& some : most) some = _mm512_set1_ps(-INFINITY);
  for (long j = 0; j < n; j += 64)
#pragma GCC unroll 4
    for (long i = 0; i < 4; i++) {
      const long at = j + 16 * i;
      most[i] = _mm512_mask_max_ps(most[i], lanes(at, n), most[i], _mm512_loadu_ps(scores + at));
    }
  const float before = kept;
  most[0] = _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3]));
  kept = std::fmax(before, _mm512_reduce_max_ps(most[0]) * scale);
  __m512 total = _mm512_setzero_ps();
  for (long j = 0; j < padded; j += 16) {
    const __mmask16 mask = lanes(j, n);
    __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + j), _mm512_set1_ps(scale), _mm512_set1_ps(kept));
    x = _mm512_maskz_mov_ps(mask, T::exp2(x));
    total = total + x;
    T::store(weights + j, 0xffff, x);
  }
  const float factor = before == kept ? 1 : std::exp2(before - kept);
  sum = sum * factor + _mm512_reduce_add_ps(total);
  return factor;
}

// v's rows as pairs, or alone: (keys/per_word) x 16V words, for each panel of columns.
static void pack_values(const Float::type* v, long ld, long keys, long padded, long width, long columns, word* to) {
  for (long s = 0; s < padded; s++)
    for (long j = 0; j < columns; j++, to += 16)
      _mm512_storeu_ps(to, Float::load(v + s * ld + 16 * j, s < keys ? lanes(16 * j, width) : 0));
}

static void pack_values(const BFloat16::type* v, long ld, long keys, long padded, long width, long columns, word* to) {
  for (long s = 0; s < padded; s += 2)
    for (long j = 0; j < columns; j++, to += 16) {
      const __mmask16 mask = lanes(16 * j, width);
      const __m256i even = _mm256_maskz_loadu_epi16(s < keys ? mask : 0, v + s * ld + 16 * j);
      const __m256i odd = _mm256_maskz_loadu_epi16(s + 1 < keys ? mask : 0, v + (s + 1) * ld + 16 * j);
      const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16);
      _mm512_storeu_si512(to, _mm512_or_si512(high, _mm512_cvtepu16_epi32(even)));
    }
}

template <class T>
static void attention(const typename T::type* q, const typename T::type* k, const typename T::type* v,
                      typename T::type* out, float* norms, const long* strides, long batch, long heads, long T_, long S,
                      long D, long causal, int threads) {
  using type = typename T::type;
  constexpr bool whole = T::step > 1;  // tiles alone are multiplied, with zeros around what is there
  // Queries of a block, and of a task at most. With AMX the softmax takes the most time, so its scores and weights stay in
  // the first cache; where the second can't hold a head's keys and values, four blocks take turns at each part of them.
  constexpr long QUERIES = whole ? 32 : 48, MOST = whole ? 4 * QUERIES : QUERIES;
  auto up = [](long n, long multiple) { return (n + multiple - 1) / multiple * multiple; };
  const long words = D / T::per_word, depth = up(words, T::step), vectors = (D + 15) / 16;
  const long padded = up(S, std::max(16l, T::step * T::per_word));
  const long panels = (vectors + 3) / 4, wide = (vectors + panels - 1) / panels;  // of v's columns
  const long k_size = padded * depth, v_size = padded / T::per_word * vectors * 16;
  const long many = k_size + v_size > 1 << 17 ? MOST : QUERIES, blocks = (T_ + many - 1) / many;
  word* packed = (word*)scratch(batch * heads * (k_size + v_size));
  const float scale = 1.44269504f / std::sqrt((float)D);

#pragma omp parallel num_threads(threads)
  {
    [[maybe_unused]] typename T::State state;
#pragma omp for
    for (long unit = 0; unit < batch * heads; unit++) {
      const long b = unit / heads, h = unit % heads;
      const type *keys = k + b * strides[2] + h * D, *values = v + b * strides[4] + h * D;
      word *to_k = packed + unit * (k_size + v_size), *to_v = to_k + k_size;
      for (long s = 0; s < padded; s += 16) {
        const word* rows[16];
        for (long i = 0; i < 16; i++) rows[i] = s + i < S ? (const word*)(keys + (s + i) * strides[3]) : nullptr;
        const long panel = s / PANEL * PANEL, ld = std::min(PANEL, padded - panel);
        word* to = to_k + panel * depth + s % PANEL;
        pack(rows, words, to, ld);
        for (long p = words; p < depth; p++) std::memset(to + p * ld, 0, 64);
      }
      for (long j = 0; j < vectors; j += wide) {
        const long n = std::min(wide, vectors - j);
        pack_values(values + 16 * j, strides[5], S, padded, D - 16 * j, n, to_v + padded / T::per_word * 16 * j);
      }
    }

    float* scores = scratch(QUERIES * KEYS);
    float* sums = scratch(MOST * vectors * 16);
    type* weights = (type*)scratch(QUERIES * KEYS);
    word* copy = whole ? (word*)scratch(MOST * depth) : nullptr;
    if (whole) std::memset(copy, 0, MOST * depth * 4);
#pragma omp for schedule(dynamic)
    for (long task = 0; task < batch * heads * blocks; task++) {
      const long unit = task / blocks, b = unit / heads, h = unit % heads, first = task % blocks * many;
      const long num = std::min(many, T_ - first);
      const word *from_k = packed + unit * (k_size + v_size), *from_v = from_k + k_size;
      const word* queries = (const word*)(q + b * strides[0] + first * strides[1] + h * D);
      const long ld = whole ? depth : strides[1] / T::per_word;
      for (long i = 0; whole && i < num; i++) std::memcpy(copy + i * ld, queries + i * strides[1] / T::per_word, words * 4);
      if (whole) queries = copy;
      float most[MOST], total[MOST] = {}, factor[QUERIES];
      for (float& one : most) one = -INFINITY;
      for (long s = 0; s < padded; s += KEYS)
        for (long i = 0; i < num; i += QUERIES) {
          const long n = std::min(KEYS, padded - s), rows = std::min(QUERIES, num - i);
          for (long j = 0; j < n; j += PANEL)
            tiles<T>(std::min(PANEL, n - j) / 16, rows, queries + i * ld, ld, from_k + (s + j) * depth, depth, scores + j,
                     KEYS, nullptr);
          for (long r = 0; r < rows; r++) {
            const long seen = causal ? std::min(S, first + i + r + 1) : S;
            factor[r] = softmax<T>(scores + r * KEYS, std::clamp(seen - s, 0L, n), n, scale, most[i + r], total[i + r],
                                   weights + r * KEYS);
          }
          for (long j = 0; j < vectors; j += wide) {
            const long size = std::min(wide, vectors - j);
            const word* panel_v = from_v + padded / T::per_word * 16 * j + s / T::per_word * 16 * size;
            tiles<T>(size, rows, (const word*)weights, KEYS / T::per_word, panel_v, n / T::per_word,
                     sums + i * vectors * 16 + 16 * j, vectors * 16, s ? factor : nullptr);
          }
        }
      for (long i = 0; norms && i < num; i++)
        norms[unit * T_ + first + i] = 0.69314718f * (most[i] + std::log2(total[i]));
      for (long i = 0; i < num; i++)
        for (long j = 0; j < D; j += 16)
          T::store(out + ((b * T_ + first + i) * heads + h) * D + j, lanes(j, D),
                   _mm512_loadu_ps(sums + i * vectors * 16 + j) / _mm512_set1_ps(total[i]));
    }
    std::free(scores), std::free(sums), std::free(weights), std::free(copy);
  }
  std::free(packed);
}

// q (batch, T, heads*D), k and v (batch, S, heads*D), out like q and contiguous, norms (batch, heads, T), the logarithms
// of the weights' sums, or null. strides: of batch and row, for q, k and v in turn. D is a multiple of 2. causal: row i sees
// keys 0 to i alone.
extern "C" void attention_float32(const float* q, const float* k, const float* v, float* out, float* norms,
                                  const long* strides, long batch, long heads, long T_, long S, long D, long causal, int threads) {
  attention<Float>(q, k, v, out, norms, strides, batch, heads, T_, S, D, causal, threads);
}
extern "C" void attention_bfloat16(const uint16_t* q, const uint16_t* k, const uint16_t* v, uint16_t* out,
                                   float* norms, const long* strides, long batch, long heads, long T_, long S, long D,
                                   long causal, int threads) {
  attention<BFloat16>(q, k, v, out, norms, strides, batch, heads, T_, S, D, causal, threads);
}
#ifdef __AMX_BF16__
extern "C" void attention_amx(const uint16_t* q, const uint16_t* k, const uint16_t* v, uint16_t* out, float* norms,
                              const long* strides, long batch, long heads, long T_, long S, long D, long causal, int threads) {
  attention<TiledBFloat16>(q, k, v, out, norms, strides, batch, heads, T_, S, D, causal, threads);
}
#endif
