/* Differential attention of one new position per row, to keys and values in blocks.

   At one position a row this reads the cache once and does little else, so what it costs is that
   reading. A pair's two maps share their values: both are weighed in the same pass. The softmax is
   taken tile by tile, and what was gathered is scaled down when a tile holds a higher score, so
   that scores and weights never leave the nearest cache.

   Letters: M rows, E key-value heads, P = E / 2 pairs, R query heads of a key head, K head size,
   V = 2 K, S positions of a block, T blocks of a row's table.  */
#include "decode.h"

enum { TILE_LENGTH = 64, MAPS = 4, WIDEST_PAIR = 512 };

typedef struct {
  int32_t kv_heads, repeats, head_dim, block_size, table_width, cross;
  int64_t key_block, value_block; /* elements between blocks; heads lie [heads][S][K or V] */
  float lambda, eps;
} DifferShape;

typedef struct {
  const DifferShape *shape;
  uint16_t *keys, *values;
  const int32_t *table, *length, *put; /* [M, T], [M], [M]: where the new position goes */
  const uint16_t *rest; /* [M, 2 P R K], and unless cross E K of keys and P V of values */
  const float *norm;    /* [V]: the norm's weight, times what is left of 1 */
  uint16_t *out;        /* [M, P R V] */
  int m;
} Differ;

static int row_width(const DifferShape *c) {
  const int q = c->kv_heads * c->repeats * c->head_dim;
  return c->cross ? q : q + 2 * c->kv_heads * c->head_dim;
}

static void put_pair(const Differ *s, int row, int pair) {
  const DifferShape *c = s->shape;
  const int k = c->head_dim, size = c->block_size, at = s->put[row];
  const size_t block = s->table[(size_t)row * c->table_width + at / size];
  const uint16_t *key = s->rest + (size_t)row * row_width(c) + (c->kv_heads * c->repeats + 2 * pair) * k;
  const uint16_t *value = key + c->kv_heads * k;
  for (int half = 0; half < 2; half++) {
    const size_t line = (size_t)(2 * pair + half) * size + at % size;
    memcpy(s->keys + block * c->key_block + line * k, key + half * k, 2 * k);
  }
  memcpy(s->values + block * c->value_block + ((size_t)pair * size + at % size) * 2 * k, value, 4 * k);
}

/* score[i] = q · key[i] for n keys that lie one after another. */
static void scores(const uint16_t *q, const uint16_t *key, int n, int k, float *score) {
#if PHIKIT_AVX512
  if (k % 32 == 0) {
    for (; n >= 16; n -= 16, key += 16 * k, score += 16) _mm512_storeu_ps(score, dots(q, key, k, k));
  }
#endif
  for (int i = 0; i < n; i++) score[i] = dot_bf16(q, key + (size_t)i * k, k);
}

/* total[map][V] += weight[map] × value, over n positions that lie one after another. On AVX-512
   positions go in twos, the columns of 32 in the order of its interleaving (see `settle`). */
static void weigh(const uint16_t *value, int n, int v, const uint16_t (*weight)[TILE_LENGTH], int maps,
                  float (*total)[WIDEST_PAIR]) {
#if PHIKIT_AVX512
  if (v % 64 == 0 && maps == MAPS) {
    for (int from = 0; from < v; from += 64) {
      __m512 sum[MAPS][4];
      for (int h = 0; h < MAPS; h++)
        for (int j = 0; j < 4; j++) sum[h][j] = _mm512_loadu_ps(total[h] + from + 16 * j);
      for (int i = 0; i < n; i += 2) {
        const uint16_t *a = value + (size_t)i * v + from, *b = i + 1 < n ? a + v : a;
        const __m512i a0 = _mm512_loadu_si512(a), a1 = _mm512_loadu_si512(a + 32);
        const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 32);
        const __m512i both[4] = {_mm512_unpacklo_epi16(a0, b0), _mm512_unpackhi_epi16(a0, b0),
                                 _mm512_unpacklo_epi16(a1, b1), _mm512_unpackhi_epi16(a1, b1)};
        for (int h = 0; h < MAPS; h++) {
          int32_t two;
          memcpy(&two, weight[h] + i, 4);
          const __m512bh w = (__m512bh)_mm512_set1_epi32(two);
          for (int j = 0; j < 4; j++) sum[h][j] = _mm512_dpbf16_ps(sum[h][j], w, (__m512bh)both[j]);
        }
      }
      for (int h = 0; h < MAPS; h++)
        for (int j = 0; j < 4; j++) _mm512_storeu_ps(total[h] + from + 16 * j, sum[h][j]);
    }
    return;
  }
#endif
  for (int h = 0; h < maps; h++)
    for (int i = 0; i < n; i++) {
      const float w = from_bf16(weight[h][i]);
      for (int j = 0; j < v; j++) total[h][j] += w * from_bf16(value[(size_t)i * v + j]);
    }
}

