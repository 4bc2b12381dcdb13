/* From logits in float32 or bfloat16 to losses and their slopes, a row at a time, which stays in the
   cache.

   Letters: C rows (tokens), V vocabulary.  */
#include "../../engine/native/decode.h"

typedef struct {
  const void *logits; /* [C, V], float32 if wide, else bfloat16 */
  int wide;
  uint16_t *slopes; /* [C, V]; may be the logits */
  const int64_t *target; /* [C] */
  float temperature;
  float *log_z, *at_target, *mean, *total; /* [C] */
  const float *p_factor, *x_factor, *target_slope;
  float everywhere;
  int n, vocabulary;
} Rows;

/* Words whose sum is float32: over a whole vocabulary small terms would be lost in it. */
enum { PART = 1024 };

/* Row functions are made twice, with `wide` known, so that their loops have no branch.  */
#define TWICE static inline __attribute__((always_inline))

TWICE float at(const void *logits, int wide, size_t i) {
  return wide ? ((const float *)logits)[i] : from_bf16(((const uint16_t *)logits)[i]);
}

TWICE void sum_row(const Rows *s, int row, int wide) {
  const void *x = s->logits;
  const size_t from = (size_t)row * s->vocabulary;
  const int v = s->vocabulary;
  const float inverse = 1.0f / s->temperature;
  float largest = -INFINITY;
  double z = 0, weighed = 0, total = 0;
#pragma omp simd reduction(max : largest)
  for (int i = 0; i < v; i++) {
    const float y = at(x, wide, from + i);
    largest = y > largest ? y : largest;
  }
  largest *= inverse;
  for (int start = 0; start < v; start += PART) {
    const int end = start + PART < v ? start + PART : v;
    float z_part = 0, weighed_part = 0, total_part = 0;
#pragma omp simd reduction(+ : z_part, weighed_part, total_part)
    for (int i = start; i < end; i++) {
      const float y = at(x, wide, from + i) * inverse, p = fast_exp(y - largest);
      z_part += p;
      weighed_part += p * y;
      total_part += y;
    }
    z += z_part, weighed += weighed_part, total += total_part;
  }
  s->log_z[row] = largest + (float)log(z);
  s->at_target[row] = at(x, wide, from + s->target[row]) * inverse;
  s->mean[row] = (float)(weighed / z);
  s->total[row] = (float)total;
}

TWICE void slope_row(const Rows *s, int row, int wide) {
  const void *x = s->logits;
  const size_t from = (size_t)row * s->vocabulary;
  uint16_t *out = s->slopes + from;
  const float inverse = 1.0f / s->temperature, log_z = s->log_z[row];
  const float a = s->p_factor[row], c = s->x_factor[row], b = s->everywhere;
  const int target = (int)s->target[row];
  const float y = at(x, wide, from + target) * inverse - log_z;
  const float there = fast_exp(y) * (a + c * y) + b + s->target_slope[row];
#pragma omp simd /* each is read before it is written, also where slopes lie in the logits' place */
  for (int i = 0; i < s->vocabulary; i++) {
    const float y = at(x, wide, from + i) * inverse - log_z;
    out[i] = to_bf16(fast_exp(y) * (a + c * y) + b);
  }
  out[target] = to_bf16(there);
}

static void sums(Team *team, void *argument) {
  const Rows *s = argument;
  for (int row; (row = claim(team, s->n, 1)) >= 0;) {
    if (s->wide)
      sum_row(s, row, 1);
    else
      sum_row(s, row, 0);
  }
}

static void slopes(Team *team, void *argument) {
  const Rows *s = argument;
  for (int row; (row = claim(team, s->n, 1)) >= 0;) {
    if (s->wide)
      slope_row(s, row, 1);
    else
      slope_row(s, row, 0);
  }
}

/* Of y = logits / temperature: log Z, y at the target, the mean of y under softmax(y), the sum of y. */
void phikit_logit_sums(const void *logits, int wide, const int64_t *target, float temperature,
                       float *log_z, float *at_target, float *mean, float *total, int n,
                       int vocabulary, int threads) {
  Rows s = {.logits = logits, .wide = wide, .target = target, .temperature = temperature, .log_z = log_z,
            .at_target = at_target, .mean = mean, .total = total, .n = n, .vocabulary = vocabulary};
  phikit_run_team(threads, sums, &s);
}

/* The slopes: p (p_factor + x_factor log p) + everywhere, and target_slope more at the target, where
   p = softmax(y).  */
void phikit_logit_slopes(const void *logits, int wide, uint16_t *out, const int64_t *target,
                         float temperature, float *log_z, const float *p_factor,
                         const float *x_factor, const float *target_slope, float everywhere, int n,
                         int vocabulary, int threads) {
  Rows s = {.logits = logits, .wide = wide, .slopes = out, .target = target,
            .temperature = temperature, .log_z = log_z, .p_factor = p_factor, .x_factor = x_factor,
            .target_slope = target_slope, .everywhere = everywhere, .n = n,
            .vocabulary = vocabulary};
  phikit_run_team(threads, slopes, &s);
}
