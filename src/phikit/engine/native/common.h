/* What the kernels share: the matrix, bfloat16, threads that split one piece of work after another.

   Letters: M rows of activations (tokens), N rows of a weight matrix, K its columns.  */
#ifndef PHIKIT_COMMON_H
#define PHIKIT_COMMON_H

#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__) && \
    defined(__AVX512BF16__) && !defined(PHIKIT_PORTABLE)
#define PHIKIT_AVX512 1
#include <immintrin.h>
#else
#define PHIKIT_AVX512 0
#endif

/* The processor's matrix unit, which multiplies tiles of 16 × 32 with 32 × 16 numbers. */
#if PHIKIT_AVX512 && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__) && \
    !defined(PHIKIT_NO_TILES)
#define PHIKIT_TILES 1
#else
#define PHIKIT_TILES 0
#endif
#if PHIKIT_TILES
/* gcc's intrinsics do not say that they read memory: what was stored there just before could come
   after, or be left out. */
#define TILE_LOAD(TILE, FROM, STRIDE)        \
  do {                                       \
    __asm__ volatile("" ::: "memory");       \
    _tile_loadd(TILE, FROM, STRIDE);         \
  } while (0)
#endif
/* The same of bytes. */
#if PHIKIT_TILES && defined(__AMX_INT8__)
#define PHIKIT_BYTE_TILES 1
#else
#define PHIKIT_BYTE_TILES 0
#endif

enum { BF16 = 0, INT8 = 1, INT4 = 2, F32 = 3, PACKED = 4 };
enum { LANES = 16, MAX_ROWS = 16, MAX_GROUP = 128, PANEL = 64, SIX = 6 };
/* Rows of activations that meet a panel at once, and to a multiple of what number of rows they must
   be readable (whatever the rest holds). */
#if PHIKIT_TILES
enum { TALL = 32, ROW_TILE = 16 };
#else
enum { TALL = SIX, ROW_TILE = 1 };
#endif

/* A weight matrix [N, K].

   BF16, F32: row-major.
   PACKED: bfloat16 data[N/64][K/2][64][2], for the products of panels.c alone.
   INT8: data[N/16][K/4][16][4], a byte is the weight + 128.
   INT4: data[N/16][K/8][16][4], the low half of byte j is weight j of eight, the high half weight
         j + 4; a half is the weight + 8.
   Scales are bfloat16 [N/16][S][16]: S = K / group, or 1 when a row has a single scale. `group` is
   also the length over which the activations share a scale.  */
typedef struct {
  int32_t kind, n, k, group, scale_groups, padding;
  const void *data;
  const uint16_t *scales;
} Matrix;

#if PHIKIT_AVX512
/* The sums of sixteen vectors, each in the order of _mm512_reduce_add_ps. out[4 i + r] is the sum of
   vector 4 r + i: what belongs together on the way in lies four apart on the way out.  */
static inline __m512 add_across(const __m512 in[16]) {
  __m512 a[8], b[4], c[2];
  for (int j = 0; j < 8; j++)
    a[j] = _mm512_add_ps(_mm512_shuffle_f32x4(in[2 * j], in[2 * j + 1], 0x44),
                         _mm512_shuffle_f32x4(in[2 * j], in[2 * j + 1], 0xee));
  for (int j = 0; j < 4; j++)
    b[j] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * j], a[2 * j + 1], 0x88),
                         _mm512_shuffle_f32x4(a[2 * j], a[2 * j + 1], 0xdd));
  for (int j = 0; j < 2; j++) {
    __m512d p = _mm512_castps_pd(b[2 * j]), q = _mm512_castps_pd(b[2 * j + 1]);
    c[j] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(p, q)));
  }
  return _mm512_add_ps(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xdd));
}
#endif

#if PHIKIT_AVX512
/* Sixteen times e^x, to about 2e-7, for x below 88. */
static inline __m512 exp_16(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x); /* in this order what is no number stays so */
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}
#endif

static inline float from_bf16(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

/* Round to nearest, ties to even; what is not a number stays so. */
static inline uint16_t to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (uint16_t)(x != x ? 0x7fc0 : rounded);
}

static inline float rounded(float x) { return from_bf16(to_bf16(x)); }

/* The least power of two by which the largest activation of a group, whose bits these are without
   their sign, is divided to fit two signed bytes: 127 × 256 + 127 is the largest number that they hold
   both ways. Scaling by it rounds nothing, so halves.c can leave it in the activations. Of what is
   smaller than 2^-80 nothing is kept; what is not finite (so are its bits the largest) leaves nothing
   finite. */
static inline float step_of(uint32_t largest) {
  float least, step;
  memcpy(&least, &largest, 4);
  if (least < 0x1p-80f) return 0;
  least /= 32512.0f;
  uint32_t bits;
  memcpy(&bits, &least, 4);
  if (bits >> 23 >= 254) return INFINITY;
  bits = (bits + 0x7fffff) & 0xff800000u;
  memcpy(&step, &bits, 4);
  return step;
}

