// Chooses the instruction set: the fastest that this processor has, or the one that M2M100_KERNELS names.
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace m2m100 {
namespace {

#if defined(__x86_64__)
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

// Linux gives a process the tiles' state when it asks: 5.16 and newer, and not where a thread's stack for
// signals is too small to save it. Threads that run already may use it, too, and so may forked processes.
bool has_amx() {
#if defined(__linux__)
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTile) && (d & kInt8) &&
           syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}

bool has_avx_vnni() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

// F16C, the conversions of half precision, came before AVX2 but is a feature of its own.
bool has_avx2() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
#elif defined(__aarch64__)
bool has_dot_product() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
    return true;  // all of Apple's processors have it
#else
    return false;
#endif
}

bool has_i8mm() {
#if defined(__linux__)
    return getauxval(AT_HWCAP2) >> 13 & 1;  // HWCAP2_I8MM
#elif defined(__APPLE__)
    int has = 0;
    size_t size = sizeof(has);
    return sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &size, nullptr, 0) == 0 && has;
#else
    return false;
#endif
}
#endif

const Kernels& choose() {
    const std::vector<const Kernels*> found = available();
    const char* wanted = std::getenv("M2M100_KERNELS");
    if (!wanted || !*wanted) return *found.front();
    std::string names;
    for (const Kernels* one : found) {
        if (std::string(wanted) == one->name) return *one;
        names += (names.empty() ? "" : ", ") + std::string(one->name);
    }
    throw std::invalid_argument("M2M100_KERNELS: expected one that this processor has: " + names +
                                "; found " + wanted);
}

}  // namespace

// What this processor can run, the fastest first.
std::vector<const Kernels*> available() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (has_avx2() && has_avx512() && has_amx()) found.push_back(kAmx);
    if (has_avx2() && has_avx512()) found.push_back(kAvx512);
    if (has_avx2() && has_avx_vnni()) found.push_back(kAvxVnni);
    if (has_avx2()) found.push_back(kAvx2);
#elif defined(__aarch64__)
    if (has_dot_product() && has_i8mm()) found.push_back(kI8mm);
    if (has_dot_product()) found.push_back(kNeon);
#endif
    found.push_back(kPlain);
    return found;
}

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

}  // namespace m2m100
