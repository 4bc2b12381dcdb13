/* What lies between the products, in float32: norms, rotation and attention, the gate. See between.c.

   Written for exactness rather than speed: every loop over a row is of the row alone, so that its
   sums are taken in one order whatever goes with it.

   Letters: M rows, D model width, H query heads, G key-value heads, K head size, F inner width,
   R rotated part of a head.  */
#include "decode.h"

typedef struct {
  float *x;
  const float *add, *weight;
  float *out;
  int m, width;
  float eps;
} Norm;

static __attribute__((noinline)) void norm_row(const Norm *s, int row) {
  const size_t at = (size_t)row * s->width;
  float *x = s->x + at, *out = s->out + at;
  if (s->add)
    for (int i = 0; i < s->width; i++) x[i] += s->add[at + i];
  const float inverse = inverse_rms(x, s->width, s->eps);
  for (int i = 0; i < s->width; i++) out[i] = x[i] * inverse * s->weight[i];
}

static void norm(Team *team, void *argument) {
  const Norm *s = argument;
  for (int row; (row = claim(team, s->m, 1)) >= 0;) norm_row(s, row);
}

/* x_MD += add_MD, unless that is NULL; out_MD = x / rms(x) × weight_D. */
void phikit_norm_wide(float *x, const float *add, const float *weight, float *out, int m, int width,
                      float eps, int threads) {
  Norm s = {x, add, weight, out, m, width, eps};
  phikit_run_team((size_t)m * width < (1 << 16) ? 1 : threads, norm, &s);
}

typedef struct {
  const float *both;
  float *out;
  int m, inner;
} Gate;

static void gate(Team *team, void *argument) {
  const Gate *s = argument;
  for (int row; (row = claim(team, s->m, 1)) >= 0;) {
    const float *g = s->both + (size_t)row * 2 * s->inner, *up = g + s->inner;
    float *out = s->out + (size_t)row * s->inner;
    for (int i = 0; i < s->inner; i++) out[i] = silu(g[i]) * up[i];
  }
}

/* out_MF = silu(the first F columns) × the last F columns. */
void phikit_gate_wide(const float *both, float *out, int m, int inner, int threads) {
  Gate s = {both, out, m, inner};
  phikit_run_team((size_t)m * inner < (1 << 14) ? 1 : threads, gate, &s);
}

typedef struct {
  const Shape *shape;
  float *keys, *values;
  const int32_t *table, *position;
  const float *cosine, *sine;
  float *qkv, *out;
  int m;
  atomic_int failed;
} Attention;

static void turn(float *head, const float *cosine, const float *sine, int rotary) {
  const int half = rotary / 2;
  for (int i = 0; i < half; i++) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cosine[i] + b * sine[i];
    head[i + half] = b * cosine[i + half] + a * sine[i + half];
  }
}

static inline size_t where(const Shape *c, const int32_t *table, int at) {
  return table[at / c->block_size] * c->block_stride + (at % c->block_size) * c->position_stride;
}

static void put_row(const Attention *s, int row, int group) {
  const Shape *c = s->shape;
  const int k = c->head_dim, e = c->heads / c->kv_heads;
  const float *cosine = s->cosine + (size_t)row * c->rotary, *sine = s->sine + (size_t)row * c->rotary;
  float *q = s->qkv + ((size_t)row * (c->heads + 2 * c->kv_heads) + group * e) * k;
  float *key = q + (size_t)(c->heads - group * e + group) * k;
  const size_t to = where(c, s->table + (size_t)row * c->table_width, s->position[row]) + group * c->head_stride;
  for (int head = 0; head < e; head++) turn(q + head * k, cosine, sine, c->rotary);
  turn(key, cosine, sine, c->rotary);
  memcpy(s->keys + to, key, 4 * k);
  memcpy(s->values + to, key + (size_t)c->kv_heads * k, 4 * k);
}

