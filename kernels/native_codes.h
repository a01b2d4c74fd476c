/* Codes of kernels/native.c: a step of them read, each in its place, and the number that it stands for. Strips, steps and words are drawn there. */
#ifndef NATIVE_CODES_H
#define NATIVE_CODES_H
#include "native.h"

/* A step of codes for as many outputs as a vector has lanes. */
typedef struct { words word[3]; } codes_t;

INLINE int is_float(const int kind) { return kind == FLOAT6 || kind == FLOAT8; }
INLINE int bits_of(const int kind) { return (const int[]){2, 3, 4, 5, 6, 6, 8, 8}[kind]; }
INLINE int step_codes(const int kind) { return kind == TABLE4 ? 8 : bits_of(kind) == 8 ? 4 : 16; }
INLINE int step_words(const int kind) { return bits_of(kind) * step_codes(kind) / 2; } /* of a strip */

/* from: a vector's words of a step; bytes: where 3 or 5 bits have them, two an output. */
INLINE codes_t read_codes(const uint32_t *from, const uint16_t *bytes, const int kind)
{
    const int whole_words = step_words(kind) / 16;
    codes_t codes;
#pragma GCC unroll 3
    for (int i = 0; i < whole_words; i++)
        memcpy(&codes.word[i], from + 16 * i, sizeof codes.word[i]);
    if (step_words(kind) % 16) {
#if PAIRS
        codes.word[whole_words] = (words)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)bytes));
#else
        halves two;
        memcpy(&two, bytes, sizeof two);
        const words wide = __builtin_convertvector(two, words);
        codes.word[whole_words] = (wide & 255u) | (wide & 0xff00u) << 8;
#endif
    }
    return codes;
}

/* The lowest bits of `low`, others of `high`. */
INLINE words joined(words low, words high, const int bits)
{
    const uint32_t mask = ((1u << bits) - 1) * 0x10001u;
#if LANES == 16
    return (words)_mm512_ternarylogic_epi32(_mm512_set1_epi32(mask), (__m512i)low, (__m512i)high, 0xCA);
#else
    return (low & mask) | (high & ~mask);
#endif
}

/* Half `odd` of each word, both with PAIRS, moved right. */
INLINE words moved(words w, int by, int odd)
{
#if PAIRS
    (void)odd;
    return by ? (words)_mm512_srli_epi16((__m512i)w, by) : w;
#else
    return w >> (by + 16 * odd);
#endif
}

/* Code i of halves `odd`, in the lowest bits; what lies above is any. Codes 0 to 7 as letters a to h, the lowest bit to the right, as PLACES of
 * kernels/native.py has them:
 *   3 bits  word h eee ddd ccc bbb aaa, byte hh ggg fff
 *   5 bits  words h ccccc bbbbb aaaaa, h fffff eeeee ddddd, byte hhh ggggg
 *   6 bits  words gggg bbbbbb aaaaaa, hhhh dddddd cccccc, hh gg ffffff eeeeee
 */
INLINE words place(codes_t codes, int i, int odd, const int kind)
{
    const words *w = codes.word;
    const int bits = bits_of(kind), each = 16 / bits;
    if (kind == TABLE3 && i == 7)
        return joined(moved(w[0], 15, odd), moved(w[1], 5, odd), 1);
    if (kind == INTEGER5 && i == 7)
        return joined(moved(w[0], 15, odd), joined(moved(w[1], 14, odd), moved(w[2], 3, odd), 2), 1);
    if (bits == 6 && i >= 6)
        return joined(moved(w[i - 6], 12, odd), moved(w[2], 2 * i - 4, odd), 4);
    return moved(w[i / each], i % each * bits, odd);
}

/* The value of the code of some bits that lies from bit `at` of each word on. */
INLINE vec value_at(words w, int at, const int bits, const int kind, vec factor, int mantissa)
{
    if (!is_float(kind))
        return __builtin_convertvector((whole)(w << (32 - bits - at)) >> (32 - bits), vec);
    const whole high = (whole)(w << (32 - bits - at)) >> (9 - bits + mantissa); /* the sign stays in its place, and fills what the mask takes away */
    return number((words)high & (0x80000000u | ((1u << (bits - 1)) - 1) << (23 - mantissa))) * factor;
}

#if PAIRS
typedef struct { __m512i part[4]; } table_t; /* 32 bfloat16 each: the table twice or more, of a small float in a byte 128 magnitudes */
typedef __m512i weight_t; /* 16 outputs, two inputs each */
typedef uint32_t input_t; /* two bfloat16 */
#define INPUTS(codes) ((codes) / 2)

