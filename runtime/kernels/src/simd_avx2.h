// AVX2: 16 numbers are two registers. With AVX-VNNI one instruction multiplies 32 pairs of bytes; without
// it three do. The first of them adds two products in 16 bits, which must not overflow: it wants bytes
// without a sign on one side, and a magnitude of 128 there with numbers up to 127 on the other is safe.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

struct Ints {
    __m256i a, b;
    static Ints zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    static Ints splat(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
    static Ints load(const int32_t* p) {
        return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
    }
    void store(int32_t* p) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), b);
    }
    // Numbers must lie between -128 and 127.
    void store_bytes(int8_t* p) const {
        // Packing works within each half of a register: 0-3, 8-11, 4-7, 12-15.
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
        const __m128i bytes =
            _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
    }
};
inline Ints operator+(Ints x, Ints y) {
    return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}
inline Ints operator-(Ints x, Ints y) {
    return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)};
}

struct Floats {
    __m256 a, b;
    static Floats splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static Floats of(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
    static Floats of_half(const uint16_t* p) {
        return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
                _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
    }
    void store(float* p) const {
        _mm256_storeu_ps(p, a);
        _mm256_storeu_ps(p + 8, b);
    }
    void store_half(uint16_t* p) const {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8),
                         _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT));
    }
    Ints nearest() const { return {_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b)}; }
    // 2 ** x for whole numbers x between -126 and 127.
    static Floats power_of_two(Ints x) {
        x = x + Ints::splat(127);
        return {_mm256_castsi256_ps(_mm256_slli_epi32(x.a, 23)),
                _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 23))};
    }
    bool any_above(Floats x) const {
        return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(a, x.a, _CMP_GT_OQ),
                                               _mm256_cmp_ps(b, x.b, _CMP_GT_OQ))) != 0;
    }
};
inline Floats operator+(Floats x, Floats y) {
    return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
inline Floats operator-(Floats x, Floats y) {
    return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
inline Floats operator*(Floats x, Floats y) {
    return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
inline Floats fma(Floats x, Floats y, Floats z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
// As `x > y ? x : y`: the second where one is NaN.
inline Floats larger(Floats x, Floats y) {
    return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}
inline Floats magnitude(Floats x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}

// Lanes i and i + 8 first, then i and i + 4, 2, 1: the same order on every processor.
inline float sum(Floats x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
// Lane i is sum(x[i]), added in the order of `sum`. Each step adds the halves of two vectors' lanes and
// puts both results into one vector.
#define M2M100_TOTALS
inline __m256 totals_of_eight(const Floats* x) {
    __m256 halves[4];  // of x[j], and then of x[4 + j]: the four partial sums
    for (int j = 0; j < 4; ++j) {
        const __m256 a = _mm256_add_ps(x[j].a, x[j].b), b = _mm256_add_ps(x[4 + j].a, x[4 + j].b);
        halves[j] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }
    const auto pairs = [](__m256 a, __m256 b) {
        const __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
        return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)),
                             _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
    };
    const __m256 a = pairs(halves[0], halves[1]), b = pairs(halves[2], halves[3]);
    return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xDD));
}
inline Floats totals(const Floats (&x)[16]) { return {totals_of_eight(x), totals_of_eight(x + 8)}; }
inline float largest(Floats x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
inline int32_t sum(Ints x) {
    const __m256i eight = _mm256_add_epi32(x.a, x.b);
    __m128i y = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xB1)));
}

inline __m256i bytes_at(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

#ifdef M2M100_AVXVNNI

// Four inputs of 16 columns, column by column; weights plus 128, as the instruction wants them.
struct Quads {
    static constexpr int kOffset = 128;
    static constexpr int kTileRows = 4, kTileGroups = 1;  // 8 sums, 2 of weights, 1 row of 16 registers
    __m256i a, b;
    static Quads load(const uint8_t* p) { return {bytes_at(p), bytes_at(p + 32)}; }
};
struct Four {
    __m256i v;
    static Four load(const int8_t* p) {
        int32_t four;
        std::memcpy(&four, p, 4);
        return {_mm256_set1_epi32(four)};
    }
};
inline Ints dot(Ints sums, Quads w, Four x) {
    sums = {_mm256_dpbusd_avx_epi32(sums.a, w.a, x.v), _mm256_dpbusd_avx_epi32(sums.b, w.b, x.v)};
    asm("" : "+x"(sums.a), "+x"(sums.b));  // GCC would move sums between registers
    return sums;
}
inline __m256i stored(__m256i bytes) {
    return _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(0x80)));
}

#else

