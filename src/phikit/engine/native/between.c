/* What lies between the matrix products of a step of many rows, whose products are left to torch:
   norms with the residual sum before them, rotation and attention, the gate of the MLP.

   Each is one pass over the rows where torch takes several operations, and a copy in float32 for
   most of them. What comes from a product and goes into one is bfloat16; the residual sum is float32,
   and so is what lies between. A row's result depends on nothing but the row.

   Letters: M rows, D model width, H query heads, G key-value heads, E = H / G, K head size,
   F inner width, R rotated part of a head.  */
#include "alike.h"
#include "attend8.h"

enum { SHORT = 1 << 16 }; /* elements that one thread takes alone */

static void run_rows(int threads, size_t elements, void (*work)(Team *, void *), void *argument) {
  phikit_run_team(elements < SHORT ? 1 : threads, work, argument);
}

/* --- norms --------------------------------------------------------------------------------------*/

typedef struct {
  float *x;
  const uint16_t *add, *weight;
  uint16_t *out;
  int m, width;
  float eps;
} Norm;

static void norm_row(const Norm *s, int row) {
  const size_t at = (size_t)row * s->width;
  float *x = s->x + at;
  uint16_t *out = s->out + at;
  if (s->add)
    for (int i = 0; i < s->width; i++) x[i] += from_bf16(s->add[at + i]);
  const float inverse = inverse_rms(x, s->width, s->eps);
  for (int i = 0; i < s->width; i++) out[i] = to_bf16(x[i] * inverse * from_bf16(s->weight[i]));
}

static void norm(Team *team, void *argument) {
  const Norm *s = argument;
  const int size = piece(team, s->m);
  for (int first; (first = claim(team, s->m, size)) >= 0;)
    for (int row = first; row < first + size && row < s->m; row++) norm_row(s, row);
}

/* x_MD += add_MD, unless that is NULL; out_MD = x / rms(x) × weight_D. */
void phikit_norm_rows(float *x, const uint16_t *add, const uint16_t *weight, uint16_t *out, int m,
                      int width, float eps, int threads) {
  Norm s = {x, add, weight, out, m, width, eps};
  run_rows(threads, (size_t)m * width, norm, &s);
}

/* --- the gate -----------------------------------------------------------------------------------*/

typedef struct {
  const uint16_t *both;
  uint16_t *out;
  int m, inner;
} Gate;

static void gate(Team *team, void *argument) {
  const Gate *s = argument;
  const int size = piece(team, s->m);
  for (int first; (first = claim(team, s->m, size)) >= 0;)
    for (int row = first; row < first + size && row < s->m; row++)
      gate_row(s->both + (size_t)row * 2 * s->inner, s->inner, s->out + (size_t)row * s->inner);
}

/* out_MF = silu(the first F columns) × the last F columns. */
void phikit_gate_rows(const uint16_t *both, uint16_t *out, int m, int inner, int threads) {
  Gate s = {both, out, m, inner};
  run_rows(threads, (size_t)m * inner, gate, &s);
}

/* --- attention ----------------------------------------------------------------------------------*/

typedef struct {
  const Shape *shape;
  uint16_t *keys, *values;         /* of this layer; NULL in 8 bits */
  Store8 store;
  const int32_t *table, *position; /* [M, table_width], [M] */
  const float *cosine, *sine;      /* [M, R], halves repeated, the first half's sines negative */
  uint16_t *qkv, *out;             /* [M, (H + 2G) K], [M, H K] */
  int m;
} Attention;

static void rotate_bf16(uint16_t *head, const float *cosine, const float *sine, int rotary) {
  float wide[WIDEST];
  for (int i = 0; i < rotary; i++) wide[i] = from_bf16(head[i]);
  rotate(wide, cosine, sine, rotary);
  for (int i = 0; i < rotary; i++) head[i] = to_bf16(wide[i]);
}

/* The new key and value of a row and group go to their place; its queries are rotated. */
static void put_row(const Attention *s, int row, int group) {
  const Shape *c = s->shape;
  const int k = c->head_dim, e = c->heads / c->kv_heads, at = s->position[row];
  const float *cosine = s->cosine + (size_t)row * c->rotary, *sine = s->sine + (size_t)row * c->rotary;
  uint16_t *q = s->qkv + ((size_t)row * (c->heads + 2 * c->kv_heads) + group * e) * k;
  uint16_t *key = q + (size_t)(c->heads - group * e + group) * k;
  const int32_t *table = s->table + (size_t)row * c->table_width;
  for (int head = 0; head < e; head++) rotate_bf16(q + head * k, cosine, sine, c->rotary);
  rotate_bf16(key, cosine, sine, c->rotary);
  const uint16_t *value = key + (size_t)c->kv_heads * k;
  if (!s->keys) {
    phikit_put8(c, &s->store, table, group, at, key, value);
    return;
  }
  const size_t to = (size_t)table[at / c->block_size] * c->block_stride + group * c->head_stride +
                    (at % c->block_size) * c->position_stride;
  memcpy(s->keys + to, key, 2 * k);
  memcpy(s->values + to, value, 2 * k);
}

/* Up to AT_ONCE query heads of one row and group. */
static void attend_row(const Attention *s, int row, int group, int from, int e) {
  const Shape *c = s->shape;
  const int k = c->head_dim, head = group * (c->heads / c->kv_heads) + from;
  const uint16_t *q = s->qkv + ((size_t)row * (c->heads + 2 * c->kv_heads) + head) * k;
  uint16_t *out = s->out + ((size_t)row * c->heads + head) * k;
  float wide[AT_ONCE * WIDEST];
  const int32_t *table = s->table + (size_t)row * c->table_width;
  if (s->keys)
    phikit_attend_heads(c, s->keys + group * c->head_stride, s->values + group * c->head_stride, table,
                        s->position[row], q, e, wide);
  else phikit_attend_heads8(c, &s->store, table, group, s->position[row], q, e, wide);
  for (int i = 0; i < e * k; i++) out[i] = to_bf16(wide[i]);
}

static void attend(Team *team, void *argument) {
  Attention *s = argument;
  const Shape *c = s->shape;
  const int g = c->kv_heads, e = c->heads / g;
  for (int item; (item = claim(team, s->m * g, 1)) >= 0;) put_row(s, item / g, item % g);
  meet(team); /* a row may look at another one's new key */
  for (int item; (item = claim(team, s->m * g, 1)) >= 0;)
    for (int from = 0; from < e; from += AT_ONCE)
      attend_row(s, item / g, item % g, from, e - from < AT_ONCE ? e - from : AT_ONCE);
  phikit_tiles(NO_TILES);
}

/* Rotates queries and keys, stores keys and values, attends: out[M, H K]. The store is keys and values,
   and in 8 bits the scales of both, else NULL. Returns 0. */
int phikit_attend_rows(const Shape *shape, void *const *store, const int32_t *table,
                       const int32_t *position, const float *const *rope, uint16_t *qkv,
                       uint16_t *out, int m, int threads) {
  Attention s = {.shape = shape, .table = table, .position = position, .cosine = rope[0], .sine = rope[1],
                 .qkv = qkv, .out = out, .m = m};
  if (store[2]) s.store = (Store8){store[0], store[1], store[2], store[3]};
  else s.keys = store[0], s.values = store[1];
  phikit_run_team(threads, attend, &s);
  return 0;
}
