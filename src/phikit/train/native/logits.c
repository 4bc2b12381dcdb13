/* From logits in bfloat16 to losses and their slopes, a row at a time, which stays in the cache.

   Letters: C rows (tokens), V vocabulary.  */
#include "../../engine/native/decode.h"

typedef struct {
  uint16_t *logits;                    /* [C, V] */
  const int64_t *target;               /* [C] */
  float temperature;
  float *log_z, *at_target, *mean, *total; /* [C] */
  const float *p_factor, *x_factor, *target_slope;
  float everywhere;
  int n, vocabulary;
} Rows;

static void sum_row(const Rows *s, int row) {
  const uint16_t *restrict x = s->logits + (size_t)row * s->vocabulary;
  const int v = s->vocabulary;
  const float inverse = 1.0f / s->temperature;
  float largest = -INFINITY, z = 0, weighed = 0, total = 0;
#pragma omp simd reduction(max : largest)
  for (int i = 0; i < v; i++) largest = from_bf16(x[i]) > largest ? from_bf16(x[i]) : largest;
  largest *= inverse;
#pragma omp simd reduction(+ : z, weighed, total)
  for (int i = 0; i < v; i++) {
    const float y = from_bf16(x[i]) * inverse, p = fast_exp(y - largest);
    z += p;
    weighed += p * y;
    total += y;
  }
  s->log_z[row] = largest + logf(z);
  s->at_target[row] = from_bf16(x[s->target[row]]) * inverse;
  s->mean[row] = weighed / z;
  s->total[row] = total;
}

static void slope_row(const Rows *s, int row) {
  uint16_t *restrict x = s->logits + (size_t)row * s->vocabulary;
  const float inverse = 1.0f / s->temperature, log_z = s->log_z[row];
  const float a = s->p_factor[row], c = s->x_factor[row], b = s->everywhere;
  const int target = (int)s->target[row];
  const float y = from_bf16(x[target]) * inverse - log_z;
  const float there = fast_exp(y) * (a + c * y) + b + s->target_slope[row];
  for (int i = 0; i < s->vocabulary; i++) {
    const float y = from_bf16(x[i]) * inverse - log_z;
    x[i] = to_bf16(fast_exp(y) * (a + c * y) + b);
  }
  x[target] = to_bf16(there);
}

static void sums(Team *team, void *argument) {
  for (int row; (row = claim(team, ((Rows *)argument)->n, 1)) >= 0;) sum_row(argument, row);
}

static void slopes(Team *team, void *argument) {
  for (int row; (row = claim(team, ((Rows *)argument)->n, 1)) >= 0;) slope_row(argument, row);
}

/* Of y = logits / temperature: log Z, y at the target, the mean of y under softmax(y), the sum of y. */
void phikit_logit_sums(uint16_t *logits, const int64_t *target, float temperature, float *log_z,
                       float *at_target, float *mean, float *total, int n, int vocabulary, int threads) {
  Rows s = {.logits = logits, .target = target, .temperature = temperature, .log_z = log_z,
            .at_target = at_target, .mean = mean, .total = total, .n = n, .vocabulary = vocabulary};
  phikit_run_team(threads, sums, &s);
}

/* In the logits' place: p (p_factor + x_factor log p) + everywhere, and target_slope more at the
   target, where p = softmax(y).  */
void phikit_logit_slopes(uint16_t *logits, const int64_t *target, float temperature, float *log_z,
                         const float *p_factor, const float *x_factor, const float *target_slope,
                         float everywhere, int n, int vocabulary, int threads) {
  Rows s = {.logits = logits, .target = target, .temperature = temperature, .log_z = log_z,
            .p_factor = p_factor, .x_factor = x_factor, .target_slope = target_slope,
            .everywhere = everywhere, .n = n, .vocabulary = vocabulary};
  phikit_run_team(threads, slopes, &s);
}
