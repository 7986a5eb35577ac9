// AMX in plain C++, after Intel's Software Developer's Manual, volume 2: what a processor would refuse with #UD or #GP ends
// the process. Included before a source, it stands in for the intrinsics and for Linux's permission to use them. What the
// source allocates is full of NaN.
#pragma once
#include <immintrin.h>
#include <omp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#undef __AMX_BF16__
#undef __AMX_INT8__
#define __AMX_BF16__ 1
#define __AMX_INT8__ 1

namespace emulated {

enum Fault { NONE, REFUSED, ILLEGAL, WRONG };  // of the system, of the processor, of its products
inline Fault fault = NONE;  // one of each, however many sources there are
inline bool permitted = false;
inline long products = 0;

struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t colsb[16];
  uint8_t rows[16];
};
static_assert(sizeof(Config) == 64);

inline thread_local Config config;  // all zero where no tile is configured
inline thread_local uint8_t tile[8][16][64];

[[noreturn]] static void refuse(const char* why) {
  std::fprintf(stderr, "emulated AMX: %s\n", why);
  std::abort();
}
static void demand(bool met, const char* why) {
  if (!met) refuse(why);
}
static void permission() {  // Linux sends SIGILL at the first use without it
  if (!permitted || fault == ILLEGAL) raise(SIGILL);
}
static void valid(int t) {
  permission();
  demand(config.palette == 1, "#UD: no tile is configured");
  demand(t >= 0 && t < 8 && config.rows[t] && config.colsb[t], "#UD: this tile is not configured");
  demand(config.colsb[t] % 4 == 0, "#UD: a row is no whole number of words");
  demand(config.start_row < config.rows[t], "#UD: it starts below the tile");
}

static long ask(long number, long code, long feature) {
  demand(number == SYS_arch_prctl && code == 0x1023 && feature == 18, "this asks for something else");
  if (fault == REFUSED) return -1;
  permitted = true;
  return 0;
}

static void load_config(const void* from) {
  permission();
  Config given;
  std::memcpy(&given, from, 64);
  std::memset(tile, 0, sizeof tile);
  if (given.palette == 0) {
    std::memset(&config, 0, 64);
    return;
  }
  demand(given.palette == 1, "#GP: no such palette");
  for (uint8_t byte : given.reserved) demand(byte == 0, "#GP: reserved bytes");
  for (int t = 0; t < 16; t++) {
    demand(t < 8 || (!given.colsb[t] && !given.rows[t]), "#GP: reserved bytes");
    demand(given.colsb[t] <= 64 && given.rows[t] <= 16, "#GP: a tile is too large");
    demand(!given.colsb[t] == !given.rows[t], "#GP: a tile of rows or of columns alone");
  }
  config = given;
}

static void store_config(void* to) {
  permission();
  std::memcpy(to, &config, 64);
}

static void zero(int t) {
  valid(t);
  std::memset(tile[t], 0, sizeof tile[t]);
}

static void load(int t, const void* from, long stride) {
  valid(t);
  std::memset(tile[t], 0, sizeof tile[t]);
  for (int row = 0; row < config.rows[t]; row++)
    std::memcpy(tile[t][row], (const char*)from + row * stride, config.colsb[t]);
  config.start_row = 0;
}

static void store(int t, void* to, long stride) {
  valid(t);
  for (int row = 0; row < config.rows[t]; row++) std::memcpy((char*)to + row * stride, tile[t][row], config.colsb[t]);
  config.start_row = 0;
}

