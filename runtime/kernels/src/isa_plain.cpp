// The kernels in plain C++.
#include "kernels.h"

#include "simd_plain.h"

using namespace m2m100;

#include "norm.h"
#include "products.h"

namespace m2m100 {
static const Kernels table = {"plain", normalize, round_row, multiply, nullptr, nullptr};
extern const Kernels* const kPlain = &table;
}  // namespace m2m100
