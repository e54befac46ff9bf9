// Prints a hash of what every function computes, for every instruction set of this processor:
//
//     avx2 multiply_rows 4d180f4c4450fea2
//
// Numbers are made from a seed, so the hashes of one instruction set must be those of another, and those
// of one processor those of another: `tests/kernels/test_instruction_sets.py` compares them. Products
// are compared with sums written down as simply as can be, too.
//
// With the argument `chosen` it prints which instruction set an operator would use.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

#include "../src/kernels.h"
#include "check.h"

namespace m2m100 {
void check_plain(Report);
#if defined(__x86_64__)
void check_avx2(Report);
void check_avxvnni(Report);
void check_avxvnni_evex(Report);
void check_avx512(Report);
void check_amx(Report);
extern const Kernels* const kAvxVnniInEvex;
#elif defined(__aarch64__)
void check_neon(Report);
void check_i8mm(Report);
#endif
}  // namespace m2m100

using namespace m2m100;

namespace {

std::vector<float> reals(Numbers& n, int64_t count) {
    std::vector<float> all(static_cast<size_t>(count));
    for (float& x : all) x = n.real();
    return all;
}

template <class T>
void add(Hash& hash, const std::vector<T>& numbers) {
    hash.add(numbers.data(), numbers.size());
}

struct Rounded {
    int64_t stride;
    std::vector<int8_t> bytes;
    std::vector<float> steps;
    std::vector<int32_t> sums;
    Rounded(const Kernels& k, const std::vector<float>& x, int64_t rows, int64_t width, bool relu)
        : stride((width + 255) / 256 * 256),
          bytes(rows * stride),
          steps(rows),
          sums(rows * (stride / kBlock + 1)) {
        for (int64_t r = 0; r < rows; ++r)
            k.round(x.data() + r * width, width, stride, relu, true, bytes.data() + r * stride,
                    steps.data() + r, sums.data() + r * (stride / kBlock + 1));
    }
    Rows rows() const {
        return {static_cast<int64_t>(steps.size()), stride, bytes.data(), steps.data(), sums.data()};
    }
};

// Half precision of (64 + r) * multiple * 2 ** (e - 24), which it has exactly; r < 64, multiple < 16, e < 8.
uint16_t half_of(int r, int multiple, int e) {
    int fraction = (64 + r) * std::abs(multiple), exponent = e;
    if (fraction == 0) return 0;
    for (; fraction < 1024 && exponent > 0; --exponent) fraction *= 2;
    if (fraction >= 1024) ++exponent, fraction -= 1024;
    return static_cast<uint16_t>((multiple < 0) << 15 | exponent << 10 | fraction);
}

struct Weights {
    std::vector<uint8_t> bytes;
    std::vector<float> scale, inverse;
    std::vector<uint16_t> scales;
    Matrix matrix;
    Weights(Numbers& n, int64_t inputs, int64_t outputs, bool transposed, int bits)
        : bytes((inputs * outputs * bits + 7) / 8) {
        for (uint8_t& x : bytes) x = static_cast<uint8_t>(n.next());
        scale = reals(n, outputs);
        if (bits == 4) {
            scales.resize((inputs + kBlock - 1) / kBlock * outputs);
            for (int64_t c = 0; c < outputs; ++c) {
                const int r = static_cast<int>(n.next() % 64), e = static_cast<int>(n.next() % 8);
                scale[c] = std::ldexp(static_cast<float>(64 + r), e - 24);
                for (size_t i = c; i < scales.size(); i += outputs)
                    scales[i] = half_of(r, static_cast<int>(n.next() % 31) - 15, e);
                // Of a file that is damaged, every 16th column has any scales.
                if (c % 16 == 15)
                    for (size_t i = c; i < scales.size(); i += outputs) scales[i] = static_cast<uint16_t>(n.next());
                inverse.push_back(c % 32 == 15 ? 0.0f : 1.0f / scale[c]);
            }
        }
        matrix = {bytes.data(), inputs, outputs, transposed, bits, scale.data(), scales.data(), inverse.data()};
    }
};

void normalize(const Kernels& k, Hash& hash) {
    Numbers n;
    for (int64_t width : {1, 16, 100, 1024}) {
        std::vector<float> x = reals(n, width), weight = reals(n, width), bias = reals(n, width), y(width);
        k.normalize(x.data(), weight.data(), bias.data(), 1e-5f, width, y.data());
        add(hash, y);
    }
}

void round_rows(const Kernels& k, Hash& hash) {
    Numbers n;
    for (int64_t width : {1, 16, 100, 1024})
        for (bool relu : {false, true}) {
            std::vector<float> x = reals(n, 3 * width);
            for (int64_t i = 0; i < width; ++i) x[i] = 0;
            x.back() = width == 16 ? 1e-42f : 5.0f;
            const Rounded found(k, x, 3, width, relu);
            add(hash, found.bytes);
            add(hash, found.steps);
            add(hash, found.sums);
        }
}

float of_half(uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return fraction ? NAN : half >> 15 ? -INFINITY : INFINITY;
    const float value = exponent ? std::ldexp(static_cast<float>(1024 + fraction), exponent - 25)
                                 : std::ldexp(static_cast<float>(fraction), -24);
    return half >> 15 ? -value : value;
}

int64_t weight_at(const Matrix& m, int64_t k, int64_t c) {
    const int64_t at = m.transposed ? c * m.inputs + k : k * m.outputs + c;
    if (m.bits == 8) return static_cast<int8_t>(m.data[at]);
    const int number = m.data[at / 2] >> (at % 2 * 4) & 15;
    const float ratio = of_half(m.scales[k / kBlock * m.outputs + c]) * m.inverse[c];
    const float multiple = ratio > -15.0f ? std::min(ratio, 15.0f) : -15.0f;  // of NaN, too
    return (number < 8 ? number : number - 16) * std::lrint(multiple);
}

// One number of a product, in the order that all instruction sets keep.
float expected(const Product& p, int64_t r, int64_t c) {
    const Matrix& m = p.matrix;
    int64_t sum = 0;
    for (int64_t k = 0; k < m.inputs; ++k)
        sum += weight_at(m, k, c) * p.rows.bytes[r * p.rows.stride + k];
    float total = static_cast<float>(sum) * p.rows.step[r] * m.scale[c];
    if (p.columns) total = std::fma(p.columns[c], p.rows.step[r] * 127.0f, total);
    if (p.bias) total += p.bias[c];
    if (p.residual) total += p.residual[r * m.outputs + c];
    return total;
}

void compare(const Kernels& k, const Product& p, int64_t rows, int64_t outputs) {
    for (int64_t r = 0; r < rows; r += 1 + rows / 8)
        for (int64_t c = 0; c < outputs; ++c) {
            const float found = p.out[r * outputs + c], wanted = expected(p, r, c);
            if (std::memcmp(&found, &wanted, sizeof found) == 0) continue;
            std::fprintf(stderr, "%s: a product of %lld x %lld x %lld, %d bits: expected %a at (%lld, %lld), found %a\n",
                         k.name, static_cast<long long>(rows), static_cast<long long>(p.matrix.inputs),
                         static_cast<long long>(outputs), p.matrix.bits, wanted, static_cast<long long>(r),
                         static_cast<long long>(c), found);
            std::exit(1);
        }
}

template <int kBits, bool kTransposed>
void multiply(const Kernels& k, Hash& hash) {
    Numbers n;
    for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 40, 260})
        for (int64_t inputs : {1, 64, 100, 130, 512})
            for (int64_t outputs : {1, 3, 64, 77, 200, 640}) {
                if (rows > 40 && inputs != 130) continue;  // takes long
                const Weights w(n, inputs, outputs, kTransposed, kBits);
                const bool relu = rows % 3 == 0;
                const Rounded x(k, reals(n, rows * inputs), rows, inputs, relu);
                const std::vector<float> columns = reals(n, outputs);
                const std::vector<float> bias = reals(n, outputs), residual = reals(n, rows * outputs);
                std::vector<float> out(rows * outputs);
                const bool more = rows % 2;
                const Product p{w.matrix,   x.rows(), more ? bias.data() : nullptr,
                                more ? residual.data() : nullptr, relu ? columns.data() : nullptr,
                                out.data(), outputs, 0};
                // Two parts, as two threads have.
                const int64_t half = (outputs + 63) / 64 / 2 * 64;
                k.multiply(p, 0, half);
                k.multiply(p, half, outputs);
                compare(k, p, rows, outputs);
                add(hash, out);
            }
}

