/* One decoding step of any number of rows, in a single call, with packed weights.

   The arithmetic is that of step.c; here rows are many enough that all of a layer's work is divided
   between the threads, and that products take their rows as bfloat16 at once.

   Letters: as in step.h.  */
#include "step.h"

/* A phase: x / rms(x) × weight of every row, ready for a product. */
static void norm(Team *team, const Step *s, const uint16_t *weight) {
  const int width = s->model->width, size = piece(team, s->m);
  for (int first; (first = claim(team, s->m, size)) >= 0;)
    for (int row = first; row < first + size && row < s->m; row++) {
      const float *x = s->x + (size_t)row * width;
      uint16_t *out = s->ready + (size_t)row * width;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int i = 0; i < width; i++) sum += x[i] * x[i];
      const float inverse = 1.0f / sqrtf(sum / width + s->model->eps);
      for (int i = 0; i < width; i++) out[i] = to_bf16(x[i] * inverse * from_bf16(weight[i]));
    }
  meet(team);
}

/* A phase: act = silu(gate) × up, in bfloat16. Panel p and panel p + F / 64 belong together. */
static void gated(Team *team, const Step *s, const Matrix *w) {
  const int inner = s->model->inner, total = inner / PANEL, size = piece(team, total);
  for (int first; (first = claim(team, total, size)) >= 0;)
    for (int panel = first; panel < first + size && panel < total; panel++)
      for (int row = 0; row < s->m; row += TALL) {
        const int rows = s->m - row < TALL ? s->m - row : TALL;
        const uint16_t *x = s->ready + (size_t)row * w->k;
        float gate[TALL * PANEL], up[TALL * PANEL];
        phikit_panel(w, panel, x, rows, gate);
        phikit_panel(w, panel + total, x, rows, up);
        for (int r = 0; r < rows; r++) {
          uint16_t *to = s->gated + (size_t)(row + r) * inner + panel * PANEL;
          const float *g = gate + r * PANEL, *u = up + r * PANEL;
          for (int i = 0; i < PANEL; i++) to[i] = to_bf16(silu(g[i]) * u[i]);
        }
      }
  phikit_tiles(NO_TILES);
  meet(team);
}

static void run(Team *team, void *argument) {
  const Step *s = argument;
  const Model *net = s->model;
  Step last = *s;
  last.m = s->wanted;
  for (int i = 0; i < net->layers; i++) {
    const Layer *layer = &net->layer[i];
    norm(team, s, layer->input_norm);
    phikit_panels(team, &layer->qkv, s->ready, s->m, s->qkv, 0);
    phikit_store_tokens(team, s, i);
    if (i == net->layers - 1) s = &last; /* of a prompt's tokens only the cache is wanted */
    if (!s->m) return;
    phikit_attend_tokens(team, s, i);
    phikit_panels(team, &layer->o, s->ready, s->m, s->x, 1);
    norm(team, s, layer->post_norm);
    gated(team, s, &layer->gate_up);
    phikit_panels(team, &layer->down, s->gated, s->m, s->x, 1);
  }
  norm(team, s, net->norm);
  phikit_panels(team, &net->head, s->ready, s->m, s->logits, 0);
}

/* As phikit_step, of matrices that are all packed; F is a multiple of 64. */
int phikit_many(const Model *model, const Cache *cache, const int64_t *tokens,
                const int32_t *positions, const float *cosine, const float *sine, int m,
                float *logits, int wanted, int threads) {
  const int out = model->heads * model->head_dim;
  Step s = {.model = model, .cache = cache, .tokens = tokens, .positions = positions,
            .cosine = cosine, .sine = sine, .m = m, .wanted = wanted, .logits = logits};
  s.ready = malloc(2 * readable(m) * (out > model->width ? out : model->width));
  s.gated = malloc(2 * readable(m) * model->inner);
  const int begun = s.ready && s.gated && phikit_begin(&s);
  if (begun) phikit_run_team(threads, run, &s);
  free(s.x), free(s.ready), free(s.gated);
  return begun ? 0 : -1;
}
