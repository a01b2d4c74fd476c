/* Products of bfloat16 inputs with weights in 2, 4 or 8 bits, on one x86 CPU: y = x W^T. Compiled by kernels/native.py for AVX2, for AVX-512, or for
 * AVX-512 with products of bfloat16 pairs; which, the compiler's flags say. Knows no tensors: sizes and layouts are the caller's to get right.
 *
 * Sixteen outputs are a strip. A strip's codes lie one step after the other; a step is sixteen 32-bit words, one for each output, and a word holds the
 * codes of 16, 8 or 4 consecutive inputs. Codes of 2 and 4 bits: even inputs in its low half, odd ones in its high half, so that a shift of 16-bit lanes
 * brings a pair of neighbours into place and one permutation of a table turns it into two numbers, whatever the table says. Small floats in bytes: the low
 * bytes of both halves are a pair, and so are the high ones; two permutations look up magnitudes of 7 bits. Scales lie [strip][group][16].
 *
 * Rows go in tiles of up to ROWS, inputs packed [tile][pair or input][row]. A group is summed with its codes as they are, in float32, and scaled once:
 * y += scale (sum x value + shift sum x). What is unpacked for one tile serves all of its rows. Inputs that are rounded first become numbers that bfloat16
 * holds exactly; where a row of them has a scale, the row of results is multiplied with it.
 */
#include "native.h"

/* The value of byte `at` of each word. */
INLINE vec byte_value(words w, int at, const int kind, vec factor, int mantissa)
{
    if (kind == INTEGER8)
        return __builtin_convertvector((whole)(w << (24 - 8 * at)) >> 24, vec);
    words sign = (w << (24 - 8 * at)) & 0x80000000u, rest = ((w >> (8 * at)) & 0x7fu) << (23 - mantissa);
    return number(sign | rest) * factor;
}

#if PAIRS
typedef struct { __m512i part[4]; } table_t; /* 32 bfloat16 each: the table twice or more, of a small float 128 magnitudes */
typedef __m512i weight_t; /* 16 outputs, two inputs each */
typedef uint32_t input_t; /* two bfloat16 */
#define INPUTS(codes) ((codes) / 2)

INLINE table_t read_table(const float *t, const int kind, int mantissa)
{
    const int parts = kind == FLOAT8 ? 4 : 1;
    uint16_t narrow[128];
    table_t table;
    for (int i = 0; i < 32 * parts; i++) /* cut off exactly: the caller rounds */
        narrow[i] = as_bits(kind == FLOAT8 ? as_float((uint32_t)i << (23 - mantissa)) * t[0] : t[kind == TABLE2 ? i % 4 : i % 16]) >> 16;
    for (int p = 0; p < 4; p++)
        table.part[p] = _mm512_loadu_si512(narrow + 32 * (p % parts));
    return table;
}

INLINE weight_t pick(words w, int i, const int kind, table_t table, vec factor, int mantissa)
{
    const __m512i code = (__m512i)w;
    if (kind == TABLE2 || kind == TABLE4)
        return _mm512_permutexvar_epi16(_mm512_srli_epi16(code, (kind == TABLE2 ? 2 : 4) * i), table.part[0]);
    if (kind == FLOAT8) {
        const __m512i size = i ? _mm512_srli_epi16(code, 8) : code, sign = i ? code : _mm512_slli_epi16(code, 8);
        const __m512i low = _mm512_permutex2var_epi16(table.part[0], size, table.part[1]), high = _mm512_permutex2var_epi16(table.part[2], size, table.part[3]);
        const __m512i found = _mm512_mask_blend_epi16(_mm512_test_epi16_mask(size, _mm512_set1_epi16(64)), low, high);
        return _mm512_ternarylogic_epi32(sign, _mm512_set1_epi16(-32768), found, 0xEA); /* the sign's bit or what was found */
    }
    words low = bits(byte_value(w, 2 * i, kind, factor, mantissa)), high = bits(byte_value(w, 2 * i + 1, kind, factor, mantissa));
    return (__m512i)((high & 0xffff0000u) | (low >> 16));
}

