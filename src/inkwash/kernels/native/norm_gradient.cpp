// The gradients of GroupNorm and of the SiLU after it: a pass for their sums, one for the gradient by x. Both compute
// again what SiLU saw, which takes less than reading it.
#include "norm.h"

// What is constant of sixteen channels of a picture, and the gradient before the activation.
template <class T>
struct Channels {
  __m512 mean, scale, weight, bias;
  __mmask16 mask;
  bool silu;

  Channels(const float* stats, const float* w, const float* b, long c, const Sizes& s)
      : mask(lanes(c, s.channels)), silu(s.silu) {
    const __m512i width = _mm512_set1_epi32(s.channels / s.groups);
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    // whole numbers far below 2^24, whose quotients float32 rounds to the right side after adding a half
    const __m512 at = _mm512_cvtepi32_ps(_mm512_add_epi32(lane, _mm512_set1_epi32(c))) + _mm512_set1_ps(0.5f);
    const __m512i group = _mm512_cvttps_epi32(at / _mm512_cvtepi32_ps(width));
    mean = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, group, stats, 8);
    scale = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, group, stats + 1, 8);
    weight = _mm512_maskz_loadu_ps(mask, w + c), bias = _mm512_maskz_loadu_ps(mask, b + c);
  }
  __m512 normed(const typename T::type* x) const { return (T::load(x, mask) - mean) * scale; }
  __m512 before(const typename T::type* grad, __m512 normed) const {
    const __m512 by = T::load(grad, mask);
    if (!silu) return by;
    const __m512 y = _mm512_fmadd_ps(normed, weight, bias), share = sigmoid<T>(y);
    return by * share * _mm512_fmadd_ps(y, _mm512_set1_ps(1) - share, _mm512_set1_ps(1));
  }
};

template <class T, class type = typename T::type>
static void gradient(const type* x, const float* weight, const float* bias, const float* stats, const type* grad,
                     type* out, float* weight_grad, float* bias_grad, const Sizes& s, int threads) {
  const long pixels = s.pixels, channels = s.channels, chunks = (pixels + CHUNK - 1) / CHUNK, width = channels / s.groups;
  std::vector<float> sums(s.batch * chunks * 2 * channels);  // of the gradients, and of them times what is normed
  std::vector<float> means(s.batch * 2 * channels);          // of both over a group, times the scale
  by_picture(s.batch, threads, [&](long begin, long end, int threads) {
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
      for (long task = begin * chunks; task < end * chunks; task++) {
        const long b = task / chunks, first = b * pixels + task % chunks * CHUNK;
        const long last = std::min(first + CHUNK, (b + 1) * pixels);
        for (long c = 0; c < channels; c += 32) {  // a line of memory at a time
          const Channels<T> here[2] = {{stats + 2 * b * s.groups, weight, bias, c, s},
                                       {stats + 2 * b * s.groups, weight, bias, c + 16, s}};
          __m512 sum[2] = {}, product[2] = {};
          for (long p = first; p < last; p++)
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) {
              const long at = p * channels + c + 16 * j;
              const __m512 normed = here[j].normed(x + at), before = here[j].before(grad + at, normed);
              sum[j] = sum[j] + before;
              product[j] = _mm512_fmadd_ps(before, normed, product[j]);
            }
          for (int j = 0; j < 2; j++) {
            _mm512_mask_storeu_ps(sums.data() + 2 * task * channels + c + 16 * j, here[j].mask, sum[j]);
            _mm512_mask_storeu_ps(sums.data() + (2 * task + 1) * channels + c + 16 * j, here[j].mask, product[j]);
          }
        }
      }
#pragma omp for
      for (long task = begin * s.groups; task < end * s.groups; task++) {
        const long b = task / s.groups, c0 = task % s.groups * width;
        for (long which = 0; which < 2; which++) {
          double sum = 0;
          for (long i = 0; i < chunks; i++)
            for (long c = c0; c < c0 + width; c++) sum += sums[(2 * (b * chunks + i) + which) * channels + c] * weight[c];
          const float mean = sum / (pixels * width) * stats[2 * task + 1];
          std::fill_n(means.data() + (2 * b + which) * channels + c0, width, mean);
        }
      }
#pragma omp for
      for (long task = begin * chunks; task < end * chunks; task++) {
        const long b = task / chunks, first = b * pixels + task % chunks * CHUNK;
        const long last = std::min(first + CHUNK, (b + 1) * pixels);
        for (long c = 0; c < channels; c += 32)
          for (long half = c; half < std::min(c + 32, channels); half += 16) {
            const Channels<T> here(stats + 2 * b * s.groups, weight, bias, half, s);
            const __m512 mean = _mm512_maskz_loadu_ps(here.mask, means.data() + 2 * b * channels + half);
            const __m512 slope = _mm512_maskz_loadu_ps(here.mask, means.data() + (2 * b + 1) * channels + half);
            const __m512 scale = here.scale * here.weight;
            for (long p = first; p < last; p++) {
              const long at = p * channels + half;
              const __m512 normed = here.normed(x + at), before = here.before(grad + at, normed);
              T::store(out + at, here.mask, _mm512_fnmadd_ps(normed, slope, _mm512_fmsub_ps(before, scale, mean)));
            }
          }
      }
    }
  });
#pragma omp parallel for num_threads(threads)
  for (long c = 0; c < channels; c += 16) {
    const __mmask16 mask = lanes(c, channels);
    __m512 of_bias = _mm512_setzero_ps(), of_weight = _mm512_setzero_ps();
    for (long i = 0; i < s.batch * chunks; i++) {
      of_bias = of_bias + _mm512_maskz_loadu_ps(mask, sums.data() + 2 * i * channels + c);
      of_weight = of_weight + _mm512_maskz_loadu_ps(mask, sums.data() + (2 * i + 1) * channels + c);
    }
    _mm512_mask_storeu_ps(bias_grad + c, mask, of_bias), _mm512_mask_storeu_ps(weight_grad + c, mask, of_weight);
  }
}

// x, grad and out (batch, pixels, channels), weight, bias and their gradients (channels), stats as norm.cpp gives them.
#define GRADIENT(name, T)                                                                                                \
  extern "C" void name(const T::type* x, const float* weight, const float* bias, const float* stats, const T::type* grad, \
                       T::type* out, float* weight_grad, float* bias_grad, const Sizes* sizes, int threads) {            \
    gradient<T>(x, weight, bias, stats, grad, out, weight_grad, bias_grad, *sizes, threads);                             \
  }
GRADIENT(norm_gradient_float32, Float)
GRADIENT(norm_gradient_bfloat16, BFloat16)
