/* What kernels/native_attention.c is told and works with; softmax block by block; and attention over tokens in float32 or bfloat16: the newest of a cache in low
 * bits, or all of one in 16.
 */
#ifndef NATIVE_NEWEST_H
#define NATIVE_NEWEST_H
#include "native_cache.h"

#define HEADS (LANES / 4) /* query heads at once: eight sums in registers */

struct cache {
    const uint8_t *key_codes;
    const void *key_scale, *key_low;
    const uint8_t *value_codes;
    const void *value_scale, *value_low, *keys, *values;
    const int64_t *counts; /* how many older and newest tokens are there; none: the caller says it */
    long rows, heads, size, older, newest; /* key heads of all sequences, query heads for each, channels; tokens that a row has room for */
    long shared, sequence; /* key heads of one sequence; numbers from its newest keys to those of the next */
    int bits, wide; /* of codes, or 16: all tokens are among the newest; wide: its numbers are float32 */
};

/* What a thread needs for one span. */
struct work {
    float *query, *scale, *low; /* [heads, size] over the root of size, times log2 e; of a group of keys [size] */
    float *unit, *least, *factor, *carried, *peak, *total; /* [heads]; carried: what the newest tokens' sums are still to be multiplied with */
    float *score, *value_scale, *value_low; /* [heads, BLOCK], then weights; [groups, BLOCK] */
    float *sums, *lows, *newest; /* [heads, groups, 8, LANES]; [heads, groups]; [heads, size] */
    uint32_t *codes, *pairs, *weights; /* one group of keys or a part of values, unpacked; [heads, size / 2]; [heads, BLOCK / LANES, 2, LANES] */
};

/* Turns the scores of a block into weights; in `factor` what was summed before is to be multiplied with. */
INLINE void weigh(const struct cache *c, const struct work *w, long vectors)
{
    for (long h = 0; h < c->heads; h++) {
        float *here = w->score + h * BLOCK;
        vec most = at(here), sum = {0};
        for (long v = 1; v < vectors; v++)
            most = larger(most, at(here + v * LANES));
        const float top = largest_in(most), higher = top > w->peak[h] ? top : w->peak[h];
        for (long v = 0; v < vectors; v++) {
            const vec weight = power(at(here + v * LANES) - higher);
            put(here + v * LANES, weight);
            sum += weight;
        }
        const float factor = power_of(w->peak[h] - higher);
        w->total[h] = w->total[h] * factor + sum_of(sum);
        w->factor[h] = factor;
        w->peak[h] = higher;
    }
}

INLINE const void *number_in(const void *x, long i, const int wide) { return wide ? (const void *)((const float *)x + i) : (const uint16_t *)x + i; }

/* Products of T keys with N queries, for heads from h on. */
INLINE void score_newest(const struct cache *c, const struct work *w, long from, long h, float *to, const int N, const int T, const int wide)
{
    vec sum[HEADS][4] = {{{0}}};
    for (long d = 0; h == 0 && d < T * c->size; d += wide ? 16 : 32)
        __builtin_prefetch(number_in(c->values, from + d, wide), 0, 2);
    for (long d = 0; d < c->size; d += LANES)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
            const vec key = load_numbers(c->keys, from + t * c->size + d, wide);
#pragma GCC unroll 4
            for (int i = 0; i < N; i++)
                sum[i][t] += key * at(w->query + (h + i) * c->size + d);
        }
#pragma GCC unroll 4
    for (int i = 0; i < N; i++)
        if (T == 4)
            _mm_storeu_ps(to + (h + i) * BLOCK, sums_of(sum[i]));
        else
            to[(h + i) * BLOCK] = sum_of(sum[i][0]);
}

INLINE void score_all_newest(const struct cache *c, const struct work *w, long from, long tokens, long h, const int N, const int wide)
{
    long t = 0;
    for (; t + 4 <= tokens; t += 4)
        score_newest(c, w, from + t * c->size, h, w->score + t, N, 4, wide);
    for (; t < tokens; t++)
        score_newest(c, w, from + t * c->size, h, w->score + t, N, 1, wide);
}

/* The weighted sum of V vectors of values for N heads. */
INLINE void add_newest(const struct cache *c, const struct work *w, long from, long tokens, long h, long d, const int N, const int V, const int wide)
{
    vec sum[HEADS][4];
#pragma GCC unroll 4
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            sum[i][v] = at(w->newest + (h + i) * c->size + d + v * LANES) * w->factor[h + i];
    for (long t = 0; t < tokens; t++) {
        if (h == 0 && V > 1)
            __builtin_prefetch(number_in(c->keys, from + (BLOCK + t) * c->size + d, wide), 0, 2);
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const vec value = load_numbers(c->values, from + t * c->size + d + v * LANES, wide);
#pragma GCC unroll 4
            for (int i = 0; i < N; i++)
                sum[i][v] += value * w->score[(h + i) * BLOCK + t];
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            put(w->newest + (h + i) * c->size + d + v * LANES, sum[i][v]);
}

INLINE void add_all_newest(const struct cache *c, const struct work *w, long from, long tokens, long h, const int N, const int wide)
{
    long d = 0;
    for (; d + 4 * LANES <= c->size; d += 4 * LANES)
        add_newest(c, w, from, tokens, h, d, N, 4, wide);
    for (; d < c->size; d += LANES)
        add_newest(c, w, from, tokens, h, d, N, 1, wide);
}

/* The newest tokens first to last of one row. */
INLINE void over_newest(const struct cache *c, const struct work *w, long row, long first, long last, const int wide)
{
    const long keys = row / c->shared * c->sequence + row % c->shared * c->newest * c->size;
    for (; first < last; first += BLOCK) {
        const long tokens = last - first < BLOCK ? last - first : BLOCK, from = keys + first * c->size, vectors = (tokens + LANES - 1) / LANES;
        for (long h = 0; h < c->heads; h++)
            for (long t = tokens; t < vectors * LANES; t++)
                w->score[h * BLOCK + t] = -1e30f;
        long h = 0;
        for (; h + HEADS <= c->heads; h += HEADS)
            score_all_newest(c, w, from, tokens, h, HEADS, wide);
        for (; h < c->heads; h++)
            score_all_newest(c, w, from, tokens, h, 1, wide);
        weigh(c, w, vectors);
        for (h = 0; h + HEADS <= c->heads; h += HEADS)
            add_all_newest(c, w, from, tokens, h, HEADS, wide);
        for (; h < c->heads; h++)
            add_all_newest(c, w, from, tokens, h, 1, wide);
    }
}
#endif
