/* Products of bfloat16 inputs with bfloat16 weights where no CPU instruction multiplies these, y = x W^T + b: what 16 bits cost when they are read as fast as low
 * ones. Weights lie as torch keeps them, [n, k]; a vector of them is LANES words of two numbers, the even one in the low half, and a shift and a mask make both
 * float32. Inputs are float32, those of a vector of weights in two vectors, evens and odds. Sums are float32, in lanes that are added at the end.
 */
#include "native_cache.h"

#define STEP (2 * LANES) /* weights in a vector */
#define LONG 4096 /* weights of an output from which one row of inputs is read as fast without asking for the next outputs' weights */
#define TALL (LANES == 16 ? 6 : 4) /* rows of inputs at once */
#define BROAD(R) (LANES == 16 ? ((R) <= 2 ? 8 : 4) : (R) == 1 ? 8 : (R) == 2 ? 4 : 3) /* outputs at once, whose sums stay in registers with those rows */

/* Inputs [rows, k] -> [steps][R][2][LANES], zero beyond k and `rows`. */
static void pack(const uint16_t *x, long rows, long k, int R, float *to)
{
    for (long s = 0; s < k; s += STEP)
        for (int r = 0; r < R; r++, to += STEP)
            for (long i = 0; i < STEP; i++)
                to[i % 2 * LANES + i / 2] = r < rows && s + i < k ? number_at(x, r * k + s + i, 0) : 0;
}

/* sum + the products of one vector of weights with R rows. */
INLINE void add(vec *sum, words two, const float *x, const int R)
{
    const vec even = number(two << 16), odd = number(two & 0xffff0000u);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        sum[r] += even * at(x + r * STEP);
        sum[r] += odd * at(x + r * STEP + LANES);
    }
}

/* V outputs from `first` on for R rows, of which `rows` are there. */
INLINE void outputs(const float *x, const uint16_t *w, const uint16_t *bias, uint16_t *y, long rows, long first, long n, long k, const int R, const int V)
{
    const uint16_t *from[8];
    vec sum[8][TALL];
    words two = {0};
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
        from[v] = w + (first + v < n ? first + v : n - 1) * k;
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            sum[v][r] = (vec){0};
    }
    long s = 0;
    for (; s + STEP <= k; s += STEP, x += R * STEP)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            memcpy(&two, from[v] + s, sizeof two);
            if (R > 1 || k < LONG)
                __builtin_prefetch(from[v] + V * k + s, 0, 3);
            add(sum[v], two, x, R);
        }
    if (s < k)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            two = (words){0};
            memcpy(&two, from[v] + s, (k - s) * sizeof *w);
            add(sum[v], two, x, R);
        }
    float total[8][TALL]; /* apart from the sums, which stay in registers as long as no index of theirs varies */
#pragma GCC unroll 8
    for (int v = 0; v < V; v++)
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            total[v][r] = sum_of(sum[v][r]);
    for (int v = 0; v < V && first + v < n; v++)
        for (int r = 0; r < R && r < rows; r++)
            y[r * n + first + v] = narrow(total[v][r] + (bias ? number_at(bias, first + v, 0) : 0));
}

typedef void kernel(const float *x, const uint16_t *w, const uint16_t *bias, uint16_t *y, long rows, long first, long n, long k);
#define KERNEL(R)                                                                                                                                             \
    static void outputs_##R(const float *x, const uint16_t *w, const uint16_t *bias, uint16_t *y, long rows, long first, long n, long k)                       \
    {                                                                                                                                                         \
        outputs(x, w, bias, y, rows, first, n, k, R, BROAD(R));                                                                                               \
    }
KERNEL(1) KERNEL(2) KERNEL(3) KERNEL(4)
#if LANES == 16
KERNEL(5) KERNEL(6)
static kernel *const kernels[] = {outputs_1, outputs_2, outputs_3, outputs_4, outputs_5, outputs_6};
#else
static kernel *const kernels[] = {outputs_1, outputs_2, outputs_3, outputs_4};
#endif

/* x [m, k], w [n, k], bias [n] or none -> y [m, n], all bfloat16. Returns 0, or 1 where memory lacks. */
int product16(const uint16_t *x, const uint16_t *w, const uint16_t *bias, uint16_t *y, long m, long n, long k)
{
    if (m == 0)
        return 0;
    const long tiles = (m + TALL - 1) / TALL, rows = (m + tiles - 1) / tiles, each = (k + STEP - 1) / STEP * STEP * rows;
    const int V = BROAD(rows);
    float *packed = room(INPUT, tiles * each * sizeof *packed);
    if (!packed)
        return 1;
#pragma omp parallel if (m * n * k > 1 << 17)
    {
#pragma omp for schedule(static)
        for (long t = 0; t < tiles; t++)
            pack(x + t * rows * k, m - t * rows < rows ? m - t * rows : rows, k, rows, packed + t * each);
#pragma omp for schedule(static)
        for (long b = 0; b < (n + V - 1) / V; b++)
            for (long t = 0; t < tiles; t++)
                kernels[rows - 1](packed + t * each, w, bias, y + t * rows * n, m - t * rows < rows ? m - t * rows : rows, b * V, n, k);
    }
    return 0;
}
