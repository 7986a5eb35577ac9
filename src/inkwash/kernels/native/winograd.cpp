// 3 x 3 convolutions in bfloat16 with fewer products, and their gradients (Lavin and Gray 2016, F(2x2, 3x3)): a tile of
// 2 x 2 pixels takes 16 products instead of 36, or 9 where what is convolved, or what is made, has every pixel double.
// Forward: out = A^T [(G w G^T) . (B^T x B)] A for each pair of channels. By x it is the same of the turned weights,
// and by the weights G^T [(B^T x B) . (A grad A^T)] G.
#include <algorithm>

#include "tile.h"

constexpr long PANEL = 64;        // channels side by side
constexpr long TILES = 48;        // of a block, whose transform stays in the second cache
constexpr long PAIRS = 64;        // of tiles of a block of the weights' gradient

using type = uint16_t;

struct Winograd {
  long batch, height, width, channels, out_channels;  // pixels of the result, before halving
  long doubled, halved;  // x is read as if each pixel were 2 x 2; out is the sum of each 2 x 2
  long turned;           // weights are (channels, 3, 3, out_channels), and turned round
  long rows() const { return (height + 1) / 2; }
  long columns() const { return (width + 1) / 2; }
  long tiles() const { return batch * rows() * columns(); }
  long products() const { return doubled || halved ? 3 : 4; }  // a dimension
  long vectors(long panel) const { return (std::min(PANEL, out_channels - panel) + 15) / 16; }  // that begins at this channel
};

// The products of a dimension that are not left out as zero.
template <int N>
static constexpr int which(int i) { return N == 3 && i == 2 ? 3 : i; }

static inline void of_input(__m512 d[4], long step) {  // B^T
  const __m512 a = d[0] - d[2 * step], b = d[step] + d[2 * step], c = d[2 * step] - d[step], e = d[step] - d[3 * step];
  d[0] = a, d[step] = b, d[2 * step] = c, d[3 * step] = e;
}
static inline void of_weights(const __m512 w[3], long step, __m512* u, long to) {  // G
  const __m512 half = _mm512_set1_ps(0.5f), outer = (w[0] + w[2 * step]) * half, inner = w[step] * half;
  u[0] = w[0], u[to] = outer + inner, u[2 * to] = outer - inner, u[3 * to] = w[2 * step];
}

// The 4 x 4 pixels under a tile, of (height, width) ones that begin a row and a column before it; those outside are zeros.
static inline void patch(const type* x, const Winograd& s, long tile, const type* zeros, const type* at[16]) {
  const long half = s.doubled ? 2 : 1, height = s.height / half, width = s.width / half;
  const long b = tile / (s.rows() * s.columns()), row = tile / s.columns() % s.rows(), column = tile % s.columns();
  for (long i = 0; i < 4; i++)
    for (long j = 0; j < 4; j++) {
      const long y = 2 * row - 1 + i, z = 2 * column - 1 + j;
      const bool inside = y >= 0 && z >= 0 && y < s.height && z < s.width;
      at[4 * i + j] = inside ? x + ((b * height + y / half) * width + z / half) * s.channels : zeros;
    }
}

static inline void transformed(const type* const at[16], long c, __mmask16 mask, __m512 d[16]) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) d[i] = BFloat16::load(at[i] + c, mask);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) of_input(d + i, 4);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) of_input(d + 4 * i, 1);
}

// Two vectors as one of pairs, the first in the lower halves.
static inline __m512i paired(__m512 even, __m512 odd) {
  alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

template <class W>
static inline void weights_of(const typename W::type* w, long channels, __mmask16 mask, __m512 u[16]) {
  __m512 taps[9], half[12];
#pragma GCC unroll 9
  for (int i = 0; i < 9; i++) taps[i] = W::load(w + i * channels, mask);
#pragma GCC unroll 3
  for (int i = 0; i < 3; i++) of_weights(taps + i, 3, half + i, 3);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) of_weights(half + 3 * i, 1, u + 4 * i, 1);
}

