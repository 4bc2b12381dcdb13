/* Attention of one row to keys and values in blocks, in bfloat16.

   At one new position a row this reads the cache and does little else, so what it costs is that
   reading: every key and value is read once for all query heads that share it, and the next ones are
   fetched meanwhile, since a block is too short for the processor to foresee the next. Weights stay
   float32.

   Letters: E query heads of a key head, K head size.  */
#include "decode.h"

typedef struct {
  const uint16_t *at; /* this tile's vectors */
  int64_t stride;
  int n, room; /* positions of the tile, and how many may be read */
} Tile;

/* Lines to fetch with 16 scores, and with a position's values. */
enum { WITH_SCORES = 12, WITH_VALUES = 3 };

/* score[i] = q · key[i]; up to a whole 16 of them are computed. */
static void score_keys(const Tile *t, const uint16_t *q, int k, float *score, Ahead *next) {
  int i = 0;
#if PHIKIT_AVX512
  for (; k % WORD == 0 && i < t->n && i + 16 <= t->room; i += 16) {
    const uint16_t *key = t->at + i * t->stride;
    fetch(next, WITH_SCORES);
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
    const Tile *t, int from, float (*score)[TILE_LENGTH], const int e, const int words, Gathered *to, Ahead *next) {
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
    fetch(next, WITH_VALUES);
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
static void weigh_values(const Tile *t, float (*score)[TILE_LENGTH], int k, int e, Gathered *to, Ahead *next) {
#if PHIKIT_AVX512
  if (k % WORD == 0) {
    for (int from = 0; from < k; from += 2 * WORD) {
#define CASE(E)                                                        \
  case E:                                                              \
    if (k - from > WORD) weigh_columns(t, from, score, E, 2, to, next);      \
    else weigh_columns(t, from, score, E, 1, to, next);                      \
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
    const int then = at + n;
    const size_t here = table[at / size] * c->block_stride + at % size * stride;
    const Tile k_tile = {keys + here, stride, n, room}, v_tile = {values + here, stride, n, room};
    Ahead next = {.count = 0};
    if (then <= last) {
      const int left = last + 1 - then < size - then % size ? last + 1 - then : size - then % size;
      const size_t far = table[then / size] * c->block_stride + then % size * stride;
      const size_t bytes = 2 * (size_t)(left < TILE_LENGTH ? left : TILE_LENGTH) * stride;
      ahead_of(&next, keys + far, bytes), ahead_of(&next, values + far, bytes);
    }
    for (int h = 0; h < count; h++) {
      score_keys(&k_tile, q + h * k, k, score[h], &next);
      fetch(&next, WITH_SCORES);
      soften(score[h], n, scale, 0, k, gathered + h);
    }
    weigh_values(&v_tile, score, k, count, gathered, &next);
  }
  for (int h = 0; h < count; h++) settle(gathered + h, k, out + h * k);
}
