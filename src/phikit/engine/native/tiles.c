/* The processor's matrix unit (AMX): a thread asks for tiles of one kind of work, and frees them. */
#include "common.h"

#if PHIKIT_TILES

#include <sys/syscall.h>
#include <unistd.h>

/* Linux lends the unit's state to a process that asks for it; a container may forbid the call. */
static int lent(void) {
  static atomic_int answer; /* 0: not asked yet */
  if (!answer) {
    enum { ASK_FOR_STATE = 0x1023, TILE_DATA = 18 };
    answer = syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) ? -1 : 1;
  }
  return answer > 0;
}

int phikit_tiles(int kind) {
  static const struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } shape[] = {
      [OF_PRODUCTS] = {.palette = 1,
                       .bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                       .rows = {16, 16, 16, 16, 16, 16, 16, 16}},
      [OF_HEADS] = {.palette = 1,
                    .bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                    .rows = {8, 8, 8, 8, 8, 16, 16, 16}},
  };
  static _Thread_local int now;
  if (now == kind || !lent()) return now;
  if (kind == NO_TILES) _tile_release();
  else _tile_loadconfig(&shape[kind]);
  return now = kind;
}

#else

int phikit_tiles(int kind) {
  (void)kind;
  return 0;
}

#endif
