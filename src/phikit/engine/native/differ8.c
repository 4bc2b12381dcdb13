/* Differential attention to a cache in 8 bits: half the reading.

   A key is 8-bit integers with one scale for each position and head, a value likewise for each
   position and pair. They lie as integer dot products read them, the integer + 128:

   keys   [blocks][E][K / 4][S][4]   four channels of a position together, 16 positions in a vector
   values [blocks][P][S / 4][V][4]   four positions of a channel together, 16 channels in a vector

   Queries and weights are 16-bit integers, two signed bytes, so that they lose nothing to speak of.
   S is a multiple of 16, K of 16.  */
#include "differ.h"

static size_t key_at(const DifferShape *c, size_t block, int head, int at) {
  return (block * c->kv_heads + head) * c->block_size * c->head_dim + 4 * (size_t)at;
}

static size_t value_at(const DifferShape *c, size_t block, int pair, int at) {
  return ((block * (c->kv_heads / 2) + pair) * c->block_size + at) * 2 * c->head_dim;
}

static size_t scale_at(const DifferShape *c, size_t block, int head, int heads, int at) {
  return (block * heads + head) * c->block_size + at;
}

/* x as integers + 128, `apart` bytes from each other by fours; returns their scale. */
static float squeeze(const uint16_t *x, int n, uint8_t *out, size_t four, size_t one) {
  float largest = 0;
  for (int i = 0; i < n; i++) largest = fabsf(from_bf16(x[i])) > largest ? fabsf(from_bf16(x[i])) : largest;
  const float scale = largest / 127.0f;
  for (int i = 0; i < n; i++) {
    const float whole = scale > 0 ? rintf(from_bf16(x[i]) / scale) : 0;
    out[(size_t)(i / 4) * four + (i % 4) * one] = (uint8_t)((int)whole + 128);
  }
  return scale;
}

static void put_pair(const Differ *s, int row, int pair) {
  const DifferShape *c = s->shape;
  const int k = c->head_dim, size = c->block_size, at = s->put[row] % size, pairs = c->kv_heads / 2;
  const size_t block = s->table[(size_t)row * c->table_width + s->put[row] / size];
  const uint16_t *key = new_keys(s, row, pair);
  for (int half = 0; half < 2; half++) {
    const int head = 2 * pair + half;
    s->key_scales[scale_at(c, block, head, c->kv_heads, at)] =
        squeeze(key + half * k, k, (uint8_t *)s->keys + key_at(c, block, head, at), 4 * (size_t)size, 1);
  }
  uint8_t *value = (uint8_t *)s->values + value_at(c, block, pair, at & ~3) + at % 4;
  s->value_scales[scale_at(c, block, pair, pairs, at)] = squeeze(key + values_after(c), 2 * k, value, 16, 4);
}

/* Numbers as 256 high + low, times one scale. */
typedef struct {
  int8_t high[256], low[256];
  float scale;
  int32_t sum;
} Split;