/* --- threads ----------------------------------------------------------------------------------

   A team runs one function; inside it, `claim` hands out the pieces of the current phase, so that a
   core that is taken away by a neighbour does not hold the others up, and `meet` ends the phase.
   Every result is computed whole by one thread: it does not depend on who was faster.  */
typedef struct {
  int threads;
  atomic_int next, arrived, phase;
} Team;

static inline void meet(Team *team) {
  if (team->threads == 1) {
    atomic_store_explicit(&team->next, 0, memory_order_relaxed);
    return;
  }
  int phase = atomic_load_explicit(&team->phase, memory_order_acquire);
  if (atomic_fetch_add(&team->arrived, 1) == team->threads - 1) {
    atomic_store(&team->arrived, 0);
    atomic_store(&team->next, 0);
    atomic_fetch_add(&team->phase, 1);
    return;
  }
  for (int spins = 0; atomic_load_explicit(&team->phase, memory_order_acquire) == phase; spins++) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (spins > 4000) sched_yield();
  }
}

/* The next piece of `total` items in pieces of `size`: its first item, or -1 when none is left. */
static inline int claim(Team *team, int total, int size) {
  int first = atomic_fetch_add_explicit(&team->next, size, memory_order_relaxed);
  return first < total ? first : -1;
}

/* A piece small enough to even out the threads, large enough to be read in a stream. */
static inline int piece(const Team *team, int total) {
  int size = total / (team->threads * 8);
  return size < 1 ? 1 : size;
}

/* Runs work(member of the team, argument) in `threads` threads, the caller being one of them.
   Fewer when the system gives fewer: `team->threads` is set before any of them begins.  */
void phikit_run_team(int threads, void (*work)(Team *, void *), void *argument);

/* --- products ---------------------------------------------------------------------------------*/

/* Activations made ready for one kind of weights. */
typedef struct {
  int8_t *high, *low; /* [M][K]: the activation is scale × (256 high + low) */
  float *scale;       /* [M][K/group], powers of two */
  int32_t *sum;       /* [M][K/group]: of 256 high + low */
  uint16_t *bf16;     /* [M][K] */
  /* or, for several rows with 4 bits, in the same memory and in place of all of them; see halves.c: */
  int halved;
  uint16_t *halves; /* [K/32][256 high, low][M][32], both scaled, in bfloat16 */
} Ready;

size_t phikit_ready_bytes(int m, int k);
void phikit_ready_init(Ready *ready, char *memory, int m, int k);
void phikit_make_ready(Ready *ready, const Matrix *w, const float *x_MK, int m);
/* Activations as halves: whether that is the faster way for m rows, which turns tiles on; the halves;
   and then what phikit_pair does. */
int phikit_takes_halves(const Matrix *w, int m);
void phikit_make_halves(uint16_t *halves, const Matrix *w, const float *x_MK, int m);
void phikit_halves(const Matrix *w, const int unit[2], const Ready *x, int m, float *const y[2]);
/* y[16] for each of m rows: y_MP[row * stride + 0..15] of the 16 weight rows of unit `unit`. May turn
   tiles on. */
void phikit_unit(const Matrix *w, int unit, const Ready *x, int m, float *y_MP, int stride);

/* Two units at once, each into its own y[m][16]: the faster way at one row. */
void phikit_pair(const Matrix *w, int unit_a, int unit_b, const Ready *x, int m, float *y_a,
                 float *y_b);

/* Rows, rounded up to what must be readable. */
static inline size_t readable(int m) { return (size_t)(m + ROW_TILE - 1) / ROW_TILE * ROW_TILE; }

/* Gives the calling thread's matrix unit tiles of one kind of work; 0 when there is no such unit.
   Between the products other libraries use it: a phase that turned it on ends with NO_TILES. */
enum { NO_TILES, OF_PRODUCTS, OF_HEADS, OF_INTEGERS /* + M, up to MAX_ROWS */, OF_HALVES = OF_INTEGERS + MAX_ROWS /* likewise */ };
int phikit_tiles(int kind);

/* May turn tiles on. y[row][64] of up to TALL rows of activations [readable(m), K] with 64 rows of packed weights. */
void phikit_panel(const Matrix *w, int panel, const uint16_t *x, int m, float y[TALL * PANEL]);

/* A phase of a team: out_MN = x_MK · wᵀ of packed weights, or that, or that rounded to bfloat16, added
   to what is there; x as above. */
enum { PUT, ADD, ADD_ROUNDED };
void phikit_panels(Team *team, const Matrix *w, const uint16_t *x, int m, float *out, int how);

static inline int panels(const Matrix *w) { return (w->n + PANEL - 1) / PANEL; }

static inline int units(const Matrix *w) { return (w->n + LANES - 1) / LANES; }

/* Units 2 × pair and 2 × pair + 1, the second of which may be past the end. */
static inline void phikit_two(const Matrix *w, int pair, const Ready *x, int m,
                              float y[2][MAX_ROWS * LANES]) {
  if (2 * pair + 1 < units(w))
    phikit_pair(w, 2 * pair, 2 * pair + 1, x, m, y[0], y[1]);
  else
    phikit_unit(w, 2 * pair, x, m, y[0], LANES);
}

#endif
