// Products of few rows, which the memory's bandwidth limits: weights are interleaved in registers.
//
// An L1 scratch would separate the reading from the multiplying; here each waits for the other as
// little as the processor's reordering allows, and rows ahead are fetched. At most 4 rows share one
// reading: 16 sums, 4 registers of weights and what interleaving needs fit in 32 registers. Up to
// twice as many rows read the block a second time, from L1.
#pragma once

namespace {

constexpr int64_t kFewRows = 8;
constexpr int64_t kWide = 2048;  // columns of a block of (K, N): its rows are read in long runs
constexpr int64_t kHeight = 16;   // inputs of a block: 32 KB of eight bits
constexpr int64_t kAhead = 64;       // inputs that are fetched in advance, of (K, N)
constexpr int64_t kColumnsAhead = 8;  // of (N, K)

// A strip's sums of some rows, and what four bits need beside them.
struct Few {
    const int8_t* x;          // of the first row and input
    int64_t x_stride;
    int32_t* sums;            // of the first row
    int64_t stride;
    bool first;               // whether the block is the first of its columns
    const int32_t* of_bytes;  // four bits: the sum of the block's bytes of the first row
    int64_t of_bytes_stride;
    const Ints* multiples;    // four bits: 4 registers
};

// Adds a block (inputs, 64) of a matrix (K, N) to the sums of kRows rows. A block of four bits
// is the inputs of one multiple, which its sums are multiplied by.
template <int kRows, int kBits>
inline void direct_rows(const uint8_t* p, int64_t stride, int64_t inputs, const Few& few, int64_t ahead) {
    Ints acc[kRows][4];
    for (int r = 0; r < kRows; ++r)
        for (int g = 0; g < 4; ++g) {
            if constexpr (kBits == 8) {
                acc[r][g] = few.first ? Ints::zero() : Ints::load(few.sums + r * few.stride + 16 * g);
            } else {
                acc[r][g] = Ints::splat(-Quads::kOffset * few.of_bytes[r * few.of_bytes_stride]);
            }
        }
    for (int64_t k = 0; k < inputs; k += 4, p += 4 * stride) {
        if (ahead)
            for (int i = 0; i < 4; ++i) prefetch(p + i * stride + ahead);
        Quads w[4];
        if constexpr (kBits == 8) {
            interleave_rows(reinterpret_cast<const int8_t*>(p), static_cast<size_t>(stride), w);
        } else {
            interleave_halves(p, static_cast<size_t>(stride), w);
        }
        for (int r = 0; r < kRows; ++r) {
            const Four four = Four::load(few.x + r * few.x_stride + k);
            for (int g = 0; g < 4; ++g) acc[r][g] = dot(acc[r][g], w[g], four);
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int g = 0; g < 4; ++g) {
            int32_t* sums = few.sums + r * few.stride + 16 * g;
            if constexpr (kBits == 4) {
                // The shift of the weights is not multiplied, and `finish` takes it off.
                const Ints shift = Ints::splat(Quads::kOffset * few.of_bytes[r * few.of_bytes_stride]);
                const Ints before = few.first ? Ints::zero() : Ints::load(sums);
                acc[r][g] = acc[r][g] * few.multiples[g] + shift + before;
            }
            acc[r][g].store(sums);
        }
}

// Sums of kRows rows and the 4 columns of (N, K) from p on, with all their inputs.
template <int kRows>
inline void direct_columns(const int8_t* p, int64_t inputs, const int8_t* x, int64_t x_stride,
                           int32_t* sums, int64_t sums_stride, bool fetch) {
    Ints acc[kRows][4];
    for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < 4; ++c) acc[r][c] = Ints::zero();
    for (int64_t k = 0; k < inputs; k += 64) {
        Quads w[4];
        for (int c = 0; c < 4; ++c) {
            w[c] = side_by_side(p + c * inputs + k);
            if (fetch) prefetch(p + kColumnsAhead * inputs + 4 * k + 64 * c);
        }
        for (int r = 0; r < kRows; ++r) {
            const Four row = side_by_side_row(x + r * x_stride + k);
            for (int c = 0; c < 4; ++c) acc[r][c] = dot(acc[r][c], w[c], row);
        }
    }
    for (int r = 0; r < kRows; ++r)
        store_totals(acc[r][0], acc[r][1], acc[r][2], acc[r][3], sums + r * sums_stride);
}

// Calls `pass(first_row, rows)` for 1 to 4 rows at a time, so that both passes are as large.
template <class Pass>
inline void in_passes(int64_t rows, Pass pass) {
    const int64_t most = rows > 4 ? (rows + 1) / 2 : rows;
    for (int64_t row = 0; row < rows; row += most) pass(row, smaller(most, rows - row));
}

template <int kBits>
inline void direct_rows(int64_t rows, const uint8_t* p, int64_t stride, int64_t inputs, const Few& few,
                        int64_t ahead) {
    switch (rows) {
        case 4: direct_rows<4, kBits>(p, stride, inputs, few, ahead); break;
        case 3: direct_rows<3, kBits>(p, stride, inputs, few, ahead); break;
        case 2: direct_rows<2, kBits>(p, stride, inputs, few, ahead); break;
        default: direct_rows<1, kBits>(p, stride, inputs, few, ahead);
    }
}

// A strip's block where the matrix ends, or where rows begin in the middle of a byte.
inline void few_at_edge(const Product& p, int64_t k, int64_t inputs, int64_t column, int64_t strip,
                        int64_t stride) {
    const int64_t rows = p.rows.count, padded = (inputs + 3) / 4 * 4;
    Room& room = kept_room.get();
    interleave_blocks(p.matrix, k, padded, column, 1, room.block, 0);
    multiply_block(room.block, padded, p.rows.bytes + k, p.rows.stride, rows, room.sums + strip * kStrip,
                   stride, k == 0);
}

// Columns [begin, end) of a matrix (K, N).
inline void few_rows(const Product& p, int64_t begin, int64_t end) {
    const Matrix& m = p.matrix;
    Room& room = kept_room.get();
    const int64_t rows = p.rows.count, x_stride = p.rows.stride, blocks = x_stride / kBlock + 1;
    const int64_t height = m.bits == 4 ? kBlock : kHeight, bytes = m.outputs * m.bits / 8;
    const bool aligned = m.bits == 8 || m.outputs % 2 == 0;
    for (int64_t column = begin; column < end; column += kWide) {
        const int64_t strips = (smaller(kWide, end - column) + kStrip - 1) / kStrip;
        const int64_t stride = strips * kStrip;
        for (int64_t k = 0; k < m.inputs; k += height) {
            const int64_t inputs = smaller(height, m.inputs - k);
            for (int64_t s = 0; s < strips; ++s) {
                const int64_t c = column + s * kStrip;
                if (!aligned || inputs % 4 != 0 || c + kStrip > m.outputs) {
                    few_at_edge(p, k, inputs, c, s, stride);
                    continue;
                }
                const uint8_t* w = m.data + k * bytes + c * m.bits / 8;
                Ints multiples[4];
                if (m.bits == 4) {
                    multiples_at(m, k / kBlock, c, multiples);
                    settle(multiples);
                }
                in_passes(rows, [&](int64_t row, int64_t n) {
                    const int64_t ahead = row ? 0 : kAhead * bytes, at = row * stride + s * kStrip;
                    const Few few{p.rows.bytes + row * x_stride + k, x_stride, room.sums + at, stride,
                                  k == 0, p.rows.sums + row * blocks + k / kBlock, blocks, multiples};
                    if (m.bits == 8) {
                        direct_rows<8>(n, w, bytes, inputs, few, ahead);
                    } else {
                        direct_rows<4>(n, w, bytes, inputs, few, ahead);
                    }
                });
            }
        }
        for (int64_t s = 0; s < strips; ++s)
            finish(p, 0, rows, column + s * kStrip, room.sums + s * kStrip, stride);
    }
}

void multiply_rows(const Product&, int64_t, int64_t, int64_t, int64_t);

// Columns [begin, end) of a matrix (N, K) with K a multiple of 64.
inline void few_columns(const Product& p, int64_t begin, int64_t end) {
    const Matrix& m = p.matrix;
    Room& room = kept_room.get();
    const int64_t x_stride = p.rows.stride, last = m.outputs - kColumnsAhead - 4;
    for (int64_t column = begin; column < end; column += kStrip) {
        const int64_t columns = smaller(kStrip, end - column);
        if (columns < 4) return multiply_rows(p, column, end, 0, p.rows.count);
        for (int64_t c = 0; c < columns; c += 4) {
            // The last columns may be fewer than 4; those before them are then computed again.
            const int64_t at = smaller(column + c, m.outputs - 4);
            const int8_t* w = reinterpret_cast<const int8_t*>(m.data) + at * m.inputs;
            in_passes(p.rows.count, [&](int64_t row, int64_t n) {
                const int8_t* x = p.rows.bytes + row * x_stride;
                int32_t* sums = room.sums + row * kStrip + at - column;
                const bool fetch = !row && at <= last;
                switch (n) {
                    case 4: direct_columns<4>(w, m.inputs, x, x_stride, sums, kStrip, fetch); break;
                    case 3: direct_columns<3>(w, m.inputs, x, x_stride, sums, kStrip, fetch); break;
                    case 2: direct_columns<2>(w, m.inputs, x, x_stride, sums, kStrip, fetch); break;
                    default: direct_columns<1>(w, m.inputs, x, x_stride, sums, kStrip, fetch);
                }
            });
        }
        finish(p, 0, p.rows.count, column, room.sums, kStrip);
    }
}

void multiply_few(const Product& p, int64_t begin, int64_t end) {
    if (!p.matrix.transposed) return few_rows(p, begin, end);
    if (p.matrix.inputs % 64 == 0)  // whole registers of inputs
        return few_columns(p, begin, end);
    multiply_rows(p, begin, end, 0, p.rows.count);
}

}  // namespace
