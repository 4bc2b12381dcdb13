/* Products of many rows with weights that are laid out for them: [N/64][K/2][64][2].

   Six rows of activations meet 64 columns at a time, or up to 32 in the processor's matrix unit:
   their sums stay in registers, and nothing is added across. An element's terms are added in one
   order, whatever rows go with it, and the result is not rounded: logits near 16 would lie 0.125
   apart in bfloat16.

   Letters: M rows of activations, N rows of the weight matrix, K its columns (even).  */
#include "common.h"

typedef struct {
  const uint16_t *w; /* [N, K] */
  uint16_t *out;
  int n, k;
} Packing;

static void pack_panel(const Packing *s, int panel) {
  uint16_t *out = s->out + (size_t)panel * PANEL * s->k;
  for (int i = 0; i < PANEL; i++) {
    const int row = panel * PANEL + i;
    for (int c = 0; c < s->k; c += 2) {
      uint16_t *to = out + (size_t)c * PANEL + 2 * i;
      if (row < s->n) memcpy(to, s->w + (size_t)row * s->k + c, 4);
      else memset(to, 0, 4);
    }
  }
}

static void pack(Team *team, void *argument) {
  const Packing *s = argument;
  const int total = (s->n + PANEL - 1) / PANEL;
  for (int panel; (panel = claim(team, total, 1)) >= 0;) pack_panel(s, panel);
}

/* Lays weights [N, K] out: `out` has room for N, rounded up to 64, times K. */
void phikit_pack(const uint16_t *w, int n, int k, uint16_t *out, int threads) {
  Packing s = {w, out, n, k};
  phikit_run_team(threads, pack, &s);
}

/* m rows (a constant where called) by 64 columns. */
static inline __attribute__((always_inline)) void tile(const uint16_t *w, const uint16_t *x, int k,
                                                       const int m, float *y) {
#if PHIKIT_AVX512
  __m512 sum[SIX][4];
  for (int r = 0; r < m; r++)
    for (int j = 0; j < 4; j++) sum[r][j] = _mm512_setzero_ps();
  for (int c = 0; c < k; c += 2, w += 2 * PANEL) {
    __m512bh b[4];
    for (int j = 0; j < 4; j++) b[j] = (__m512bh)_mm512_loadu_si512(w + 32 * j);
    for (int r = 0; r < m; r++) {
      int32_t two;
      memcpy(&two, x + (size_t)r * k + c, 4);
      const __m512bh a = (__m512bh)_mm512_set1_epi32(two);
      for (int j = 0; j < 4; j++) sum[r][j] = _mm512_dpbf16_ps(sum[r][j], a, b[j]);
    }
  }
  for (int r = 0; r < m; r++)
    for (int j = 0; j < 4; j++) _mm512_storeu_ps(y + r * PANEL + 16 * j, sum[r][j]);
#else
  for (int r = 0; r < m; r++, x += k, y += PANEL) {
    memset(y, 0, 4 * PANEL);
    for (int c = 0; c < k; c++)
      for (int i = 0; i < PANEL; i++)
        y[i] += from_bf16(x[c]) * from_bf16(w[(size_t)(c & ~1) * PANEL + 2 * i + (c & 1)]);
  }
#endif
}

/* --- the matrix unit ---------------------------------------------------------------------------

   A tile has 16 rows of 64 bytes: of activations 16 rows of 32 columns; of weights, as they lie, 16
   pairs of columns of 16 rows; of sums 16 × 16.  */
#if PHIKIT_TILES

enum { DEEP = 32 }; /* columns of one tile */

/* 16 rows by 64 columns. */
static void tiles_1x4(const uint16_t *w, const uint16_t *x, int k, float *y) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int c = 0; c < k; c += DEEP, w += DEEP * PANEL) {
    TILE_LOAD(4, x + c, 2 * (size_t)k);
    TILE_LOAD(5, w, 4 * PANEL);
    _tile_dpbf16ps(0, 4, 5);
    TILE_LOAD(6, w + 32, 4 * PANEL);
    _tile_dpbf16ps(1, 4, 6);
    TILE_LOAD(7, w + 64, 4 * PANEL);
    _tile_dpbf16ps(2, 4, 7);
    TILE_LOAD(5, w + 96, 4 * PANEL);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, y, 4 * PANEL);
  _tile_stored(1, y + 16, 4 * PANEL);
  _tile_stored(2, y + 32, 4 * PANEL);
  _tile_stored(3, y + 48, 4 * PANEL);
}

