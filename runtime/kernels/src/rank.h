// The best tokens and the log-sum-exp of rows, chunk by chunk of the vocabulary.
//
// Every chunk's logits are written to a small buffer, read while they are in the cache, and forgotten.
// A chunk begins at a multiple of `kChunk` whichever thread computes it, so its sum does not depend
// on the threads. The best tokens do not either: they are ordered by logit and then by token.
#pragma once

namespace {

struct Logits {
    alignas(64) float rows[kMostRows * kChunk];
};
thread_local Kept<Logits> kept_logits;

// Whether candidate a is worse than candidate b.
inline bool worse(float a, int64_t a_token, float b, int64_t b_token) {
    return a < b || (a == b && a_token > b_token);
}

// Adds a candidate to the best of a row: a heap whose first is the worst.
inline void offer(float score, int64_t token, float* scores, int64_t* tokens, int64_t count,
                  int64_t& found) {
    int64_t place;
    if (found < count) {
        for (place = found++; place > 0; place = (place - 1) / 2) {
            const int64_t parent = (place - 1) / 2;
            if (!worse(score, token, scores[parent], tokens[parent])) break;
            scores[place] = scores[parent];
            tokens[place] = tokens[parent];
        }
    } else {
        if (!worse(scores[0], tokens[0], score, token)) return;
        place = 0;
        for (;;) {
            int64_t child = 2 * place + 1;
            if (child >= count) break;
            if (child + 1 < count &&
                worse(scores[child + 1], tokens[child + 1], scores[child], tokens[child]))
                ++child;
            if (!worse(scores[child], tokens[child], score, token)) break;
            scores[place] = scores[child];
            tokens[place] = tokens[child];
            place = child;
        }
    }
    scores[place] = score;
    tokens[place] = token;
}

// The first of the cells [begin, end), which are in order, that is not before `token`.
inline int64_t first_from(const int64_t* cells, int64_t begin, int64_t end, int64_t token) {
    while (begin < end) {
        const int64_t middle = begin + (end - begin) / 2;
        if (cells[middle] < token) begin = middle + 1; else end = middle;
    }
    return begin;
}

// Applies penalty and bans to the logits of tokens [first, last), and notes those of seen cells.
inline void amend(const Ranking& g, int64_t row, int64_t first, int64_t last, float* x) {
    const int64_t end = g.seen_begins[row + 1];
    int64_t before = -1;
    for (int64_t i = first_from(g.seen, g.seen_begins[row], end, first); i < end; ++i) {
        const int64_t token = g.seen[i];
        if (token >= last) break;
        float& logit = x[token - first];
        if (g.amended && token != before) logit = logit < 0 ? logit * g.penalty : logit / g.penalty;
        g.seen_logits[i] = logit;
        before = token;
    }
    if (!g.amended) return;
    const int64_t ban_end = g.banned_begins[row + 1];
    for (int64_t i = first_from(g.banned, g.banned_begins[row], ban_end, first); i < ban_end; ++i) {
        if (g.banned[i] >= last) break;
        x[g.banned[i] - first] = -__builtin_inff();
    }
}

// Reads a chunk's logits of one row; `x` has room for a whole chunk.
inline void rank_row(const Ranking& g, int64_t part, int64_t row, int64_t chunk, int64_t width,
                     float* x) {
    const int64_t first = chunk * kChunk;
    amend(g, row, first, first + width, x);
    const int64_t padded = (width + 15) / 16 * 16;
    for (int64_t i = width; i < padded; ++i) x[i] = -__builtin_inff();
    Floats most = Floats::load(x);
    for (int64_t i = 16; i < padded; i += 16) most = larger(most, Floats::load(x + i));
    const float top = largest(most);
    const Floats of_all = Floats::splat(top);
    Floats total = Floats::splat(0);
    for (int64_t i = 0; i < padded; i += 16) total = total + exponential(Floats::load(x + i) - of_all);
    const int64_t cell = row * g.chunks_stride + chunk;
    g.largest[cell] = top;
    // A chunk in which all is banned has no sum: the difference of two infinities is NaN.
    g.sums[cell] = top == -__builtin_inff() ? 0.0f : sum(total);

    const int64_t list = part * g.product.rows.count + row;
    float* scores = g.scores + list * g.count;
    int64_t* tokens = g.tokens + list * g.count;
    int64_t found = g.found[list];
    for (int64_t i = 0; i < padded; i += 16) {
        // Tokens come in order, so one with the score of the worst loses to it.
        if (found == g.count && !Floats::load(x + i).any_above(Floats::splat(scores[0]))) continue;
        for (int64_t j = i; j < i + 16 && j < width; ++j)
            if (x[j] == x[j]) offer(x[j], first + j, scores, tokens, g.count, found);
    }
    g.found[list] = found;
}

void rank(const Ranking& g, int64_t part, int64_t begin, int64_t end) {
    Logits& room_of_logits = kept_logits.get();
    const Rows& all = g.product.rows;
    for (int64_t first_row = 0; first_row < all.count; first_row += kMostRows) {
        const int64_t count = smaller(kMostRows, all.count - first_row);
        Product p = g.product;
        p.rows.count = count;
        p.rows.bytes += first_row * all.stride;
        p.rows.step += first_row;
        p.rows.sums += first_row * (all.stride / kBlock + 1);
        p.out = room_of_logits.rows;
        p.out_stride = kChunk;
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            const int64_t width = smaller(kChunk, p.matrix.outputs - chunk * kChunk);
            p.out_first = chunk * kChunk;
            multiply(p, chunk * kChunk, chunk * kChunk + width);
            for (int64_t r = 0; r < count; ++r)
                rank_row(g, part, first_row + r, chunk, width, room_of_logits.rows + r * kChunk);
        }
    }
}

float log_sum_exp(const float* tops, const float* sums, int64_t count) {
    Floats most = Floats::load(tops);
    for (int64_t i = 16; i < count; i += 16) most = larger(most, Floats::load(tops + i));
    const float top = largest(most);
    Floats total = Floats::splat(0);
    for (int64_t i = 0; i < count; i += 16)
        total = fma(Floats::load(sums + i), exponential(Floats::load(tops + i) - Floats::splat(top)), total);
    return top + logarithm(sum(total));
}

}  // namespace
