/* Attention of one new token over the cache of kernels/low_bit_cache.py: older keys and values as codes, the newest, or all, in float32 or bfloat16.
 *
 * Codes are multiplied as they are, in pairs of 16-bit integers whose sums in 32 bits are exact. A group of 32 keys shares its scales, so these multiply the
 * query, which is rounded to 16 bits for each group; tokens lie in the lanes, and the minima make one sum a query. Of values, the weights of a block of
 * tokens times these tokens' scales are rounded to 16 bits for each group of channels; four tokens lie in a lane, and what lanes share is added at the end.
 * Whatever is unpacked serves all query heads of its key head. Softmax goes block by block, as powers of two. A context is cut into spans, which threads
 * share and a last step joins; the last span has the newest tokens too.
 */
#include "native_newest.h"

#define SPAN 512 /* tokens of a span, where there are as many of them as threads; else fewer, down to a block */
#define LARGEST 32767 /* of a query and of a weight in 16 bits */
#define LEAST 1e-30f /* magnitudes below it are taken as zero, so that no quotient overflows */

int omp_get_max_threads(void);

/* The queries as one group of keys meets them: in 16 bits with a unit each, and times its minima. */
INLINE void meet(const struct cache *c, const struct work *w, long group, const int width, const int wide)
{
    const float most_exact = 0x7fffff00 / (float)((1 << width) - 1) / c->size, limit = most_exact < LARGEST ? most_exact : LARGEST; /* for sums in 32 bits */
    for (long d = 0; d < c->size; d += LANES) {
        put(w->scale + d, load_numbers(c->key_scale, group * c->size + d, wide));
        put(w->low + d, load_numbers(c->key_low, group * c->size + d, wide));
    }
    for (long h = 0; h < c->heads; h++) {
        const float *query = w->query + h * c->size;
        vec most = {0}, least = {0};
        for (long d = 0; d < c->size; d += LANES) {
            most = larger(most, magnitude(at(query + d) * at(w->scale + d)));
            least += at(query + d) * at(w->low + d);
        }
        const float peak = largest_in(most), by = peak > LEAST ? limit / peak : 0;
        w->unit[h] = peak / limit;
        w->least[h] = sum_of(least);
        for (long d = 0; d < c->size; d += 16)
            pair_up(query + d, w->scale + d, by, w->pairs + (h * c->size + d) / 2, width);
    }
}

/* Scores of a group of keys for N heads from h on. */
INLINE void score(const struct cache *c, const struct work *w, long h, float *to, const int N)
{
    const int apart = HEADS / N; /* sums that one head's pairs are spread over, because each waits for the one before it */
    const long pairs = c->size / 2;
    raw sum[HEADS][VECTORS];
#pragma GCC unroll 4
    for (int i = 0; i < HEADS; i++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            sum[i][v] = (raw){0};
    for (long p = 0; p < pairs; p += apart)
#pragma GCC unroll 4
        for (int i = 0; i < HEADS; i++) {
            const raw query = OF(set1_epi32)(w->pairs[(h + i / apart) * pairs + p + i % apart]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++)
                sum[i][v] = pairs_added(sum[i][v], load(w->codes + (p + i % apart) * GROUP + v * LANES), query);
        }
#pragma GCC unroll 4
    for (int i = 0; i < HEADS; i += apart)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            whole all = (whole)sum[i][v];
#pragma GCC unroll 4
            for (int j = 1; j < apart; j++)
                all += (whole)sum[i + j][v];
            put(to + (h + i / apart) * BLOCK + v * LANES, __builtin_convertvector(all, vec) * w->unit[h + i / apart] + w->least[h + i / apart]);
        }
}

