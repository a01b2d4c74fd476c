/* Vectors of kernels/native_attention.c: their sums and powers of two, and codes of keys and values unpacked to pairs of 16-bit integers, four tokens or four
 * bytes in a lane.
 */
#ifndef NATIVE_CACHE_H
#define NATIVE_CACHE_H
#include "native.h"

#define GROUP 32
#define BLOCK 128 /* tokens between two looks at the highest score */

#if LANES == 16
typedef __m512i raw;
#define OF(NAME) _mm512_##NAME
INLINE __m128 quarters(vec v)
{
    const __m256 x = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)v, 1)));
    return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
}
INLINE float largest_in(vec v) { return _mm512_reduce_max_ps((__m512)v); }
INLINE vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE raw whole_of(vec v) { return _mm512_cvtps_epi32((__m512)v); }
INLINE raw spread(__m128i v) { return _mm512_broadcast_i32x4(v); }
#else
typedef __m256i raw;
#define OF(NAME) _mm256_##NAME
INLINE __m128 quarters(vec v) { return _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1)); }
INLINE float largest_in(vec v)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
INLINE vec larger(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE raw whole_of(vec v) { return _mm256_cvtps_epi32((__m256)v); }
INLINE raw spread(__m128i v) { return _mm256_broadcastsi128_si256(v); }
#endif
#define VECTORS (GROUP / LANES)

INLINE float sum_of(vec v)
{
    __m128 x = quarters(v);
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

/* Of four vectors. */
INLINE __m128 sums_of(const vec *v)
{
    return _mm_hadd_ps(_mm_hadd_ps(quarters(v[0]), quarters(v[1])), _mm_hadd_ps(quarters(v[2]), quarters(v[3])));
}

INLINE vec at(const float *x)
{
    vec v;
    memcpy(&v, x, sizeof v);
    return v;
}

INLINE raw load(const uint32_t *x)
{
    raw v;
    memcpy(&v, x, sizeof v);
    return v;
}

INLINE void put(float *x, vec v) { memcpy(x, &v, sizeof v); }
INLINE vec magnitude(vec v) { return number(bits(v) & 0x7fffffffu); }

/* sum + the products of pairs of 16-bit integers. */
INLINE raw pairs_added(raw sum, raw a, raw b)
{
#if LANES == 16 && defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return OF(add_epi32)(sum, OF(madd_epi16)(a, b));
#endif
}

/* 2^x of x <= 0, to 1e-7 of it; NaN stays. */
INLINE vec power(vec x)
{
    const words below = (words)(x < -126.0f);
    x = number((bits(x) & ~below) | (below & 0xc2fc0000u)); /* -126 */
    const vec shifted = x + 12582912.0f, rest = x - (shifted - 12582912.0f); /* 1.5 * 2^23: what is left of the sum is the nearest whole number */
    vec y = rest * 1.5403530e-4f + 1.3333558e-3f;
    y = y * rest + 9.6181291e-3f;
    y = y * rest + 5.5504109e-2f;
    y = y * rest + 2.4022651e-1f;
    y = y * rest + 6.9314718e-1f;
    y = y * rest + 1.0f;
    return number(bits(y) + (bits(shifted) << 23));
}

INLINE float power_of(float x) { return power(x - (vec){0})[0]; }

/* 16 bytes of each LANES / 4 tokens, four tokens apart. */
INLINE raw every_fourth(const uint8_t *from, long row)
{
#define PART(I) _mm_loadu_si128((const __m128i *)(from + 4 * (I)*row))
#if LANES == 16
    const __m512i low = _mm512_inserti32x4(_mm512_castsi128_si512(PART(0)), PART(1), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(low, PART(2), 2), PART(3), 3);
#else
    return _mm256_inserti128_si256(_mm256_castsi128_si256(PART(0)), PART(1), 1);
#endif
}

/* Words of codes -> 16 / width vectors of codes in 16 bits, `stride` numbers apart: vector k has those that begin at bits k * width of both halves. */
INLINE void unpack(raw word, const int width, uint32_t *to, const long stride)
{
    const uint32_t mask = 0x00010001u * ((1u << width) - 1);
#pragma GCC unroll 8
    for (int k = 0; k < 16 / width; k++) {
        const words code = ((words)word >> (k * width)) & mask;
        memcpy(to + k * stride, &code, sizeof code);
    }
}

/* Codes that the other half of the work reads next, asked for a few at a time while this half computes: a group is about a page of memory, and no CPU fetches
 * the next page by itself. */
struct ahead {
    const uint8_t *from, *end;
    long step;
};

INLINE void fetch(struct ahead *a)
{
    const uint8_t *end = a->end - a->from < a->step ? a->end : a->from + a->step;
    for (; a->from < end; a->from += 64)
        __builtin_prefetch(a->from, 0, 2);
}

/* A group of keys, rows of `row` bytes -> [pairs of channels][tokens]. Of 4 P consecutive channels, P in a byte, the first 2 P pair with the others. */
INLINE void open_keys(const uint8_t *from, long row, uint32_t *to, const int width)
{
    for (int v = 0; v < VECTORS; v++, from += LANES * row)
        for (long next = 0; next < row; next += 16) {
            const long byte = next + 16 <= row ? next : row - 16;
            const raw a = every_fourth(from + byte, row), b = every_fourth(from + byte + row, row);
            const raw c = every_fourth(from + byte + 2 * row, row), d = every_fourth(from + byte + 3 * row, row);
            const raw ab = OF(unpacklo_epi32)(a, b), cd = OF(unpacklo_epi32)(c, d), AB = OF(unpackhi_epi32)(a, b), CD = OF(unpackhi_epi32)(c, d);
            uint32_t *here = to + byte / 4 * (16 / width) * GROUP + v * LANES;
            unpack(OF(unpacklo_epi64)(ab, cd), width, here, GROUP);
            unpack(OF(unpackhi_epi64)(ab, cd), width, here + 16 / width * GROUP, GROUP);
            unpack(OF(unpacklo_epi64)(AB, CD), width, here + 32 / width * GROUP, GROUP);
            unpack(OF(unpackhi_epi64)(AB, CD), width, here + 48 / width * GROUP, GROUP);
        }
}

#define WORDS(width) ((width) == 2 ? 2 : 4) /* of a token's value that are unpacked at once: 8 bytes of 2-bit codes are a group's, 16 of others */

/* WORDS words of values of `vectors` * LANES tokens -> [vectors][WORDS][16 / width]. Tokens 0 and 2 of four pair, then 1 and 3. */
INLINE void open_values(const uint8_t *from, long row, long vectors, const int second, uint32_t *to, const int width)
{
    for (long v = 0; v < vectors; v++, from += LANES * row) {
        const raw a = every_fourth(from, row), b = every_fourth(from + row, row), c = every_fourth(from + 2 * row, row), d = every_fourth(from + 3 * row, row);
        const raw ab = OF(unpacklo_epi8)(a, b), cd = OF(unpacklo_epi8)(c, d), AB = OF(unpackhi_epi8)(a, b), CD = OF(unpackhi_epi8)(c, d);
        const raw word[] = {OF(unpacklo_epi16)(ab, cd), OF(unpackhi_epi16)(ab, cd), OF(unpacklo_epi16)(AB, CD), OF(unpackhi_epi16)(AB, CD)};
#pragma GCC unroll 4
        for (int i = 0; i < WORDS(width); i++)
            unpack(second && WORDS(width) == 2 ? word[2 + i % 2] : word[i], width, to + (v * WORDS(width) + i) * (16 / width) * LANES, LANES);
    }
}

typedef int16_t shorts __attribute__((vector_size(32)));

/* Sixteen numbers times `by`, rounded, in pairs as `open_keys` pairs channels. */
INLINE void pair_up(const float *query, const float *scale, float by, uint32_t *to, const int width)
{
#if LANES == 16
    const shorts x = (shorts)_mm512_cvtepi32_epi16(whole_of(at(query) * at(scale) * by));
#else
    const raw low = whole_of(at(query) * at(scale) * by), high = whole_of(at(query + 8) * at(scale + 8) * by);
    const shorts x = (shorts)_mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8);
#endif
    const shorts two = {0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15}, four = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15},
                 eight = {0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15};
    const shorts y = width == 2 ? __builtin_shuffle(x, two) : width == 4 ? __builtin_shuffle(x, four) : __builtin_shuffle(x, eight);
    memcpy(to, &y, sizeof y);
}

/* [tokens, groups] numbers -> [groups, BLOCK] float32. */
INLINE void turn(const void *from, long first, long tokens, const long groups, float *to, const int wide)
{
    for (long t = 0; t < tokens; t++)
        for (long g = 0; g < groups; g++)
            to[g * BLOCK + t] = number_at(from, first + t * groups + g, wide);
}

INLINE void turn_any(const void *from, long first, long tokens, long groups, float *to, const int wide)
{
    if (groups == 2)
        turn(from, first, tokens, 2, to, wide);
    else if (groups == 4)
        turn(from, first, tokens, 4, to, wide);
    else
        turn(from, first, tokens, groups, to, wide);
}
#endif