/* The value of a code; of a small float in a byte without its sign. */
INLINE float entry(const float *t, int code, const int kind, int mantissa)
{
    const int half = 1 << (bits_of(kind) - 1);
    if (kind == INTEGER5 || kind == INTEGER6)
        return (code ^ half) - half;
    if (kind == FLOAT6)
        return as_float((uint32_t)(code & half) << 26 | (uint32_t)(code % half) << (23 - mantissa)) * t[0];
    return kind == FLOAT8 ? as_float((uint32_t)code << (23 - mantissa)) * t[0] : t[code % (2 * half)];
}

INLINE table_t read_table(const float *t, const int kind, int mantissa)
{
    const int parts = kind == FLOAT8 ? 4 : kind == TABLE3 ? 3 : bits_of(kind) == 6 ? 2 : 1;
    uint16_t narrow[128];
    table_t table;
    for (int i = 0; i < 32 * parts; i++) { /* cut off exactly: the caller rounds */
        const int code = kind == TABLE3 && i >= 32 ? (i - 32) >> 3 : i;
        narrow[i] = kind == INTEGER8 ? 0 : as_bits(entry(t, code, kind, mantissa)) >> 16;
    }
    for (int p = 0; p < 4; p++)
        table.part[p] = _mm512_loadu_si512(narrow + 32 * (p % parts));
    return table;
}

INLINE weight_t pick(codes_t codes, int i, const int kind, const int R, table_t table, vec factor, int mantissa)
{
    const words w = codes.word[0];
    const __m512i code = (__m512i)w;
    if (kind == FLOAT8) {
        const __m512i size = i ? _mm512_srli_epi16(code, 8) : code, sign = i ? code : _mm512_slli_epi16(code, 8);
        const __m512i low = _mm512_permutex2var_epi16(table.part[0], size, table.part[1]), high = _mm512_permutex2var_epi16(table.part[2], size, table.part[3]);
        const __m512i found = _mm512_mask_blend_epi16(_mm512_test_epi16_mask(size, _mm512_set1_epi16(64)), low, high);
        return _mm512_ternarylogic_epi32(sign, _mm512_set1_epi16(-32768), found, 0xEA); /* the sign's bit or what was found */
    }
    if (kind == INTEGER8) {
        words low = bits(value_at(w, 16 * i, 8, kind, factor, mantissa)), high = bits(value_at(w, 16 * i + 8, 8, kind, factor, mantissa));
        return (__m512i)((high & 0xffff0000u) | (low >> 16));
    }
    if (kind == TABLE3 && R == 1 && (i == 1 || i == 3 || i == 6)) /* the upper of two codes in six bits; more rows need the registers, and shifts cost less */
        return _mm512_permutex2var_epi16(table.part[1], (__m512i)place(codes, i - 1, 0, kind), table.part[2]);
    const __m512i index = (__m512i)place(codes, i, 0, kind);
    return bits_of(kind) == 6 ? _mm512_permutex2var_epi16(table.part[0], index, table.part[1]) : _mm512_permutexvar_epi16(index, table.part[0]);
}

INLINE vec dot(vec sum, weight_t w, input_t x) { return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(x)); }
#else
typedef vec weight_t;
typedef float input_t;
#define INPUTS(codes) (codes)
typedef struct { vec part[16 / LANES]; } table_t; /* the table, again where it is shorter */

INLINE table_t read_table(const float *t, const int kind, int mantissa)
{
    float all[16];
    table_t table;
    (void)mantissa;
    for (int i = 0; i < 16; i++)
        all[i] = t[i % (1 << (bits_of(kind) < 4 ? bits_of(kind) : 4))];
    memcpy(&table, all, sizeof table);
    return table;
}

INLINE vec look_up(words w, const int kind, table_t table)
{
#if LANES == 16
    (void)kind;
    return (vec)_mm512_permutexvar_ps((__m512i)w, (__m512)table.part[0]);
#else
    const __m256 low = _mm256_permutevar8x32_ps((__m256)table.part[0], (__m256i)w);
    if (kind != TABLE4)
        return (vec)low;
    return (vec)_mm256_blendv_ps(low, _mm256_permutevar8x32_ps((__m256)table.part[1], (__m256i)w), (__m256)(w << 28));
#endif
}

INLINE weight_t pick(codes_t codes, int i, const int kind, const int R, table_t table, vec factor, int mantissa)
{
    (void)R;
    if (bits_of(kind) == 8)
        return value_at(codes.word[0], 8 * (kind == FLOAT8 && (i == 1 || i == 2) ? 3 - i : i), 8, kind, factor, mantissa);
    const words code = place(codes, i / 2, i % 2, kind);
    return bits_of(kind) > 4 ? value_at(code, 0, bits_of(kind), kind, factor, mantissa) : look_up(code, kind, table);
}

INLINE vec dot(vec sum, weight_t w, input_t x) { return sum + w * x; }
#endif
#endif
