/* Mamba's step for one new position per row, its convolution and its scan, on states in slots.

   Everything comes and goes in bfloat16; sums and states are float32.

   Letters: M rows, I channels, S states of a channel, C taps of the convolution less one.  */
#include "decode.h"

enum { CHANNELS = 512 }; /* that one thread takes at a time */

typedef struct {
  int32_t inner, states, taps; /* I, S, C + 1 */
  int64_t tail_slot, state_slot; /* elements between slots */
} MambaShape;

typedef struct {
  const MambaShape *shape;
  const int32_t *slot; /* [M] */
  uint16_t *tail;      /* slots of [C, I] */
  float *state;        /* slots of [S, I] */
  const uint16_t *both; /* [M, 2 I]: what flows in, and the gate */
  const float *taps, *taps_bias;                     /* [C + 1, I], [I] */
  const uint16_t *conv, *delta, *rest;               /* [M, I], [M, I], [M, stride] */
  const float *rate, *skip, *bias;                   /* [S, I], [I], [I] */
  uint16_t *out, *memory;                            /* [M, I] */
  int m, rest_stride;
} Mamba;

/* ln x for x >= 1, to about 1e-7, in a form that becomes vector code. */
static inline float fast_log(float x) {
  int32_t bits;
  memcpy(&bits, &x, 4);
  int32_t e = ((bits - 0x3f3504f3) >> 23); /* x = 2^e × m, m from 0.707 to 1.414 */
  bits -= e << 23;
  float m;
  memcpy(&m, &bits, 4);
  m -= 1.0f;
  float p = 7.0376836292e-2f;
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  return p * m * m * m - 0.5f * m * m + m + (float)e * 0.69314718f;
}

/* ln(1 + e^x) */
static inline float softplus(float x) {
  const float y = fast_exp(x), u = 1.0f + y;
  const float d = u - 1.0f;
  const float exact = d == 0 ? y : fast_log(u) * (y / (d == 0 ? 1.0f : d));
  return x > 20.0f ? x : exact;
}

static void convolve_part(const Mamba *s, int row, int first, int last) {
  const int inner = s->shape->inner, taps = s->shape->taps;
  uint16_t *tail = s->tail + s->slot[row] * s->shape->tail_slot;
  const uint16_t *in = s->both + (size_t)row * 2 * inner;
  uint16_t *out = s->out + (size_t)row * inner;
  float sum[CHANNELS];
  for (int i = first; i < last; i++) sum[i - first] = s->taps_bias[i];
  for (int t = 0; t < taps; t++) {
    const uint16_t *x = t + 1 < taps ? tail + (size_t)t * inner : in;
    const float *weight = s->taps + (size_t)t * inner;
    for (int i = first; i < last; i++) sum[i - first] += from_bf16(x[i]) * weight[i];
  }
  for (int i = first; i < last; i++) out[i] = to_bf16(silu(sum[i - first]));
  for (int t = 0; t + 1 < taps; t++) {
    const uint16_t *next = t + 2 < taps ? tail + (size_t)(t + 1) * inner : in;
    memcpy(tail + (size_t)t * inner + first, next + first, 2 * (size_t)(last - first));
  }
}

static void scan_part(const Mamba *s, int row, int first, int last) {
  const int inner = s->shape->inner, states = s->shape->states, n = last - first;
  const size_t at = (size_t)row * inner + first;
  const uint16_t *b = s->rest + (size_t)row * s->rest_stride, *c = b + states;
  const uint16_t *gate = s->both + (size_t)row * 2 * inner + inner + first;
  float step[CHANNELS], flow[CHANNELS], sum[CHANNELS];
  for (int i = 0; i < n; i++) {
    step[i] = softplus(from_bf16(s->delta[at + i]) + s->bias[first + i]);
    const float x = from_bf16(s->conv[at + i]);
    flow[i] = step[i] * x;
    sum[i] = s->skip[first + i] * x;
  }
  for (int j = 0; j < states; j++) {
    float *state = s->state + s->slot[row] * s->shape->state_slot + (size_t)j * inner + first;
    const float *rate = s->rate + (size_t)j * inner + first;
    const float in = from_bf16(b[j]), out = from_bf16(c[j]);
    for (int i = 0; i < n; i++) {
      state[i] = state[i] * fast_exp(step[i] * rate[i]) + in * flow[i];
      sum[i] += out * state[i];
    }
  }
  for (int i = 0; i < n; i++) {
    s->memory[at + i] = to_bf16(sum[i]);
    s->out[at + i] = to_bf16(rounded(sum[i]) * rounded(silu(from_bf16(gate[i]))));
  }
}

static void for_parts(Team *team, const Mamba *s, void (*part)(const Mamba *, int, int, int)) {
  const int inner = s->shape->inner, parts = (inner + CHANNELS - 1) / CHANNELS;
  for (int item; (item = claim(team, s->m * parts, 1)) >= 0;) {
    const int first = item % parts * CHANNELS;
    part(s, item / parts, first, first + CHANNELS < inner ? first + CHANNELS : inner);
  }
}

static void convolve(Team *team, void *argument) { for_parts(team, argument, convolve_part); }
static void scan(Team *team, void *argument) { for_parts(team, argument, scan_part); }

/* out[M, I] = silu of the causal convolution; the tails move on. */
void phikit_mamba_convolve(const MambaShape *shape, const int32_t *slot, uint16_t *tail,
                           const uint16_t *both, const float *const *weights, uint16_t *out, int m,
                           int threads) {
  Mamba s = {.shape = shape, .slot = slot, .tail = tail, .both = both, .taps = weights[0],
             .taps_bias = weights[1], .out = out, .m = m};
  phikit_run_team(threads, convolve, &s);
}

/* memory[M, I] is what is read of the states, which move on; out[M, I] that behind the gate.
   inputs: conv, delta and `rest`, whose rows begin with B and C and are `rest_stride` apart.
   weights: rates, what skips the states, the time steps' bias.  */
void phikit_mamba_scan(const MambaShape *shape, const int32_t *slot, float *state,
                       const uint16_t *both, const uint16_t *const *inputs, int rest_stride,
                       const float *const *weights, uint16_t *const *outputs, int m, int threads) {
  Mamba s = {.shape = shape, .slot = slot, .state = state, .both = both, .conv = inputs[0],
             .delta = inputs[1], .rest = inputs[2], .rest_stride = rest_stride, .rate = weights[0],
             .skip = weights[1], .bias = weights[2], .memory = outputs[0], .out = outputs[1], .m = m};
  phikit_run_team(threads, scan, &s);
}
