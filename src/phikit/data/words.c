/* Words and word n-grams of many texts as 64-bit integers, in one pass over their bytes.

   `ngrams.py` says what a word and an n-gram's integer are; its functions over arrays give the same
   integers where there is no compiler. All sums and products are modulo 2^64.  */
#include <stdint.h>

enum { OTHER, LETTER, DIGIT, JOINING }; /* what a byte can be */

static inline int thousands(const uint8_t *at, const uint8_t *kinds) {
  return kinds[at[-1]] == DIGIT && kinds[at[1]] == DIGIT && kinds[at[2]] == DIGIT &&
         kinds[at[3]] == DIGIT && kinds[at[4]] != DIGIT;
}

static inline uint64_t mixed(uint64_t sum) {
  uint64_t hash = (sum ^ (sum >> 32)) * 0xFF51AFD7ED558CCDull;
  return hash ^ (hash >> 29);
}

/* Hashes the words of texts; returns how many there are.

   data: folded texts, each ending in a byte that is in no word; text t is from bounds[t] on.
   kinds, values: what each byte is, and what it counts in a word's hash, Σ value · base^place.
   hashes: room for a word a byte; word_bounds: where each text's words begin, and the end.  */
int64_t phikit_words(const uint8_t *data, const int64_t *bounds, int64_t texts,
                     const uint8_t *kinds, const uint64_t *values, uint64_t base,
                     uint64_t *hashes, int64_t *word_bounds) {
  int64_t count = 0;
  for (int64_t t = 0; t < texts; t++) {
    uint8_t inside = OTHER;
    uint64_t sum = 0, power = 1;
    word_bounds[t] = count;
    for (int64_t i = bounds[t]; i < bounds[t + 1]; i++) {
      uint8_t byte = data[i], kind = kinds[byte];
      if (kind == JOINING) continue;
      if (byte == ',' && i > bounds[t] && i + 4 < bounds[t + 1] && thousands(data + i, kinds))
        continue;
      if (kind != inside) {
        if (inside != OTHER) hashes[count++] = mixed(sum);
        inside = kind;
        sum = 0;
        power = 1;
      }
      sum += values[byte] * power;
      power *= base;
    }
  }
  word_bounds[texts] = count;
  return count;
}

/* What an n-gram's integer is made with: Σ hash[i + j] · base^j.  */
typedef struct {
  int64_t n;
  uint64_t base, inverse, top; /* B, B^-1 and B^(n - 1) */
} Gram;

static inline uint64_t sum_of(const uint64_t *hashes, int64_t count, uint64_t base) {
  uint64_t sum = 0;
  for (int64_t j = count - 1; j >= 0; j--) sum = sum * base + hashes[j];
  return sum;
}

/* The n-gram after one that begins at `hashes`.  */
static inline uint64_t next(uint64_t gram, const uint64_t *hashes, const Gram *g) {
  return (gram - hashes[0]) * g->inverse + hashes[g->n] * g->top;
}

/* One integer for all words of each text: Σ hash[j] · base^j.  */
void phikit_sums(const uint64_t *hashes, const int64_t *bounds, int64_t texts, uint64_t base,
                 uint64_t *sums) {
  for (int64_t t = 0; t < texts; t++)
    sums[t] = sum_of(hashes + bounds[t], bounds[t + 1] - bounds[t], base);
}

/* All n-grams of each text. gram_bounds: where each text's begin in `grams`; a text of fewer than n
   words has one of all its words if there is room for one, else none.  */
void phikit_ngrams(const uint64_t *hashes, const int64_t *bounds, int64_t texts, const Gram *g,
                   const int64_t *gram_bounds, uint64_t *grams) {
  for (int64_t t = 0; t < texts; t++) {
    const uint64_t *word = hashes + bounds[t];
    int64_t words = bounds[t + 1] - bounds[t], count = gram_bounds[t + 1] - gram_bounds[t];
    if (!count) continue;
    uint64_t *out = grams + gram_bounds[t];
    out[0] = sum_of(word, words < g->n ? words : g->n, g->base);
    for (int64_t i = 1; i < count; i++) out[i] = next(out[i - 1], word + i - 1, g);
  }
}

/* Integers to be found. `table` has a bit for the highest bits of each: one look into a core's cache
   tells nearly all others apart. `sorted` are all of them, those with the highest 16 bits h from
   begins[h] on.  */
typedef struct {
  const uint8_t *table;
  const uint64_t *sorted;
  const int64_t *begins;
  int64_t bits;
} Wanted;

static int64_t place_of(uint64_t gram, const Wanted *w) {
  int64_t low = w->begins[gram >> 48], high = w->begins[(gram >> 48) + 1];
  while (low < high) {
    int64_t middle = (low + high) / 2;
    if (w->sorted[middle] < gram)
      low = middle + 1;
    else
      high = middle;
  }
  return low < w->begins[(gram >> 48) + 1] && w->sorted[low] == gram ? low : -1;
}

/* The n-grams of texts that are wanted; returns how many there are.

   at, places: the first word of each, as a place in `hashes`, and its own in `sorted`; room for one a
   word.  */
int64_t phikit_find(const uint64_t *hashes, const int64_t *bounds, int64_t texts, const Gram *g,
                    const Wanted *w, int64_t *at, int64_t *places) {
  int64_t found = 0;
  for (int64_t t = 0; t < texts; t++) {
    int64_t word = bounds[t], last = bounds[t + 1] - g->n;
    if (word > last) continue;
    uint64_t gram = sum_of(hashes + word, g->n, g->base);
    for (;; word++) {
      uint64_t top = gram >> (64 - w->bits);
      if (w->table[top >> 3] >> (top & 7) & 1 && (places[found] = place_of(gram, w)) >= 0)
        at[found++] = word;
      if (word == last) break;
      gram = next(gram, hashes + word, g);
    }
  }
  return found;
}
