/* Attention of one row to keys and values in blocks, as in heads.c, in the processor's matrix unit.

   Of a product the unit wants the right side with its inner dimension in pairs. Queries are few and
   are laid out so once, which leaves the keys, as they lie in the cache, on the left; values are
   interleaved in twos on the way. Weights are the sum of two bfloat16 numbers, 16 bits in all: both
   are rows of one tile, and their results are added.

   Letters: E queries of a key head, K head size.  */
#include "alike.h"

#if PHIKIT_TILES

enum { SIDE = 16, PAIRED = 2 * SIDE, HALF = 32 }; /* a tile's side; its columns of bfloat16; positions at once */
enum { WIDEST_HERE = 256 };

/* Lines to fetch with a tile of keys, with a query's weights, and with a tile of values. */
enum { WITH_KEYS = 12, WITH_WEIGHTS = 24, WITH_VALUES = 16 };

/* [K/32][16 pairs][16 queries][2], zero where there is no query. */
static void lay_queries(const uint16_t *q, int k, int count, uint16_t *out) {
  memset(out, 0, 2 * (size_t)SIDE * k);
  for (int h = 0; h < count; h++)
    for (int i = 0; i < k; i += 2) memcpy(out + (size_t)i * SIDE + 2 * h, q + h * k + i, 4);
}

/* Products of 16 keys with all queries: score[h][0..15]. */
static void score_16(const uint16_t *key, int64_t stride, const uint16_t *queries, int k,
                     float (*score)[TILE_LENGTH], Ahead *next) {
  float by_key[SIDE][SIDE];
  _tile_zero(7);
  for (int i = 0; i < k; i += PAIRED) {
    fetch(next, WITH_KEYS);
    TILE_LOAD(6, key + i, 2 * (size_t)stride);
    TILE_LOAD(5, queries + (size_t)i * SIDE, 64);
    _tile_dpbf16ps(7, 6, 5);
  }
  _tile_stored(7, by_key, 64);
  __m512 four[4]; /* quarter j of four[i]: key 4 j + i, its products with four queries */
  for (int i = 0; i < 4; i++) {
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(by_key[i]));
    v = _mm512_insertf32x4(v, _mm_loadu_ps(by_key[4 + i]), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps(by_key[8 + i]), 2);
    four[i] = _mm512_insertf32x4(v, _mm_loadu_ps(by_key[12 + i]), 3);
  }
  const __m512 a = _mm512_unpacklo_ps(four[0], four[1]), b = _mm512_unpackhi_ps(four[0], four[1]);
  const __m512 c = _mm512_unpacklo_ps(four[2], four[3]), d = _mm512_unpackhi_ps(four[2], four[3]);
  _mm512_storeu_ps(score[0], _mm512_shuffle_ps(a, c, 0x44));
  _mm512_storeu_ps(score[1], _mm512_shuffle_ps(a, c, 0xee));
  _mm512_storeu_ps(score[2], _mm512_shuffle_ps(b, d, 0x44));
  _mm512_storeu_ps(score[3], _mm512_shuffle_ps(b, d, 0xee));
}

/* Weights of 32 positions as rows of one tile: what bfloat16 holds of them, then what is left. */
static void split_weights(float (*score)[TILE_LENGTH], int from, uint16_t (*out)[PAIRED]) {
  for (int h = 0; h < AT_ONCE; h++)
    for (int i = 0; i < PAIRED; i += SIDE) {
      const __m512 w = _mm512_loadu_ps(score[h] + from + i);
      const __m256i high = (__m256i)_mm512_cvtneps_pbh(w);
      const __m512 kept = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
      const __m256i low = (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(w, kept));
      _mm256_storeu_si256((__m256i *)(out[h] + i), high);
      _mm256_storeu_si256((__m256i *)(out[AT_ONCE + h] + i), low);
    }
}

