/* Products of int8 inputs with int8 weights, on a CPU that adds four products of bytes in 32 bits; see native.c for strips, words and tiles. Empty on others. */
#include "native.h"

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
