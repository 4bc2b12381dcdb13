/* Text cut into the pieces that a byte-level BPE encodes one by one, and each looked up in a table.

   The rule is cl100k's in its classic form, where DIGITS is 1 or 3:

     (?i:'s|'t|'re|'ve|'m|'ll|'d) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N}{1,DIGITS}
     | ?[^\s\p{L}\p{N}]+[\r\n]* | \s*[\r\n]+ | \s+(?!\S) | \s+

   or, when CASED, o200k's: capitals end a word's piece where they follow small letters, its
   contraction goes with it, and signs take slashes along after the ends of lines:

     [^\r\n\p{L}\p{N}]?\p{Lu}*\p{Ll}+C? | [^\r\n\p{L}\p{N}]?\p{Lu}+\p{Ll}*C?   (C: a contraction)
     | ?[^\s\p{L}\p{N}]+[\r\n/]*

   They are followed for ASCII. No piece reaches across the end of a line after which neither white
   space nor a slash comes, so texts are taken a stretch between two such ends at a time, and a stretch
   with any other character is one piece here: whoever encodes the pieces cuts it further.  */
#include <stdint.h>
#include <string.h>

enum { LONGEST = 64 }; /* bytes of a piece that is kept in the table */

/* Which rule: the most digits of a piece, and whether letters' case counts. */
typedef struct {
  int digits, cased;
} Rule;

/* The pieces met so far. Those in no slot (long ones, and such as are not ASCII) are met only once.  */
typedef struct {
  int32_t *slots; /* 1 + a piece's number, by its hash; 0 where there is none */
  int64_t mask;   /* slots - 1, a power of two less one */
  uint64_t *hashes;
  int64_t *starts; /* of each piece in `bytes`; one more than pieces */
  uint8_t *bytes;
  int64_t count;
} Pieces;

static inline int is_letter(uint8_t c) { return (uint8_t)((c | 32) - 'a') < 26; }
static inline int is_small(uint8_t c) { return (uint8_t)(c - 'a') < 26; }
static inline int is_capital(uint8_t c) { return (uint8_t)(c - 'A') < 26; }
static inline int is_digit(uint8_t c) { return (uint8_t)(c - '0') < 10; }
static inline int is_space(uint8_t c) { return c == ' ' || (uint8_t)(c - 9) < 5; }
static inline int is_line_end(uint8_t c) { return c == '\n' || c == '\r'; }
static inline int is_sign(uint8_t c) { return !is_letter(c) && !is_digit(c) && !is_space(c); }

