// Linear layers in eight bits. Each row of x and each row of the weights has a scale of its own; sums are whole numbers.
#include "gelu.h"
#include "int8.h"

constexpr long BLOCK = 384;  // rows that a panel is taken for
constexpr int ZERO = 128;

// Whole numbers from -127 to 127, plus ZERO, and what they are to be multiplied by, which hands on what is no number.
template <class T>
static float quantise(const typename T::type* x, uint8_t* to, long n) {
  __m512 most = _mm512_set1_ps(1e-30f), strange = _mm512_setzero_ps();
  for (long j = 0; j < n; j += 16) {
    const __m512 some = T::load(x + j, lanes(j, n));
    most = _mm512_max_ps(most, _mm512_abs_ps(some));
    strange = _mm512_fmadd_ps(some, _mm512_setzero_ps(), strange);
  }
  const float largest = _mm512_reduce_max_ps(most);
  whole<T>(x, to, n, 127 / largest, ZERO);
  return largest / 127 + _mm512_reduce_add_ps(strange);
}

struct Int8Layer {
  long rows, n, channels, gated;
};

template <class T, class Product>
static void linear(const typename T::type* x, const word* weight, const float* scale, const int* sums,
                   const typename T::type* bias, const typename T::type* residual, typename T::type* out,
                   const Int8Layer& s, int threads) {
  const long k = s.n / 4, blocks = (s.rows + BLOCK - 1) / BLOCK, panels = (s.channels + COLUMNS - 1) / COLUMNS;
  // several tasks for each thread; a task is a block of rows and some of the panels
  const long groups = std::min(std::max((4 * threads + blocks - 1) / blocks, 1L), panels);
  const long each = (panels + groups - 1) / groups;
#pragma omp parallel num_threads(threads)
  {
    [[maybe_unused]] typename Product::State state;
    word* bytes = (word*)scratch(BLOCK * k);
    float scales[BLOCK];
    alignas(64) int made[Product::rows * COLUMNS], gates[Product::rows * COLUMNS];
    long held = -1;  // the block whose bytes are there
#pragma omp for schedule(dynamic)
    for (long task = 0; task < blocks * groups; task++) {
      const long begin = task / groups * BLOCK, rows = std::min(s.rows - begin, BLOCK);
      for (long i = 0; i < rows && held != begin; i++)
        scales[i] = quantise<T>(x + (begin + i) * s.n, (uint8_t*)(bytes + i * k), s.n);
      held = begin;
      const long end = std::min(s.channels, (task % groups + 1) * each * COLUMNS);
      for (long first = task % groups * each * COLUMNS; first < end; first += COLUMNS)
        for (long i = 0, r; i < rows; i += r) {
          r = std::min(Product::rows, rows - i);
          Product::sum(r, bytes + i * k, k, weight + first * k, k, 1, 0, made);
          if (s.gated) Product::sum(r, bytes + i * k, k, weight + (s.channels + first) * k, k, 1, 0, gates);
          for (long c = first; c < std::min(end, first + COLUMNS); c += 16) {
            const __mmask16 mask = lanes(c, s.channels);
            const Channels<T> means(scale, sums, bias, c, mask, ZERO);
            const Channels<T> gate(scale, sums, bias, s.gated ? s.channels + c : c, mask, ZERO);
            for (long row = 0; row < r; row++) {
              const long from = row * COLUMNS + c - first, at = (begin + i + row) * s.channels + c;
              __m512 y = means.of(made + from, scales[i + row]);
              if (s.gated) y = y * gelu(gate.of(gates + from, scales[i + row]));
              if (residual) y = y + T::load(residual + at, mask);
              T::store(out + at, mask, y);
            }
          }
        }
    }
    std::free(bytes);
  }
}

// x (rows, n), n a multiple of 4. weight: panels of 64 channels, n/4 x 64 words of four bytes each. scale, sums: of each
// channel's weights. bias (channels) or null, residual (like out) or null, out (rows, channels). Gated, there are twice
// the channels, a multiple of 128, and out is the first half's times gelu of the second's. AMX needs n to be a multiple of
// 64.
#define LAYER(name, T, Product)                                                                                  \
  extern "C" void name(const T::type* x, const word* weight, const float* scale, const int* sums,                 \
                       const T::type* bias, const T::type* residual, T::type* out, const Int8Layer* shape, int threads) { \
    linear<T, Product>(x, weight, scale, sums, bias, residual, out, *shape, threads);                              \
  }
LAYER(linear_int8_float32, Float, Vectors)
LAYER(linear_int8_bfloat16, BFloat16, Vectors)
#ifdef __AMX_BF16__
LAYER(linear_int8_amx_float32, Float, Tiles)
LAYER(linear_int8_amx_bfloat16, BFloat16, Tiles)
#endif
