/* Products of a few rows of activations with a weight matrix that is read once from memory.

   At one token a matrix product does two operations per weight, so what it costs is the reading of
   the weights. The kernels below turn small weights into products faster than memory delivers them:
   activations are held as 16-bit integers (two signed bytes) with one scale per group, so that
   integer dot-product instructions take the packed weights as they are, and the sums of a group are
   exact. Sixteen weight rows lie side by side, one per lane of a vector.  */
#include "common.h"

/* --- activations ------------------------------------------------------------------------------*/

size_t phikit_ready_bytes(int m, int k) {
  size_t groups = (size_t)(k + 31) / 32;
  return (size_t)m * (4 * ((size_t)k + 64) + 8 * (groups + 16)) + 512;
}

static char *take(char **memory, size_t bytes) {
  char *start = (char *)(((uintptr_t)*memory + 63) & ~(uintptr_t)63);
  *memory = start + bytes;
  return start;
}

void phikit_ready_init(Ready *ready, char *memory, int m, int k) {
  size_t groups = (size_t)(k + 31) / 32;
  ready->high = (int8_t *)take(&memory, (size_t)m * k);
  ready->low = (int8_t *)take(&memory, (size_t)m * k);
  ready->bf16 = (uint16_t *)take(&memory, 2 * (size_t)m * k);
  ready->scale = (float *)take(&memory, 4 * m * groups);
  ready->sum = (int32_t *)take(&memory, 4 * m * groups);
  ready->halved = 0;
  ready->halves = (uint16_t *)ready->high; /* as many bytes as high, low and bf16 */
}

static void split_group(const float *x, int n, int8_t *high, int8_t *low, float *scale,
                        int32_t *sum) {
  uint32_t bits[MAX_GROUP], most = 0;
  memcpy(bits, x, 4 * (size_t)n);
#pragma omp simd reduction(max : most)
  for (int i = 0; i < n; i++) most = (bits[i] & 0x7fffffff) > most ? bits[i] & 0x7fffffff : most;
  float step = step_of(most), inverse = step > 0 ? 1.0f / step : 0;
  int32_t total = 0;
  for (int i = 0; i < n; i++) {
    float scaled = x[i] * inverse;
    int32_t whole = (int32_t)(scaled + (scaled < 0 ? -0.5f : 0.5f));
    int32_t upper = (whole + 128) >> 8;
    high[i] = (int8_t)upper;
    low[i] = (int8_t)(whole - upper * 256);
    total += whole;
  }
  *scale = step;
  *sum = total;
}

void phikit_make_ready(Ready *ready, const Matrix *w, const float *x_MK, int m) {
  int k = w->k;
  if (w->kind == BF16) {
    for (size_t i = 0; i < (size_t)m * k; i++) ready->bf16[i] = to_bf16(x_MK[i]);
    return;
  }
#if PHIKIT_TILES
  if ((ready->halved = phikit_takes_halves(w, m))) {
    phikit_make_halves(ready->halves, w, x_MK, m);
    return;
  }
#endif
  int groups = k / w->group;
  for (int row = 0; row < m; row++)
    for (int g = 0; g < groups; g++) {
      size_t at = (size_t)row * k + (size_t)g * w->group;
      split_group(x_MK + at, w->group, ready->high + at, ready->low + at,
                  ready->scale + row * groups + g, ready->sum + row * groups + g);
    }
}

/* --- 16 weight rows × up to 4 activation rows -------------------------------------------------*/

#define TILE 4
/* Bytes fetched ahead of their use, with 4 bits; 8 bits were read faster without. One run each, the
   kernel's bytes per second against a plain sum over memory, not taken in turns and so rough: 4 bits
   87 % with and 77 % without, 8 bits 77 % and 105 % (over 100 %: the sum is no upper limit). */
enum { AHEAD = 4096, SCALES_AHEAD = 1024 };

#if PHIKIT_AVX512

static inline __m512i four_bytes(const int8_t *x) {
  int32_t word;
  memcpy(&word, x, 4);
  return _mm512_set1_epi32(word);
}

