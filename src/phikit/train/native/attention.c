/* Attention confined to documents, forward and backward, in bfloat16 with sums in float32.

   Each document and key-value head is one piece of work: its keys and values are rotated and laid
   out once, then meet the queries of all heads of the group a block at a time. Scores of a block
   stay in the cache; what the backward pass needs of the forward one is a number per query and head.
   Every result is computed whole by one thread, so it does not depend on how many there are.

   Letters: T tokens, H query heads, G key-value heads, E = H / G, M = H + 2G heads of the fused
   projection, K head size, R rotated part of a head, L length of a document, P the same rounded up
   to whole blocks, Q queries of a block. A pair is two neighbours in bfloat16, in one word.  */
#include "../../engine/native/alike.h"

enum { BLOCK = 32, ROWS = 8, GAP = 16 }; /* GAP: so that rows do not lie whole pages apart */

typedef struct {
  int32_t heads, kv_heads, head_dim, rotary, documents, longest;
  const int32_t *starts, *lengths; /* [documents] */
  const int32_t *branches;         /* [T]: a branch sees branch 0 and itself; NULL: all are one */
  const float *cosine, *sine;      /* [T, R / 2] */
} Packed;

/* Whether this processor has the instructions; without them there are no kernels here. */
int phikit_confined_runs(void) { return PHIKIT_AVX512; }

#if PHIKIT_AVX512

typedef struct {
  const Packed *packed;
  const uint16_t *qkv, *grad; /* [T, M K], [T, H K] */
  uint16_t *out, *d_qkv;
  float *log_z; /* [T, H]: of every query's softmax */
  atomic_int failed;
} Job;

/* One thread's memory. Keys come as rows, by columns, and as pairs of rows; so do values. */
typedef struct {
  char *memory;
  uint16_t *key, *value, *q, *grad, *narrow;       /* [P, K], [Q, K], [Q, P] */
  uint32_t *key_columns, *value_columns;           /* [P / 32][K / 2][32] */
  uint32_t *key_pairs, *value_pairs;               /* [P / 2, K] */
  uint32_t *q_pairs, *grad_pairs, *p_pairs, *d_pairs; /* [Q / 2, K], [Q / 2, P + GAP] */
  float *scores, *slopes, *d_key, *d_value, *sums; /* [Q, P + GAP], [P, K], [Q, K] */
  int32_t *tokens;                                 /* [P]: which ones these are */
  int stride;                                      /* P + GAP */
} Scratch;

/* --- products -----------------------------------------------------------------------------------*/

/* c[8][32] = a · b over `pairs` pairs, or c + that. a's pair i of row r is at a[r × a_row + i × a_step],
   b's 32 columns of pair i at b[i × b_step].  */
static inline void tile(const uint32_t *a, size_t a_row, size_t a_step, const uint32_t *b, size_t b_step,
                        int pairs, float *c, size_t c_row, int add) {
  __m512 left[ROWS], right[ROWS];
  for (int r = 0; r < ROWS; r++) {
    left[r] = add ? _mm512_loadu_ps(c + r * c_row) : _mm512_setzero_ps();
    right[r] = add ? _mm512_loadu_ps(c + r * c_row + 16) : _mm512_setzero_ps();
  }
  for (int i = 0; i < pairs; i++, a += a_step, b += b_step) {
    const __m512bh b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + 16);
    for (int r = 0; r < ROWS; r++) {
      const __m512bh x = (__m512bh)_mm512_set1_epi32((int)a[r * a_row]);
      left[r] = _mm512_dpbf16_ps(left[r], x, b0);
      right[r] = _mm512_dpbf16_ps(right[r], x, b1);
    }
  }
  for (int r = 0; r < ROWS; r++) {
    _mm512_storeu_ps(c + r * c_row, left[r]);
    _mm512_storeu_ps(c + r * c_row + 16, right[r]);
  }
}

#if PHIKIT_TILES

