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
// Sums are exact, so neither the shape of a block nor the number of rows changes a result. With K up
// to 2^31 / (127 * 255) = 66,000 inputs they cannot overflow; the operator checks that.
#pragma once

namespace {

constexpr int64_t kStrip = 64;           // columns of a block's strip
constexpr int64_t kScratch = 64 * 256;   // bytes of an interleaved block: half of a 32 KB L1
constexpr int64_t kMostRows = 256;       // rows that share an interleaved block
constexpr int64_t kSums = kMostRows * 64;
constexpr int64_t kAhead = 64;           // rows of the matrix that are fetched in advance

struct Room {
    alignas(64) uint8_t block[kScratch];
    alignas(64) int32_t sums[kSums];     // rows x strip columns, or x wide columns with few rows
    alignas(64) float totals[kSums];     // the same of four bits, where every block has its scales
    alignas(64) float scales[kScratch / 64 / kBlock * 64];  // of the blocks of a strip
};
thread_local Room room;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The bytes of 4 rows of 64 columns at input k, where the matrix may end before them.
struct Edge {
    int8_t bytes[4 * 64];
};

// Interleaves inputs k ... k + 3 of the 64 columns from `column` on, of a matrix (K, N).
inline void interleave_at(const Matrix& m, int64_t k, int64_t column, uint8_t* out) {
    const bool whole = k + 4 <= m.inputs && column + kStrip <= m.outputs;
    if (m.bits == 8) {
        const int8_t* p = reinterpret_cast<const int8_t*>(m.data) + k * m.outputs + column;
        if (whole) return interleave_rows(p, static_cast<size_t>(m.outputs), out);
        Edge edge = {};
        const int64_t width = smaller(kStrip, m.outputs - column);
        for (int64_t i = 0; i < smaller(4, m.inputs - k); ++i)
            std::memcpy(edge.bytes + i * 64, p + i * m.outputs, static_cast<size_t>(width));
        return interleave_rows(edge.bytes, 64, out);
    }
    Edge edge = {};
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

// Interleaves the block of a strip.
inline void interleave_block(const Matrix& m, int64_t k, int64_t inputs, int64_t column,
                             uint8_t* block) {
    if (m.transposed) {
        for (int64_t i = 0; i < inputs; i += 64)
            for (int64_t g = 0; g < 4; ++g)
                transpose_at(m, k + i, column + 16 * g, block + i * kStrip + 64 * g);
    } else {
        for (int64_t i = 0; i < inputs; i += 4)
            interleave_at(m, k + i, column, block + i * kStrip);
    }
}

// What a block's tiles fetch while they multiply: the strip's next block, a line for every 4 inputs.
// Four tiles of 4 rows fetch it all. Memory then works while the processor does.
struct Next {
    const uint8_t* line;  // null where there is none
    int64_t per_tile, per_quad;
};

// The block that a strip reads after that at k, in this group of strips or the next.
inline Next next_of(const Matrix& m, int64_t k, int64_t height, int64_t column, int64_t width,
                    int64_t end) {
    k += height;
    if (k >= m.inputs) {
        k = 0;
        column += width;
    }
    if (column >= end) return {};
    if (m.transposed) return {m.data + column * m.inputs + k, 64, m.inputs};
    const int64_t bytes = m.outputs * m.bits / 8;
    return {m.data + k * bytes + column * m.bits / 8, bytes, 4 * bytes};
}

// Adds the products of `kRows` rows and a strip's block of `inputs` inputs to their sums.
template <int kRows>
inline void multiply_tile(const uint8_t* block, int64_t inputs, const int8_t* x, int64_t stride,
                          int32_t* sums, int64_t sums_stride, bool first, const Next& next) {
    constexpr int kGroups = Quads::kTileGroups;
    const uint8_t* line = next.line;
    for (int at = 0; at < 4; at += kGroups, line = nullptr) {
        Ints acc[kRows][kGroups];
        for (int r = 0; r < kRows; ++r)
            for (int g = 0; g < kGroups; ++g)
                acc[r][g] = first ? Ints::zero() : Ints::load(sums + r * sums_stride + 16 * (at + g));
        for (int64_t k = 0; k < inputs; k += 4) {
            Quads w[kGroups];
            for (int g = 0; g < kGroups; ++g) w[g] = Quads::load(block + k * kStrip + 64 * (at + g));
            if (line) {
                prefetch(line);
                line += next.per_quad;
            }
            for (int r = 0; r < kRows; ++r) {
                const Four four = Four::load(x + r * stride + k);
                for (int g = 0; g < kGroups; ++g) acc[r][g] = dot(acc[r][g], w[g], four);
            }
        }
        for (int r = 0; r < kRows; ++r)
            for (int g = 0; g < kGroups; ++g) acc[r][g].store(sums + r * sums_stride + 16 * (at + g));
    }
}

inline void multiply_block(const uint8_t* block, int64_t inputs, const int8_t* x, int64_t stride,
                           int64_t rows, int32_t* sums, int64_t sums_stride, bool first,
                           Next next = {}) {
    for (int tile = 0; rows > 0; ++tile) {
        if (tile == 4) next.line = nullptr;
        // 5 rows are 3 and 2, and not 4 and 1: a tile of one row waits for its weights.
        const int64_t n = rows == 5 || rows == 6 ? 3 : smaller(4, rows);
        switch (n) {
            case 4: multiply_tile<4>(block, inputs, x, stride, sums, sums_stride, first, next); break;
            case 3: multiply_tile<3>(block, inputs, x, stride, sums, sums_stride, first, next); break;
            case 2: multiply_tile<2>(block, inputs, x, stride, sums, sums_stride, first, next); break;
            default: multiply_tile<1>(block, inputs, x, stride, sums, sums_stride, first, next);
        }
        rows -= n;
        x += n * stride;
        sums += n * sums_stride;
        if (next.line) next.line += next.per_tile;
    }
}

// The scales of a strip's columns in one block of four bits, in the order of its sums.
inline void scales_at(const Matrix& m, int64_t block, int64_t column, Floats (&out)[4]) {
    const uint16_t* scales = m.scales + block * m.outputs + column;
    uint16_t padded[64] = {};
    if (column + kStrip > m.outputs) {
        std::memcpy(padded, scales, sizeof(uint16_t) * static_cast<size_t>(m.outputs - column));
        scales = padded;
    }
    for (int g = 0; g < 4; ++g) out[g] = Floats::of_half(scales + 16 * g);
    settle(out);
}

// The same as `multiply_tile` of four bits: the sums of every block are scaled and added to totals.
// Two rows at most: both have 4 sums and 4 totals, beside 4 registers of weights and 4 of scales.
template <int kRows>
inline void multiply_scaled(const uint8_t* block, int64_t inputs, const int8_t* x, int64_t stride,
                            const int32_t* sums, int64_t sums_stride, const float* scales,
                            float* totals, int64_t totals_stride, bool first, const Next& next) {
    constexpr int kGroups = Quads::kTileGroups;
    const uint8_t* line = next.line;
    for (int at = 0; at < 4; at += kGroups, line = nullptr) {
        Floats total[kRows][kGroups];
        for (int r = 0; r < kRows; ++r)
            for (int g = 0; g < kGroups; ++g)
                total[r][g] = first ? Floats::splat(0)
                                    : Floats::load(totals + r * totals_stride + 16 * (at + g));
        for (int64_t begin = 0; begin < inputs; begin += kBlock) {
            const int64_t end = smaller(inputs, begin + kBlock);
            Ints acc[kRows][kGroups];
            for (int r = 0; r < kRows; ++r)
                for (int g = 0; g < kGroups; ++g)
                    acc[r][g] = Ints::splat(-Quads::kOffset * sums[r * sums_stride + begin / kBlock]);
            for (int64_t k = begin; k < end; k += 4) {
                Quads w[kGroups];
                for (int g = 0; g < kGroups; ++g)
                    w[g] = Quads::load(block + k * kStrip + 64 * (at + g));
                if (line) {
                    prefetch(line);
                    line += next.per_quad;
                }
                for (int r = 0; r < kRows; ++r) {
                    const Four four = Four::load(x + r * stride + k);
                    for (int g = 0; g < kGroups; ++g) acc[r][g] = dot(acc[r][g], w[g], four);
                }
            }
            for (int g = 0; g < kGroups; ++g) {
                const Floats scale = Floats::load(scales + begin / kBlock * 64 + 16 * (at + g));
                for (int r = 0; r < kRows; ++r)
                    total[r][g] = fma(Floats::of(acc[r][g]), scale, total[r][g]);
            }
        }
        for (int r = 0; r < kRows; ++r)
            for (int g = 0; g < kGroups; ++g)
                total[r][g].store(totals + r * totals_stride + 16 * (at + g));
    }
}

// A strip's block of four bits, for all rows.
inline void multiply_scaled_block(const Product& p, int64_t first_row, int64_t rows, int64_t k,
                                  int64_t inputs, int64_t column, const uint8_t* block, float* totals,
                                  int64_t totals_stride, Next next) {
    Room& here = room;
    for (int64_t i = 0; i < inputs; i += kBlock) {
        Floats scales[4];
        scales_at(p.matrix, (k + i) / kBlock, column, scales);
        for (int g = 0; g < 4; ++g) scales[g].store(here.scales + i / kBlock * 64 + 16 * g);
    }
    const int64_t stride = p.rows.stride, sums_stride = stride / kBlock + 1;
    for (int64_t r = 0; r < rows; r += 2) {
        if (r == 8) next.line = nullptr;
        const int8_t* x = p.rows.bytes + (first_row + r) * stride + k;
        const int32_t* sums = p.rows.sums + (first_row + r) * sums_stride + k / kBlock;
        float* to = totals + r * totals_stride;
        if (r + 1 < rows) {
            multiply_scaled<2>(block, inputs, x, stride, sums, sums_stride, here.scales, to,
                               totals_stride, k == 0, next);
        } else {
            multiply_scaled<1>(block, inputs, x, stride, sums, sums_stride, here.scales, to,
                               totals_stride, k == 0, next);
        }
        if (next.line) next.line += next.per_tile;
    }
}

// Scales a strip's sums, adds bias and residual, and writes them.
inline void finish(const Product& p, int64_t first_row, int64_t rows, int64_t column,
                   const int32_t* sums, const float* totals, int64_t stride) {
    const Matrix& m = p.matrix;
    const int64_t last = p.rows.stride / kBlock;
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = first_row + r;
        const Floats step = Floats::splat(p.rows.step[row]);
        const Floats shifted_by = step * Floats::splat(static_cast<float>(kReluShift));
        Floats y[4];
        if (m.bits == 8) {
            // Shifted weights add their shift times the sum of the row's bytes.
            const Ints excess = Ints::splat(Quads::kOffset * p.rows.sums[row * (last + 1) + last]);
            Ints whole[4];
            for (int g = 0; g < 4; ++g) whole[g] = Ints::load(sums + r * stride + 16 * g) - excess;
            if (!m.transposed) settle(whole);
            for (int g = 0; g < 4; ++g) y[g] = Floats::of(whole[g]) * step;
        } else {
            for (int g = 0; g < 4; ++g) y[g] = Floats::load(totals + r * stride + 16 * g) * step;
            settle(y);
        }
        for (int g = 0; g < 4; ++g) {
            const int64_t c = column + 16 * g, n = m.outputs - c;
            if (n <= 0) break;
            if (m.bits == 8) y[g] = y[g] * load_some(m.scale + c, n);
            if (p.columns) y[g] = fma(load_some(p.columns + c, n), shifted_by, y[g]);
            if (p.bias) y[g] = y[g] + load_some(p.bias + c, n);
            if (p.residual) y[g] = y[g] + load_some(p.residual + row * m.outputs + c, n);
            store_some(p.out + row * p.out_stride + c - p.out_first, n, y[g]);
        }
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
// A block is wide and low where rows are few, so that bytes that lie side by side in the file are
// read one after another. With many rows it is one strip.
void multiply_rows(const Product& p, int64_t begin, int64_t end, int64_t first_row, int64_t rows) {
    const Matrix& m = p.matrix;
    Room& here = room;
    const int8_t* x = p.rows.bytes + first_row * p.rows.stride;
    const int64_t height = rows <= 32 && !m.transposed ? 128 : 256;
    const int64_t width = smaller(kScratch / height, kSums / rows) / kStrip * kStrip;
    for (int64_t column = begin; column < end; column += width) {
        const int64_t strips = (smaller(width, end - column) + kStrip - 1) / kStrip;
        const int64_t stride = strips * kStrip;
        for (int64_t k = 0; k < m.inputs; k += height) {
            // Rows are padded with zeros to whole blocks, so what a block holds beyond is not used.
            const int64_t inputs = smaller(height, (m.inputs - k + 3) / 4 * 4);
            for (int64_t s = 0; s < strips; ++s) {
                const int64_t c = column + s * kStrip;
                int32_t* sums = here.sums + s * kStrip;
                const Next next = next_of(m, k, height, c, width, end);
                interleave_block(m, k, inputs, c, here.block);
                if (m.bits == 8) {
                    multiply_block(here.block, inputs, x + k, p.rows.stride, rows, sums, stride,
                                   k == 0, next);
                } else {
                    multiply_scaled_block(p, first_row, rows, k, inputs, c, here.block,
                                          here.totals + s * kStrip, stride, next);
                }
            }
        }
        for (int64_t s = 0; s < strips; ++s)
            finish(p, first_row, rows, column + s * kStrip, here.sums + s * kStrip,
                   here.totals + s * kStrip, stride);
    }
}

void multiply(const Product& p, int64_t begin, int64_t end) {
    if (p.rows.count <= kFewRows) return multiply_few(p, begin, end);
    for (int64_t row = 0; row < p.rows.count; row += kMostRows)
        multiply_rows(p, begin, end, row, smaller(kMostRows, p.rows.count - row));
}

}  // namespace
