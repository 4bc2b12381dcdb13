/* The three products of a linear layer in training, in the processor's matrix unit: forward, and the
   gradients of its input and of its weights.

   One side is laid out tile by tile first (both, for the weights' gradient), a cacheful of rows of the
   other side then meets 32 columns after another. An element's terms are added in one order in
   float32, by one thread, whatever goes with it; it is rounded at the end, or not at all.

   Letters: R rows and C columns of the result, D what is summed over.  */
#include "../../engine/native/common.h"

#if PHIKIT_TILES

enum {
  DEEP = 32,             /* numbers summed over in one tile */
  BLOCK = 32,            /* rows and columns of the result that are computed at once */
  TILE = 16 * DEEP,      /* numbers in a tile */
  NEAR = 384 * 1024,     /* so many numbers of the left side meet all columns: they stay in the cache */
  CACHE = 2 << 20,       /* bytes of the second cache */
};

/* Columns, rows of a turned left side, and the depth of any side that is not laid out by its rows are
   multiples of 32; `out` lies on 64 bytes. With `add`, a wide result is added to what is there. */
typedef struct {
  const uint16_t *left;  /* [R, D], or [D, R] when `left_turned` */
  const uint16_t *right; /* [D, C], or [C, D] when `right_turned` */
  void *out;             /* [R, C]: bfloat16, or float32 when `wide` */
  uint16_t *room;        /* see phikit_product_room */
  int32_t rows, columns, depth, left_turned, right_turned, wide, add;
} Product;

/* Tiles along what is summed over. */
static inline int deep(const Product *s) { return (s->depth + DEEP - 1) / DEEP; }

static inline int blocks(int count) { return (count + BLOCK - 1) / BLOCK; }

static size_t right_room(const Product *s) { return (size_t)blocks(s->columns) * 2 * TILE * deep(s); }

/* Blocks of the left side's rows that stay in the cache while they meet all columns. A turned side is
   divided into as many groups for each thread. */
static int tall(const Product *s, int threads) {
  const int down = blocks(s->rows), most = NEAR / (deep(s) * DEEP * BLOCK);
  int groups = most < 1 ? down : (down + most - 1) / most;
  if (s->left_turned) groups = (groups + threads - 1) / threads * threads;
  return (down + groups - 1) / groups;
}

/* In numbers: the right side, and of the left side a group for each thread if it is turned, or else the
   last block. */
size_t phikit_product_room(const Product *s, int threads) {
  const int left = s->left_turned ? tall(s, threads) * threads : 1;
  return right_room(s) + (size_t)left * 2 * TILE * deep(s);
}

/* 16 × 16 numbers of 32 bits, turned. */
static inline void turn(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

/* The rows of tile 0 and of tile 1 from 32 rows of x, 32 columns of it: pairs of rows side by side.
   Rows from `count` on are zero. */
static inline void pair_rows(const uint16_t *x, size_t stride, int count, __m512i pairs[2][16]) {
  const __m512i low = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
  const __m512i high = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
  for (int p = 0; p < 16; p++, x += 2 * stride) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i a = 2 * p < count ? _mm512_loadu_si512(x) : zero;
    const __m512i b = 2 * p + 1 < count ? _mm512_loadu_si512(x + stride) : zero;
    const __m512i even = _mm512_unpacklo_epi16(a, b), odd = _mm512_unpackhi_epi16(a, b);
    pairs[0][p] = _mm512_permutex2var_epi64(even, low, odd);
    pairs[1][p] = _mm512_permutex2var_epi64(even, high, odd);
  }
}

static inline void put(uint16_t *to, const __m512i rows[16]) {
  for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + 2 * 16 * i, rows[i]);
}

/* Where a block of 32 columns, or turned rows, begins: it has [D/32][2] tiles. */
static inline size_t begins(const Product *s, int block) { return (size_t)block * 2 * TILE * deep(s); }