/* c[32][32] = a · b over `pairs` pairs, or c + that; a's rows lie `a_row` apart, b's pairs `b_step`. */
static void square(const uint32_t *a, size_t a_row, const uint32_t *b, size_t b_step, int pairs, float *c,
                   size_t c_row, int add) {
  float *low = c + 16 * c_row;
  if (add) {
    TILE_LOAD(0, c, 4 * c_row);
    TILE_LOAD(1, c + 16, 4 * c_row);
    TILE_LOAD(2, low, 4 * c_row);
    TILE_LOAD(3, low + 16, 4 * c_row);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int i = 0; i < pairs; i += 16, a += 16, b += 16 * b_step) {
    TILE_LOAD(4, a, 4 * a_row);
    TILE_LOAD(6, b, 4 * b_step);
    _tile_dpbf16ps(0, 4, 6);
    TILE_LOAD(7, b + 16, 4 * b_step);
    _tile_dpbf16ps(1, 4, 7);
    TILE_LOAD(5, a + 16 * a_row, 4 * a_row);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, 4 * c_row);
  _tile_stored(1, c + 16, 4 * c_row);
  _tile_stored(2, low, 4 * c_row);
  _tile_stored(3, low + 16, 4 * c_row);
}

/* A square of 16 words, rows to columns. */
static void transpose(const uint32_t *from, size_t row, uint32_t *to) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + i * row);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) { /* quarter j of a[i + c]: column 4 j + c of four rows */
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  for (int c = 0; c < 4; c++) {
    const __m512i x = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88), y = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
    const __m512i z = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd), w = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
    _mm512_storeu_si512(to + 16 * c, _mm512_shuffle_i32x4(x, y, 0x88));
    _mm512_storeu_si512(to + 16 * (4 + c), _mm512_shuffle_i32x4(z, w, 0x88));
    _mm512_storeu_si512(to + 16 * (8 + c), _mm512_shuffle_i32x4(x, y, 0xdd));
    _mm512_storeu_si512(to + 16 * (12 + c), _mm512_shuffle_i32x4(z, w, 0xdd));
  }
}

static int tiled(void) { return phikit_tiles(OF_PRODUCTS); }

#else

static void square(const uint32_t *a, size_t a_row, const uint32_t *b, size_t b_step, int pairs, float *c,
                   size_t c_row, int add) {
  (void)a, (void)a_row, (void)b, (void)b_step, (void)pairs, (void)c, (void)c_row, (void)add;
}

static void transpose(const uint32_t *from, size_t row, uint32_t *to) { (void)from, (void)row, (void)to; }

static int tiled(void) { return 0; }

#endif

/* out[Q, keys] = rows[Q, K] · columnsᵀ. */
static void against_keys(const uint16_t *rows, const uint32_t *columns, int k, int keys, float *out, int stride) {
  const int whole = tiled();
  for (int at = 0; at < keys; at += BLOCK) {
    const uint32_t *b = columns + (size_t)at * k / 2;
    if (whole) square((const uint32_t *)rows, k / 2, b, BLOCK, k / 2, out + at, stride, 0);
    else
      for (int r = 0; r < BLOCK; r += ROWS)
        tile((const uint32_t *)rows + r * k / 2, k / 2, 1, b, BLOCK, k / 2,
             out + (size_t)r * stride + at, stride, 0);
  }
}

/* out[Q, K] = weights[Q, keys] · pairs. */
static void over_keys(const uint16_t *weights, int stride, const uint32_t *pairs, int k, int keys, float *out) {
  const uint32_t *a = (const uint32_t *)weights;
  const int whole = tiled();
  for (int c = 0; c < k; c += BLOCK)
    if (whole) square(a, stride / 2, pairs + c, k, keys / 2, out + c, k, 0);
    else
      for (int r = 0; r < BLOCK; r += ROWS)
        tile(a + (size_t)r * stride / 2, stride / 2, 1, pairs + c, k, keys / 2, out + r * k + c, k, 0);
}

