// Layer normalization, and the rounding of rows to eight bits.
#pragma once

#include <cmath>

namespace {

// Loads up to 16 numbers; the others are 0.
inline Floats load_some(const float* p, int64_t count) {
    if (count >= 16) return Floats::load(p);
    float padded[16] = {};
    std::memcpy(padded, p, sizeof(float) * static_cast<size_t>(count));
    return Floats::load(padded);
}

inline void store_some(float* p, int64_t count, Floats x) {
    if (count >= 16) return x.store(p);
    float padded[16];
    x.store(padded);
    std::memcpy(p, padded, sizeof(float) * static_cast<size_t>(count));
}

void normalize(const float* x, const float* weight, const float* bias, float epsilon,
               int64_t width, float* y) {
    Floats total = Floats::splat(0);
    for (int64_t k = 0; k < width; k += 16) total = total + load_some(x + k, width - k);
    const float mean = sum(total) / static_cast<float>(width);
    // Padding counts as the mean, so that it has no variance.
    Floats squares = Floats::splat(0);
    int64_t k = 0;
    for (; k + 16 <= width; k += 16) {
        const Floats d = Floats::load(x + k) - Floats::splat(mean);
        squares = fma(d, d, squares);
    }
    if (k < width) {
        float padded[16];
        for (int64_t i = 0; i < 16; ++i) padded[i] = k + i < width ? x[k + i] : mean;
        const Floats d = Floats::load(padded) - Floats::splat(mean);
        squares = fma(d, d, squares);
    }
    const float variance = sum(squares) / static_cast<float>(width);
    const Floats inverse = Floats::splat(1.0f / std::sqrt(variance + epsilon));
    for (k = 0; k < width; k += 16) {
        const int64_t n = width - k;
        const Floats d = (load_some(x + k, n) - Floats::splat(mean)) * inverse;
        store_some(y + k, n, fma(d, load_some(weight + k, n), load_some(bias + k, n)));
    }
}

// The first `count` numbers; the others are 0.
inline Ints first_of(Ints x, int64_t count) {
    int32_t all[16];
    x.store(all);
    for (int64_t i = count; i < 16; ++i) all[i] = 0;
    return Ints::load(all);
}

void round_row(const float* x, int64_t width, int64_t stride, bool relu, bool blocks, int8_t* bytes,
               float* step, int32_t* sums) {
    // ReLU is the larger of 0 and a number, and all of them are then their own magnitude. The second
    // operand of `larger` wins where one is NaN, so a row with NaN stays one.
    const Floats zero = Floats::splat(0);
    Floats most = zero, differences = zero;
    for (int64_t k = 0; k < width; k += 16) {
        const Floats v = load_some(x + k, width - k);
        most = larger(relu ? v : magnitude(v), most);
        differences = differences + (v - v);  // NaN if a number is NaN or infinite
    }
    const float poison = sum(differences);
    const float top = largest(most);
    // Numbers that are not negative have 254 steps, so that bytes are -127 to 127 in both cases.
    const float steps = relu ? 254.0f : 127.0f;
    const float scale = top > 0 ? steps / top : 0.0f;
    // Of a row whose numbers are tiny the scale is infinite; such numbers count as 0.
    const Floats factor = Floats::splat(scale <= 3.0e38f ? scale : 0.0f);
    const Ints shift = Ints::splat(relu ? m2m100::kReluShift : 0);
    *step = poison == 0 ? top / steps : poison;
    Ints all = Ints::zero();
    for (int64_t block = 0; block < stride; block += m2m100::kBlock) {
        Ints total = Ints::zero();
        for (int64_t k = block; k < block + m2m100::kBlock; k += 16) {
            Ints n = Ints::zero();
            if (k < width && poison == 0) {
                Floats v = load_some(x + k, width - k);
                if (relu) v = larger(v, zero);
                n = (v * factor).nearest() - shift;
                if (width - k < 16) n = first_of(n, width - k);
            }
            n.store_bytes(bytes + k);
            total = total + n;
        }
        all = all + total;
        if (blocks) *sums = sum(total);
        ++sums;
    }
    *sums = sum(all);
}

}  // namespace
