// AVX-512 with VNNI: 16 numbers are one register, and one instruction multiplies 64 pairs of bytes.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

struct Ints {
    __m512i v;
    static Ints zero() { return {_mm512_setzero_si512()}; }
    static Ints splat(int32_t x) { return {_mm512_set1_epi32(x)}; }
    static Ints load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
    void store(int32_t* p) const { _mm512_storeu_si512(p, v); }
    // Numbers must lie between -128 and 127.
    void store_bytes(int8_t* p) const {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
    }
};
inline Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Ints operator-(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline Ints operator*(Ints a, Ints b) { return {_mm512_mullo_epi32(a.v, b.v)}; }

struct Floats {
    __m512 v;
    static Floats splat(float x) { return {_mm512_set1_ps(x)}; }
    static Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static Floats of(Ints x) { return {_mm512_cvtepi32_ps(x.v)}; }
    static Floats of_half(const uint16_t* p) {
        return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
    }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    void store_half(uint16_t* p) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                            _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    Ints nearest() const { return {_mm512_cvtps_epi32(v)}; }
    // 2 ** x for whole numbers x between -126 and 127.
    static Floats power_of_two(Ints x) {
        return {_mm512_castsi512_ps(_mm512_slli_epi32(
            _mm512_add_epi32(x.v, _mm512_set1_epi32(127)), 23))};
    }
    bool any_above(Floats x) const { return _mm512_cmp_ps_mask(v, x.v, _CMP_GT_OQ) != 0; }
};
inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// As `a > b ? a : b`: the second where one is NaN.
inline Floats larger(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Floats magnitude(Floats a) { return {_mm512_abs_ps(a.v)}; }

// Lanes i and i + 8 first, then i and i + 4, 2, 1: the same order on every processor.
inline float sum(Floats x) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
// In the order of `sum`, too: with NaN it matters.
inline float largest(Floats x) {
    __m256 a = _mm256_max_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}
// Lane i is sum(x[i]), added in the order of `sum`. Each step adds the halves of two vectors' lanes and
// puts both results into one vector: 15 additions for 16 sums.
#define M2M100_TOTALS
inline Floats totals(const Floats (&x)[16]) {
    __m512 quarters[4];  // quarter q of vector j: the four partial sums of x[4 * q + j]
    for (int j = 0; j < 4; ++j) {
        const __m512 a = x[j].v, b = x[4 + j].v, c = x[8 + j].v, d = x[12 + j].v;
        const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
        const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
        quarters[j] =
            _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
    }
    const auto pairs = [](__m512 a, __m512 b) {
        const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
        return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    };
    const __m512 a = pairs(quarters[0], quarters[1]), b = pairs(quarters[2], quarters[3]);
    return {_mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD))};
}
inline int32_t sum(Ints x) { return _mm512_reduce_add_epi32(x.v); }

// Four inputs of 16 columns, column by column; weights plus 128, as the instruction wants them.
struct Quads {
    static constexpr int kOffset = 128;
    static constexpr int kTileRows = 4, kTileGroups = 4;  // 16 sums, 4 of weights, 1 row of 32 registers
    __m512i v;
    static Quads load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
    void store(uint8_t* p) const { _mm512_storeu_si512(p, v); }
};
struct Four {
    __m512i v;
    static Four load(const int8_t* p) {
        int32_t four;
        std::memcpy(&four, p, 4);
        return {_mm512_set1_epi32(four)};
    }
};
inline Ints dot(Ints sums, Quads w, Four x) {
    sums.v = _mm512_dpbusd_epi32(sums.v, w.v, x.v);
    asm("" : "+v"(sums.v));  // GCC would move sums between registers
    return sums;
}

