// Attention of query rows to the keys and values of their sentence: the scores of all positions,
// their softmax, and the sum of the values weighted by it.
//
// A row's own order of operations never changes. No other row takes part in it, and positions that a
// mask leaves out are as if they did not exist:
//
//     score[t]  = the 16 lanes of q[0..16) * k[0..16) + q[16..32) * k[16..32) + ..., then their sum
//     weight[t] = exp(score[t] - the largest score)
//     out[e]    = (weight[0] * v[0][e] + weight[1] * v[1][e] + ...) / sum of the weights
//
// Rows of a sentence run side by side, 16 positions at a time. Beams share most of their past, and 16
// positions of a head (4 KB for heads of 64 numbers) fit in L1 for five beams that share nothing. So
// what beams share comes from memory once. While the scores of a head are computed, its values are
// fetched, and while the values are added, the keys of the next head are.
//
//     AttentionRoom.offsets, one list a row:   t = 0     1     2    ...   where key and value t lie, less
//                                                                         the offset of the head
//     AttentionRoom.first, bit t of a row:         1     0     1    ...   no earlier row's t lies there,
//                                                                         so it is this row that fetches
#pragma once

namespace {

#ifndef M2M100_TOTALS
// Lane i is sum(x[i]). An instruction set may have a faster one, in the same order.
inline Floats totals(const Floats (&x)[16]) {
    float all[16];
    for (int i = 0; i < 16; ++i) all[i] = sum(x[i]);
    return Floats::load(all);
}
#endif

inline Floats numbers(const float* p) { return Floats::load(p); }
inline Floats numbers(const uint16_t* p) { return Floats::of_half(p); }
inline void put(float* p, Floats x) { x.store(p); }
inline void put(uint16_t* p, Floats x) { x.store_half(p); }

// Up to 16 numbers; the others are 0.
template <class Number>
inline Floats some_numbers(const Number* p, int64_t count) {
    if (count >= 16) return numbers(p);
    Number padded[16] = {};
    std::memcpy(padded, p, sizeof(Number) * static_cast<size_t>(count));
    return numbers(padded);
}

template <class Number>
inline void put_some(Number* p, int64_t count, Floats x) {
    if (count >= 16) return put(p, x);
    Number padded[16];
    put(padded, x);
    std::memcpy(p, padded, sizeof(Number) * static_cast<size_t>(count));
}

// Rows of a sentence that run side by side, and their lists of positions.
struct Queries {
    int64_t first, count;           // rows
    bool shared;                    // whether all rows read list 0
    int64_t lengths[kMostQueries];  // of the lists
    int64_t longest;

