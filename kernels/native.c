/* Products of bfloat16 inputs with weights in 2, 4 or 8 bits, on one x86 CPU: y = x W^T. Compiled by kernels/native.py for AVX2, for AVX-512, or for
 * AVX-512 with products of bfloat16 pairs; which, the compiler's flags say. Knows no tensors: sizes and layouts are the caller's to get right.
 *
 * Sixteen outputs are a strip. A strip's codes lie one step after the other; a step is sixteen 32-bit words, one for each output, and a word holds the
 * codes of 16, 8 or 4 consecutive inputs. Codes of 2 and 4 bits: even inputs in its low half, odd ones in its high half, so that a shift of 16-bit lanes
 * brings a pair of neighbours into place and one permutation of a table turns it into two numbers, whatever the table says. Scales lie [strip][group][16].
 *
 * Rows go in tiles of up to ROWS, inputs packed [tile][pair or input][row]. A group is summed with its codes as they are, in float32, and scaled once:
 * y += scale (sum x value + shift sum x). What is unpacked for one tile serves all of its rows.
 */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512BF16__)
#define PAIRS 1 /* inputs that one instruction multiplies, less one */
#else
#define PAIRS 0
#endif
#if defined(__AVX512F__)
#define LANES 16
#define ROWS 12
#else
#define LANES 8
#define ROWS 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef int32_t whole __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

enum kind { TABLE2, TABLE4, INTEGER8, FLOAT8 };

struct weight {
    const uint32_t *codes; /* [strips][groups * steps][16] */
    const void *scale, *shift; /* [strips][groups][16], float32 or bfloat16; shift may be none */
    const float *table; /* [16] values of codes; FLOAT8: [0] what its bits are multiplied with */
    long n, k, groups, steps; /* steps of a group */
    int kind, wide, mantissa; /* wide: scale and shift are float32 */
};

INLINE words bits(vec x) { return (words)x; }
INLINE vec number(words x) { return (vec)x; }

INLINE vec load_numbers(const void *from, long at, int wide)
{
    if (wide) {
        vec x;
        memcpy(&x, (const float *)from + at, sizeof x);
        return x;
    }
    halves h;
    memcpy(&h, (const uint16_t *)from + at, sizeof h);
    return number(__builtin_convertvector(h, words) << 16);
}

/* The value of byte `at` of each word. */
INLINE vec byte_value(words w, int at, const int kind, vec factor, int mantissa)
{
    if (kind == INTEGER8)
        return __builtin_convertvector((whole)(w << (24 - 8 * at)) >> 24, vec);
    words sign = (w << (24 - 8 * at)) & 0x80000000u, rest = ((w >> (8 * at)) & 0x7fu) << (23 - mantissa);
    return number(sign | rest) * factor;
}

#if PAIRS
typedef __m512i table_t; /* 32 bfloat16, the table twice or more */
typedef __m512i weight_t; /* 16 outputs, two inputs each */
typedef uint32_t input_t; /* two bfloat16 */
#define INPUTS(codes) ((codes) / 2)

INLINE table_t read_table(const float *t, const int kind)
{
    uint16_t narrow[32];
    for (int i = 0; i < 32; i++) {
        uint32_t u;
        memcpy(&u, t + (kind == TABLE2 ? i % 4 : i % 16), 4);
        narrow[i] = u >> 16; /* exact: the caller rounds */
    }
    return _mm512_loadu_si512(narrow);
}