void rank(const Kernels& k, Hash& hash) {
    Numbers n;
    const int64_t inputs = 96, outputs = 1300, chunks = 3, stride = 16, parts = 2;
    for (int64_t rows : {1, 5, 13})
        for (bool amended : {false, true}) {
            const int64_t count = 11;
            const Weights w(n, inputs, outputs, true, 8);
            const Rounded x(k, reals(n, rows * inputs), rows, inputs, false);
            std::vector<int64_t> begins(rows + 1), seen, banned;
            for (int64_t r = 0; r < rows; ++r) {
                for (int64_t i = 0; i < 4; ++i) seen.push_back(r + 300 * i), banned.push_back(r + 310 * i + 7);
                begins[r + 1] = 4 * (r + 1);
            }
            std::vector<float> seen_logits(seen.size()), largest(rows * stride, -1e30f), sums(rows * stride);
            std::vector<float> scores(parts * rows * count), totals;
            std::vector<int64_t> tokens(parts * rows * count), found(parts * rows);
            const Ranking g{{w.matrix, x.rows(), nullptr, nullptr, nullptr, nullptr, 0, 0},
                            count, amended, 1.5f, begins.data(), seen.data(), begins.data(),
                            banned.data(), seen_logits.data(), largest.data(), sums.data(), stride,
                            scores.data(), tokens.data(), found.data()};
            k.rank(g, 0, 0, 1);
            k.rank(g, 1, 1, chunks);
            for (int64_t r = 0; r < rows; ++r)
                totals.push_back(k.log_sum_exp(largest.data() + r * stride, sums.data() + r * stride, stride));
            add(hash, seen_logits);
            add(hash, scores);
            add(hash, tokens);
            add(hash, found);
            add(hash, totals);
        }
}