/* out[keys, K] += weightsᵀ · rows, both as pairs of queries. */
static void over_queries(const uint32_t *weights, int stride, const uint32_t *pairs, int k, int keys, float *out) {
  if (tiled()) {
    uint32_t turned[BLOCK][16]; /* the weights of a key, all pairs of queries */
    for (int at = 0; at < keys; at += BLOCK) {
      transpose(weights + at, stride, turned[0]);
      transpose(weights + at + 16, stride, turned[16]);
      for (int c = 0; c < k; c += BLOCK)
        square(turned[0], 16, pairs + c, k, BLOCK / 2, out + (size_t)at * k + c, k, 1);
    }
    return;
  }
  for (int at = 0; at < keys; at += ROWS)
    for (int c = 0; c < k; c += BLOCK)
      tile(weights + at, 1, stride, pairs + c, k, BLOCK / 2, out + (size_t)at * k + c, k, 1);
}

/* --- laying out ---------------------------------------------------------------------------------*/

/* `rows` rows of one head from the one of tokens[at] on, zeros past tokens[count - 1]. */
static void take(const Packed *c, const uint16_t *from, int heads, int head, const int32_t *tokens, int count,
                 int at, int rows, int rotary, uint16_t *to) {
  const int k = c->head_dim, half = rotary / 2;
  for (int i = 0; i < rows; i++, to += k) {
    if (at + i >= count) {
      memset(to, 0, 2 * (size_t)k);
      continue;
    }
    const size_t token = tokens[at + i];
    const uint16_t *x = from + (token * heads + head) * k;
    memcpy(to, x, 2 * (size_t)k);
    if (!half) continue;
    float wide[2][256];
    for (int j = 0; j < half; j++) wide[0][j] = from_bf16(x[j]), wide[1][j] = from_bf16(x[j + half]);
    turn(wide[0], wide[1], c->cosine + token * half, c->sine + token * half, half, 1.0f, to);
  }
}

/* Gradients of one head back to their tokens. */
static void put(const Packed *c, const float *from, int head, int start, int length, int at, int rows,
                int rotary, uint16_t *d_qkv) {
  const int k = c->head_dim, half = rotary / 2, heads = c->heads + 2 * c->kv_heads;
  for (int i = 0; i < rows && at + i < length; i++, from += k) {
    const size_t token = (size_t)start + at + i;
    uint16_t *to = d_qkv + (token * heads + head) * k;
    if (half) turn(from, from + half, c->cosine + token * half, c->sine + token * half, half, -1.0f, to);
    for (int j = rotary; j < k; j++) to[j] = to_bf16(from[j]);
  }
}