/* Of a right side [C, D], which has to be turned, 32 columns of the result. */
static void lay_turned(const Product *s, int block) {
  uint16_t *to = s->room + begins(s, block);
  for (int step = 0; step < deep(s); step++)
    for (int half = 0; half < 2; half++, to += TILE) {
      const uint16_t *from = s->right + (size_t)(block * BLOCK + 16 * half) * s->depth + step * DEEP;
      __m512i rows[16];
      for (int i = 0; i < 16; i++) rows[i] = _mm512_loadu_si512(from + (size_t)i * s->depth);
      turn(rows);
      put(to, rows);
    }
}

/* Columns of a side that has a row for each number summed over, 32 rows of it; of a left side each
   tile is turned. */
static void lay_rows(const Product *s, const uint16_t *side, int width, int first, int count,
                     uint16_t *room, int step, int turned) {
  const int row = step * DEEP;
  const uint16_t *from = side + (size_t)row * width + first * BLOCK;
  for (int block = 0; block < count; block++, from += BLOCK) {
    uint16_t *to = room + begins(s, block) + (size_t)step * 2 * TILE;
    __m512i pairs[2][16];
    pair_rows(from, width, s->depth - row, pairs);
    for (int half = 0; half < 2; half++) {
      if (turned) turn(pairs[half]);
      put(to + half * TILE, pairs[half]);
    }
  }
}

/* The last rows of a left side that is not turned, with rows of zeros behind them. */
static void lay_last(const Product *s) {
  const int first = s->rows / BLOCK * BLOCK, count = s->rows - first;
  uint16_t *to = s->room + right_room(s);
  memcpy(to, s->left + (size_t)first * s->depth, 2 * (size_t)count * s->depth);
  memset(to + (size_t)count * s->depth, 0, 2 * (size_t)(BLOCK - count) * s->depth);
}

/* 32 rows of the left side: the two tiles of a step are `low` apart, and steps `step`. */
typedef struct {
  const uint16_t *at;
  size_t low, step, stride; /* of a tile's rows, in bytes */
} Left;

static Left plain_left(const Product *s, int block) {
  const uint16_t *at = s->left + (size_t)block * BLOCK * s->depth;
  if ((block + 1) * BLOCK > s->rows) at = s->room + right_room(s);
  return (Left){at, 16 * (size_t)s->depth, DEEP, 2 * (size_t)s->depth};
}

/* A finished block of the result, which is written while the next one is computed: the matrix unit
   waits neither for that nor for memory. */
typedef struct {
  float y[BLOCK * BLOCK];
  char *to; /* its first element in the result; NULL: there is none */
  int rows;
} Block;

/* Some rows of a block. To memory right away when the result is larger than the cache: otherwise its
   lines would be read first. */
static inline void write(const Product *s, const Block *block, int past, int row, int end) {
  if (end > block->rows) end = block->rows;
  for (; row < end; row++) {
    const __m512 a = _mm512_loadu_ps(block->y + row * BLOCK);
    const __m512 b = _mm512_loadu_ps(block->y + row * BLOCK + 16);
    if (s->wide) {
      float *to = (float *)block->to + (size_t)row * s->columns;
      if (s->add) {
        _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), a));
        _mm512_storeu_ps(to + 16, _mm512_add_ps(_mm512_loadu_ps(to + 16), b));
      } else if (past) _mm512_stream_ps(to, a), _mm512_stream_ps(to + 16, b);
      else _mm512_storeu_ps(to, a), _mm512_storeu_ps(to + 16, b);
    } else {
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
      uint16_t *to = (uint16_t *)block->to + (size_t)row * s->columns;
      if (past) _mm512_stream_si512((void *)to, both);
      else _mm512_storeu_si512(to, both);
    }
  }
}

/* The sums of a block, while the block before is written. */
static void sums(const Product *s, Left left, const uint16_t *right, int past, const Block *before,
                 Block *block) {
  const int steps = deep(s), each = (BLOCK + steps - 1) / steps;
  int row = before->to ? 0 : BLOCK;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int step = 0; step < steps; step++, left.at += left.step, right += 2 * TILE) {
    TILE_LOAD(4, left.at, left.stride);
    TILE_LOAD(6, right, 2 * DEEP);
    _tile_dpbf16ps(0, 4, 6);
    TILE_LOAD(7, right + TILE, 2 * DEEP);
    _tile_dpbf16ps(1, 4, 7);
    TILE_LOAD(5, left.at + left.low, left.stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    if (row < BLOCK) write(s, before, past, row, row + each), row += each;
  }
  _tile_stored(0, block->y, 4 * BLOCK);
  _tile_stored(1, block->y + 16, 4 * BLOCK);
  _tile_stored(2, block->y + 16 * BLOCK, 4 * BLOCK);
  _tile_stored(3, block->y + 16 * BLOCK + 16, 4 * BLOCK);
}