// Memory of a thread, no larger than promised, so that AddressSanitizer sees what lies beyond.
struct Memory {
    std::vector<float> queries, weights, keys, values;
    std::vector<int64_t> offsets;
    std::vector<uint16_t> first;
    AttentionRoom room{};
    Memory(int64_t longest, int64_t size, bool scattered) {
        room.stride = (longest + 15) / 16 * 16;
        queries.resize(kMostQueries * ((size + 15) / 16 * 16));
        weights.resize(kMostQueries * room.stride);
        offsets.resize(kMostQueries * room.stride);
        first.resize(kMostQueries * room.stride / 16);
        room.queries = queries.data();
        room.weights = weights.data();
        room.offsets = offsets.data();
        room.first = first.data();
        if (!scattered) return;
        keys.resize(room.stride * size);
        values.resize(room.stride * size);
        room.keys = keys.data();
        room.values = values.data();
    }
};

// How keys and values lie: of beams, whose newest are still to be written; of a source; or as a
// projection of queries, keys and values leaves them, whose rows are the positions.
enum Layout { kBeams, kSource, kProjection };

template <class Number>
std::vector<Number> cells(Numbers& n, int64_t count) {
    std::vector<Number> all(static_cast<size_t>(count));
    for (Number& x : all) {
        if constexpr (sizeof(Number) == 2) {
            x = static_cast<Number>(n.next() % 2 << 15 | n.next() % 0x4400);  // up to 4
        } else {
            x = n.real();
        }
    }
    return all;
}