static inline int contraction(const uint8_t *at, const uint8_t *end) {
  uint8_t a = end - at > 1 ? at[1] | 32 : 0, b = end - at > 2 ? at[2] | 32 : 0;
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  return ((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* The end of the letters of a piece, and of what goes with them. */
static const uint8_t *word_end(const uint8_t *to, const uint8_t *end, Rule rule) {
  if (!rule.cased) {
    while (to < end && is_letter(*to)) to++;
    return to;
  }
  while (to < end && is_capital(*to)) to++;
  while (to < end && is_small(*to)) to++;
  return to < end && *to == '\'' ? to + contraction(to, end) : to;
}

/* The end of the piece that begins at `at`, in ASCII.  */
static const uint8_t *piece_end(const uint8_t *at, const uint8_t *end, Rule rule) {
  const uint8_t *to = at + 1;
  uint8_t c = *at, next = to < end ? *to : ' ';
  if (c == '\'' && !rule.cased) {
    int size = contraction(at, end);
    if (size) return at + size;
  }
  if (is_letter(c)) return word_end(at, end, rule);
  if (!is_digit(c) && !is_line_end(c) && is_letter(next)) return word_end(to, end, rule);
  if (is_digit(c)) {
    while (to < end && to < at + rule.digits && is_digit(*to)) to++;
    return to;
  }
  if (is_sign(c) || (c == ' ' && to < end && is_sign(next))) {
    while (to < end && is_sign(*to)) to++;
    while (to < end && (is_line_end(*to) || (rule.cased && *to == '/'))) to++;
    return to;
  }
  const uint8_t *line_end = is_line_end(c) ? to : 0;
  for (; to < end && is_space(*to); to++)
    if (is_line_end(*to)) line_end = to + 1;
  if (line_end) return line_end;
  return to < end && to > at + 1 ? to - 1 : to; /* the last space goes with what follows */
}

/* The end of the stretch that begins at `at`; *ascii says whether it is all ASCII.  */
static const uint8_t *stretch_end(const uint8_t *at, const uint8_t *end, int *ascii) {
  uint8_t all = 0;
  const uint8_t *to = at;
  while (to < end) {
    const uint8_t *line = memchr(to, '\n', end - to);
    line = line ? line + 1 : end;
    for (const uint8_t *c = to; c < line; c++) all |= *c;
    to = line;
    /* white space of other scripts may follow: only what is ASCII and no space ends it for certain */
    if (to < end && *to < 128 && !is_space(*to) && *to != '/') break;
  }
  *ascii = all < 128;
  return to;
}

static inline uint64_t hash_of(const uint8_t *at, int64_t size) {
  uint64_t hash = 0x9E3779B97F4A7C15ull ^ (uint64_t)size;
  for (int64_t i = 0; i < size; i += 8) {
    uint64_t part = 0;
    memcpy(&part, at + i, size - i < 8 ? size - i : 8);
    hash = (hash ^ part) * 0xFF51AFD7ED558CCDull;
    hash ^= hash >> 32;
  }
  return hash;
}

static int32_t add(Pieces *p, const uint8_t *at, int64_t size, uint64_t hash) {
  memcpy(p->bytes + p->starts[p->count], at, size);
  p->starts[p->count + 1] = p->starts[p->count] + size;
  p->hashes[p->count] = hash;
  return (int32_t)p->count++;
}

static int32_t number_of(Pieces *p, const uint8_t *at, int64_t size) {
  uint64_t hash = hash_of(at, size);
  for (int64_t slot = hash & p->mask;; slot = (slot + 1) & p->mask) {
    int32_t number = p->slots[slot] - 1;
    if (number < 0) {
      number = add(p, at, size, hash);
      p->slots[slot] = number + 1;
      return number;
    }
    if (p->hashes[number] == hash && p->starts[number + 1] - p->starts[number] == size &&
        !memcmp(p->bytes + p->starts[number], at, size))
      return number;
  }
}

/* Cuts texts into pieces; new ones are added to the table.

   data: UTF-8; text t is from bounds[t] to bounds[t + 1]. The table must have room, in slots too, for
   as many pieces and bytes more as there are bytes.
   numbers: of all pieces in order, room for one a byte; piece_bounds: where each text's begin.  */
void phikit_pieces(const uint8_t *data, const int64_t *bounds, int64_t texts, int digits, int cased,
                   Pieces *p, int32_t *numbers, int64_t *piece_bounds) {
  const Rule rule = {digits, cased};
  int64_t count = 0;
  for (int64_t t = 0; t < texts; t++) {
    const uint8_t *at = data + bounds[t], *end = data + bounds[t + 1];
    piece_bounds[t] = count;
    while (at < end) {
      int ascii;
      const uint8_t *to = stretch_end(at, end, &ascii);
      if (!ascii) numbers[count++] = add(p, at, to - at, 0);
      while (ascii && at < to) {
        const uint8_t *next = piece_end(at, to, rule);
        numbers[count++] =
            next - at > LONGEST ? add(p, at, next - at, 0) : number_of(p, at, next - at);
        at = next;
      }
      at = to;
    }
  }
  piece_bounds[texts] = count;
}

/* The ids of pieces one after the other. id_starts: where each piece's begin in `ids`, and the end.
   out: room for all; text_bounds: where each text's begin in it.  */
void phikit_gather(const int32_t *numbers, const int64_t *piece_bounds, int64_t texts,
                   const int64_t *id_starts, const uint32_t *ids, uint32_t *out,
                   int64_t *text_bounds) {
  int64_t count = 0;
  for (int64_t t = 0; t < texts; t++) {
    text_bounds[t] = count;
    for (int64_t i = piece_bounds[t]; i < piece_bounds[t + 1]; i++)
      for (int64_t j = id_starts[numbers[i]]; j < id_starts[numbers[i] + 1]; j++)
        out[count++] = ids[j];
  }
  text_bounds[texts] = count;
}
