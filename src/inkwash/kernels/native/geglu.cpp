// x * gelu(gate) of (rows, 2n): x lies before its gate. In float32 inside, rounded once.
#include "gelu.h"

extern "C" void geglu_bfloat16(const uint16_t* in, uint16_t* out, long rows, long n, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long i = 0; i < rows; i++)
    for (long j = 0; j < n; j += 16) {
      const __mmask16 mask = lanes(j, n);
      const __m512 x = BFloat16::load(in + 2 * i * n + j, mask), gate = BFloat16::load(in + (2 * i + 1) * n + j, mask);
      BFloat16::store(out + i * n + j, mask, x * gelu(gate));
    }
}

// The gradients of both halves of `in` by that of the result.
extern "C" void geglu_gradient_bfloat16(const uint16_t* in, const uint16_t* grad, uint16_t* out, long rows, long n,
                                        int threads) {
  const __m512 half = _mm512_set1_ps(0.5f);
#pragma omp parallel for num_threads(threads)
  for (long i = 0; i < rows; i++)
    for (long j = 0; j < n; j += 16) {
      const __mmask16 mask = lanes(j, n);
      const __m512 x = BFloat16::load(in + 2 * i * n + j, mask), gate = BFloat16::load(in + (2 * i + 1) * n + j, mask);
      const __m512 by = BFloat16::load(grad + i * n + j, mask);
      const __m512 share = _mm512_fmadd_ps(erf(gate * _mm512_set1_ps(0.70710678f)), half, half);
      const __m512 density = _mm512_set1_ps(0.39894228f) * exp2(gate * gate * _mm512_set1_ps(-0.72134752f));
      BFloat16::store(out + 2 * i * n + j, mask, by * gate * share);
      BFloat16::store(out + (2 * i + 1) * n + j, mask, by * x * _mm512_fmadd_ps(gate, density, share));
    }
}
