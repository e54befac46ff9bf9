// Linear: layer norm, product of eight or four bits, bias and residual in one node. And LayerNorm.
#include <mutex>

#include "linear.h"

namespace m2m100 {
namespace {

class Linear : public Runs<Linear> {
public:
    static constexpr const char* kName = "Linear";
    static constexpr Slot kInputs[] = {
        {"x", kFloat},
        {"weight", kAny},
        {"scale", kAny},
        {"bias", kFloat, true},
        {"residual", kFloat, true},
        {"norm_weight", kFloat, true},
        {"norm_bias", kFloat, true},
        {"column_scale", kFloat, true},
    };
    static constexpr Element kOutputs[] = {kFloat};

    explicit Linear(const Info& info)
        : matrix_(matrix_of(info, kInputs, 1, 7, inverse_)), relu_(info.attribute("relu", 0, 1) == 1) {
        const Tensor bias = info.constant(3, kInputs[3]);
        const Tensor weight = info.constant(5, kInputs[5]), shift = info.constant(6, kInputs[6]);
        if (bias) bias.expect_shape({matrix_.outputs});
        if (weight) weight.expect_shape({matrix_.inputs});
        if (shift) shift.expect_shape({matrix_.inputs});
        if (static_cast<bool>(weight) != static_cast<bool>(shift))
            refuse("m2m100.Linear: expected both norm_weight and norm_bias, or neither");
        bias_ = bias.as<float>();
        norm_ = {weight.as<float>(), shift.as<float>(), info.number("epsilon")};
    }

    void compute(const Context& context) const {
        const Tensor x = context.input(0), residual = context.input(4);
        x.expect(x.rank() >= 1 && x.width() == matrix_.inputs,
                 "rows of " + std::to_string(matrix_.inputs) + " numbers");
        Shape shape = x.shape;
        shape.back() = matrix_.outputs;
        if (residual) residual.expect_shape(shape);
        float* out = context.output<float>(0, shape);
        const int64_t count = x.rows();
        if (count == 0) return;
        const Kernels& k = kernels();
        if (relu_) std::call_once(added_up_, [&] { add_up(context, k); });  // uses the workspace, too
        const Rows rows = rounded(context, x.as<float>(), count, matrix_.inputs, relu_, matrix_.bits == 4, norm_);
        const Product product{matrix_, rows, bias_, residual.as<float>(),
                              relu_ ? columns_.data() : nullptr, out, matrix_.outputs, 0};
        const int64_t strips = (matrix_.outputs + 63) / 64, outputs = matrix_.outputs;
        // A thread reads long runs of the matrix. With many rows, threads that are late leave parts to the
        // others, if parts are still as wide as the blocks.
        const bool small = matrix_.inputs * outputs * count < 1 << 18;
        const int64_t most = count <= 8 ? threads() : std::max(threads(), std::min(threads() * 4, strips / 8));
        const int64_t parts = small ? 1 : std::min(strips, most);
        context.parallel(parts, [=, &product, &k](int64_t p) {
            k.multiply(product, strips * p / parts * 64,
                       std::min(outputs, strips * (p + 1) / parts * 64));
        });
    }

private:
    // The scaled sums of all columns: the product with a row of ones. They are constants of the node, and
    // the first run reads all weights anyway.
    void add_up(const Context& context, const Kernels& k) const {
        const std::vector<float> ones(matrix_.inputs, 127.0f);
        Rows row = rounded(context, ones.data(), 1, matrix_.inputs, false, matrix_.bits == 4, {});
        const float step = 1.0f / 127.0f;
        row.step = &step;
        columns_.resize(matrix_.outputs);
        k.multiply({matrix_, row, nullptr, nullptr, nullptr, columns_.data(), matrix_.outputs, 0}, 0,
                   matrix_.outputs);
    }

    std::vector<float> inverse_;  // of the matrix, so it comes first
    Matrix matrix_;
    bool relu_;
    mutable std::once_flag added_up_;
    mutable std::vector<float> columns_;
    const float* bias_;
    Norm norm_;
};

class LayerNorm : public Runs<LayerNorm> {
public:
    static constexpr const char* kName = "LayerNorm";
    static constexpr Slot kInputs[] = {{"x", kFloat}, {"weight", kFloat}, {"bias", kFloat}};
    static constexpr Element kOutputs[] = {kFloat};

    explicit LayerNorm(const Info& info) : epsilon_(info.number("epsilon")) {}

    void compute(const Context& context) const {
        const Tensor x = context.input(0), weight = context.input(1), bias = context.input(2);
        x.expect(x.rank() >= 1 && x.width() >= 1, "rows of numbers");
        weight.expect_shape({x.width()});
        bias.expect_shape({x.width()});
        float* out = context.output<float>(0, x.shape);
        for (int64_t r = 0; r < x.rows(); ++r)
            kernels().normalize(x.as<float>() + r * x.width(), weight.as<float>(),
                                bias.as<float>(), epsilon_, x.width(), out + r * x.width());
    }

private:
    float epsilon_;
};

}  // namespace

void add_linear(Ort::CustomOpDomain& domain) {
    static const Operator<Linear> linear;
    static const Operator<LayerNorm> norm;
    domain.Add(&linear);
    domain.Add(&norm);
}

}  // namespace m2m100
