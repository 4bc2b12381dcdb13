/* One decoding step of a dense decoder: up to 16 new tokens through all layers in a single call.

   A small model's step is some four hundred short operations; called one by one, most of the time
   goes into calling them. The arithmetic is that of models/decoder.py in float32; what goes into a
   matrix product or into the cache is rounded to bfloat16, and nothing else is.

   Letters: M new tokens, D model width, H query heads, G key-value heads, K head size, F inner
   width, R rotated part of a head, V vocabulary, L positions.  */
#include "alike.h"
#include "attend8.h"
#include "step.h"

static void rms_norm(const float *x, const uint16_t *weight, float *out, int m, int width,
                     float eps) {
  for (int row = 0; row < m; row++, x += width, out += width) {
    const float inverse = inverse_rms(x, width, eps);
    for (int i = 0; i < width; i++) out[i] = x[i] * inverse * from_bf16(weight[i]);
  }
}

static Store8 store_of(const Cache *c, int layer) {
  return (Store8){c->keys[layer], c->values[layer], c->key_scales[layer], c->value_scales[layer]};
}

/* A head of a projection that was not rounded yet: rounded, and rotated as training does it. */
static void turn_as_trained(const Step *s, int token, const float *head, uint16_t *out) {
  const int k = s->shape.head_dim, half = s->shape.rotary / 2;
  const float *cosine = s->cosine + (size_t)token * 2 * half, *sine = s->sine + (size_t)token * 2 * half + half;
  float wide[WIDEST];
  for (int i = 0; i < k; i++) out[i] = to_bf16(head[i]), wide[i] = from_bf16(out[i]);
  if (half) turn(wide, wide + half, cosine, sine, half, 1.0f, out);
}

static void store(const Step *s, int layer, int token, int group) {
  const Model *net = s->model;
  int k = net->head_dim, row = (net->heads + 2 * net->kv_heads) * k;
  float *key = s->qkv + (size_t)token * row + (net->heads + group) * k;
  const float *value = key + net->kv_heads * k;
  uint16_t narrow[2 * WIDEST];
  if (net->as_trained) turn_as_trained(s, token, key, narrow);
  else {
    rotate(key, s->cosine + token * net->rotary, s->sine + token * net->rotary, net->rotary);
    for (int i = 0; i < k; i++) narrow[i] = to_bf16(key[i]);
  }
  for (int i = 0; i < k; i++) narrow[k + i] = to_bf16(value[i]);
  const Cache *c = s->cache;
  const int32_t *table = c->table + (size_t)token * c->table_width;
  if (c->key_scales) {
    const Store8 to = store_of(c, layer);
    phikit_put8(&s->shape, &to, table, group, s->positions[token], narrow, narrow + k);
    return;
  }
  const size_t at = place(c, table, group, s->positions[token]);
  memcpy((uint16_t *)c->keys[layer] + at, narrow, 2 * k);
  memcpy((uint16_t *)c->values[layer] + at, narrow + k, 2 * k);
}

/* Up to AT_ONCE query heads of one token, which share a key head. */
static void attend(const Step *s, int layer, int token, int head, int count, char *room) {
  const Shape *c = &s->shape;
  const int k = c->head_dim, row = (c->heads + 2 * c->kv_heads) * k;
  const int group = head / (c->heads / c->kv_heads);
  float *query = s->qkv + (size_t)token * row + head * k;
  float *out = s->attended + ((size_t)token * c->heads + head) * k;
  uint16_t q[AT_ONCE * WIDEST];
  const int32_t *table = s->cache->table + (size_t)token * c->table_width;
  if (s->model->as_trained) {
    const int64_t at = group * c->head_stride;
    const uint16_t *keys = s->cache->keys[layer], *values = s->cache->values[layer];
    for (int h = 0; h < count; h++) turn_as_trained(s, token, query + h * k, q + h * k);
    phikit_attend_as_trained(c, keys + at, values + at, table, s->positions[token], q, count, room, out);
    for (int i = 0; i < count * k; i++) s->ready[((size_t)token * c->heads + head) * k + i] = to_bf16(out[i]);
    return;
  }
  for (int h = 0; h < count; h++)
    rotate(query + h * k, s->cosine + token * c->rotary, s->sine + token * c->rotary, c->rotary);
  for (int i = 0; i < count * k; i++) q[i] = to_bf16(query[i]);
  if (s->cache->key_scales) {
    const Store8 of = store_of(s->cache, layer);
    phikit_attend_heads8(c, &of, table, group, s->positions[token], q, count, out);
  } else {
    const uint16_t *keys = s->cache->keys[layer], *values = s->cache->values[layer];
    const int64_t at = group * c->head_stride;
    phikit_attend_heads(c, keys + at, values + at, table, s->positions[token], q, count, out);
  }
  if (s->ready)
    for (int i = 0; i < count * k; i++) s->ready[((size_t)token * c->heads + head) * k + i] = to_bf16(out[i]);
}

