/* What a decoding step of few rows (step.c) and one of many (many.c) share.

   Letters: M new tokens, D model width, H query heads, G key-value heads, K head size, F inner
   width, R rotated part of a head, V vocabulary.  */
#ifndef PHIKIT_STEP_H
#define PHIKIT_STEP_H

#include "decode.h"

/* `as_trained`: every bit is that of training's forward pass (many.c alone). Norms are float32 then,
   else bfloat16; so is the embedding with `wide`. */
typedef struct {
  const void *input_norm, *post_norm; /* [D] */
  Matrix qkv, o, gate_up, down;
} Layer;

typedef struct {
  int32_t layers, width, inner, heads, kv_heads, head_dim, rotary, vocab, window, as_trained, wide;
  float eps;
  const void *embedding, *norm; /* [V, D], [D] */
  const Layer *layer;
  Matrix head;
} Model;

typedef struct {
  const Model *model;
  const Cache *cache;
  Shape shape;
  const int64_t *tokens;    /* [M] */
  const int32_t *positions; /* [M] */
  const float *cosine, *sine; /* [M, R], halves repeated */
  int m, wanted; /* of the first rows so many logits */
  float *x, *qkv, *attended, *act; /* [M, D], [M, (H+2G)K], [M, HK]; step.c: [M, F] */
  float *logits;                   /* [wanted, V] */
  uint16_t *ready, *gated; /* many.c: what goes into the next product, [M, the widest], [M, F] */
  char *room;              /* many.c, as trained: `each` bytes for every thread */
  size_t each;
  atomic_int failed;
} Step;

/* A step's memory is there and its tokens' vectors are in x; 0 without memory. */
int phikit_begin(Step *s);

/* A phase: new keys and values go to their place. */
void phikit_store_tokens(Team *team, const Step *s, int layer);

/* A phase after that: every head attends, into `attended` or, rounded, into `ready`. As trained, each
   thread has room (decode.h). */
void phikit_attend_tokens(Team *team, const Step *s, int layer, char *room);

#endif