/* Rows [rows, K] by columns: [rows / 32][K / 2][32]. */
static void by_columns(const uint16_t *rows, int count, int k, uint32_t *to) {
  const __m512i lanes = _mm512_mullo_epi32(
      _mm512_set1_epi32(k / 2), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  for (int at = 0; at < count; at += BLOCK)
    for (int i = 0; i < k / 2; i++, to += BLOCK) {
      const uint32_t *from = (const uint32_t *)rows + (size_t)at * k / 2 + i;
      _mm512_storeu_si512(to, _mm512_i32gather_epi32(lanes, from, 4));
      _mm512_storeu_si512(to + 16, _mm512_i32gather_epi32(lanes, from + 16 * (k / 2), 4));
    }
}

static void by_pairs(const uint16_t *rows, int count, int k, uint32_t *to) {
  for (int i = 0; i < count; i += 2, rows += 2 * k, to += k)
    for (int c = 0; c < k; c++) to[c] = rows[c] | (uint32_t)rows[c + k] << 16;
}

/* --- probabilities ------------------------------------------------------------------------------*/

/* Which of the sixteen keys from `at` on a query at `position` sees; `branches` of its document. */
static inline __mmask16 seen(const int32_t *branches, int position, int at) {
  const __mmask16 before = earlier(position, at);
  if (!branches || !before) return before;
  const __m512i b = _mm512_maskz_loadu_epi32(before, branches + at);
  return _mm512_mask_cmpeq_epi32_mask(before, b, _mm512_set1_epi32(branches[position])) |
         _mm512_mask_testn_epi32_mask(before, b, b);
}

/* A query's scores to probabilities, in place, and the slopes of the loss by probability to those by
   score: p (slope - Σ p slope) × scale.  */
static void unweigh(float *scores, float *slopes, const int32_t *branches, int position, int keys, float scale,
                    float log_z) {
  __m512 mean = _mm512_setzero_ps();
  for (int at = 0; at < keys; at += 16) {
    const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + at), _mm512_set1_ps(scale), _mm512_set1_ps(log_z));
    const __m512 p = _mm512_maskz_mov_ps(seen(branches, position, at), exp_16(x));
    mean = _mm512_fmadd_ps(p, _mm512_loadu_ps(slopes + at), mean);
    _mm512_storeu_ps(scores + at, p);
  }
  const __m512 less = _mm512_set1_ps(_mm512_reduce_add_ps(mean)), factor = _mm512_set1_ps(scale);
  for (int at = 0; at < keys; at += 16) {
    const __m512 d = _mm512_sub_ps(_mm512_loadu_ps(slopes + at), less);
    _mm512_storeu_ps(slopes + at, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(scores + at), d), factor));
  }
}

/* Two neighbouring queries' rows as pairs. */
static void pair_rows(const float *even, const float *odd, int keys, uint32_t *to) {
  for (int at = 0; at < keys; at += 16) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(even + at)));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(odd + at)));
    _mm512_storeu_si512(to + at, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
}

/* --- a document and group -----------------------------------------------------------------------*/

static int padded(int length) { return (length + BLOCK - 1) / BLOCK * BLOCK; }

/* The tokens that those of a document from `first` on see, up to the end of their run of one branch,
   in their order: those before and the run, of which the first one's place is returned. */
static int visible(const Packed *c, int document, int first, int32_t *tokens, int *count) {
  const int start = c->starts[document], length = c->lengths[document];
  const int32_t *branches = c->branches ? c->branches + start : NULL;
  int before = 0, last = first;
  for (int i = 0; i < first; i++)
    if (!branches || !branches[i] || branches[i] == branches[first]) tokens[before++] = start + i;
  while (last < length && (!branches || branches[last] == branches[first])) last++;
  for (int i = first; i < last; i++) tokens[before + i - first] = start + i;
  *count = before + last - first;
  return before;
}

/* One run of a branch, as if what it sees were a document: nothing depends on other branches. */
static void forward_run(const Job *job, int group, int before, int count, Scratch *s) {
  const Packed *c = job->packed;
  const int k = c->head_dim, e = c->heads / c->kv_heads, all = c->heads + 2 * c->kv_heads, whole = padded(count);
  const float scale = 1.0f / sqrtf((float)k);
  take(c, job->qkv, all, c->heads + group, s->tokens, count, 0, whole, c->rotary, s->key);
  take(c, job->qkv, all, c->heads + c->kv_heads + group, s->tokens, count, 0, whole, 0, s->value);
  by_columns(s->key, whole, k, s->key_columns);
  by_pairs(s->value, whole, k, s->value_pairs);
  for (int head = group * e; head < (group + 1) * e; head++)
    for (int at = before; at < count; at += BLOCK) {
      const int rows = count - at < BLOCK ? count - at : BLOCK, keys = padded(at + rows);
      float total[BLOCK];
      take(c, job->qkv, all, head, s->tokens, count, at, BLOCK, c->rotary, s->q);
      against_keys(s->q, s->key_columns, k, keys, s->scores, s->stride);
      for (int i = 0; i < rows; i++)
        total[i] = weigh(s->scores + (size_t)i * s->stride, at + i, keys, scale, s->narrow + (size_t)i * s->stride,
                         job->log_z + (size_t)s->tokens[at + i] * c->heads + head);
      over_keys(s->narrow, s->stride, s->value_pairs, k, keys, s->sums);
      for (int i = 0; i < rows; i++) {
        uint16_t *to = job->out + ((size_t)s->tokens[at + i] * c->heads + head) * k;
        for (int j = 0; j < k; j++) to[j] = to_bf16(s->sums[i * k + j] / total[i]);
      }
    }
}

