/* Products of bfloat16 inputs with weights in 2 to 6 or 8 bits, on one x86 CPU: y = x W^T. Compiled by kernels/native.py for AVX2, for AVX-512, for
 * AVX-512 with products of bfloat16 pairs, or for AMX beside it; which, the compiler's flags say. Knows no tensors: sizes and layouts are the caller's to get
 * right.
 *
 * Sixteen outputs are a strip. A strip's codes lie one step after the other; a step is one to three times sixteen 32-bit words, one for each output, with the
 * codes of 16, 8 or 4 consecutive inputs. Up to 6 bits: even inputs in a word's low half, odd ones in its high half, so that a shift of 16-bit lanes brings a
 * pair of neighbours into place and one permutation of a table turns it into two numbers, whatever the table says. Codes of 3, 5 and 6 bits do not fill a half
 * evenly: a last pair or two lie in the bits that are left over, and with 3 and 5 bits an output's last 16 bits of a step are half a word, two bytes (see
 * `place`). With 3 bits these follow on all words of the strip, so that words, which are read four times a step, lie as the lines of a cache do. Small floats
 * in bytes: the low bytes of both halves are a pair, and so are the high ones; two permutations look up magnitudes of 7 bits. Scales lie [strip][group][16].
 *
 * Rows go in tiles of up to ROWS, inputs packed [tile][pair or input][row]. A group is summed with its codes as they are, in float32, and scaled once:
 * y += scale (sum x value + shift sum x). What is unpacked for one tile serves all of its rows. Inputs that are rounded first become numbers that bfloat16
 * holds exactly; where a row of them has a scale, the row of results is multiplied with it. Three ways lie apart: many rows (native_many.h), integer codes where
 * bytes are multiplied (native_fixed.h), and few rows on AVX2 (native_few.h).
 */
#include "native_fixed.h"
#include "native_many.h"
#if LANES == 8
#include "native_few.h"
#endif

/* V vectors of outputs from vector `first` on, for the R rows of a tile, of which `rows` are there. */
INLINE void block(const struct weight *w, const table_t *values, const input_t *x, const float *sums, const float *by_row, uint16_t *y, long rows, long first,
                  const int R, const int V, const int kind)
{
    const int parts = 16 / LANES;
    const long last = (w->n + 15) / 16 * parts - 1, length = w->groups * w->steps * step_words(kind);
    const table_t table = *values;
    const vec factor = w->table[0] - (vec){0};
    const long tail = kind == TABLE3 ? w->groups * w->steps * 16 : step_words(kind) / 16 * 16; /* words of a strip before its first bytes */
    const int next = kind == TABLE3 ? 16 : step_words(kind);
    const uint32_t *from[4];
    const uint16_t *bytes[4];
    long scales[4];
    vec total[ROWS][4];
    for (int v = 0; v < V; v++) {
        long at = first + v < last ? first + v : last;
        const long lane = at % parts * LANES;
        from[v] = w->codes + at / parts * length + lane;
        bytes[v] = (const uint16_t *)(from[v] - lane + tail) + lane;
        scales[v] = at / parts * w->groups * 16 + lane;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            total[r][v] = (vec){0};
    for (long g = 0; g < w->groups; g++) {
        vec part[ROWS][4];
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++)
                part[r][v] = (vec){0};
        for (long s = 0; s < w->steps; s++) {
            codes_t code[4];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                code[v] = read_codes(from[v], bytes[v], kind);
                from[v] += next;
                bytes[v] += kind == TABLE3 ? 16 : 2 * next;
            }
#pragma GCC unroll 16
            for (int i = 0; i < INPUTS(step_codes(kind)); i++, x += R) {
                weight_t value[4];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++)
                    value[v] = pick(code[v], i, kind, R, table, factor, w->mantissa);
#pragma GCC unroll 16
                for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++)
                        part[r][v] = dot(part[r][v], value[v], x[r]);
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const vec scale = load_numbers(w->scale, scales[v] + g * 16, w->wide);
            if (w->shift) {
                const vec shift = load_numbers(w->shift, scales[v] + g * 16, w->wide);
#pragma GCC unroll 16
                for (int r = 0; r < R; r++)
                    total[r][v] += scale * (part[r][v] + shift * sums[g * R + r]);
            } else
#pragma GCC unroll 16
                for (int r = 0; r < R; r++)
                    total[r][v] += scale * part[r][v];
        }
    }
    vec result[ROWS][4]; /* apart from the totals, which stay in registers as long as no index of theirs varies */
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            result[r][v] = total[r][v];
    for (int r = 0; r < R && r < rows; r++)
        for (int v = 0; v < V && first + v <= last; v++)
            store(y + r * w->n + (first + v) * LANES, by_row ? result[r][v] * by_row[r] : result[r][v], w->n - (first + v) * LANES);
}

