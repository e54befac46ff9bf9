// The kernels for NEON with the dot product.
#include "kernels.h"

#include "simd_neon.h"

using namespace m2m100;

#include "norm.h"
#include "products.h"
#include "simd_math.h"
#include "attention.h"
#include "rank.h"

namespace m2m100 {
static const Kernels table = {"neon", normalize, round_row, multiply, rank, log_sum_exp, attend};
extern const Kernels* const kNeon = &table;
}  // namespace m2m100
