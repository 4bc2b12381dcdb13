/* Attention of one row to keys and values in blocks, in bfloat16.

   At one new position a row this reads the cache and does little else, so what it costs is that
   reading: every key and value is read once for all query heads that share it, and the next ones are
   fetched meanwhile, since a block is too short for the processor to foresee the next. Weights stay
   float32.

   Letters: E query heads of a key head, K head size.  */
#include "decode.h"

typedef struct {
  const uint16_t *at, *next; /* this tile's vectors, and the next tile's */
  int64_t stride;
  int n, room; /* positions of the tile, and how many may be read */
} Tile;

/* score[i] = q · key[i]; up to a whole 16 of them are computed. The next tile's keys are fetched for
   the first query. */
static void score_keys(const Tile *t, const uint16_t *q, int k, float *score, int first) {
  int i = 0;
#if PHIKIT_AVX512
  for (; k % WORD == 0 && i < t->n && i + 16 <= t->room; i += 16) {
    const uint16_t *key = t->at + i * t->stride;
    if (first)
      for (int j = i; j < i + 16; j++) fetch(t->next + j * t->stride, k);
    _mm512_storeu_ps(score + i, k == 128  ? dots(q, key, t->stride, 128)
                                : k == 64 ? dots(q, key, t->stride, 64)
                                          : dots(q, key, t->stride, k));
  }
#endif
  for (; i < t->n; i++) score[i] = dot_bf16(q, t->at + i * t->stride, k);
}

#if PHIKIT_AVX512
/* `words` × 32 columns from `from` on, for e queries (both constants where called). Even columns of
   32 come first, then odd ones; see `settle`. */
static inline __attribute__((always_inline)) void weigh_columns(
    const Tile *t, int from, float (*score)[TILE_LENGTH], const int e, const int words, Gathered *to) {
  __m512 sum[AT_ONCE][4];
  for (int h = 0; h < e; h++)
    for (int j = 0; j < 2 * words; j++) sum[h][j] = _mm512_loadu_ps(to[h].total + from + 16 * j);
  for (int i = 0; i < t->n; i++) {
    const uint16_t *value = t->at + i * t->stride + from;
    __m512 wide[4];
    for (int j = 0; j < words; j++) {
      const __m512i v = _mm512_loadu_si512(value + WORD * j);
      wide[2 * j] = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
      wide[2 * j + 1] = _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32((int)0xffff0000u)));
    }
    fetch(t->next + i * t->stride + from, WORD * words);
    for (int h = 0; h < e; h++) {
      const __m512 w = _mm512_set1_ps(score[h][i]);
      for (int j = 0; j < 2 * words; j++) sum[h][j] = _mm512_fmadd_ps(w, wide[j], sum[h][j]);
    }
  }
  for (int h = 0; h < e; h++)
    for (int j = 0; j < 2 * words; j++) _mm512_storeu_ps(to[h].total + from + 16 * j, sum[h][j]);
}
#endif

/* gathered += weight × value, over the tile. */
static void weigh_values(const Tile *t, float (*score)[TILE_LENGTH], int k, int e, Gathered *to) {
#if PHIKIT_AVX512
  if (k % WORD == 0) {
    for (int from = 0; from < k; from += 2 * WORD) {
#define CASE(E)                                                        \
  case E:                                                              \
    if (k - from > WORD) weigh_columns(t, from, score, E, 2, to);      \
    else weigh_columns(t, from, score, E, 1, to);                      \
    break;
      switch (e) { CASE(1) CASE(2) CASE(3) CASE(4) }
#undef CASE
    }
    return;
  }
#endif
  for (int h = 0; h < e; h++)
    for (int i = 0; i < t->n; i++) {
      const uint16_t *value = t->at + i * t->stride;
      for (int j = 0; j < k; j++) to[h].total[j] += score[h][i] * from_bf16(value[j]);
    }
}

/* The weighted mean, its columns back in their order. */
static void settle(const Gathered *from, int k, float *out) {
#if PHIKIT_AVX512
  if (k % WORD == 0) {
    for (int i = 0; i < k; i++)
      out[i] = from->total[(i & ~31) + (i & 1) * 16 + (i & 31) / 2] / from->sum;
    return;
  }
#endif
  for (int i = 0; i < k; i++) out[i] = from->total[i] / from->sum;
}

void phikit_attend_heads(const Shape *c, const uint16_t *keys, const uint16_t *values,
                         const int32_t *table, int last, const uint16_t *q, int count, float *out) {
  if (phikit_attend_in_tiles(c, keys, values, table, last, q, count, out)) return;
  const int k = c->head_dim, size = c->block_size;
  const int64_t stride = c->position_stride;
  const float scale = 1.0f / sqrtf((float)k);
  Gathered gathered[AT_ONCE];
  float score[AT_ONCE][TILE_LENGTH];
  for (int h = 0; h < count; h++) {
    gathered[h].highest = -INFINITY, gathered[h].sum = 0;
    memset(gathered[h].total, 0, 4 * (size_t)k);
  }
  for (int at = c->window && last + 1 > c->window ? last + 1 - c->window : 0, n; at <= last; at += n) {
    const int room = size - at % size;
    n = room < last + 1 - at ? room : last + 1 - at;
    n = n < TILE_LENGTH ? n : TILE_LENGTH;
    const int then = at + n <= last ? at + n : at;
    const size_t here = table[at / size] * c->block_stride + at % size * stride;
    const size_t next = table[then / size] * c->block_stride + then % size * stride;
    const Tile k_tile = {keys + here, keys + next, stride, n, room};
    const Tile v_tile = {values + here, values + next, stride, n, room};
    for (int h = 0; h < count; h++) {
      score_keys(&k_tile, q + h * k, k, score[h], h == 0);
      soften(score[h], n, scale, 0, k, gathered + h);
    }
    weigh_values(&v_tile, score, k, count, gathered);
  }
  for (int h = 0; h < count; h++) settle(gathered + h, k, out + h * k);
}