static void attend_forward(const Job *job, int document, int group, Scratch *s) {
  for (int first = 0, count; first < job->packed->lengths[document];) {
    const int before = visible(job->packed, document, first, s->tokens, &count);
    forward_run(job, group, before, count, s);
    first += count - before;
  }
}

/* One block of queries of one head: their gradients, and their part of the keys' and values'. */
static void back_block(const Job *job, int document, int head, int at, Scratch *s) {
  const Packed *c = job->packed;
  const int k = c->head_dim, all = c->heads + 2 * c->kv_heads, keys = at + BLOCK, stride = s->stride;
  const int start = c->starts[document], length = c->lengths[document];
  const int32_t *branches = c->branches ? c->branches + start : NULL;
  const float scale = 1.0f / sqrtf((float)k);
  take(c, job->qkv, all, head, s->tokens, length, at, BLOCK, c->rotary, s->q);
  take(c, job->grad, c->heads, head, s->tokens, length, at, BLOCK, 0, s->grad);
  by_pairs(s->q, BLOCK, k, s->q_pairs);
  by_pairs(s->grad, BLOCK, k, s->grad_pairs);
  against_keys(s->q, s->key_columns, k, keys, s->scores, stride);
  against_keys(s->grad, s->value_columns, k, keys, s->slopes, stride);
  for (int i = 0; i < BLOCK; i++) {
    float *p = s->scores + (size_t)i * stride, *d = s->slopes + (size_t)i * stride;
    if (at + i < length)
      unweigh(p, d, branches, at + i, keys, scale, job->log_z[(size_t)(start + at + i) * c->heads + head]);
    else
      memset(p, 0, 4 * (size_t)keys), memset(d, 0, 4 * (size_t)keys);
    for (int j = 0; j < keys; j += 16) narrow16(s->narrow + (size_t)i * stride + j, _mm512_loadu_ps(d + j));
    if (i % 2) {
      pair_rows(p - stride, p, keys, s->p_pairs + (size_t)(i / 2) * stride);
      pair_rows(d - stride, d, keys, s->d_pairs + (size_t)(i / 2) * stride);
    }
  }
  over_keys(s->narrow, stride, s->key_pairs, k, keys, s->sums);
  put(c, s->sums, head, start, length, at, BLOCK, c->rotary, job->d_qkv);
  over_queries(s->p_pairs, stride, s->grad_pairs, k, keys, s->d_value);
  over_queries(s->d_pairs, stride, s->q_pairs, k, keys, s->d_key);
}

static void attend_backward(const Job *job, int document, int group, Scratch *s) {
  const Packed *c = job->packed;
  const int k = c->head_dim, e = c->heads / c->kv_heads, all = c->heads + 2 * c->kv_heads;
  const int start = c->starts[document], length = c->lengths[document], whole = padded(length);
  const int key = c->heads + group, value = key + c->kv_heads;
  for (int i = 0; i < length; i++) s->tokens[i] = start + i;
  take(c, job->qkv, all, key, s->tokens, length, 0, whole, c->rotary, s->key);
  take(c, job->qkv, all, value, s->tokens, length, 0, whole, 0, s->value);
  by_columns(s->key, whole, k, s->key_columns);
  by_columns(s->value, whole, k, s->value_columns);
  by_pairs(s->key, whole, k, s->key_pairs);
  memset(s->d_key, 0, 4 * (size_t)whole * k);
  memset(s->d_value, 0, 4 * (size_t)whole * k);
  for (int head = group * e; head < (group + 1) * e; head++)
    for (int at = 0; at < length; at += BLOCK) back_block(job, document, head, at, s);
  put(c, s->d_key, key, start, length, 0, whole, c->rotary, job->d_qkv);
  put(c, s->d_value, value, start, length, 0, whole, 0, job->d_qkv);
}

