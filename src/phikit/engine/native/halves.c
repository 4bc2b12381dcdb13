/* Products of several rows of activations with 4-bit weights in the matrix unit, as bfloat16.

   A weight's integer, -8 to 7, is exact in bfloat16, and so are both bytes of an activation's 16-bit
   integer, the high one times 256, and times a power of two. Their products add up in float32 to
   integers below 2^24 (times that) while a group has no more than 64 columns: to the very sums of
   products.c, in whatever order. Here one tile holds them, and one multiplication for each row is
   left, where sums of bytes (`integer_tiles`) leave two tiles to be put together, freed of the weights'
   offset, turned into float32 and scaled: at eight rows more work than reading the weights.  */
#include "common.h"

#if PHIKIT_TILES

/* Columns that one instruction takes; the widest group; rows from which this is the faster way; steps
   that weights are widened ahead; bytes fetched ahead of their use. */
enum { DEEP = 32, WIDEST_GROUP = 64, FEWEST = 4, RING = 4, AHEAD = 1024, SCALES_AHEAD = 256 };

int phikit_takes_halves(const Matrix *w, int m) {
  const int fits = w->kind == INT4 && w->group % DEEP == 0 && w->group <= WIDEST_GROUP;
  return fits && m >= FEWEST && phikit_tiles(OF_HALVES + m) == OF_HALVES + m;
}

/* Its bits. */
static inline uint32_t largest_of(const float *x, int n) {
  const __m512i no_sign = _mm512_set1_epi32(0x7fffffff);
  __m512i most = _mm512_setzero_si512();
  for (int i = 0; i < n; i += 16) most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_loadu_si512(x + i), no_sign));
  return _mm512_reduce_max_epu32(most);
}

/* Sixteen columns of a row. Of every eight the order is 0 2 4 6 1 3 5 7, in which `widen` finds the
   weights. The integers are those of `split_group` (products.c). */
static inline void put_columns(const float *x, float step, float inverse, uint16_t *high, uint16_t *low) {
  const __m512i order = _mm512_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  const __m512 scaled = _mm512_mul_ps(_mm512_permutexvar_ps(order, _mm512_loadu_ps(x)), _mm512_set1_ps(inverse));
  const __m512i sign = _mm512_and_si512(_mm512_castps_si512(scaled), _mm512_set1_epi32((int)0x80000000u));
  const __m512i half = _mm512_or_si512(sign, _mm512_castps_si512(_mm512_set1_ps(0.5f)));
  const __m512i whole = _mm512_cvttps_epi32(_mm512_add_ps(scaled, _mm512_castsi512_ps(half)));
  const __m512i upper = _mm512_and_si512(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), _mm512_set1_epi32(~255));
  const __m512 times = _mm512_set1_ps(step), a = _mm512_cvtepi32_ps(upper);
  const __m512 b = _mm512_cvtepi32_ps(_mm512_sub_epi32(whole, upper));
  _mm256_storeu_si256((__m256i *)high, (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(a, times)));
  _mm256_storeu_si256((__m256i *)low, (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(b, times)));
}

void phikit_make_halves(uint16_t *halves, const Matrix *w, const float *x_MK, int m) {
  const int k = w->k, group = w->group;
  for (int row = 0; row < m; row++)
    for (int from = 0; from < k; from += group) {
      const float *x = x_MK + (size_t)row * k + from;
      const float step = step_of(largest_of(x, group)), inverse = step > 0 ? 1.0f / step : 0;
      for (int i = 0; i < group; i += 16) {
        uint16_t *to = halves + ((size_t)((from + i) / DEEP) * 2 * m + row) * DEEP + (from + i) % DEEP;
        put_columns(x + i, step, inverse, to, to + (size_t)m * DEEP);
      }
    }
}

/* DEEP columns of a unit, two side by side in each of sixteen lanes. A lane's word holds weights 0 4 1 5
   of eight and the next one 2 6 3 7, so that shifting both leaves pairs 0 2, 4 6, 1 3, 5 7. Shifts by
   multiplication: a shift would go where the permutations go, which are many already.  */
static inline void widen(const uint8_t *data, uint16_t out[DEEP / 2][DEEP]) {
  /* -8 to 7 in bfloat16, twice: of what is above a half of a byte only the lowest bit is looked at */
  const __m512i values = _mm512_set_epi16(
      0x40e0, 0x40c0, 0x40a0, 0x4080, 0x4040, 0x4000, 0x3f80, 0x0000, (short)0xbf80, (short)0xc000,
      (short)0xc040, (short)0xc080, (short)0xc0a0, (short)0xc0c0, (short)0xc0e0, (short)0xc100,
      0x40e0, 0x40c0, 0x40a0, 0x4080, 0x4040, 0x4000, 0x3f80, 0x0000, (short)0xbf80, (short)0xc000,
      (short)0xc040, (short)0xc080, (short)0xc0a0, (short)0xc0c0, (short)0xc0e0, (short)0xc100);
  const __m512i by_4 = _mm512_set1_epi16(1 << 12), by_8 = _mm512_set1_epi16(1 << 8), by_12 = _mm512_set1_epi16(1 << 4);
  for (int i = 0; i < DEEP / 8; i++) {
    const __m512i four = _mm512_loadu_si512(data + 64 * i);
    _mm_prefetch((const char *)data + 64 * i + AHEAD, _MM_HINT_T0);
    _mm512_storeu_si512(out[4 * i], _mm512_permutexvar_epi16(four, values));
    _mm512_storeu_si512(out[4 * i + 1], _mm512_permutexvar_epi16(_mm512_mulhi_epu16(four, by_4), values));
    _mm512_storeu_si512(out[4 * i + 2], _mm512_permutexvar_epi16(_mm512_mulhi_epu16(four, by_8), values));
    _mm512_storeu_si512(out[4 * i + 3], _mm512_permutexvar_epi16(_mm512_mulhi_epu16(four, by_12), values));
  }
}

