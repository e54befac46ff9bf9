// Arm's i8mm: products of many rows, 2 rows and 8 inputs by 8 inputs and 2 columns in one instruction.
//
// The instruction wants 8 inputs of a column side by side, and an interleaved block has 4. Two of its
// registers, zipped by 32 bits, are what is wanted, so the other instruction sets' shape of a block stays:
//
//     block, 4 columns                        zipped, 2 columns           sums of a pair of rows
//     k     [c0 k..k+3  ][c1][c2][c3]   -->   [c0 k..k+7  ][c1 k..k+7]   [r0 c0][r0 c1][r1 c0][r1 c1]
//     k+4   [c0 k+4..k+7][c1][c2][c3]         [c2 k..k+7  ][c3 k..k+7]   [r0 c2][r0 c3][r1 c2][r1 c3]
//
// Four pairs of rows and 8 columns are 16 registers of sums, 4 of weights, 4 of zipped ones and 1 of rows,
// of 32. Every zip is then used by four products.
#pragma once

#include <arm_neon.h>

namespace {

constexpr int64_t kLeastTiled = 3;  // rows; two take as many zips as the dot product takes instructions more
inline void release_tiles() {}

// Adds the products of a strip's block and some rows, at most `2 * kPairs`, to their sums. Where their
// number is odd, the last row is a pair of its own: both halves compute the same.
template <int kPairs>
inline void multiply_pairs(const uint8_t* block, int64_t inputs, const int8_t* x, int64_t stride,
                           int64_t rows, int32_t* sums, int64_t sums_stride, bool first) {
    for (int64_t column = 0; column < kStrip; column += 8) {
        const int8_t* w = reinterpret_cast<const int8_t*>(block) + 4 * column;
        const int8_t *upper[kPairs], *lower[kPairs];
        int32_t *upper_sums[kPairs], *lower_sums[kPairs];
        int32x4_t acc[kPairs][4];
        for (int p = 0; p < kPairs; ++p) {
            const int64_t next = smaller(2 * p + 1, rows - 1);
            upper[p] = x + 2 * p * stride;
            lower[p] = x + next * stride;
            upper_sums[p] = sums + 2 * p * sums_stride + column;
            lower_sums[p] = sums + next * sums_stride + column;
            for (int c = 0; c < 4; ++c)
                acc[p][c] = first ? vdupq_n_s32(0)
                                  : vcombine_s32(vld1_s32(upper_sums[p] + 2 * c), vld1_s32(lower_sums[p] + 2 * c));
        }
        for (int64_t k = 0; k < inputs; k += 8) {
            const int8_t *near = w + k * kStrip, *far = near + 4 * kStrip;
            int8x16_t zipped[4];
            for (int i = 0; i < 2; ++i) {
                const int32x4_t a = vreinterpretq_s32_s8(vld1q_s8(near + 16 * i));
                const int32x4_t b = vreinterpretq_s32_s8(vld1q_s8(far + 16 * i));
                zipped[2 * i] = vreinterpretq_s8_s32(vzip1q_s32(a, b));
                zipped[2 * i + 1] = vreinterpretq_s8_s32(vzip2q_s32(a, b));
            }
            for (int p = 0; p < kPairs; ++p) {
                const int8x16_t pair = vcombine_s8(vld1_s8(upper[p] + k), vld1_s8(lower[p] + k));
                for (int c = 0; c < 4; ++c) acc[p][c] = vmmlaq_s32(acc[p][c], pair, zipped[c]);
            }
        }
        for (int p = 0; p < kPairs; ++p) {
            for (int c = 0; c < 4; ++c) {
                vst1_s32(upper_sums[p] + 2 * c, vget_low_s32(acc[p][c]));
                vst1_s32(lower_sums[p] + 2 * c, vget_high_s32(acc[p][c]));
            }
        }
    }
}

// As `multiply_block`, of blocks that lie side by side. Inputs are read to a whole register: rows are 0 there,
// and a block has room.
inline void multiply_tiles(const uint8_t* blocks, int64_t block_bytes, int64_t strips, int64_t inputs,
                           const int8_t* x, int64_t stride, int64_t rows, int32_t* sums, int64_t sums_stride,
                           bool first) {
    for (int64_t s = 0; s < strips; ++s) {
        const uint8_t* block = blocks + s * block_bytes;
        for (int64_t r = 0; r < rows; r += 8) {
            const int64_t n = smaller(8, rows - r);
            const int8_t* from = x + r * stride;
            int32_t* to = sums + r * sums_stride + s * kStrip;
            switch ((n + 1) / 2) {
                case 4: multiply_pairs<4>(block, inputs, from, stride, n, to, sums_stride, first); break;
                case 3: multiply_pairs<3>(block, inputs, from, stride, n, to, sums_stride, first); break;
                case 2: multiply_pairs<2>(block, inputs, from, stride, n, to, sums_stride, first); break;
                default: multiply_pairs<1>(block, inputs, from, stride, n, to, sums_stride, first);
            }
        }
    }
}

}  // namespace