static inline __m512 scales_at(const uint16_t *scales) {
  __m256i half = _mm256_loadu_si256((const __m256i *)scales);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* One group's integer sums, 256 × high + low, less the weights' offset; times both scales. */
static inline __m512 close_group(__m512 out, __m512i high, __m512i low, int32_t correction,
                                 __m512 weight_scale, float scale) {
  __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
  sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(correction));
  __m512 both = _mm512_mul_ps(weight_scale, _mm512_set1_ps(scale));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), both, out);
}

static inline __attribute__((always_inline)) void integer_tile(
    const Matrix *w, int unit, const Ready *x, int first, const int m, float *y, int stride) {
  const int four = w->kind == INT4, k = w->k, group = w->group, groups = k / group;
  const uint8_t *data = (const uint8_t *)w->data + (size_t)unit * LANES * k / (four ? 2 : 1);
  const uint16_t *scales = w->scales + (size_t)unit * LANES * w->scale_groups;
  const int scale_step = w->scale_groups > 1 ? LANES : 0, offset = four ? 8 : 128;
  const __m512i mask = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
  __m512 out[TILE];
  for (int r = 0; r < m; r++) out[r] = _mm512_setzero_ps();
  for (int g = 0; g < groups; g++) {
    __m512i high[TILE], low[TILE], high_2[TILE], low_2[TILE];
    for (int r = 0; r < m; r++) high[r] = low[r] = high_2[r] = low_2[r] = zero;
    for (int c = g * group; c < (g + 1) * group; c += 8) {
      __m512i first_4, second_4;
      if (four) {
        __m512i both = _mm512_loadu_si512(data);
        _mm_prefetch((const char *)data + AHEAD, _MM_HINT_T0);
        first_4 = _mm512_and_si512(both, mask);
        second_4 = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
        data += 64;
      } else {
        first_4 = _mm512_loadu_si512(data);
        second_4 = _mm512_loadu_si512(data + 64);
        data += 128;
      }
      for (int r = 0; r < m; r++) {
        const int8_t *h = x->high + (size_t)(first + r) * k + c;
        const int8_t *l = x->low + (size_t)(first + r) * k + c;
        high[r] = _mm512_dpbusd_epi32(high[r], first_4, four_bytes(h));
        low[r] = _mm512_dpbusd_epi32(low[r], first_4, four_bytes(l));
        high_2[r] = _mm512_dpbusd_epi32(high_2[r], second_4, four_bytes(h + 4));
        low_2[r] = _mm512_dpbusd_epi32(low_2[r], second_4, four_bytes(l + 4));
      }
    }
    __m512 weight_scale = scales_at(scales + (size_t)g * scale_step);
    for (int r = 0; r < m; r++) {
      int at = (first + r) * groups + g;
      out[r] = close_group(out[r], _mm512_add_epi32(high[r], high_2[r]),
                           _mm512_add_epi32(low[r], low_2[r]), offset * x->sum[at], weight_scale,
                           x->scale[at]);
    }
  }
  for (int r = 0; r < m; r++) _mm512_storeu_ps(y + (size_t)(first + r) * stride, out[r]);
}

/* Two units for one activation row: what is read of the activations serves both, and twice as many
   sums are under way at once.  */