INLINE vec dot(vec sum, weight_t w, input_t x) { return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(x)); }
#else
typedef vec weight_t;
typedef float input_t;
#define INPUTS(codes) (codes)
#if LANES == 16
typedef vec table_t;

INLINE table_t read_table(const float *t, const int kind, int mantissa)
{
    float all[16];
    (void)mantissa;
    for (int i = 0; i < 16; i++)
        all[i] = t[kind == TABLE2 ? i % 4 : i];
    return (vec)_mm512_loadu_ps(all);
}

INLINE vec look_up(words w, table_t table) { return (vec)_mm512_permutexvar_ps((__m512i)w, (__m512)table); }
#else
typedef struct { vec low, high; } table_t;

INLINE table_t read_table(const float *t, const int kind, int mantissa)
{
    float all[16];
    (void)mantissa;
    for (int i = 0; i < 16; i++)
        all[i] = t[kind == TABLE2 ? i % 4 : i];
    return (table_t){(vec)_mm256_loadu_ps(all), (vec)_mm256_loadu_ps(all + 8)};
}

INLINE vec look_up(words w, table_t table)
{
    __m256 low = _mm256_permutevar8x32_ps((__m256)table.low, (__m256i)w), high = _mm256_permutevar8x32_ps((__m256)table.high, (__m256i)w);
    return (vec)_mm256_blendv_ps(low, high, (__m256)(w << 28));
}
#endif

INLINE weight_t pick(words w, int i, const int kind, table_t table, vec factor, int mantissa)
{
    if (kind == TABLE2)
        return look_up(w >> (2 * (i / 2) + 16 * (i % 2)), table);
    if (kind == TABLE4)
        return look_up(w >> (4 * (i / 2) + 16 * (i % 2)), table);
    return byte_value(w, kind == FLOAT8 && (i == 1 || i == 2) ? 3 - i : i, kind, factor, mantissa);
}

INLINE vec dot(vec sum, weight_t w, input_t x) { return sum + w * x; }
#endif

