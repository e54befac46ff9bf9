// Products of rounded rows and a matrix of eight or four bits that lies as in the weights file.
//
// The instruction that multiplies bytes wants four inputs of each column side by side (`Quads`).
// A matrix (K, N) has a column's inputs N bytes apart; a matrix (N, K) has 4 inputs side by side but
// the columns K bytes apart. So a block of the matrix is interleaved, and then multiplied by the rows:
//
//     matrix (K, N)                 block, 64 columns wide          sums, 4 rows x 64 columns
//     k    [c0 c1 c2 ... c63]       [c0k c0k+1 c0k+2 c0k+3 c1k ...]
//     k+1  [c0 c1 c2 ... c63]  -->     4 registers of 64 bytes  -->   16 registers of 16 sums,
//     k+2  [c0 c1 c2 ... c63]          for every 4 inputs             4 of weights, 1 of a row
//     k+3  [c0 c1 c2 ... c63]
//
// A number of four bits becomes one of eight when its block is interleaved: times the multiple that the
// scale of its 32 inputs is of the scale of its column. From there on both are the same.
//
// Sums are exact, so neither the shape of a block nor the number of rows changes a result. With K up
// to 2^31 / (127 * 255) = 66,000 inputs they cannot overflow; the operator checks that.
#pragma once

