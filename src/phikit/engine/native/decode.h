/* What decoding needs beside products: where keys and values are, exponentials, rotation.

   Letters: M new tokens, R rotated part of a head.  */
#ifndef PHIKIT_DECODE_H
#define PHIKIT_DECODE_H

#include "common.h"

/* Where keys and values are: position p of token m's sequence is in block
   table[m][p / block_size] of each layer's store; strides count elements. */
typedef struct {
  void *const *keys, *const *values;           /* [layers], bfloat16; or, with scales, 8 bits */
  float *const *key_scales, *const *value_scales; /* [layers] or NULL; see attend8.h */
  int64_t block_stride, head_stride, position_stride;
  int32_t block_size, table_width;
  const int32_t *table; /* [M, table_width] */
} Cache;

/* For the kernels of many rows: a model's heads, and how the store of one layer is laid out. */
typedef struct {
  int32_t heads, kv_heads, head_dim, rotary, window, most; /* most: positions any row looks at */
  int64_t block_stride, head_stride, position_stride;
  int32_t block_size, table_width;
} Shape;

/* e^x to about 2e-7, written so that compilers turn loops over it into vector code. What is above 88
   is subtracted: were it replaced by a constant, what is done with its exponential would be computed
   beforehand for all, and a SiLU's x / e^88 is so small that some processors take 150 cycles. */
static inline float fast_exp(float x) {
  const float over = x - 88.0f;
  x = x < -87.0f ? -87.0f : x;
  x -= over > 0 ? over : 0;
  float n = floorf(x * 1.44269504f + 0.5f);
  float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
  float power;
  memcpy(&power, &bits, 4);
  return p * power;
}

static inline float silu(float x) { return x / (1.0f + fast_exp(-x)); }

/* Neither inlined nor cloned, so that the compiler makes the same of it wherever it is used. */
#define ALIKE static __attribute__((noinline, noclone, unused))

ALIKE float inverse_rms(const float *x, int width, float eps) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int i = 0; i < width; i++) squares += x[i] * x[i];
  return 1.0f / sqrtf(squares / width + eps);
}

/* --- attention, tile by tile --------------------------------------------------------------------

   The softmax is taken over a tile of positions at a time; what was gathered is scaled down when a
   tile holds a higher score, so that scores and weights never leave the nearest cache.  */
enum { TILE_LENGTH = 64, WIDEST = 512 }; /* positions of a tile; the widest head, or pair of heads */

enum { WORD = 32 }; /* bfloat16 numbers of a vector */

/* What is read next, brought nearer while something else is computed. A block of the cache is too
   short for the processor to foresee the next one, and it waits for many of them asked for at once:
   so a few lines go with every piece of work. They go into the second cache; from the nearest they
   would push out the tile in use.  */
enum { STRETCHES = 8, LINE = 64 };
typedef struct {
  const char *at[STRETCHES], *end[STRETCHES];
  int now, count;
} Ahead;

static inline void ahead_of(Ahead *a, const void *from, size_t bytes) {
  a->at[a->count] = from;
  a->end[a->count++] = (const char *)from + bytes;
}

static inline void fetch(Ahead *a, int lines) {
#if PHIKIT_AVX512
  if (a->now >= a->count) return;
  const char *at = a->at[a->now];
  for (int i = 0; i < lines; i++) _mm_prefetch(at + LINE * i, _MM_HINT_T1);
  a->at[a->now] = at + LINE * lines;
  if (a->at[a->now] >= a->end[a->now]) a->now++;
#else
  (void)a, (void)lines;
#endif
}

/* What one query has gathered so far, relative to the highest score so far. */
typedef struct {
  float highest, sum, total[WIDEST];
} Gathered;

/* Turns a tile's scores into weights, and scales down what was gathered when one is higher.
   With `narrow` weights are rounded to bfloat16. Up to a whole 16 of scores are read.  */
