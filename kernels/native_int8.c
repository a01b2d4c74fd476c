/* Products of int8 inputs with int8 weights; see native.c for strips, words and tiles. With VNNI one instruction adds four products of bytes in 32 bits; without
 * it bytes become pairs of 16 bits, whose products are added in 32: the byte product of such CPUs adds in 16 bits and saturates. AMX multiplies tiles of codes as
 * they lie. Columns of inputs that are outliers, named beforehand or found at each call, are left out of the rounding and multiplied in float32 with the same
 * codes. */
#include "native_cache.h"
#include "native_tiles.h"

/* Products of int8 inputs with weights in unsigned bytes, 128 for zero: sum (w + 128) x - 128 sum x, in int32. */
#if defined(__AVX512VNNI__)
#define PIECES 1 /* words that hold four inputs: all four; else the first and the third, then the second and the fourth */
#else
#define PIECES 2
#endif

struct inputs {
    const uint32_t *codes; /* [pack of four][PIECES][R] */
    const int32_t *less; /* [R] 128 times the sum of a row */
    const float *scale; /* [R], or none: then y is the sums themselves, float32 */
    const float *kept; /* [count][R], inputs of the outlier columns */
    const int32_t *columns; /* [count] */
    long count;
    int wide; /* y is float32 and not bfloat16 */
};

struct outliers {
    const int32_t *columns; /* [count], or none: then those that hold a magnitude of at least the threshold, NaN left aside */
    long count;
    float threshold;
};

/* sum += four inputs of each row times V vectors of weights. */
#if PIECES == 1
INLINE void add8(raw sum[][4], const raw *code, const uint32_t *x, const int R, const int V)
{
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) /* in assembly, because GCC 12 keeps sums of the intrinsic twice, and most of them in memory */
            __asm__("vpdpbusd %2, %1, %0" : "+v"(sum[r][v]) : "v"(code[v]), "v"(OF(set1_epi32)(x[r])));
}
#else
INLINE void add8(raw sum[][4], const raw *code, const uint32_t *x, const int R, const int V)
{
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
        const raw even = (raw)((words)code[v] & 0x00ff00ffu), odd = (raw)(((words)code[v] >> 8) & 0x00ff00ffu);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
            sum[r][v] = pairs_added(pairs_added(sum[r][v], even, OF(set1_epi32)(x[r])), odd, OF(set1_epi32)(x[R + r]));
    }
}
#endif

/* What the sums [R][V] of V vectors from vector `first` on mean -> y. */
INLINE void finish8(const struct weight *w, const struct inputs *x, const raw sum[][4], void *y, long rows, long first, const int R, const int V)
{
    const int parts = 16 / LANES;
    const long last = (w->n + 15) / 16 * parts - 1, length = w->groups * w->steps * 16;
    vec total[TALLEST][4];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            total[r][v] = __builtin_convertvector((whole)sum[r][v], vec);
    if (x->scale)
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++)
                total[r][v] *= x->scale[r];
    for (long c = 0; c < x->count; c++) {
        vec code[4];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const long at = first + v < last ? first + v : last;
            const words four = (words)load(w->codes + at / parts * length + at % parts * LANES + x->columns[c] / 4 * 16);
            code[v] = __builtin_convertvector((whole)((four >> (x->columns[c] % 4 * 8)) & 255u) - 128, vec);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++)
                total[r][v] += x->kept[c * R + r] * code[v];
    }
    for (int r = 0; r < R && r < rows; r++)
        for (int v = 0; v < V && first + v <= last; v++) {
            const long n = (first + v) * LANES, left = w->n - n < LANES ? w->n - n : LANES;
            if (left <= 0)
                break;
            const vec result = x->scale ? total[r][v] * load_numbers(w->scale, n, w->wide) : total[r][v];
            if (x->wide)
                memcpy((float *)y + r * w->n + n, &result, 4 * left);
            else
                store((uint16_t *)y + r * w->n + n, result, left);
        }
}

INLINE void block8(const struct weight *w, const struct inputs *x, void *y, long rows, long first, const int R, const int V)
{
    const int parts = 16 / LANES;
    const long last = (w->n + 15) / 16 * parts - 1, length = w->groups * w->steps * 16;
    const uint32_t *from[4], *in = x->codes;
    raw sum[ROWS][4];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            sum[r][v] = OF(set1_epi32)(-x->less[r]);
    for (int v = 0; v < V; v++) {
        const long at = first + v < last ? first + v : last;
        from[v] = w->codes + at / parts * length + at % parts * LANES;
    }
    for (long s = 0; s < w->steps; s++, in += PIECES * R) {
        raw code[4];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            code[v] = load(from[v] + 16 * s);
        add8(sum, code, in, R, V);
    }
    raw result[ROWS][4]; /* apart from the sums, which stay in registers as long as no index of theirs varies */
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            result[r][v] = sum[r][v];
    finish8(w, x, result, y, rows, first, R, V);
}

