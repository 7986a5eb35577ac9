// Activations of transformers.
#pragma once
#include "tile.h"

// erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26)
static inline __m512 erf(__m512 x) {
  const __m512 positive = _mm512_abs_ps(x), one = _mm512_set1_ps(1);
  const __m512 t = one / _mm512_fmadd_ps(_mm512_set1_ps(0.3275911f), positive, one);
  __m512 y = _mm512_set1_ps(1.061405429f);
#pragma GCC unroll 8
  for (float term : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(term));
  y = one - y * t * exp2(x * x * _mm512_set1_ps(-1.44269504f));
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(y), _mm512_castps_si512(x),
                                                       _mm512_set1_epi32(1 << 31), 0xd8));  // y with x's sign
}

static inline __m512 gelu(__m512 x) {
  return x * _mm512_set1_ps(0.5f) * (_mm512_set1_ps(1) + erf(x * _mm512_set1_ps(0.70710678f)));
}

// x sigmoid(1.702 x), as CLIP has it
static inline __m512 quick_gelu(__m512 x) {
  return x / (_mm512_set1_ps(1) + exp2(x * _mm512_set1_ps(-1.702f * 1.44269504f)));
}