typedef void kernel(const struct weight *, const table_t *, const input_t *, const float *sums, const float *by_row, uint16_t *, long rows, long first);
#define KERNEL(NAME, KIND, R)                                                                                                                                 \
    static void NAME##_##R(const struct weight *w, const table_t *values, const input_t *x, const float *sums, const float *by_row, uint16_t *y, long rows,  \
                           long first)                                                                                                                        \
    {                                                                                                                                                         \
        block(w, values, x, sums, by_row, y, rows, first, R, WIDTH(R), KIND);                                                                                 \
    }
#define KERNELS(R)                                                                                                                                            \
    KERNEL(table2, TABLE2, R) KERNEL(table3, TABLE3, R) KERNEL(table4, TABLE4, R) KERNEL(integer5, INTEGER5, R) KERNEL(integer6, INTEGER6, R)                 \
    KERNEL(float6, FLOAT6, R) KERNEL(integer8, INTEGER8, R) KERNEL(float8, FLOAT8, R)
EACH(KERNELS)
static kernel *const kernels[][sizeof sizes / sizeof *sizes] = {ROW(table2),   ROW(table3), ROW(table4),   ROW(integer5),
                                                                ROW(integer6), ROW(float6), ROW(integer8), ROW(float8)};

/* One to ROWS rows where bytes find the values. */
#if LANES == 8
#define FEW(NAME, KIND, R)                                                                                                                                    \
    static void NAME##_##R(const struct weight *w, const table_t *values, const input_t *x, const float *sums, const float *by_row, uint16_t *y, long rows,  \
                           long first)                                                                                                                        \
    {                                                                                                                                                         \
        (void)values;                                                                                                                                         \
        few_rows(w, x, sums, by_row, y, rows, first, R, KIND);                                                                                                \
    }
#define FEWS(R) FEW(bytes2, TABLE2, R) FEW(bytes4, TABLE4, R)
EACH(FEWS)
static kernel *const paired[][sizeof sizes / sizeof *sizes] = {[TABLE2] = ROW(bytes2), [TABLE4] = ROW(bytes4)};
#else
#define STRIPS 0
INLINE int by_bytes(const struct weight *w) { return (void)w, 0; }
static kernel *const *const paired[] = {NULL};
#endif

#define MANY_BYTES 17 /* as MANY, where bytes find the values of 4 bits */

/* How m rows are multiplied: tiles of up to R, V vectors at once. run: none where weights become numbers once for all tiles. */
struct way {
    kernel *run;
    long tiles, rows; /* rows of a tile */
    int R, V, pairs;
    long all; /* inputs of a row, with those beyond k */
};

static struct way way_of(const struct weight *w, long m)
{
    const int pairs = by_bytes(w), spread = m >= (pairs && w->kind == TABLE4 ? MANY_BYTES : MANY);
    const long most = spread ? TALL : ROWS, tiles = (m + most - 1) / most, rows = (m + tiles - 1) / tiles;
    const long all = w->groups * w->steps * step_codes(w->kind);
    int which = 0;
    if (spread && TILES)
        return (struct way){NULL, tiles, rows, rows, broad(m, (w->n + 15) / 16), 0, (all + 31) / 32 * 32};
    if (spread)
        return (struct way){NULL, tiles, TALL, TALL, broad(m, 0), 0, all};
    while (sizes[which] < rows)
        which++;
    if (pairs)
        return (struct way){paired[w->kind][which], tiles, rows, sizes[which], 2 * STRIPS, 1, all};
    return (struct way){kernels[w->kind][which], tiles, rows, sizes[which], WIDTH(sizes[which]), 0, all};
}

/* The inputs of a tile, [pairs or inputs][R], with `pairs` [pair][R][2], as tiles of AMX [all / 32][R][16 pairs], zero beyond rows and k; and their sums by
 * group, [groups][R].
 */
