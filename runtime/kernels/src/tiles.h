// AMX: products of many rows, 16 rows and 64 inputs by 64 inputs and 16 columns in one instruction.
//
// The instruction wants of the weights what an interleaved block is: four inputs of 16 columns side by
// side. So tiles read the block as it is, and the other instruction sets' shape stays:
//
//     rows (16 x 64 bytes)        block, 64 inputs of 64 columns         sums, 16 rows x 64 columns
//     r0  [k0 k1 k2 ... k63]      q0   [group 0][group 1][   2][   3]
//     r1  [k0 k1 k2 ... k63]  x   q1   [group 0][group 1][   2][   3] -->  4 tiles of 16 x 16
//     ...                         ...     one tile a group: 16 lines
//     r15 [k0 k1 k2 ... k63]      q15  [group 0][group 1][   2][   3]      256 bytes apart
//
// Tiles 0 to 3 are sums, 4 is rows, 5 to 7 are weights. Four instructions of 16 cycles read five tiles
// in 40 cycles. Rows come from L2 once a block and weights from L1 once a tile of rows.
#pragma once

#include <immintrin.h>

namespace {

constexpr int64_t kLeastTiled = 9;   // rows; fewer of them wait for memory whatever multiplies them
constexpr int64_t kTileHeight = 16;  // rows of a tile
constexpr int64_t kTileInputs = 64;  // bytes of its rows

// Rows and bytes of every tile, as the processor reads them (Intel's SDM, LDTILECFG).
struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {};
    explicit TileShapes(int64_t of_rows) {
        for (int i = 0; i < 5; ++i) rows[i] = static_cast<uint8_t>(of_rows);
        for (int i = 5; i < 8; ++i) rows[i] = 16;
    }
};

// The thread's tiles go back when a part ends: their 8 KB would be saved at every switch of threads.
inline void release_tiles() { _tile_release(); }

// Adds the products of a block and some rows, at most a tile's, to their sums.
inline void multiply_tile_of_rows(const uint8_t* block, int64_t inputs, const int8_t* x, size_t stride,
                                  int32_t* sums, size_t sums_stride, bool first) {
    const size_t apart = sums_stride * sizeof(int32_t), quads = 4 * kTileInputs;
    // The compiler must not move what writes the block behind what reads it: it sees no pointer.
    asm volatile("" ::: "memory");
    if (first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, apart);
        _tile_loadd(1, sums + 16, apart);
        _tile_loadd(2, sums + 32, apart);
        _tile_loadd(3, sums + 48, apart);
    }
    for (int64_t k = 0; k < inputs; k += kTileInputs) {
        const uint8_t* w = block + k * kStrip;
        _tile_loadd(4, x + k, stride);
        _tile_loadd(5, w, quads);
        _tile_dpbsud(0, 4, 5);
        _tile_loadd(6, w + 64, quads);
        _tile_dpbsud(1, 4, 6);
        _tile_loadd(7, w + 128, quads);
        _tile_dpbsud(2, 4, 7);
        _tile_loadd(5, w + 192, quads);
        _tile_dpbsud(3, 4, 5);
    }
    _tile_stored(0, sums, apart);
    _tile_stored(1, sums + 16, apart);
    _tile_stored(2, sums + 32, apart);
    _tile_stored(3, sums + 48, apart);
}

// As `multiply_block`, of blocks that lie side by side. Inputs are read to a whole tile: rows are 0 there, and
// a block has room.
//
// All whole tiles come first and then the rest of the rows, because to shape tiles anew takes as long as the
// products of two of them.
inline void multiply_tiles(const uint8_t* blocks, int64_t block_bytes, int64_t strips, int64_t inputs,
                           const int8_t* x, int64_t stride, int64_t rows, int32_t* sums, int64_t sums_stride,
                           bool first) {
    const int64_t whole = rows / kTileHeight * kTileHeight;
    for (int64_t from = 0, end = whole ? whole : rows; from < rows; from = end, end = rows) {
        const TileShapes shapes(smaller(kTileHeight, end - from));
        asm volatile("" : : "r"(&shapes) : "memory");  // the intrinsic reads more than it says
        _tile_loadconfig(&shapes);
        for (int64_t s = 0; s < strips; ++s)
            for (int64_t r = from; r < end; r += kTileHeight)
                multiply_tile_of_rows(blocks + s * block_bytes, inputs, x + r * stride,
                                      static_cast<size_t>(stride), sums + r * sums_stride + s * kStrip,
                                      static_cast<size_t>(sums_stride), first);
    }
}

}  // namespace
