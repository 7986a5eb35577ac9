// The gradients of softmax attention in bfloat16: scores are computed again, block by block (Dao et al. 2022, algorithm 4).
#include <algorithm>
#include <cmath>

#include "tile.h"

constexpr long QUERIES = 32, KEYS = 256, PANEL = 64;  // of a block; keys that are packed side by side
constexpr long PAIRS = QUERIES / 2;                   // a row of a turned block, in words

struct Numbers {
  long batch, heads, queries, keys, width;
};

static const struct Ones {
  float each[KEYS];
  Ones() { std::fill_n(each, KEYS, 1.f); }
} ones;

// Rows as pairs, for `tile`'s b: (padded / 2) x 16V words for each panel of at most 4 vectors; rows from `num` on are 0.
static void pack_pairs(const uint16_t* from, long ld, long num, long padded, long width, word* to) {
  for (long begin = 0; begin < width; begin += 64)
    for (long i = 0; i < padded; i += 2)
      for (long j = begin; j < std::min(begin + 64, width); j += 16, to += 16) {
        const __mmask16 mask = lanes(j, width);
        const __m256i even = _mm256_maskz_loadu_epi16(i < num ? mask : 0, from + i * ld + j);
        const __m256i odd = _mm256_maskz_loadu_epi16(i + 1 < num ? mask : 0, from + (i + 1) * ld + j);
        const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16);
        _mm512_storeu_si512(to, _mm512_or_si512(high, _mm512_cvtepu16_epi32(even)));
      }
}

// Rows turned, panels of 64 of them: what scores of `padded` rows take as b.
static void pack_rows(const uint16_t* from, long ld, long num, long padded, long depth, word* to) {
  for (long s = 0; s < padded; s += 16) {
    const word* rows[16];
    for (long i = 0; i < 16; i++) rows[i] = s + i < num ? (const word*)(from + (s + i) * ld) : nullptr;
    const long panel = s / PANEL * PANEL;
    pack(rows, depth, to + panel * depth + s % PANEL, std::min(PANEL, padded - panel));
  }
}

// c (rows x width) += a (rows x k words) b, which `pack_pairs` has packed from row `first` of `padded` on.
static void add_product(long rows, const word* a, long lda, const word* b, long padded, long first, long k, long width,
                        long ldc, float* c) {
  for (long begin = 0; begin < width; begin += 64, b += padded / 2 * 64) {
    const long vectors = std::min(64l, width - begin + 15) / 16;
    tiles<BFloat16>(vectors, rows, a, lda, b + first / 2 * 16 * vectors, k, c + begin, ldc, ones.each);
  }
}

// QUERIES x `keys` of bfloat16 as `keys` rows of QUERIES.
static void turn(const uint16_t* from, long keys, word* to) {
  for (long j = 0; j < keys; j += 16) {
    __m512i r[16];
#pragma GCC unroll 16
    for (long p = 0; p < 16; p++) {
      const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(from + 2 * p * KEYS + j)));
      const __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(from + (2 * p + 1) * KEYS + j)));
      r[p] = _mm512_or_si512(_mm512_slli_epi32(odd, 16), even);
    }
    transpose(r);
    for (long i = 0; i < 16; i++) _mm512_storeu_si512(to + (j + i) * PAIRS, r[i]);
  }
}

static void narrow(const float* from, long ld, long rows, long width, uint16_t* to, long ldt) {
  for (long i = 0; i < rows; i++)
    for (long j = 0; j < width; j += 16)
      BFloat16::store(to + i * ldt + j, lanes(j, width), _mm512_loadu_ps(from + i * ld + j));
}