/* 32 columns of 32 positions as two tiles, of whose columns see `settle`. */
static void lay_values(const uint16_t *const row[HALF], int from, uint16_t (*out)[SIDE][PAIRED]) {
  for (int pair = 0; pair < SIDE; pair++) {
    const __m512i a = _mm512_loadu_si512(row[2 * pair] + from), b = _mm512_loadu_si512(row[2 * pair + 1] + from);
    _mm512_storeu_si512(out[0][pair], _mm512_unpacklo_epi16(a, b));
    _mm512_storeu_si512(out[1][pair], _mm512_unpackhi_epi16(a, b));
  }
}

/* gathered += weights × values, over 32 positions and 64 columns from `from` on. */
static void weigh_64(const uint16_t *const row[HALF], const uint16_t (*weights)[PAIRED], int from, int columns,
                     int count, Gathered *to, Ahead *next) {
  uint16_t laid[4][SIDE][PAIRED];
  float sums[2 * AT_ONCE][4 * SIDE];
  lay_values(row, from, laid);
  if (columns > PAIRED) lay_values(row, from + PAIRED, laid + 2);
  TILE_LOAD(4, weights, 64);
#define QUARTER(J)                         \
  fetch(next, WITH_VALUES);                \
  _tile_zero(J);                           \
  TILE_LOAD(5, laid[J], 64);             \
  _tile_dpbf16ps(J, 4, 5);                 \
  _tile_stored(J, sums[0] + SIDE * J, sizeof sums[0]);
  QUARTER(0) QUARTER(1)
  if (columns > PAIRED) { QUARTER(2) QUARTER(3) }
#undef QUARTER
  for (int h = 0; h < count; h++)
    for (int i = 0; i < columns; i += SIDE) {
      const __m512 both = _mm512_add_ps(_mm512_loadu_ps(sums[h] + i), _mm512_loadu_ps(sums[AT_ONCE + h] + i));
      float *total = to[h].total + from + i;
      _mm512_storeu_ps(total, _mm512_add_ps(_mm512_loadu_ps(total), both));
    }
}

/* The weighted mean, its columns back in their order: of each eight, four are in either tile. */
static void settle(const Gathered *from, int k, float *out) {
  for (int i = 0; i < k; i++)
    out[i] = from->total[(i & ~31) + (i & 4 ? SIDE : 0) + ((i & 31) >> 3) * 4 + (i & 3)] / from->sum;
}

static size_t line(const Shape *c, const int32_t *table, int at) {
  return table[at / c->block_size] * c->block_stride + at % c->block_size * c->position_stride;
}

