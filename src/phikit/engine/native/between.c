/* What lies between the matrix products of a step of many rows, whose products are left to torch:
   norms with the residual sum before them, rotation and attention, the gate of the MLP.

   Each is one pass over the rows where torch takes several operations, and a copy in float32 for
   most of them. Everything comes and goes in bfloat16 and is rounded where bfloat16 tensors round
   it. A row's result depends on nothing but the row.

   Letters: M rows, D model width, H query heads, G key-value heads, E = H / G, K head size,
   F inner width, R rotated part of a head.  */
#include "decode.h"

enum { SHORT = 1 << 16, AT_ONCE = 4, WIDEST = 512 }; /* elements that one thread takes alone; heads */

static void run_rows(int threads, size_t elements, void (*work)(Team *, void *), void *argument) {
  phikit_run_team(elements < SHORT ? 1 : threads, work, argument);
}

/* --- norms --------------------------------------------------------------------------------------*/

typedef struct {
  uint16_t *x;
  const uint16_t *add, *weight;
  uint16_t *out;
  int m, width;
  float eps;
} Norm;

static void norm_row(const Norm *s, int row) {
  const size_t at = (size_t)row * s->width;
  uint16_t *x = s->x + at, *out = s->out + at;
  float sum = 0;
  if (s->add)
    for (int i = 0; i < s->width; i++) x[i] = to_bf16(from_bf16(x[i]) + from_bf16(s->add[at + i]));
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < s->width; i++) sum += from_bf16(x[i]) * from_bf16(x[i]);
  const float inverse = 1.0f / sqrtf(sum / s->width + s->eps);
  for (int i = 0; i < s->width; i++)
    out[i] = to_bf16(rounded(from_bf16(x[i]) * inverse) * from_bf16(s->weight[i]));
}

static void norm(Team *team, void *argument) {
  const Norm *s = argument;
  const int size = piece(team, s->m);
  for (int first; (first = claim(team, s->m, size)) >= 0;)
    for (int row = first; row < first + size && row < s->m; row++) norm_row(s, row);
}

/* x_MD += add_MD, unless that is NULL; out_MD = x / rms(x) × weight_D. */
void phikit_norm_rows(uint16_t *x, const uint16_t *add, const uint16_t *weight, uint16_t *out, int m,
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
    for (int row = first; row < first + size && row < s->m; row++) {
      const uint16_t *g = s->both + (size_t)row * 2 * s->inner, *up = g + s->inner;
      uint16_t *out = s->out + (size_t)row * s->inner;
      for (int i = 0; i < s->inner; i++) {
        float x = from_bf16(g[i]);
        out[i] = to_bf16(rounded(x / (1.0f + fast_exp(-x))) * from_bf16(up[i]));
      }
    }
}

/* out_MF = silu(the first F columns) × the last F columns. */
void phikit_gate_rows(const uint16_t *both, uint16_t *out, int m, int inner, int threads) {
  Gate s = {both, out, m, inner};
  run_rows(threads, (size_t)m * inner, gate, &s);
}

/* --- attention ----------------------------------------------------------------------------------*/

typedef struct {
  const Shape *shape;
  uint16_t *keys, *values;         /* of this layer */
  const int32_t *table, *position; /* [M, table_width], [M] */
  const float *cosine, *sine;      /* [M, R], halves repeated, the first half's sines negative */
  uint16_t *qkv, *out;             /* [M, (H + 2G) K], [M, H K] */
  int m;
  atomic_int failed;
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
  const size_t to = (size_t)s->table[(size_t)row * c->table_width + at / c->block_size] * c->block_stride +
                    group * c->head_stride + (at % c->block_size) * c->position_stride;
  for (int head = 0; head < e; head++) rotate_bf16(q + head * k, cosine, sine, c->rotary);
  rotate_bf16(key, cosine, sine, c->rotary);
  memcpy(s->keys + to, key, 2 * k);
  memcpy(s->values + to, key + (size_t)c->kv_heads * k, 2 * k);
}

#if PHIKIT_AVX512
/* 32 columns of the weighted sum of values, for `e` heads at once (a constant where called). */
static inline __attribute__((always_inline)) void weigh_columns(
    const Shape *c, const uint16_t *values, const int32_t *table, const float *score, int first,
    int last, const int e, float *total) {
  __m512 even[AT_ONCE], odd[AT_ONCE];
  for (int h = 0; h < e; h++) even[h] = odd[h] = _mm512_setzero_ps();
  for (int at = first; at <= last;) {
    const int from = at % c->block_size, left = last - at + 1;
    const int count = left < c->block_size - from ? left : c->block_size - from;
    const uint16_t *value = values + table[at / c->block_size] * c->block_stride + from * c->position_stride;
    for (int i = 0; i < count; i++, at++, value += c->position_stride) {
      const __m512i v = _mm512_loadu_si512(value);
      const __m512 lo = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
      const __m512 hi = _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32((int)0xffff0000u)));
      for (int h = 0; h < e; h++) {
        const __m512 w = _mm512_set1_ps(score[(size_t)h * c->most + at]);
        even[h] = _mm512_fmadd_ps(w, lo, even[h]);
        odd[h] = _mm512_fmadd_ps(w, hi, odd[h]);
      }
    }
  }
  for (int h = 0; h < e; h++) {
    float a[16], b[16];
    _mm512_storeu_ps(a, even[h]), _mm512_storeu_ps(b, odd[h]);
    for (int i = 0; i < 16; i++) total[h * 32 + 2 * i] = a[i], total[h * 32 + 2 * i + 1] = b[i];
  }
}
#endif

