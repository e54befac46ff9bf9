// Prints a hash of what every kernel computes, for every instruction set of this processor.
//
// Numbers are made up from a seed, so the hashes of one instruction set must be those of another, and
// those of one processor those of another: `tests/kernels/test_instruction_sets.py` compares them.
#include <cstdio>
#include <cstring>
#include <vector>

#include "../src/kernels.h"

using namespace m2m100;

namespace {

struct Numbers {
    uint64_t state = 1;
    uint32_t next() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return static_cast<uint32_t>(state >> 33);
    }
    float real() { return static_cast<float>(static_cast<int>(next() % 20001) - 10000) * 3e-4f; }
    std::vector<float> reals(int64_t count) {
        std::vector<float> all(static_cast<size_t>(count));
        for (float& x : all) x = real();
        return all;
    }
};

struct Hash {
    uint64_t value = 14695981039346656037ull;  // FNV-1a
    template <class T>
    void add(const std::vector<T>& numbers) {
        const auto* bytes = reinterpret_cast<const unsigned char*>(numbers.data());
        for (size_t i = 0; i < numbers.size() * sizeof(T); ++i) value = (value ^ bytes[i]) * 1099511628211ull;
    }
};

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

struct Weights {
    std::vector<uint8_t> bytes;
    std::vector<float> scale;
    std::vector<uint16_t> scales;
    Matrix matrix;
    Weights(Numbers& n, int64_t inputs, int64_t outputs, bool transposed, int bits)
        : bytes((inputs * outputs * bits + 7) / 8), scales((inputs + kBlock - 1) / kBlock * outputs) {
        for (uint8_t& x : bytes) x = static_cast<uint8_t>(n.next());
        scale = n.reals(outputs);
        for (uint16_t& x : scales) x = static_cast<uint16_t>(n.next() % 0x3800);  // subnormals, too
        matrix = {bytes.data(), inputs, outputs, transposed, bits, scale.data(), scales.data()};
    }
};

void normalize(const Kernels& k, Hash& hash) {
    Numbers n;
    for (int64_t width : {1, 16, 100, 1024}) {
        std::vector<float> x = n.reals(width), weight = n.reals(width), bias = n.reals(width), y(width);
        k.normalize(x.data(), weight.data(), bias.data(), 1e-5f, width, y.data());
        hash.add(y);
    }
}

void round_rows(const Kernels& k, Hash& hash) {
    Numbers n;
    for (int64_t width : {1, 16, 100, 1024})
        for (bool relu : {false, true}) {
            std::vector<float> x = n.reals(3 * width);
            for (int64_t i = 0; i < width; ++i) x[i] = 0;
            x.back() = width == 16 ? 1e-42f : 5.0f;
            const Rounded found(k, x, 3, width, relu);
            hash.add(found.bytes);
            hash.add(found.steps);
            hash.add(found.sums);
        }
}

template <int kBits, bool kTransposed>
void multiply(const Kernels& k, Hash& hash) {
    Numbers n;
    for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 40, 260})
        for (int64_t inputs : {1, 64, 100, 130, 512})
            for (int64_t outputs : {1, 3, 64, 77, 200, 640}) {
                const Weights w(n, inputs, outputs, kTransposed, kBits);
                const Rounded x(k, n.reals(rows * inputs), rows, inputs, false);
                const std::vector<float> bias = n.reals(outputs), residual = n.reals(rows * outputs);
                std::vector<float> out(rows * outputs);
                const bool more = rows % 2;
                const Product p{w.matrix,   x.rows(), more ? bias.data() : nullptr,
                                more ? residual.data() : nullptr, out.data(), outputs, 0};
                // Two parts, as two threads have.
                const int64_t half = (outputs + 63) / 64 / 2 * 64;
                k.multiply(p, 0, half);
                k.multiply(p, half, outputs);
                hash.add(out);
            }
}

void rank(const Kernels& k, Hash& hash) {
    Numbers n;
    const int64_t inputs = 96, outputs = 1300, chunks = 3, stride = 16, parts = 2;
    for (int64_t rows : {1, 5, 13})
        for (bool amended : {false, true}) {
            const int64_t count = 11;
            const Weights w(n, inputs, outputs, true, 8);
            const Rounded x(k, n.reals(rows * inputs), rows, inputs, false);
            std::vector<int64_t> begins(rows + 1), seen, banned;
            for (int64_t r = 0; r < rows; ++r) {
                for (int64_t i = 0; i < 4; ++i) seen.push_back(r + 300 * i), banned.push_back(r + 310 * i + 7);
                begins[r + 1] = 4 * (r + 1);
            }
            std::vector<float> seen_logits(seen.size()), largest(rows * stride, -1e30f), sums(rows * stride);
            std::vector<float> scores(parts * rows * count), totals;
            std::vector<int64_t> tokens(parts * rows * count), found(parts * rows);
            const Ranking g{{w.matrix, x.rows(), nullptr, nullptr, nullptr, 0, 0},
                            count, amended, 1.5f, begins.data(), seen.data(), begins.data(),
                            banned.data(), seen_logits.data(), largest.data(), sums.data(), stride,
                            scores.data(), tokens.data(), found.data()};
            k.rank(g, 0, 0, 1);
            k.rank(g, 1, 1, chunks);
            for (int64_t r = 0; r < rows; ++r)
                totals.push_back(k.log_sum_exp(largest.data() + r * stride, sums.data() + r * stride, stride));
            hash.add(seen_logits);
            hash.add(scores);
            hash.add(tokens);
            hash.add(found);
            hash.add(totals);
        }
}

}  // namespace

int main() {
    using Check = void (*)(const Kernels&, Hash&);
    const struct {
        const char* name;
        Check check;
    } checks[] = {{"normalize", normalize},
                  {"round", round_rows},
                  {"multiply_rows", multiply<8, false>},
                  {"multiply_columns", multiply<8, true>},
                  {"multiply_four_bits", multiply<4, false>},
                  {"rank", rank}};
    for (const Kernels* k : available())
        for (const auto& [name, check] : checks) {
            Hash hash;
            check(*k, hash);
            std::printf("%s %s %016llx\n", k->name, name, static_cast<unsigned long long>(hash.value));
        }
}
