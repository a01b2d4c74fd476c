/* Products of bfloat16 inputs with weights in 2 to 6 or 8 bits, on one x86 CPU: y = x W^T. Compiled by kernels/native.py for AVX2, for AVX-512, or for
 * AVX-512 with products of bfloat16 pairs; which, the compiler's flags say. Knows no tensors: sizes and layouts are the caller's to get right.
 *
 * Sixteen outputs are a strip. A strip's codes lie one step after the other; a step is one to three times sixteen 32-bit words, one for each output, with the
 * codes of 16, 8 or 4 consecutive inputs. Up to 6 bits: even inputs in a word's low half, odd ones in its high half, so that a shift of 16-bit lanes brings a
 * pair of neighbours into place and one permutation of a table turns it into two numbers, whatever the table says. Codes of 3, 5 and 6 bits do not fill a half
 * evenly: a last pair or two lie in the bits that are left over, and with 3 and 5 bits an output's last 16 bits of a step are half a word, two bytes (see
 * `place`). With 3 bits these follow on all words of the strip, so that words, which are read four times a step, lie as the lines of a cache do. Small floats
 * in bytes: the low bytes of both halves are a pair, and so are the high ones; two permutations look up magnitudes of 7 bits. Scales lie [strip][group][16].
 *
 * Rows go in tiles of up to ROWS, inputs packed [tile][pair or input][row]. A group is summed with its codes as they are, in float32, and scaled once:
 * y += scale (sum x value + shift sum x). What is unpacked for one tile serves all of its rows. Inputs that are rounded first become numbers that bfloat16
 * holds exactly; where a row of them has a scale, the row of results is multiplied with it.
 */
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
    words sign = (w << (32 - bits - at)) & 0x80000000u, rest = ((w >> at) & ((1u << (bits - 1)) - 1)) << (23 - mantissa);
    return number(sign | rest) * factor;
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

/* V vectors of outputs from vector `first` on, for the R rows of a tile, of which `rows` are there. */
INLINE void block(const struct weight *w, const table_t *values, const input_t *x, const float *sums, const float *by_row, uint16_t *y, long rows, long first,
                  const int R, const int V, const int kind)
{
    const int parts = 16 / LANES;
    const long last = (w->n + 15) / 16 * parts - 1, length = w->groups * w->steps * step_words(kind);
    const table_t table = *values;
    const vec factor = w->table[0] - (vec){0};
    const long tail = kind == TABLE3 ? w->groups * w->steps * 16 : step_words(kind) / 16 * 16; /* words of a strip before its first bytes */
    const int next = kind == TABLE3 ? 16 : step_words(kind);
    const uint32_t *from[4];
    const uint16_t *bytes[4];
    long scales[4];
    vec total[ROWS][4];
    for (int v = 0; v < V; v++) {
        long at = first + v < last ? first + v : last;
        const long lane = at % parts * LANES;
        from[v] = w->codes + at / parts * length + lane;
        bytes[v] = (const uint16_t *)(from[v] - lane + tail) + lane;
        scales[v] = at / parts * w->groups * 16 + lane;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            total[r][v] = (vec){0};
    for (long g = 0; g < w->groups; g++) {
        vec part[ROWS][4];
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++)
                part[r][v] = (vec){0};
        for (long s = 0; s < w->steps; s++) {
            codes_t code[4];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                code[v] = read_codes(from[v], bytes[v], kind);
                from[v] += next;
                bytes[v] += kind == TABLE3 ? 16 : 2 * next;
            }
#pragma GCC unroll 16
            for (int i = 0; i < INPUTS(step_codes(kind)); i++, x += R) {
                weight_t value[4];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++)
                    value[v] = pick(code[v], i, kind, R, table, factor, w->mantissa);
#pragma GCC unroll 16
                for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++)
                        part[r][v] = dot(part[r][v], value[v], x[r]);
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const vec scale = load_numbers(w->scale, scales[v] + g * 16, w->wide);
            if (w->shift) {
                const vec shift = load_numbers(w->shift, scales[v] + g * 16, w->wide);
#pragma GCC unroll 16
                for (int r = 0; r < R; r++)
                    total[r][v] += scale * (part[r][v] + shift * sums[g * R + r]);
            } else
#pragma GCC unroll 16
                for (int r = 0; r < R; r++)
                    total[r][v] += scale * part[r][v];
        }
    }
    vec result[ROWS][4]; /* apart from the totals, which stay in registers as long as no index of theirs varies */
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            result[r][v] = total[r][v];
    for (int r = 0; r < R && r < rows; r++)
        for (int v = 0; v < V && first + v <= last; v++)
            store(y + r * w->n + (first + v) * LANES, by_row ? result[r][v] * by_row[r] : result[r][v], w->n - (first + v) * LANES);
}

