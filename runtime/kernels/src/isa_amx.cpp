// The kernels for AMX: those for AVX-512, but products of many rows are tiles'.
#include "kernels.h"

#include "simd_avx512.h"

#define M2M100_DIRECT
#define M2M100_TILES

using namespace m2m100;

#include "norm.h"
#include "products.h"
#include "simd_math.h"
#include "attention.h"
#include "rank.h"

namespace m2m100 {
static const Kernels table = {"amx", normalize, round_row, multiply, rank, log_sum_exp, attend};
extern const Kernels* const kAmx = &table;
}  // namespace m2m100