/* --- threads ------------------------------------------------------------------------------------*/

static int make_scratch(Scratch *s, int length, int k) {
  const size_t p = padded(length), row = p + GAP, rows = p * k, block = (size_t)BLOCK * k;
  const struct { void **to; size_t bytes; } parts[] = {
      {(void **)&s->key, 2 * rows}, {(void **)&s->value, 2 * rows},
      {(void **)&s->key_columns, 2 * rows}, {(void **)&s->value_columns, 2 * rows},
      {(void **)&s->key_pairs, 2 * rows}, {(void **)&s->value_pairs, 2 * rows},
      {(void **)&s->d_key, 4 * rows}, {(void **)&s->d_value, 4 * rows},
      {(void **)&s->q, 2 * block}, {(void **)&s->grad, 2 * block}, {(void **)&s->sums, 4 * block},
      {(void **)&s->q_pairs, 2 * block}, {(void **)&s->grad_pairs, 2 * block},
      {(void **)&s->narrow, 2 * BLOCK * row}, {(void **)&s->p_pairs, 2 * BLOCK * row},
      {(void **)&s->d_pairs, 2 * BLOCK * row}, {(void **)&s->scores, 4 * BLOCK * row},
      {(void **)&s->slopes, 4 * BLOCK * row}, {(void **)&s->tokens, 4 * p},
  };
  size_t bytes = 0;
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) bytes += parts[i].bytes;
  s->stride = (int)row;
  s->memory = aligned_alloc(64, bytes); /* every part is a multiple of 64 bytes */
  if (!s->memory) return -1;
  char *next = s->memory;
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) *parts[i].to = next, next += parts[i].bytes;
  memset(s->narrow, 0, 2 * BLOCK * row); /* rows past a document's end are multiplied, not used */
  return 0;
}

static void work(Team *team, void *argument) {
  Job *job = argument;
  const Packed *c = job->packed;
  Scratch s;
  if (make_scratch(&s, c->longest, c->head_dim)) {
    job->failed = 1;
    return;
  }
  for (int item; (item = claim(team, c->documents * c->kv_heads, 1)) >= 0;) {
    if (job->grad) attend_backward(job, item / c->kv_heads, item % c->kv_heads, &s);
    else attend_forward(job, item / c->kv_heads, item % c->kv_heads, &s);
  }
  phikit_tiles(NO_TILES);
  free(s.memory);
}

/* out[T, H K] of the fused projection qkv[T, M K], which is not rotated; log_z[T, H]. Tokens of no
   document are left alone. 0, or -1 without memory.  */
int phikit_confined_forward(const Packed *packed, const uint16_t *qkv, uint16_t *out, float *log_z, int threads) {
  Job job = {.packed = packed, .qkv = qkv, .out = out, .log_z = log_z};
  phikit_run_team(threads, work, &job);
  return job.failed ? -1 : 0;
}

/* d_qkv[T, M K] of grad[T, H K]. */
int phikit_confined_backward(const Packed *packed, const uint16_t *qkv, float *log_z, const uint16_t *grad,
                             uint16_t *d_qkv, int threads) {
  Job job = {.packed = packed, .qkv = qkv, .grad = grad, .d_qkv = d_qkv, .log_z = log_z};
  phikit_run_team(threads, work, &job);
  return job.failed ? -1 : 0;
}

#endif
