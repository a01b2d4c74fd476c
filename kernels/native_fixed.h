/* Rows times integer codes of 2, 4 or 8 bits, where a CPU adds four products of bytes at once (VNNI). Inputs become integers of 15 bits, SPAN of them with a
 * power of two as their scale, and these two bytes each: x = scale (256 high + low). Sums of integers are exact; what is rounded is inputs of less than 2^-6 of
 * the largest of a span, to 2^-14 of that. While the largest is no more than STEEP times the mean, that is less than results in bfloat16 are rounded by; where
 * it is more, as massive activations are, outputs whose weight there is zero would show it, and such rows are left to products of bfloat16. Four codes are
 * unpacked by a mask, where a pair takes a permutation and a product of bfloat16 twice as long as one of bytes.
 */
#ifndef NATIVE_FIXED_H
#define NATIVE_FIXED_H
#include "native_codes.h"

#if defined(__AVX512VNNI__)
#define FIXED_ROWS (TILES ? 4 : 1l << 62) /* rows up to which it is faster */
#define SPAN 128
#define STEEP 48.0f
#define UNSUITED (-1)
#define FIXED_WIDTH(R) ((R) == 1 ? 4 : 2)

struct span {
    float scale; /* NaN where an input is not finite */
    int32_t sum; /* of the inputs, times the value of code 0 */
    int steep;
};

/* Whether the codes of a weight are integers in groups that this reads. */
INLINE int by_integers(const struct weight *w)
{
    if (w->steps * step_codes(w->kind) % 16 || (w->kind != TABLE2 && w->kind != TABLE4))
        return w->kind == INTEGER8 && w->steps % 4 == 0;
    for (int i = 0; i < 1 << bits_of(w->kind); i++)
        if (w->table[i] != w->table[0] + i || w->table[0] != (int)w->table[0])
            return 0;
    return 1;
}

INLINE long spans_of(const struct weight *w) { return (w->steps * step_codes(w->kind) + SPAN - 1) / SPAN * w->groups; }

/* n inputs of a row, zero from `there` on, as bytes: of 16 inputs the high ones, then, after those of R rows, the low ones, in the order of a word's codes. */
INLINE struct span pack_span(const uint16_t *row, long n, long there, const int kind, int R, uint8_t *to)
{
    static const uint8_t orders[3][16] = {{0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15}, {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15},
                                          {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}};
    const __m128i order = _mm_loadu_si128((const __m128i *)orders[kind == TABLE2 ? 0 : kind == TABLE4 ? 1 : 2]);
    uint16_t part[SPAN] = {0};
    vec x[SPAN / 16];
    __m512i top = _mm512_setzero_si512(), sum = top;
    vec sizes = {0};
    if (there < n) {
        memcpy(part, row, there > 0 ? 2 * there : 0);
        row = part;
    }
    for (long i = 0; i < n / 16; i++) {
        x[i] = load_numbers(row, 16 * i, 0);
        const __m512i size = _mm512_and_si512((__m512i)x[i], _mm512_set1_epi32(0x7fffffff));
        top = _mm512_max_epu32(top, size);
        sizes += (vec)size;
    }
    const uint32_t largest = _mm512_reduce_max_epu32(top), exponent = largest >> 23;
    if (exponent == 255)
        memset(x, 0, sizeof x);
    const float times = as_float((exponent < 13 ? 254 : 267 - exponent) << 23); /* the largest comes to lie below 2^14 */
    for (long i = 0; i < n / 16; i++, to += 32 * R) {
        const __m512i whole_x = _mm512_cvtps_epi32((__m512)(x[i] * times)), high = _mm512_srai_epi32(_mm512_add_epi32(whole_x, _mm512_set1_epi32(128)), 8);
        const __m512i low = _mm512_sub_epi32(whole_x, _mm512_slli_epi32(high, 8));
        sum = _mm512_add_epi32(sum, whole_x);
        _mm_storeu_si128((__m128i *)to, _mm_shuffle_epi8(_mm512_cvtepi32_epi8(high), order));
        _mm_storeu_si128((__m128i *)(to + 16 * R), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(low), order));
    }
    const int steep = exponent < 255 && as_float(largest) * n > STEEP * _mm512_reduce_add_ps((__m512)sizes);
    return (struct span){exponent == 255 ? as_float(0x7fc00000u) : 1 / times, _mm512_reduce_add_epi32(sum), steep};
}

