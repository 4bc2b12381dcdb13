/* What differential attention has in common over caches of either precision.

   Letters: M rows, E key-value heads, P = E / 2 pairs, R query heads of a key head, K head size,
   V = 2 K, S positions of a block, T blocks of a row's table.  */
#ifndef PHIKIT_DIFFER_H
#define PHIKIT_DIFFER_H

#include "decode.h"

enum { MAPS = 4 };

typedef struct {
  int32_t kv_heads, repeats, head_dim, block_size, table_width, cross;
  float lambda, eps;
} DifferShape;

typedef struct {
  const DifferShape *shape;
  void *keys, *values;              /* see differ.c and differ8.c */
  float *key_scales, *value_scales; /* of 8 bits: [blocks][E][S] and [blocks][P][S] */
  const int32_t *table, *length, *put; /* [M, T], [M], [M]: where the new position goes */
  const uint16_t *rest; /* [M, 2 P R K], and unless cross E K of keys and P V of values */
  const float *norm;    /* [V]: the norm's weight, times what is left of 1 */
  uint16_t *out;        /* [M, P R V] */
  int m;
} Differ;

static inline int differ_width(const DifferShape *c) {
  const int q = c->kv_heads * c->repeats * c->head_dim;
  return c->cross ? q : q + 2 * c->kv_heads * c->head_dim;
}

/* The queries of a row and pair: map 2 r + half is query head r with key head 2 pair + half. */
static inline const uint16_t *queries(const Differ *s, int row, int pair) {
  const DifferShape *c = s->shape;
  return s->rest + (size_t)row * differ_width(c) + (size_t)pair * c->repeats * 2 * c->head_dim;
}

/* The new keys of a row and pair, both heads of them; the values are `values_after` further on. */
static inline const uint16_t *new_keys(const Differ *s, int row, int pair) {
  const DifferShape *c = s->shape;
  return s->rest + (size_t)row * differ_width(c) + (size_t)(c->kv_heads * c->repeats + 2 * pair) * c->head_dim;
}

static inline size_t values_after(const DifferShape *c) { return (size_t)c->kv_heads * c->head_dim; }

/* How many positions from `at` on lie in one block and one tile. */
static inline int stretch(const DifferShape *c, int at, int length) {
  int n = c->block_size - at % c->block_size;
  n = n < length - at ? n : length - at;
  return n < TILE_LENGTH ? n : TILE_LENGTH;
}

/* What is left of the first map when the second is taken from it, normalised. */
static inline void finish_pair(const Differ *s, int row, int pair, int head, Gathered *maps) {
  const DifferShape *c = s->shape;
  const int v = 2 * c->head_dim;
  float *one = maps[0].total, *two = maps[1].total, squares = 0;
  for (int i = 0; i < v; i++) {
    one[i] = one[i] / maps[0].sum - c->lambda * two[i] / maps[1].sum;
    squares += one[i] * one[i];
  }
  const float inverse = 1.0f / sqrtf(squares / v + c->eps);
  uint16_t *out = s->out + ((size_t)(row * (c->kv_heads / 2) + pair) * c->repeats + head) * v;
  for (int i = 0; i < v; i++) out[i] = to_bf16(one[i] * inverse * s->norm[i]);
}

typedef struct {
  void (*put)(const Differ *, int row, int pair);
  /* one or two query heads from `first` on */
  void (*attend)(const Differ *, int row, int pair, int first, int heads);
} DifferKind;

/* Runs a kind over all rows and pairs. */
void phikit_differ_run(const Differ *s, const DifferKind *kind, int threads);

#endif