namespace {

constexpr int64_t kStrip = 64;           // columns of a block's strip
constexpr int64_t kMostHeight = 512;     // inputs of a block
constexpr int64_t kScratch = 128 << 10;  // bytes of interleaved blocks, which lie in L2
constexpr int64_t kMostRows = 256;       // rows that share interleaved blocks
constexpr int64_t kSums = kMostRows * 256;
constexpr int64_t kMostStrips = kScratch / (kMostHeight / 2 * kStrip);  // whose blocks lie side by side

struct Room {
    alignas(64) uint8_t block[kScratch];
    alignas(64) int32_t sums[kSums];  // rows x the columns of all blocks
    alignas(64) int8_t multiples[kMostStrips * kStrip];
};

// Memory that a thread takes when it first needs it, and keeps. A plain variable of the thread would take
// it in every thread and for every instruction set.
template <class T>
struct Kept {
    T* held = nullptr;
    ~Kept() { delete held; }
    T& get() { return held ? *held : *(held = new T); }
};
thread_local Kept<Room> kept_room;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The bytes of 4 rows of 64 columns at input k, where the matrix may end before them.
struct Edge {
    int8_t bytes[4 * 64];
};

// The multiples of 64 columns' scales that a block of four bits has, whatever an untrusted file has there.
inline void multiples_at(const Matrix& m, int64_t block, int64_t column, Ints (&out)[4]) {
    const Floats zero = Floats::splat(0), least = Floats::splat(-kLargestMultiple);
    for (int g = 0; g < 4; ++g) {
        const int64_t c = column + 16 * g, n = m.outputs - c;
        if (n <= 0) {
            out[g] = Ints::zero();
            continue;
        }
        const uint16_t* scales = m.scales + block * m.outputs + c;
        uint16_t padded[16] = {};
        if (n < 16) {
            std::memcpy(padded, scales, sizeof(uint16_t) * static_cast<size_t>(n));
            scales = padded;
        }
        // `larger` makes the least of what is no number.
        const Floats some = larger(Floats::of_half(scales) * load_some(m.inverse + c, n), least);
        out[g] = (zero - larger(zero - some, least)).nearest();
    }
}

// Four rows of 64 numbers of four bits, where the matrix may end before them, as bytes.
inline void widen_at(const Matrix& m, int64_t k, int64_t column, Edge& edge) {
    const bool whole = column + kStrip <= m.outputs;
    for (int64_t i = 0; i < smaller(4, m.inputs - k); ++i) {
        const int64_t number = (k + i) * m.outputs + column;
        const uint8_t* p = m.data + number / 2;
        uint8_t moved[32];
        if (!whole) {
            for (int64_t c = 0; c < smaller(kStrip, m.outputs - column); ++c) {
                const int half = m.data[(number + c) / 2] >> ((number + c) % 2 * 4) & 15;
                edge.bytes[i * 64 + c] = static_cast<int8_t>((half ^ 8) - 8);
            }
            continue;
        }
        if (number % 2) {  // with an odd N, every other row begins in the middle of a byte
            for (int c = 0; c < 32; ++c) moved[c] = static_cast<uint8_t>(p[c] >> 4 | p[c + 1] << 4);
            p = moved;
        }
        widen(p, edge.bytes + i * 64);
    }
}

// Interleaves inputs k ... k + 3 of the 64 columns from `column` on, of a matrix (K, N); those of four bits
// times their multiples.
inline void interleave_at(const Matrix& m, int64_t k, int64_t column, const int8_t* multiples, uint8_t* out) {
    const bool whole = k + 4 <= m.inputs && column + kStrip <= m.outputs;
    const int8_t* p = reinterpret_cast<const int8_t*>(m.data) + (k * m.outputs + column) * m.bits / 8;
    if (whole && m.bits == 8) return interleave_rows(p, static_cast<size_t>(m.outputs), out);
#ifdef M2M100_DIRECT
    if (whole && m.outputs % 2 == 0) {
        const uint8_t* halves = reinterpret_cast<const uint8_t*>(p);
        return interleave_multiples(halves, static_cast<size_t>(m.outputs / 2), multiples, out);
    }
#endif
    Edge edge = {};
    if (m.bits == 8) {
        const int64_t width = smaller(kStrip, m.outputs - column);
        for (int64_t i = 0; i < smaller(4, m.inputs - k); ++i)
            std::memcpy(edge.bytes + i * 64, p + i * m.outputs, static_cast<size_t>(width));
    } else {
        widen_at(m, k, column, edge);
        for (int i = 0; i < 4; ++i) times(edge.bytes + 64 * i, multiples);
    }
    interleave_rows(edge.bytes, 64, out);
}

// Interleaves inputs k ... k + 63 of the 16 columns from `column` on, of a matrix (N, K).
inline void transpose_at(const Matrix& m, int64_t k, int64_t column, uint8_t* out) {
    const int8_t* data = reinterpret_cast<const int8_t*>(m.data);
    if (k + 64 <= m.inputs && column + 16 <= m.outputs) {
        const int8_t* p = data + column * m.inputs + k;
        return transpose(p, static_cast<size_t>(m.inputs), out);
    }
    int8_t padded[16 * 64] = {};
    const int64_t length = smaller(64, m.inputs - k);
    for (int64_t i = 0; i < smaller(16, m.outputs - column) && length > 0; ++i)
        std::memcpy(padded + i * 64, data + (column + i) * m.inputs + k, static_cast<size_t>(length));
    transpose(padded, 64, out);
}

// Interleaves the blocks of strips that lie side by side, one block behind the other. A matrix is read in
// runs as long as they can be: processors fetch ahead of runs by themselves, and not of single lines of
// many rows.
inline void interleave_blocks(const Matrix& m, int64_t k, int64_t inputs, int64_t column, int64_t strips,
                              uint8_t* blocks, int64_t block_bytes) {
    if (m.transposed) {
        for (int64_t c = 0; c < 4 * strips; ++c)
            for (int64_t i = 0; i < inputs; i += 64)
                transpose_at(m, k + i, column + 16 * c,
                             blocks + c / 4 * block_bytes + i * kStrip + c % 4 * 64);
    } else {
        int8_t* multiples = kept_room.get().multiples;
        for (int64_t i = 0; i < inputs; i += 4) {
            if (m.bits == 4 && i % kBlock == 0) {
                for (int64_t s = 0; s < strips; ++s) {
                    Ints of[4];
                    multiples_at(m, (k + i) / kBlock, column + s * kStrip, of);
                    for (int g = 0; g < 4; ++g) of[g].store_bytes(multiples + s * kStrip + 16 * g);
                }
            }
            for (int64_t s = 0; s < strips; ++s)
                interleave_at(m, k + i, column + s * kStrip, multiples + s * kStrip,
                              blocks + s * block_bytes + i * kStrip);
        }
    }
}

// Adds the products of `kRows` rows and a strip's block of `inputs` inputs to their sums.
template <int kRows>
inline void multiply_tile(const uint8_t* block, int64_t inputs, const int8_t* x, int64_t stride,
                          int32_t* sums, int64_t sums_stride, bool first) {
    constexpr int kGroups = Quads::kTileGroups;
    for (int at = 0; at < 4; at += kGroups) {
        Ints acc[kRows][kGroups];
        for (int r = 0; r < kRows; ++r)
            for (int g = 0; g < kGroups; ++g)
                acc[r][g] = first ? Ints::zero() : Ints::load(sums + r * sums_stride + 16 * (at + g));
        for (int64_t k = 0; k < inputs; k += 4) {
            Quads w[kGroups];
            for (int g = 0; g < kGroups; ++g) w[g] = Quads::load(block + k * kStrip + 64 * (at + g));
            for (int r = 0; r < kRows; ++r) {
                const Four four = Four::load(x + r * stride + k);
                for (int g = 0; g < kGroups; ++g) acc[r][g] = dot(acc[r][g], w[g], four);
            }
        }
        for (int r = 0; r < kRows; ++r)
            for (int g = 0; g < kGroups; ++g) acc[r][g].store(sums + r * sums_stride + 16 * (at + g));
    }
}

}  // namespace

#if defined(M2M100_TILES)
#include "tiles.h"
#elif defined(M2M100_PAIRS)
#include "pairs.h"
#else
constexpr int64_t kLeastTiled = kMostRows + 1;
inline void release_tiles() {}
inline void multiply_tiles(const uint8_t*, int64_t, int64_t, int64_t, const int8_t*, int64_t, int64_t, int32_t*,
                           int64_t, bool) {}
#endif

