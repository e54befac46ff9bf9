// The kernels for AVX2.
#include "kernels.h"

#include "simd_avx2.h"

using namespace m2m100;

#include "norm.h"
#include "products.h"
#include "simd_math.h"
#include "attention.h"
#include "rank.h"

namespace m2m100 {
static const Kernels table = {"avx2", normalize, round_row, multiply, rank, log_sum_exp, attend};
extern const Kernels* const kAvx2 = &table;
}  // namespace m2m100