static void integer_pair(const Matrix *w, int unit_a, int unit_b, const Ready *x, float *y_a,
                         float *y_b) {
  const int four = w->kind == INT4, k = w->k, group = w->group, groups = k / group;
  const size_t unit_bytes = (size_t)LANES * k / (four ? 2 : 1);
  const size_t unit_scales = (size_t)LANES * w->scale_groups;
  const uint8_t *data[2] = {(const uint8_t *)w->data + unit_a * unit_bytes,
                            (const uint8_t *)w->data + unit_b * unit_bytes};
  const uint16_t *scales[2] = {w->scales + unit_a * unit_scales, w->scales + unit_b * unit_scales};
  const int scale_step = w->scale_groups > 1 ? LANES : 0, offset = four ? 8 : 128;
  const int step = four ? 64 : 128;
  const __m512i mask = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
  __m512 out[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int g = 0; g < groups; g++) {
    __m512i high[4] = {zero, zero, zero, zero}, low[4] = {zero, zero, zero, zero};
    for (int c = g * group; c < (g + 1) * group; c += 8) {
      const __m512i h = four_bytes(x->high + c), h_2 = four_bytes(x->high + c + 4);
      const __m512i l = four_bytes(x->low + c), l_2 = four_bytes(x->low + c + 4);
      for (int u = 0; u < 2; u++) {
        __m512i first_4 = _mm512_loadu_si512(data[u]), second_4;
        if (four) {
          _mm_prefetch((const char *)data[u] + AHEAD, _MM_HINT_T0);
          second_4 = _mm512_and_si512(_mm512_srli_epi16(first_4, 4), mask);
          first_4 = _mm512_and_si512(first_4, mask);
        } else {
          second_4 = _mm512_loadu_si512(data[u] + 64);
        }
        data[u] += step;
        high[u] = _mm512_dpbusd_epi32(high[u], first_4, h);
        low[u] = _mm512_dpbusd_epi32(low[u], first_4, l);
        high[u + 2] = _mm512_dpbusd_epi32(high[u + 2], second_4, h_2);
        low[u + 2] = _mm512_dpbusd_epi32(low[u + 2], second_4, l_2);
      }
    }
    for (int u = 0; u < 2; u++) {
      if (four) _mm_prefetch((const char *)(scales[u] + g * scale_step) + SCALES_AHEAD, _MM_HINT_T0);
      out[u] = close_group(out[u], _mm512_add_epi32(high[u], high[u + 2]),
                           _mm512_add_epi32(low[u], low[u + 2]), offset * x->sum[g],
                           scales_at(scales[u] + (size_t)g * scale_step), x->scale[g]);
    }
  }
  _mm512_storeu_ps(y_a, out[0]);
  _mm512_storeu_ps(y_b, out[1]);
}

#if PHIKIT_BYTE_TILES
/* Columns of a tile of activations, and rows from which tiles are faster, with 4 bits and with 8. */
enum { DEEP = 32, FEWEST_4 = 5, FEWEST_8 = 2 };

/* DEEP columns of a unit of 4 bits as bytes. */
static inline void widen(const uint8_t *data, uint8_t out[DEEP / 4][64]) {
  const __m512i mask = _mm512_set1_epi8(15);
  for (int i = 0; i < DEEP / 8; i++) {
    const __m512i both = _mm512_loadu_si512(data + 64 * i);
    _mm_prefetch((const char *)data + 64 * i + AHEAD, _MM_HINT_T0);
    _mm512_storeu_si512(out[2 * i], _mm512_and_si512(both, mask));
    _mm512_storeu_si512(out[2 * i + 1], _mm512_and_si512(_mm512_srli_epi16(both, 4), mask));
  }
}

/* The sums of one group of one or two units: of each unit high and low. */
typedef int32_t Sums[4][MAX_ROWS][LANES];

static inline __attribute__((always_inline)) void close_tiles(const Matrix *w, const int *unit, const int count,
                                                              const Ready *x, int m, int g, Sums sums,
                                                              __m512 out[2][MAX_ROWS]) {
  const int four = w->kind == INT4, groups = w->k / w->group, offset = four ? 8 : 128;
  const int scale_step = w->scale_groups > 1 ? LANES : 0;
  for (int u = 0; u < count; u++) {
    const uint16_t *scales = w->scales + (size_t)unit[u] * LANES * w->scale_groups + (size_t)g * scale_step;
    if (four) _mm_prefetch((const char *)scales + SCALES_AHEAD, _MM_HINT_T0);
    const __m512 weight_scale = scales_at(scales);
    for (int r = 0; r < m; r++)
      out[u][r] = close_group(out[u][r], _mm512_loadu_si512(sums[2 * u][r]), _mm512_loadu_si512(sums[2 * u + 1][r]),
                              offset * x->sum[r * groups + g], weight_scale, x->scale[r * groups + g]);
  }
}

/* One or two units for m rows of activations: the same integer sums as `integer_tile`, used likewise,
   so the same bits. The group is a multiple of DEEP. While tiles are multiplied the next weights are
   widened and the sums of the group before are used: each would wait for the other else.  */