void phikit_store_tokens(Team *team, const Step *s, int layer) {
  const int heads = s->shape.kv_heads;
  for (int item; (item = claim(team, s->m * heads, 1)) >= 0;) store(s, layer, item / heads, item % heads);
  meet(team); /* a token may look at another one's new key */
}

void phikit_attend_tokens(Team *team, const Step *s, int layer, char *room) {
  const Shape *c = &s->shape;
  const int e = c->heads / c->kv_heads, parts = (e + AT_ONCE - 1) / AT_ONCE, each = c->kv_heads * parts;
  for (int item; (item = claim(team, s->m * each, 1)) >= 0;) {
    const int from = item % parts * AT_ONCE;
    attend(s, layer, item / each, item % each / parts * e + from, e - from < AT_ONCE ? e - from : AT_ONCE, room);
  }
  phikit_tiles(NO_TILES);
  meet(team);
}

/* Up to LANES results to their place, or added to what is there. */
static inline void put_lanes(float *to, const float *from, int count, int add) {
  if (count >= LANES && add)
    for (int i = 0; i < LANES; i++) to[i] += from[i];
  else if (count >= LANES) memcpy(to, from, 4 * LANES);
  else
    for (int i = 0; i < count; i++) to[i] = add ? to[i] + from[i] : from[i];
}

/* The product of `ready` with a matrix: into `out`, or added to what is there. */
static void product(Team *team, Step *s, const Matrix *w, const Ready *ready, float *out, int add) {
  int total = (units(w) + 1) / 2, size = piece(team, total);
  for (int first; (first = claim(team, total, size)) >= 0;)
    for (int pair = first; pair < first + size && pair < total; pair++) {
      float y[2][MAX_ROWS * LANES];
      phikit_two(w, pair, ready, s->m, y);
      for (int unit = 2 * pair; unit < 2 * pair + 2; unit++)
        for (int m = 0; m < s->m; m++)
          put_lanes(out + (size_t)m * w->n + unit * LANES, y[unit & 1] + m * LANES, w->n - unit * LANES, add);
    }
  phikit_tiles(NO_TILES);
  meet(team);
}

/* act = silu(gate) × up: rows u and F + u of one matrix, so a thread computes both. */
static void gated_product(Team *team, Step *s, const Matrix *w, const Ready *ready) {
  int inner = s->model->inner, total = inner / LANES, size = piece(team, total);
  for (int first; (first = claim(team, total, size)) >= 0;)
    for (int unit = first; unit < first + size && unit < total; unit++) {
      float gate[MAX_ROWS * LANES], up[MAX_ROWS * LANES];
      phikit_pair(w, unit, unit + total, ready, s->m, gate, up);
      for (int m = 0; m < s->m; m++)
        for (int n = 0; n < LANES; n++)
          s->act[(size_t)m * inner + unit * LANES + n] = silu(gate[m * LANES + n]) * up[m * LANES + n];
    }
  phikit_tiles(NO_TILES);
  meet(team);
}

