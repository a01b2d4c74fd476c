/* x -> (x * signs) (I x H_p x H_q) / sqrt(p q) on runs of p q channels, H_q Sylvester's matrix of a power of two and H_p any of +-1: kernels/hadamard.py. A row
 * stays in the first cache; along q it is added and subtracted stage by stage, log2 q of them, the first ones within a vector; along p it is a product. */
#include "native.h"

struct turn {
    const int8_t *signs, *left; /* [k], [p, p] of +-1; left may be none where p is 1 */
    long k, p, q;
    float factor;
};

#if LANES == 16
#define LIST(F) {F(0), F(1), F(2), F(3), F(4), F(5), F(6), F(7), F(8), F(9), F(10), F(11), F(12), F(13), F(14), F(15)}
#else
#define LIST(F) {F(0), F(1), F(2), F(3), F(4), F(5), F(6), F(7)}
#endif

INLINE vec at(const float *x)
{
    vec v;
    memcpy(&v, x, sizeof v);
    return v;
}

INLINE void put(float *x, vec v) { memcpy(x, &v, sizeof v); }

/* One stage within a vector: lanes h apart become their sum and their difference. */
INLINE vec stage(vec v, const int h)
{
#define PARTNER(i) ((i) ^ h)
#define SIGN(i) ((i) & h ? -1.0f : 1.0f)
    const whole partner = LIST(PARTNER);
    const vec sign = LIST(SIGN);
    return __builtin_shuffle(v, partner) + sign * v;
}

/* n numbers, a power of two, times Sylvester's matrix, in place. */
static void walsh(float *x, long n)
{
    long h = 1;
    if (n >= LANES) {
        for (long i = 0; i < n; i += LANES) {
            vec v = stage(stage(stage(at(x + i), 1), 2), 4);
#if LANES == 16
            v = stage(v, 8);
#endif
            put(x + i, v);
        }
        for (h = LANES; 4 * h <= n; h *= 4) /* two stages at once */
            for (long start = 0; start < n; start += 4 * h)
                for (long i = start; i < start + h; i += LANES) {
                    const vec a = at(x + i), b = at(x + i + h), c = at(x + i + 2 * h), d = at(x + i + 3 * h);
                    const vec ab = a + b, less = a - b, cd = c + d, fewer = c - d;
                    put(x + i, ab + cd);
                    put(x + i + h, less + fewer);
                    put(x + i + 2 * h, ab - cd);
                    put(x + i + 3 * h, less - fewer);
                }
    }
    for (; h < n; h *= 2)
        for (long start = 0; start < n; start += 2 * h)
            for (long i = start; i < start + h; i++) {
                const float a = x[i], b = x[i + h];
                x[i] = a + b;
                x[i + h] = a - b;
            }
}

/* J rows of left^T x, from row `first` on: x and y [p, q]. */
INLINE void mix(const float *x, float *y, const float *left, long p, long q, long first, const int J)
{
    long c = 0;
    for (; c + LANES <= q; c += LANES) {
        vec sum[4];
#pragma GCC unroll 4
        for (int j = 0; j < J; j++)
            sum[j] = (vec){0};
        for (long a = 0; a < p; a++) {
            const vec v = at(x + a * q + c);
#pragma GCC unroll 4
            for (int j = 0; j < J; j++)
                sum[j] += left[a * p + first + j] * v;
        }
#pragma GCC unroll 4
        for (int j = 0; j < J; j++)
            put(y + (first + j) * q + c, sum[j]);
    }
    for (; c < q; c++)
        for (int j = 0; j < J; j++) {
            float sum = 0;
            for (long a = 0; a < p; a++)
                sum += left[a * p + first + j] * x[a * q + c];
            y[(first + j) * q + c] = sum;
        }
}

static void turn_row(const void *x, int wide, const struct turn *t, const float *left, float *row, float *other)
{
    if (wide)
        for (long i = 0; i < t->k; i++)
            row[i] = number_at(x, i, 1) * t->signs[i];
    else
        for (long i = 0; i < t->k; i++)
            row[i] = number_at(x, i, 0) * t->signs[i];
    for (long start = 0; start < t->k; start += t->p * t->q) {
        float *run = row + start;
        for (long a = 0; a < t->p; a++)
            walsh(run + a * t->q, t->q);
        if (t->p == 1)
            continue;
        long first = 0;
        for (; first + 4 <= t->p; first += 4)
            mix(run, other, left, t->p, t->q, first, 4);
        for (; first < t->p; first++)
            mix(run, other, left, t->p, t->q, first, 1);
        memcpy(run, other, t->p * t->q * sizeof *run);
    }
    for (long i = 0; i < t->k; i++)
        row[i] *= t->factor;
}

/* x [m, k] -> y [m, k], float32 or bfloat16 both; with r instead codes and scale [m], rounded from float32. Returns 0, or 1 where memory lacks. */
int turn_rows(const void *x, int wide, long m, const struct turn *t, void *y, const struct rounding *r, float *scale)
{
    const long lines = (t->k + 15) / 16 * 16, run = (t->p * t->q + 15) / 16 * 16;
    int lacking = 0;
#pragma omp parallel if (m > 1 && m * t->k > 1 << 15) reduction(| : lacking)
    {
        float *row = room(LINE, (lines + run + t->p * t->p) * sizeof *row), *left = row + lines + run;
        lacking = !row;
        for (long i = 0; row && t->p > 1 && i < t->p * t->p; i++)
            left[i] = t->left[i];
#pragma omp for schedule(static)
        for (long i = 0; i < m; i++) {
            if (!row)
                continue;
            turn_row((const char *)x + i * t->k * (wide ? 4 : 2), wide, t, left, row, row + lines);
            if (r)
                round_row(row, 1, t->k, r, 0, (uint8_t *)y + i * t->k, 0, scale + i);
            else if (wide)
                memcpy((float *)y + i * t->k, row, t->k * sizeof *row);
            else
                for (long j = 0; j < t->k; j++)
                    ((uint16_t *)y)[i * t->k + j] = narrow(row[j]);
        }
    }
    return lacking;
}
