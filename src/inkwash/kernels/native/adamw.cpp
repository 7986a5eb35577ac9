// A step of AdamW (Loshchilov and Hutter 2019), with what comes before and after it, in one pass over memory: gradients
// are scaled, as clipping does, and averages of the weights are moved.
#include <algorithm>
#include <vector>

#include "tile.h"

constexpr long CHUNK = 1 << 14;  // weights that a thread takes at a time

struct Rates {
  double scale, kept, beta1, beta2, size, root, eps, share;
};

// Of `count` tensors of `sizes` numbers each: weights, gradients, means, means of squares, and averages or null.
extern "C" void adamw(float* const* weights, const float* const* grads, float* const* means, float* const* squares,
                      float* const* averages, const long* sizes, long count, const Rates* rates, int threads) {
  std::vector<long> ends(count);  // in chunks
  for (long i = 0; i < count; i++) ends[i] = (i ? ends[i - 1] : 0) + (sizes[i] + CHUNK - 1) / CHUNK;
  const auto all = [](double x) { return _mm512_set1_ps(x); };
  const Rates& r = *rates;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long task = 0; task < (count ? ends.back() : 0); task++) {
    const long i = std::upper_bound(ends.begin(), ends.end(), task) - ends.begin();
    const long begin = (task - (i ? ends[i - 1] : 0)) * CHUNK, end = std::min(begin + CHUNK, sizes[i]);
    for (long at = begin; at < end; at += 16) {
      const __mmask16 mask = lanes(at, end);
      const __m512 g = Float::load(grads[i] + at, mask) * all(r.scale);
      __m512 w = Float::load(weights[i] + at, mask) * all(r.kept), m = Float::load(means[i] + at, mask);
      m = _mm512_fmadd_ps(g - m, all(1 - r.beta1), m);
      const __m512 v = _mm512_fmadd_ps(g * g, all(1 - r.beta2), Float::load(squares[i] + at, mask) * all(r.beta2));
      w = w - m * all(r.size) / _mm512_fmadd_ps(_mm512_sqrt_ps(v), all(r.root), all(r.eps));
      Float::store(weights[i] + at, mask, w);
      Float::store(means[i] + at, mask, m), Float::store(squares[i] + at, mask, v);
      if (averages[i]) {
        const __m512 a = Float::load(averages[i] + at, mask);
        Float::store(averages[i] + at, mask, _mm512_fmadd_ps(w - a, all(r.share), a));
      }
    }
  }
}
