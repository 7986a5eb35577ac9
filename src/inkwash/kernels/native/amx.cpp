// Whether AMX's products can be had here, and are right.
#include "amx.h"
#ifdef __AMX_BF16__
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <mutex>

// Small whole numbers, by each of the four functions of amx.h, whose sums are exact.
__attribute__((noinline)) static bool product_is_right() {
  constexpr long n = 48, k = 32;  // words
  alignas(64) uint16_t a[n][2 * k], b[k][n][2];
  alignas(64) float c[n][n], scale[n];
  auto number = [](long seed) { return float(seed * 7919 % 17 - 8); };
  auto narrow = [](float x) { return uint16_t(_mm512_cvtsi512_si32(_mm512_castps_si512(_mm512_set1_ps(x))) >> 16); };
  for (long i = 0; i < n; i++) {
    scale[i] = 1 << i % 3;
    for (long p = 0; p < 2 * k; p++) a[i][p] = narrow(number(64 * i + p)), b[p / 2][i][p % 2] = narrow(number(p + 99 * i));
  }
  Configuration before;
  configure(before);
  for (const float* each : {(const float*)nullptr, (const float*)scale})
    tiles<TiledBFloat16>(n / 16, n, (const word*)a, k, (const word*)b, k, c[0], n, each);
  restore(before);
  bool right = true;
  for (long i = 0; i < n; i++)
    for (long j = 0; j < n; j++) {
      float sum = 0;
      for (long p = 0; p < 2 * k; p++) sum += number(64 * i + p) * number(p + 99 * j);
      right &= c[i][j] == (scale[i] + 1) * sum;
    }
  return right;
}

static thread_local sigjmp_buf* rescue;  // of the thread that tries
static struct sigaction earlier;

static void illegal(int) {
  if (rescue) siglongjmp(*rescue, 1);
  sigaction(SIGILL, &earlier, nullptr);  // another thread's, which meets it again
}

// Whether the system gives this process the tiles' registers (ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA), and they multiply.
static bool tiles_work() {
  static std::mutex one;
  const std::lock_guard<std::mutex> alone(one);
  if (syscall(SYS_arch_prctl, 0x1023, 18)) return false;
  struct sigaction ours = {};
  ours.sa_handler = illegal;
  if (sigaction(SIGILL, &ours, &earlier)) return false;
  sigjmp_buf here;
  volatile bool right = false;
  if (sigsetjmp(here, 1) == 0) {
    rescue = &here;
    right = product_is_right();
  }
  rescue = nullptr;
  sigaction(SIGILL, &earlier, nullptr);
  return right;
}

extern "C" int amx_works() { return tiles_work(); }
#else
extern "C" int amx_works() { return 0; }
#endif