static inline void soften(float *score, int n, float scale, int narrow, int v, Gathered *map) {
  float most = map->highest, added = 0;
#if PHIKIT_AVX512
  const __mmask16 tail = n % 16 ? (__mmask16)((1u << n % 16) - 1) : (__mmask16)~0u;
  __m512 top = _mm512_set1_ps(most), sum = _mm512_setzero_ps();
#define EACH_16 for (int i = 0; i < n; i += 16)
#define USED (i + 16 < n ? (__mmask16)~0u : tail)
  EACH_16 top = _mm512_mask_max_ps(top, USED, top, _mm512_loadu_ps(score + i));
  most = _mm512_reduce_max_ps(top);
#else
#pragma omp simd reduction(max : most)
  for (int i = 0; i < n; i++) most = score[i] > most ? score[i] : most;
#endif
  if (most > map->highest) {
    const float shrink = map->sum > 0 ? fast_exp(scale * (map->highest - most)) : 0;
    map->sum *= shrink;
    for (int i = 0; i < v; i++) map->total[i] *= shrink;
    map->highest = most;
  }
#if PHIKIT_AVX512
  const __m512 times = _mm512_set1_ps(scale), least = _mm512_set1_ps(most);
  EACH_16 {
    __m512 w = exp_16(_mm512_mul_ps(times, _mm512_sub_ps(_mm512_loadu_ps(score + i), least)));
    if (narrow) {
      const __m256i half = (__m256i)_mm512_cvtneps_pbh(w);
      w = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    _mm512_mask_storeu_ps(score + i, USED, w);
    sum = _mm512_mask_add_ps(sum, USED, sum, w);
  }
  added = _mm512_reduce_add_ps(sum);
#undef EACH_16
#undef USED
#else
#pragma omp simd reduction(+ : added)
  for (int i = 0; i < n; i++) {
    const float w = fast_exp(scale * (score[i] - most));
    added += score[i] = narrow ? rounded(w) : w;
  }
#endif
  map->sum += added;
}

/* The rotation of one head in place, products and sums rounded as bfloat16 tensors round them.
   The sines of the first half carry the minus sign of the rotation.  */
static inline void rotate(float *head, const float *cosine, const float *sine, int rotary) {
  int half = rotary / 2;
  for (int i = 0; i < half; i++) {
    float a = head[i], b = head[i + half];
    head[i] = rounded(rounded(a * cosine[i]) + rounded(b * sine[i]));
    head[i + half] = rounded(rounded(b * cosine[i + half]) + rounded(a * sine[i + half]));
  }
}

static inline float dot_bf16(const uint16_t *a, const uint16_t *b, int n) {
#if PHIKIT_AVX512
  __m512 sum = _mm512_setzero_ps();
  int i = 0;
  for (; i + 32 <= n; i += 32)
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(a + i),
                           (__m512bh)_mm512_loadu_si512(b + i));
  if (i < n) {
    __mmask32 rest = (__mmask32)((1u << (n - i)) - 1);
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_maskz_loadu_epi16(rest, a + i),
                           (__m512bh)_mm512_maskz_loadu_epi16(rest, b + i));
  }
  return _mm512_reduce_add_ps(sum);
#else
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; i++) sum += from_bf16(a[i]) * from_bf16(b[i]);
  return sum;
#endif
}

#if PHIKIT_AVX512
/* Always inlined: with a constant k nothing is left of the loop. */
static inline __attribute__((always_inline)) __m512 dot_wide(const uint16_t *a, const uint16_t *b, int k) {
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < k; i += 32)
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(a + i), (__m512bh)_mm512_loadu_si512(b + i));
  return sum;
}

/* The sums of four vectors' quarters, side by side: [a, b, c, d] four times, still to be added. */
static inline __attribute__((always_inline)) __m512 quarters(const uint16_t *q, const uint16_t *key,
                                                            int64_t stride, int k) {
  __m512 a = dot_wide(q, key, k), b = dot_wide(q, key + stride, k);
  __m512 c = dot_wide(q, key + 2 * stride, k), d = dot_wide(q, key + 3 * stride, k);
  __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  __m512d hi = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  return _mm512_add_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
}

/* A query's products with 16 keys. */
static inline __attribute__((always_inline)) __m512 dots(const uint16_t *q, const uint16_t *key,
                                                        int64_t stride, int k) {
  __m512 a = quarters(q, key, stride, k), b = quarters(q, key + 4 * stride, stride, k);
  __m512 c = quarters(q, key + 8 * stride, stride, k), d = quarters(q, key + 12 * stride, stride, k);
  __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
  return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}
#endif

/* Attention of up to AT_ONCE queries q_EK of one key head, which follow one another, to the positions
   up to `last` of its keys and values (those of the layer, at that head): out_EK, float32.  */
enum { AT_ONCE = 4 };
void phikit_attend_heads(const Shape *c, const uint16_t *keys, const uint16_t *values,
                         const int32_t *table, int last, const uint16_t *q, int count, float *out);

/* The same in the processor's matrix unit: 0 when that is not to be had, or does not do this shape. */
int phikit_attend_in_tiles(const Shape *c, const uint16_t *keys, const uint16_t *values,
                           const int32_t *table, int last, const uint16_t *q, int count, float *out);

/* The same to the bit as in training's forward pass (train/native/attention.c), which takes the softmax
   over all positions at once; with that unit alone. room: for positions up to `last`. */
int phikit_attends_as_trained(int head_dim, int block_size);
size_t phikit_room_as_trained(int last);
void phikit_attend_as_trained(const Shape *c, const uint16_t *keys, const uint16_t *values,
                              const int32_t *table, int last, const uint16_t *q, int count, char *room,
                              float *out);

static inline size_t place(const Cache *c, const int32_t *table, int head, int at) {
  return table[at / c->block_size] * c->block_stride + head * c->head_stride + (at % c->block_size) * c->position_stride;
}

#endif
