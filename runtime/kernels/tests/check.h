// What the check's files share: numbers made from a seed, and a hash of results.
//
// Nothing here comes from the standard library and all is local to a file: files of this program are
// compiled for several instruction sets, and the linker must not choose one's function for another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace m2m100 {

// Takes the hash of what one function computes.
using Report = void (*)(const char* instructions, const char* function, uint64_t hash);

// Reports every function of an instruction set's numbers.
using CheckNumbers = void (*)(Report);

}  // namespace m2m100

namespace {

struct Numbers {
    uint64_t state = 1;
    uint32_t next() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return static_cast<uint32_t>(state >> 33);
    }
    float real() { return static_cast<float>(static_cast<int>(next() % 20001) - 10000) * 3e-4f; }
    // Any 32 bits: tiny and huge numbers, infinities and NaN.
    float any() {
        const uint32_t bits = next() << 1 ^ next();
        float x;
        std::memcpy(&x, &bits, 4);
        return x;
    }
};

// FNV-1a. All NaN are one: processors differ in their sign.
struct Hash {
    uint64_t value = 14695981039346656037ull;
    void bytes(const void* p, size_t size) {
        const unsigned char* x = static_cast<const unsigned char*>(p);
        for (size_t i = 0; i < size; ++i) value = (value ^ x[i]) * 1099511628211ull;
    }
    template <class T>
    void add(const T* numbers, size_t count) {
        for (size_t i = 0; i < count; ++i) {
            T x = numbers[i];
            if (x != x) std::memset(&x, 0x7F, sizeof x);
            bytes(&x, sizeof x);
        }
    }
};

}  // namespace