template <Layout kLayout, class Number>
void attend_once(const Kernels& k, Hash& hash, Numbers& n, int64_t size, int64_t group, int64_t length) {
    const int64_t sentences = 2, heads = 3, width = heads * size;
    if (kLayout == kProjection) group = length;
    const int64_t rows = sentences * group, places = kLayout == kBeams ? rows : sentences;
    const std::vector<float> projection = reals(n, rows * 3 * width);
    std::vector<Number> keys = cells<Number>(n, places * length * width);
    std::vector<Number> values = cells<Number>(n, places * length * width);
    std::vector<int32_t> table, lengths;
    std::vector<int64_t> mask;
    for (int64_t r = 0; r < rows; ++r) {
        lengths.push_back(static_cast<int32_t>(1 + n.next() % length));
        for (int64_t t = 0; t < length; ++t)
            table.push_back(static_cast<int32_t>(t == lengths.back() - 1 ? r % group : n.next() % group));
    }
    // The second sentence of one length has no position at all.
    for (int64_t t = 0; t < sentences * length; ++t)
        mask.push_back(t < length ? n.next() % 4 != 0 : length != 16);
    std::vector<float> out(rows * width);
    Attention a{};
    a.heads = heads;
    a.size = size;
    a.group = group;
    a.query = projection.data();
    a.query_row = 3 * width;
    a.key = a.new_key = keys.data();
    a.value = a.new_value = values.data();
    a.half = sizeof(Number) == 2;
    a.row = length * width;
    a.head = length * size;
    a.position = size;
    a.positions = length;
    a.out = out.data();
    if (kLayout == kBeams) {
        a.table = table.data();
        a.table_row = length;
        a.lengths = lengths.data();
        a.fresh = projection.data() + width;
    } else {
        a.mask = mask.data();
    }
    if (kLayout == kProjection) {
        a.key = projection.data() + width;
        a.value = projection.data() + 2 * width;
        a.row = 3 * length * width;
        a.head = size;
        a.position = 3 * width;
    }
    const Memory memory(length, size, kLayout == kProjection);
    // Two parts, as two threads have: the first ends within a sentence.
    k.attend(a, memory.room, 0, 4);
    k.attend(a, memory.room, 4, sentences * heads);
    add(hash, out);
    add(hash, keys);
    add(hash, values);
}

template <Layout kLayout, class Number>
void attend(const Kernels& k, Hash& hash) {
    Numbers n;
    for (int64_t size : {7, 20, 48, 64, 128, 144})
        for (int64_t group : {1, 5, 19})
            for (int64_t length : {1, 16, 37})
                attend_once<kLayout, Number>(k, hash, n, size, group, length);
}

struct InstructionSet {
    const char* name;
    const Kernels* kernels;
    CheckNumbers check;
};

// What this processor has.
std::vector<InstructionSet> instruction_sets() {
    const InstructionSet all[] = {
#if defined(__x86_64__)
        {"amx", kAmx, check_amx},
        {"avx512", kAvx512, check_avx512},
        {"avxvnni", kAvxVnni, check_avxvnni},
        {"avx2", kAvx2, check_avx2},
#elif defined(__aarch64__)
        {"i8mm", kI8mm, check_i8mm},
        {"neon", kNeon, check_neon},
#endif
        {"plain", kPlain, check_plain}};
    std::vector<InstructionSet> found;
    for (const Kernels* k : available()) {
        for (const InstructionSet& one : all)
            if (one.kernels == k) found.push_back(one);
#if defined(__x86_64__)
        if (k == kAvx512) found.push_back({"avxvnni_evex", kAvxVnniInEvex, check_avxvnni_evex});
#endif
    }
    return found;
}

void report(const char* instructions, const char* function, uint64_t hash) {
    std::printf("%s %s %016llx\n", instructions, function, static_cast<unsigned long long>(hash));
}

}  // namespace

int main(int count, char** arguments) {
    if (count > 1 && std::strcmp(arguments[1], "chosen") == 0) {
        try {
            std::printf("%s\n", kernels().name);
            return 0;
        } catch (const std::exception& error) {
            std::fprintf(stderr, "%s\n", error.what());
            return 2;
        }
    }
    using Check = void (*)(const Kernels&, Hash&);
    const struct {
        const char* name;
        Check check;
    } checks[] = {{"normalize", normalize},
                  {"round", round_rows},
                  {"multiply_rows", multiply<8, false>},
                  {"multiply_columns", multiply<8, true>},
                  {"multiply_four_bits", multiply<4, false>},
                  {"attend_to_beams", attend<kBeams, float>},
                  {"attend_to_half_beams", attend<kBeams, uint16_t>},
                  {"attend_to_source", attend<kSource, float>},
                  {"attend_to_half_source", attend<kSource, uint16_t>},
                  {"attend_within", attend<kProjection, float>},
                  {"rank", rank}};
    for (const InstructionSet& one : instruction_sets()) {
        one.check(report);
        for (const auto& [name, check] : checks) {
            Hash hash;
            check(*one.kernels, hash);
            report(one.name, name, hash.value);
        }
    }
}
