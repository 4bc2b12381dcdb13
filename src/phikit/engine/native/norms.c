/* LayerNorm of a few rows with the residual sum before it, in one pass where torch takes four.

   Letters: M rows, D model width.  */
#include "decode.h"

/* x_MD += add_MD, unless that is NULL; out_MD = (x - mean) / deviation × weight + bias, of x rounded
   to bfloat16, as a norm in that precision sees it. Each row is one thread's and short: none else
   is woken for it.  */
void phikit_layer_norm_rows(float *x, const uint16_t *add, const uint16_t *weight, const uint16_t *bias,
                            uint16_t *out, int m, int width, float eps) {
  for (int row = 0; row < m; row++, x += width, out += width) {
    float sum = 0, squares = 0;
    if (add)
      for (int i = 0; i < width; i++) x[i] += from_bf16(add[(size_t)row * width + i]);
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < width; i++) sum += rounded(x[i]);
    const float mean = sum / width;
#pragma omp simd reduction(+ : squares)
    for (int i = 0; i < width; i++) squares += (rounded(x[i]) - mean) * (rounded(x[i]) - mean);
    const float inverse = 1.0f / sqrtf(squares / width + eps);
    for (int i = 0; i < width; i++)
      out[i] = to_bf16((rounded(x[i]) - mean) * inverse * from_bf16(weight[i]) + from_bf16(bias[i]));
  }
}
