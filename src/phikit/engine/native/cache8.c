/* Attention of one row to a cache in 8 bits (attend8.h): half of what bfloat16 has to read.

   Letters: E query heads of a key head, G key-value heads, K head size, S positions of a block.  */
#include "attend8.h"

static size_t head_of(const Shape *c, const int32_t *table, int group, int at) {
  return (size_t)table[at / c->block_size] * c->kv_heads + group;
}

static size_t bytes_of_head(const Shape *c) { return (size_t)c->block_size * c->head_dim; }

void phikit_put8(const Shape *c, const Store8 *store, const int32_t *table, int group, int at, const uint16_t *key,
                 const uint16_t *value) {
  const int k = c->head_dim, size = c->block_size, in = at % size;
  const size_t head = head_of(c, table, group, at), first = head * bytes_of_head(c);
  store->key_scales[head * size + in] = phikit_put_key8(store->keys + first, size, in, key, k);
  store->value_scales[head * size + in] = phikit_put_value8(store->values + first, in, value, k);
}

void phikit_attend_heads8(const Shape *c, const Store8 *store, const int32_t *table, int group, int last,
                          const uint16_t *q, int count, float *out) {
  const int k = c->head_dim, size = c->block_size, length = last + 1;
  const float scale = 1.0f / sqrtf((float)k);
  Gathered gathered[AT_ONCE];
  Split query[AT_ONCE], weight[TOGETHER];
  const Split *queries[AT_ONCE];
  float score[AT_ONCE][TILE_LENGTH], *scores[AT_ONCE];
  memset(weight, 0, sizeof weight);
  for (int h = 0; h < count; h++) {
    float wide[WIDEST_8];
    for (int i = 0; i < k; i++) wide[i] = from_bf16(q[h * k + i]);
    phikit_split(wide, k, query + h);
    queries[h] = query + h, scores[h] = score[h];
    gathered[h].highest = -INFINITY, gathered[h].sum = 0;
    memset(gathered[h].total, 0, 4 * (size_t)k);
  }
  const int first = c->window && length > c->window ? length - c->window : 0;
  for (int at = first & ~15, n; at < length; at += n) {
    n = stretch8(size, at, length);
    const int in = at % size, then = at + n;
    const size_t head = head_of(c, table, group, at), from = head * bytes_of_head(c);
    Ahead next = {.count = 0};
    if (then < length && then % size == 0) {
      const size_t far = head_of(c, table, group, then) * bytes_of_head(c);
      ahead_of(&next, store->keys + far, bytes_of_head(c));
      ahead_of(&next, store->values + far, bytes_of_head(c));
    }
    phikit_score8(queries, count, store->keys + from + 4 * in, store->key_scales + head * size + in, n, k, size,
                  scores, &next);
    const float *value_scale = store->value_scales + head * size + in;
    for (int h = 0; h < count; h++) {
      for (int i = 0; i < first - at; i++) score[h][i] = -INFINITY;
      phikit_weights8(score[h], n, scale, value_scale, k, gathered + h, weight + h, &next);
    }
    phikit_weigh8(store->values + from + (size_t)in * k, n, k, weight, count, gathered, &next);
  }
  for (int h = 0; h < count; h++)
    for (int i = 0; i < k; i++) out[h * k + i] = gathered[h].total[i] / gathered[h].sum;
}
