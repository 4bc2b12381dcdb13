/* Keys and values in 8 bits, and the two products that attention makes with them.

   A vector is integers of -127 to 127 with one scale, largest / 127; stored is the integer + 128, as
   integer dot products want it:

   keys   [blocks][G][K / 4][S][4]   four channels of a position together, 16 positions in a vector
   values [blocks][G][S / 4][V][4]   four positions of a channel together, 16 channels in a vector
   scales [blocks][G][S]             float32, for keys and for values

   Queries and weights are 16-bit integers, two signed bytes, so that they lose nothing to speak of.
   All sums are of integers, so a tile of positions comes out the same by every kind of instruction.
   S and K are multiples of 16, K at most 256.

   Letters: G heads, K and V sizes of a key and a value, S positions of a block.  */
#ifndef PHIKIT_ATTEND8_H
#define PHIKIT_ATTEND8_H

#include "decode.h"

enum { WIDEST_8 = 256, TOGETHER = 4 }; /* the largest K; queries, or maps of weights, at once */

/* Numbers as 256 high + low, times one scale. */
typedef struct {
  int8_t high[WIDEST_8], low[WIDEST_8];
  float scale;
  int32_t sum; /* of 256 high + low */
} Split;

/* n is a multiple of 16. */
void phikit_split(const float *x, int n, Split *out);

/* Stores a vector as a key, or a value, of position `at` of a head's part of a block; its scale. */
float phikit_put_key8(uint8_t *head, int size, int at, const uint16_t *x, int k);
float phikit_put_value8(uint8_t *head, int at, const uint16_t *x, int v);

/* score[h] of the queries q[h] with n keys of one block from the one at `key` on, n rounded up to
   16; `scale` is of those keys. */
void phikit_score8(const Split *const *q, int count, const uint8_t *key, const float *scale, int n, int k,
                   int size, float *const *score, Ahead *next);

/* The weights of n scores for values of these scales, as integers; the scores are lost. Of size v is
   what the map has gathered. */
void phikit_weights8(float *score, int n, float scale, const float *value_scale, int v, Gathered *map, Split *out,
                     Ahead *next);

/* gathered[map] += weight[map] × value over n positions of one block from the one at `value` on. The
   weights past `maps`, up to TOGETHER, are 0. */
void phikit_weigh8(const uint8_t *value, int n, int v, const Split *weight, int maps, Gathered *gathered,
                   Ahead *next);

/* How many positions from `at` on are one tile: not past `length`, a block, or a multiple of a tile. */
static inline int stretch8(int size, int at, int length) {
  int n = size - at % size;
  n = n < TILE_LENGTH - at % TILE_LENGTH ? n : TILE_LENGTH - at % TILE_LENGTH;
  return n < length - at ? n : length - at;
}

/* --- of a dense decoder (cache8.c) --------------------------------------------------------------*/

/* A layer's. Of a Shape, the strides are those above. */
typedef struct {
  uint8_t *keys, *values;
  float *key_scales, *value_scales;
} Store8;

/* A new key and value of a group go to position `at` of the sequence with this table. */
void phikit_put8(const Shape *c, const Store8 *store, const int32_t *table, int group, int at, const uint16_t *key,
                 const uint16_t *value);

/* As phikit_attend_heads. */
void phikit_attend_heads8(const Shape *c, const Store8 *store, const int32_t *table, int group, int last,
                          const uint16_t *q, int count, float *out);

#endif
