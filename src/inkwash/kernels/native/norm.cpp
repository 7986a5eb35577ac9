// GroupNorm over channels_last pixels, then SiLU where wanted: one pass for the statistics, one for the result.
#include "norm.h"

#include <cmath>

// What x is counted from: of float32 the first pixel, so that nothing is lost of small differences about a large mean.
template <class T>
static __m512 start(const typename T::type* first, __mmask16 mask) {
  if constexpr (T::per_word == 1) return T::load(first, mask);
  return _mm512_setzero_ps();
}

template <class T, class type = typename T::type>
static void norm(const type* x, const float* weight, const float* bias, type* out, float* stats, const Sizes& s,
                 double eps, int threads) {
  const long pixels = s.pixels, channels = s.channels, chunks = (pixels + CHUNK - 1) / CHUNK, width = channels / s.groups;
  std::vector<float> sums(s.batch * chunks * 2 * channels);  // per chunk and channel, of x and of its squares
  std::vector<float> scales(s.batch * 2 * channels);         // out = scale * (x - its start) + offset
  by_picture(s.batch, threads, [&](long begin, long end, int threads) {
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
      for (long task = begin * chunks; task < end * chunks; task++) {
        const long first = task % chunks * CHUNK, last = std::min(first + CHUNK, pixels);
        const type* whole = x + task / chunks * pixels * channels;
        float* to = sums.data() + task * 2 * channels;
        for (long c = 0; c < channels; c += 64) {  // two lines of memory at a time
          __m512 sum[4] = {}, squares[4] = {}, from[4];
          for (int j = 0; j < 4; j++) from[j] = start<T>(whole + c + 16 * j, lanes(c + 16 * j, channels));
          for (long p = first; p < last; p++)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
              const __m512 value = T::load(whole + p * channels + c + 16 * j, lanes(c + 16 * j, channels)) - from[j];
              sum[j] = sum[j] + value;
              squares[j] = _mm512_fmadd_ps(value, value, squares[j]);
            }
          for (int j = 0; j < 4; j++) {
            const __mmask16 mask = lanes(c + 16 * j, channels);
            _mm512_mask_storeu_ps(to + c + 16 * j, mask, sum[j]);
            _mm512_mask_storeu_ps(to + channels + c + 16 * j, mask, squares[j]);
          }
        }
      }
#pragma omp for
      for (long task = begin * s.groups; task < end * s.groups; task++) {
        const long b = task / s.groups, c0 = task % s.groups * width;
        const auto origin = [&](long c) { return _mm512_cvtss_f32(start<T>(x + b * pixels * channels + c, 1)); };
        double sum = 0, squares = 0;
        for (long c = c0; c < c0 + width; c++) {
          const double from = origin(c);
          double from_start = 0;
          for (long i = 0; i < chunks; i++) {
            from_start += sums[(b * chunks + i) * 2 * channels + c];
            squares += sums[((b * chunks + i) * 2 + 1) * channels + c];
          }
          sum += from_start + pixels * from;
          squares += 2 * from * from_start + pixels * from * from;
        }
        const double mean = sum / (pixels * width), variance = std::max(squares / (pixels * width) - mean * mean, 0.);
        const double scale = 1 / std::sqrt(variance + eps);
        if (stats) stats[2 * task] = mean, stats[2 * task + 1] = scale;
        for (long c = c0; c < c0 + width; c++) {
          scales[2 * b * channels + c] = scale * weight[c];
          scales[(2 * b + 1) * channels + c] = bias[c] - (mean - origin(c)) * scale * weight[c];
        }
      }
#pragma omp for
      for (long row = begin * pixels; row < end * pixels; row++) {
        const float* scale = scales.data() + row / pixels * 2 * channels;
        const type* first = x + row / pixels * pixels * channels;
        for (long c = 0; c < channels; c += 16) {
          const __mmask16 mask = lanes(c, channels);
          __m512 y = T::load(x + row * channels + c, mask) - start<T>(first + c, mask);
          y = _mm512_fmadd_ps(y, _mm512_maskz_loadu_ps(mask, scale + c), _mm512_maskz_loadu_ps(mask, scale + channels + c));
          if (s.silu) y = y * sigmoid<T>(y);
          T::store(out + row * channels + c, mask, y);
        }
      }
    }
  });
}

// x and out (batch, pixels, channels), weight and bias (channels), stats (batch, groups, 2) or null: means, and what
// centred values are multiplied by.
#define NORM(name, T)                                                                                                    \
  extern "C" void name(const T::type* x, const float* weight, const float* bias, T::type* out, float* stats,             \
                       const Sizes* sizes, double eps, int threads) {                                                    \
    norm<T>(x, weight, bias, out, stats, *sizes, eps, threads);                                                          \
  }
NORM(norm_float32, Float)
NORM(norm_bfloat16, BFloat16)