INLINE weight_t pick(words w, int i, const int kind, table_t table, vec factor, int mantissa)
{
    if (kind == TABLE2 || kind == TABLE4)
        return _mm512_permutexvar_epi16(_mm512_srli_epi16((__m512i)w, (kind == TABLE2 ? 2 : 4) * i), table);
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

INLINE table_t read_table(const float *t, const int kind)
{
    float all[16];
    for (int i = 0; i < 16; i++)
        all[i] = t[kind == TABLE2 ? i % 4 : i];
    return (vec)_mm512_loadu_ps(all);
}

INLINE vec look_up(words w, table_t table) { return (vec)_mm512_permutexvar_ps((__m512i)w, (__m512)table); }
#else
typedef struct { vec low, high; } table_t;

INLINE table_t read_table(const float *t, const int kind)
{
    float all[16];
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
    return byte_value(w, i, kind, factor, mantissa);
}

INLINE vec dot(vec sum, weight_t w, input_t x) { return sum + w * x; }
#endif

/* Rounds to bfloat16, half to even; NaN stays. */
INLINE void store(uint16_t *y, vec x, long left)
{
    words u = bits(x), even = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, nan = (words)((u & 0x7fffffffu) > 0x7f800000u);
    halves h = __builtin_convertvector((even & ~nan) | (((u >> 16) | 64u) & nan), halves);
    if (left >= LANES)
        memcpy(y, &h, sizeof h);
    else if (left > 0)
        memcpy(y, &h, 2 * left);
}

/* V vectors of outputs from vector `first` on, for the R rows of a tile, of which `rows` are there. */
INLINE void block(const struct weight *w, const input_t *x, const float *sums, uint16_t *y, long rows, long first, const int R, const int V, const int kind)
{
    const int codes = kind == TABLE2 ? 16 : kind == TABLE4 ? 8 : 4, parts = 16 / LANES;
    const long last = (w->n + 15) / 16 * parts - 1, length = w->groups * w->steps * 16;
    const table_t table = read_table(w->table, kind);
    const vec factor = w->table[0] - (vec){0};
    const uint32_t *from[4];
    long scales[4];
    vec total[ROWS][4];
    for (int v = 0; v < V; v++) {
        long at = first + v < last ? first + v : last;
        from[v] = w->codes + at / parts * length + at % parts * LANES;
        scales[v] = at / parts * w->groups * 16 + at % parts * LANES;
        for (int r = 0; r < R; r++)
            total[r][v] = (vec){0};
    }
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
        for (int v = 0; v < V; v++) {
            vec scale = load_numbers(w->scale, scales[v] + g * 16, w->wide);
            if (w->shift) {
                vec shift = load_numbers(w->shift, scales[v] + g * 16, w->wide);
                for (int r = 0; r < R; r++)
                    total[r][v] += scale * (part[r][v] + shift * sums[g * R + r]);
            } else
                for (int r = 0; r < R; r++)
                    total[r][v] += scale * part[r][v];
        }
    }
    for (int r = 0; r < R && r < rows; r++)
        for (int v = 0; v < V && first + v <= last; v++)
            store(y + r * w->n + (first + v) * LANES, total[r][v], w->n - (first + v) * LANES);
}

typedef void kernel(const struct weight *, const input_t *, const float *, uint16_t *, long rows, long first);
#define WIDTH(R) (LANES == 16 ? ((R) <= 4 ? 4 : 2) : ((R) <= 2 ? 4 : 2))
#define KERNEL(NAME, KIND, R)                                                                                                     \
    static void NAME##_##R(const struct weight *w, const input_t *x, const float *sums, uint16_t *y, long rows, long first)      \
    {                                                                                                                             \
        block(w, x, sums, y, rows, first, R, WIDTH(R), KIND);                                                                     \
    }
#if LANES == 16
#define EACH(F) F(1) F(2) F(4) F(6) F(8) F(10) F(11) F(12)
#define ROW(NAME) {NAME##_1, NAME##_2, NAME##_4, NAME##_6, NAME##_8, NAME##_10, NAME##_11, NAME##_12}
static const int sizes[] = {1, 2, 4, 6, 8, 10, 11, 12};
#else
#define EACH(F) F(1) F(2) F(3) F(4)
#define ROW(NAME) {NAME##_1, NAME##_2, NAME##_3, NAME##_4}
static const int sizes[] = {1, 2, 3, 4};
#endif
#define KERNELS(R) KERNEL(table2, TABLE2, R) KERNEL(table4, TABLE4, R) KERNEL(integer8, INTEGER8, R) KERNEL(float8, FLOAT8, R)
EACH(KERNELS)
static kernel *const kernels[][sizeof sizes / sizeof *sizes] = {ROW(table2), ROW(table4), ROW(integer8), ROW(float8)};