static __attribute__((noinline)) float dot(const float *a, const float *b, int n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

#if PHIKIT_AVX512
/* The products of a query with 16 keys. */
static inline __m512 sixteen(const float *q, const float *key, int64_t stride, int k) {
  __m512 sum[16];
  for (int j = 0; j < 16; j++, key += stride) {
    sum[j] = _mm512_mul_ps(_mm512_loadu_ps(q), _mm512_loadu_ps(key));
    for (int i = 16; i < k; i += 16)
      sum[j] = _mm512_fmadd_ps(_mm512_loadu_ps(q + i), _mm512_loadu_ps(key + i), sum[j]);
  }
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_ps(order, add_across(sum));
}

/* Up to 64 columns of the weighted sum of values. */
static inline __attribute__((always_inline)) void weigh(const Shape *c, const float *values,
                                                        const int32_t *table, const float *score,
                                                        int first, int last, const int width, float *total) {
  __m512 sum[4];
  for (int i = 0; i < width; i++) sum[i] = _mm512_setzero_ps();
  for (int at = first; at <= last; at++) {
    const float *value = values + where(c, table, at);
    const __m512 w = _mm512_set1_ps(score[at]);
    for (int i = 0; i < width; i++) sum[i] = _mm512_fmadd_ps(w, _mm512_loadu_ps(value + 16 * i), sum[i]);
  }
  for (int i = 0; i < width; i++) _mm512_storeu_ps(total + 16 * i, sum[i]);
}
#endif

/* score[at] = q · key[at] for positions first to last; others may be written, up to a whole 16. */
static inline void score_keys(const Shape *c, const float *q, const float *keys, const int32_t *table,
                              float *score, int first, int last) {
#if PHIKIT_AVX512
  if (c->block_size % 16 == 0 && c->head_dim % 16 == 0) {
    for (int at = first & ~15; at <= last; at += 16)
      _mm512_storeu_ps(score + at, sixteen(q, keys + where(c, table, at), c->position_stride, c->head_dim));
    return;
  }
#endif
  for (int at = first; at <= last; at++) score[at] = dot(q, keys + where(c, table, at), c->head_dim);
}

static inline void weigh_values(const Shape *c, const float *values, const int32_t *table,
                                const float *score, int first, int last, float *total) {
  const int k = c->head_dim;
#if PHIKIT_AVX512
  if (k % 16 == 0) {
    for (int from = 0; from < k; from += 64) switch (k - from) {
        case 16: weigh(c, values + from, table, score, first, last, 1, total + from); break;
        case 32: weigh(c, values + from, table, score, first, last, 2, total + from); break;
        case 48: weigh(c, values + from, table, score, first, last, 3, total + from); break;
        default: weigh(c, values + from, table, score, first, last, 4, total + from);
      }
    return;
  }
#endif
  memset(total, 0, 4 * k);
  for (int at = first; at <= last; at++) {
    const float *value = values + where(c, table, at);
    for (int i = 0; i < k; i++) total[i] += score[at] * value[i];
  }
}

/* Scores first..last to e^(scale (score - the largest)), in place; their sum. */
static float weigh_scores(float *score, int first, int last, float scale) {
  float largest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : largest)
  for (int at = first; at <= last; at++) largest = score[at] > largest ? score[at] : largest;
#pragma omp simd reduction(+ : sum)
  for (int at = first; at <= last; at++) {
    score[at] = fast_exp(scale * (score[at] - largest));
    sum += score[at];
  }
  return sum;
}

static __attribute__((noinline)) void attend_head(const Attention *s, int row, int head, float *score) {
  const Shape *c = s->shape;
  const int k = c->head_dim, last = s->position[row], group = head / (c->heads / c->kv_heads);
  const int first = c->window && last + 1 > c->window ? last + 1 - c->window : 0;
  const int32_t *table = s->table + (size_t)row * c->table_width;
  const float *q = s->qkv + ((size_t)row * (c->heads + 2 * c->kv_heads) + head) * k;
  const float *keys = s->keys + group * c->head_stride, *values = s->values + group * c->head_stride;
  float *out = s->out + ((size_t)row * c->heads + head) * k;
  const float scale = 1.0f / sqrtf((float)k);
  float total[WIDEST];
  score_keys(c, q, keys, table, score, first, last);
  const float sum = weigh_scores(score, first, last, scale);
  weigh_values(c, values, table, score, first, last, total);
  for (int i = 0; i < k; i++) out[i] = total[i] / sum;
}

static void attend(Team *team, void *argument) {
  Attention *s = argument;
  const Shape *c = s->shape;
  float *score = malloc(4 * (size_t)c->most);
  if (!score) s->failed = 1;
  for (int item; (item = claim(team, s->m * c->kv_heads, 1)) >= 0;)
    put_row(s, item / c->kv_heads, item % c->kv_heads);
  meet(team); /* a row may look at another one's new key */
  if (!s->failed)
    for (int item; (item = claim(team, s->m * c->heads, 1)) >= 0;)
      attend_head(s, item / c->heads, item % c->heads, score);
  free(score);
}

/* As phikit_attend_rows, in float32. */
int phikit_attend_wide(const Shape *shape, float *const *store, const int32_t *table,
                       const int32_t *position, const float *const *rope, float *qkv, float *out,
                       int m, int threads) {
  Attention s = {shape, store[0], store[1], table, position, rope[0], rope[1], qkv, out, m, 0};
  phikit_run_team(threads, attend, &s);
  return s.failed ? -1 : 0;
}
