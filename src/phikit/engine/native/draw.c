/* Drawing a token per row from its logits: one or two passes over a row that stays in the cache,
   where softmax, sums over blocks and gathers over a whole batch write it to memory several times.

   A row's result depends on nothing but the row.

   Letters: N rows, V vocabulary, C blocks of it.  */
#include "decode.h"

enum { BLOCK = 64 };

typedef struct {
  const float *own, *adjusted;          /* [N, V]: the model's logits, and what is drawn from */
  const float *temperature, *uniform;   /* [N]; at temperature 0 the highest is taken */
  int64_t *token;                       /* [N] */
  float *logprob, *raw, *log_z;         /* [N] */
  int n, v;
  atomic_int failed;
} Draw;

static float highest(const float *x, int v) {
  float most = -INFINITY;
#pragma omp simd reduction(max : most)
  for (int i = 0; i < v; i++) most = x[i] > most ? x[i] : most;
  return most;
}

/* e^y, and nothing for what is so small that it is never drawn; -inf is what a filter puts out. */
static inline float weight(float y) {
  const float e = fast_exp(y);
  return y < -80.0f ? 0.0f : e;
}

/* The running sum of e^((x - most) × inverse) at each block's end; the whole sum. */
static double running(const float *x, int v, float most, float inverse, double *sum_C) {
  double total = 0;
  for (int at = 0; at < v; at += BLOCK) {
    const int count = v - at < BLOCK ? v - at : BLOCK;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < count; i++) sum += weight((x[at + i] - most) * inverse);
    total += sum;
    sum_C[at / BLOCK] = total;
  }
  return total;
}

/* The first token at which the running sum exceeds the target; when rounding leaves none, the last
   one that added anything. */
static int first_above(const float *x, int v, float most, float inverse, const double *sum_C, double target) {
  const int blocks = (v + BLOCK - 1) / BLOCK;
  int block = 0, last = 0;
  while (block < blocks - 1 && sum_C[block] <= target) block++;
  if (sum_C[block] <= target)
    while (block > 0 && sum_C[block - 1] >= sum_C[block]) block--;
  double sum = block ? sum_C[block - 1] : 0;
  for (int i = block * BLOCK; i < v && i < (block + 1) * BLOCK; i++) {
    const float w = weight((x[i] - most) * inverse);
    if (w > 0) last = i;
    sum += w;
    if (w > 0 && sum > target) break;
  }
  return last;
}

static void draw_row(Draw *s, int row, double *sum_C) {
  const float *own = s->own + (size_t)row * s->v, *x = s->adjusted + (size_t)row * s->v;
  const float temperature = s->temperature[row], most = highest(x, s->v);
  float own_most = most;
  double own_total = 0;
  if (temperature > 0) {
    const float inverse = 1.0f / temperature;
    const double total = running(x, s->v, most, inverse, sum_C);
    const int token = first_above(x, s->v, most, inverse, sum_C, s->uniform[row] * total);
    s->token[row] = token;
    s->logprob[row] = (x[token] - most) * inverse - (float)log(total);
    if (temperature == 1.0f && own == x) own_total = total;
  } else {
    int token = 0;
    while (token < s->v - 1 && x[token] != most) token++;
    s->token[row] = token;
    s->logprob[row] = 0;
  }
  if (own_total == 0) {
    if (own != x) own_most = highest(own, s->v);
    own_total = running(own, s->v, own_most, 1.0f, sum_C);
  }
  s->log_z[row] = own_most + (float)log(own_total);
  s->raw[row] = own[s->token[row]] - s->log_z[row];
}

static void draw(Team *team, void *argument) {
  Draw *s = argument;
  double *sum_C = malloc(sizeof(double) * (size_t)(s->v / BLOCK + 1));
  if (!sum_C) {
    s->failed = 1;
    return;
  }
  for (int row; (row = claim(team, s->n, 1)) >= 0;) draw_row(s, row, sum_C);
  free(sum_C);
}

/* Returns 0, or -1 without memory. */
int phikit_draw(const float *own, const float *adjusted, const float *temperature, const float *uniform,
                int64_t *token, float *numbers, int n, int v, int threads) {
  Draw s = {own, adjusted, temperature, uniform, token, numbers, numbers + n, numbers + 2 * n, n, v, 0};
  phikit_run_team(n * (size_t)v < (1 << 15) ? 1 : threads, draw, &s);
  return s.failed ? -1 : 0;
}

typedef struct {
  const float *x;
  const uint32_t *bits;
  float *out;
  int n, v, words;
} Mask;

static void mask(Team *team, void *argument) {
  const Mask *s = argument;
  for (int row; (row = claim(team, s->n, 1)) >= 0;) {
    const float *x = s->x + (size_t)row * s->v;
    float *out = s->out + (size_t)row * s->v;
    for (int at = 0; at < s->v; at += 32) {
      const uint32_t word = at / 32 < s->words ? s->bits[(size_t)row * s->words + at / 32] : 0;
      const int count = s->v - at < 32 ? s->v - at : 32;
      for (int i = 0; i < count; i++) out[at + i] = word >> i & 1 ? x[at + i] : -INFINITY;
    }
  }
}

/* out_NV = x_NV where its bit is set, else -inf; bits [N, words], the lowest first, none past them. */
void phikit_mask(const float *x, const uint32_t *bits, float *out, int n, int v, int words, int threads) {
  Mask s = {x, bits, out, n, v, words};
  phikit_run_team(n * (size_t)v < (1 << 15) ? 1 : threads, mask, &s);
}
