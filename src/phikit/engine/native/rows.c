/* Products of any number of rows, each of which comes out the same whatever goes with it.

   An element of the result is one dot product: its terms are added in one order, which depends on K
   alone. Four rows of activations meet four rows of weights at a time; both are read as they lie,
   sixteen sums are under way, and nothing is laid out anew. (products.c keeps to the same rule with
   integer weights.)

   Letters: M rows of activations, N rows of a weight matrix, K its columns.  */
#include "common.h"

enum { WEIGHT_BYTES = 1 << 18, ROW_BYTES = 1 << 18, SHORT = 1 << 19 };

typedef struct {
  const Matrix *w;
  const char *x; /* [M, K] in bfloat16 or float32 */
  void *y;       /* [M, N] likewise */
  int m, wide; /* wide: y is float32 */
  int block; /* rows of weights that a thread takes at once */
  int depth; /* rows of activations that stay in the cache meanwhile */
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

static void multiply(Team *team, void *argument) {
  const Rows *p = argument;
  for (int first; (first = claim(team, p->w->n, p->block)) >= 0;)
    dense_block(p, first, first + p->block < p->w->n ? first + p->block : p->w->n);
}

/* y_MN = x_MK · wᵀ of bfloat16 or float32 weights; x is as the weights. `wide`: y is float32, else
   bfloat16. */
void phikit_rows(const Matrix *w, const void *x, int wide, int m, void *y, int threads) {
  Rows p = {.w = w, .x = x, .y = y, .m = m, .wide = wide};
  const size_t row_bytes = (size_t)w->k * (w->kind == F32 ? 4 : 2);
  const int fits = (int)(WEIGHT_BYTES / row_bytes), even = w->n / (threads * 8);
  p.block = (fits < even ? fits : even) & ~3;
  if (p.block < 4) p.block = 4;
  p.depth = (int)(ROW_BYTES / row_bytes) & ~3;
  if (p.depth < 4) p.depth = 4;
  if ((size_t)w->n * w->k * m < SHORT) threads = 1; /* shorter than the start of a thread */
  phikit_run_team(threads, multiply, &p);
}