// Sixteen output channels of the weights in their panel, as what `tile` takes as b: product, pairs of channels, output channels.
template <class W, int N>
static void pack_weights(const typename W::type* w, const Winograd& s, long first, word* panel) {
  const long depth = s.channels / 2, wide = 16 * s.vectors(first - first % PANEL);
  word* to = panel + first % PANEL;
  const auto at = [&](int i, int j) { return to + (i * N + j) * depth * wide; };
  if (s.turned) {
    const __mmask16 mask = lanes(first, s.out_channels);
    for (long k = 0; k < depth; k++) {
      __m512 even[16], odd[16];
      weights_of<W>(w + 2 * k * 9 * s.out_channels + first, s.out_channels, mask, even);
      weights_of<W>(w + (2 * k + 1) * 9 * s.out_channels + first, s.out_channels, mask, odd);
#pragma GCC unroll 4
      for (int i = 0; i < N; i++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) {  // turned round, the first and the last product change places
          constexpr int turned[4] = {3, 1, 2, 0};
          const int from = 4 * turned[which<N>(i)] + turned[which<N>(j)];
          _mm512_storeu_si512(at(i, j) + k * wide, paired(even[from], odd[from]));
        }
    }
    return;
  }
  for (long c = 0; c < s.channels; c += 32) {
    alignas(64) word rows[N * N][16][16];
    for (long o = 0; o < 16; o++) {
      __m512 low[16] = {}, high[16] = {};
      if (first + o < s.out_channels) {
        const auto* from = w + (first + o) * 9 * s.channels + c;
        weights_of<W>(from, s.channels, lanes(c, s.channels), low);
        weights_of<W>(from + 16, s.channels, lanes(c + 16, s.channels), high);
      }
#pragma GCC unroll 4
      for (int i = 0; i < N; i++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) {
          const int from = 4 * which<N>(i) + which<N>(j);
          _mm512_store_si512(rows[i * N + j][o], (__m512i)_mm512_cvtne2ps_pbh(high[from], low[from]));
        }
    }
    for (int i = 0; i < N * N; i++) {
      __m512i r[16];
#pragma GCC unroll 16
      for (int o = 0; o < 16; o++) r[o] = _mm512_load_si512(rows[i][o]);
      transpose(r);
      for (long k = c / 2; k < std::min(c / 2 + 16, depth); k++) _mm512_storeu_si512(at(i / N, i % N) + k * wide, r[k - c / 2]);
    }
  }
}

// A^T m A of a tile, or the sum of its pixels.
template <int N>
static void finish(const float* sums, long ld, __m512 bias, __mmask16 mask, type* const out[4], bool halved) {
  __m512 m[4][4], t[2][4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++)
      m[i][j] = N == 3 && (i == 2 || j == 2) ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + (std::min(i, N - 1) * N + std::min(j, N - 1)) * ld);
  if (halved) {
    const auto sum = [](__m512 a, __m512 b, __m512 c) { return a + b + b - c; };
    __m512 row[4];
    for (int i : {0, 1, 3}) row[i] = sum(m[i][0], m[i][1], m[i][3]);
    BFloat16::store(out[0], mask, sum(row[0], row[1], row[3]));
    return;
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) t[0][j] = m[0][j] + m[1][j] + m[2][j], t[1][j] = m[1][j] - m[2][j] - m[3][j];
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    if (out[2 * i]) BFloat16::store(out[2 * i], mask, t[i][0] + t[i][1] + t[i][2] + bias);
    if (out[2 * i + 1]) BFloat16::store(out[2 * i + 1], mask, t[i][1] - t[i][2] - t[i][3] + bias);
  }
}

