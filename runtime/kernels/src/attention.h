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

// Rows of a sentence that run side by side, and their lists of positions.
struct Queries {
    int64_t first, count;           // rows
    bool shared;                    // whether all rows read list 0
    int64_t lengths[kMostQueries];  // of the lists
    int64_t longest;

    int64_t list(int64_t row) const { return shared ? 0 : row; }
    bool fetches(int64_t row) const { return !shared || row == 0; }
};

inline void fetch(const float* position, int64_t size) {
    for (int64_t e = 0; e < size; e += 16) prefetch(position + e);
}

// Fetches those of 16 positions whose bits are set.
inline void fetch(const float* head, const int64_t* offsets, uint32_t bits, int64_t size) {
    for (; bits; bits &= bits - 1) fetch(head + offsets[__builtin_ctz(bits)], size);
}

// Ends a list with its first position until 16 can be read from each multiple of 16.
inline void pad_list(int64_t* list, int64_t length) {
    for (int64_t t = length; t % 16 != 0; ++t) list[t] = list[0];
}

// Lists the positions that the table gives each row, and fetches the keys of a head there.
inline void locate_by_table(const Attention& a, const AttentionRoom& room, int64_t head, Queries& q) {
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
            fetch(a.key + head * a.head + offset, a.size);
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
inline void gather(const Attention& a, const float* from, int64_t sentence, int64_t head, float* to) {
    const int64_t* mask = a.mask + sentence * a.positions;
    from += sentence * a.row + head * a.head;
    for (int64_t t = 0; t < a.positions; ++t, from += a.position)
        if (mask[t] != 0) {
            std::memcpy(to, from, sizeof(float) * static_cast<size_t>(a.size));
            to += a.size;
        }
}

// The 16 lanes of a score. kBlocks is E / 16, or 0 where E is not known before.
template <int kBlocks>
inline Floats lanes(const float* query, const float* key, int64_t size) {
    Floats total;
    if constexpr (kBlocks > 0) {
        total = Floats::load(query) * Floats::load(key);
        for (int b = 1; b < kBlocks; ++b)
            total = fma(Floats::load(query + 16 * b), Floats::load(key + 16 * b), total);
    } else {
        total = Floats::load(query) * load_some(key, size);
        for (int64_t e = 16; e < size; e += 16)
            total = fma(Floats::load(query + e), load_some(key + e, size - e), total);
    }
    return total;
}

// The scores of up to 16 positions. Positions that are missing have the score of one that is not.
template <int kBlocks>
inline Floats scores(const float* query, const float* keys, const int64_t* offsets, int64_t count,
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
template <int kBlocks>
inline void add_values(const float* values, const int64_t* offsets, const float* weights,
                       int64_t count, int64_t size, float* out) {
    if constexpr (kBlocks > 0) {
        Floats total[kBlocks];
        for (int b = 0; b < kBlocks; ++b) total[b] = Floats::load(out + 16 * b);
        for (int64_t t = 0; t < count; ++t) {
            const Floats weight = Floats::splat(weights[t]);
            const float* value = values + offsets[t];
            for (int b = 0; b < kBlocks; ++b)
                total[b] = fma(weight, Floats::load(value + 16 * b), total[b]);
        }
        for (int b = 0; b < kBlocks; ++b) total[b].store(out + 16 * b);
    } else {
        for (int64_t e = 0; e < size; e += 16) {
            const int64_t left = size - e;
            Floats total = load_some(out + e, left);
            for (int64_t t = 0; t < count; ++t)
                total = fma(Floats::splat(weights[t]), load_some(values + offsets[t] + e, left), total);
            store_some(out + e, left, total);
        }
    }
}

// One head of some rows. `next` are the keys of the head with which the rows go on, or null.
template <int kBlocks>
void attend_rows(const Attention& a, const AttentionRoom& room, const Queries& q, int64_t head,
                 const float* keys, const float* values, const float* next) {
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

void attend(const Attention& a, const AttentionRoom& room, int64_t begin, int64_t end) {
    static decltype(&attend_rows<0>) const by_blocks[9] = {
        attend_rows<0>, attend_rows<1>, attend_rows<2>, attend_rows<3>, attend_rows<4>,
        attend_rows<5>, attend_rows<6>, attend_rows<7>, attend_rows<8>};
    const auto rows = by_blocks[a.size % 16 == 0 && a.size <= 128 ? a.size / 16 : 0];
    for (int64_t pair = begin; pair < end;) {
        const int64_t sentence = pair / a.heads, head = pair % a.heads;
        const int64_t last = smaller(a.heads, head + end - pair);
        const int64_t row_begin = sentence * a.group, row_end = row_begin + a.group;
        Queries q{};
        if (a.table) {
            for (q.first = row_begin; q.first < row_end; q.first += kMostQueries) {
                q.count = smaller(kMostQueries, row_end - q.first);
                locate_by_table(a, room, head, q);
                for (int64_t h = head; h < last; ++h) {
                    const float *keys = a.key + h * a.head, *next = keys + a.head;
                    rows(a, room, q, h, keys, a.value + h * a.head, h + 1 < last ? next : nullptr);
                }
            }
        } else {
            locate_by_mask(a, room, sentence, q);
            for (int64_t h = head; h < last; ++h) {
                const float *keys = a.key + h * a.head, *values = a.value + h * a.head;
                // After the last head, the first one of the next sentence, whose list is much the same.
                const float* next = h + 1 < a.heads ? keys + a.head : a.key + a.row;
                if (pair + h - head + 1 == end) next = nullptr;
                if (room.keys) {
                    gather(a, a.key, sentence, h, room.keys);
                    gather(a, a.value, sentence, h, room.values);
                    keys = room.keys;
                    values = room.values;
                }
                for (q.first = row_begin; q.first < row_end; q.first += kMostQueries) {
                    q.count = smaller(kMostQueries, row_end - q.first);
                    rows(a, room, q, h, keys, values, next);
                }
            }
        }
        pair += last - head;
    }
}

}  // namespace