/* As `close_group` of products.c, the same bits: the activations' scale is in the sums already. */
static inline __attribute__((always_inline)) void use_sums(const uint16_t *scales, float sums[MAX_ROWS][LANES],
                                                           __m512 *out, const int rows) {
  const __m256i half = _mm256_loadu_si256((const __m256i *)scales);
  const __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  _mm_prefetch((const char *)scales + SCALES_AHEAD, _MM_HINT_T0);
  for (int r = 0; r < rows; r++) out[r] = _mm512_fmadd_ps(_mm512_loadu_ps(sums[r]), scale, out[r]);
}

/* One step of one of two units: its products are under way while the other unit's sums, finished by
   then, leave their tile, its own weights of RING - 1 steps later are widened and its own sums of the
   group before are used. Whatever was stored just before would be waited for.  */
#define STEP(UNIT, TILE, RIGHT, FULL, OTHER, OTHER_SUMS)                                            \
  if (begins) _tile_zero(TILE);                                                                     \
  TILE_LOAD(RIGHT, wide[step % RING][UNIT], 2 * DEEP);                                              \
  _tile_dpbf16ps(TILE, 4, RIGHT);                                                                   \
  _tile_dpbf16ps(TILE, 5, RIGHT);                                                                   \
  if (FULL) _tile_stored(OTHER, OTHER_SUMS, 64);                                                    \
  if (step + RING - 1 < steps)                                                                      \
    widen(data[UNIT] + (step + RING - 1) * STEP_BYTES, wide[(step + RING - 1) % RING][UNIT]);       \
  if (begins && step) {                                                                             \
    use_sums(scales[UNIT], sums[UNIT], out[UNIT], rows);                                            \
    scales[UNIT] += LANES;                                                                          \
  }

/* Two units for m rows of activations; `rows`: m, rounded up to what there is code for. */
static inline __attribute__((always_inline)) void multiply(const Matrix *w, const int unit[2], const Ready *x, int m,
                                                           const int rows, float *const y[2]) {
  enum { STEP_BYTES = LANES * DEEP / 2 };
  const int steps = w->k / DEEP, each = w->group / DEEP;
  __m512 out[2][MAX_ROWS];
  /* what lies past row m is nothing that slows the processor down */
  float sums[2][MAX_ROWS][LANES] __attribute__((aligned(64))) = {0};
  uint16_t wide[RING][2][DEEP / 2][DEEP] __attribute__((aligned(64)));
  const uint8_t *data[2];
  const uint16_t *scales[2], *halves = x->halves;
  for (int u = 0; u < 2; u++) {
    data[u] = (const uint8_t *)w->data + (size_t)unit[u] * steps * STEP_BYTES;
    scales[u] = w->scales + (size_t)unit[u] * LANES * w->scale_groups;
    for (int r = 0; r < rows; r++) out[u][r] = _mm512_setzero_ps();
    for (int step = 0; step < RING - 1 && step < steps; step++) widen(data[u] + step * STEP_BYTES, wide[step][u]);
  }
  int left = each; /* steps of the group */
  for (int step = 0; step < steps; step++, halves += 2 * m * DEEP) {
    TILE_LOAD(4, halves, 2 * DEEP);
    TILE_LOAD(5, halves + m * DEEP, 2 * DEEP);
    const int begins = left == each, ends = --left == 0;
    STEP(0, 0, 6, begins && step, 1, sums[1])
    STEP(1, 1, 7, ends, 0, sums[0])
    if (ends) left = each;
  }
  _tile_stored(1, sums[1], 64);
  for (int u = 0; u < 2; u++) {
    use_sums(scales[u], sums[u], out[u], rows);
    for (int r = 0; r < m; r++) _mm512_storeu_ps(y[u] + r * LANES, out[u][r]);
  }
}

void phikit_halves(const Matrix *w, const int unit[2], const Ready *x, int m, float *const y[2]) {
  phikit_tiles(OF_HALVES + m);
  if (m <= 4) multiply(w, unit, x, m, 4, y);
  else if (m <= 8) multiply(w, unit, x, m, 8, y);
  else if (m <= 12) multiply(w, unit, x, m, 12, y);
  else multiply(w, unit, x, m, MAX_ROWS, y);
}

#endif
