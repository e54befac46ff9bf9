// Arm's NEON with the dot product (ARMv8.2): 16 numbers are four registers, and one instruction
// multiplies 16 pairs of bytes.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

struct Ints {
    int32x4_t v[4];
    static Ints splat(int32_t x) {
        const int32x4_t y = vdupq_n_s32(x);
        return {{y, y, y, y}};
    }
    static Ints zero() { return splat(0); }
    static Ints load(const int32_t* p) {
        return {{vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)}};
    }
    void store(int32_t* p) const {
        for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, v[i]);
    }
    // Numbers must lie between -128 and 127.
    void store_bytes(int8_t* p) const {
        const int16x8_t low = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1]));
        const int16x8_t high = vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3]));
        vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    }
};
inline Ints operator+(Ints x, Ints y) {
    for (int i = 0; i < 4; ++i) x.v[i] = vaddq_s32(x.v[i], y.v[i]);
    return x;
}
inline Ints operator-(Ints x, Ints y) {
    for (int i = 0; i < 4; ++i) x.v[i] = vsubq_s32(x.v[i], y.v[i]);
    return x;
}

struct Floats {
    float32x4_t v[4];
    static Floats splat(float x) {
        const float32x4_t y = vdupq_n_f32(x);
        return {{y, y, y, y}};
    }
    static Floats load(const float* p) {
        return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
    }
    static Floats of(Ints x) {
        Floats y;
        for (int i = 0; i < 4; ++i) y.v[i] = vcvtq_f32_s32(x.v[i]);
        return y;
    }
    static Floats of_half(const uint16_t* p) {
        Floats y;
        for (int i = 0; i < 4; ++i)
            y.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
        return y;
    }
    void store(float* p) const {
        for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, v[i]);
    }
    void store_half(uint16_t* p) const {
        for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(v[i])));
    }
    Ints nearest() const {
        Ints y;
        for (int i = 0; i < 4; ++i) y.v[i] = vcvtnq_s32_f32(v[i]);
        return y;
    }
    // 2 ** x for whole numbers x between -126 and 127.
    static Floats power_of_two(Ints x) {
        Floats y;
        for (int i = 0; i < 4; ++i)
            y.v[i] = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(x.v[i], vdupq_n_s32(127)), 23));
        return y;
    }
    bool any_above(Floats x) const {
        uint32x4_t any = vcgtq_f32(v[0], x.v[0]);
        for (int i = 1; i < 4; ++i) any = vorrq_u32(any, vcgtq_f32(v[i], x.v[i]));
        return vmaxvq_u32(any) != 0;
    }
};
inline Floats operator+(Floats x, Floats y) {
    for (int i = 0; i < 4; ++i) x.v[i] = vaddq_f32(x.v[i], y.v[i]);
    return x;
}
inline Floats operator-(Floats x, Floats y) {
    for (int i = 0; i < 4; ++i) x.v[i] = vsubq_f32(x.v[i], y.v[i]);
    return x;
}
inline Floats operator*(Floats x, Floats y) {
    for (int i = 0; i < 4; ++i) x.v[i] = vmulq_f32(x.v[i], y.v[i]);
    return x;
}
inline Floats fma(Floats x, Floats y, Floats z) {
    for (int i = 0; i < 4; ++i) z.v[i] = vfmaq_f32(z.v[i], x.v[i], y.v[i]);
    return z;
}
// As `x > y ? x : y`: the second where one is NaN. (Arm's own maximum would be NaN.)
inline Floats larger(Floats x, Floats y) {
    for (int i = 0; i < 4; ++i) y.v[i] = vbslq_f32(vcgtq_f32(x.v[i], y.v[i]), x.v[i], y.v[i]);
    return y;
}
inline Floats magnitude(Floats x) {
    for (int i = 0; i < 4; ++i) x.v[i] = vabsq_f32(x.v[i]);
    return x;
}

// Lanes i and i + 8 first, then i and i + 4, 2, 1: the same order on every processor.
inline float sum(Floats x) {
    const float32x4_t y = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
    const float32x2_t z = vadd_f32(vget_low_f32(y), vget_high_f32(y));
    return vget_lane_f32(z, 0) + vget_lane_f32(z, 1);
}
// Lane i is sum(x[i]), added in the order of `sum`.
#define M2M100_TOTALS
inline Floats totals(const Floats (&x)[16]) {
    Floats all;
    for (int i = 0; i < 4; ++i) {
        float32x4_t four[4];
        for (int j = 0; j < 4; ++j) {
            const float32x4_t* v = x[4 * i + j].v;
            four[j] = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
        }
        const auto pairs = [](float32x4_t a, float32x4_t b) {
            const float64x2_t x = vreinterpretq_f64_f32(a), y = vreinterpretq_f64_f32(b);
            return vaddq_f32(vreinterpretq_f32_f64(vtrn1q_f64(x, y)),
                             vreinterpretq_f32_f64(vtrn2q_f64(x, y)));
        };
        all.v[i] = vpaddq_f32(pairs(four[0], four[1]), pairs(four[2], four[3]));
    }
    return all;
}
inline float largest(Floats x) {
    float all[16];
    x.store(all);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; ++i) all[i] = all[i] > all[i + half] ? all[i] : all[i + half];
    return all[0];
}
inline int32_t sum(Ints x) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(x.v[0], x.v[1]), vaddq_s32(x.v[2], x.v[3])));
}