/* 32 rows by 32 columns: what is loaded is used twice. */
static void tiles_2x2(const uint16_t *w, const uint16_t *x, int k, float *y) {
  const uint16_t *low = x + 16 * (size_t)k;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int c = 0; c < k; c += DEEP, w += DEEP * PANEL) {
    TILE_LOAD(4, x + c, 2 * (size_t)k);
    TILE_LOAD(6, w, 4 * PANEL);
    _tile_dpbf16ps(0, 4, 6);
    TILE_LOAD(7, w + 32, 4 * PANEL);
    _tile_dpbf16ps(1, 4, 7);
    TILE_LOAD(5, low + c, 2 * (size_t)k);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, y, 4 * PANEL);
  _tile_stored(1, y + 16, 4 * PANEL);
  y += 16 * PANEL;
  _tile_stored(2, y, 4 * PANEL);
  _tile_stored(3, y + 16, 4 * PANEL);
}

/* Whether it was done: only for whole tiles, so that an element has one way to be computed. */
static int in_tiles(const uint16_t *w, const uint16_t *x, int k, int m, float *y) {
  if (k % DEEP || !phikit_tiles(OF_PRODUCTS)) return 0;
  if (m <= ROW_TILE) tiles_1x4(w, x, k, y);
  else tiles_2x2(w, x, k, y), tiles_2x2(w + 64, x, k, y + 32);
  return 1;
}

#else

static int in_tiles(const uint16_t *w, const uint16_t *x, int k, int m, float *y) {
  (void)w, (void)x, (void)k, (void)m, (void)y;
  return 0;
}

#endif

void phikit_panel(const Matrix *w, int panel, const uint16_t *x, int m, float y[TALL * PANEL]) {
  const uint16_t *data = (const uint16_t *)w->data + (size_t)panel * PANEL * w->k;
  if (in_tiles(data, x, w->k, m, y)) return;
  for (; m > 0; m -= SIX, x += (size_t)SIX * w->k, y += SIX * PANEL) switch (m) {
      case 1: tile(data, x, w->k, 1, y); break;
      case 2: tile(data, x, w->k, 2, y); break;
      case 3: tile(data, x, w->k, 3, y); break;
      case 4: tile(data, x, w->k, 4, y); break;
      case 5: tile(data, x, w->k, 5, y); break;
      default: tile(data, x, w->k, SIX, y);
    }
}

void phikit_panels(Team *team, const Matrix *w, const uint16_t *x, int m, float *out, int how) {
  const int total = panels(w), size = piece(team, total);
  for (int first; (first = claim(team, total, size)) >= 0;)
    for (int panel = first; panel < first + size && panel < total; panel++) {
      const int column = panel * PANEL, count = w->n - column < PANEL ? w->n - column : PANEL;
      for (int row = 0; row < m; row += TALL) {
        const int rows = m - row < TALL ? m - row : TALL;
        float y[TALL * PANEL];
        phikit_panel(w, panel, x + (size_t)row * w->k, rows, y);
        for (int r = 0; r < rows; r++) {
          float *to = out + (size_t)(row + r) * w->n + column;
          const float *from = y + r * PANEL;
          if (how == PUT) memcpy(to, from, 4 * (size_t)count);
          else if (how == ADD)
            for (int i = 0; i < count; i++) to[i] += from[i];
          else
            for (int i = 0; i < count; i++) to[i] += rounded(from[i]);
        }
      }
    }
  phikit_tiles(NO_TILES);
  meet(team);
}

typedef struct {
  const Matrix *w;
  const uint16_t *x;
  float *y;
  int m;
} Whole;

static void multiply(Team *team, void *argument) {
  const Whole *s = argument;
  phikit_panels(team, s->w, s->x, s->m, s->y, PUT);
}

/* y_MN = x_MK · wᵀ in float32; x has readable(m) rows. */
void phikit_packed_rows(const Matrix *w, const uint16_t *x, int m, float *y, int threads) {
  Whole s = {w, x, y, m};
  phikit_run_team(threads, multiply, &s);
}
