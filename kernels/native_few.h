/* Few rows on AVX2 times codes of 2 or 4 bits whose values are numbers in bfloat16. A shuffle of bytes finds the low or the high byte of 32 values at once,
 * where a permutation of a table in float32 finds 8, and what is found serves all rows of a tile. Two inputs of an output come to lie side by side: inputs are
 * packed [pair][row][2], and the two sums of an output are added at the very end.
 */
#ifndef NATIVE_FEW_H
#define NATIVE_FEW_H
#include "native_codes.h"

#define STRIPS 2 /* that a call multiplies, of two vectors each */
#define TOGETHER(R) ((R) == 1 ? 4 : (R) == 2 ? 2 : 1) /* vectors at once, whose sums stay in registers with those rows */

typedef struct { __m256i low, high; } bytes_t; /* of a table of 16 values, twice */

/* Whether the codes of a weight find their values so. */
INLINE int by_bytes(const struct weight *w)
{
    uint32_t rest = 0;
    for (int i = 0; i < 16; i++)
        rest |= as_bits(w->table[i]) & 0xffffu;
    return !rest && (w->kind == TABLE2 || w->kind == TABLE4);
}

INLINE bytes_t read_bytes(const float *table)
{
    uint8_t low[32], high[32];
    for (int i = 0; i < 32; i++) {
        low[i] = as_bits(table[i % 16]) >> 16;
        high[i] = as_bits(table[i % 16]) >> 24;
    }
    return (bytes_t){_mm256_loadu_si256((const __m256i *)low), _mm256_loadu_si256((const __m256i *)high)};
}

/* part [R][2] += a step of codes of eight outputs times the inputs that they meet: outputs 0, 1, 4 and 5, and 2, 3, 6 and 7. */
INLINE void multiply(vec part[][2], words codes, bytes_t table, const float *x, const int R, const int kind)
{
    const int bits = bits_of(kind), half = step_codes(kind) / 2;
#pragma GCC unroll 4
    for (int c = 0; c < 8 / bits; c++, x += 2 * R) {
        const __m256i code = (__m256i)((codes >> (bits * c)) & (0x01010101u * ((1 << bits) - 1)));
        const __m256i low = _mm256_shuffle_epi8(table.low, code), high = _mm256_shuffle_epi8(table.high, code);
        const words two[] = {(words)_mm256_unpacklo_epi8(low, high), (words)_mm256_unpackhi_epi8(low, high)};
#pragma GCC unroll 2
        for (int far = 0; far < 2; far++) { /* a word has the code of a pair of inputs in its low half and of another, half a step on, in its high one */
            const vec value[] = {number(far ? two[0] & 0xffff0000u : two[0] << 16), number(far ? two[1] & 0xffff0000u : two[1] << 16)};
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const vec pair = (vec)_mm256_broadcast_sd((const double *)(x + far * half * R + 2 * r));
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++)
                    if (R > 2) /* in assembly, because GCC 12 moves so many sums between registers, and some of them to memory */
                        __asm__("vfmadd231ps %2, %1, %0" : "+x"(part[r][i]) : "x"(value[i]), "x"(pair));
                    else
                        part[r][i] += value[i] * pair;
            }
        }
    }
}

/* total [V][R][2] += V vectors of outputs times the inputs of group g. from, at: where the codes and the scales of their first groups lie. */
INLINE void add_group(vec total[][ROWS][2], const struct weight *w, long g, const uint32_t *const *from, const long *at, bytes_t table, const float *x,
                      const float *sums, const int R, const int V, const int kind)
{
    vec part[4][ROWS][2];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
        const __m256 none = _mm256_setzero_ps(), shift = w->shift ? (__m256)load_numbers(w->shift, at[v] + 16 * g, w->wide) : none;
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) { /* of the two sums of an output the first takes the shift */
            part[v][r][0] = w->shift ? (vec)_mm256_unpacklo_ps(shift, none) * sums[g * R + r] : (vec)none;
            part[v][r][1] = w->shift ? (vec)_mm256_unpackhi_ps(shift, none) * sums[g * R + r] : (vec)none;
        }
    }
    for (long s = g * w->steps; s < (g + 1) * w->steps; s++, x += step_codes(kind) * R)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            words codes;
            memcpy(&codes, from[v] + 16 * s, sizeof codes);
            if (R > 1)
                __asm__("" : "+r"(x)); /* else GCC 12 keeps the inputs for the next vector, and sums in memory */
            multiply(part[v], codes, table, x, R, kind);
        }
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
        const __m256 scale = (__m256)load_numbers(w->scale, at[v] + 16 * g, w->wide);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            total[v][r][0] += (vec)_mm256_unpacklo_ps(scale, scale) * part[v][r][0];
            total[v][r][1] += (vec)_mm256_unpackhi_ps(scale, scale) * part[v][r][1];
        }
    }
}

/* As `block` of native.c, for STRIPS strips. */
INLINE void few_rows(const struct weight *w, const float *x, const float *sums, const float *by_row, uint16_t *y, long rows, long first, const int R,
                     const int kind)
{
    const long last = (w->n + 15) / 16 * 2 - 1, length = w->groups * w->steps * 16;
    const bytes_t table = read_bytes(w->table);
    const uint32_t *from[2 * STRIPS];
    long scales[2 * STRIPS];
    vec total[2 * STRIPS][ROWS][2] = {{{{0}}}};
    for (int v = 0; v < 2 * STRIPS; v++) {
        const long at = first + v < last ? first + v : last;
        from[v] = w->codes + at / 2 * length + at % 2 * 8;
        scales[v] = at / 2 * w->groups * 16 + at % 2 * 8;
    }
    for (long g = 0; g < w->groups; g++, x += w->steps * step_codes(kind) * R)
        for (int v = 0; v < 2 * STRIPS; v += TOGETHER(R))
            add_group(total + v, w, g, from + v, scales + v, table, x, sums, R, TOGETHER(R), kind);
    for (int r = 0; r < R && r < rows; r++)
        for (int v = 0; v < 2 * STRIPS && first + v <= last; v++) {
            const vec sum = (vec)_mm256_hadd_ps((__m256)total[v][r][0], (__m256)total[v][r][1]);
            store(y + r * w->n + (first + v) * 8, by_row ? sum * by_row[r] : sum, w->n - (first + v) * 8);
        }
}
#endif
