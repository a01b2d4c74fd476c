/* What the sources of kernels/native.py share: vectors, weights, how inputs are rounded, rows a tile, scales in and results out. Which CPU it is for, flags
 * say. */
#ifndef NATIVE_H
#define NATIVE_H
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512BF16__)
#define PAIRS 1 /* inputs that one instruction multiplies, less one */
#else
#define PAIRS 0
#endif
#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define TILES 1 /* which multiply all but few rows: see native_tiles.h */
#else
#define TILES 0
#endif
#if defined(__AVX512F__)
#define LANES 16
#define ROWS (TILES ? 4 : 12)
#else
#define LANES 8
#define ROWS 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef int32_t whole __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

enum kind { TABLE2, TABLE3, TABLE4, INTEGER5, INTEGER6, FLOAT6, INTEGER8, FLOAT8 };

struct weight {
    const uint32_t *codes; /* [strips][groups * steps][16] */
    const void *scale, *shift; /* [strips][groups][16], float32 or bfloat16; shift may be none */
    const float *table; /* [16] values of codes; of floats [0] what their bits are multiplied with */
    long n, k, groups, steps; /* steps of a group */
    int kind, wide, mantissa; /* wide: scale and shift are float32 */
};

/* How inputs are rounded: kernels/op.py's Activation in numbers. A scale is a part's largest magnitude over the kind's largest number (OWN), that of all rows
 * (ALL), `given` (GIVEN), a power of two (POWER), or an E4M3 number times `given` (E4M3). */
enum per { OWN, ALL, GIVEN, POWER, E4M3 };
enum form { CODES, ELEMENTS, VALUES }; /* bytes; numbers of the grid, bfloat16; those times their scale, as wide as the caller says */

struct rounding {
    long part; /* inputs that share a scale, of all rows with ALL */
    float largest, least, given, factor; /* of the kind: its largest number and its smallest power of two that is no subnormal; see `scale_of` */
    int per, form, mantissa; /* mantissa: bits of it, -1 for int8 */
};

/* What a thread keeps memory for; see native_room.c. */
enum place { INPUT, WORK, TOTALS, BY_ROW, PACKED8, CODES8, SCALES8, COLUMNS8, KEPT8, REST8, LINE, PARTS, SPANS, SPANS8, PLACES };
void *room(enum place place, size_t wanted);

int round_rows(const void *x, int wide, long m, long k, const struct rounding *r, void *to, int wide_to, float *scale);
float largest_of(const void *x, int wide, long count, const struct rounding *r);
void round_row(const void *x, int wide, long k, const struct rounding *r, float all, void *to, int wide_to, float *scale);

INLINE float as_float(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

INLINE uint32_t as_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* Number i of bfloat16 or float32 ones. */
INLINE float number_at(const void *x, long i, const int wide) { return wide ? ((const float *)x)[i] : as_float((uint32_t)((const uint16_t *)x)[i] << 16); }

INLINE uint16_t narrow(float f)
{
    const uint32_t u = as_bits(f);
    return (u & 0x7fffffffu) > 0x7f800000u ? u >> 16 | 64u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}

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

#define WIDTH(R) (LANES == 16 ? ((R) <= 4 ? 4 : 2) : ((R) <= 2 ? 4 : 2))
#if TILES
#define EACH(F) F(1) F(2) F(4)
#define ROW(NAME) {NAME##_1, NAME##_2, NAME##_4}
static const int sizes[] = {1, 2, 4};
#elif LANES == 16
#define EACH(F) F(1) F(2) F(4) F(6) F(8) F(10) F(11) F(12)
#define ROW(NAME) {NAME##_1, NAME##_2, NAME##_4, NAME##_6, NAME##_8, NAME##_10, NAME##_11, NAME##_12}
static const int sizes[] = {1, 2, 4, 6, 8, 10, 11, 12};
#else
#define EACH(F) F(1) F(2) F(3) F(4)
#define ROW(NAME) {NAME##_1, NAME##_2, NAME##_3, NAME##_4}
static const int sizes[] = {1, 2, 3, 4};
#endif
#endif