inline __m512i shifted(const void* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(0x80)));
}
inline void interleave(__m512i a, __m512i b, __m512i c, __m512i d, Quads (&out)[4]) {
    const __m512i ab = _mm512_unpacklo_epi8(a, b), AB = _mm512_unpackhi_epi8(a, b);
    const __m512i cd = _mm512_unpacklo_epi8(c, d), CD = _mm512_unpackhi_epi8(c, d);
    out[0].v = _mm512_unpacklo_epi16(ab, cd);
    out[1].v = _mm512_unpackhi_epi16(ab, cd);
    out[2].v = _mm512_unpacklo_epi16(AB, CD);
    out[3].v = _mm512_unpackhi_epi16(AB, CD);
}
// Four rows of 64 columns become the `Quads` of 4 groups of 16 columns, in the order of `settle`.
inline void interleave_rows(const int8_t* p, size_t stride, Quads (&out)[4]) {
    interleave(shifted(p), shifted(p + stride), shifted(p + 2 * stride), shifted(p + 3 * stride), out);
}
inline void interleave_rows(const int8_t* p, size_t stride, uint8_t* out) {
    Quads quads[4];
    interleave_rows(p, stride, quads);
    for (int g = 0; g < 4; ++g) quads[g].store(out + 64 * g);
}
// Unpacking stays within each quarter of a register, so group g has columns 4g ... 4g + 3 of each
// quarter. This is the transpose of 4 x 4 quarters, which undoes itself.
inline void settle(Ints (&x)[4]) {
    const __m512i a = _mm512_shuffle_i32x4(x[0].v, x[1].v, 0x44);
    const __m512i b = _mm512_shuffle_i32x4(x[0].v, x[1].v, 0xEE);
    const __m512i c = _mm512_shuffle_i32x4(x[2].v, x[3].v, 0x44);
    const __m512i d = _mm512_shuffle_i32x4(x[2].v, x[3].v, 0xEE);
    x[0].v = _mm512_shuffle_i32x4(a, c, 0x88);
    x[1].v = _mm512_shuffle_i32x4(a, c, 0xDD);
    x[2].v = _mm512_shuffle_i32x4(b, d, 0x88);
    x[3].v = _mm512_shuffle_i32x4(b, d, 0xDD);
}
// 16 columns, each with 64 inputs side by side, become 16 `Quads`, `out + 256 * quad`.
inline void transpose(const int8_t* p, size_t stride, uint8_t* out) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; ++i) r[i] = shifted(p + i * stride);
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
    }
    for (int i = 0; i < 4; ++i) {
        _mm512_storeu_si512(out + 256 * i, _mm512_shuffle_i32x4(t[i], t[i + 4], 0x88));
        _mm512_storeu_si512(out + 256 * (i + 8), _mm512_shuffle_i32x4(t[i], t[i + 4], 0xDD));
        _mm512_storeu_si512(out + 256 * (i + 4), _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0x88));
        _mm512_storeu_si512(out + 256 * (i + 12), _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0xDD));
    }
}
// 64 four-bit numbers in 32 bytes, the lower half first, become bytes between 0 and 15: plus 8.
inline __m512i halves(const uint8_t* p) {
    const __m512i pairs = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    const __m512i both = _mm512_or_si512(pairs, _mm512_slli_epi16(pairs, 4));
    // (both & 0x0F) ^ 0x08 in one instruction: 0x6A is "a and b, exclusive or c".
    return _mm512_ternarylogic_epi32(both, _mm512_set1_epi8(15), _mm512_set1_epi8(8), 0x6A);
}
// The same as bytes between -8 and 7.
inline void widen(const uint8_t* p, int8_t* out) {
    _mm512_storeu_si512(out, _mm512_sub_epi8(halves(p), _mm512_set1_epi8(8)));
}
// Four rows of 64 numbers of four bits, plus 128, as `interleave_rows` of eight bits.
inline void interleave_halves(const uint8_t* p, size_t stride, Quads (&out)[4]) {
    const __m512i more = _mm512_set1_epi8(120);
    interleave(_mm512_add_epi8(halves(p), more), _mm512_add_epi8(halves(p + stride), more),
               _mm512_add_epi8(halves(p + 2 * stride), more),
               _mm512_add_epi8(halves(p + 3 * stride), more), out);
}
// The products of 64 pairs of bytes, which must be bytes. A lane of 16 bits has two bytes: the lower byte of
// a product is that of the lower bytes, and of the upper byte alone it is shifted up.
inline __m512i product(__m512i x, __m512i y) {
    const __m512i low = _mm512_set1_epi16(0xFF);
    const __m512i even = _mm512_mullo_epi16(x, y);
    const __m512i odd = _mm512_mullo_epi16(_mm512_srli_epi16(x, 8), _mm512_andnot_si512(low, y));
    // (even & low) | odd
    return _mm512_ternarylogic_epi32(even, low, odd, 0xEA);
}
// 64 bytes times as many; the products must be bytes.
inline void times(int8_t* x, const int8_t* y) {
    _mm512_storeu_si512(x, product(_mm512_loadu_si512(x), _mm512_loadu_si512(y)));
}
// Four rows of 64 numbers of four bits times those of one row of bytes, as `interleave_rows`.
inline void interleave_multiples(const uint8_t* p, size_t stride, const int8_t* multiples, uint8_t* out) {
    const __m512i by = _mm512_loadu_si512(multiples), eight = _mm512_set1_epi8(8);
    const __m512i top = _mm512_set1_epi8(static_cast<char>(0x80));
    __m512i rows[4];
    for (size_t i = 0; i < 4; ++i)
        rows[i] = _mm512_xor_si512(product(_mm512_sub_epi8(halves(p + i * stride), eight), by), top);
    Quads quads[4];
    interleave(rows[0], rows[1], rows[2], rows[3], quads);
    for (int g = 0; g < 4; ++g) quads[g].store(out + 64 * g);
}
// 64 inputs of a column that lie side by side, and of a row: their products in 16 sums.
inline Quads side_by_side(const int8_t* p) { return {shifted(p)}; }
inline Four side_by_side_row(const int8_t* p) { return {_mm512_loadu_si512(p)}; }
// The totals of four columns' sums.
inline void store_totals(Ints a, Ints b, Ints c, Ints d, int32_t* out) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a.v, b.v), _mm512_unpackhi_epi32(a.v, b.v));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c.v, d.v), _mm512_unpackhi_epi32(c.v, d.v));
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}
// To L2: fetched to L1 it would push out what is being multiplied.
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
