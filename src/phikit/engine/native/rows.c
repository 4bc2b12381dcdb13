/* Products of any number of rows, each of which comes out the same whatever goes with it.

   An element of the result is one dot product: its terms are added in one order, which depends on K
   alone. Four rows of activations meet four rows of weights at a time; both are read as they lie,
   sixteen sums are under way, and nothing is laid out anew. Integer weights go through the kernels
   of products.c, which keep to the same rule.

   Letters: M rows of activations, N rows of a weight matrix, K its columns.  */
#include "common.h"

enum { WEIGHT_BYTES = 1 << 18, ROW_BYTES = 1 << 18, SHORT = 1 << 19 };

typedef struct {
  const Matrix *w;
  const char *x; /* [M, K] in bfloat16 or float32 */
  void *y;       /* [M, N] likewise */
  int m, wide; /* wide: y is float32 */
  float *copy; /* [M, K], for integer weights: the rows in float32, and made ready */
  Ready ready;
  int block; /* units (integer weights) or rows of weights (others) that a thread takes at once */
  int depth; /* rows of activations that stay in the cache meanwhile */
  atomic_int failed;
} Rows;

#if PHIKIT_AVX512

/* Four weight rows by m rows of activations: out[4 × row + weight row]. */
static inline __attribute__((always_inline)) __m512 dots_bf16(const uint16_t *const w[4],
                                                              const uint16_t *x, int k, const int m) {
  const int whole = k & ~31;
  __m512 sum[16];
  for (int i = 0; i < 16; i++) sum[i] = _mm512_setzero_ps();
  for (int c = 0; c < whole; c += 32) {
    __m512bh b[4];
    for (int i = 0; i < 4; i++) b[i] = (__m512bh)_mm512_loadu_si512(w[i] + c);
    for (int r = 0; r < m; r++) {
      const __m512bh a = (__m512bh)_mm512_loadu_si512(x + (size_t)r * k + c);
      for (int i = 0; i < 4; i++) sum[4 * i + r] = _mm512_dpbf16_ps(sum[4 * i + r], a, b[i]);
    }
  }
  if (whole < k) {
    const __mmask32 rest = (__mmask32)((1u << (k - whole)) - 1);
    for (int r = 0; r < m; r++) {
      const __m512bh a = (__m512bh)_mm512_maskz_loadu_epi16(rest, x + (size_t)r * k + whole);
      for (int i = 0; i < 4; i++)
        sum[4 * i + r] = _mm512_dpbf16_ps(
            sum[4 * i + r], a, (__m512bh)_mm512_maskz_loadu_epi16(rest, w[i] + whole));
    }
  }
  return add_across(sum);
}

static inline __attribute__((always_inline)) __m512 dots_f32(const float *const w[4], const float *x,
                                                             int k, const int m) {
  const int whole = k & ~15;
  __m512 sum[16];
  for (int i = 0; i < 16; i++) sum[i] = _mm512_setzero_ps();
  for (int c = 0; c < whole; c += 16) {
    __m512 b[4];
    for (int i = 0; i < 4; i++) b[i] = _mm512_loadu_ps(w[i] + c);
    for (int r = 0; r < m; r++) {
      const __m512 a = _mm512_loadu_ps(x + (size_t)r * k + c);
      for (int i = 0; i < 4; i++) sum[4 * i + r] = _mm512_fmadd_ps(a, b[i], sum[4 * i + r]);
    }
  }
  if (whole < k) {
    const __mmask16 rest = (__mmask16)((1u << (k - whole)) - 1);
    for (int r = 0; r < m; r++) {
      const __m512 a = _mm512_maskz_loadu_ps(rest, x + (size_t)r * k + whole);
      for (int i = 0; i < 4; i++)
        sum[4 * i + r] = _mm512_fmadd_ps(a, _mm512_maskz_loadu_ps(rest, w[i] + whole), sum[4 * i + r]);
    }
  }
  return add_across(sum);
}