namespace {

inline void multiply_block(const uint8_t* block, int64_t inputs, const int8_t* x, int64_t stride,
                           int64_t rows, int32_t* sums, int64_t sums_stride, bool first) {
    while (rows > 0) {
        // 5 rows are 3 and 2, and not 4 and 1: a tile of one row waits for its weights.
        const int64_t n = rows == 5 || rows == 6 ? 3 : smaller(4, rows);
        switch (n) {
            case 4: multiply_tile<4>(block, inputs, x, stride, sums, sums_stride, first); break;
            case 3: multiply_tile<3>(block, inputs, x, stride, sums, sums_stride, first); break;
            case 2: multiply_tile<2>(block, inputs, x, stride, sums, sums_stride, first); break;
            default: multiply_tile<1>(block, inputs, x, stride, sums, sums_stride, first);
        }
        rows -= n;
        x += n * stride;
        sums += n * sums_stride;
    }
}

// Scales a strip's sums, adds bias and residual, and writes them. A whole strip has all of its columns.
template <bool kWhole>
inline void finish_strip(const Product& p, int64_t first_row, int64_t rows, int64_t column,
                         const int32_t* sums, int64_t stride) {
    const Matrix& m = p.matrix;
    const int64_t last = p.rows.stride / kBlock;
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = first_row + r;
        const Floats step = Floats::splat(p.rows.step[row]);
        const Floats shifted_by = step * Floats::splat(static_cast<float>(kReluShift));
        // Shifted weights add their shift times the sum of the row's bytes.
        const Ints excess = Ints::splat(Quads::kOffset * p.rows.sums[row * (last + 1) + last]);
        Ints whole[4];
        for (int g = 0; g < 4; ++g) whole[g] = Ints::load(sums + r * stride + 16 * g) - excess;
        if (!m.transposed) settle(whole);
        for (int g = 0; g < 4; ++g) {
            const int64_t c = column + 16 * g, n = kWhole ? 16 : m.outputs - c;
            if (n <= 0) break;
            Floats y = Floats::of(whole[g]) * step * load_some(m.scale + c, n);
            if (p.columns) y = fma(load_some(p.columns + c, n), shifted_by, y);
            if (p.bias) y = y + load_some(p.bias + c, n);
            if (p.residual) y = y + load_some(p.residual + row * m.outputs + c, n);
            store_some(p.out + row * p.out_stride + c - p.out_first, n, y);
        }
    }
}

inline void finish(const Product& p, int64_t first_row, int64_t rows, int64_t column,
                   const int32_t* sums, int64_t stride) {
    if (column + kStrip <= p.matrix.outputs) {
        finish_strip<true>(p, first_row, rows, column, sums, stride);
    } else {
        finish_strip<false>(p, first_row, rows, column, sums, stride);
    }
}

}  // namespace

#ifdef M2M100_DIRECT
#include "few_rows.h"
#else
constexpr int64_t kFewRows = 0;
inline void multiply_few(const Product&, int64_t, int64_t) {}
#endif

namespace {

// Columns [begin, end) for rows [first_row, first_row + rows), all of whose sums fit in the room.
//
// The weights of a block are read from memory once, from L2 by the first rows, and from L1 by the others.
void multiply_rows(const Product& p, int64_t begin, int64_t end, int64_t first_row, int64_t rows) {
    const Matrix& m = p.matrix;
    Room& here = kept_room.get();
    const int8_t* x = p.rows.bytes + first_row * p.rows.stride;
    // A matrix (K, N) has its runs in a row, and (N, K) in a column.
    const int64_t height = m.transposed ? kMostHeight : kMostHeight / 2, block_bytes = height * kStrip;
    const int64_t width = smaller(kScratch / block_bytes * kStrip, kSums / rows / kStrip * kStrip);
    for (int64_t column = begin; column < end; column += width) {
        const int64_t strips = (smaller(width, end - column) + kStrip - 1) / kStrip;
        const int64_t stride = strips * kStrip;
        for (int64_t k = 0; k < m.inputs; k += height) {
            // Rows are padded with zeros to whole blocks, so what a block holds beyond is not used.
            const int64_t inputs = smaller(height, (m.inputs - k + 3) / 4 * 4);
            interleave_blocks(m, k, inputs, column, strips, here.block, block_bytes);
            if (rows >= kLeastTiled) {
                multiply_tiles(here.block, block_bytes, strips, inputs, x + k, p.rows.stride, rows, here.sums,
                               stride, k == 0);
                continue;
            }
            for (int64_t s = 0; s < strips; ++s)
                multiply_block(here.block + s * block_bytes, inputs, x + k, p.rows.stride, rows,
                               here.sums + s * kStrip, stride, k == 0);
        }
        for (int64_t s = 0; s < strips; ++s)
            finish(p, first_row, rows, column + s * kStrip, here.sums + s * kStrip, stride);
    }
    release_tiles();
}

void multiply(const Product& p, int64_t begin, int64_t end) {
    if (p.rows.count <= kFewRows) return multiply_few(p, begin, end);
    for (int64_t row = 0; row < p.rows.count; row += kMostRows)
        multiply_rows(p, begin, end, row, smaller(kMostRows, p.rows.count - row));
}

}  // namespace