static inline __attribute__((always_inline)) void integer_tiles(const Matrix *w, const int *unit, const int count,
                                                                const Ready *x, int m, float *const *y, int stride) {
  const int four = w->kind == INT4, k = w->k, steps = k / DEEP, each = w->group / DEEP;
  const size_t unit_bytes = (size_t)LANES * k / (four ? 2 : 1), deep_bytes = LANES * DEEP / (four ? 2 : 1);
  __m512 out[2][MAX_ROWS];
  Sums sums[2];
  uint8_t wide[2][2][DEEP / 4][64];
  const uint8_t *data[2];
  for (int u = 0; u < count; u++) {
    data[u] = (const uint8_t *)w->data + unit[u] * unit_bytes;
    for (int r = 0; r < m; r++) out[u][r] = _mm512_setzero_ps();
    if (four) widen(data[u], wide[0][u]);
  }
  for (int step = 0; step < steps; step++) {
    const uint8_t *right[2];
    for (int u = 0; u < count; u++) right[u] = four ? wide[step & 1][u][0] : data[u] + step * deep_bytes;
    if (step % each == 0) {
      _tile_zero(0);
      _tile_zero(1);
      if (count > 1) {
        _tile_zero(2);
        _tile_zero(3);
      }
    }
    TILE_LOAD(4, x->high + step * DEEP, k);
    TILE_LOAD(6, right[0], 64);
    _tile_dpbsud(0, 4, 6);
    TILE_LOAD(5, x->low + step * DEEP, k);
    _tile_dpbsud(1, 5, 6);
    if (count > 1) {
      TILE_LOAD(7, right[1], 64);
      _tile_dpbsud(2, 4, 7);
      _tile_dpbsud(3, 5, 7);
    }
    if (four && step + 1 < steps)
      for (int u = 0; u < count; u++) widen(data[u] + (step + 1) * deep_bytes, wide[(step + 1) & 1][u]);
    if ((step + 1) % each) continue;
    const int g = step / each;
    if (g > 0) close_tiles(w, unit, count, x, m, g - 1, sums[(g - 1) & 1], out);
    _tile_stored(0, sums[g & 1][0], 64);
    _tile_stored(1, sums[g & 1][1], 64);
    if (count > 1) {
      _tile_stored(2, sums[g & 1][2], 64);
      _tile_stored(3, sums[g & 1][3], 64);
    }
  }
  const int last = steps / each - 1;
  close_tiles(w, unit, count, x, m, last, sums[last & 1], out);
  for (int u = 0; u < count; u++)
    for (int r = 0; r < m; r++) _mm512_storeu_ps(y[u] + (size_t)r * stride, out[u][r]);
}

/* Whether rows are many enough, and the matrix is such, that tiles are the faster way; turns them on. */
static inline int by_tiles(const Matrix *w, int m) {
  const int fewest = w->kind == INT4 ? FEWEST_4 : FEWEST_8;
  return m >= fewest && w->kind != BF16 && w->group % DEEP == 0 && phikit_tiles(OF_INTEGERS + m) == OF_INTEGERS + m;
}
#endif

static inline __attribute__((always_inline)) void bf16_tile(const Matrix *w, int unit,
                                                            const Ready *x, int first, const int m,
                                                            float *y, int stride) {
  const int k = w->k, whole = k & ~31, last = w->n - unit * LANES;
  const __mmask32 rest = (__mmask32)((1u << (k & 31)) - 1);
  for (int n = 0; n < LANES && n < last; n += 4) {
    const uint16_t *row[4];
    for (int i = 0; i < 4; i++) {
      int at = n + i < last ? n + i : last - 1;
      row[i] = (const uint16_t *)w->data + (size_t)(unit * LANES + at) * k;
    }
    __m512 sum[4][TILE];
    for (int i = 0; i < 4; i++)
      for (int r = 0; r < m; r++) sum[i][r] = _mm512_setzero_ps();
    for (int c = 0; c < k; c += 32) {
      const __mmask32 use = c < whole ? ~(__mmask32)0 : rest;
      __m512bh a[TILE];
      for (int r = 0; r < m; r++)
        a[r] = (__m512bh)_mm512_maskz_loadu_epi16(use, x->bf16 + (size_t)(first + r) * k + c);
      for (int i = 0; i < 4; i++) {
        __m512bh b = (__m512bh)_mm512_maskz_loadu_epi16(use, row[i] + c);
        _mm_prefetch((const char *)(row[i] + c + 4 * (size_t)k), _MM_HINT_T1); /* the rows after */
        for (int r = 0; r < m; r++) sum[i][r] = _mm512_dpbf16_ps(sum[i][r], a[r], b);
      }
    }
    float out[16];
    __m512 all[16];
    for (int i = 0; i < 4; i++)
      for (int r = 0; r < TILE; r++) all[4 * i + r] = r < m ? sum[i][r] : _mm512_setzero_ps();
    _mm512_storeu_ps(out, add_across(all));
    for (int i = 0; i < 4 && n + i < last; i++)
      for (int r = 0; r < m; r++) y[(size_t)(first + r) * stride + n + i] = out[4 * r + i];
  }
}