/* Puts the columns that `weigh` interleaved back into their order. */
static void settle(float *total, int v, int maps) {
#if PHIKIT_AVX512
  if (v % 64 == 0 && maps == MAPS)
    for (int from = 0; from < v; from += 32) {
      float mixed[32];
      memcpy(mixed, total + from, sizeof mixed);
      for (int i = 0; i < 32; i++) /* 8 columns of each quarter: four low, four high */
        total[from + i] = mixed[(i & 4 ? 16 : 0) + (i >> 3) * 4 + (i & 3)];
    }
#else
  (void)total, (void)v, (void)maps;
#endif
}

/* Weights of a tile in place of its scores, as bfloat16 and relative to the highest so far. */
static void soften(const float *score, int n, float scale, float *highest, float *sum, float *total,
                   int v, uint16_t *weight) {
  float most = *highest;
#pragma omp simd reduction(max : most)
  for (int i = 0; i < n; i++) most = score[i] > most ? score[i] : most;
  if (most > *highest) {
    const float shrink = *sum > 0 ? fast_exp(scale * (*highest - most)) : 0;
    *sum *= shrink;
    for (int i = 0; i < v; i++) total[i] *= shrink;
    *highest = most;
  }
  float added = 0;
#pragma omp simd reduction(+ : added)
  for (int i = 0; i < n; i++) {
    const uint16_t w = to_bf16(fast_exp(scale * (score[i] - most)));
    weight[i] = w;
    added += from_bf16(w);
  }
  *sum += added;
}

/* Up to two query heads of one row and pair: both their maps, and what is left of the first. */
static void attend_pair(const Differ *s, int row, int pair, int first, int heads) {
  const DifferShape *c = s->shape;
  const int k = c->head_dim, v = 2 * k, size = c->block_size, maps = 2 * heads;
  const int32_t *table = s->table + (size_t)row * c->table_width;
  /* map 2 r + half: query head r, key head 2 pair + half */
  const uint16_t *q = s->rest + (size_t)row * row_width(c) + (size_t)(pair * c->repeats + first) * v;
  const float scale = 1.0f / sqrtf((float)k);
  float total[MAPS][WIDEST_PAIR], score[MAPS][TILE_LENGTH], highest[MAPS], sum[MAPS];
  uint16_t weight[MAPS][TILE_LENGTH];
  for (int h = 0; h < maps; h++) {
    highest[h] = -INFINITY, sum[h] = 0;
    memset(total[h], 0, 4 * (size_t)v);
  }
  memset(weight, 0, sizeof weight);
  for (int at = 0; at < s->length[row];) {
    const int from = at % size;
    int n = s->length[row] - at;
    n = n < size - from ? n : size - from;
    n = n < TILE_LENGTH ? n : TILE_LENGTH;
    const size_t block = table[at / size];
    for (int h = 0; h < maps; h++) {
      const size_t line = (size_t)(2 * pair + h % 2) * size + from;
      scores(q + h * k, s->keys + block * c->key_block + line * k, n, k, score[h]);
    }
    for (int h = 0; h < maps; h++) {
      soften(score[h], n, scale, highest + h, sum + h, total[h], v, weight[h]);
      if (n & 1) weight[h][n] = 0;
    }
    weigh(s->values + block * c->value_block + ((size_t)pair * size + from) * v, n, v,
          (const uint16_t(*)[TILE_LENGTH])weight, maps, total);
    at += n;
  }
  for (int r = 0; r < heads; r++) {
    float *one = total[2 * r], *two = total[2 * r + 1], squares = 0;
    settle(one, v, maps), settle(two, v, maps);
    for (int i = 0; i < v; i++) {
      one[i] = one[i] / sum[2 * r] - c->lambda * two[i] / sum[2 * r + 1];
      squares += one[i] * one[i];
    }
    const float inverse = 1.0f / sqrtf(squares / v + c->eps);
    uint16_t *out = s->out + ((size_t)(row * (c->kv_heads / 2) + pair) * c->repeats + first + r) * v;
    for (int i = 0; i < v; i++) out[i] = to_bf16(one[i] * inverse * s->norm[i]);
  }
}

static void differ(Team *team, void *argument) {
  const Differ *s = argument;
  const DifferShape *c = s->shape;
  const int pairs = c->kv_heads / 2;
  for (int item; (item = claim(team, s->m * pairs, 1)) >= 0;) {
    const int row = item / pairs, pair = item % pairs;
    if (!c->cross) put_pair(s, row, pair); /* rows are of different sequences: nobody else reads it */
    for (int r = 0; r < c->repeats; r += 2)
      attend_pair(s, row, pair, r, c->repeats - r < 2 ? 1 : 2);
  }
}

/* Stores the rows' new keys and values unless `cross`, and attends to `length` positions of each:
   out[M, P R V], normalised. K is at most 256. */
void phikit_differ_rows(const DifferShape *shape, uint16_t *const *store, const int32_t *const *where,
                        const uint16_t *rest, const float *norm, uint16_t *out, int m, int threads) {
  Differ s = {shape, store[0], store[1], where[0], where[1], where[2], rest, norm, out, m};
  phikit_run_team(threads, differ, &s);
}