#if TILES
#define MANY8 5 /* rows from which tiles are faster */
#define STRIPS8 4

/* STRIPS8 strips from strip `first` on for one or two tiles of R rows, of which `rows` are there; x, y: of the first tile, what follows of the other. */
static void tiles8(const struct weight *w, const struct inputs *x, long tiles, char *y, long rows, long R, long first)
{
    const long last = (w->n + 15) / 16 - 1, whole_tiles = w->steps / 16, rest = w->steps % 16, depth = whole_tiles + (rest > 0), line = 4 >> !x->wide;
    int32_t sums[2][STRIPS8][TALLEST][16] __attribute__((aligned(64)));
    uint32_t ends[STRIPS8][16][16] __attribute__((aligned(64)));
    const char *strips[STRIPS8], *tails[STRIPS8], *in = (const char *)x->codes;
    memset(sums, 0, sizeof sums);
    for (int v = 0; v < STRIPS8; v++) {
        const uint32_t *strip = w->codes + (first + v < last ? first + v : last) * w->steps * 16;
        strips[v] = (const char *)strip;
        tails[v] = (const char *)ends[v];
        memcpy(ends[v], strip + whole_tiles * 256, rest * 64);
        memset(ends[v][rest], 0, (16 - rest) * 64);
    }
    const long size = R * LINE_BYTES, next = depth * size;
    multiply_tiles(in, next, tiles, strips, STRIPS8, (char *)sums, size, whole_tiles, 1);
    if (rest)
        multiply_tiles(in + whole_tiles * size, next, tiles, tails, STRIPS8, (char *)sums, size, 1, 1);
    for (long t = 0; t < tiles; t++, y += R * w->n * line) {
        const struct inputs mine = {NULL, x->less + t * R, x->scale ? x->scale + t * R : NULL, x->kept + t * x->count * R, x->columns, x->count, x->wide};
        for (int v = 0; v < STRIPS8 && first + v <= last; v++) {
            raw sum[TALLEST][4];
            for (long r = 0; r < R; r++)
                sum[r][0] = (raw)((whole)load((const uint32_t *)sums + ((t * STRIPS8 + v) * R + r) * 16) - mine.less[r]);
            finish8(w, &mine, sum, y, rows - t * R < R ? rows - t * R : R, first + v, R, 1);
        }
    }
}
#else
#define MANY8 (1l << 62)
#endif

typedef void kernel8(const struct weight *, const struct inputs *, void *, long rows, long first);
#define KERNEL8(R)                                                                                                  \
    static void integer_##R(const struct weight *w, const struct inputs *x, void *y, long rows, long first)        \
    {                                                                                                               \
        block8(w, x, y, rows, first, R, WIDTH(R));                                                                  \
    }
EACH(KERNEL8)
static kernel8 *const kernels8[] = ROW(integer);

/* Which columns of x hold an outlier: found [k] bytes. */
static void find(const void *x, const int wide, long m, long k, float threshold, uint8_t *restrict found)
{
    const long piece = 1024;
#pragma omp parallel for schedule(static) if (m * k > 1 << 16)
    for (long from = 0; from < k; from += piece) {
        const long end = from + piece < k ? from + piece : k;
        memset(found + from, 0, end - from);
        for (long row = 0; row < m; row++)
            for (long i = from; i < end; i++)
                found[i] |= as_float(as_bits(number_at(x, row * k + i, wide)) & 0x7fffffffu) >= threshold;
    }
}

/* Marks the outlier columns in found [k], lists them in columns [k] in their order, and says how many there are. */
static long listed(const void *x, int wide, long m, long k, const struct outliers *o, uint8_t *found, int32_t *columns)
{
    long count = 0;
    if (o->columns) {
        memset(found, 0, k);
        for (long c = 0; c < o->count; c++)
            found[o->columns[c]] = 1;
    } else if (wide)
        find(x, 1, m, k, o->threshold, found);
    else
        find(x, 0, m, k, o->threshold, found);
    for (long i = 0; i < k; i++)
        if (found[i])
            columns[count++] = i;
    return count;
}

/* x without its outlier columns, as wide as it. */
static void without(const void *x, int wide, long m, long k, const int32_t *columns, long count, void *rest)
{
#pragma omp parallel for schedule(static) if (m * k > 1 << 16)
    for (long row = 0; row < m; row++) {
        memcpy((char *)rest + row * k * (wide ? 4 : 2), (const char *)x + row * k * (wide ? 4 : 2), k * (wide ? 4 : 2));
        for (long c = 0; c < count; c++)
            if (wide)
                ((float *)rest)[row * k + columns[c]] = 0;
            else
                ((uint16_t *)rest)[row * k + columns[c]] = 0;
    }
}