// Four inputs of 16 columns, column by column, and their magnitudes.
struct Quads {
    static constexpr int kOffset = 0;
    static constexpr int kTileRows = 4, kTileGroups = 1;  // 8 sums, 4 of weights, 1 row, ones and 2 more
    __m256i a, b, a_magnitude, b_magnitude;
    static Quads load(const uint8_t* p) {
        const __m256i a = bytes_at(p), b = bytes_at(p + 32);
        return {a, b, _mm256_abs_epi8(a), _mm256_abs_epi8(b)};
    }
};
// Numbers lie between -127 and 127: the sign of -128 cannot change.
struct Four {
    __m256i v;
    static Four load(const int8_t* p) {
        int32_t four;
        std::memcpy(&four, p, 4);
        return {_mm256_set1_epi32(four)};
    }
};
// w * x is |w| * (x with the sign of w). Two such products are at most 2 * 128 * 127, less than 2^15.
inline __m256i dot(__m256i sums, __m256i w, __m256i magnitude, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    asm("" : "+x"(sums));  // GCC would keep sums on the stack
    return sums;
}
inline Ints dot(Ints sums, Quads w, Four x) {
    return {dot(sums.a, w.a, w.a_magnitude, x.v), dot(sums.b, w.b, w.b_magnitude, x.v)};
}
inline __m256i stored(__m256i bytes) { return bytes; }

#endif

inline void store(uint8_t* p, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }

// Four rows of 64 columns become the `Quads` of 4 groups of 16 columns, in the order of `settle`.
inline void interleave_rows(const int8_t* p, size_t stride, uint8_t* out) {
    for (int half = 0; half < 64; half += 32, out += 128) {
        const __m256i a = stored(bytes_at(p + half)), b = stored(bytes_at(p + stride + half));
        const __m256i c = stored(bytes_at(p + 2 * stride + half));
        const __m256i d = stored(bytes_at(p + 3 * stride + half));
        const __m256i ab = _mm256_unpacklo_epi8(a, b), AB = _mm256_unpackhi_epi8(a, b);
        const __m256i cd = _mm256_unpacklo_epi8(c, d), CD = _mm256_unpackhi_epi8(c, d);
        // Unpacking stays within each half of a register.
        store(out, _mm256_unpacklo_epi16(ab, cd));       // columns 0 ... 3 and 16 ... 19
        store(out + 32, _mm256_unpacklo_epi16(AB, CD));  // columns 8 ... 11 and 24 ... 27
        store(out + 64, _mm256_unpackhi_epi16(ab, cd));  // columns 4 ... 7 and 20 ... 23
        store(out + 96, _mm256_unpackhi_epi16(AB, CD));  // columns 12 ... 15 and 28 ... 31
    }
}
// Exchanges the upper half of one register and the lower half of the other, which undoes itself.
inline void exchange(__m256i& x, __m256i& y) {
    const __m256i low = _mm256_permute2x128_si256(x, y, 0x20);
    y = _mm256_permute2x128_si256(x, y, 0x31);
    x = low;
}
inline void settle(Ints (&x)[4]) {
    for (int g = 0; g < 4; g += 2) {
        exchange(x[g].a, x[g + 1].a);
        exchange(x[g].b, x[g + 1].b);
    }
}

// 16 columns, each with 64 inputs side by side, become 16 `Quads`, `out + 256 * quad`.
inline void transpose(const int8_t* p, size_t stride, uint8_t* out) {
    for (int columns = 0; columns < 16; columns += 8) {
        for (int inputs = 0; inputs < 64; inputs += 32) {
            __m256i r[8], t[8];
            for (int i = 0; i < 8; ++i) r[i] = stored(bytes_at(p + (columns + i) * stride + inputs));
            for (int i = 0; i < 8; i += 2) {
                t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
                t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
            }
            for (int i = 0; i < 8; i += 4) {
                r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
                r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
                r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
                r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
            }
            uint8_t* to = out + 256 * (inputs / 4) + 4 * columns;
            for (int i = 0; i < 4; ++i) {
                store(to + 256 * i, _mm256_permute2x128_si256(r[i], r[i + 4], 0x20));
                store(to + 256 * (i + 4), _mm256_permute2x128_si256(r[i], r[i + 4], 0x31));
            }
        }
    }
}

// 64 four-bit numbers in 32 bytes, the lower half first, become bytes between -8 and 7.
inline void widen(const uint8_t* p, int8_t* out) {
    const __m256i low = _mm256_set1_epi16(0x0F0F), eight = _mm256_set1_epi8(8);
    for (int half = 0; half < 32; half += 16, out += 32) {
        const __m256i pairs =
            _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + half)));
        const __m256i both = _mm256_and_si256(_mm256_or_si256(pairs, _mm256_slli_epi16(pairs, 4)), low);
        store(reinterpret_cast<uint8_t*>(out), _mm256_sub_epi8(_mm256_xor_si256(both, eight), eight));
    }
}
// 64 bytes times as many; the products must be bytes. A lane of 16 bits has two bytes: the lower byte of a
// product is that of the lower bytes, and of the upper byte alone it is shifted up.
inline void times(int8_t* x, const int8_t* y) {
    const __m256i low = _mm256_set1_epi16(0xFF);
    for (int half = 0; half < 64; half += 32) {
        __m256i* to = reinterpret_cast<__m256i*>(x + half);
        const __m256i a = _mm256_loadu_si256(to);
        const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(y + half));
        const __m256i even = _mm256_and_si256(_mm256_mullo_epi16(a, b), low);
        const __m256i odd = _mm256_mullo_epi16(_mm256_srli_epi16(a, 8), _mm256_andnot_si256(low, b));
        _mm256_storeu_si256(to, _mm256_or_si256(even, odd));
    }
}
// To L2: fetched to L1 it would push out what is being multiplied.
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
