/* Products of many rows whose results are not rounded: logits.

   torch's bfloat16 product rounds what it gives to bfloat16, where logits near 16 lie 0.125 apart.
   Here weights are laid out once as the instructions read them, [N/64][K/2][64][2], and six rows of
   activations meet 64 columns at a time: their sums stay in registers, and nothing is added across.
   An element's terms are added in one order, whatever rows go with it.

   Letters: M rows of activations, N rows of the weight matrix, K its columns (even).  */
#include "common.h"

enum { COLUMNS = 64, SIX = 6 };

typedef struct {
  const uint16_t *w; /* [N, K], or laid out */
  const uint16_t *x; /* [M, K] */
  void *out;
  int m, n, k;
} Job;

static inline int panels(const Job *s) { return (s->n + COLUMNS - 1) / COLUMNS; }

static void pack(Team *team, void *argument) {
  const Job *s = argument;
  for (int panel; (panel = claim(team, panels(s), 1)) >= 0;) {
    uint16_t *out = (uint16_t *)s->out + (size_t)panel * COLUMNS * s->k;
    for (int i = 0; i < COLUMNS; i++) {
      const int row = panel * COLUMNS + i;
      for (int c = 0; c < s->k; c += 2, out += 2 * COLUMNS)
        if (row < s->n)
          memcpy(out + 2 * i, s->w + (size_t)row * s->k + c, 4);
        else
          memset(out + 2 * i, 0, 4);
      out -= (size_t)COLUMNS * s->k;
    }
  }
}

/* Lays weights [N, K] out: out has room for N, rounded up to 64, times K. */
void phikit_logits_pack(const uint16_t *w, int n, int k, uint16_t *out, int threads) {
  Job s = {w, NULL, out, 0, n, k};
  phikit_run_team(threads, pack, &s);
}

#if PHIKIT_AVX512
/* m rows (a constant where called) by one panel. */
static inline __attribute__((always_inline)) void tile(const Job *s, const uint16_t *w, int row,
                                                       int column, const int m) {
  __m512 sum[SIX][4];
  for (int r = 0; r < m; r++)
    for (int j = 0; j < 4; j++) sum[r][j] = _mm512_setzero_ps();
  const uint16_t *x = s->x + (size_t)row * s->k;
  for (int c = 0; c < s->k; c += 2, w += 2 * COLUMNS) {
    __m512bh b[4];
    for (int j = 0; j < 4; j++) b[j] = (__m512bh)_mm512_loadu_si512(w + 32 * j);
    for (int r = 0; r < m; r++) {
      int32_t two;
      memcpy(&two, x + (size_t)r * s->k + c, 4);
      const __m512bh a = (__m512bh)_mm512_set1_epi32(two);
      for (int j = 0; j < 4; j++) sum[r][j] = _mm512_dpbf16_ps(sum[r][j], a, b[j]);
    }
  }
  for (int r = 0; r < m; r++) {
    float *y = (float *)s->out + (size_t)(row + r) * s->n + column;
    for (int j = 0; j < 4; j++) {
      const int left = s->n - column - 16 * j;
      if (left >= 16) _mm512_storeu_ps(y + 16 * j, sum[r][j]);
      else if (left > 0) _mm512_mask_storeu_ps(y + 16 * j, (__mmask16)((1u << left) - 1), sum[r][j]);
    }
  }
}
#else
static inline void tile(const Job *s, const uint16_t *w, int row, int column, const int m) {
  const int count = s->n - column < COLUMNS ? s->n - column : COLUMNS;
  for (int r = 0; r < m; r++) {
    const uint16_t *x = s->x + (size_t)(row + r) * s->k;
    float sum[COLUMNS] = {0};
    for (int c = 0; c < s->k; c++)
      for (int i = 0; i < COLUMNS; i++)
        sum[i] += from_bf16(x[c]) * from_bf16(w[(size_t)(c & ~1) * COLUMNS + 2 * i + (c & 1)]);
    memcpy((float *)s->out + (size_t)(row + r) * s->n + column, sum, 4 * (size_t)count);
  }
}
#endif

static void multiply(Team *team, void *argument) {
  const Job *s = argument;
  const int total = panels(s), size = piece(team, total);
  for (int first; (first = claim(team, total, size)) >= 0;)
    for (int panel = first; panel < first + size && panel < total; panel++) {
      const uint16_t *w = s->w + (size_t)panel * COLUMNS * s->k;
      int row = 0;
      for (; row + SIX <= s->m; row += SIX) tile(s, w, row, panel * COLUMNS, SIX);
      switch (s->m - row) {
        case 5: tile(s, w, row, panel * COLUMNS, 5); break;
        case 4: tile(s, w, row, panel * COLUMNS, 4); break;
        case 3: tile(s, w, row, panel * COLUMNS, 3); break;
        case 2: tile(s, w, row, panel * COLUMNS, 2); break;
        case 1: tile(s, w, row, panel * COLUMNS, 1); break;
      }
    }
}

/* y_MN = x_MK · wᵀ in float32, of weights that are laid out. */
void phikit_logits(const uint16_t *w, int n, int k, const uint16_t *x, int m, float *y, int threads) {
  Job s = {w, x, y, m, n, k};
  phikit_run_team(threads, multiply, &s);
}