static void split(const float *x, int n, Split *out) {
  float largest = 0;
#pragma omp simd reduction(max : largest)
  for (int i = 0; i < n; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
  const float inverse = largest > 0 ? 32512.0f / largest : 0;
  int32_t total = 0;
#pragma omp simd reduction(+ : total)
  for (int i = 0; i < n; i++) {
    const float scaled = x[i] * inverse;
    const int32_t whole = (int32_t)(scaled + (scaled < 0 ? -0.5f : 0.5f));
    const int32_t upper = (whole + 128) >> 8;
    out->high[i] = (int8_t)upper;
    out->low[i] = (int8_t)(whole - upper * 256);
    total += whole;
  }
  out->scale = largest / 32512.0f;
  out->sum = total;
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
#endif

/* Scores of `heads` queries (every second of q) with n keys of one head, n rounded up to 16. */
static void scores(const DifferShape *c, const Split *q, const uint8_t *key, const float *scale, int n,
                   int heads, float (*score)[TILE_LENGTH]) {
  const int k = c->head_dim, size = c->block_size;
#if PHIKIT_AVX512
  for (int i = 0; i < n; i += 16) {
    __m512i high[2], low[2];
    for (int h = 0; h < heads; h++) high[h] = low[h] = _mm512_setzero_si512();
    for (int j = 0; j < k; j += 4) {
      const __m512i x = _mm512_loadu_si512(key + (size_t)j * size + 4 * i);
      for (int h = 0; h < heads; h++) {
        high[h] = _mm512_dpbusd_epi32(high[h], x, four(q[2 * h].high + j));
        low[h] = _mm512_dpbusd_epi32(low[h], x, four(q[2 * h].low + j));
      }
    }
    for (int h = 0; h < heads; h++) {
      const __m512 both = _mm512_mul_ps(_mm512_loadu_ps(scale + i), _mm512_set1_ps(q[2 * h].scale));
      _mm512_storeu_ps(score[2 * h] + i, _mm512_mul_ps(joined(high[h], low[h], q[2 * h].sum), both));
    }
  }
#else
  for (int h = 0; h < heads; h++)
    for (int i = 0; i < n; i++) {
      int32_t sum = 0;
      for (int j = 0; j < k; j++)
        sum += (key[(size_t)(j & ~3) * size + 4 * i + j % 4] - 128) * (256 * q[2 * h].high[j] + q[2 * h].low[j]);
      score[2 * h][i] = (float)sum * q[2 * h].scale * scale[i];
    }
#endif
}

/* gathered[map] += weight[map] × value over the n positions, n rounded up to 4 with weights of 0. */
static void weigh(const uint8_t *value, int n, int v, const Split *weight, int maps, Gathered *gathered) {
#if PHIKIT_AVX512
  for (int from = 0; from < v; from += 32) {
    __m512i high[MAPS][2], low[MAPS][2];
    for (int h = 0; h < MAPS; h++)
      for (int j = 0; j < 2; j++) high[h][j] = low[h][j] = _mm512_setzero_si512();
    for (int i = 0; i < n; i += 4) {
      const uint8_t *at = value + (size_t)i * v + 4 * from;
      const __m512i x[2] = {_mm512_loadu_si512(at), _mm512_loadu_si512(at + 64)};
      for (int h = 0; h < MAPS; h++) { /* maps that are not there have weights of 0 */
        const __m512i a = four(weight[h].high + i), b = four(weight[h].low + i);
        for (int j = 0; j < 2; j++) {
          high[h][j] = _mm512_dpbusd_epi32(high[h][j], x[j], a);
          low[h][j] = _mm512_dpbusd_epi32(low[h][j], x[j], b);
        }
      }
    }
    for (int h = 0; h < maps; h++)
      for (int j = 0; j < 2; j++) {
        float *to = gathered[h].total + from + 16 * j;
        const __m512 sum = joined(high[h][j], low[h][j], weight[h].sum);
        _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, _mm512_set1_ps(weight[h].scale), _mm512_loadu_ps(to)));
      }
  }
#else
  for (int h = 0; h < maps; h++)
    for (int j = 0; j < v; j++) {
      int32_t sum = 0;
      for (int i = 0; i < n; i++)
        sum += (value[(size_t)(i & ~3) * v + 4 * j + i % 4] - 128) * (256 * weight[h].high[i] + weight[h].low[i]);
      gathered[h].total[j] += (float)sum * weight[h].scale;
    }
#endif
}

static void attend_pair(const Differ *s, int row, int pair, int first, int heads) {
  const DifferShape *c = s->shape;
  const int k = c->head_dim, v = 2 * k, size = c->block_size, maps = 2 * heads, pairs = c->kv_heads / 2;
  const int32_t *table = s->table + (size_t)row * c->table_width;
  const uint16_t *q = queries(s, row, pair) + (size_t)first * v;
  const float scale = 1.0f / sqrtf((float)k);
  Gathered gathered[MAPS];
  Split query[MAPS], weight[MAPS];
  float score[MAPS][TILE_LENGTH];
  memset(weight, 0, sizeof weight);
  for (int h = 0; h < maps; h++) {
    float wide[WIDEST / 2];
    for (int i = 0; i < k; i++) wide[i] = from_bf16(q[h * k + i]);
    split(wide, k, query + h);
    gathered[h].highest = -INFINITY, gathered[h].sum = 0;
    memset(gathered[h].total, 0, 4 * (size_t)v);
  }
  for (int at = 0, n; at < s->length[row]; at += n) {
    n = stretch(c, at, s->length[row]);
    const size_t block = table[at / size];
    const int from = at % size, whole = (n + 3) & ~3;
    for (int half = 0; half < 2; half++)
      scores(c, query + half, (const uint8_t *)s->keys + key_at(c, block, 2 * pair + half, from),
             s->key_scales + scale_at(c, block, 2 * pair + half, c->kv_heads, from), n, heads, score + half);
    const float *value_scale = s->value_scales + scale_at(c, block, pair, pairs, from);
    for (int h = 0; h < maps; h++) {
      soften(score[h], n, scale, 0, v, gathered + h);
      for (int i = 0; i < n; i++) score[h][i] *= value_scale[i];
      for (int i = n; i < whole; i++) score[h][i] = 0;
      split(score[h], whole, weight + h);
    }
    weigh((const uint8_t *)s->values + value_at(c, block, pair, from), n, v, weight, maps, gathered);
  }
  for (int r = 0; r < heads; r++) finish_pair(s, row, pair, first + r, gathered + 2 * r);
}

/* As `phikit_differ_rows`; store: keys, values, and the scales of both. */
void phikit_differ_rows_8(const DifferShape *shape, void *const *store, const int32_t *const *where,
                          const uint16_t *rest, const float *norm, uint16_t *out, int m, int threads) {
  const Differ s = {shape, store[0], store[1], store[2], store[3], where[0], where[1], where[2], rest, norm, out, m};
  const DifferKind kind = {put_pair, attend_pair};
  phikit_differ_run(&s, &kind, threads);
}