// What the products take of a block of tiles: product, tile, channel.
template <int N>
static void see(const type* x, const Winograd& s, long first, long num, const type* zeros, type* seen) {
  for (long t = 0; t < num; t++) {
    const type* at[16];
    patch(x, s, first + t, zeros, at);
    for (long c = 0; c < s.channels; c += 16) {
      __m512 d[16];
      const __mmask16 mask = lanes(c, s.channels);
      transformed(at, c, mask, d);
#pragma GCC unroll 4
      for (int i = 0; i < N; i++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++)
          BFloat16::store(seen + ((i * N + j) * num + t) * s.channels + c, mask, d[4 * which<N>(i) + which<N>(j)]);
    }
  }
}

// The result's panel of channels that begins at o, of a block of tiles.
template <int N>
static void make(const type* seen, const word* weights, const float* bias, type* out, const Winograd& s, long o, long first,
                 long num, float* sums) {
  const long depth = s.channels / 2, vectors = s.vectors(o);
  for (int i = 0; i < N * N; i++)
    tiles<BFloat16>(vectors, num, (const word*)seen + i * num * depth, depth, weights + i * depth * 16 * vectors, depth,
                    sums + i * num * PANEL, PANEL, nullptr);
  for (long t = 0; t < num; t++) {
    const long tile = first + t, b = tile / (s.rows() * s.columns());
    const long row = tile / s.columns() % s.rows(), column = tile % s.columns();
    for (long c = o; c < std::min(o + PANEL, s.out_channels); c += 16) {
      type* to[4] = {};
      if (s.halved)
        to[0] = out + tile * s.out_channels + c;
      else
        for (long i = 0; i < 4; i++) {
          const long y = 2 * row + i / 2, z = 2 * column + i % 2;
          if (y < s.height && z < s.width) to[i] = out + ((b * s.height + y) * s.width + z) * s.out_channels + c;
        }
      const __mmask16 mask = lanes(c, s.out_channels);
      finish<N>(sums + t * PANEL + c - o, num * PANEL, bias ? _mm512_maskz_loadu_ps(mask, bias + c) : _mm512_setzero_ps(), mask,
                to, s.halved);
    }
  }
}

// The larger of both sides is gone through once, in pieces that the caches hold: what is seen, or the weights. Each sum is
// the same either way.
template <class W, int N>
static void convolve(const type* x, const typename W::type* w, const float* bias, type* out, const Winograd& s, int threads) {
  const long depth = s.channels / 2, panels = (s.out_channels + PANEL - 1) / PANEL, size = N * N * depth * PANEL;
  const long even = (s.tiles() + 3 * threads - 1) / (3 * threads);  // several blocks for each thread
  const long each = std::min(TILES, (even + ROWS - 1) / ROWS * ROWS);
  const bool by_panels = s.tiles() < s.out_channels && panels >= threads;
  const auto num = [&](long first) { return std::min(each, s.tiles() - first); };
  word* weights = by_panels ? nullptr : (word*)scratch(panels * size);
  type* all = by_panels ? (type*)scratch(N * N * s.tiles() * depth) : nullptr;
#pragma omp parallel num_threads(threads)
  {
    type *zeros = (type*)scratch(s.channels), *seen = by_panels ? nullptr : (type*)scratch(N * N * each * depth);
    word* panel = by_panels ? (word*)scratch(size) : nullptr;
    float* sums = scratch(N * N * each * PANEL);
    std::memset(zeros, 0, s.channels * sizeof(type));
    if (by_panels) {
#pragma omp for schedule(dynamic)
      for (long first = 0; first < s.tiles(); first += each) see<N>(x, s, first, num(first), zeros, all + N * N * first * s.channels);
#pragma omp for schedule(dynamic)
      for (long o = 0; o < s.out_channels; o += PANEL) {
        for (long c = o; c < std::min(o + PANEL, s.out_channels); c += 16) pack_weights<W, N>(w, s, c, panel);
        for (long first = 0; first < s.tiles(); first += each)
          make<N>(all + N * N * first * s.channels, panel, bias, out, s, o, first, num(first), sums);
      }
    } else {
#pragma omp for
      for (long o = 0; o < s.out_channels; o += 16) pack_weights<W, N>(w, s, o, weights + o / PANEL * size);
#pragma omp for schedule(dynamic)
      for (long first = 0; first < s.tiles(); first += each) {
        see<N>(x, s, first, num(first), zeros, seen);
        for (long o = 0; o < s.out_channels; o += PANEL)
          make<N>(seen, weights + o / PANEL * size, bias, out, s, o, first, num(first), sums);
      }
    }
    for (void* some : {(void*)zeros, (void*)seen, (void*)panel, (void*)sums}) std::free(some);
  }
  std::free(weights), std::free(all);
}