static float wide(uint16_t x) {
  const uint32_t bits = (uint32_t)x << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

// Apart, so that no sum is moved out of where denormals are zero.
__attribute__((noinline)) static void multiply(int c, int a, int b) {
  const int pairs = config.colsb[a] / 4, columns = config.colsb[c] / 4;
  for (int m = 0; m < config.rows[c]; m++) {
    float sums[2][16] = {}, was[16];
    for (int k = 0; k < pairs; k++) {
      uint16_t left[2], right[16][2];
      std::memcpy(left, tile[a][m] + 4 * k, 4), std::memcpy(right, tile[b][k], 64);
      for (int n = 0; n < 16; n++) {
        sums[0][n] = std::fma(wide(left[0]), wide(right[n][0]), sums[0][n]);
        sums[1][n] = std::fma(wide(left[1]), wide(right[n][1]), sums[1][n]);
      }
    }
    std::memcpy(was, tile[c][m], 64);
    for (int n = 0; n < columns; n++) was[n] += sums[0][n] + sums[1][n];
    std::memcpy(tile[c][m], was, 4 * columns), std::memset(tile[c][m] + 4 * columns, 0, 64 - 4 * columns);
  }
  for (int m = config.rows[c]; m < 16; m++) std::memset(tile[c][m], 0, 64);
}

static void fitting(int c, int a, int b) {
  valid(c), valid(a), valid(b);
  demand(c != a && a != b && b != c, "#UD: a tile in two roles");
  demand(config.rows[c] == config.rows[a], "#UD: c and a differ in rows");
  demand(config.colsb[c] == config.colsb[b], "#UD: c and b differ in columns");
  demand(config.colsb[a] / 4 == config.rows[b], "#UD: a's columns are not b's rows");
}

static void multiplied(int c) {
  if (fault == WRONG) tile[c][0][3] ^= 0x40;
#pragma omp atomic
  products++;
}

static void dpbf16(int c, int a, int b) {
  fitting(c, a, b);
  const unsigned control = _mm_getcsr();
  _mm_setcsr(0x9fc0);  // no exceptions, to nearest even, denormals to zero on both sides
  multiply(c, a, b);
  _mm_setcsr(control);
  multiplied(c);
}

// Bytes of a without a sign, of b with one; sums run over as whole numbers of 32 bits do.
static void dpbusd(int c, int a, int b) {
  fitting(c, a, b);
  const int words = config.colsb[a] / 4, columns = config.colsb[c] / 4;
  for (int m = 0; m < 16; m++) {
    uint32_t sums[16] = {};
    std::memcpy(sums, tile[c][m], 4 * columns);
    for (int k = 0; k < words; k++)
      for (int n = 0; n < columns; n++)
        for (int byte = 0; byte < 4; byte++) sums[n] += tile[a][m][4 * k + byte] * (int8_t)tile[b][k][4 * n + byte];
    std::memset(tile[c][m], 0, 64);
    if (m < config.rows[c]) std::memcpy(tile[c][m], sums, 4 * columns);
  }
  multiplied(c);
}

static void* allocate(size_t alignment, size_t size) {
  void* made = std::aligned_alloc(alignment, size);
  return made ? std::memset(made, 0xff, size) : made;
}

}  // namespace emulated

#define EXPORTED extern "C" __attribute__((weak))
// For the tests: what goes wrong from now on, in a process that has asked for nothing; how many products there were.
EXPORTED void emulate(int fault) { emulated::fault = (emulated::Fault)fault, emulated::permitted = false; }
EXPORTED long num_products() { return emulated::products; }

// Each thread's configuration: set to the one that is given, or kept in 64 bytes for each.
EXPORTED void set_configurations(int threads, const void* from) {
#pragma omp parallel num_threads(threads)
  emulated::load_config(from);
}
EXPORTED void get_configurations(int threads, char* to) {
#pragma omp parallel num_threads(threads)
  emulated::store_config(to + 64 * omp_get_thread_num());
}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbusd
#define _tile_loadconfig emulated::load_config
#define _tile_storeconfig emulated::store_config
#define _tile_loadd emulated::load
#define _tile_stored emulated::store
#define _tile_zero emulated::zero
#define _tile_dpbf16ps emulated::dpbf16
#define _tile_dpbusd emulated::dpbusd
#define syscall emulated::ask
#define aligned_alloc emulated::allocate
