// The kernels of one instruction set, and a hash of every function of its numbers.
//
// Compiled once for each instruction set: M2M100_ISA is its name, `simd_<name>.h` its functions.
#ifdef M2M100_IN_EVEX
// AVX-VNNI's kernels with the encoding that AVX-512 has for the same instruction: a processor with
// AVX-512 alone can then run them.
#include <immintrin.h>
#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32
#define kAvxVnni kAvxVnniInEvex
#endif
#include "../src/kernels.h"

#define M2M100_TEXT_OF(x) #x
#define M2M100_TEXT(x) M2M100_TEXT_OF(x)
#define M2M100_NAME_OF(x) check_##x
#define M2M100_NAME(x) M2M100_NAME_OF(x)

#include M2M100_SOURCE

#include "check.h"

namespace {

void add(Hash& hash, Ints x) {
    int32_t all[16];
    x.store(all);
    hash.add(all, 16);
}

void add(Hash& hash, Floats x) {
    float all[16];
    x.store(all);
    hash.add(all, 16);
}

Floats floats(Numbers& n, bool any) {
    float all[16];
    for (float& x : all) x = any ? n.any() : n.real();
    return Floats::load(all);
}

void check_ints(Hash& hash) {
    Numbers n;
    for (int round = 0; round < 1000; ++round) {
        int32_t a[16], b[16];
        int8_t bytes[16];
        for (int i = 0; i < 16; ++i) {
            a[i] = static_cast<int32_t>(n.next() & 0xFF) - 128;
            b[i] = static_cast<int32_t>(n.next() >> 3) - (1 << 27);
        }
        const Ints x = Ints::load(a), y = Ints::load(b);
        x.store_bytes(bytes);
        hash.add(bytes, 16);
        add(hash, x + y);
        add(hash, x - y);
        add(hash, Ints::splat(a[0]) + Ints::zero());
        add(hash, Floats::of(y));
        const int32_t total = sum(x);
        hash.add(&total, 1);
    }
}

void check_floats(Hash& hash) {
    Numbers n;
    for (int round = 0; round < 4000; ++round) {
        const bool any = round % 2;
        const Floats x = floats(n, any), y = floats(n, any), z = floats(n, any);
        add(hash, x + y);
        add(hash, x - y);
        add(hash, x * y);
        add(hash, fma(x, y, z));
        add(hash, larger(x, y));
        add(hash, magnitude(x));
        const float both[2] = {sum(x), largest(x)};
        hash.add(both, 2);
        const bool above = (x * Floats::splat(0.01f)).any_above(y + Floats::splat(2.9f));
        hash.bytes(&above, 1);
    }
}

// Halves and neighbours of halves, where ties go to the even number.
void check_rounding(Hash& hash) {
    Numbers n;
    for (int round = 0; round < 1000; ++round) {
        float all[16];
        for (float& x : all) {
            x = static_cast<float>(static_cast<int>(n.next() % 512) - 256) / 2;
            x *= 1.0f + static_cast<float>(static_cast<int>(n.next() % 3) - 1) * 1.2e-7f;
        }
        add(hash, Floats::load(all).nearest());
    }
    for (int x = -126; x <= 127 - 16; ++x) {
        int32_t all[16];
        for (int i = 0; i < 16; ++i) all[i] = x + i;
        add(hash, Floats::power_of_two(Ints::load(all)));
    }
}

void check_halves(Hash& hash) {
    for (uint32_t first = 0; first < 0x10000; first += 16) {
        uint16_t all[16];
        for (uint32_t i = 0; i < 16; ++i) all[i] = static_cast<uint16_t>(first + i);
        add(hash, Floats::of_half(all));
    }
    Numbers n;
    for (int round = 0; round < 4000; ++round) {
        // Numbers that round to one, and those half way between two.
        float all[16];
        uint16_t found[16];
        for (float& x : all) {
            x = n.any();
            uint32_t bits;
            std::memcpy(&bits, &x, 4);
            if (round % 4 < 2) bits &= round % 4 ? 0xFFFFF000u : 0xFFFFFFFFu;
            if (round % 2) bits = (bits & 0x8FFFFFFFu) | 0x30000000u;  // near 2 ** -14
            std::memcpy(&x, &bits, 4);
        }
        Floats::load(all).store_half(found);
        for (int i = 0; i < 16; ++i)
            if (all[i] != all[i]) found[i] = 0x7E00;
        hash.add(found, 16);
    }
    for (int byte = 0; byte < 256; ++byte) {
        uint8_t packed[32];
        int8_t wide[64];
        for (int i = 0; i < 32; ++i) packed[i] = static_cast<uint8_t>(byte + 7 * i);
        widen(packed, wide);
        hash.add(wide, 64);
    }
}

// Numbers of four bits and their multiples: every pair.
void check_multiples(Hash& hash) {
    for (int number = -8; number < 8; ++number)
        for (int first = -15; first < 16; ++first) {
            int8_t x[64], y[64];
            for (int i = 0; i < 64; ++i) {
                x[i] = static_cast<int8_t>((number + 8 + i) % 16 - 8);
                y[i] = static_cast<int8_t>((first + 15 + i) % 31 - 15);
            }
            times(x, y);
            hash.add(x, 64);
        }
}

// A byte of a matrix: the ends of the range more often than not, whose products are the largest.
int8_t weight(Numbers& n, int round) {
    if (round % 3 == 0) return -128;
    return round % 3 == 1 && n.next() % 2 ? 127 : static_cast<int8_t>(n.next());
}

int8_t input(Numbers& n, int round) {
    if (round % 2 == 0) return n.next() % 4 ? -127 : 127;
    return static_cast<int8_t>(static_cast<int>(n.next() % 255) - 127);
}

// Products of 4 inputs and the 64 columns of a matrix (4, 64).
void check_rows(Hash& hash) {
    Numbers n;
    for (int round = 0; round < 600; ++round) {
        int8_t matrix[4 * 80], x[4];
        alignas(64) uint8_t block[256];
        for (int8_t& w : matrix) w = weight(n, round);
        int32_t of_row = 0;
        for (int8_t& byte : x) of_row += byte = input(n, round);
        interleave_rows(matrix, 80, block);
        Ints sums[4];
        for (int g = 0; g < 4; ++g)
            sums[g] = dot(Ints::splat(round), Quads::load(block + 64 * g), Four::load(x));
        settle(sums);
        for (const Ints& group : sums) add(hash, group - Ints::splat(Quads::kOffset * of_row));
    }
}

// Products of 64 inputs and the 16 columns of a matrix (16, 64).
void check_columns(Hash& hash) {
    Numbers n;
    for (int round = 0; round < 300; ++round) {
        int8_t matrix[16 * 80], x[64];
        alignas(64) uint8_t block[16 * 256] = {};
        for (int8_t& w : matrix) w = weight(n, round);
        int32_t of_row = 0;
        for (int8_t& byte : x) of_row += byte = input(n, round);
        transpose(matrix, 80, block);
        Ints sums = Ints::zero();
        for (int q = 0; q < 16; ++q)
            sums = dot(sums, Quads::load(block + 256 * q), Four::load(x + 4 * q));
        add(hash, sums - Ints::splat(Quads::kOffset * of_row));
    }
}

void check_totals(Hash& hash) {
    Numbers n;
    for (int round = 0; round < 500; ++round) {
        Floats x[16];
        for (Floats& one : x) one = floats(n, false);
        add(hash, totals(x));
    }
}

void check_exponential(Hash& hash) {
    for (int i = 0; i < 20000; ++i) {
        float all[16];
        for (int j = 0; j < 16; ++j) all[j] = static_cast<float>(-i) * 0.005f - static_cast<float>(j) * 1e-4f;
        add(hash, exponential(Floats::load(all)));
    }
    add(hash, exponential(Floats::splat(-__builtin_inff())));
    add(hash, exponential(Floats::splat(__builtin_nanf(""))));
}

void check_logarithm(Hash& hash) {
    Numbers n;
    for (int i = 0; i < 20000; ++i) {
        const float results[2] = {logarithm(n.any()), logarithm(static_cast<float>(i) * 0.01f)};
        hash.add(results, 2);
    }
}

}  // namespace

namespace m2m100 {

void M2M100_NAME(M2M100_ISA)(Report report) {
    const struct {
        const char* name;
        void (*check)(Hash&);
    } checks[] = {{"ints", check_ints},         {"floats", check_floats},
                  {"rounding", check_rounding}, {"halves", check_halves},     {"multiples", check_multiples},
                  {"rows", check_rows},         {"columns", check_columns},
                  {"totals", check_totals},     {"exponential", check_exponential},
                  {"logarithm", check_logarithm}};
    for (const auto& [name, check] : checks) {
        Hash hash;
        check(hash);
        report(M2M100_TEXT(M2M100_ISA), name, hash.value);
    }
}

}  // namespace m2m100