#else /* plain C: the same layouts, the same integer sums */

static inline int weight_at(const Matrix *w, int unit, int lane, int c) {
  const uint8_t *data = w->data;
  if (w->kind == INT8)
    return data[((size_t)unit * (w->k / 4) + c / 4) * 64 + lane * 4 + c % 4] - 128;
  uint8_t both = data[((size_t)unit * (w->k / 8) + c / 8) * 64 + lane * 4 + c % 4];
  return (c % 8 < 4 ? both & 15 : both >> 4) - 8;
}

static inline void integer_tile(const Matrix *w, int unit, const Ready *x, int first, const int m,
                                float *y, int stride) {
  const int group = w->group, groups = w->k / group, several = w->scale_groups > 1;
  for (int lane = 0; lane < LANES; lane++) {
    float out[TILE] = {0};
    for (int g = 0; g < groups; g++) {
      int32_t weights[MAX_GROUP];
      for (int c = 0; c < group; c++) weights[c] = weight_at(w, unit, lane, g * group + c);
      size_t scale_at = ((size_t)unit * w->scale_groups + (several ? g : 0)) * LANES + lane;
      float weight_scale = from_bf16(w->scales[scale_at]);
      for (int r = 0; r < m; r++) {
        const int8_t *high = x->high + (size_t)(first + r) * w->k + (size_t)g * group;
        const int8_t *low = x->low + (size_t)(first + r) * w->k + (size_t)g * group;
        int32_t sum = 0;
        for (int c = 0; c < group; c++) sum += weights[c] * (high[c] * 256 + low[c]);
        float both = weight_scale * x->scale[(first + r) * groups + g];
        out[r] = fmaf((float)sum, both, out[r]); /* the same bits for any number of rows */
      }
    }
    for (int r = 0; r < m; r++) y[(size_t)(first + r) * stride + lane] = out[r];
  }
}

/* Never inlined: the same bits whatever it is called in. */
static __attribute__((noinline)) float dot(const uint16_t *a, const uint16_t *b, int n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; i++) sum += from_bf16(a[i]) * from_bf16(b[i]);
  return sum;
}

static inline void bf16_tile(const Matrix *w, int unit, const Ready *x, int first, const int m,
                             float *y, int stride) {
  for (int n = 0; n < LANES && unit * LANES + n < w->n; n++) {
    const uint16_t *row = (const uint16_t *)w->data + (size_t)(unit * LANES + n) * w->k;
    for (int r = 0; r < m; r++) {
      const uint16_t *a = x->bf16 + (size_t)(first + r) * w->k;
      y[(size_t)(first + r) * stride + n] = dot(row, a, w->k);
    }
  }
}

#endif