static void pack(const uint16_t *x, long rows, const struct weight *w, long size, const struct way *way, input_t *to, float *sums)
{
    const int R = way->R;
    for (int r = 0; r < R; r++) {
        const uint16_t *row = x + r * w->k;
        const long there = r < rows ? w->k : 0;
#if PAIRS
        for (long i = 0; !way->run && i < way->all; i += 32)
            lay_line(row + i, 2 * (there - i), (char *)(to + (i / 32 * R + r) * 16));
        for (long i = 0; way->run && i < way->all / 2; i++) {
            uint32_t pair = 0;
            if (2 * i + 1 < there)
                memcpy(&pair, row + 2 * i, 4);
            else if (2 * i < there)
                pair = row[2 * i];
            to[i * R + r] = pair;
        }
#else
        float *first = to + (way->pairs ? 2 * r : r);
        const long apart = way->pairs ? 1 : R; /* the two inputs of a pair; codes of a step are an even number */
        for (long i = 0; i < way->all; i += 2, first += 2 * R) {
            first[0] = i < there ? number_at(row, i, 0) : 0;
            first[apart] = i + 1 < there ? number_at(row, i + 1, 0) : 0;
        }
#endif
        for (long g = 0; sums && g < w->groups; g++) {
            float sum = 0;
            for (long i = g * size; i < (g + 1) * size && i < there; i++)
                sum += number_at(row, i, 0);
            sums[g * R + r] = sum;
        }
    }
}

/* x [m, k], rounded as r says where there is one, -> y [m, n] bfloat16. x is bfloat16, with r float32 where wide. Returns 0, or 1 where memory lacks. */
int low_bit_product(const void *x, uint16_t *y, long m, const struct weight *w, const struct rounding *r, int wide)
{
    if (m == 0)
        return 0;
    const int done = m <= FIXED_ROWS && !r && by_integers(w) ? fixed_product(x, y, m, w) : UNSUITED;
    if (done != UNSUITED)
        return done;
    const struct way way = way_of(w, m);
    const long tiles = way.tiles, rows = way.rows, size = w->steps * step_codes(w->kind), padded = w->groups * size;
    const int R = way.R, V = way.V, spread = !way.run;
    const long each = INPUTS(way.all) * R, vectors = (w->n + 15) / 16 * (16 / LANES), blocks = (vectors + V - 1) / V;
    input_t *packed = room(INPUT, tiles * each * sizeof *packed);
    const int summed = w->shift && !(spread && scaled_first(w, m)); /* shifts are multiplied with sums of inputs */
    float *sums = summed ? room(TOTALS, tiles * w->groups * R * sizeof *sums) : NULL;
    float *by_row = r ? room(BY_ROW, m * (sizeof *by_row + w->k * sizeof(uint16_t))) : NULL;
    if (!packed || (summed && !sums) || (r && !by_row))
        return 1;
    uint16_t *rounded = (uint16_t *)(by_row + m);
    const uint16_t *from = r ? rounded : x;
    const float all = r && r->per == ALL ? largest_of(x, wide, m * w->k, r) : 0, *scales = r && r->form == ELEMENTS ? by_row : NULL;
    const table_t values = read_table(w->table, w->kind, w->mantissa);
    int lacking = 0;
#pragma omp parallel if (m * w->n * padded > 1 << 17) reduction(| : lacking)
    {
        float *work = spread ? room(WORK, work_of(tiles, R, V) * sizeof *work) : NULL;
        lacking |= spread && !work;
#if TILES
        if (spread)
            lay_tiles(R);
#endif
        if (r) {
#pragma omp for schedule(static)
            for (long i = 0; i < m; i++)
                round_row((const char *)x + i * w->k * (wide ? 4 : 2), wide, w->k, r, all, rounded + i * w->k, 0, scales ? by_row + i : NULL);
        }
#pragma omp for schedule(static)
        for (long t = 0; t < tiles; t++)
            pack(from + t * rows * w->k, m - t * rows < rows ? m - t * rows : rows, w, size, &way, packed + t * each, sums ? sums + t * w->groups * R : NULL);
#pragma omp for schedule(static)
        for (long b = 0; b < blocks; b++)
            if (work)
                all_rows(w, &values, packed, sums, scales, y, m, b * V, tiles, R, V, way.all, work);
            else
                for (long t = 0; t < tiles && !spread; t++)
                    way.run(w, &values, packed + t * each, sums ? sums + t * w->groups * R : NULL, scales ? scales + t * rows : NULL,
                            y + t * rows * w->n, m - t * rows < rows ? m - t * rows : rows, b * V);
#if TILES
        if (spread)
            _tile_release();
#endif
    }
    return lacking;
}
