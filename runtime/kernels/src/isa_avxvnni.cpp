// The kernels for AVX2 with AVX-VNNI.
#include "kernels.h"

#define M2M100_AVXVNNI
#include "simd_avx2.h"

using namespace m2m100;

#include "norm.h"
#include "products.h"
#include "simd_math.h"
#include "attention.h"
#include "rank.h"

namespace m2m100 {
static const Kernels table = {"avxvnni", normalize, round_row, multiply, rank, log_sum_exp, attend};
extern const Kernels* const kAvxVnni = &table;
}  // namespace m2m100
