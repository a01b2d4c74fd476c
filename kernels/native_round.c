/* Inputs rounded to int8, to small floats and to block floats, bit by bit as kernels/op.py defines it. Loops over single numbers, which the compiler turns into
 * vectors: every branch inside is a choice between two values. See native.h for what `struct rounding` says. */
#include "native.h"

/* v rounded to a grid, half to even; beyond its ends to those, NaN stays. Adding 1.5 * 2^23 steps leaves no bits below one step. */
INLINE float nearest(float v, const float largest, const uint32_t least, const int mantissa)
{
    v = v > largest ? largest : v < -largest ? -largest : v;
    const uint32_t u = as_bits(v), power = (u & 0x7f800000u) > least ? u & 0x7f800000u : least;
    const float up = as_float((power + ((uint32_t)(23 - mantissa) << 23)) | 0x00400000u), even = (v + up) - up;
    return as_float(as_bits(even) | (u & 0x80000000u)); /* a zero keeps its sign */
}

/* The byte of a number of a float in 8 bits: 2^(1 - bias) is its smallest power of two that is no subnormal. */
INLINE uint8_t byte_of(float v, const uint32_t least, const float steps, const int mantissa)
{
    const uint32_t u = as_bits(v), size = u & 0x7fffffffu, one = (least >> (23 - mantissa)) - (1u << mantissa);
    const uint32_t low = (uint32_t)(int32_t)(as_float(size < least ? size : 0) * steps), code = size < least ? low : (size >> (23 - mantissa)) - one;
    return (u >> 31 << 7) | (size > 0x7f800000u ? 127 : code);
}

INLINE int8_t integer_of(float v)
{
    v = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v;
    return (int8_t)(int32_t)__builtin_rintf(v == v ? v : 0.0f);
}

/* The largest magnitude, as bits: those of numbers without a sign are in their order, NaN above all. */
INLINE uint32_t peak(const void *x, long from, long n, const int wide)
{
    uint32_t most = 0;
    for (long i = from; i < from + n; i++) {
        const uint32_t u = as_bits(number_at(x, i, wide)) & 0x7fffffffu;
        most = u > most ? u : most;
    }
    return most;
}

/* What a part is divided by, and in *times what its numbers are multiplied with: the scale, for E4M3 over `factor`. all: the scale of all rows with ALL. */
INLINE float scale_of(uint32_t most, const struct rounding *r, const int per, float all, float *times)
{
    const float size = as_float(most), broken = size - size; /* NaN where it is no number, else 0 */
    float scale = all;
    if (per == OWN)
        scale = most ? size / r->largest : 1.0f;
    else if (per == GIVEN)
        scale = r->given + broken;
    else if (per == POWER) {
        scale = as_float(most & 0x7f800000u) * r->factor; /* infinite where it is no number */
        scale = scale < 0x1p-127f ? 0x1p-127f : scale;
    } else if (per == E4M3) {
        scale = nearest(size / r->largest / r->given, 448.0f, as_bits(0x1p-6f), 3) * r->given + broken;
        *times = scale / r->factor;
        return scale < 0x1p-126f ? 0x1p-126f : scale;
    }
    *times = scale;
    return scale;
}

#define TOGETHER 64 /* parts whose scales are found at once, in vectors */

INLINE void row(const void *restrict x, const int wide, long k, const struct rounding *r, const int per, const int form, const int integer, const long part, float all,
                void *restrict to, const int wide_to, float *scale)
{
    const float largest = r->largest, steps = as_float(as_bits(1 / r->least) + ((uint32_t)(r->mantissa > 0 ? r->mantissa : 0) << 23));
    const uint32_t least = as_bits(r->least);
    const int mantissa = r->mantissa;
    for (long first = 0; first * part < k; first += TOGETHER) {
        const long parts = (k + part - 1) / part - first, count = parts < TOGETHER ? parts : TOGETHER;
        uint32_t most[TOGETHER];
        float by[TOGETHER], times[TOGETHER];
        for (long p = 0; p < count; p++) {
            const long from = (first + p) * part;
            most[p] = per == ALL ? 0 : peak(x, from, from + part < k ? part : k - from, wide);
        }
        for (long p = 0; p < count; p++)
            by[p] = scale_of(most[p], r, per, all, &times[p]);
        if (scale)
            memcpy(scale + first, times, count * sizeof *scale);
        for (long p = 0; p < count; p++) {
            const long from = (first + p) * part, end = from + part < k ? from + part : k;
            const float divisor = by[p], inverse = 1 / divisor, factor = times[p];
            for (long i = from; i < end; i++) {
                const float v = per == POWER ? number_at(x, i, wide) * inverse : number_at(x, i, wide) / divisor;
                if (form == CODES && integer) {
                    ((int8_t *)to)[i] = integer_of(v);
                    continue;
                }
                const float number = nearest(v, largest, least, mantissa), value = form == VALUES ? number * factor : number;
                if (form == CODES)
                    ((uint8_t *)to)[i] = byte_of(number, least, steps, mantissa);
                else if (wide_to)
                    ((float *)to)[i] = value;
                else
                    ((uint16_t *)to)[i] = narrow(value);
            }
        }
    }
}