/* The blocks that a thread computes, one after the other. */
typedef struct {
  Block two[2];
  int now, past;
} Blocks;

static void begin(const Product *s, Blocks *own) {
  own->two[1].to = NULL;
  own->now = 0;
  own->past = (size_t)s->rows * s->columns * (s->wide ? 4 : 2) > CACHE;
  phikit_tiles(OF_PRODUCTS);
}

static void compute(const Product *s, Blocks *own, Left left, int row, int column) {
  Block *block = own->two + own->now;
  own->now = !own->now;
  sums(s, left, s->room + begins(s, column), own->past, own->two + own->now, block);
  const size_t at = (size_t)row * BLOCK * s->columns + column * BLOCK;
  block->to = (char *)s->out + at * (s->wide ? 4 : 2);
  block->rows = s->rows - row * BLOCK < BLOCK ? s->rows - row * BLOCK : BLOCK;
}

static void end(const Product *s, Blocks *own) {
  const Block *last = own->two + !own->now;
  if (last->to) write(s, last, own->past, 0, BLOCK);
  phikit_tiles(NO_TILES);
  _mm_sfence();
}

/* A phase: the right side is laid out. */
static void lay_right(Team *team, const Product *s) {
  const int across = blocks(s->columns);
  for (int i; (i = claim(team, s->right_turned ? across : deep(s), 1)) >= 0;) {
    if (s->right_turned) lay_turned(s, i);
    else lay_rows(s, s->right, s->columns, 0, across, s->room, i, 0);
  }
  meet(team);
}

/* A phase: some blocks of rows by all columns; column by column, for all threads. */
static void meet_columns(Team *team, const Product *s) {
  const int across = blocks(s->columns), down = blocks(s->rows), rows = tall(s, team->threads);
  Blocks mine;
  begin(s, &mine);
  for (int piece; (piece = claim(team, (down + rows - 1) / rows * across, 1)) >= 0;) {
    const int column = piece % across, first = piece / across * rows;
    for (int row = first; row < first + rows && row < down; row++)
      compute(s, &mine, plain_left(s, row), row, column);
  }
  end(s, &mine);
  meet(team);
}

/* The same of a turned left side, whose blocks a thread lays out for itself: they do not leave its
   cache. */
static void meet_columns_turned(Team *team, const Product *s) {
  const int across = blocks(s->columns), down = blocks(s->rows), rows = tall(s, team->threads);
  uint16_t *room = s->room + right_room(s) + begins(s, rows * omp_get_thread_num());
  Blocks mine;
  begin(s, &mine);
  for (int first; (first = claim(team, down, rows)) >= 0;) {
    const int count = down - first < rows ? down - first : rows;
    for (int step = 0; step < deep(s); step++)
      lay_rows(s, s->left, s->rows, first, count, room, step, 1);
    for (int column = 0; column < across; column++)
      for (int row = 0; row < count; row++) {
        const Left left = {room + begins(s, row), TILE, 2 * TILE, 2 * DEEP};
        compute(s, &mine, left, first + row, column);
      }
  }
  end(s, &mine);
  meet(team);
}

static void multiply(Team *team, void *argument) {
  const Product *s = argument;
  lay_right(team, s);
  if (s->left_turned) meet_columns_turned(team, s);
  else meet_columns(team, s);
}

int phikit_products_run(void) {
  const int lent = phikit_tiles(OF_PRODUCTS);
  phikit_tiles(NO_TILES);
  return lent != NO_TILES;
}

void phikit_product(Product *s, int threads) {
  if (!s->left_turned && s->rows % BLOCK) lay_last(s);
  phikit_run_team(threads, multiply, s);
}

#else

int phikit_products_run(void) { return 0; }

#endif