/* x [m, k] times weights in bytes with one scale a row -> y [m, n], float32 where wide, else bfloat16. x: as wide as y, rounded as r says; without r int8, its
 * rows times `scales` where there are any, else y is the sums. o: what of x stays in 16 bits, or none. Returns 0, or 1 where memory lacks. */
int low_bit_int8(const void *x, int wide, void *y, long m, const struct weight *w, const struct rounding *r, const float *scales, const struct outliers *o)
{
    if (m == 0)
        return 0;
    const int tiled = m >= MANY8;
    const long most = tiled ? TALLEST : ROWS, padded = 4 * w->steps, tiles = (m + most - 1) / most, rows = (m + tiles - 1) / tiles;
    int which = 0;
    while (!tiled && sizes[which] < rows)
        which++;
    const int R = tiled ? rows : sizes[which], V = tiled ? 4 : WIDTH(R);
    const long all = tiled ? (w->steps + 15) / 16 * 16 : w->steps; /* steps of inputs, with those beyond the weight's */
    const long vectors = (w->n + 15) / 16 * (16 / LANES), blocks = (vectors + V - 1) / V, each = all * PIECES * R;
    uint32_t *packed = room(PACKED8, tiles * each * sizeof *packed);
    int8_t *codes = room(CODES8, m * padded);
    float *scale = room(SCALES8, tiles * R * (sizeof *scale + sizeof(int32_t)));
    int32_t *columns = o ? room(COLUMNS8, w->k * (sizeof *columns + 1)) : NULL;
    if (!packed || !codes || !scale || (o && !columns))
        return 1;
    uint8_t *found = (uint8_t *)(columns + w->k);
    const long count = o ? listed(x, wide, m, w->k, o, found, columns) : 0;
    float *kept = count ? room(KEPT8, tiles * R * count * sizeof *kept) : NULL;
    void *rest = count ? room(REST8, m * w->k * (wide ? 4 : 2)) : NULL;
    if (count && (!kept || !rest))
        return 1;
    if (count)
        without(x, wide, m, w->k, columns, count, rest);
    const char *from = count ? rest : x;
    const float top = r && r->per == ALL ? largest_of(from, wide, m * w->k, r) : 0;
    int32_t *less = (int32_t *)(scale + tiles * R);
    kernel8 *run = kernels8[which];
#pragma omp parallel if (m * w->n * padded > 1 << 17)
    {
#if TILES
        if (tiled)
            lay_tiles(R);
#endif
#pragma omp for schedule(static)
        for (long at = 0; at < tiles * R; at++) {
            const long t = at / R, line = at % R, row = t * rows + line;
            const int there = line < rows && row < m;
            int8_t *own = codes + (there ? row : 0) * padded;
            int32_t sum = 0;
            if (there) {
                memset(own + w->k, 0, padded - w->k);
                if (!r)
                    memcpy(own, (const int8_t *)x + row * w->k, w->k);
                else
                    round_row(from + row * w->k * (wide ? 4 : 2), wide, w->k, r, top, own, 0, scale + at);
                if (scales)
                    scale[at] = scales[row];
                for (long i = 0; i < w->k; i++)
                    sum += own[i];
            }
            less[at] = 128 * sum;
            uint32_t *to = packed + t * each + line;
            for (long s = 0; tiled && s < all; s += 16)
                lay_line(own + 4 * s, there ? 4 * (w->steps - s) : 0, (char *)(packed + t * each + (s * R + line * 16)));
            for (long s = 0; !tiled && s < w->steps; s++, to += PIECES * R) {
                int8_t four[4] = {0};
                if (there)
                    memcpy(four, own + 4 * s, 4);
                if (PIECES == 1)
                    memcpy(to, four, 4);
                else
                    for (int i = 0; i < PIECES; i++)
                        to[i * R] = (uint16_t)four[i] | (uint32_t)(uint16_t)four[i + 2] << 16;
            }
            for (long c = 0; c < count; c++)
                kept[(t * count + c) * R + line] = there ? number_at(x, row * w->k + columns[c], wide) : 0;
        }
#pragma omp for schedule(static)
        for (long b = 0; b < blocks; b++)
            for (long t = 0; t < tiles; t += tiled ? 2 : 1) {
                const struct inputs in = {packed + t * each, less + t * R, r || scales ? scale + t * R : NULL, kept + t * count * R, columns, count, wide};
                char *to = (char *)y + t * rows * w->n * (wide ? 4 : 2);
#if TILES
                if (tiled) {
                    tiles8(w, &in, tiles - t < 2 ? 1 : 2, to, m - t * rows, R, b * V);
                    continue;
                }
#endif
                run(w, &in, to, m - t * rows < rows ? m - t * rows : rows, b * V);
            }
#if TILES
        if (tiled)
            _tile_release();
#endif
    }
    return 0;
}