int phikit_attend_in_tiles(const Shape *c, const uint16_t *keys, const uint16_t *values,
                           const int32_t *table, int last, const uint16_t *q, int count, float *out) {
  const int k = c->head_dim;
  const int64_t stride = c->position_stride;
  if (k % PAIRED || k > WIDEST_HERE || c->block_size % SIDE || !phikit_tiles(OF_HEADS)) return 0;
  const float scale = 1.0f / sqrtf((float)k);
  static const uint16_t nothing[WIDEST_HERE];
  uint16_t queries[SIDE * WIDEST_HERE], weights[2 * AT_ONCE][PAIRED];
  float score[AT_ONCE][TILE_LENGTH];
  Gathered gathered[AT_ONCE];
  lay_queries(q, k, count, queries);
  memset(score, 0, sizeof score);
  for (int h = 0; h < count; h++) {
    gathered[h].highest = -INFINITY, gathered[h].sum = 0;
    memset(gathered[h].total, 0, 4 * (size_t)k);
  }
  const int first = c->window && last + 1 > c->window ? last + 1 - c->window : 0;
  for (int at = first / SIDE * SIDE; at <= last; at += TILE_LENGTH) {
    const int n = last + 1 - at < TILE_LENGTH ? last + 1 - at : TILE_LENGTH;
    size_t where[TILE_LENGTH / SIDE]; /* of each 16 positions, which are of one block */
    Ahead next = {.count = 0};
    for (int i = 0; i < n; i += SIDE) {
      where[i / SIDE] = line(c, table, at + i);
      if (at + TILE_LENGTH + i > last) continue;
      const size_t then = line(c, table, at + TILE_LENGTH + i), bytes = 2 * SIDE * (size_t)stride;
      ahead_of(&next, keys + then, bytes), ahead_of(&next, values + then, bytes);
    }
    for (int i = 0; i < n; i += SIDE)
      score_16(keys + where[i / SIDE], stride, queries, k, (float(*)[TILE_LENGTH])(score[0] + i), &next);
    for (int h = 0; h < count; h++) {
      fetch(&next, WITH_WEIGHTS);
      for (int i = 0; i < first - at; i++) score[h][i] = -INFINITY;
      soften(score[h], n, scale, 0, k, gathered + h);
      for (int i = n; i < TILE_LENGTH; i++) score[h][i] = 0;
    }
    for (int from = 0; from < n; from += HALF) {
      const uint16_t *row[HALF];
      for (int i = from; i < from + HALF; i++)
        row[i - from] = i < n ? values + where[i / SIDE] + i % SIDE * stride : nothing;
      split_weights(score, from, weights);
      for (int column = 0; column < k; column += 2 * PAIRED)
        weigh_64(row, (const uint16_t(*)[PAIRED])weights, column, k - column < 2 * PAIRED ? PAIRED : 2 * PAIRED,
                 count, gathered, &next);
    }
  }
  for (int h = 0; h < count; h++) settle(gathered + h, k, out + h * k);
  return 1;
}

/* --- as trained ---------------------------------------------------------------------------------*/

enum { GROUP = 8, FAR = 2 * HALF }; /* rows of a tile of weights; positions from which values are fetched */

static int padded(int count) { return (count + PAIRED - 1) / PAIRED * PAIRED; }

int phikit_attends_as_trained(int head_dim, int block_size) {
  const int may = head_dim % (2 * SIDE) == 0 && head_dim <= WIDEST_HERE && block_size % SIDE == 0;
  const int lent = phikit_tiles(OF_HEADS);
  phikit_tiles(NO_TILES);
  return may && lent != NO_TILES;
}

/* Scores of all positions of AT_ONCE queries, and weights of GROUP. */
size_t phikit_room_as_trained(int last) {
  return (size_t)padded(last + 1 + TILE_LENGTH) * (4 * AT_ONCE + 2 * GROUP);
}

/* out[query][64] = weights · values over all positions, `columns` of them from `from` on. */
static void weigh_all(const Shape *c, const uint16_t *values, const int32_t *table, int last,
                      const uint16_t *weights, size_t stride, int from, int columns, float out[GROUP][4 * SIDE]) {
  static const uint16_t nothing[WIDEST_HERE];
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int at = 0; at <= last; at += HALF) {
    const uint16_t *row[HALF];
    uint16_t laid[4][SIDE][PAIRED];
    Ahead next = {.count = 0};
    for (int i = 0; i < HALF; i += SIDE) {
      const uint16_t *first = at + i <= last ? values + line(c, table, at + i) : nothing;
      for (int j = 0; j < SIDE; j++) row[i + j] = at + i + j <= last ? first + j * c->position_stride : nothing;
      if (at + FAR + i <= last)
        ahead_of(&next, values + line(c, table, at + FAR + i), 2 * SIDE * (size_t)c->position_stride);
    }
    lay_values(row, from, laid);
    fetch(&next, WITH_VALUES);
    if (columns > PAIRED) lay_values(row, from + PAIRED, laid + 2);
    while (next.now < next.count) fetch(&next, WITH_VALUES);
    TILE_LOAD(4, weights + at, 2 * stride);
    TILE_LOAD(5, laid[0], 64);
    _tile_dpbf16ps(0, 4, 5);
    TILE_LOAD(6, laid[1], 64);
    _tile_dpbf16ps(1, 4, 6);
    if (columns <= PAIRED) continue;
    TILE_LOAD(5, laid[2], 64);
    _tile_dpbf16ps(2, 4, 5);
    TILE_LOAD(6, laid[3], 64);
    _tile_dpbf16ps(3, 4, 6);
  }
  _tile_stored(0, out[0], sizeof out[0]);
  _tile_stored(1, out[0] + SIDE, sizeof out[0]);
  _tile_stored(2, out[0] + 2 * SIDE, sizeof out[0]);
  _tile_stored(3, out[0] + 3 * SIDE, sizeof out[0]);
}