void phikit_unit(const Matrix *w, int unit, const Ready *x, int m, float *y, int stride) {
#if PHIKIT_TILES
  if (w->kind == INT4 && x->halved) {
    float out[2][MAX_ROWS * LANES];
    phikit_halves(w, (int[2]){unit, unit}, x, m, (float *[2]){out[0], out[1]});
    for (int r = 0; r < m; r++) memcpy(y + (size_t)r * stride, out[0] + r * LANES, 4 * LANES);
    return;
  }
#endif
#if PHIKIT_BYTE_TILES
  if (by_tiles(w, m)) {
    integer_tiles(w, &unit, 1, x, m, &y, stride);
    return;
  }
#endif
  for (int first = 0; first < m; first += TILE) {
    int rows = m - first < TILE ? m - first : TILE;
#define CASE(R)                                                  \
  case R:                                                        \
    if (w->kind == BF16)                                         \
      bf16_tile(w, unit, x, first, R, y, stride);                \
    else                                                         \
      integer_tile(w, unit, x, first, R, y, stride);             \
    break;
    switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) }
#undef CASE
  }
}

void phikit_pair(const Matrix *w, int unit_a, int unit_b, const Ready *x, int m, float *y_a,
                 float *y_b) {
#if PHIKIT_AVX512
  if (m == 1 && w->kind != BF16) {
    integer_pair(w, unit_a, unit_b, x, y_a, y_b);
    return;
  }
#endif
#if PHIKIT_TILES
  if (w->kind == INT4 && x->halved) {
    phikit_halves(w, (int[2]){unit_a, unit_b}, x, m, (float *[2]){y_a, y_b});
    return;
  }
#endif
#if PHIKIT_BYTE_TILES
  if (by_tiles(w, m)) {
    const int both[2] = {unit_a, unit_b};
    float *const y[2] = {y_a, y_b};
    integer_tiles(w, both, 2, x, m, y, LANES);
    return;
  }
#endif
  phikit_unit(w, unit_a, x, m, y_a, LANES);
  phikit_unit(w, unit_b, x, m, y_b, LANES);
}

/* --- a whole product --------------------------------------------------------------------------*/

typedef struct {
  const Matrix *w;
  const void *x;
  void *y;
  int wide, m;   /* wide: float32 in and out, else bfloat16 */
  Ready *part;   /* up to MAX_ROWS rows each */
  float *copy;   /* x in float32 */
} Product;

static inline int rows_of(const Product *p, int part) {
  const int rest = p->m - part * MAX_ROWS;
  return rest < MAX_ROWS ? rest : MAX_ROWS;
}

static void make_part_ready(const Product *p, int part) {
  const size_t at = (size_t)part * MAX_ROWS * p->w->k, count = (size_t)rows_of(p, part) * p->w->k;
  const float *x = (const float *)p->x + at;
  if (!p->wide) {
    for (size_t i = 0; i < count; i++) p->copy[at + i] = from_bf16(((const uint16_t *)p->x)[at + i]);
    x = p->copy + at;
  }
  phikit_make_ready(&p->part[part], p->w, x, rows_of(p, part));
}

/* The results of one unit for m rows from `row` on to their place. */
static void put_unit(const Product *p, int unit, int row, int m, const float *y) {
  const int n = p->w->n, rest = n - unit * LANES, count = rest < LANES ? rest : LANES;
  for (int r = 0; r < m; r++, y += LANES) {
    const size_t at = (size_t)(row + r) * n + (size_t)unit * LANES;
    if (p->wide) {
      memcpy((float *)p->y + at, y, 4 * count);
      continue;
    }
    uint16_t narrow[LANES];
    for (int i = 0; i < LANES; i++) narrow[i] = to_bf16(y[i]);
    memcpy((uint16_t *)p->y + at, narrow, 2 * count);
  }
}

static void multiply(Team *team, void *argument) {
  const Product *p = argument;
  const int parts = (p->m + MAX_ROWS - 1) / MAX_ROWS, total = (units(p->w) + 1) / 2, size = piece(team, total);
  for (int part; (part = claim(team, parts, 1)) >= 0;) make_part_ready(p, part);
  meet(team);
  for (int first; (first = claim(team, total, size)) >= 0;)
    for (int pair = first; pair < first + size && pair < total; pair++)
      for (int part = 0; part < parts; part++) {
        const int m = rows_of(p, part);
        float y[2][MAX_ROWS * LANES];
        phikit_two(p->w, pair, &p->part[part], m, y);
        for (int unit = 2 * pair; unit < 2 * pair + 2 && unit < units(p->w); unit++)
          put_unit(p, unit, part * MAX_ROWS, m, y[unit & 1]);
      }
  phikit_tiles(NO_TILES);
}

