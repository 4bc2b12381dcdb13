/* What lies between the matrix products of a layer in training, each in one pass over memory: the
   norm with the residual sum before it, and the gate of the MLP, forward and backward.

   The residual is float32, what goes in and out of products bfloat16; all is computed in float32.
   Every row is one thread's, and sums over rows are cut the same way however many there are.

   Letters: N rows (tokens), D model width, F inner width.  */
#include "../../engine/native/alike.h"

enum { SHORT = 1 << 15, PART = 64 }; /* elements that one thread takes alone; rows of a partial sum */

static void run_rows(int threads, size_t elements, void (*work)(Team *, void *), void *argument) {
  phikit_run_team(elements < SHORT ? 1 : threads, work, argument);
}

/* --- norms --------------------------------------------------------------------------------------*/

typedef struct {
  const float *x, *weight;   /* [N, D], [D] */
  const uint16_t *delta;     /* [N, D], or NULL */
  float *sum, *scale;        /* x + delta, where there is delta; 1 / rms of it [N] */
  uint16_t *out;             /* [N, D] */
  const uint16_t *d_out;     /* backward: x is the sum */
  const float *d_sum;
  float *d_x, *d_weight;     /* [N, D]; a row for each PART rows, [N / PART, D] */
  uint16_t *d_delta;         /* d_x in bfloat16, or NULL */
  int n, width;
  float eps;
} Norm;

static void norm_row(const Norm *s, int row) {
  const size_t at = (size_t)row * s->width;
  const float *x = s->x + at;
  if (s->delta) {
    float *sum = s->sum + at;
    const uint16_t *delta = s->delta + at;
    for (int i = 0; i < s->width; i++) sum[i] = x[i] + from_bf16(delta[i]);
    x = sum;
  }
  s->scale[row] = inverse_rms(x, s->width, s->eps);
  put_norm(x, s->scale[row], s->weight, s->width, s->out + at);
}

static void norm(Team *team, void *argument) {
  const Norm *s = argument;
  const int size = piece(team, s->n);
  for (int first; (first = claim(team, s->n, size)) >= 0;)
    for (int row = first; row < first + size && row < s->n; row++) norm_row(s, row);
}

static void norm_row_back(const Norm *s, int row, float *restrict d_weight) {
  const size_t at = (size_t)row * s->width;
  const float *restrict x = s->x + at, *restrict d_sum = s->d_sum + at, *restrict weight = s->weight;
  const uint16_t *restrict d_out = s->d_out + at;
  float *restrict d_x = s->d_x + at;
  const float scale = s->scale[row];
  float mean = 0;
#pragma omp simd reduction(+ : mean)
  for (int i = 0; i < s->width; i++) {
    const float share = from_bf16(d_out[i]) * x[i] * scale;
    d_weight[i] += share;
    mean += share * weight[i];
  }
  mean = mean / s->width * scale;
  for (int i = 0; i < s->width; i++)
    d_x[i] = d_sum[i] + scale * (from_bf16(d_out[i]) * weight[i] - x[i] * mean);
  if (s->d_delta) {
    uint16_t *restrict d_delta = s->d_delta + at;
    for (int i = 0; i < s->width; i++) d_delta[i] = to_bf16(d_x[i]);
  }
}

static void norm_back(Team *team, void *argument) {
  const Norm *s = argument;
  for (int part; (part = claim(team, (s->n + PART - 1) / PART, 1)) >= 0;) {
    float *d_weight = s->d_weight + (size_t)part * s->width;
    memset(d_weight, 0, 4 * (size_t)s->width);
    for (int row = part * PART; row < (part + 1) * PART && row < s->n; row++)
      norm_row_back(s, row, d_weight);
  }
}

/* sum = x + delta (without delta there is no sum); out = sum / rms(sum) × weight. */
void phikit_sum_norm(const float *x, const uint16_t *delta, const float *weight, float *sum, float *scale,
                     uint16_t *out, int n, int width, float eps, int threads) {
  Norm s = {.x = x, .delta = delta, .weight = weight, .sum = sum, .scale = scale, .out = out,
            .n = n, .width = width, .eps = eps};
  run_rows(threads, (size_t)n * width, norm, &s);
}

/* The rows of d_weight that the backward pass fills. */
int phikit_norm_parts(int n) { return (n + PART - 1) / PART; }

void phikit_sum_norm_back(const float *sum, const float *scale, const float *weight, const uint16_t *d_out,
                          const float *d_sum, float *d_x, uint16_t *d_delta, float *d_weight, int n, int width,
                          int threads) {
  Norm s = {.x = sum, .scale = (float *)scale, .weight = weight, .d_out = d_out, .d_sum = d_sum, .d_x = d_x,
            .d_delta = d_delta, .d_weight = d_weight, .n = n, .width = width};
  run_rows(threads, (size_t)n * width, norm_back, &s);
}

/* --- the gate -----------------------------------------------------------------------------------*/

typedef struct {
  const uint16_t *both, *d_out; /* [N, 2F]: gates, then what they let through; [N, F] */
  uint16_t *out, *d_both;
  int n, inner;
} Gate;

static void gate(Team *team, void *argument) {
  const Gate *s = argument;
  const int size = piece(team, s->n), inner = s->inner;
  for (int first; (first = claim(team, s->n, size)) >= 0;)
    for (int row = first; row < first + size && row < s->n; row++)
      gate_row(s->both + (size_t)row * 2 * inner, inner, s->out + (size_t)row * inner);
}

static void gate_back(Team *team, void *argument) {
  const Gate *s = argument;
  const int size = piece(team, s->n), inner = s->inner;
  for (int first; (first = claim(team, s->n, size)) >= 0;)
    for (int row = first; row < first + size && row < s->n; row++) {
      const uint16_t *restrict g = s->both + (size_t)row * 2 * inner, *restrict up = g + inner;
      const uint16_t *restrict d = s->d_out + (size_t)row * inner;
      uint16_t *restrict d_g = s->d_both + (size_t)row * 2 * inner, *restrict d_up = d_g + inner;
      for (int i = 0; i < inner; i++) {
        const float x = from_bf16(g[i]), slope = from_bf16(d[i]), sigmoid = 1.0f / (1.0f + fast_exp(-x));
        d_up[i] = to_bf16(slope * x * sigmoid);
        d_g[i] = to_bf16(slope * from_bf16(up[i]) * sigmoid * (1.0f + x * (1.0f - sigmoid)));
      }
    }
}

/* out = silu(the first F columns) × the last F columns. */
void phikit_gate(const uint16_t *both, uint16_t *out, int n, int inner, int threads) {
  Gate s = {.both = both, .out = out, .n = n, .inner = inner};
  run_rows(threads, (size_t)n * inner, gate, &s);
}

void phikit_gate_back(const uint16_t *both, const uint16_t *d_out, uint16_t *d_both, int n, int inner,
                      int threads) {
  Gate s = {.both = both, .d_out = d_out, .d_both = d_both, .n = n, .inner = inner};
  run_rows(threads, (size_t)n * inner, gate_back, &s);
}