/* Weights times the scales of one group of channels, in 16 bits with a unit a head: for each LANES tokens the pairs that `open_values` makes of them. */
INLINE void scale_weights(const struct cache *c, const struct work *w, long g, long vectors)
{
    const raw even = spread(_mm_setr_epi8(0, 1, 8, 9, 0, 1, 8, 9, 0, 1, 8, 9, 0, 1, 8, 9)), odd = OF(add_epi8)(even, OF(set1_epi8)(4));
    const float *scale = w->value_scale + g * BLOCK, *low = w->value_low + g * BLOCK;
    for (long h = 0; h < c->heads; h++) {
        const float *weight = w->score + h * BLOCK;
        uint32_t *to = w->weights + h * BLOCK * 2;
        vec most = {0}, lows = {0};
        for (long v = 0; v < vectors; v++) {
            most = larger(most, magnitude(at(weight + v * LANES) * at(scale + v * LANES)));
            lows += at(weight + v * LANES) * at(low + v * LANES);
        }
        const float peak = largest_in(most), by = peak > LEAST ? LARGEST / peak : 0;
        w->unit[h] = peak / LARGEST;
        w->lows[h * (c->size / GROUP) + g] = w->lows[h * (c->size / GROUP) + g] * w->factor[h] + sum_of(lows);
        for (long v = 0; v < vectors; v++) {
            const raw rounded = whole_of(at(weight + v * LANES) * at(scale + v * LANES) * by), a = OF(shuffle_epi8)(rounded, even), b = OF(shuffle_epi8)(rounded, odd);
            memcpy(to + 2 * v * LANES, &a, sizeof a);
            memcpy(to + (2 * v + 1) * LANES, &b, sizeof b);
        }
    }
}

/* Adds the unpacked values times the weights of one head to sums [vectors of a channel's parts][LANES]. */
INLINE void add_values(const struct work *w, long h, long vectors, float *sums, const int width)
{
    const int planes = 8 / width, kept = planes == 1 ? 2 : planes;
    raw sum[8] = {{0}};
    for (long v = 0; v < vectors; v++) {
        const raw a = load(w->weights + (h * BLOCK + v * LANES) * 2), b = load(w->weights + (h * BLOCK + v * LANES) * 2 + LANES);
        const uint32_t *code = w->codes + v * WORDS(width) * (16 / width) * LANES;
#pragma GCC unroll 4
        for (int i = 0; i < WORDS(width); i++)
#pragma GCC unroll 8
            for (int k = 0; k < 2 * planes; k++)
                sum[i * kept + k % kept] = pairs_added(sum[i * kept + k % kept], load(code + (i * 2 * planes + k) * LANES), k < planes ? a : b);
    }
#pragma GCC unroll 8
    for (int j = 0; j < WORDS(width) * planes; j++) {
        const whole all = planes == 1 ? (whole)sum[(2 * j) % 8] + (whole)sum[(2 * j + 1) % 8] : (whole)sum[j];
        put(sums + j * LANES, at(sums + j * LANES) * w->factor[h] + __builtin_convertvector(all, vec) * w->unit[h]);
    }
}

INLINE void over_keys(const struct cache *c, const struct work *w, long token, long tokens, struct ahead ahead, const int width, const int wide)
{
    const long bytes = c->size * width / 8;
    for (long t = 0; t < tokens; t += GROUP) {
        fetch(&ahead);
        open_keys(c->key_codes + (token + t) * bytes, bytes, w->codes, width);
        fetch(&ahead);
        meet(c, w, (token + t) / GROUP, width, wide);
        fetch(&ahead);
        long h = 0;
        for (; h + HEADS <= c->heads; h += HEADS)
            score(c, w, h, w->score + t, HEADS);
        fetch(&ahead);
        for (; h + 2 <= c->heads; h += 2)
            score(c, w, h, w->score + t, 2);
        for (; h < c->heads; h++)
            score(c, w, h, w->score + t, 1);
    }
}

INLINE void over_values(const struct cache *c, const struct work *w, long token, long tokens, struct ahead ahead, const int width, const int wide)
{
    const long groups = c->size / GROUP, bytes = c->size * width / 8, vectors = tokens / LANES;
    turn_any(c->value_scale, token * groups, tokens, groups, w->value_scale, wide);
    turn_any(c->value_low, token * groups, tokens, groups, w->value_low, wide);
    for (long g = 0; g < groups; g++) {
        fetch(&ahead);
        scale_weights(c, w, g, vectors);
        for (int byte = 0; byte < 4 * width; byte += 16) {
            const long from = g * 4 * width + byte, second = from + 16 > bytes;
            fetch(&ahead);
            if (second)
                open_values(c->value_codes + token * bytes + from - 8, bytes, vectors, 1, w->codes, width);
            else
                open_values(c->value_codes + token * bytes + from, bytes, vectors, 0, w->codes, width);
            for (long h = 0; h < c->heads; h++)
                add_values(w, h, vectors, w->sums + ((h * groups + g) * 8 + byte / 4 * (8 / width)) * LANES, width);
        }
    }
}

