/* Differential attention of one new position per row, to keys and values in blocks.

   At one position a row this reads the cache once and does little else, so what it costs is that
   reading. A pair's two maps share their values: both are weighed in the same pass. The softmax is
   taken tile by tile, and what was gathered is scaled down when a tile holds a higher score, so
   that scores and weights never leave the nearest cache.

   This file has caches in bfloat16: keys [blocks][E][S][K] and values [blocks][P][S][V].  */
#include "differ.h"

/* Lines to fetch with 16 scores, and with two positions' values. */
enum { WITH_SCORES = 8, WITH_VALUES = 6 };

static size_t key_line(const DifferShape *c, size_t block, int head, int at) {
  return ((block * c->kv_heads + head) * c->block_size + at) * c->head_dim;
}

static size_t value_line(const DifferShape *c, size_t block, int pair, int at) {
  return ((block * (c->kv_heads / 2) + pair) * c->block_size + at) * 2 * c->head_dim;
}

static void put_pair(const Differ *s, int row, int pair) {
  const DifferShape *c = s->shape;
  const int k = c->head_dim, size = c->block_size, at = s->put[row];
  const size_t block = s->table[(size_t)row * c->table_width + at / size];
  const uint16_t *key = new_keys(s, row, pair);
  for (int half = 0; half < 2; half++)
    memcpy((uint16_t *)s->keys + key_line(c, block, 2 * pair + half, at % size), key + half * k, 2 * k);
  memcpy((uint16_t *)s->values + value_line(c, block, pair, at % size), key + values_after(c), 4 * k);
}

/* score[i] = q · key[i] for n keys that lie one after another. */
static void scores(const uint16_t *q, const uint16_t *key, Ahead *next, int n, int k, float *score) {
#if PHIKIT_AVX512
  for (; k % WORD == 0 && n >= 16; n -= 16, key += 16 * k, score += 16) {
    fetch(next, WITH_SCORES);
    _mm512_storeu_ps(score, k == 64 ? dots(q, key, 64, 64) : dots(q, key, k, k));
  }
#else
  (void)next;
#endif
  for (int i = 0; i < n; i++) score[i] = dot_bf16(q, key + (size_t)i * k, k);
}

/* gathered[map] += weight[map] × value, over n positions that lie one after another. On AVX-512
   positions go in twos, the columns of 32 in the order of its interleaving (see `settle`). */
static void weigh(const uint16_t *value, Ahead *next, int n, int v,
                  const uint16_t (*weight)[TILE_LENGTH], int maps, Gathered *gathered) {
#if PHIKIT_AVX512
  if (v % 64 == 0 && maps == MAPS) {
    for (int from = 0; from < v; from += 64) {
      __m512 sum[MAPS][4];
      for (int h = 0; h < MAPS; h++)
        for (int j = 0; j < 4; j++) sum[h][j] = _mm512_loadu_ps(gathered[h].total + from + 16 * j);
      for (int i = 0; i < n; i += 2) {
        const uint16_t *a = value + (size_t)i * v + from, *b = i + 1 < n ? a + v : a;
        fetch(next, WITH_VALUES);
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
        for (int j = 0; j < 4; j++) _mm512_storeu_ps(gathered[h].total + from + 16 * j, sum[h][j]);
    }
    return;
  }
#endif
  for (int h = 0; h < maps; h++)
    for (int i = 0; i < n; i++) {
      const float w = from_bf16(weight[h][i]);
      for (int j = 0; j < v; j++) gathered[h].total[j] += w * from_bf16(value[(size_t)i * v + j]);
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

/* Up to two query heads of one row and pair: both their maps, and what is left of the first. */
static void attend_pair(const Differ *s, int row, int pair, int first, int heads) {
  const DifferShape *c = s->shape;
  const int k = c->head_dim, v = 2 * k, size = c->block_size, maps = 2 * heads;
  const int32_t *table = s->table + (size_t)row * c->table_width;
  const uint16_t *q = queries(s, row, pair) + (size_t)first * v;
  const float scale = 1.0f / sqrtf((float)k);
  Gathered gathered[MAPS];
  float score[MAPS][TILE_LENGTH];
  uint16_t weight[MAPS][TILE_LENGTH];
  for (int h = 0; h < maps; h++) {
    gathered[h].highest = -INFINITY, gathered[h].sum = 0;
    memset(gathered[h].total, 0, 4 * (size_t)v);
  }
  memset(weight, 0, sizeof weight);
  for (int at = 0, n; at < s->length[row]; at += n) {
    n = stretch(c, at, s->length[row]);
    const int then = at + n;
    const size_t block = table[at / size];
    const uint16_t *keys = s->keys, *values = s->values;
    Ahead next = {.count = 0};
    if (then < s->length[row]) {
      const size_t far = table[then / size], bytes = 2 * (size_t)stretch(c, then, s->length[row]) * k;
      for (int half = 0; half < 2; half++)
        ahead_of(&next, keys + key_line(c, far, 2 * pair + half, then % size), bytes);
      ahead_of(&next, values + value_line(c, far, pair, then % size), 2 * bytes);
    }
    for (int h = 0; h < maps; h++) {
      const int head = 2 * pair + h % 2;
      scores(q + h * k, keys + key_line(c, block, head, at % size), &next, n, k, score[h]);
      fetch(&next, WITH_SCORES);
      soften(score[h], n, scale, 1, v, gathered + h);
      for (int i = 0; i < n; i++) weight[h][i] = to_bf16(score[h][i]);
      if (n & 1) weight[h][n] = 0;
    }
    weigh(values + value_line(c, block, pair, at % size), &next, n, v, (const uint16_t(*)[TILE_LENGTH])weight, maps,
          gathered);
  }
  for (int r = 0; r < heads; r++) {
    settle(gathered[2 * r].total, v, maps), settle(gathered[2 * r + 1].total, v, maps);
    finish_pair(s, row, pair, first + r, gathered + 2 * r);
  }
}

/* --- all rows -----------------------------------------------------------------------------------*/

typedef struct {
  const Differ *differ;
  const DifferKind *kind;
} Run;

static void differ(Team *team, void *argument) {
  const Run *run = argument;
  const Differ *s = run->differ;
  const DifferShape *c = s->shape;
  const int pairs = c->kv_heads / 2;
  for (int item; (item = claim(team, s->m * pairs, 1)) >= 0;) {
    const int row = item / pairs, pair = item % pairs;
    /* rows are of different sequences: nobody else reads what this one stores */
    if (!c->cross) run->kind->put(s, row, pair);
    for (int r = 0; r < c->repeats; r += 2)
      run->kind->attend(s, row, pair, r, c->repeats - r < 2 ? 1 : 2);
  }
  phikit_tiles(NO_TILES);
}

void phikit_differ_run(const Differ *s, const DifferKind *kind, int threads) {
  Run run = {s, kind};
  phikit_run_team(threads, differ, &run);
}

/* Stores the rows' new keys and values unless `cross`, and attends to `length` positions of each:
   out[M, P R V], normalised. K is at most 256. */
void phikit_differ_rows(const DifferShape *shape, void *const *store, const int32_t *const *where,
                        const uint16_t *rest, const float *norm, uint16_t *out, int m, int threads) {
  const Differ s = {shape, store[0], store[1], NULL, NULL, where[0], where[1], where[2], rest, norm, out, m};
  const DifferKind kind = {put_pair, attend_pair};
  phikit_differ_run(&s, &kind, threads);
}
