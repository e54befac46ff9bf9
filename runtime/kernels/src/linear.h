// The matrix of a node, checked once, and the rounding of its rows: what linear layers and the LM
// head share. Belongs to the onnxruntime side.
#pragma once

#include <algorithm>
#include <cmath>
#include <thread>
#include <vector>

#include "kernels.h"
#include "operator.h"

namespace m2m100 {

constexpr int64_t kMostInputs = 65536;  // so that sums of products stay below 2^31
constexpr int64_t kMostOutputs = 1 << 24;

// Threads that the machine has; a session may use fewer of them.
inline int64_t threads() {
    static const int64_t count = std::max(1u, std::thread::hardware_concurrency());
    return count;
}

// Reads a matrix and its scales, inputs `index` and `index + 1` of a node, and of four bits the scales of its
// columns, input `columns`; `inverse` becomes their inverse, which the matrix refers to.
inline Matrix matrix_of(const Info& info, const Slot* slots, size_t index, size_t columns,
                        std::vector<float>& inverse) {
    Matrix m{};
    m.inputs = info.attribute("in_features", 1, kMostInputs);
    m.outputs = info.attribute("out_features", 1, kMostOutputs);
    m.transposed = info.attribute("transposed", 0, 1) == 1;
    const Tensor weight = info.constant(index, slots[index]);
    m.bits = static_cast<int>(info.attribute("bits", 4, 8));
    if (m.bits != 8 && m.bits != 4)
        refuse("m2m100.", weight.op, ": attribute bits: expected 4 or 8, found ", m.bits);
    const Tensor scale = info.constant(index + 1, slots[index + 1]);
    if (m.bits == 8) {
        weight.expect_type(kInt8, "signed bytes");
        scale.expect_type(kFloat, "32-bit floats");
        weight.expect_shape(m.transposed ? Shape{m.outputs, m.inputs} : Shape{m.inputs, m.outputs});
        scale.expect_shape({m.outputs});
        m.scale = scale.as<float>();
    } else {
        weight.expect_type(kUint8, "bytes, two numbers of four bits each");
        scale.expect_type(kHalf, "16-bit floats");
        weight.expect(!m.transposed, "rows of inputs: four bits are not transposed");
        weight.expect_shape({(m.inputs * m.outputs + 1) / 2});
        scale.expect_shape({(m.inputs + kBlock - 1) / kBlock, m.outputs});
        m.scales = scale.as<uint16_t>();
        const Tensor of_column = info.constant(columns, slots[columns]);
        if (!of_column)
            refuse("m2m100.", weight.op, ": ", slots[columns].name, ": expected the scales of ", m.outputs,
                   " columns, found none: export the bundle again");
        of_column.expect_shape({m.outputs});
        m.scale = of_column.as<float>();
        inverse.reserve(static_cast<size_t>(m.outputs));
        for (int64_t c = 0; c < m.outputs; ++c) {
            const float one = 1.0f / m.scale[c];
            inverse.push_back(std::isfinite(one) ? one : 0.0f);
        }
        m.inverse = inverse.data();
    }
    m.data = weight.as<uint8_t>();
    return m;
}

// Memory that a thread keeps from one run to the next.
struct Workspace {
    std::vector<int8_t> bytes;
    std::vector<float> steps, normalized;
    std::vector<int32_t> sums;
};

struct Norm {
    const float *weight, *bias;  // or null
    float epsilon;
};

// Normalizes rows if asked, and rounds them; the rows lie in the workspace of the calling thread.
inline Rows rounded(const Context& context, const float* x, int64_t rows, int64_t width, bool relu,
                    bool blocks, const Norm& norm) {
    static thread_local Workspace space;
    // Rows that lie a multiple of 4 KB apart would push each other out of L1.
    const int64_t stride = (width + 255) / 256 * 256 + 64, sums = stride / kBlock + 1;
    const auto grow = [](auto& vector, int64_t size) {
        if (vector.size() < static_cast<size_t>(size)) vector.resize(static_cast<size_t>(size));
    };
    grow(space.bytes, rows * stride);
    grow(space.steps, rows);
    grow(space.sums, rows * sums);
    if (norm.weight) grow(space.normalized, rows * width);
    Workspace* of = &space;  // the workers have workspaces of their own
    const Kernels& k = kernels();
    const auto round = [=, &k](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const float* row = x + r * width;
            if (norm.weight) {
                float* y = of->normalized.data() + r * width;
                k.normalize(row, norm.weight, norm.bias, norm.epsilon, width, y);
                row = y;
            }
            k.round(row, width, stride, relu, blocks, of->bytes.data() + r * stride, of->steps.data() + r,
                    of->sums.data() + r * sums);
        }
    };
    // A row takes about a microsecond, and reaching the other threads two.
    const int64_t parts = rows * width < 8192 ? 1 : std::min(rows, threads());
    context.parallel(parts, [=](int64_t p) { round(rows * p / parts, rows * (p + 1) / parts); });
    return {rows, stride, space.bytes.data(), space.steps.data(), space.sums.data()};
}

}  // namespace m2m100