/* Older tokens first to last of one row, multiples of GROUP. */
INLINE void over_codes(const struct cache *c, const struct work *w, long row, long first, long last, const int width, const int wide)
{
    const long bytes = c->size * width / 8, end = row * c->older + last;
    for (long token = row * c->older + first; token < end; token += BLOCK) {
        const long tokens = end - token < BLOCK ? end - token : BLOCK, next = token + tokens, after = end - next < BLOCK ? end - next : BLOCK;
        const uint8_t *values = c->value_codes + token * bytes, *keys = c->key_codes + next * bytes;
        over_keys(c, w, token, tokens, (struct ahead){values, values + tokens * bytes, GROUP * bytes / 4}, width, wide);
        weigh(c, w, tokens / LANES);
        for (long h = 0; h < c->heads; h++)
            w->carried[h] *= w->factor[h];
        over_values(c, w, token, tokens, (struct ahead){keys, keys + after * bytes, BLOCK * GROUP / (width == 8 ? 3 : 2) * width / 8}, width, wide);
    }
}

/* What a span gives: sums of weighted values [heads, size], then peaks and totals [heads] each. */
static void sum_up(const struct cache *c, const struct work *w, const int width, float *to)
{
    const long groups = c->size / GROUP;
    const int planes = 8 / width;
    if (c->bits == 16)
        memcpy(to, w->newest, c->heads * c->size * sizeof *to);
    for (long h = 0; h < c->heads && c->bits < 16; h++)
        for (long g = 0; g < groups; g++) {
            const float *from = w->sums + (h * groups + g) * 8 * LANES, low = w->lows[h * groups + g], carried = w->carried[h];
            for (int word = 0; word < 8 / planes; word++)
                for (int p = 0; p < planes; p++, from += LANES) {
                    const long d = h * c->size + g * GROUP + 4 * word * planes + p;
                    float sum[4];
                    _mm_storeu_ps(sum, quarters(at(from)));
                    for (int byte = 0; byte < 4; byte++)
                        to[d + byte * planes] = sum[byte] + low + w->newest[d + byte * planes] * carried;
                }
        }
    memcpy(to + c->heads * c->size, w->peak, c->heads * sizeof *to);
    memcpy(to + c->heads * (c->size + 1), w->total, c->heads * sizeof *to);
}

/* One span of one row: older tokens first to last and the newest from `from` to `end`. */
static void span(const struct cache *c, const struct work *w, const void *q, int wide_q, long row, long first, long last, long from, long end, float *to)
{
    const long numbers = c->heads * c->size;
    const float root = 1.44269504f / __builtin_sqrtf(c->size);
    for (long i = 0; i < numbers; i++)
        w->query[i] = number_at(q, row * numbers + i, wide_q) * root;
    for (long h = 0; h < c->heads; h++) {
        w->peak[h] = -1e30f;
        w->total[h] = 0;
        w->carried[h] = 1;
    }
    memset(w->sums, 0, numbers / GROUP * 8 * LANES * sizeof(float));
    memset(w->lows, 0, numbers / GROUP * sizeof(float));
    memset(w->newest, 0, numbers * sizeof(float));
#define BOTH(NAME, ...) (c->wide ? NAME(__VA_ARGS__, 1) : NAME(__VA_ARGS__, 0))
    BOTH(over_newest, c, w, row, from, end);
    if (c->bits == 2)
        BOTH(over_codes, c, w, row, first, last, 2);
    else if (c->bits == 4)
        BOTH(over_codes, c, w, row, first, last, 4);
    else if (c->bits == 8)
        BOTH(over_codes, c, w, row, first, last, 8);
    sum_up(c, w, c->bits, to);
}

