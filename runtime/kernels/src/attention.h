// Attention of a row's query to keys and values, whose places a table may give.
//
// A row is computed alone, and its positions are added up in order, so its result depends on no other
// row. All rows of a sentence and head come one after another: what beams share is then in L1.
#pragma once

namespace {

struct Scores {
    alignas(64) float of[kMostPositions];
};
thread_local Scores scores_of_row;

// kVectors: numbers of a head in registers of 16; 0 where the size is no multiple of 16 known here.
template <int kVectors>
struct Head {
    static constexpr int kMost = kVectors ? kVectors : kMostHeadSize / 16;
    int64_t size;
    int count() const { return kVectors ? kVectors : static_cast<int>((size + 15) / 16); }
    Floats load(const float* p, int i) const {
        return kVectors ? Floats::load(p + 16 * i) : load_some(p + 16 * i, size - 16 * i);
    }
    void store(float* p, int i, Floats x) const {
        kVectors ? x.store(p + 16 * i) : store_some(p + 16 * i, size - 16 * i, x);
    }
};

template <int kVectors>
void attend_row(const Attention& a, const Head<kVectors>& head, int64_t sentence, int64_t h,
                int64_t r) {
    const int64_t length = a.lengths ? a.lengths[r] : a.positions;
    const int64_t* mask = a.mask ? a.mask + sentence * a.positions : nullptr;
    const int32_t* table = a.table ? a.table + r * a.table_row : nullptr;
    const auto at = [&](const float* cache, int64_t t) {
        const int64_t place = table ? sentence * a.group + table[t] : sentence;
        return cache + place * a.row + h * a.head + t * a.position;
    };
    float* scores = scores_of_row.of;
    Floats query[Head<kVectors>::kMost], out[Head<kVectors>::kMost];
    const Floats scale = Floats::splat(1.0f / std::sqrt(static_cast<float>(a.size)));
    for (int i = 0; i < head.count(); ++i) {
        query[i] = head.load(a.query + r * a.query_row + h * a.size, i) * scale;
        out[i] = Floats::splat(0);
    }
    float top = -__builtin_inff();
    for (int64_t t = 0; t < length; ++t) {
        if (mask && !mask[t]) {
            scores[t] = -__builtin_inff();
            continue;
        }
        const float* key = at(a.key, t);
        Floats products = query[0] * head.load(key, 0);
        for (int i = 1; i < head.count(); ++i) products = fma(query[i], head.load(key, i), products);
        scores[t] = sum(products);
        if (!(scores[t] <= top)) top = scores[t];  // NaN, too
    }
    // Padding has no share at all, so a sentence's result does not depend on its length.
    const int64_t padded = (length + 15) / 16 * 16;
    for (int64_t t = length; t < padded; ++t) scores[t] = -__builtin_inff();
    Floats total = Floats::splat(0);
    for (int64_t t = 0; t < padded; t += 16) {
        const Floats e = exponential(Floats::load(scores + t) - Floats::splat(top));
        e.store(scores + t);
        for (int64_t i = t; i < t + 16; ++i)
            if (i >= length || (mask && !mask[i])) scores[i] = 0;
        total = total + Floats::load(scores + t);
    }
    const float whole = sum(total);
    const Floats inverse = Floats::splat(whole == 0 ? 0.0f : 1.0f / whole);
    for (int64_t t = 0; t < length; ++t) {
        if (mask && !mask[t]) continue;
        const float* value = at(a.value, t);
        const Floats share = Floats::splat(scores[t]);
        for (int i = 0; i < head.count(); ++i) out[i] = fma(share, head.load(value, i), out[i]);
    }
    for (int i = 0; i < head.count(); ++i)
        head.store(a.out + (r * a.heads + h) * a.size, i, out[i] * inverse);
}

template <int kVectors>
void attend_all(const Attention& a, int64_t begin, int64_t end) {
    const Head<kVectors> head{a.size};
    for (int64_t pair = begin; pair < end; ++pair)
        for (int64_t i = 0; i < a.group; ++i)
            attend_row(a, head, pair / a.heads, pair % a.heads, pair / a.heads * a.group + i);
}

void attend(const Attention& a, int64_t begin, int64_t end) {
    if (a.size == 64) return attend_all<4>(a, begin, end);
    if (a.size == 128) return attend_all<8>(a, begin, end);
    attend_all<0>(a, begin, end);
}

}  // namespace
