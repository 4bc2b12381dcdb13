/* What an engine's step "as trained" and training's forward pass compute alike, to the bit.

   In functions that are neither inlined nor cloned (ALIKE, decode.h, where the norm's scale is too):
   which products and sums a compiler fuses is then the same in both libraries. The rest is products in the matrix unit, whose sums are taken in the
   order of what is summed over, wherever a row or column lies (panels.c, heads_tiles.c;
   train/native/products.c, attention.c).  */
#ifndef PHIKIT_ALIKE_H
#define PHIKIT_ALIKE_H

#include "decode.h"

ALIKE void put_norm(const float *x, float inverse, const float *weight, int width, uint16_t *out) {
  for (int i = 0; i < width; i++) out[i] = to_bf16(x[i] * inverse * weight[i]);
}

/* One row of SwiGLU: the gate and its partner lie one after the other. */
ALIKE void gate_row(const uint16_t *restrict both, int inner, uint16_t *restrict out) {
  for (int i = 0; i < inner; i++) out[i] = to_bf16(silu(from_bf16(both[i])) * from_bf16(both[inner + i]));
}

/* Rotates by the angle whose sine and cosine are given, or back. */
ALIKE void turn(const float *first, const float *second, const float *cosine, const float *sine, int half,
                float sign, uint16_t *to) {
  for (int i = 0; i < half; i++) {
    to[i] = to_bf16(first[i] * cosine[i] - sign * second[i] * sine[i]);
    to[i + half] = to_bf16(second[i] * cosine[i] + sign * first[i] * sine[i]);
  }
}

#if PHIKIT_AVX512
/* Which of the sixteen keys from `at` on are those of `position` and before. */
static inline __mmask16 earlier(int position, int at) {
  const int left = position + 1 - at;
  return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
}

static inline void narrow16(uint16_t *to, __m512 x) {
  _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

/* The scores of the query at `position` over `keys` keys, of which it sees its own and those before,
   to e^(scale (score - the largest)) in bfloat16; their sum and log Z. */
ALIKE float weigh(const float *scores, int position, int keys, float scale, uint16_t *to, float *log_z) {
  __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
  for (int at = 0; at < keys; at += 16)
    most = _mm512_mask_max_ps(most, earlier(position, at), most, _mm512_loadu_ps(scores + at));
  const float largest = scale * _mm512_reduce_max_ps(most);
  for (int at = 0; at < keys; at += 16) {
    const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + at), _mm512_set1_ps(scale), _mm512_set1_ps(largest));
    const __m512 p = _mm512_maskz_mov_ps(earlier(position, at), exp_16(x));
    sum = _mm512_add_ps(sum, p);
    narrow16(to + at, p);
  }
  const float total = _mm512_reduce_add_ps(sum);
  *log_z = largest + logf(total);
  return total;
}
#endif

#endif