/* A row of k inputs. to: codes, or numbers in float32 or bfloat16; scale: of each part, or none. */
void round_row(const void *x, int wide, long k, const struct rounding *r, float all, void *to, int wide_to, float *scale)
{
#define AS(WIDE, PER, FORM, INTEGER, PART, WIDE_TO) row(x, WIDE, k, r, PER, FORM, INTEGER, PART, all, to, WIDE_TO, scale)
#define BY_WIDTH(PER, FORM, INTEGER, PART, WIDE_TO)                                                                                                           \
    do {                                                                                                                                                      \
        if (wide)                                                                                                                                             \
            AS(1, PER, FORM, INTEGER, PART, WIDE_TO);                                                                                                         \
        else                                                                                                                                                  \
            AS(0, PER, FORM, INTEGER, PART, WIDE_TO);                                                                                                         \
    } while (0)
#define BY_FORM(PER)                                                                                                                                          \
    do {                                                                                                                                                      \
        if (r->form == CODES && r->mantissa < 0)                                                                                                              \
            BY_WIDTH(PER, CODES, 1, r->part, 0);                                                                                                              \
        else if (r->form == CODES)                                                                                                                            \
            BY_WIDTH(PER, CODES, 0, r->part, 0);                                                                                                              \
        else if (r->form == ELEMENTS)                                                                                                                         \
            BY_WIDTH(PER, ELEMENTS, 0, r->part, 0);                                                                                                           \
        else if (wide_to)                                                                                                                                     \
            BY_WIDTH(PER, VALUES, 0, r->part, 1);                                                                                                             \
        else                                                                                                                                                  \
            BY_WIDTH(PER, VALUES, 0, r->part, 0);                                                                                                             \
    } while (0)
    if (r->per == POWER && wide_to)
        BY_WIDTH(POWER, VALUES, 0, 32, 1);
    else if (r->per == POWER)
        BY_WIDTH(POWER, VALUES, 0, 32, 0);
    else if (r->per == E4M3 && wide_to)
        BY_WIDTH(E4M3, VALUES, 0, 16, 1);
    else if (r->per == E4M3)
        BY_WIDTH(E4M3, VALUES, 0, 16, 0);
    else if (r->per == OWN)
        BY_FORM(OWN);
    else if (r->per == GIVEN)
        BY_FORM(GIVEN);
    else
        BY_FORM(ALL);
}

/* The one scale of `count` inputs. */
float largest_of(const void *x, int wide, long count, const struct rounding *r)
{
    uint32_t most = 0;
    const long piece = 4096;
#pragma omp parallel for schedule(static) reduction(max : most) if (count > 1 << 16)
    for (long from = 0; from < count; from += piece) {
        const long n = count - from < piece ? count - from : piece;
        const uint32_t here = wide ? peak(x, from, n, 1) : peak(x, from, n, 0);
        most = here > most ? here : most;
    }
    float times;
    return scale_of(most, r, OWN, 0, &times);
}

/* x [m, k] rounded row by row; scale [m, parts of a row], with ALL one number, may be none. */
int round_rows(const void *x, int wide, long m, long k, const struct rounding *r, void *to, int wide_to, float *scale)
{
    const float all = r->per == ALL ? largest_of(x, wide, m * k, r) : 0;
    const long bytes = r->form == CODES ? 1 : wide_to ? 4 : 2, parts = (k + r->part - 1) / r->part;
    if (r->per == ALL && scale)
        *scale = all;
#pragma omp parallel for schedule(static) if (m * k > 1 << 15)
    for (long i = 0; i < m; i++)
        round_row((const char *)x + i * k * (wide ? 4 : 2), wide, k, r, all, (char *)to + i * k * bytes, wide_to, scale && r->per != ALL ? scale + i * parts : NULL);
    return 0;
}
