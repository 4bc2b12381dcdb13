/* See attend8.h. With a matrix unit a product is a few of its instructions; without, dot products of
   four bytes. */
#include "attend8.h"

/* Lines to fetch with a quarter of a tile's product, and with a map's weights: together about what the
   next tile has. */
enum { A_QUARTER = 16, WITH_WEIGHTS = 8 };

#define MOST 32512.0f /* the largest number whose high byte, of 127, has no carry */

void phikit_split(const float *x, int n, Split *out) {
  float largest = 0;
  int32_t total = 0;
#if PHIKIT_AVX512
  __m512 most = _mm512_setzero_ps();
  __m512i sum = _mm512_setzero_si512();
  for (int i = 0; i < n; i += 16) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
  largest = _mm512_reduce_max_ps(most);
  const __m512 inverse = _mm512_set1_ps(largest > 0 ? MOST / largest : 0);
  for (int i = 0; i < n; i += 16) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
    const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
    _mm_storeu_si128((__m128i *)(out->high + i), _mm512_cvtepi32_epi8(upper));
    _mm_storeu_si128((__m128i *)(out->low + i), _mm512_cvtepi32_epi8(whole)); /* its lowest byte */
    sum = _mm512_add_epi32(sum, whole);
  }
  total = _mm512_reduce_add_epi32(sum);
#else
  for (int i = 0; i < n; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
  const float inverse = largest > 0 ? MOST / largest : 0;
  for (int i = 0; i < n; i++) {
    const int32_t whole = (int32_t)rintf(x[i] * inverse), upper = (whole + 128) >> 8;
    out->high[i] = (int8_t)upper;
    out->low[i] = (int8_t)(whole - upper * 256);
    total += whole;
  }
#endif
  out->scale = largest / MOST;
  out->sum = total;
}

/* x as integers + 128, `apart` bytes from each other by fours; returns their scale. What is smaller
   than any number of a model is 0. */
static float squeeze(const uint16_t *x, int n, uint8_t *out, size_t four, size_t one) {
  float largest = 0;
  for (int i = 0; i < n; i++) largest = fabsf(from_bf16(x[i])) > largest ? fabsf(from_bf16(x[i])) : largest;
  const float scale = largest / 127.0f, least = scale > 1e-30f ? scale : 1e-30f;
  for (int i = 0; i < n; i++)
    out[(size_t)(i / 4) * four + (i % 4) * one] = (uint8_t)((int)rintf(from_bf16(x[i]) / least) + 128);
  return scale;
}

float phikit_put_key8(uint8_t *head, int size, int at, const uint16_t *x, int k) {
  return squeeze(x, k, head + 4 * (size_t)at, 4 * (size_t)size, 1);
}

float phikit_put_value8(uint8_t *head, int at, const uint16_t *x, int v) {
  return squeeze(x, v, head + (size_t)(at & ~3) * v + at % 4, 16, 4);
}

#if PHIKIT_AVX512
static inline __m512i four(const int8_t *x) {
  int32_t word;
  memcpy(&word, x, 4);
  return _mm512_set1_epi32(word);
}

static inline __m512 joined(__m512i high, __m512i low, int32_t sum) {
  const __m512i all = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(all, _mm512_set1_epi32(128 * sum)));
}

/* 16 scores. */
static inline void put_scores(__m512i high, __m512i low, const Split *q, const float *scale, float *score) {
  const __m512 both = _mm512_mul_ps(_mm512_loadu_ps(scale), _mm512_set1_ps(q->scale));
  _mm512_storeu_ps(score, _mm512_mul_ps(joined(high, low, q->sum), both));
}

/* 16 channels of what a map gathers. */
static inline void gather(__m512i high, __m512i low, const Split *weight, float *total) {
  const __m512 scale = _mm512_set1_ps(weight->scale);
  _mm512_storeu_ps(total, _mm512_fmadd_ps(joined(high, low, weight->sum), scale, _mm512_loadu_ps(total)));
}
#endif

#if PHIKIT_BYTE_TILES
enum { SIDE = 16, BYTES = 64 };  /* rows of a tile, and bytes of each */

