// The kernels for AVX-512 with VNNI.
#include "kernels.h"

#include "simd_avx512.h"

#define M2M100_DIRECT

using namespace m2m100;

#include "norm.h"
#include "products.h"
#include "simd_math.h"
#include "attention.h"
#include "rank.h"

namespace m2m100 {
static const Kernels table = {"avx512", normalize, round_row, multiply, rank, log_sum_exp, attend};
extern const Kernels* const kAvx512 = &table;
}  // namespace m2m100
