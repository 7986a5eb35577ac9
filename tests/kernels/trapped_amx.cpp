// AMX's instructions as a compiler has written them: where the processor doesn't know one, it is decoded (Intel's manual,
// volume 2, VEX prefixes) and done by the emulation, and the program goes on behind it.
#include "emulated_amx.h"

#include <ucontext.h>

static long trapped = 0;

static void trap(int, siginfo_t*, void* context) {
  static const int registers[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  greg_t* state = ((ucontext_t*)context)->uc_mcontext.gregs;
  const uint8_t* code = (const uint8_t*)state[REG_RIP];
  emulated::demand(code[0] == 0xc4 && (code[1] & 31) == 2 && !(code[2] & 0x84), "another instruction");
  const int more_reg = code[1] & 0x80 ? 0 : 8, more_index = code[1] & 0x40 ? 0 : 8, more_base = code[1] & 0x20 ? 0 : 8;
  const int second = ~(code[2] >> 3) & 15, prefix = code[2] & 3, mod = code[4] >> 6, rm = code[4] & 7;
  const int reg = (code[4] >> 3 & 7) + more_reg, kind = code[3] << 8 | prefix << 4 | (mod == 3);
  int length = 5;
  char* at = nullptr;
  long stride = 0, beyond = 0;
  if (mod != 3) {
    if (rm == 4) {
      const int sib = code[length++], index = (sib >> 3 & 7) + more_index;
      emulated::demand(mod || (sib & 7) != 5, "an address without a base");
      at = (char*)state[registers[(sib & 7) + more_base]];
      if (index != 4) stride = state[registers[index]] << (sib >> 6);
    } else if (mod || rm != 5) {
      at = (char*)state[registers[rm + more_base]];
    }
    if (mod == 1) beyond = (int8_t)code[length++];
    if (mod == 2 || !at) {
      int32_t wide;
      std::memcpy(&wide, code + length, 4), length += 4, beyond = wide;
    }
    at = (at ? at : (char*)code + length) + beyond;
  }
  if (code[3] == 0x4b) emulated::demand(rm == 4, "#UD: rows without a stride");
  switch (kind) {
    case 0x4900: emulated::load_config(at + stride); break;
    case 0x4910: emulated::store_config(at + stride); break;
    case 0x4931: emulated::zero(reg); break;
    case 0x4b30: emulated::load(reg, at, stride); break;
    case 0x4b20: emulated::store(reg, at, stride); break;
    case 0x5c21: emulated::dpbf16(reg, rm + more_base, second); break;
    case 0x5e11: emulated::dpbusd(reg, rm + more_base, second); break;
    default: emulated::refuse("another instruction");
  }
  state[REG_RIP] += length;
#pragma omp atomic
  trapped++;
}

extern "C" void trap_instructions() {
  emulated::permitted = true;
  struct sigaction how = {};
  how.sa_sigaction = trap, how.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &how, nullptr);
}
extern "C" long num_trapped() { return trapped; }
