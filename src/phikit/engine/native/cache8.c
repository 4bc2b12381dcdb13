/* Attention to keys and values that are stored in 8 bits, each vector with a scale of its own.

   Keys lie as k / scale + 128, values as v / scale. A query is held as 16-bit integers (two signed
   bytes), so that integer dot-product instructions take the stored keys as they are; values become
   numbers in registers. Nothing is unpacked in memory: a step reads half of what bfloat16 takes.

   Letters: M rows, H query heads, G key-value heads, E = H / G, K head size, R rotated part.  */
#include "decode.h"

typedef struct {
  const Shape *shape; /* strides count bytes; a scale's place is that of its vector, over K */
  uint8_t *keys;
  int8_t *values;
  uint16_t *key_scales, *value_scales; /* bfloat16 */
  const int32_t *table, *position;
  const float *cosine, *sine;
  uint16_t *qkv, *out;
  int m;
  atomic_int failed;
} Attention;

typedef struct {
  int8_t high[WIDEST], low[WIDEST]; /* 256 high + low, times scale, is the query */
  float scale, offset;              /* offset: 128 × the sum of all its integers */
} Query;

static inline size_t vector_at(const Shape *c, const int32_t *table, int group, int at) {
  return table[at / c->block_size] * c->block_stride + group * c->head_stride +
         (at % c->block_size) * c->position_stride;
}

/* The integers of a vector: x / scale. The scale is rounded up, so that they fit into ±127. */
static uint16_t narrow(const uint16_t *x, int k, int8_t *out) {
  float largest = 0;
  for (int i = 0; i < k; i++) largest = fabsf(from_bf16(x[i])) > largest ? fabsf(from_bf16(x[i])) : largest;
  uint16_t scale = to_bf16(largest / 127.0f);
  if (from_bf16(scale) * 127.0f < largest) scale++;
  const float inverse = largest > 0 ? 1.0f / from_bf16(scale) : 0;
  for (int i = 0; i < k; i++) {
    const float value = from_bf16(x[i]) * inverse;
    const int whole = (int)(value + (value < 0 ? -0.5f : 0.5f));
    out[i] = (int8_t)(whole > 127 ? 127 : whole < -127 ? -127 : whole);
  }
  return scale;
}

static void turn(uint16_t *head, const float *cosine, const float *sine, int rotary) {
  float wide[WIDEST];
  for (int i = 0; i < rotary; i++) wide[i] = from_bf16(head[i]);
  rotate(wide, cosine, sine, rotary);
  for (int i = 0; i < rotary; i++) head[i] = to_bf16(wide[i]);
}

static void put_row(const Attention *s, int row, int group) {
  const Shape *c = s->shape;
  const int k = c->head_dim, e = c->heads / c->kv_heads;
  const float *cosine = s->cosine + (size_t)row * c->rotary, *sine = s->sine + (size_t)row * c->rotary;
  uint16_t *q = s->qkv + ((size_t)row * (c->heads + 2 * c->kv_heads) + group * e) * k;
  uint16_t *key = q + (size_t)(c->heads - group * e + group) * k;
  const size_t to = vector_at(c, s->table + (size_t)row * c->table_width, group, s->position[row]);
  int8_t integers[WIDEST];
  for (int head = 0; head < e; head++) turn(q + head * k, cosine, sine, c->rotary);
  turn(key, cosine, sine, c->rotary);
  s->key_scales[to / k] = narrow(key, k, integers);
  for (int i = 0; i < k; i++) s->keys[to + i] = (uint8_t)(integers[i] + 128);
  s->value_scales[to / k] = narrow(key + (size_t)c->kv_heads * k, k, s->values + to);
}

static void split_query(const uint16_t *x, int k, Query *q) {
  float largest = 0;
  for (int i = 0; i < k; i++) largest = fabsf(from_bf16(x[i])) > largest ? fabsf(from_bf16(x[i])) : largest;
  const float inverse = largest > 0 ? 32512.0f / largest : 0;
  int32_t sum = 0;
  memset(q->high, 0, sizeof q->high);
  memset(q->low, 0, sizeof q->low);
  for (int i = 0; i < k; i++) {
    const float value = from_bf16(x[i]) * inverse;
    const int32_t whole = (int32_t)(value + (value < 0 ? -0.5f : 0.5f)), upper = (whole + 128) >> 8;
    q->high[i] = (int8_t)upper;
    q->low[i] = (int8_t)(whole - upper * 256);
    sum += whole;
  }
  q->scale = largest / 32512.0f / sqrtf((float)k);
  q->offset = 128.0f * (float)sum;
}

#if PHIKIT_AVX512
/* q · key, less the offset, of 16 keys. */
static inline __m512 integer_dots(const Query *q, const uint8_t *key, int64_t stride, int k) {
  __m512 sum[16];
  for (int j = 0; j < 16; j++, key += stride) {
    __m512i high = _mm512_setzero_si512(), low = high;
    for (int i = 0; i < k; i += 64) {
      const __mmask64 use = k - i >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (k - i)) - 1;
      const __m512i v = _mm512_maskz_loadu_epi8(use, key + i);
      high = _mm512_dpbusd_epi32(high, v, _mm512_loadu_si512(q->high + i));
      low = _mm512_dpbusd_epi32(low, v, _mm512_loadu_si512(q->low + i));
    }
    sum[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(256.0f), _mm512_cvtepi32_ps(low));
  }
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_sub_ps(_mm512_permutexvar_ps(order, add_across(sum)), _mm512_set1_ps(q->offset));
}