/* Rows of inputs -> bytes [inputs / 16][2][R][16], spans [spans][R] and the sums of groups [groups][R]. Returns whether any span is steep. */
static int pack_fixed(const uint16_t *x, long rows, const struct weight *w, int R, uint8_t *to, struct span *spans, float *sums)
{
    const long size = w->steps * step_codes(w->kind), each = (size + SPAN - 1) / SPAN;
    const int32_t zero = w->kind == INTEGER8 ? -128 : (int32_t)w->table[0];
    int steep = 0;
    for (int r = 0; r < R; r++)
        for (long g = 0; g < w->groups; g++) {
            float sum = 0;
            for (long s = 0; s < each; s++) {
                const long at = g * size + s * SPAN, left = size - s * SPAN, n = left < SPAN ? left : SPAN;
                struct span made = pack_span(x + r * w->k + at, n, r < rows ? w->k - at : 0, w->kind, R, to + 2 * at * R + 16 * r);
                sum += made.scale * made.sum;
                made.sum *= zero;
                steep |= made.steep;
                spans[(g * each + s) * R + r] = made;
            }
            if (sums)
                sums[g * R + r] = sum;
        }
    return steep;
}

/* high, low [R][V] += the codes of 16 inputs times theirs. */
INLINE void add_fixed(__m512i high[][4], __m512i low[][4], const uint32_t *const *from, const uint32_t *x, const int R, const int V, const int kind)
{
    const int bits = bits_of(kind), each = 8 / bits, steps = 16 / step_codes(kind);
#pragma GCC unroll 4
    for (int s = 0; s < steps; s++)
#pragma GCC unroll 4
        for (int c = 0; c < each; c++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                const words word = (words)_mm512_loadu_si512(from[v] + 16 * s);
                const words code = bits == 8 ? word ^ 0x80808080u : (word >> (bits * c)) & (0x01010101u * ((1 << bits) - 1));
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) { /* in assembly, as in native_int8.c */
                    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(high[r][v]) : "v"(code), "m"(x[4 * r + s * each + c]));
                    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(low[r][v]) : "v"(code), "m"(x[4 * (R + r) + s * each + c]));
                }
            }
}

/* As `block` of native.c. */
INLINE void fixed_rows(const struct weight *w, const uint32_t *x, const struct span *span, const float *sums, uint16_t *y, long rows,
                       long first, const int R, const int V, const int kind)
{
    const long last = (w->n + 15) / 16 - 1, length = w->groups * w->steps * 16, size = w->steps * step_codes(kind), next = 16 / step_codes(kind) * 16;
    const uint32_t *from[4];
    long scales[4];
    vec total[4][4] = {{{0}}};
    for (int v = 0; v < V; v++) {
        const long at = first + v < last ? first + v : last;
        from[v] = w->codes + at * length;
        scales[v] = at * w->groups * 16;
    }
    for (long g = 0; g < w->groups; g++) {
        vec part[4][4] = {{{0}}};
        for (long begin = 0; begin < size; begin += SPAN, span += R) {
            __m512i high[4][4], low[4][4];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    high[r][v] = _mm512_setzero_si512();
                    low[r][v] = _mm512_set1_epi32(span[r].sum);
                }
            for (long i = begin; i < size && i < begin + SPAN; i += 16, x += 8 * R) {
                add_fixed(high, low, from, x, R, V, kind);
#pragma GCC unroll 4
                for (int v = 0; v < V; v++)
                    from[v] += next;
            }
#pragma GCC unroll 4
            for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++)
                    part[r][v] += (vec)_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high[r][v], 8), low[r][v])) * span[r].scale;
        }
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const vec scale = load_numbers(w->scale, scales[v] + 16 * g, w->wide), shift = w->shift ? load_numbers(w->shift, scales[v] + 16 * g, w->wide) : (vec){0};
#pragma GCC unroll 4
            for (int r = 0; r < R; r++)
                total[r][v] += scale * (w->shift ? part[r][v] + shift * sums[g * R + r] : part[r][v]);
        }
    }
    for (int r = 0; r < R && r < rows; r++)
        for (int v = 0; v < V && first + v <= last; v++)
            store(y + r * w->n + (first + v) * 16, total[r][v], w->n - (first + v) * 16);
}

