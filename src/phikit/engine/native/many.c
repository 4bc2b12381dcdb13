/* One decoding step of any number of rows, in a single call, with packed weights.

   The arithmetic is that of step.c; here rows are many enough that all of a layer's work is divided
   between the threads, and that products take their rows as bfloat16 at once. "As trained", what a
   product gives is rounded to bfloat16 too, as training keeps it, and all else is computed as there.

   Letters: as in step.h.  */
#include "alike.h"
#include "step.h"

/* A phase: x / rms(x) × weight of every row, ready for a product. */
static void norm(Team *team, const Step *s, const void *weight) {
  const int width = s->model->width, size = piece(team, s->m);
  for (int first; (first = claim(team, s->m, size)) >= 0;)
    for (int row = first; row < first + size && row < s->m; row++) {
      const float *x = s->x + (size_t)row * width;
      uint16_t *out = s->ready + (size_t)row * width;
      const float inverse = inverse_rms(x, width, s->model->eps);
      if (s->model->as_trained) put_norm(x, inverse, weight, width, out);
      else
        for (int i = 0; i < width; i++)
          out[i] = to_bf16(x[i] * inverse * from_bf16(((const uint16_t *)weight)[i]));
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
          if (s->model->as_trained) {
            uint16_t both[2 * PANEL];
            for (int i = 0; i < PANEL; i++) both[i] = to_bf16(g[i]), both[PANEL + i] = to_bf16(u[i]);
            gate_row(both, PANEL, to);
          } else
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
  const int sum = net->as_trained ? ADD_ROUNDED : ADD;
  char *room = s->room ? s->room + s->each * omp_get_thread_num() : NULL;
  for (int i = 0; i < net->layers; i++) {
    const Layer *layer = &net->layer[i];
    norm(team, s, layer->input_norm);
    phikit_panels(team, &layer->qkv, s->ready, s->m, s->qkv, PUT);
    phikit_store_tokens(team, s, i);
    if (i == net->layers - 1) s = &last; /* of a prompt's tokens only the cache is wanted */
    if (!s->m) return;
    phikit_attend_tokens(team, s, i, room);
    phikit_panels(team, &layer->o, s->ready, s->m, s->x, sum);
    norm(team, s, layer->post_norm);
    gated(team, s, &layer->gate_up);
    phikit_panels(team, &layer->down, s->gated, s->m, s->x, sum);
  }
  norm(team, s, net->norm);
  phikit_panels(team, &net->head, s->ready, s->m, s->logits, PUT);
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
  int begun = s.ready && s.gated;
  if (model->as_trained) {
    int last = 0;
    for (int i = 0; i < m; i++) last = positions[i] > last ? positions[i] : last;
    s.each = phikit_room_as_trained(last);
    s.room = aligned_alloc(64, s.each * threads);
    begun = begun && s.room;
  }
  begun = begun && phikit_begin(&s);
  if (begun) phikit_run_team(threads, run, &s);
  free(s.x), free(s.ready), free(s.gated), free(s.room);
  return begun ? 0 : -1;
}