// q (batch, T, heads*D), k and v (batch, S, heads*D), strides of batch and row for each in turn; out, grad and q_grad like
// q, k_grad and v_grad like k, all contiguous; norms (batch, heads, T). D is a multiple of 2.
extern "C" void attention_gradient_bfloat16(const uint16_t* q, const uint16_t* k, const uint16_t* v, const uint16_t* out,
                                            const uint16_t* grad, const float* norms, uint16_t* q_grad, uint16_t* k_grad,
                                            uint16_t* v_grad, const long* strides, const Numbers* numbers, int threads) {
  const Numbers n = *numbers;
  const long T_ = n.queries, S = n.keys, D = n.width, row = n.heads * D, depth = D / 2, wide = (D + 15) / 16 * 16;
  const long padded = (S + 15) / 16 * 16;
  const float scale = 1 / std::sqrt((float)D), log2e = 1.44269504f;
#pragma omp parallel num_threads(threads)
  {
    word *keys = (word*)scratch(padded * depth), *values = (word*)scratch(padded * depth);
    word *key_pairs = (word*)scratch(padded / 2 * wide), *turned = (word*)scratch(2 * KEYS * PAIRS);
    word *query_pairs = (word*)scratch(PAIRS * wide), *grad_pairs = (word*)scratch(PAIRS * wide);
    float *key_sums = scratch(padded * wide), *value_sums = scratch(padded * wide), *query_sums = scratch(QUERIES * wide);
    float *scores = scratch(QUERIES * KEYS), *changes = scratch(QUERIES * KEYS);
    uint16_t* weights = (uint16_t*)scratch(QUERIES * KEYS);  // and their gradients behind them
    uint16_t* slopes = weights + QUERIES * KEYS;
#pragma omp for schedule(dynamic)
    for (long unit = 0; unit < n.batch * n.heads; unit++) {
      const long b = unit / n.heads, h = unit % n.heads;
      const uint16_t *from_k = k + b * strides[2] + h * D, *from_v = v + b * strides[4] + h * D;
      pack_rows(from_k, strides[3], S, padded, depth, keys);
      pack_rows(from_v, strides[5], S, padded, depth, values);
      pack_pairs(from_k, strides[3], S, padded, D, key_pairs);
      std::memset(key_sums, 0, padded * wide * 4), std::memset(value_sums, 0, padded * wide * 4);
      for (long first = 0; first < T_; first += QUERIES) {
        const long rows = std::min(QUERIES, T_ - first), at = (b * T_ + first) * row + h * D;
        const uint16_t* queries = q + b * strides[0] + first * strides[1] + h * D;
        pack_pairs(queries, strides[1], rows, QUERIES, D, query_pairs);
        pack_pairs(grad + at, row, rows, QUERIES, D, grad_pairs);
        std::memset(query_sums, 0, QUERIES * wide * 4), std::memset(weights, 0, 4 * QUERIES * KEYS);
        float means[QUERIES];  // of each query's weights' gradients
        for (long i = 0; i < rows; i++) {
          __m512 sum = _mm512_setzero_ps();
          for (long j = 0; j < D; j += 16)
            sum = _mm512_fmadd_ps(BFloat16::load(grad + at + i * row + j, lanes(j, D)),
                                  BFloat16::load(out + at + i * row + j, lanes(j, D)), sum);
          means[i] = _mm512_reduce_add_ps(sum);
        }
        for (long s = 0; s < padded; s += KEYS) {
          const long num = std::min(KEYS, padded - s);
          for (long j = 0; j < num; j += PANEL) {
            const long vectors = std::min(PANEL, num - j) / 16;
            tiles<BFloat16>(vectors, rows, (const word*)queries, strides[1] / 2, keys + (s + j) * depth, depth,
                            scores + j, KEYS, nullptr);
            tiles<BFloat16>(vectors, rows, (const word*)(grad + at), row / 2, values + (s + j) * depth, depth,
                            changes + j, KEYS, nullptr);
          }
          for (long i = 0; i < rows; i++) {
            const __m512 norm = _mm512_set1_ps(log2e * norms[unit * T_ + first + i]), mean = _mm512_set1_ps(means[i]);
            for (long j = 0; j < num; j += 16) {
              __m512 p = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + i * KEYS + j), _mm512_set1_ps(scale * log2e), norm));
              p = _mm512_maskz_mov_ps(lanes(s + j, S), p);
              const __m512 slope = p * (_mm512_loadu_ps(changes + i * KEYS + j) - mean) * _mm512_set1_ps(scale);
              BFloat16::store(weights + i * KEYS + j, 0xffff, p);
              BFloat16::store(slopes + i * KEYS + j, 0xffff, slope);
            }
          }
          turn(weights, num, turned), turn(slopes, num, turned + KEYS * PAIRS);
          add_product(rows, (const word*)slopes, KEYS / 2, key_pairs, padded, s, num / 2, D, wide, query_sums);
          add_product(num, turned, PAIRS, grad_pairs, QUERIES, 0, PAIRS, D, wide, value_sums + s * wide);
          add_product(num, turned + KEYS * PAIRS, PAIRS, query_pairs, QUERIES, 0, PAIRS, D, wide, key_sums + s * wide);
        }
        narrow(query_sums, wide, rows, D, q_grad + at, row);
      }
      narrow(key_sums, wide, S, D, k_grad + b * S * row + h * D, row);
      narrow(value_sums, wide, S, D, v_grad + b * S * row + h * D, row);
    }
    for (void* some : {(void*)keys, (void*)values, (void*)key_pairs, (void*)turned, (void*)query_pairs, (void*)grad_pairs,
                       (void*)key_sums, (void*)value_sums, (void*)query_sums, (void*)scores, (void*)changes,
                       (void*)weights})
      std::free(some);
  }
}