typedef void kernel(const struct weight *, const table_t *, const input_t *, const float *sums, const float *by_row, uint16_t *, long rows, long first);
#define KERNEL(NAME, KIND, R)                                                                                                                                 \
    static void NAME##_##R(const struct weight *w, const table_t *values, const input_t *x, const float *sums, const float *by_row, uint16_t *y, long rows,  \
                           long first)                                                                                                                        \
    {                                                                                                                                                         \
        block(w, values, x, sums, by_row, y, rows, first, R, WIDTH(R), KIND);                                                                                 \
    }
#define KERNELS(R)                                                                                                                                            \
    KERNEL(table2, TABLE2, R) KERNEL(table3, TABLE3, R) KERNEL(table4, TABLE4, R) KERNEL(integer5, INTEGER5, R) KERNEL(integer6, INTEGER6, R)                 \
    KERNEL(float6, FLOAT6, R) KERNEL(integer8, INTEGER8, R) KERNEL(float8, FLOAT8, R)
EACH(KERNELS)
static kernel *const kernels[][sizeof sizes / sizeof *sizes] = {ROW(table2),   ROW(table3), ROW(table4),   ROW(integer5),
                                                                ROW(integer6), ROW(float6), ROW(integer8), ROW(float8)};

/* The inputs of a tile, [pairs or inputs][R], zero beyond rows and k; and their sums by group, [groups][R]. */
static void pack(const uint16_t *x, long rows, const struct weight *w, long size, int R, input_t *to, float *sums)
{
    const long padded = w->groups * size;
    for (int r = 0; r < R; r++) {
        const uint16_t *row = x + r * w->k;
        const long there = r < rows ? w->k : 0;
#if PAIRS
        for (long i = 0; i < padded / 2; i++) {
            uint32_t pair = 0;
            if (2 * i + 1 < there)
                memcpy(&pair, row + 2 * i, 4);
            else if (2 * i < there)
                pair = row[2 * i];
            to[i * R + r] = pair;
        }
#else
        for (long i = 0; i < padded; i++) {
            uint32_t u = i < there ? (uint32_t)row[i] << 16 : 0;
            memcpy(to + i * R + r, &u, 4);
        }
#endif
        for (long g = 0; sums && g < w->groups; g++) {
            float sum = 0;
            for (long i = g * size; i < (g + 1) * size && i < there; i++) {
                uint32_t u = (uint32_t)row[i] << 16;
                float f;
                memcpy(&f, &u, 4);
                sum += f;
            }
            sums[g * R + r] = sum;
        }
    }
}

/* x [m, k], rounded as r says where there is one, -> y [m, n] bfloat16. x is bfloat16, with r float32 where wide. Returns 0, or 1 where memory lacks. */
int low_bit_product(const void *x, uint16_t *y, long m, const struct weight *w, const struct rounding *r, int wide)
{
    if (m == 0)
        return 0;
    const long size = w->steps * step_codes(w->kind), padded = w->groups * size;
    const long tiles = (m + ROWS - 1) / ROWS, rows = (m + tiles - 1) / tiles;
    int which = 0;
    while (sizes[which] < rows)
        which++;
    const int R = sizes[which], V = WIDTH(R);
    const long each = INPUTS(padded) * R, vectors = (w->n + 15) / 16 * (16 / LANES), blocks = (vectors + V - 1) / V;
    input_t *packed = room(INPUT, tiles * each * sizeof *packed);
    float *sums = w->shift ? room(TOTALS, tiles * w->groups * R * sizeof *sums) : NULL;
    float *by_row = r ? room(BY_ROW, m * (sizeof *by_row + w->k * sizeof(uint16_t))) : NULL;
    if (!packed || (w->shift && !sums) || (r && !by_row))
        return 1;
    uint16_t *rounded = (uint16_t *)(by_row + m);
    const uint16_t *from = r ? rounded : x;
    const float all = r && r->per == ALL ? largest_of(x, wide, m * w->k, r) : 0, *scales = r && r->form == ELEMENTS ? by_row : NULL;
    const table_t values = read_table(w->table, w->kind, w->mantissa);
    kernel *run = kernels[w->kind][which];
#pragma omp parallel if (m * w->n * padded > 1 << 17)
    {
        if (r) {
#pragma omp for schedule(static)
            for (long i = 0; i < m; i++)
                round_row((const char *)x + i * w->k * (wide ? 4 : 2), wide, w->k, r, all, rounded + i * w->k, 0, scales ? by_row + i : NULL);
        }
#pragma omp for schedule(static)
        for (long t = 0; t < tiles; t++)
            pack(from + t * rows * w->k, m - t * rows < rows ? m - t * rows : rows, w, size, R, packed + t * each, sums ? sums + t * w->groups * R : NULL);
#pragma omp for schedule(static)
        for (long b = 0; b < blocks; b++)
            for (long t = 0; t < tiles; t++)
                run(w, &values, packed + t * each, sums ? sums + t * w->groups * R : NULL, scales ? scales + t * rows : NULL, y + t * rows * w->n,
                    m - t * rows < rows ? m - t * rows : rows, b * V);
    }
    return 0;
}