static void *room(void **held, size_t *size, size_t wanted)
{
    if (*size < wanted) {
        free(*held);
        *held = aligned_alloc(64, *size = (wanted + 4095) / 4096 * 4096);
    }
    return *held;
}

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

/* x [m, k] -> y [m, n], bfloat16. Returns 0, or 1 where memory lacks. */
int low_bit_product(const uint16_t *x, uint16_t *y, long m, const struct weight *w)
{
    static __thread void *inputs, *totals;
    static __thread size_t inputs_size, totals_size;
    const long size = w->steps * (w->kind == TABLE2 ? 16 : w->kind == TABLE4 ? 8 : 4), padded = w->groups * size;
    const long tiles = (m + ROWS - 1) / ROWS, rows = (m + tiles - 1) / tiles;
    int which = 0;
    while (sizes[which] < rows)
        which++;
    const int R = sizes[which], V = WIDTH(R);
    const long each = INPUTS(padded) * R, vectors = (w->n + 15) / 16 * (16 / LANES), blocks = (vectors + V - 1) / V;
    input_t *packed = room(&inputs, &inputs_size, tiles * each * sizeof *packed);
    float *sums = w->shift ? room(&totals, &totals_size, tiles * w->groups * R * sizeof *sums) : NULL;
    if (!packed || (w->shift && !sums))
        return 1;
    kernel *run = kernels[w->kind][which];
#pragma omp parallel if (m * w->n * padded > 1 << 17)
    {
#pragma omp for schedule(static)
        for (long t = 0; t < tiles; t++)
            pack(x + t * rows * w->k, m - t * rows < rows ? m - t * rows : rows, w, size, R, packed + t * each, sums ? sums + t * w->groups * R : NULL);
#pragma omp for schedule(static)
        for (long b = 0; b < blocks; b++)
            for (long t = 0; t < tiles; t++)
                run(w, packed + t * each, sums ? sums + t * w->groups * R : NULL, y + t * rows * w->n, m - t * rows < rows ? m - t * rows : rows, b * V);
    }
    return 0;
}

#if defined(__AVX512VNNI__)
/* Products of int8 inputs with weights in unsigned bytes, 128 for zero: sum (w + 128) x - 128 sum x, in int32. Weights as above, four inputs a word. */
struct inputs {
    const uint32_t *codes; /* [pack of four][R] */
    const int32_t *less; /* [R] 128 times the sum of a row */
    const float *scale; /* [R], or none: then y is the sums themselves, float32 */
};

/* In assembly, because GCC 12 keeps sums of the intrinsic twice, and most of them in memory. */
INLINE void dot8(__m512i *sum, __m512i code, __m512i x) { __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(code), "v"(x)); }

INLINE void block8(const struct weight *w, const struct inputs *x, void *y, long rows, long first, const int R, const int V)
{
    const long last = (w->n + 15) / 16 - 1, length = w->groups * w->steps * 16;
    const uint32_t *from[4], *in = x->codes;
    __m512i sum[ROWS][4];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            sum[r][v] = _mm512_set1_epi32(-x->less[r]);
    for (int v = 0; v < V; v++)
        from[v] = w->codes + (first + v < last ? first + v : last) * length;
    for (long s = 0; s < w->steps; s++, in += R) {
        __m512i code[4];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            code[v] = _mm512_loadu_si512(from[v] + 16 * s);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++)
                dot8(&sum[r][v], code[v], _mm512_set1_epi32(in[r]));
    }
    vec total[ROWS][4]; /* apart from the sums, which stay in registers as long as no index of theirs varies */
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            total[r][v] = __builtin_convertvector((whole)sum[r][v], vec);
    for (int r = 0; r < R && r < rows; r++)
        for (int v = 0; v < V && first + v <= last; v++) {
            const long n = (first + v) * 16, left = w->n - n < 16 ? w->n - n : 16;
            if (x->scale)
                store((uint16_t *)y + r * w->n + n, total[r][v] * x->scale[r] * load_numbers(w->scale, n, w->wide), left);
            else
                memcpy((float *)y + r * w->n + n, &total[r][v], 4 * left);
        }
}