/* score[at] = q · key[at] for positions first to last; others may be written, up to a whole 16. */
static void score_keys(const Shape *c, const uint16_t *q, const uint16_t *keys, const int32_t *table,
                       float *score, int first, int last) {
#if PHIKIT_AVX512
  if (c->block_size % 16 == 0 && c->head_dim % 32 == 0) {
    for (int at = first & ~15; at <= last; at += 16) {
      const uint16_t *key = keys + table[at / c->block_size] * c->block_stride +
                            (at % c->block_size) * c->position_stride;
      _mm512_storeu_ps(score + at, dots(q, key, c->position_stride, c->head_dim));
    }
    return;
  }
#endif
  for (int at = first; at <= last; at++)
    score[at] = dot_bf16(q, keys + table[at / c->block_size] * c->block_stride +
                                (at % c->block_size) * c->position_stride, c->head_dim);
}

/* out[e][K] = Σ score[e][at] × value[at] / sum[e]. */
static void weigh_values(const Shape *c, const uint16_t *values, const int32_t *table,
                         const float *score, const float *sum, int first, int last, int e,
                         uint16_t *out) {
  const int k = c->head_dim;
#if PHIKIT_AVX512
  if (k % 32 == 0) {
    for (int from = 0; from < k; from += 32) {
      float total[AT_ONCE * 32];
      const uint16_t *column = values + from;
      if (e == 4) weigh_columns(c, column, table, score, first, last, 4, total);
      else if (e == 3) weigh_columns(c, column, table, score, first, last, 3, total);
      else if (e == 2) weigh_columns(c, column, table, score, first, last, 2, total);
      else weigh_columns(c, column, table, score, first, last, 1, total);
      for (int h = 0; h < e; h++)
        for (int i = 0; i < 32; i++) out[h * k + from + i] = to_bf16(total[h * 32 + i] / sum[h]);
    }
    return;
  }
#endif
  for (int h = 0; h < e; h++) {
    float total[WIDEST] = {0};
    for (int at = first; at <= last; at++) {
      const uint16_t *value = values + table[at / c->block_size] * c->block_stride +
                              (at % c->block_size) * c->position_stride;
      const float weight = score[(size_t)h * c->most + at];
      for (int i = 0; i < k; i++) total[i] += weight * from_bf16(value[i]);
    }
    for (int i = 0; i < k; i++) out[h * k + i] = to_bf16(total[i] / sum[h]);
  }
}

/* Up to AT_ONCE query heads of one row and group. */
static void attend_row(const Attention *s, int row, int group, int from, int e, float *score) {
  const Shape *c = s->shape;
  const int k = c->head_dim, last = s->position[row];
  const int first = c->window && last + 1 > c->window ? last + 1 - c->window : 0;
  const int head = group * (c->heads / c->kv_heads) + from;
  const int32_t *table = s->table + (size_t)row * c->table_width;
  const uint16_t *q = s->qkv + ((size_t)row * (c->heads + 2 * c->kv_heads) + head) * k;
  const uint16_t *keys = s->keys + group * c->head_stride;
  const float scale = 1.0f / sqrtf((float)k);
  float sums[AT_ONCE];
  for (int h = 0; h < e; h++) {
    float *line = score + (size_t)h * c->most;
    score_keys(c, q + h * k, keys, table, line, first, last);
    sums[h] = weigh_scores(line, first, last, scale);
  }
  weigh_values(c, s->values + group * c->head_stride, table, score, sums, first, last, e,
               s->out + ((size_t)row * c->heads + head) * k);
}

static void attend(Team *team, void *argument) {
  Attention *s = argument;
  const Shape *c = s->shape;
  const int g = c->kv_heads, e = c->heads / g;
  float *score = malloc(4 * (size_t)AT_ONCE * c->most);
  if (!score) s->failed = 1;
  for (int item; (item = claim(team, s->m * g, 1)) >= 0;) put_row(s, item / g, item % g);
  meet(team); /* a row may look at another one's new key */
  if (!s->failed)
    for (int item; (item = claim(team, s->m * g, 1)) >= 0;)
      for (int from = 0; from < e; from += AT_ONCE)
        attend_row(s, item / g, item % g, from, e - from < AT_ONCE ? e - from : AT_ONCE, score);
  free(score);
}

/* Rotates queries and keys, stores keys and values, attends: out[M, H K]. 0, or -1 without memory.
   `most` of the shape is a multiple of 16 above every position. */
int phikit_attend_rows(const Shape *shape, uint16_t *const *store, const int32_t *table,
                       const int32_t *position, const float *const *rope, uint16_t *qkv,
                       uint16_t *out, int m, int threads) {
  Attention s = {shape, store[0], store[1], table, position, rope[0], rope[1], qkv, out, m, 0};
  phikit_run_team(threads, attend, &s);
  return s.failed ? -1 : 0;
}
