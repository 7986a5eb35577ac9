// Convolutions and linear layers as one matrix product that reads the weights as they lie, so that nothing is packed
// but the pixels, a block at a time. The product is out^T (channels x pixels) = weight (channels x k) x^T (k x pixels).
#include <algorithm>

#include "amx.h"
#include "convolve.h"

// Pixels of a block: with AMX many, so that the weights, which then take longer to come than to multiply, come once.
template <class T>
constexpr long PIXELS = T::step > 1 ? 512 : 128;
template <class T>
constexpr long ROW = PIXELS<T> + (T::step > 1 ? 16 : 0);  // of sums; a power of two would crowd a few sets of the cache

constexpr long PANEL = 64;      // pixels that are packed side by side
constexpr long DEPTH = 160;     // words of k at a time: a panel stays in the first cache
constexpr long CHANNELS = 384;  // of a block at most

static const struct Ones {
  float each[CHANNELS];
  Ones() { std::fill_n(each, CHANNELS, 1.f); }
} ones;

template <class T>
static void block(const word* x, const word* w, const typename T::type* bias, const typename T::type* residual,
                  typename T::type* out, const Shape& s, long first, long channel, long num, float* sums, word* packed) {
  const long depth = s.channels / T::per_word, pixels = s.batch * s.out_height * s.out_width;
  const long k_all = s.kernel * s.kernel * depth;
  const long count = std::min(PIXELS<T>, pixels - first), padded = (count + 15) / 16 * 16;
  bool begun = false;
  for (long tap = 0; tap < s.kernel * s.kernel; tap++) {
    const word* from[PIXELS<T>] = {};  // of each pixel under this tap; none in the padding
    for (long i = 0; i < count; i++) {
      const long at = first + i, row = at / s.out_width % s.out_height;
      const long y = row * s.stride + tap / s.kernel - s.pad, column = at % s.out_width * s.stride + tap % s.kernel - s.pad;
      if (y >= 0 && y < s.height && column >= 0 && column < s.width)
        from[i] = x + ((at / (s.out_width * s.out_height) * s.height + y) * s.width + column) * depth;
    }
    for (long k = 0; k < depth; k += DEPTH, begun = true) {
      const long deep = std::min(DEPTH, depth - k);
      for (long p = 0; p < padded; p += PANEL) {
        const long vectors = std::min(PANEL, padded - p) / 16;
        for (long j = 0; j < vectors; j++) {
          const word* rows[16];
          for (long i = 0; i < 16; i++) rows[i] = from[p + 16 * j + i] ? from[p + 16 * j + i] + k : nullptr;
          pack(rows, deep, packed + 16 * j, 16 * vectors);
        }
        tiles<T>(vectors, num, w + channel * k_all + tap * depth + k, k_all, packed, deep, sums + p, ROW<T>,
                 begun ? ones.each : nullptr);
      }
    }
  }
  for (long c = 0; c < num; c += 16) {
    const __mmask16 mask = lanes(c, num);
    const __m512 offset = bias ? T::load(bias + channel + c, mask) : _mm512_setzero_ps();
    for (long p = 0; p < count; p += 16) {
      __m512i r[16];
#pragma GCC unroll 16
      for (long i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(sums + (c + i) * ROW<T> + p);
      transpose(r);
      for (long i = 0; i < 16 && p + i < count; i++) {
        const long at = (first + p + i) * s.out_channels + channel + c;
        __m512 y = _mm512_castsi512_ps(r[i]) + offset;
        if (residual) y = y + T::load(residual + at, mask);
        T::store(out + at, mask, y);
      }
    }
  }
}

template <class T>
static void convolve(const typename T::type* x, const typename T::type* w, const typename T::type* bias,
                     const typename T::type* residual, typename T::type* out, const Shape& s, int threads) {
  const long pixels = s.batch * s.out_height * s.out_width, blocks = (pixels + PIXELS<T> - 1) / PIXELS<T>;
  // several parts for each thread, unless that makes packing the greater work
  const long some = (T::step > 1 ? 2 : 4) * threads, wanted = std::min((some + blocks - 1) / blocks, (s.out_channels + 95) / 96);
  const long parts = std::max(wanted, (s.out_channels + CHANNELS - 1) / CHANNELS);
  const long num = ((s.out_channels + parts - 1) / parts + 15) / 16 * 16;
#pragma omp parallel num_threads(threads)
  {
    [[maybe_unused]] typename T::State state;
    float* sums = scratch((CHANNELS + 16) * ROW<T>);
    word* packed = (word*)scratch(DEPTH * PANEL);
#pragma omp for schedule(dynamic)
    for (long task = 0; task < blocks * parts; task++) {
      const long channel = task % parts * num;
      if (channel < s.out_channels)
        block<T>((const word*)x, (const word*)w, bias, residual, out, s, task / parts * PIXELS<T>, channel,
                 std::min(num, s.out_channels - channel), sums, packed);
    }
    std::free(sums), std::free(packed);
  }
}

// x (batch, height, width, channels), w (out_channels, kernel, kernel, channels), bias (out_channels) or null, residual
// (like out) or null, out (batch, out_height, out_width, out_channels). bfloat16 needs an even number of channels.
extern "C" void convolve_float32(const float* x, const float* w, const float* bias, const float* residual, float* out,
                                 const Shape* shape, int threads) {
  convolve<Float>(x, w, bias, residual, out, *shape, threads);
}
extern "C" void convolve_bfloat16(const uint16_t* x, const uint16_t* w, const uint16_t* bias, const uint16_t* residual,
                                  uint16_t* out, const Shape* shape, int threads) {
  convolve<BFloat16>(x, w, bias, residual, out, *shape, threads);
}
#ifdef __AMX_BF16__
// The same; channels is a multiple of 32, out_channels of 16.
extern "C" void convolve_amx(const uint16_t* x, const uint16_t* w, const uint16_t* bias, const uint16_t* residual,
                             uint16_t* out, const Shape* shape, int threads) {
  convolve<TiledBFloat16>(x, w, bias, residual, out, *shape, threads);
}
#endif
