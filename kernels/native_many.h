/* Many rows: weights become numbers once, PART inputs of V vectors after the others in a near cache, and serve all tiles of rows. Without products of pairs in
 * float32, their scales and shifts applied. With AMX in bfloat16 as its tiles are: codes as they are, whose sums are scaled group by group; or scaled and
 * rounded, where rows are so many that their sums cost more than weights (see `scaled_first`). With products of pairs alone every tile of rows opens them anew,
 * which is as fast.
 */
#ifndef NATIVE_MANY_H
#define NATIVE_MANY_H
#include "native_codes.h"
#include "native_tiles.h"

#if TILES || !PAIRS
#define MANY (TILES ? 3 : 3 * ROWS) /* rows from which it is faster */
#define PART 512
#define BROAD 2 /* vectors at once; with tiles those of `broad` */
#define TALL (TILES ? TALLEST : LANES == 16 ? 12 : 6)

/* Vectors at once with tiles: more where inputs no longer lie in a near cache, and are read once for all of them. */
INLINE long broad(long m, long vectors) { return !TILES ? BROAD : m > 64 && vectors >= 256 ? 16 : 4; }

#if PAIRS
#define PER_PAIR 1
typedef uint32_t opened_t;

/* Two inputs of each output, with `scaled` times its scale and rounded to bfloat16. */
INLINE void put(weight_t two, vec scale, vec shift, opened_t *to, const int scaled)
{
    const words both = (words)two, in_turn = {0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007,
                                              0x180008, 0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f};
    if (scaled) {
        const vec even = number(both << 16) * scale + shift, odd = number(both & 0xffff0000u) * scale + shift;
        two = _mm512_permutexvar_epi16((__m512i)in_turn, (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
    }
    _mm512_storeu_si512(to, two);
}
#else
#define PER_PAIR 2
typedef float opened_t;

INLINE void put(weight_t one, vec scale, vec shift, opened_t *to, const int scaled)
{
    const vec value = scaled ? one * scale + shift : one;
    memcpy(to, &value, sizeof value);
}
#endif
#define WORDS_OF(inputs) ((inputs) / 2 * PER_PAIR) /* of an output that is opened */

/* Weights of inputs of `steps` steps from `step` on: float32 [inputs][BROAD][LANES], with tiles bfloat16 [V][pairs][LANES][2]. */
INLINE void open(const struct weight *w, const table_t *values, long first, long V, long step, long steps, opened_t *to, const int kind,
                 const int scaled)
{
    const int parts = 16 / LANES, mantissa = w->mantissa, next = kind == TABLE3 ? 16 : step_words(kind);
    const long last = (w->n + 15) / 16 * parts - 1, length = w->groups * w->steps * step_words(kind);
    const long tail = kind == TABLE3 ? w->groups * w->steps * 16 : step_words(kind) / 16 * 16;
    const long apart = TILES ? LANES : BROAD * LANES, beside = TILES ? WORDS_OF(PART) * LANES : LANES;
    const table_t table = *values;
    const vec factor = w->table[0] - (vec){0};
    for (long v = 0; v < V; v++) {
        const long at = first + v < last ? first + v : last, lane = at % parts * LANES, scales = at / parts * w->groups * 16 + lane;
        const uint32_t *strip = w->codes + at / parts * length;
        opened_t *place_of = to + v * beside;
        vec scale = {0}, shift = {0};
        for (long s = step, g = step / w->steps, begin = step; s < step + steps; s++) {
            if (scaled && s == begin) {
                scale = load_numbers(w->scale, scales + g * 16, w->wide);
                shift = w->shift ? scale * load_numbers(w->shift, scales + g * 16, w->wide) : shift;
                begin = ++g * w->steps;
            }
            __builtin_prefetch(strip + lane + (s + steps) * next);
            const codes_t code = read_codes(strip + lane + s * next, (const uint16_t *)(strip + tail) + lane + s * (kind == TABLE3 ? 16 : 2 * next), kind);
#pragma GCC unroll 16
            for (int c = 0; c < INPUTS(step_codes(kind)); c++, place_of += apart)
                put(pick(code, c, kind, 2, table, factor, mantissa), scale, shift, place_of, scaled);
        }
        if (TILES)
            for (; (place_of - to - v * beside) % (TALLEST * LANES); place_of += apart)
                memset(place_of, 0, LANES * sizeof *place_of);
    }
}

typedef void opener(const struct weight *, const table_t *, long first, long V, long step, long steps, opened_t *to);
#define OPENER(NAME, KIND, SCALED)                                                                                                                            \
    static void NAME(const struct weight *w, const table_t *values, long first, long V, long step, long steps, opened_t *to)                                  \
    {                                                                                                                                                         \
        open(w, values, first, V, step, steps, to, KIND, SCALED);                                                                                             \
    }
#define OPENERS(NAME, KIND) OPENER(codes_##NAME, KIND, 0) OPENER(scaled_##NAME, KIND, 1)
OPENERS(table2, TABLE2) OPENERS(table3, TABLE3) OPENERS(table4, TABLE4) OPENERS(integer5, INTEGER5) OPENERS(integer6, INTEGER6) OPENERS(float6, FLOAT6)
OPENERS(integer8, INTEGER8) OPENERS(float8, FLOAT8)
#define OPENED(NAME) {codes_##NAME, scaled_##NAME}
static opener *const openers[][2] = {OPENED(table2), OPENED(table3), OPENED(table4), OPENED(integer5), OPENED(integer6), OPENED(float6), OPENED(integer8),
                                     OPENED(float8)};

#if TILES
/* sum [tiles][V][rows][LANES] += the inputs of a part times its weights. x: tiles of inputs [tiles][all / 32][rows][16] words. */
static void add_part(const input_t *x, const opened_t *weights, float *sums, long tiles, long rows, long all, long from, long inputs, long V)
{
    const char *strips[16];
    for (long v = 0; v < V; v++)
        strips[v] = (const char *)(weights + v * WORDS_OF(PART) * LANES);
    multiply_tiles((const char *)(x + from / 2 * rows), all / 2 * rows * sizeof *x, tiles, strips, V, (char *)sums, rows * LINE_BYTES, (inputs + 31) / 32, 0);
}

/* Whether weights are scaled before they are multiplied: sums are scaled once a group for each row, weights once. Groups that fill no tiles are, too. */
INLINE int scaled_first(const struct weight *w, long m)
{
    const long group = w->steps * step_codes(w->kind);
    return w->groups > 1 && (group % 32 || m > 6 + group / 8); /* as measured */
}

/* total [tiles][V][rows][LANES] += the sums of group g, scaled; by_group: sums of inputs [tiles][groups][rows], none where nothing shifts. */
static void scale_sums(const struct weight *w, long g, long first, long V, const float *by_group, const float *sums, float *totals, long tiles, long rows)
{
    const long last = (w->n + 15) / 16 - 1;
    for (long v = 0; v < V; v++) {
        const long at = ((first + v < last ? first + v : last) * w->groups + g) * 16;
        const vec scale = load_numbers(w->scale, at, w->wide), shift = w->shift ? load_numbers(w->shift, at, w->wide) : (vec){0};
        for (long t = 0; t < tiles; t++) {
            const float *sum = sums + (t * V + v) * rows * LANES, *inputs = by_group + (t * w->groups + g) * rows;
            float *total = totals + (t * V + v) * rows * LANES;
            for (long r = 0; r < rows; r++, sum += LANES, total += LANES) {
                const vec shifted = w->shift ? load_numbers(sum, 0, 1) + shift * inputs[r] : load_numbers(sum, 0, 1);
                const vec added = load_numbers(total, 0, 1) + scale * shifted;
                memcpy(total, &added, sizeof added);
            }
        }
    }
}
#else
INLINE int scaled_first(const struct weight *w, long m) { return (void)w, (void)m, 1; }

/* sum [TALL][BROAD][LANES] += inputs [count][TALL] times weights [count][BROAD][LANES]. */
static void add(const float *x, const float *weights, float *sum, long count)
{
    vec total[TALL][BROAD];
#pragma GCC unroll 16
    for (int r = 0; r < TALL; r++)
#pragma GCC unroll 4
        for (int v = 0; v < BROAD; v++)
            total[r][v] = load_numbers(sum, (r * BROAD + v) * LANES, 1);
    for (long i = 0; i < count; i++, x += TALL, weights += BROAD * LANES) {
        vec value[BROAD];
#pragma GCC unroll 4
        for (int v = 0; v < BROAD; v++)
            value[v] = load_numbers(weights, v * LANES, 1);
#pragma GCC unroll 16
        for (int r = 0; r < TALL; r++)
#pragma GCC unroll 4
            for (int v = 0; v < BROAD; v++)
                total[r][v] += value[v] * x[r];
    }
#pragma GCC unroll 16
    for (int r = 0; r < TALL; r++)
#pragma GCC unroll 4
        for (int v = 0; v < BROAD; v++)
            memcpy(sum + (r * BROAD + v) * LANES, &total[r][v], sizeof total[r][v]);
}

static void add_part(const input_t *x, const opened_t *weights, float *sums, long tiles, long rows, long all, long from, long inputs, long V)
{
    for (long t = 0; t < tiles; t++)
        add(x + (t * all + from) * rows, weights, sums + t * rows * V * LANES, inputs);
}

static void scale_sums(const struct weight *w, long g, long first, long V, const float *by_group, const float *sums, float *totals, long tiles, long rows)
{
    (void)w, (void)g, (void)first, (void)V, (void)by_group, (void)sums, (void)totals, (void)tiles, (void)rows;
}
#endif

/* Floats of memory that `all_rows` works in: weights of a part, sums, and sums that are scaled. */
INLINE long work_of(long tiles, long rows, long V) { return (WORDS_OF(PART) + (1 + TILES) * tiles * rows) * V * LANES; }

/* V vectors of outputs from vector `first` on for all m rows, in tiles of `rows`; x: their inputs, `all` of each row; by_group: as `scale_sums` has it. */
static void all_rows(const struct weight *w, const table_t *values, const input_t *x, const float *by_group, const float *by_row, uint16_t *y, long m,
                     long first, long tiles, long rows, long V, long all, float *work)
{
    const int scaled = scaled_first(w, m);
    const long each = step_codes(w->kind), count = w->groups * w->steps, span = scaled ? count : w->steps, size = tiles * rows * V * LANES;
    float *sums = work + WORDS_OF(PART) * V * LANES, *totals = scaled ? sums : sums + size;
    memset(totals, 0, size * sizeof *totals);
    for (long begin = 0; begin < count; begin += span) {
        if (!scaled)
            memset(sums, 0, size * sizeof *sums);
        for (long step = begin; step < begin + span; step += PART / each) {
            const long left = begin + span - step, steps = left < PART / each ? left : PART / each;
            openers[w->kind][scaled](w, values, first, V, step, steps, (opened_t *)work);
            add_part(x, (const opened_t *)work, sums, tiles, rows, all, step * each, steps * each, V);
        }
        if (!scaled)
            scale_sums(w, begin / span, first, V, by_group, sums, totals, tiles, rows);
    }
    for (long r = 0; r < m; r++)
        for (long n = first * LANES, v = 0; v < V && n < w->n; v++, n += LANES) {
            const long at = TILES ? (r / rows * V + v) * rows + r % rows : r * V + v;
            const vec sum = load_numbers(totals, at * LANES, 1);
            store(y + r * w->n + n, by_row ? sum * by_row[r] : sum, w->n - n);
        }
}
#else
#define MANY (1l << 62)
#define TALL ROWS
INLINE int scaled_first(const struct weight *w, long m) { return (void)w, (void)m, 0; }
INLINE long broad(long m, long vectors) { return (void)m, (void)vectors, 0; }
INLINE long work_of(long tiles, long rows, long V) { return (void)tiles, (void)rows, V; }
INLINE void all_rows(const struct weight *w, const table_t *values, const input_t *x, const float *by_group, const float *by_row, uint16_t *y, long m,
                     long first, long tiles, long rows, long V, long all, float *work)
{
    (void)w, (void)values, (void)x, (void)by_group, (void)by_row, (void)y, (void)m, (void)first, (void)tiles, (void)rows, (void)V, (void)all, (void)work;
}
#endif
#endif