/* V vectors of outputs from vector `first` on, for the R rows of a tile, of which `rows` are there. */
INLINE void block(const struct weight *w, const input_t *x, const float *sums, const float *by_row, uint16_t *y, long rows, long first, const int R, const int V,
                  const int kind)
{
    const int codes = kind == TABLE2 ? 16 : kind == TABLE4 ? 8 : 4, parts = 16 / LANES;
    const long last = (w->n + 15) / 16 * parts - 1, length = w->groups * w->steps * 16;
    const table_t table = read_table(w->table, kind, w->mantissa);
    const vec factor = w->table[0] - (vec){0};
    const uint32_t *from[4];
    long scales[4];
    vec total[ROWS][4];
    for (int v = 0; v < V; v++) {
        long at = first + v < last ? first + v : last;
        from[v] = w->codes + at / parts * length + at % parts * LANES;
        scales[v] = at / parts * w->groups * 16 + at % parts * LANES;
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
            words code[4];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                memcpy(&code[v], from[v], sizeof code[v]);
                from[v] += 16;
            }
#pragma GCC unroll 16
            for (int i = 0; i < INPUTS(codes); i++, x += R) {
                weight_t value[4];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++)
                    value[v] = pick(code[v], i, kind, table, factor, w->mantissa);
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

typedef void kernel(const struct weight *, const input_t *, const float *sums, const float *by_row, uint16_t *, long rows, long first);
#define KERNEL(NAME, KIND, R)                                                                                                                                 \
    static void NAME##_##R(const struct weight *w, const input_t *x, const float *sums, const float *by_row, uint16_t *y, long rows, long first)             \
    {                                                                                                                                                         \
        block(w, x, sums, by_row, y, rows, first, R, WIDTH(R), KIND);                                                                                         \
    }
#define KERNELS(R) KERNEL(table2, TABLE2, R) KERNEL(table4, TABLE4, R) KERNEL(integer8, INTEGER8, R) KERNEL(float8, FLOAT8, R)
EACH(KERNELS)
static kernel *const kernels[][sizeof sizes / sizeof *sizes] = {ROW(table2), ROW(table4), ROW(integer8), ROW(float8)};

/* The inputs of a tile, [pairs or inputs][R], zero beyond rows and k; and their sums by group, [groups][R]. */
static void pack(const uint16_t *x, long rows, const struct weight *w, long size, int R, input_t *to, float *sums)
{
    const long padded = w->groups * size;
    for (int r = 0; r < R; r++) {
        const uint16_t *row = x + r * w->k;
        const long there = r < rows ? w->k : 0;
#if PAIRS
        for (long i = 0; i < padded / 2; i++) {
            uint32_t pair = 0;
            if (2 * i + 1 < there)
                memcpy(&pair, row + 2 * i, 4);
            else if (2 * i < there)
                pair = row[2 * i];
            to[i * R + r] = pair;
        }
#else
        for (long i = 0; i < padded; i++) {
            uint32_t u = i < there ? (uint32_t)row[i] << 16 : 0;
            memcpy(to + i * R + r, &u, 4);
        }
#endif
        for (long g = 0; sums && g < w->groups; g++) {
            float sum = 0;
            for (long i = g * size; i < (g + 1) * size && i < there; i++) {
                uint32_t u = (uint32_t)row[i] << 16;
                float f;
                memcpy(&f, &u, 4);
                sum += f;
            }
            sums[g * R + r] = sum;
        }
    }
}

/* x [m, k], rounded as r says where there is one, -> y [m, n] bfloat16. x is bfloat16, with r float32 where wide. Returns 0, or 1 where memory lacks. */
int low_bit_product(const void *x, uint16_t *y, long m, const struct weight *w, const struct rounding *r, int wide)
{
    if (m == 0)
        return 0;
    const long size = w->steps * (w->kind == TABLE2 ? 16 : w->kind == TABLE4 ? 8 : 4), padded = w->groups * size;
    const long tiles = (m + ROWS - 1) / ROWS, rows = (m + tiles - 1) / tiles;
    int which = 0;
    while (sizes[which] < rows)
        which++;
    const int R = sizes[which], V = WIDTH(R);
    const long each = INPUTS(padded) * R, vectors = (w->n + 15) / 16 * (16 / LANES), blocks = (vectors + V - 1) / V;
    input_t *packed = room(INPUT, tiles * each * sizeof *packed);
    float *sums = w->shift ? room(TOTALS, tiles * w->groups * R * sizeof *sums) : NULL;
    float *by_row = r ? room(BY_ROW, m * (sizeof *by_row + w->k * sizeof(uint16_t))) : NULL;
    if (!packed || (w->shift && !sums) || (r && !by_row))
        return 1;
    uint16_t *rounded = (uint16_t *)(by_row + m);
    const uint16_t *from = r ? rounded : x;
    const float all = r && r->per == ALL ? largest_of(x, wide, m * w->k, r) : 0, *scales = r && r->form == ELEMENTS ? by_row : NULL;
    kernel *run = kernels[w->kind][which];
#pragma omp parallel if (m * w->n * padded > 1 << 17)
    {
        if (r) {
#pragma omp for schedule(static)
            for (long i = 0; i < m; i++)
                round_row((const char *)x + i * w->k * (wide ? 4 : 2), wide, w->k, r, all, rounded + i * w->k, 0, scales ? by_row + i : NULL);
        }
#pragma omp for schedule(static)
        for (long t = 0; t < tiles; t++)
            pack(from + t * rows * w->k, m - t * rows < rows ? m - t * rows : rows, w, size, R, packed + t * each, sums ? sums + t * w->groups * R : NULL);
#pragma omp for schedule(static)
        for (long b = 0; b < blocks; b++)
            for (long t = 0; t < tiles; t++)
                run(w, packed + t * each, sums ? sums + t * w->groups * R : NULL, scales ? scales + t * rows : NULL, y + t * rows * w->n,
                    m - t * rows < rows ? m - t * rows : rows, b * V);
    }
    return 0;
}