void phikit_attend_as_trained(const Shape *c, const uint16_t *keys, const uint16_t *values,
                              const int32_t *table, int last, const uint16_t *q, int count, char *room,
                              float *out) {
  const int k = c->head_dim, all = padded(last + 1);
  const size_t stride = padded(last + 1 + TILE_LENGTH);
  const float scale = 1.0f / sqrtf((float)k);
  float *scores = (float *)room, total[AT_ONCE];
  uint16_t *weights = (uint16_t *)(room + 4 * AT_ONCE * stride), queries[SIDE * WIDEST_HERE];
  phikit_tiles(OF_HEADS);
  lay_queries(q, k, count, queries);
  for (int at = 0; at <= last; at += TILE_LENGTH) {
    float tile[AT_ONCE][TILE_LENGTH];
    Ahead next = {.count = 0};
    for (int i = TILE_LENGTH; i < 2 * TILE_LENGTH && at + i <= last; i += SIDE)
      ahead_of(&next, keys + line(c, table, at + i), 2 * SIDE * (size_t)c->position_stride);
    for (int i = 0; i < TILE_LENGTH && at + i <= last; i += SIDE)
      score_16(keys + line(c, table, at + i), c->position_stride, queries, k, (float(*)[TILE_LENGTH])(tile[0] + i), &next);
    for (int h = 0; h < count; h++) memcpy(scores + h * stride + at, tile[h], sizeof tile[h]);
  }
  for (int h = 0; h < count; h++) {
    float log_z;
    total[h] = weigh(scores + h * stride, last, all, scale, weights + h * stride, &log_z);
  }
  for (int h = count; h < GROUP; h++) memset(weights + h * stride, 0, 2 * (size_t)all);
  for (int from = 0; from < k; from += 2 * PAIRED) {
    const int columns = k - from < 2 * PAIRED ? PAIRED : 2 * PAIRED;
    float sums[GROUP][4 * SIDE];
    weigh_all(c, values, table, last, weights, stride, from, columns, sums);
    for (int h = 0; h < count; h++)
      for (int i = 0; i < columns; i++) {
        const int lies = (i & ~31) + (i & 4 ? SIDE : 0) + ((i & 31) >> 3) * 4 + (i & 3);
        out[h * k + from + i] = sums[h][lies] / total[h];
      }
  }
}

#else

int phikit_attend_in_tiles(const Shape *c, const uint16_t *keys, const uint16_t *values,
                           const int32_t *table, int last, const uint16_t *q, int count, float *out) {
  (void)c, (void)keys, (void)values, (void)table, (void)last, (void)q, (void)count, (void)out;
  return 0;
}

int phikit_attends_as_trained(int head_dim, int block_size) {
  (void)head_dim, (void)block_size;
  return 0;
}

size_t phikit_room_as_trained(int last) {
  (void)last;
  return 0;
}

void phikit_attend_as_trained(const Shape *c, const uint16_t *keys, const uint16_t *values,
                              const int32_t *table, int last, const uint16_t *q, int count, char *room,
                              float *out) {
  (void)c, (void)keys, (void)values, (void)table, (void)last, (void)q, (void)count, (void)room, (void)out;
}

#endif