typedef void fixed_kernel(const struct weight *, const uint32_t *, const struct span *, const float *sums, uint16_t *, long rows, long first);
#define FIXED_KERNEL(NAME, KIND, R)                                                                                                                           \
    static void NAME##_fixed_##R(const struct weight *w, const uint32_t *x, const struct span *span, const float *sums, uint16_t *y,     \
                                 long rows, long first)                                                                                                       \
    {                                                                                                                                                         \
        fixed_rows(w, x, span, sums, y, rows, first, R, FIXED_WIDTH(R), KIND);                                                                        \
    }
#define FIXED_KERNELS(R) FIXED_KERNEL(table2, TABLE2, R) FIXED_KERNEL(table4, TABLE4, R) FIXED_KERNEL(integer8, INTEGER8, R)
FIXED_KERNELS(1) FIXED_KERNELS(2) FIXED_KERNELS(4)
#define FIXED_ROW(NAME) {NAME##_fixed_1, NAME##_fixed_2, NAME##_fixed_4}
static fixed_kernel *const fixed_kernels[][3] = {[TABLE2] = FIXED_ROW(table2), [TABLE4] = FIXED_ROW(table4), [INTEGER8] = FIXED_ROW(integer8)};

/* x [m, k] bfloat16 -> y [m, n]. Returns 0, 1 where memory lacks, or UNSUITED, with nothing written, where inputs are steep. */
static int fixed_product(const uint16_t *x, uint16_t *y, long m, const struct weight *w)
{
    const long tiles = (m + 3) / 4, rows = (m + tiles - 1) / tiles, padded = w->groups * w->steps * step_codes(w->kind), each = spans_of(w);
    const int which = rows > 2 ? 2 : rows - 1, R = 1 << which, V = FIXED_WIDTH(R);
    uint8_t *packed = room(INPUT, 2 * padded * R * tiles);
    struct span *spans = room(SPANS8, each * R * tiles * sizeof *spans);
    float *sums = w->shift ? room(TOTALS, w->groups * R * tiles * sizeof *sums) : NULL;
    if (!packed || !spans || (w->shift && !sums))
        return 1;
    int steep = 0;
#pragma omp parallel if (m * w->n * padded > 1 << 17)
    {
#pragma omp for schedule(static) reduction(| : steep)
        for (long t = 0; t < tiles; t++)
            steep |= pack_fixed(x + t * rows * w->k, m - t * rows < rows ? m - t * rows : rows, w, R, packed + t * 2 * padded * R, spans + t * each * R,
                                sums ? sums + t * w->groups * R : NULL);
#pragma omp for schedule(static)
        for (long b = 0; b < ((w->n + 15) / 16 + V - 1) / V; b++)
            for (long t = 0; t < tiles && !steep; t++)
                fixed_kernels[w->kind][which](w, (const uint32_t *)(packed + t * 2 * padded * R), spans + t * each * R, sums ? sums + t * w->groups * R : NULL,
                                              y + t * rows * w->n, m - t * rows < rows ? m - t * rows : rows, b * V);
    }
    return steep ? UNSUITED : 0;
}
#else
#define FIXED_ROWS 0
INLINE int by_integers(const struct weight *w) { return (void)w, 0; }
#define UNSUITED (-1)
INLINE int fixed_product(const uint16_t *x, uint16_t *y, long m, const struct weight *w)
{
    return (void)x, (void)y, (void)m, (void)w, UNSUITED;
}
#endif
#endif
