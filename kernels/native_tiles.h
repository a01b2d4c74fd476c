/* Products of whole tiles, where a CPU has AMX: sixteen rows of inputs times sixteen outputs, 32 inputs in bfloat16 or 64 in bytes at a time. A row of a tile is
 * 64 bytes. Tiles of weights have a row for two or four consecutive inputs, with those of output after output: as codes of int8 lie, and as pairs of the other
 * kinds are looked up.
 */
#ifndef NATIVE_TILES_H
#define NATIVE_TILES_H
#include "native.h"

#define TALLEST 16 /* rows of a tile */
#define LINE_BYTES 64

/* A row of a tile of inputs, zero from byte `there` on. */
INLINE void lay_line(const void *from, long there, char *to)
{
    const long held = there < 0 ? 0 : there < LINE_BYTES ? there : LINE_BYTES;
    if (held == LINE_BYTES)
        memcpy(to, from, LINE_BYTES);
    else {
        memcpy(to, from, held);
        memset(to + held, 0, LINE_BYTES - held);
    }
}

#if TILES
#define WHOLE_TILE (TALLEST * LINE_BYTES)

/* The tiles of this thread: 0 to 3 for sums and 4 and 5 for inputs, of some rows, 6 and 7 for weights. */
INLINE void lay_tiles(int rows)
{
    struct { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } set = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        set.bytes[i] = LINE_BYTES;
        set.rows[i] = i < 6 ? rows : TALLEST;
    }
    __asm__ volatile("" : : "m"(set) : "memory");
    _tile_loadconfig(&set);
}

#define AHEAD 4 /* tiles of codes that are asked for before their turn */
#define TIMES(SUM, X, W)                                                                                                                                      \
    do {                                                                                                                                                      \
        if (bytes)                                                                                                                                            \
            _tile_dpbsud(SUM, X, W);                                                                                                                          \
        else                                                                                                                                                  \
            _tile_dpbf16ps(SUM, X, W);                                                                                                                        \
    } while (0)

/* Asks for a tile of each of some strips: codes come from far, tiles are read faster than the CPU foresees. */
INLINE void ask(const char *const *w, int strips, long at)
{
    for (int v = 0; v < strips; v++)
#pragma GCC unroll 16
        for (int line = 0; line < TALLEST; line++)
            __builtin_prefetch(w[v] + at + line * LINE_BYTES);
}

/* sum += `count` tiles of one tile of rows times those of four strips; bytes: int8 times unsigned bytes, else bfloat16. Sums of a strip are `size` bytes, as a
 * tile of inputs is.
 */
INLINE void one_by_four(const char *x, const char *const *w, char *sum, long size, long count, const int bytes)
{
    __asm__ volatile("" ::: "memory"); /* what was written before is there: the compiler knows not that tiles read it */
    _tile_loadd(0, sum, LINE_BYTES);
    _tile_loadd(1, sum + size, LINE_BYTES);
    _tile_loadd(2, sum + 2 * size, LINE_BYTES);
    _tile_loadd(3, sum + 3 * size, LINE_BYTES);
    for (long i = 0; i < count; i++) {
        if (bytes)
            ask(w, 4, (i + AHEAD) * WHOLE_TILE);
        _tile_loadd(4, x + i * size, LINE_BYTES);
        _tile_loadd(6, w[0] + i * WHOLE_TILE, LINE_BYTES);
        TIMES(0, 4, 6);
        _tile_loadd(7, w[1] + i * WHOLE_TILE, LINE_BYTES);
        TIMES(1, 4, 7);
        _tile_loadd(6, w[2] + i * WHOLE_TILE, LINE_BYTES);
        TIMES(2, 4, 6);
        _tile_loadd(7, w[3] + i * WHOLE_TILE, LINE_BYTES);
        TIMES(3, 4, 7);
    }
    _tile_stored(0, sum, LINE_BYTES);
    _tile_stored(1, sum + size, LINE_BYTES);
    _tile_stored(2, sum + 2 * size, LINE_BYTES);
    _tile_stored(3, sum + 3 * size, LINE_BYTES);
}

/* The same for two tiles of rows and two strips; the second's inputs lie `next` bytes on, its sums `beside`. */
INLINE void two_by_two(const char *x, long next, const char *const *w, char *sum, long beside, long size, long count, const int bytes)
{
    __asm__ volatile("" ::: "memory");
    _tile_loadd(0, sum, LINE_BYTES);
    _tile_loadd(1, sum + size, LINE_BYTES);
    _tile_loadd(2, sum + beside, LINE_BYTES);
    _tile_loadd(3, sum + beside + size, LINE_BYTES);
    for (long i = 0; i < count; i++) {
        if (bytes)
            ask(w, 2, (i + AHEAD) * WHOLE_TILE);
        _tile_loadd(4, x + i * size, LINE_BYTES);
        _tile_loadd(6, w[0] + i * WHOLE_TILE, LINE_BYTES);
        TIMES(0, 4, 6);
        _tile_loadd(7, w[1] + i * WHOLE_TILE, LINE_BYTES);
        TIMES(1, 4, 7);
        _tile_loadd(5, x + next + i * size, LINE_BYTES);
        TIMES(2, 5, 6);
        TIMES(3, 5, 7);
    }
    _tile_stored(0, sum, LINE_BYTES);
    _tile_stored(1, sum + size, LINE_BYTES);
    _tile_stored(2, sum + beside, LINE_BYTES);
    _tile_stored(3, sum + beside + size, LINE_BYTES);
}

/* sum [tiles][strips] += `count` tiles of inputs of each tile of rows, which lie `next` bytes apart, times those of four strips or a multiple. */
INLINE void multiply_tiles(const char *x, long next, long tiles, const char *const *w, long strips, char *sum, long size, long count, const int bytes)
{
    long t = 0;
    for (; t + 1 < tiles; t += 2)
        for (long v = 0; v < strips; v += 2)
            two_by_two(x + t * next, next, w + v, sum + (t * strips + v) * size, strips * size, size, count, bytes);
    for (long v = 0; t < tiles && v < strips; v += 4)
        one_by_four(x + t * next, w + v, sum + (t * strips + v) * size, size, count, bytes);
}
#endif
#endif