// Four inputs of 16 columns, column by column.
struct Quads {
    static constexpr int kOffset = 0;
    static constexpr int kTileRows = 4, kTileGroups = 1;  // 16 sums, 4 of weights, 1 row of 32 registers
    int8x16_t v[4];
    static Quads load(const uint8_t* p) {
        const int8_t* q = reinterpret_cast<const int8_t*>(p);
        return {{vld1q_s8(q), vld1q_s8(q + 16), vld1q_s8(q + 32), vld1q_s8(q + 48)}};
    }
};
struct Four {
    int8x16_t v;
    static Four load(const int8_t* p) {
        int32_t four;
        std::memcpy(&four, p, 4);
        return {vreinterpretq_s8_s32(vdupq_n_s32(four))};
    }
};
inline Ints dot(Ints sums, Quads w, Four x) {
    for (int i = 0; i < 4; ++i) {
        sums.v[i] = vdotq_s32(sums.v[i], w.v[i], x.v);
        asm("" : "+w"(sums.v[i]));  // GCC would move sums between registers
    }
    return sums;
}

// Four rows of 64 columns become the `Quads` of 4 groups of 16 columns, `out + 64 * group`.
inline void interleave_rows(const int8_t* p, size_t stride, uint8_t* out) {
    for (int c = 0; c < 64; c += 16, out += 64) {
        const int8x16_t a = vld1q_s8(p + c), b = vld1q_s8(p + stride + c);
        const int8x16_t x = vld1q_s8(p + 2 * stride + c), y = vld1q_s8(p + 3 * stride + c);
        // vst4 interleaves four registers byte by byte, which is what is wanted.
        vst4q_s8(reinterpret_cast<int8_t*>(out), (int8x16x4_t{{a, b, x, y}}));
    }
}
inline void settle(Ints (&)[4]) {}

// 16 columns, each with 64 inputs side by side, become 16 `Quads`, `out + 256 * quad`.
inline void transpose(const int8_t* p, size_t stride, uint8_t* out) {
    for (int columns = 0; columns < 16; columns += 4) {
        for (int inputs = 0; inputs < 64; inputs += 16) {
            int32x4_t r[4];
            for (int i = 0; i < 4; ++i)
                r[i] = vreinterpretq_s32_s8(vld1q_s8(p + (columns + i) * stride + inputs));
            const int32x4_t ab = vtrn1q_s32(r[0], r[1]), AB = vtrn2q_s32(r[0], r[1]);
            const int32x4_t cd = vtrn1q_s32(r[2], r[3]), CD = vtrn2q_s32(r[2], r[3]);
            const auto pair = [](int32x4_t x, int32x4_t y, bool high) {
                const int64x2_t a = vreinterpretq_s64_s32(x), b = vreinterpretq_s64_s32(y);
                return vreinterpretq_u8_s64(high ? vtrn2q_s64(a, b) : vtrn1q_s64(a, b));
            };
            uint8_t* to = out + 256 * (inputs / 4) + 4 * columns;
            vst1q_u8(to, pair(ab, cd, false));
            vst1q_u8(to + 256, pair(AB, CD, false));
            vst1q_u8(to + 512, pair(ab, cd, true));
            vst1q_u8(to + 768, pair(AB, CD, true));
        }
    }
}

// 64 four-bit numbers in 32 bytes, the lower half first, become bytes between -8 and 7.
inline void widen(const uint8_t* p, int8_t* out) {
    const uint8x16_t low = vdupq_n_u8(15), eight = vdupq_n_u8(8);
    for (int half = 0; half < 32; half += 16, out += 32) {
        const uint8x16_t bytes = vld1q_u8(p + half);
        const auto number = [&](uint8x16_t x) {
            return vreinterpretq_s8_u8(vsubq_u8(veorq_u8(x, eight), eight));
        };
        const int8x16_t even = number(vandq_u8(bytes, low)), odd = number(vshrq_n_u8(bytes, 4));
        vst2q_s8(out, (int8x16x2_t{{even, odd}}));
    }
}
// 64 bytes times as many; the products must be bytes.
inline void times(int8_t* x, const int8_t* y) {
    for (int i = 0; i < 64; i += 16) vst1q_s8(x + i, vmulq_s8(vld1q_s8(x + i), vld1q_s8(y + i)));
}
// To L2: fetched to L1 it would push out what is being multiplied.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace
