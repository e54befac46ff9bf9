// Plain C++: the reference that every other instruction set must equal to the last bit.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

struct Ints {
    int32_t v[16];
    static Ints zero() { return splat(0); }
    static Ints splat(int32_t x) {
        Ints r;
        for (int i = 0; i < 16; ++i) r.v[i] = x;
        return r;
    }
    static Ints load(const int32_t* p) {
        Ints r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    void store(int32_t* p) const { std::memcpy(p, v, sizeof v); }
    // Numbers must lie between -128 and 127.
    void store_bytes(int8_t* p) const {
        for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(v[i]);
    }
};
inline Ints operator+(Ints a, Ints b) {
    for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
    return a;
}
inline Ints operator-(Ints a, Ints b) {
    for (int i = 0; i < 16; ++i) a.v[i] -= b.v[i];
    return a;
}

// The value of an IEEE half-precision number.
inline float half_to_float(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7FFFu;
    uint32_t bits;
    if (rest >= 0x7C00u) {  // infinite, or no number
        bits = sign | 0x7F800000u | ((rest & 0x3FFu) << 13);
    } else if (rest >= 0x400u) {
        bits = sign | ((rest << 13) + 0x38000000u);
    } else {  // below 2 ** -14: a multiple of 2 ** -24
        const float small = static_cast<float>(rest) * 5.9604644775390625e-8f;
        std::memcpy(&bits, &small, 4);
        bits |= sign;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// The half-precision number that is nearest, and the even one of two that are as near.
inline uint16_t float_to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = (bits >> 16) & 0x8000u, rest = bits & 0x7FFFFFFFu;
    uint32_t half;
    if (rest > 0x7F800000u) {  // no number: it stays so, with the upper part of its bits
        half = 0x7E00u | ((rest >> 13) & 0x3FFu);
    } else if (rest >= 0x477FF000u) {  // 65520 is as near to infinity as to the largest number
        half = 0x7C00u;
    } else if (rest >= 0x38800000u) {
        half = (rest - 0x38000000u + 0xFFFu + ((rest >> 13) & 1u)) >> 13;
    } else {  // below 2 ** -14: a multiple of 2 ** -24
        half = static_cast<uint32_t>(std::nearbyintf(std::fabs(value) * 16777216.0f));
    }
    return static_cast<uint16_t>(sign | half);
}

struct Floats {
    float v[16];
    static Floats splat(float x) {
        Floats r;
        for (int i = 0; i < 16; ++i) r.v[i] = x;
        return r;
    }
    static Floats load(const float* p) {
        Floats r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    static Floats of(Ints x) {
        Floats r;
        for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(x.v[i]);
        return r;
    }
    static Floats of_half(const uint16_t* p) {
        Floats r;
        for (int i = 0; i < 16; ++i) r.v[i] = half_to_float(p[i]);
        return r;
    }
    void store(float* p) const { std::memcpy(p, v, sizeof v); }
    void store_half(uint16_t* p) const {
        for (int i = 0; i < 16; ++i) p[i] = float_to_half(v[i]);
    }
    // The nearest whole numbers, and the even one of two that are as near.
    Ints nearest() const {
        Ints r;
        for (int i = 0; i < 16; ++i) r.v[i] = static_cast<int32_t>(std::nearbyintf(v[i]));
        return r;
    }
    // 2 ** x for whole numbers x between -126 and 127.
    static Floats power_of_two(Ints x) {
        Floats r;
        for (int i = 0; i < 16; ++i) {
            const uint32_t bits = static_cast<uint32_t>(x.v[i] + 127) << 23;
            std::memcpy(&r.v[i], &bits, 4);
        }
        return r;
    }
    bool any_above(Floats x) const {
        for (int i = 0; i < 16; ++i)
            if (v[i] > x.v[i]) return true;
        return false;
    }
};
inline Floats operator+(Floats a, Floats b) {
    for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
    return a;
}
inline Floats operator-(Floats a, Floats b) {
    for (int i = 0; i < 16; ++i) a.v[i] -= b.v[i];
    return a;
}
inline Floats operator*(Floats a, Floats b) {
    for (int i = 0; i < 16; ++i) a.v[i] *= b.v[i];
    return a;
}
// a * b + c, rounded once.
inline Floats fma(Floats a, Floats b, Floats c) {
    for (int i = 0; i < 16; ++i) a.v[i] = std::fma(a.v[i], b.v[i], c.v[i]);
    return a;
}
// As `a > b ? a : b`: the second where one is NaN.
inline Floats larger(Floats a, Floats b) {
    for (int i = 0; i < 16; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
inline Floats magnitude(Floats a) {
    for (int i = 0; i < 16; ++i) a.v[i] = std::fabs(a.v[i]);
    return a;
}

// Lanes i and i + 8 first, then i and i + 4, 2, 1: the same order on every processor.
inline float sum(Floats x) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; ++i) x.v[i] += x.v[i + half];
    return x.v[0];
}
inline float largest(Floats x) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; ++i) x.v[i] = x.v[i] > x.v[i + half] ? x.v[i] : x.v[i + half];
    return x.v[0];
}
inline int32_t sum(Ints x) {
    int32_t total = 0;
    for (int i = 0; i < 16; ++i) total += x.v[i];
    return total;
}

// Four inputs of 16 columns, column by column.
struct Quads {
    static constexpr int kOffset = 0;  // what `interleave_rows` and `transpose` add to weights
    static constexpr int kTileRows = 4, kTileGroups = 1;
    int8_t v[64];
    static Quads load(const uint8_t* p) {
        Quads r;
        std::memcpy(r.v, p, 64);
        return r;
    }
};
struct Four {
    int8_t v[4];
    static Four load(const int8_t* p) {
        Four r;
        std::memcpy(r.v, p, 4);
        return r;
    }
};
inline Ints dot(Ints sums, Quads w, Four x) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 4; ++j) sums.v[i] += w.v[4 * i + j] * x.v[j];
    return sums;
}

// Four rows of 64 columns become the `Quads` of 4 groups of 16 columns, `out + 64 * group`.
inline void interleave_rows(const int8_t* p, size_t stride, uint8_t* out) {
    for (int c = 0; c < 64; ++c)
        for (int k = 0; k < 4; ++k) out[4 * c + k] = static_cast<uint8_t>(p[k * stride + c]);
}
// Puts the 64 sums of one row, made of `interleave_rows`, in the order of the columns.
inline void settle(Ints (&)[4]) {}
// 16 columns, each with 64 inputs side by side, become 16 `Quads`, `out + 256 * quad`.
inline void transpose(const int8_t* p, size_t stride, uint8_t* out) {
    for (int c = 0; c < 16; ++c)
        for (int k = 0; k < 64; ++k)
            out[(k / 4) * 256 + 4 * c + k % 4] = static_cast<uint8_t>(p[c * stride + k]);
}
// 64 four-bit numbers in 32 bytes, the lower half first, become bytes between -8 and 7.
inline void widen(const uint8_t* p, int8_t* out) {
    for (int i = 0; i < 32; ++i) {
        out[2 * i] = static_cast<int8_t>(((p[i] & 15) ^ 8) - 8);
        out[2 * i + 1] = static_cast<int8_t>(((p[i] >> 4) ^ 8) - 8);
    }
}
// 64 bytes times as many; the products must be bytes.
inline void times(int8_t* x, const int8_t* y) {
    for (int i = 0; i < 64; ++i) x[i] = static_cast<int8_t>(x[i] * y[i]);
}
inline void prefetch(const void*) {}

}  // namespace