/* out[4 × row + weight row] for up to four rows of each. */
static inline void tile(const Matrix *w, int n, const char *x, int m, float out[16]) {
  const int last = w->n - 1;
  if (w->kind == F32) {
    const float *data = w->data, *row[4];
    for (int i = 0; i < 4; i++) row[i] = data + (size_t)(n + i < last ? n + i : last) * w->k;
    switch (m) {
      case 1: _mm512_storeu_ps(out, dots_f32(row, (const float *)x, w->k, 1)); break;
      case 2: _mm512_storeu_ps(out, dots_f32(row, (const float *)x, w->k, 2)); break;
      case 3: _mm512_storeu_ps(out, dots_f32(row, (const float *)x, w->k, 3)); break;
      default: _mm512_storeu_ps(out, dots_f32(row, (const float *)x, w->k, 4));
    }
    return;
  }
  const uint16_t *data = w->data, *row[4];
  for (int i = 0; i < 4; i++) row[i] = data + (size_t)(n + i < last ? n + i : last) * w->k;
  switch (m) {
    case 1: _mm512_storeu_ps(out, dots_bf16(row, (const uint16_t *)x, w->k, 1)); break;
    case 2: _mm512_storeu_ps(out, dots_bf16(row, (const uint16_t *)x, w->k, 2)); break;
    case 3: _mm512_storeu_ps(out, dots_bf16(row, (const uint16_t *)x, w->k, 3)); break;
    default: _mm512_storeu_ps(out, dots_bf16(row, (const uint16_t *)x, w->k, 4));
  }
}

#else

static __attribute__((noinline)) float dot_f32(const float *a, const float *b, int n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

static __attribute__((noinline)) float dot_narrow(const uint16_t *a, const uint16_t *b, int n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; i++) sum += from_bf16(a[i]) * from_bf16(b[i]);
  return sum;
}

static inline void tile(const Matrix *w, int n, const char *x, int m, float out[16]) {
  for (int r = 0; r < m; r++)
    for (int i = 0; i < 4 && n + i < w->n; i++) {
      const size_t a = (size_t)r * w->k, b = (size_t)(n + i) * w->k;
      out[4 * r + i] = w->kind == F32
                           ? dot_f32((const float *)x + a, (const float *)w->data + b, w->k)
                           : dot_narrow((const uint16_t *)x + a, (const uint16_t *)w->data + b, w->k);
    }
}

#endif

static inline void put(const Rows *p, size_t at, float value) {
  if (p->wide)
    ((float *)p->y)[at] = value;
  else
    ((uint16_t *)p->y)[at] = to_bf16(value);
}

/* Up to four rows of up to four results, as `tile` leaves them. */
static inline void put_tile(const Rows *p, size_t at, const float out[16], int m, int count) {
#if PHIKIT_AVX512
  if (count == 4 && !p->wide) {
    const __m512 values = _mm512_loadu_ps(out);
    const __m512i bits = _mm512_castps_si512(values), one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    up = _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q),
                               _mm512_set1_epi32(0x7fc0));
    uint16_t narrow[16];
    _mm256_storeu_si256((__m256i *)narrow, _mm512_cvtepi32_epi16(up));
    for (int r = 0; r < m; r++)
      memcpy((uint16_t *)p->y + at + (size_t)r * p->w->n, narrow + 4 * r, 8);
    return;
  }
#endif
  for (int r = 0; r < m; r++)
    for (int i = 0; i < count; i++) put(p, at + (size_t)r * p->w->n + i, out[4 * r + i]);
}

/* Weight rows first to last - 1 against all rows, as many of these at a time as the cache keeps. */
static void dense_block(const Rows *p, int first, int last) {
  const Matrix *w = p->w;
  const size_t row_bytes = (size_t)w->k * (w->kind == F32 ? 4 : 2);
  for (int low = 0; low < p->m; low += p->depth) {
    const int high = low + p->depth < p->m ? low + p->depth : p->m;
    for (int n = first; n < last; n += 4)
      for (int row = low; row < high; row += 4) {
        const int m = high - row < 4 ? high - row : 4, count = last - n < 4 ? last - n : 4;
        float out[16];
        tile(w, n, p->x + row * row_bytes, m, out);
        put_tile(p, (size_t)row * w->n + n, out, m, count);
      }
  }
}

static void integer_unit(const Rows *p, int unit) {
  const Matrix *w = p->w;
  const int count = w->n - unit * LANES < LANES ? w->n - unit * LANES : LANES;
  for (int low = 0; low < p->m; low += MAX_ROWS) {
    const int m = p->m - low < MAX_ROWS ? p->m - low : MAX_ROWS;
    const size_t at = (size_t)low * w->k, group = (size_t)low * (w->k / w->group);
    const Ready part = {p->ready.high + at, p->ready.low + at, p->ready.scale + group,
                        p->ready.sum + group, NULL};
    float y[MAX_ROWS * LANES];
    phikit_unit(w, unit, &part, m, y, LANES);
    for (int r = 0; r < m; r++)
      for (int i = 0; i < count; i++)
        put(p, (size_t)(low + r) * w->n + unit * LANES + i, y[r * LANES + i]);
  }
}

static void make_row_ready(const Rows *p, int row) {
  const Matrix *w = p->w;
  const size_t at = (size_t)row * w->k, group = (size_t)row * (w->k / w->group);
  float *x = p->copy + at;
  for (int c = 0; c < w->k; c++)
    x[c] = p->wide ? ((const float *)p->x)[at + c] : from_bf16(((const uint16_t *)p->x)[at + c]);
  Ready one = {p->ready.high + at, p->ready.low + at, p->ready.scale + group, p->ready.sum + group, NULL};
  phikit_make_ready(&one, w, x, 1);
}

static void multiply(Team *team, void *argument) {
  Rows *p = argument;
  const Matrix *w = p->w;
  const int integers = w->kind == INT8 || w->kind == INT4, total = integers ? units(w) : w->n;
  if (integers) {
    for (int row; (row = claim(team, p->m, 1)) >= 0;) make_row_ready(p, row);
    meet(team);
  }
  for (int first; (first = claim(team, total, p->block)) >= 0;) {
    const int last = first + p->block < total ? first + p->block : total;
    if (!integers) dense_block(p, first, last);
    else
      for (int unit = first; unit < last; unit++) integer_unit(p, unit);
  }
  phikit_tiles(NO_TILES);
}

/* y_MN = x_MK · wᵀ. `wide`: y is float32, else bfloat16. x is as y with integer weights, else as the
   weights. Returns 0, or -1 without memory. */
int phikit_rows(const Matrix *w, const void *x, int wide, int m, void *y, int threads) {
  Rows p = {.w = w, .x = x, .y = y, .m = m, .wide = wide};
  const int integers = w->kind == INT8 || w->kind == INT4;
  const size_t row_bytes = (size_t)w->k * (w->kind == F32 ? 4 : 2);
  char *memory = NULL;
  if (integers) {
    const size_t ready = phikit_ready_bytes(m, w->k);
    memory = malloc(ready + 4 * (size_t)m * w->k);
    if (!memory) return -1;
    phikit_ready_init(&p.ready, memory, m, w->k);
    p.copy = (float *)(memory + ready);
  }
  const int total = integers ? units(w) : w->n;
  const int fits = (int)(WEIGHT_BYTES / (integers ? LANES * (size_t)w->k : row_bytes));
  const int even = total / (threads * 8);
  p.block = fits < even ? fits : even;
  if (!integers) p.block &= ~3;
  if (p.block < 4) p.block = integers ? (p.block < 1 ? 1 : p.block) : 4;
  p.depth = (int)(ROW_BYTES / row_bytes) & ~3;
  if (p.depth < 4) p.depth = 4;
  if ((size_t)w->n * w->k * m < SHORT) threads = 1; /* shorter than the start of a thread */
  phikit_run_team(threads, multiply, &p);
  free(memory);
  return 0;
}