// x (batch, height, width, channels), w (out_channels, 3, 3, channels) of float32 or bfloat16, bias (out_channels) or null,
// out (batch, height, width, out_channels). Both numbers of channels are even; `Winograd` says what changes.
#define CONVOLVE(name, W)                                                                                                 \
  extern "C" void name(const type* x, const W::type* w, const float* bias, type* out, const Winograd* s, int threads) {    \
    (s->products() == 3 ? convolve<W, 3> : convolve<W, 4>)(x, w, bias, out, *s, threads);                                  \
  }
CONVOLVE(winograd_float32, Float)
CONVOLVE(winograd_bfloat16, BFloat16)

// Of the weights' gradient: a pair of tiles, transformed, in panels of channels; of each product its own.
struct Panels {
  word* words;
  long channels, wide;  // rounded up to vectors

  Panels(long channels, long products) : channels(channels), wide((channels + 15) / 16 * 16) {
    words = (word*)scratch(products * PAIRS * wide);
  }
  long vectors(long panel) const { return std::min(PANEL, wide - panel * PANEL) / 16; }
  word* at(long product, long panel) const { return words + (product * wide + panel * PANEL) * PAIRS; }
};

template <int N, class Transform>
static void pack_tiles(const Panels& p, long pair, const Transform& transform) {
  for (long c = 0; c < p.channels; c += 16) {
    __m512 even[16], odd[16];
    transform(0, c, even), transform(1, c, odd);
    const long panel = c / PANEL, at = pair * 16 * p.vectors(panel) + c % PANEL;
#pragma GCC unroll 4
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
      for (int j = 0; j < N; j++) {
        const int from = 4 * which<N>(i) + which<N>(j);
        _mm512_storeu_si512(p.at(i * N + j, panel) + at, paired(even[from], odd[from]));
      }
  }
}

// A grad A^T of a tile
static inline void of_gradient(const type* const at[4], long c, __mmask16 mask, __m512 u[16]) {
  const auto spread = [](__m512 a, __m512 b, __m512* to, long step) {
    to[0] = a, to[step] = a + b, to[2 * step] = a - b, to[3 * step] = _mm512_setzero_ps() - b;
  };
  __m512 half[8];
#pragma GCC unroll 2
  for (int j = 0; j < 2; j++) spread(BFloat16::load(at[j] + c, mask), BFloat16::load(at[2 + j] + c, mask), half + j, 2);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) spread(half[2 * i], half[2 * i + 1], u + 4 * i, 1);
}

static inline void pixels(const type* grad, const Winograd& s, long tile, const type* zeros, const type* at[4]) {
  const long b = tile / (s.rows() * s.columns()), row = tile / s.columns() % s.rows(), column = tile % s.columns();
  for (long i = 0; i < 4; i++) {
    const long y = 2 * row + i / 2, z = 2 * column + i % 2;
    const bool inside = y < s.height && z < s.width;
    at[i] = inside ? grad + ((b * s.height + y) * s.width + z) * s.out_channels : zeros;
  }
}