static void score_in_tiles(const Split *const *q, int count, const uint8_t *key, const float *scale, int n,
                           int k, int size, float *const *score, Ahead *next) {
  int8_t queries[WIDEST_8 / BYTES][2 * TOGETHER][BYTES];
  int32_t sums[2 * TOGETHER][TILE_LENGTH];
  memset(queries, 0, sizeof queries);
  for (int j = 0; j < k / BYTES; j++)
    for (int h = 0; h < count; h++) {
      memcpy(queries[j][h], q[h]->high + BYTES * j, BYTES);
      memcpy(queries[j][TOGETHER + h], q[h]->low + BYTES * j, BYTES);
    }
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int j = 0; j < k / BYTES; j++) {
    const uint8_t *at = key + (size_t)j * BYTES * size;
    TILE_LOAD(4, queries[j], BYTES);
#define QUARTER(Q, TILE)                            \
  if (SIDE * Q < n) {                               \
    fetch(next, A_QUARTER);                            \
    TILE_LOAD(TILE, at + 4 * SIDE * Q, 4 * size); \
    _tile_dpbsud(Q, 4, TILE);                       \
  }
    QUARTER(0, 5) QUARTER(1, 6) QUARTER(2, 7) QUARTER(3, 5)
#undef QUARTER
  }
  _tile_stored(0, sums[0], sizeof sums[0]);
  _tile_stored(1, sums[0] + SIDE, sizeof sums[0]);
  _tile_stored(2, sums[0] + 2 * SIDE, sizeof sums[0]);
  _tile_stored(3, sums[0] + 3 * SIDE, sizeof sums[0]);
  for (int h = 0; h < count; h++)
    for (int i = 0; i < n; i += SIDE)
      put_scores(_mm512_loadu_si512(sums[h] + i), _mm512_loadu_si512(sums[TOGETHER + h] + i), q[h], scale + i,
                 score[h] + i);
}

static void weigh_in_tiles(const uint8_t *value, int v, const Split *weight, int maps, Gathered *gathered,
                           Ahead *next) {
  int8_t weights[2 * TOGETHER][BYTES];
  for (int h = 0; h < TOGETHER; h++) {
    memcpy(weights[h], weight[h].high, BYTES);
    memcpy(weights[TOGETHER + h], weight[h].low, BYTES);
  }
  TILE_LOAD(4, weights, BYTES);
  for (int from = 0; from < v; from += 4 * SIDE) {
    int32_t sums[2 * TOGETHER][4 * SIDE];
#define QUARTER(Q, TILE)                                                \
  if (from + SIDE * Q < v) {                                            \
    fetch(next, A_QUARTER);                                                \
    TILE_LOAD(TILE, value + 4 * (size_t)(from + SIDE * Q), 4 * (size_t)v); \
    _tile_zero(Q);                                                      \
    _tile_dpbsud(Q, 4, TILE);                                           \
    _tile_stored(Q, sums[0] + SIDE * Q, sizeof sums[0]);                \
  }
    QUARTER(0, 5) QUARTER(1, 6) QUARTER(2, 7) QUARTER(3, 5)
#undef QUARTER
    for (int h = 0; h < maps; h++)
      for (int i = 0; i < 4 * SIDE && from + i < v; i += SIDE)
        gather(_mm512_loadu_si512(sums[h] + i), _mm512_loadu_si512(sums[TOGETHER + h] + i), weight + h,
               gathered[h].total + from + i);
  }
}
#else
static void score_in_tiles(const Split *const *q, int count, const uint8_t *key, const float *scale, int n,
                           int k, int size, float *const *score, Ahead *next) {
  (void)q, (void)count, (void)key, (void)scale, (void)n, (void)k, (void)size, (void)score, (void)next;
}

static void weigh_in_tiles(const uint8_t *value, int v, const Split *weight, int maps, Gathered *gathered,
                           Ahead *next) {
  (void)value, (void)v, (void)weight, (void)maps, (void)gathered, (void)next;
}
#endif

void phikit_score8(const Split *const *q, int count, const uint8_t *key, const float *scale, int n, int k,
                   int size, float *const *score, Ahead *next) {
  if (PHIKIT_BYTE_TILES && k % 64 == 0 && phikit_tiles(OF_HEADS)) {
    score_in_tiles(q, count, key, scale, n, k, size, score, next);
    return;
  }
#if PHIKIT_AVX512
  for (int i = 0; i < n; i += 16) {
    __m512i high[TOGETHER], low[TOGETHER];
    for (int h = 0; h < count; h++) high[h] = low[h] = _mm512_setzero_si512();
    for (int j = 0; j < k; j += 4) {
      const __m512i x = _mm512_loadu_si512(key + (size_t)j * size + 4 * i);
      fetch(next, 1);
      for (int h = 0; h < count; h++) {
        high[h] = _mm512_dpbusd_epi32(high[h], x, four(q[h]->high + j));
        low[h] = _mm512_dpbusd_epi32(low[h], x, four(q[h]->low + j));
      }
    }
    for (int h = 0; h < count; h++) put_scores(high[h], low[h], q[h], scale + i, score[h] + i);
  }
#else
  (void)next;
  for (int h = 0; h < count; h++)
    for (int i = 0; i < n; i++) {
      int32_t sum = 0;
      for (int j = 0; j < k; j++)
        sum += (key[(size_t)(j & ~3) * size + 4 * i + j % 4] - 128) * (256 * q[h]->high[j] + q[h]->low[j]);
      score[h][i] = (float)sum * q[h]->scale * scale[i];
    }
#endif
}

void phikit_weights8(float *score, int n, float scale, const float *value_scale, int v, Gathered *map, Split *out,
                     Ahead *next) {
  fetch(next, WITH_WEIGHTS);
  soften(score, n, scale, 0, v, map);
  for (int i = 0; i < n; i++) score[i] *= value_scale[i];
  memset(score + n, 0, sizeof(float) * (size_t)(TILE_LENGTH - n));
  phikit_split(score, TILE_LENGTH, out);
}

void phikit_weigh8(const uint8_t *value, int n, int v, const Split *weight, int maps, Gathered *gathered,
                   Ahead *next) {
  if (PHIKIT_BYTE_TILES && n > TILE_LENGTH - 4 && phikit_tiles(OF_HEADS)) {
    weigh_in_tiles(value, v, weight, maps, gathered, next);
    return;
  }
#if PHIKIT_AVX512
  for (int from = 0; from < v; from += 32) {
    const int wide = v - from >= 32;
    __m512i high[TOGETHER][2], low[TOGETHER][2];
    for (int h = 0; h < TOGETHER; h++)
      for (int j = 0; j < 2; j++) high[h][j] = low[h][j] = _mm512_setzero_si512();
    for (int i = 0; i < n; i += 4) {
      const uint8_t *at = value + (size_t)i * v + 4 * from;
      const __m512i x[2] = {_mm512_loadu_si512(at), _mm512_loadu_si512(wide ? at + 64 : at)};
      fetch(next, 2);
      for (int h = 0; h < TOGETHER; h++) {
        const __m512i a = four(weight[h].high + i), b = four(weight[h].low + i);
        for (int j = 0; j < 2; j++) {
          high[h][j] = _mm512_dpbusd_epi32(high[h][j], x[j], a);
          low[h][j] = _mm512_dpbusd_epi32(low[h][j], x[j], b);
        }
      }
    }
    for (int h = 0; h < maps; h++)
      for (int j = 0; j < 1 + wide; j++)
        gather(high[h][j], low[h][j], weight + h, gathered[h].total + from + 16 * j);
  }
#else
  (void)next;
  for (int h = 0; h < maps; h++)
    for (int j = 0; j < v; j++) {
      int32_t sum = 0;
      for (int i = 0; i < n; i++)
        sum += (value[(size_t)(i & ~3) * v + 4 * j + i % 4] - 128) * (256 * weight[h].high[i] + weight[h].low[i]);
      gathered[h].total[j] += (float)sum * weight[h].scale;
    }
#endif
}
