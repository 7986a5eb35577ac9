// What GroupNorm and its gradient share.
#pragma once
#include <algorithm>
#include <vector>

#include "tile.h"

constexpr long CHUNK = 256;  // pixels whose sums are taken together: the same for any number of threads

struct Sizes {
  long batch, pixels, channels, groups, silu;
};

// 1 / (1 + e^-x): of bfloat16 to 2^-13, much less than the type's rounding.
template <class T>
static __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1), below = one + T::exp2(x * _mm512_set1_ps(-1.44269504f));
  if constexpr (T::per_word == 1) return one / below;
  return _mm512_rcp14_ps(below);
}

// `work(first, last, threads)` of pictures: each by one thread, which finds it in its cache again, where there are enough.
template <class Work>
static void by_picture(long batch, int threads, const Work& work) {
  if (batch < threads) return work(0, batch, threads);
#pragma omp parallel for num_threads(threads)
  for (long b = 0; b < batch; b++) work(b, b + 1, 1);
}
