// Convolutions by 3 x 3 pixels in eight bits, padded by one. Each picture of the batch has a scale and a zero of its own,
// so its bytes reach from its least value to its largest; each channel of the weights has a scale.
#include "int8.h"

constexpr long BAND = 256;  // pixels, in whole rows, that a panel is taken for

struct Int8Convolution {
  long batch, height, width, channels, out_channels;
};

struct Range {
  float low = 0, high = 0, strange = 0;  // zero is one of the values, since the border has it
  void join(const Range& other) {
    low = std::min(low, other.low), high = std::max(high, other.high), strange += other.strange;
  }
  float step() const { return std::max(high / 254 - low / 254, 1e-30f); }  // of 254, so that both ends are in a byte's 256
  int zero() const { return _mm_cvtss_si32(_mm_set_ss(-low * (1 / step()))); }
};

// strange is 0, or no number where one of x isn't.
template <class T>
static Range range(const typename T::type* x, long n) {
  __m512 low = _mm512_setzero_ps(), high = low, strange = low;
  for (long j = 0; j < n; j += 16) {
    const __m512 some = T::load(x + j, lanes(j, n));
    low = _mm512_min_ps(low, some), high = _mm512_max_ps(high, some);
    strange = _mm512_fmadd_ps(some, _mm512_setzero_ps(), strange);
  }
  return {_mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high), _mm512_reduce_add_ps(strange)};
}

template <class T, class Product>
static void convolve(const typename T::type* x, const word* weight, const float* scale, const int* sums,
                     const typename T::type* bias, typename T::type* out, const Int8Convolution& s, int threads) {
  // three pixels of a row, one after the other, are a third of what a sum is of
  const long row = s.width * s.channels, wide = row + 2 * s.channels, k = 3 * s.channels / 4;
  const long panels = (s.out_channels + COLUMNS - 1) / COLUMNS;
  const long band = std::max(BAND / s.width, 1L), bands = (s.height + band - 1) / band;
  uint8_t* bytes = (uint8_t*)scratch((s.batch * (s.height + 2) * wide + Product::beyond * s.channels + 3) / 4);
  Range* ranges = new Range[s.batch * (s.height + 1)];  // of the pictures, then of their rows
  Range* of_row = ranges + s.batch;
#pragma omp parallel num_threads(threads)
  {
    [[maybe_unused]] typename Product::State state;
    alignas(64) int made[Product::rows * COLUMNS];
#pragma omp for
    for (long i = 0; i < s.batch * s.height; i++) of_row[i] = range<T>(x + i * row, row);
#pragma omp for
    for (long i = 0; i < s.batch; i++)
      for (long y = 0; y < s.height; y++) ranges[i].join(of_row[i * s.height + y]);
#pragma omp for
    for (long i = 0; i < s.batch * (s.height + 2); i++) {
      const long picture = i / (s.height + 2), y = i % (s.height + 2) - 1;
      const Range& in = ranges[picture];
      memset(bytes + i * wide, in.zero(), wide);
      if (y >= 0 && y < s.height)
        whole<T>(x + (picture * s.height + y) * row, bytes + i * wide + s.channels, row, 1 / in.step(), in.zero());
    }
#pragma omp for schedule(dynamic)
    for (long task = 0; task < panels * s.batch * bands; task++) {  // a band of rows and a panel, the same one for long
      const long first = task / (s.batch * bands) * COLUMNS, picture = task / bands % s.batch, top = task % bands * band;
      const Range& in = ranges[picture];
      const int zero = in.zero();
      const float step = in.step() + in.strange;
      for (long y = top; y < std::min(top + band, s.height); y++) {
        const word* from = (const word*)(bytes + (picture * (s.height + 2) + y) * wide);
        long tiles = (s.width + Product::rows - 1) / Product::rows;  // that are left in the row, as even as can be
        for (long i = 0, r; i < s.width; i += r, tiles--) {
          r = (s.width - i + tiles - 1) / tiles;
          Product::sum(r, from + i * s.channels / 4, s.channels / 4, weight + first * 3 * k, k, 3, wide / 4, made);
          for (long c = first; c < std::min(s.out_channels, first + COLUMNS); c += 16) {
            const __mmask16 mask = lanes(c, s.out_channels);
            const Channels<T> means(scale, sums, bias, c, mask, zero);
            for (long j = 0; j < r; j++)
              T::store(out + (((picture * s.height + y) * s.width) + i + j) * s.out_channels + c, mask,
                       means.of(made + j * COLUMNS + c - first, step));
          }
        }
      }
    }
  }
  std::free(bytes), delete[] ranges;
}

// x (batch, height, width, channels), channels a multiple of 4. weight: panels of 64 channels, 9 channels / 4 x 64 words of
// four bytes each. scale, sums: of each channel's weights. bias (out_channels) or null, out (batch, height, width,
// out_channels). Sums of 9 channels products of at most 254 x 127 fit into 31 bits up to 7,396 channels; what they are
// raised by until zero's part is taken away may run over, and back again. AMX needs
// channels to be a multiple of 64.
#define CONVOLUTION(name, T, Product)                                                                              \
  extern "C" void name(const T::type* x, const word* weight, const float* scale, const int* sums, const T::type* bias, \
                       T::type* out, const Int8Convolution* shape, int threads) {                                   \
    convolve<T, Product>(x, weight, scale, sums, bias, out, *shape, threads);                                       \
  }
CONVOLUTION(convolve_int8_float32, Float, Vectors)
CONVOLUTION(convolve_int8_bfloat16, BFloat16, Vectors)
#ifdef __AMX_BF16__
CONVOLUTION(convolve_int8_amx_float32, Float, Tiles)
CONVOLUTION(convolve_int8_amx_bfloat16, BFloat16, Tiles)
#endif