typedef void kernel8(const struct weight *, const struct inputs *, void *, long rows, long first);
#define KERNEL8(R)                                                                                                  \
    static void integer_##R(const struct weight *w, const struct inputs *x, void *y, long rows, long first)        \
    {                                                                                                               \
        block8(w, x, y, rows, first, R, WIDTH(R));                                                                  \
    }
EACH(KERNEL8)
static kernel8 *const kernels8[] = ROW(integer);

/* Rounds a row of bfloat16 to int8, half to even, with scale `given` or, where that is 0, largest / 127. Gives the scale; NaN for a row with values that are
 * not finite. */
static float round_row(const uint16_t *x, long k, float given, int8_t *codes)
{
    uint16_t peak = 0;
    for (long i = 0; i < k; i++) {
        uint16_t size = x[i] & 0x7fff;
        peak = size > peak ? size : peak;
    }
    uint32_t u = (uint32_t)peak << 16;
    float largest;
    memcpy(&largest, &u, 4);
    if (peak >= 0x7f80) {
        memset(codes, 0, k);
        return __builtin_nanf("");
    }
    const float scale = given != 0 ? given : largest > 0 ? largest / 127.0f : 1.0f;
    for (long i = 0; i < k; i++) {
        u = (uint32_t)x[i] << 16;
        float f;
        memcpy(&f, &u, 4);
        f /= scale;
        f = f > 127.0f ? 127.0f : f < -127.0f ? -127.0f : f;
        codes[i] = (int8_t)__builtin_rintf(f);
    }
    return scale;
}

/* x [m, k] times weights in bytes with one scale a row. integers: x is int8 and y float32 [m, n], the sums; else x and y are bfloat16, x is rounded row by row,
 * and both scales are in y. Returns 0, or 1 where memory lacks. */
int low_bit_int8(const void *x, void *y, long m, const struct weight *w, int integers, float given)
{
    static __thread void *words, *rows8, *numbers;
    static __thread size_t words_size, rows_size, numbers_size;
    const long padded = 4 * w->steps, tiles = (m + ROWS - 1) / ROWS, rows = (m + tiles - 1) / tiles;
    int which = 0;
    while (sizes[which] < rows)
        which++;
    const int R = sizes[which], V = WIDTH(R);
    const long strips = (w->n + 15) / 16, blocks = (strips + V - 1) / V;
    uint32_t *packed = room(&words, &words_size, tiles * w->steps * R * sizeof *packed);
    int8_t *codes = room(&rows8, &rows_size, m * padded);
    float *scale = room(&numbers, &numbers_size, tiles * R * (sizeof *scale + sizeof(int32_t)));
    if (!packed || !codes || !scale)
        return 1;
    int32_t *less = (int32_t *)(scale + tiles * R);
    kernel8 *run = kernels8[which];
#pragma omp parallel if (m * w->n * padded > 1 << 17)
    {
#pragma omp for schedule(static)
        for (long at = 0; at < tiles * R; at++) {
            const long t = at / R, r = at % R, row = t * rows + r;
            const int there = r < rows && row < m;
            int8_t *own = codes + (there ? row : 0) * padded;
            int32_t sum = 0;
            if (there) {
                memset(own + w->k, 0, padded - w->k);
                if (integers)
                    memcpy(own, (const int8_t *)x + row * w->k, w->k);
                else
                    scale[at] = round_row((const uint16_t *)x + row * w->k, w->k, given, own);
                for (long i = 0; i < w->k; i++)
                    sum += own[i];
            }
            less[at] = 128 * sum;
            for (long s = 0; s < w->steps; s++) {
                uint32_t four = 0;
                if (there)
                    memcpy(&four, own + 4 * s, 4);
                packed[(t * w->steps + s) * R + r] = four;
            }
        }
#pragma omp for schedule(static)
        for (long b = 0; b < blocks; b++)
            for (long t = 0; t < tiles; t++) {
                const struct inputs in = {packed + t * w->steps * R, less + t * R, integers ? NULL : scale + t * R};
                void *out = integers ? (void *)((float *)y + t * rows * w->n) : (void *)((uint16_t *)y + t * rows * w->n);
                run(w, &in, out, m - t * rows < rows ? m - t * rows : rows, b * V);
            }
    }
    return 0;
}
#endif