/* y_MN = x_MK · wᵀ. `wide`: x and y are float32, else bfloat16. Integer weights: a row comes out the
   same whatever goes with it. Returns 0, or -1 without memory. */
int phikit_linear(const Matrix *w, const void *x, int wide, int m, void *y, int threads) {
  const int parts = (m + MAX_ROWS - 1) / MAX_ROWS, most = m < MAX_ROWS ? m : MAX_ROWS;
  const size_t each = phikit_ready_bytes(most, w->k), copied = wide ? 0 : 4 * (size_t)m * w->k;
  char *memory = malloc(parts * (sizeof(Ready) + each) + copied);
  if (!memory) return -1;
  Product product = {w, x, y, wide, m, (Ready *)memory, NULL};
  char *rest = memory + parts * sizeof(Ready);
  for (int i = 0; i < parts; i++, rest += each) phikit_ready_init(&product.part[i], rest, most, w->k);
  product.copy = (float *)rest;
  if ((size_t)w->n * w->k * m < (1u << 19)) threads = 1; /* shorter than the start of a thread */
  phikit_run_team(threads, multiply, &product);
  free(memory);
  return 0;
}

/* --- whole matrices, for products with many rows ----------------------------------------------*/

typedef struct {
  const Matrix *w;
  uint16_t *out;
  size_t stride;
} Unpacking;

/* Columns c and on, as many as lie in one word of a lane, of one unit: out[column][16]. */
static void unpack_words(const Matrix *w, int unit, int c, uint16_t *out, size_t stride) {
  const int four = w->kind == INT4, bits = four ? 4 : 8, offset = four ? 8 : 128;
  const int mask = four ? 15 : 255, rows = w->n - unit * LANES < LANES ? w->n - unit * LANES : LANES;
  const uint8_t *data = (const uint8_t *)w->data + ((size_t)unit * w->k + c) * LANES * bits / 8;
  const int g = w->scale_groups > 1 ? c / w->group : 0;
  const uint16_t *scale = w->scales + ((size_t)unit * w->scale_groups + g) * LANES;
#if PHIKIT_AVX512
  const __m512i words = _mm512_loadu_si512(data), low_bits = _mm512_set1_epi32(mask);
  const __m512 scales = scales_at(scale);
#else
  uint32_t words[LANES];
  memcpy(words, data, 64);
#endif
  for (int i = 0; i < 32 / bits; i++) {
    const int shift = 8 * (i % 4) + (i < 4 ? 0 : 4);
    uint16_t column[LANES];
#if PHIKIT_AVX512
    __m512i v = _mm512_and_si512(_mm512_srl_epi32(words, _mm_cvtsi32_si128(shift)), low_bits);
    __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(v, _mm512_set1_epi32(offset)));
    _mm256_storeu_si256((__m256i *)column, (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(value, scales)));
#else
    for (int n = 0; n < LANES; n++)
      column[n] = to_bf16((float)((int)((words[n] >> shift) & mask) - offset) * from_bf16(scale[n]));
#endif
    if (rows == LANES)
      memcpy(out + (size_t)(c + i) * stride, column, 2 * LANES);
    else
      memcpy(out + (size_t)(c + i) * stride, column, 2 * rows);
  }
}

static void unpack(Team *team, void *argument) {
  Unpacking *u = argument;
  int total = units(u->w);
  const int step = u->w->kind == INT4 ? 8 : 4;
  /* two units side by side fill a cache line */
  for (int first; (first = claim(team, total, 2)) >= 0;)
    for (int c = 0; c < u->w->k; c += step)
      for (int unit = first; unit < first + 2 && unit < total; unit++)
        unpack_words(u->w, unit, c, u->out + (size_t)unit * LANES, u->stride);
}

/* out_KN = the weights in bfloat16, transposed: the order in which they are packed. Rows of the
   result are `stride` elements apart.  */
void phikit_unpack(const Matrix *w, uint16_t *out, int64_t stride, int threads) {
  Unpacking unpacking = {w, out, (size_t)stride};
  phikit_run_team(threads, unpack, &unpacking);
}
