// The kernels for Arm's i8mm: those for NEON, but products of many rows are made in pairs of rows.
#include "kernels.h"

#include "simd_neon.h"

#define M2M100_PAIRS

using namespace m2m100;

#include "norm.h"
#include "products.h"
#include "simd_math.h"
#include "attention.h"
#include "rank.h"

namespace m2m100 {
static const Kernels table = {"i8mm", normalize, round_row, multiply, rank, log_sum_exp, attend};
extern const Kernels* const kI8mm = &table;
}  // namespace m2m100