static void run_layer(Team *team, Step *s, int index, Ready *ready, float *normed) {
  const Model *net = s->model;
  const Layer *layer = &net->layer[index];
  const int m = s->m;
  /* what is short is computed by every thread for itself: cheaper than to meet */
  rms_norm(s->x, layer->input_norm, normed, m, net->width, net->eps);
  phikit_make_ready(ready, &layer->qkv, normed, m);
  product(team, s, &layer->qkv, ready, s->qkv, 0);
  phikit_store_tokens(team, s, index);
  phikit_attend_tokens(team, s, index, NULL);
  phikit_make_ready(ready, &layer->o, s->attended, m);
  product(team, s, &layer->o, ready, s->x, 1);
  rms_norm(s->x, layer->post_norm, normed, m, net->width, net->eps);
  phikit_make_ready(ready, &layer->gate_up, normed, m);
  gated_product(team, s, &layer->gate_up, ready);
  phikit_make_ready(ready, &layer->down, s->act, m);
  product(team, s, &layer->down, ready, s->x, 1);
}

static void run(Team *team, void *argument) {
  Step *s = argument;
  const Model *net = s->model;
  int widest = net->inner > net->width ? net->inner : net->width;
  widest = net->heads * net->head_dim > widest ? net->heads * net->head_dim : widest;
  size_t ready_bytes = phikit_ready_bytes(s->m, widest);
  char *memory = malloc(ready_bytes + 4 * (size_t)s->m * net->width);
  if (!memory) s->failed = 1;
  meet(team);
  if (!s->failed) {
    Ready ready;
    phikit_ready_init(&ready, memory, s->m, widest);
    float *normed = (float *)(memory + ready_bytes);
    for (int i = 0; i < net->layers; i++) run_layer(team, s, i, &ready, normed);
    Step last = *s;
    last.m = s->wanted;
    rms_norm(s->x, net->norm, normed, last.m, net->width, net->eps);
    phikit_make_ready(&ready, &net->head, normed, last.m);
    if (last.m) product(team, &last, &net->head, &ready, s->logits, 0);
  }
  free(memory);
}

int phikit_begin(Step *s) {
  const Model *model = s->model;
  const Cache *cache = s->cache;
  const int m = s->m, width = model->width, out = model->heads * model->head_dim;
  const int row = out + 2 * model->kv_heads * model->head_dim;
  const Shape shape = {model->heads, model->kv_heads, model->head_dim, model->rotary, model->window, 0,
                       cache->block_stride, cache->head_stride, cache->position_stride,
                       cache->block_size, cache->table_width};
  s->shape = shape;
  s->x = malloc(4 * (size_t)m * (width + row + out + (s->gated ? 0 : model->inner)));
  if (!s->x) return 0;
  s->qkv = s->x + (size_t)m * width;
  s->attended = s->qkv + (size_t)m * row;
  s->act = s->attended + (size_t)m * out;
  for (int i = 0; i < m; i++) {
    const size_t at = (size_t)s->tokens[i] * width;
    float *x = s->x + (size_t)i * width;
    if (model->wide) memcpy(x, (const float *)model->embedding + at, 4 * (size_t)width);
    else
      for (int d = 0; d < width; d++) x[d] = from_bf16(((const uint16_t *)model->embedding)[at + d]);
  }
  return 1;
}

/* Feeds m tokens at their positions: their keys and values go into the cache, logits of the first
   `wanted` come out. Tokens of one sequence may be fed together: each attends to what is before it.
   Returns 0, or -1 when there is no memory.  */
int phikit_step(const Model *model, const Cache *cache, const int64_t *tokens,
                const int32_t *positions, const float *cosine, const float *sine, int m,
                float *logits, int wanted, int threads) {
  Step s = {.model = model, .cache = cache, .tokens = tokens, .positions = positions,
            .cosine = cosine, .sine = sine, .m = m, .wanted = wanted, .logits = logits};
  if (!phikit_begin(&s)) return -1;
  phikit_run_team(threads, run, &s);
  free(s.x);
  return s.failed ? -1 : 0;
}
