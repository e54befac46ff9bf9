// What the machine allows at most: bytes read, and multiply-adds of the kernels' own inner loop.
//
//     limits THREADS MEBIBYTES REPETITIONS  ->  {"isa": ..., "read": [...], "products": [...], ...}
//
// `read` is in bytes a second, `products` in multiply-adds a second, each of all threads together.
// `products` multiplies blocks that stay in the first cache: nothing is fetched, interleaved, scaled
// or written. So no product of whole matrices can reach it. Knows no engine and no onnxruntime.
// Compiled for the processor at hand, which is why it includes the loop and links no library.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels.h"

#if defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#include "simd_avx512.h"
#define M2M100_TILES
#define ISA "amx"
#elif defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "simd_avx512.h"
#define ISA "avx512"
#elif defined(__AVX2__) && defined(__FMA__)
#include "simd_avx2.h"
#define ISA "avx2"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "simd_neon.h"
#define ISA "neon"
#else
#include "simd_plain.h"
#define ISA "plain"
#endif

using namespace m2m100;

#include "norm.h"
#include "products.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kInputs = 256, kRowsOfBlock = 16, kPasses = 50000;

// Returns the seconds that all threads take for `work(thread)` after they have begun together.
template <typename Work>
double together(int threads, Work work) {
    std::atomic<int> waiting{threads};
    std::vector<std::thread> all;
    std::vector<Clock::time_point> began(threads), ended(threads);
    for (int t = 0; t < threads; ++t)
        all.emplace_back([&, t] {
            for (--waiting; waiting > 0;) std::this_thread::yield();
            began[t] = Clock::now();
            work(t);
            ended[t] = Clock::now();
        });
    for (std::thread& one : all) one.join();
    Clock::time_point first = began[0], last = ended[0];
    for (int t = 1; t < threads; ++t) {
        if (began[t] < first) first = began[t];
        if (ended[t] > last) last = ended[t];
    }
    return std::chrono::duration<double>(last - first).count();
}

uint64_t read_all(const uint64_t* p, int64_t count) {
    uint64_t sums[64] = {};  // so many that no addition waits for another
    for (int64_t i = 0; i + 64 <= count; i += 64)
        for (int j = 0; j < 64; ++j) sums[j] += p[i + j];
    uint64_t sum = 0;
    for (uint64_t one : sums) sum += one;
    return sum;
}

struct Operands {
    alignas(64) uint8_t block[kInputs * kStrip];
    alignas(64) int8_t rows[kRowsOfBlock * kInputs];
    alignas(64) int32_t sums[kRowsOfBlock * kStrip];
};

void print(const char* name, const std::vector<double>& rates) {
    std::printf(", \"%s\": [", name);
    for (size_t i = 0; i < rates.size(); ++i) std::printf("%s%.4g", i ? ", " : "", rates[i]);
    std::printf("]");
}

}  // namespace

int main(int count, char** arguments) {
    const int threads = count == 4 ? std::atoi(arguments[1]) : 0;
    const int64_t mebibytes = count == 4 ? std::atoll(arguments[2]) : 0;
    const int repetitions = count == 4 ? std::atoi(arguments[3]) : 0;
    if (threads < 1 || threads > 1024 || mebibytes < 1 || mebibytes > 65536 || repetitions < 1) {
        std::fprintf(stderr, "usage: limits THREADS MEBIBYTES REPETITIONS, all 1 or more\n");
        return 2;
    }
#ifdef M2M100_TILES
    if (syscall(SYS_arch_prctl, 0x1023, 18)) {  // as the kernels' dispatch.cpp
        std::fprintf(stderr, "limits: Linux gives this process no tiles of AMX\n");
        return 1;
    }
#endif
    const int64_t each = mebibytes * (1 << 17) / threads / 64 * 64;
    std::vector<uint64_t> numbers(each * threads, 1);
    std::vector<Operands> operands(threads);
    for (Operands& one : operands) std::memset(&one, 1, sizeof one);
    volatile uint64_t kept = 0;
    std::vector<double> read, products;
    for (int repetition = 0; repetition <= repetitions; ++repetition) {
        const double reading =
            together(threads, [&](int t) { kept = kept + read_all(&numbers[each * t], each); });
        const double multiplying = together(threads, [&](int t) {
            Operands& own = operands[t];
#ifdef M2M100_TILES
            for (int64_t pass = 0; pass < kPasses; ++pass)
                multiply_tiles(own.block, 0, 1, kInputs, own.rows, kInputs, kRowsOfBlock, own.sums, kStrip, true);
            release_tiles();
#else
            for (int64_t pass = 0; pass < kPasses; ++pass)
                multiply_block(own.block, kInputs, own.rows, kInputs, kRowsOfBlock, own.sums, kStrip, true);
#endif
        });
        if (!repetition) continue;  // the first one brings pages and the clock's rate
        read.push_back(8.0 * each * threads / reading);
        products.push_back(1.0 * kInputs * kStrip * kRowsOfBlock * kPasses * threads / multiplying);
    }
    std::printf("{\"isa\": \"" ISA "\", \"threads\": %d", threads);
    print("read", read);
    print("products", products);
    std::printf("}\n");
    return 0;
}