/* The places of a thread's work, one after the other; from none: how many numbers it takes. */
static long places(const struct cache *c, struct work *w, float *from)
{
    const long numbers = c->heads * c->size, groups = c->size / GROUP, unpacked = c->size / 2 * GROUP;
    float **const at[] = {&w->query, &w->scale, &w->low, &w->unit, &w->least, &w->factor, &w->carried, &w->peak, &w->total, &w->score, &w->value_scale,
                          &w->value_low, &w->sums, &w->lows, &w->newest, (float **)&w->codes, (float **)&w->pairs, (float **)&w->weights};
    const long lengths[] = {numbers, c->size, c->size, c->heads, c->heads, c->heads, c->heads, c->heads, c->heads, c->heads * BLOCK, groups * BLOCK,
                             groups * BLOCK, c->heads * groups * 8 * LANES, c->heads * groups, numbers, unpacked > 16 * BLOCK ? unpacked : 16 * BLOCK,
                             numbers / 2, 2 * c->heads * BLOCK};
    long next = 0;
    for (unsigned i = 0; i < sizeof at / sizeof *at; i++) {
        *at[i] = from + next;
        next += (lengths[i] + 15) / 16 * 16;
    }
    return next;
}

/* Spans of one query head [spans, heads, ...] of `each` numbers a span -> y [size]. In place of its peaks comes what the spans are multiplied with. */
static void join(const struct cache *c, float *from, long spans, long each, long h, void *y, int wide, long to)
{
    float *peaks = from + c->heads * c->size + h, *totals = peaks + c->heads;
    float peak = peaks[0], total = 0;
    for (long s = 1; s < spans; s++)
        peak = peaks[s * each] > peak ? peaks[s * each] : peak;
    for (long s = 0; s < spans; s++) {
        peaks[s * each] = power_of(peaks[s * each] - peak);
        total += totals[s * each] * peaks[s * each];
    }
    for (long d = 0; d < c->size; d += LANES) {
        vec sum = {0};
        for (long s = 0; s < spans; s++)
            sum += at(from + s * each + h * c->size + d) * peaks[s * each];
        sum /= total;
        if (wide)
            put((float *)y + to + d, sum);
        else
            store((uint16_t *)y + to + d, sum, LANES);
    }
}

/* q -> y, both [rows, heads, size], float32 where wide, else bfloat16. older, newest: tokens that are there. Returns 0, or 1 where memory lacks. */
int low_bit_attention(const struct cache *c, const void *q, int wide, void *y, long older, long newest)
{
    older = c->counts ? c->counts[0] : older;
    newest = c->counts ? c->counts[1] : newest;
    const long read = c->bits == 16 ? newest : older; /* what spans share */
    const long groups = (read + GROUP - 1) / GROUP, blocks = (read + BLOCK - 1) / BLOCK, threads = (omp_get_max_threads() + c->rows - 1) / c->rows;
    const long wanted = (read + SPAN - 1) / SPAN > threads ? (read + SPAN - 1) / SPAN : threads < blocks ? threads : blocks;
    const int small = c->rows * (older + newest) * c->heads * c->size < 1 << 17; /* threads are not worth waking */
    const long spans = small || wanted < 1 ? 1 : wanted, every = (groups + spans - 1) / spans;
    const long each = c->heads * (c->size + 2);
    float *parts = room(PARTS, c->rows * spans * each * sizeof *parts);
    int lacking = 0;
    if (!parts)
        return 1;
#pragma omp parallel if (!small && c->rows * spans > 1) reduction(| : lacking)
    {
        struct work w;
        float *mine = room(SPANS, places(c, &w, NULL) * sizeof *mine);
        lacking |= !mine;
        places(c, &w, mine);
#pragma omp for schedule(dynamic)
        for (long i = 0; i < c->rows * spans; i++) {
            const long row = i / spans, first = i % spans * every * GROUP, last = first + every * GROUP < read ? first + every * GROUP : read;
            if (!lacking && c->bits == 16)
                span(c, &w, q, wide, row, 0, 0, first, last, parts + i * each);
            else if (!lacking)
                span(c, &w, q, wide, row, first, last, 0, i % spans == spans - 1 ? newest : 0, parts + i * each);
        }
#pragma omp for schedule(static)
        for (long i = 0; i < c->rows * c->heads; i++)
            if (!lacking)
                join(c, parts + i / c->heads * spans * each, spans, each, i % c->heads, y, wide, i * c->size);
    }
    return lacking;
}