    int64_t list(int64_t row) const { return shared ? 0 : row; }
    bool fetches(int64_t row) const { return !shared || row == 0; }
};

template <class Number>
inline void fetch(const Number* position, int64_t size) {
    for (int64_t e = 0; e < size; e += 64 / static_cast<int64_t>(sizeof(Number))) prefetch(position + e);
}

// Fetches those of 16 positions whose bits are set.
template <class Number>
inline void fetch(const Number* head, const int64_t* offsets, uint32_t bits, int64_t size) {
    for (; bits; bits &= bits - 1) fetch(head + offsets[__builtin_ctz(bits)], size);
}

// Ends a list with its first position until 16 can be read from each multiple of 16.
inline void pad_list(int64_t* list, int64_t length) {
    for (int64_t t = length; t % 16 != 0; ++t) list[t] = list[0];
}

// Lists the positions that the table gives each row, and fetches those keys of a head.
template <class Number>
inline void locate_by_table(const Attention& a, const AttentionRoom& room, const Number* keys,
                            Queries& q) {
    const int64_t sentence = q.first / a.group * a.group, words = room.stride / 16;
    q.shared = false;
    q.longest = 0;
    for (int64_t i = 0; i < q.count; ++i) {
        q.lengths[i] = a.lengths[q.first + i];
        if (q.lengths[i] > q.longest) q.longest = q.lengths[i];
    }
    std::memset(room.first, 0, sizeof(uint16_t) * static_cast<size_t>(q.count * words));
    for (int64_t t = 0; t < q.longest; ++t) {
        uint64_t seen = 0;  // beams 64 apart share a bit; one of them is then not fetched
        for (int64_t i = 0; i < q.count; ++i) {
            if (t >= q.lengths[i]) continue;
            const int64_t beam = a.table[(q.first + i) * a.table_row + t];
            const int64_t offset = (sentence + beam) * a.row + t * a.position;
            room.offsets[i * room.stride + t] = offset;
            const uint64_t bit = uint64_t{1} << (beam & 63);
            if (seen & bit) continue;
            seen |= bit;
            room.first[i * words + t / 16] |= static_cast<uint16_t>(1u << (t % 16));
            fetch(keys + offset, a.size);
        }
    }
    for (int64_t i = 0; i < q.count; ++i) pad_list(room.offsets + i * room.stride, q.lengths[i]);
}

// Lists the positions that the mask of a sentence leaves, for all its rows: where they lie, or
// where `gather` puts them.
inline void locate_by_mask(const Attention& a, const AttentionRoom& room, int64_t sentence, Queries& q) {
    const int64_t* mask = a.mask + sentence * a.positions;
    int64_t length = 0;
    for (int64_t t = 0; t < a.positions; ++t)
        if (mask[t] != 0) {
            room.offsets[length] = room.keys ? length * a.size : sentence * a.row + t * a.position;
            ++length;
        }
    q.shared = true;
    q.lengths[0] = q.longest = length;
    pad_list(room.offsets, length);
    // What was gathered is in the cache already.
    std::memset(room.first, room.keys ? 0 : 0xFF, sizeof(uint16_t) * static_cast<size_t>(room.stride / 16));
}

// Puts the positions of a head that the mask leaves side by side.
//
// The keys of a projection lie a whole row of it apart. That is a multiple of 4 KB as a rule, and then
// L1 has room for no more than 8 or 12 of them.
template <class Number>
inline void gather(const Attention& a, const Number* from, int64_t sentence, Number* to) {
    const int64_t* mask = a.mask + sentence * a.positions;
    from += sentence * a.row;
    for (int64_t t = 0; t < a.positions; ++t, from += a.position)
        if (mask[t] != 0) {
            std::memcpy(to, from, sizeof(Number) * static_cast<size_t>(a.size));
            to += a.size;
        }
}

// The 16 lanes of a score. kBlocks is E / 16, or 0 where E is not known before.
template <int kBlocks, class Number>
inline Floats lanes(const float* query, const Number* key, int64_t size) {
    Floats total;
    if constexpr (kBlocks > 0) {
        total = Floats::load(query) * numbers(key);
        for (int b = 1; b < kBlocks; ++b)
            total = fma(Floats::load(query + 16 * b), numbers(key + 16 * b), total);
    } else {
        total = Floats::load(query) * some_numbers(key, size);
        for (int64_t e = 16; e < size; e += 16)
            total = fma(Floats::load(query + e), some_numbers(key + e, size - e), total);
    }
    return total;
}

// The scores of up to 16 positions. Positions that are missing have the score of one that is not.
template <int kBlocks, class Number>
inline Floats scores(const float* query, const Number* keys, const int64_t* offsets, int64_t count,
                     int64_t size) {
    Floats x[16];
    for (int i = 0; i < 16; i += 4)
        for (int j = i; j < i + 4; ++j)
            x[j] = i < count ? lanes<kBlocks>(query, keys + offsets[j], size) : x[0];
    return totals(x);
}

// Turns the scores of a row into weights, and returns 1 / their sum.
inline float weigh(float* x, int64_t count) {
    static const float kept[32] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    Floats most = Floats::load(x);
    for (int64_t t = 16; t < count; t += 16) most = larger(most, Floats::load(x + t));
    const Floats top = Floats::splat(largest(most));
    Floats total = Floats::splat(0);
    for (int64_t t = 0; t < count; t += 16) {
        Floats weight = exponential(Floats::load(x + t) - top);
        if (count - t < 16) weight = weight * Floats::load(kept + 16 - (count - t));
        weight.store(x + t);
        total = total + weight;
    }
    return 1.0f / sum(total);  // the sum is at least 1, or NaN
}

// Adds the weighted values of up to 16 positions to the output of a row.
template <int kBlocks, class Number>
inline void add_values(const Number* values, const int64_t* offsets, const float* weights,
                       int64_t count, int64_t size, float* out) {
    if constexpr (kBlocks > 0) {
        Floats total[kBlocks];
        for (int b = 0; b < kBlocks; ++b) total[b] = Floats::load(out + 16 * b);
        for (int64_t t = 0; t < count; ++t) {
            const Floats weight = Floats::splat(weights[t]);
            const Number* value = values + offsets[t];
            for (int b = 0; b < kBlocks; ++b)
                total[b] = fma(weight, numbers(value + 16 * b), total[b]);
        }
        for (int b = 0; b < kBlocks; ++b) total[b].store(out + 16 * b);
    } else {
        for (int64_t e = 0; e < size; e += 16) {
            const int64_t left = size - e;
            Floats total = load_some(out + e, left);
            for (int64_t t = 0; t < count; ++t)
                total = fma(Floats::splat(weights[t]), some_numbers(values + offsets[t] + e, left), total);
            store_some(out + e, left, total);
        }
    }
}

// One head of some rows. `next` are the keys of the head with which the rows go on, or null.
template <int kBlocks, class Number>
void attend_rows(const Attention& a, const AttentionRoom& room, const Queries& q, int64_t head,
                 const Number* keys, const Number* values, const Number* next) {
    const int64_t size = kBlocks ? 16 * kBlocks : a.size;
    const int64_t width = (size + 15) / 16 * 16, words = room.stride / 16;
    const auto out_of = [&](int64_t i) { return a.out + ((q.first + i) * a.heads + head) * size; };
    const Floats scale = Floats::splat(1.0f / std::sqrt(static_cast<float>(size)));
    for (int64_t i = 0; i < q.count; ++i) {
        const float* query = a.query + (q.first + i) * a.query_row + head * size;
        for (int64_t e = 0; e < size; e += 16) {
            (load_some(query + e, size - e) * scale).store(room.queries + i * width + e);
            store_some(out_of(i) + e, size - e, Floats::splat(0));
        }
    }
    for (int64_t t = 0; t < q.longest; t += 16)
        for (int64_t i = 0; i < q.count; ++i) {
            const int64_t list = q.list(i), left = q.lengths[list] - t;
            if (left <= 0) continue;
            const int64_t* offsets = room.offsets + list * room.stride + t;
            if (q.fetches(i)) fetch(values, offsets, room.first[list * words + t / 16], size);
            scores<kBlocks>(room.queries + i * width, keys, offsets, left, size)
                .store(room.weights + i * room.stride + t);
        }
    float shares[kMostQueries];
    for (int64_t i = 0; i < q.count; ++i) {
        const int64_t length = q.lengths[q.list(i)];
        shares[i] = length ? weigh(room.weights + i * room.stride, length) : 0.0f;
    }
    for (int64_t t = 0; t < q.longest; t += 16)
        for (int64_t i = 0; i < q.count; ++i) {
            const int64_t list = q.list(i), left = q.lengths[list] - t;
            if (left <= 0) continue;
            const int64_t* offsets = room.offsets + list * room.stride + t;
            if (next && q.fetches(i)) fetch(next, offsets, room.first[list * words + t / 16], size);
            add_values<kBlocks>(values, offsets, room.weights + i * room.stride + t,
                                smaller(left, 16), size, out_of(i));
        }
    for (int64_t i = 0; i < q.count; ++i)
        for (int64_t e = 0; e < size; e += 16) {
            float* out = out_of(i) + e;
            store_some(out, size - e, load_some(out, size - e) * Floats::splat(shares[i]));
        }
}

// Writes the new keys and values of a sentence's rows behind their past.
template <class Number>
inline void append(const Attention& a, int64_t sentence, int64_t head) {
    Number *keys = static_cast<Number*>(a.new_key), *values = static_cast<Number*>(a.new_value);
    for (int64_t r = sentence * a.group; r < (sentence + 1) * a.group; ++r) {
        const int64_t place = r * a.row + head * a.head + (a.lengths[r] - 1) * a.position;
        const float* key = a.fresh + r * a.query_row + head * a.size;
        const float* value = key + a.heads * a.size;
        for (int64_t e = 0; e < a.size; e += 16) {
            put_some(keys + place + e, a.size - e, load_some(key + e, a.size - e));
            put_some(values + place + e, a.size - e, load_some(value + e, a.size - e));
        }
    }
}

// Heads [head, last) of a sentence, whose keys and values the table places.
template <class Number, class Rows>
void attend_by_table(const Attention& a, const AttentionRoom& room, int64_t sentence, int64_t head,
                     int64_t last, Rows rows) {
    const Number *keys = static_cast<const Number*>(a.key), *values = static_cast<const Number*>(a.value);
    for (int64_t h = head; h < last && a.fresh; ++h) append<Number>(a, sentence, h);
    Queries q{};
    const int64_t end = (sentence + 1) * a.group;
    for (q.first = sentence * a.group; q.first < end; q.first += kMostQueries) {
        q.count = smaller(kMostQueries, end - q.first);
        locate_by_table(a, room, keys + head * a.head, q);
        for (int64_t h = head; h < last; ++h) {
            const Number* next = h + 1 < last ? keys + (h + 1) * a.head : nullptr;
            rows(a, room, q, h, keys + h * a.head, values + h * a.head, next);
        }
    }
}

// Heads [head, last) of a sentence, whose keys and values lie in order. `more` says that others follow.
template <class Number, class Rows>
void attend_by_mask(const Attention& a, const AttentionRoom& room, int64_t sentence, int64_t head,
                    int64_t last, bool more, Rows rows) {
    Queries q{};
    locate_by_mask(a, room, sentence, q);
    const int64_t end = (sentence + 1) * a.group;
    for (int64_t h = head; h < last; ++h) {
        const Number* keys = static_cast<const Number*>(a.key) + h * a.head;
        const Number* values = static_cast<const Number*>(a.value) + h * a.head;
        // After the last head, the first one of the next sentence, whose list is much the same.
        const Number* next = h + 1 < a.heads ? keys + a.head : static_cast<const Number*>(a.key) + a.row;
        if (h + 1 == last && !more) next = nullptr;
        if (room.keys) {
            Number *near_keys = static_cast<Number*>(room.keys), *near_values = static_cast<Number*>(room.values);
            gather(a, keys, sentence, near_keys);
            gather(a, values, sentence, near_values);
            keys = near_keys;
            values = near_values;
        }
        for (q.first = sentence * a.group; q.first < end; q.first += kMostQueries) {
            q.count = smaller(kMostQueries, end - q.first);
            rows(a, room, q, h, keys, values, next);
        }
    }
}

template <class Number>
void attend_to(const Attention& a, const AttentionRoom& room, int64_t begin, int64_t end) {
    static decltype(&attend_rows<0, Number>) const by_blocks[9] = {
        attend_rows<0, Number>, attend_rows<1, Number>, attend_rows<2, Number>,
        attend_rows<3, Number>, attend_rows<4, Number>, attend_rows<5, Number>,
        attend_rows<6, Number>, attend_rows<7, Number>, attend_rows<8, Number>};
    const auto rows = by_blocks[a.size % 16 == 0 && a.size <= 128 ? a.size / 16 : 0];
    for (int64_t pair = begin; pair < end;) {
        const int64_t sentence = pair / a.heads, head = pair % a.heads;
        const int64_t last = smaller(a.heads, head + end - pair);
        pair += last - head;
        if (a.table) {
            attend_by_table<Number>(a, room, sentence, head, last, rows);
        } else {
            attend_by_mask<Number>(a, room, sentence, head, last, pair < end, rows);
        }
    }
}

void attend(const Attention& a, const AttentionRoom& room, int64_t begin, int64_t end) {
    a.half ? attend_to<uint16_t>(a, room, begin, end) : attend_to<float>(a, room, begin, end);
}

}  // namespace