template <int N>
static void weights_gradient(const type* x, const type* grad, float* out, const Winograd& s, int threads) {
  const Panels seen(s.channels, N * N), taught(s.out_channels, N * N);
  const long panels = (seen.wide + PANEL - 1) / PANEL, parts = (taught.wide + PANEL - 1) / PANEL;
  float* sums = scratch(N * N * s.out_channels * seen.wide);
  const long widest = std::max(s.channels, s.out_channels);
  type* zeros = (type*)scratch(widest);
  std::memset(zeros, 0, widest * sizeof(type));
  float ones[PANEL];
  std::fill_n(ones, PANEL, 1.f);
#pragma omp parallel num_threads(threads)
  {
    for (long first = 0; first < s.tiles(); first += 2 * PAIRS) {
      const long pairs = std::min(PAIRS, (s.tiles() - first + 1) / 2);
#pragma omp for
      for (long p = 0; p < pairs; p++) {
        const type *from[2][16], *by[2][4];
        for (long i = 0; i < 2; i++) {
          const long tile = first + 2 * p + i;
          if (tile < s.tiles())
            patch(x, s, tile, zeros, from[i]), pixels(grad, s, tile, zeros, by[i]);
          else
            std::fill_n(from[i], 16, zeros), std::fill_n(by[i], 4, zeros);
        }
        pack_tiles<N>(seen, p, [&](int i, long c, __m512* to) { transformed(from[i], c, lanes(c, s.channels), to); });
        pack_tiles<N>(taught, p, [&](int i, long c, __m512* to) { of_gradient(by[i], c, lanes(c, s.out_channels), to); });
      }
#pragma omp for schedule(dynamic)
      for (long task = 0; task < N * N * panels * parts; task++) {
        const long product = task / (panels * parts), panel = task / parts % panels, part = task % parts;
        const long rows = std::min(PANEL, s.out_channels - part * PANEL);
        tiles<BFloat16, true>(seen.vectors(panel), rows, taught.at(product, part), 16 * taught.vectors(part),
                              seen.at(product, panel), pairs,
                              sums + (product * s.out_channels + part * PANEL) * seen.wide + panel * PANEL, seen.wide,
                              first ? ones : nullptr);
      }
    }
#pragma omp for
    for (long o = 0; o < s.out_channels; o++)
      for (long c = 0; c < s.channels; c += 16) {
        const __m512 half = _mm512_set1_ps(0.5f);
        const auto gathered = [&](const __m512 u[4], __m512* to, long step) {  // G^T
          const __m512 both = (u[1] + u[2]) * half;
          to[0] = u[0] + both, to[step] = (u[1] - u[2]) * half, to[2 * step] = both + u[3];
        };
        __m512 rows[3][4], taps[9];
        for (int j = 0; j < 4; j++) {
          __m512 u[4], made[3];
          for (int i = 0; i < 4; i++)
            u[i] = N == 3 && (i == 2 || j == 2)
                       ? _mm512_setzero_ps()
                       : _mm512_loadu_ps(sums + ((std::min(i, N - 1) * N + std::min(j, N - 1)) * s.out_channels + o) * seen.wide + c);
          gathered(u, made, 1);
          for (int i = 0; i < 3; i++) rows[i][j] = made[i];
        }
        for (int i = 0; i < 3; i++) gathered(rows[i], taps + 3 * i, 1);
        for (int i = 0; i < 9; i++) _mm512_mask_storeu_ps(out + (o * 9 + i) * s.channels + c, lanes(c, s.channels), taps[i]);
      }
  }
  for (void* some : {(void*)seen.words, (void*)taught.words, (void*)sums, (void*)zeros}) std::free(some);
}

// x (batch, height, width, channels), doubled or not, grad (batch, height, width, out_channels), out (out_channels, 3, 3,
// channels). The order of sums is the tiles', whatever the number of threads.
extern "C" void winograd_weights_gradient(const type* x, const type* grad, float* out, const Winograd* s, int threads) {
  (s->products() == 3 ? weights_gradient<3> : weights_gradient<4>)(x, grad, out, *s, threads);
}