/* 64 columns of the weighted sum of values for e heads (a constant where called). */
static inline __attribute__((always_inline)) void weigh_columns(
    const Attention *s, const int32_t *table, int group, const float *score, int first, int last,
    const int e, int column, float *total) {
  const Shape *c = s->shape;
  const int left = c->head_dim - column;
  __m512 sum[AT_ONCE][4];
  for (int h = 0; h < e; h++)
    for (int i = 0; i < 4; i++) sum[h][i] = _mm512_setzero_ps();
  const __mmask64 use = left >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1;
  for (int at = first; at <= last; at++) {
    const __m512i v = _mm512_maskz_loadu_epi8(use, s->values + vector_at(c, table, group, at) + column);
    __m512 wide[4] = {
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm512_castsi512_si128(v))),
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(v, 1))),
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(v, 2))),
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(v, 3)))};
    for (int h = 0; h < e; h++) {
      const __m512 w = _mm512_set1_ps(score[(size_t)h * c->most + at]);
      for (int i = 0; i < 4; i++) sum[h][i] = _mm512_fmadd_ps(w, wide[i], sum[h][i]);
    }
  }
  for (int h = 0; h < e; h++)
    for (int i = 0; i < 4; i++) _mm512_storeu_ps(total + 64 * h + 16 * i, sum[h][i]);
}
#endif

/* score[at] = q · key[at] / sqrt(K); positions before `first` may be written, down to a whole 16. */
static void score_keys(const Attention *s, const Query *q, const int32_t *table, int group,
                       float *score, int first, int last) {
  const Shape *c = s->shape;
  const int k = c->head_dim;
#if PHIKIT_AVX512
  if (c->block_size % 16 == 0) {
    for (int at = first & ~15; at <= last; at += 16) {
      const size_t from = vector_at(c, table, group, at);
      const __m256i half = _mm256_loadu_si256((const __m256i *)(s->key_scales + from / k));
      const __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
      const __m512 dot = integer_dots(q, s->keys + from, c->position_stride, k);
      _mm512_storeu_ps(score + at, _mm512_mul_ps(dot, _mm512_mul_ps(scale, _mm512_set1_ps(q->scale))));
    }
    return;
  }
#endif
  for (int at = first; at <= last; at++) {
    const size_t from = vector_at(c, table, group, at);
    int32_t high = 0, low = 0;
    for (int i = 0; i < k; i++) {
      high += s->keys[from + i] * q->high[i];
      low += s->keys[from + i] * q->low[i];
    }
    score[at] = (256.0f * (float)high + (float)low - q->offset) *
                (from_bf16(s->key_scales[from / k]) * q->scale);
  }
}

/* out[e][K] = Σ score[e][at] × value[at] / sum[e]; the scores hold the values' scales already. */
static void weigh_values(const Attention *s, const int32_t *table, int group, const float *score,
                         const float *sum, int first, int last, int e, uint16_t *out) {
  const Shape *c = s->shape;
  const int k = c->head_dim;
#if PHIKIT_AVX512
  for (int column = 0; column < k; column += 64) {
    float total[AT_ONCE * 64];
    if (e == 4) weigh_columns(s, table, group, score, first, last, 4, column, total);
    else if (e == 3) weigh_columns(s, table, group, score, first, last, 3, column, total);
    else if (e == 2) weigh_columns(s, table, group, score, first, last, 2, column, total);
    else weigh_columns(s, table, group, score, first, last, 1, column, total);
    for (int h = 0; h < e; h++)
      for (int i = 0; i < 64 && column + i < k; i++)
        out[h * k + column + i] = to_bf16(total[64 * h + i] / sum[h]);
  }
#else
  for (int h = 0; h < e; h++) {
    float total[WIDEST] = {0};
    for (int at = first; at <= last; at++) {
      const int8_t *value = s->values + vector_at(c, table, group, at);
      for (int i = 0; i < k; i++) total[i] += score[(size_t)h * c->most + at] * value[i];
    }
    for (int i = 0; i < k; i++) out[h * k + i] = to_bf16(total[i] / sum[h]);
  }
#endif
}

/* Up to AT_ONCE query heads of one row and group. */
static void attend_row(const Attention *s, int row, int group, int from, int e, float *score) {
  const Shape *c = s->shape;
  const int k = c->head_dim, last = s->position[row];
  const int first = c->window && last + 1 > c->window ? last + 1 - c->window : 0;
  const int head = group * (c->heads / c->kv_heads) + from;
  const int32_t *table = s->table + (size_t)row * c->table_width;
  const uint16_t *q = s->qkv + ((size_t)row * (c->heads + 2 * c->kv_heads) + head) * k;
  float sums[AT_ONCE];
  for (int h = 0; h < e; h++) {
    Query query;
    float *line = score + (size_t)h * c->most;
    split_query(q + h * k, k, &query);
    score_keys(s, &query, table, group, line, first, last);
    sums[h] = weigh_scores(line, first, last, 1.0f);
  }
  for (int at = first; at <= last; at++) {
    const float scale = from_bf16(s->value_scales[vector_at(c, table, group, at) / k]);
    for (int h = 0; h < e; h++) score[(size_t)h * c->most + at] *= scale;
  }
  weigh_values(s, table, group, score, sums, first, last, e,
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

/* As phikit_attend_rows; the store is keys, values, and the scales of both. */
int phikit_attend_cache8(const Shape *shape, void *const *store, const int32_t *table,
                         const int32_t *position, const float *const *rope, uint16_t *qkv,
                         uint16_t *out, int m, int threads) {
  Attention s = {shape, store[0], store[1], store[2], store[3], table, position,
                 rope[0], rope[1], qkv, out, m, 0};
  phikit_run_team(threads, attend, &s);
  return s.failed ? -1 : 0;
}
