/* Differential attention to a cache in 8 bits (attend8.h): half the reading. Keys are of E heads,
   values of P pairs of them. */
#include "attend8.h"
#include "differ.h"

static uint8_t *key_head(const Differ *s, size_t block, int head) {
  const DifferShape *c = s->shape;
  return (uint8_t *)s->keys + (block * c->kv_heads + head) * c->block_size * c->head_dim;
}

static uint8_t *value_head(const Differ *s, size_t block, int pair) {
  const DifferShape *c = s->shape;
  return (uint8_t *)s->values + (block * (c->kv_heads / 2) + pair) * c->block_size * 2 * c->head_dim;
}

static size_t scale_at(const DifferShape *c, size_t block, int head, int heads, int at) {
  return (block * heads + head) * c->block_size + at;
}

static void put_pair(const Differ *s, int row, int pair) {
  const DifferShape *c = s->shape;
  const int k = c->head_dim, size = c->block_size, at = s->put[row] % size, pairs = c->kv_heads / 2;
  const size_t block = s->table[(size_t)row * c->table_width + s->put[row] / size];
  const uint16_t *key = new_keys(s, row, pair);
  for (int head = 2 * pair; head < 2 * pair + 2; head++)
    s->key_scales[scale_at(c, block, head, c->kv_heads, at)] =
        phikit_put_key8(key_head(s, block, head), size, at, key + (head - 2 * pair) * k, k);
  s->value_scales[scale_at(c, block, pair, pairs, at)] =
      phikit_put_value8(value_head(s, block, pair), at, key + values_after(c), 2 * k);
}

static void attend_pair(const Differ *s, int row, int pair, int first, int heads) {
  const DifferShape *c = s->shape;
  const int k = c->head_dim, v = 2 * k, size = c->block_size, maps = 2 * heads, pairs = c->kv_heads / 2;
  const int length = s->length[row];
  const int32_t *table = s->table + (size_t)row * c->table_width;
  const uint16_t *q = queries(s, row, pair) + (size_t)first * v;
  const float scale = 1.0f / sqrtf((float)k);
  Gathered gathered[MAPS];
  Split query[MAPS], weight[MAPS];
  float score[MAPS][TILE_LENGTH];
  memset(weight, 0, sizeof weight);
  for (int h = 0; h < maps; h++) {
    float wide[WIDEST_8];
    for (int i = 0; i < k; i++) wide[i] = from_bf16(q[h * k + i]);
    phikit_split(wide, k, query + h);
    gathered[h].highest = -INFINITY, gathered[h].sum = 0;
    memset(gathered[h].total, 0, 4 * (size_t)v);
  }
  for (int at = 0, n; at < length; at += n) {
    n = stretch8(size, at, length);
    const size_t block = table[at / size];
    const int from = at % size, then = at + n;
    Ahead next = {.count = 0};
    if (then < length && then % size == 0) {
      const size_t far = table[then / size];
      ahead_of(&next, key_head(s, far, 2 * pair), 2 * (size_t)size * k); /* of both heads */
      ahead_of(&next, value_head(s, far, pair), (size_t)size * v);
    }
    for (int half = 0; half < 2; half++) {
      const Split *q_half[TOGETHER];
      float *of_half[TOGETHER];
      for (int h = 0; h < heads; h++) q_half[h] = query + 2 * h + half, of_half[h] = score[2 * h + half];
      phikit_score8(q_half, heads, key_head(s, block, 2 * pair + half) + 4 * from,
                    s->key_scales + scale_at(c, block, 2 * pair + half, c->kv_heads, from), n, k, size, of_half,
                    &next);
    }
    const float *value_scale = s->value_scales + scale_at(c, block, pair, pairs, from);
    for (int h = 0; h < maps; h++)
      phikit_weights8(score[h], n, scale, value_scale, v, gathered + h, weight + h, &next);
    phikit_weigh8(value_head(s, block, pair) + (size_t)from * v, n, v, weight, maps, gathered, &next);
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
