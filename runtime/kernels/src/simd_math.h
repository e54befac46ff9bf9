// exp and log, to the same bits on every processor.
#pragma once

namespace {

// exp(x) for x between -87 and 88, with an error below 2 units in the last place; NaN stays NaN.
//
// x = n * ln 2 + r with |r| <= ln 2 / 2, and exp(x) = 2^n * exp(r). ln 2 is the sum of a number of few
// bits, whose multiples are exact, and a small rest (Cody and Waite). The polynomial is that of
// Cephes' expf. Below -87 the result is exp(-87), 1.6e-38.
inline Floats exponential(Floats x) {
    x = larger(Floats::splat(-87.0f), x);  // NaN, as the second operand, wins
    const Ints n = (x * Floats::splat(1.44269504088896341f)).nearest();
    const Floats whole = Floats::of(n);
    Floats r = fma(whole, Floats::splat(-0.693359375f), x);
    r = fma(whole, Floats::splat(2.12194440e-4f), r);
    Floats y = Floats::splat(1.9875691500e-4f);
    y = fma(y, r, Floats::splat(1.3981999507e-3f));
    y = fma(y, r, Floats::splat(8.3334519073e-3f));
    y = fma(y, r, Floats::splat(4.1665795894e-2f));
    y = fma(y, r, Floats::splat(1.6666665459e-1f));
    y = fma(y, r, Floats::splat(5.0000001201e-1f));
    y = fma(y, r * r, r) + Floats::splat(1.0f);
    return y * Floats::power_of_two(n);
}

// log(x) of a positive number; NaN stays NaN.
//
// x = 2^n * m with m between 0.70 and 1.42, and log(m) = 2 * atanh(z) with z = (m - 1) / (m + 1), whose
// series z + z^3 / 3 + z^5 / 5 ... ends with z^15 here: |z| is below 0.172, so the rest is below 1e-13.
inline float logarithm(float x) {
    if (!(x > 0.0f)) return x == 0.0f ? -__builtin_inff() : x - x + __builtin_nanf("");
    if (x > 3.4028234e38f) return x;
    int n = 0;
    double m = static_cast<double>(x);
    uint64_t bits;
    std::memcpy(&bits, &m, 8);
    n = static_cast<int>(bits >> 52) - 1023;
    bits = (bits & 0xFFFFFFFFFFFFFull) | 0x3FF0000000000000ull;
    std::memcpy(&m, &bits, 8);
    if (m > 1.41421356) {
        m *= 0.5;
        ++n;
    }
    const double z = (m - 1.0) / (m + 1.0), square = z * z;
    double series = 1.0 / 15.0;
    for (int odd = 13; odd > 0; odd -= 2) series = series * square + 1.0 / odd;
    return static_cast<float>(n * 0.69314718055994530942 + 2.0 * z * series);
}

}  // namespace
