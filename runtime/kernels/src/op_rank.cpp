// Rank: the LM head, the best tokens of each row and their log-probabilities, in one node.
#include <cmath>
#include <limits>
#include <numeric>

#include "linear.h"

namespace m2m100 {
namespace {

// Cells (row, token) in order, and where each row's begin.
struct Cells {
    std::vector<int64_t> begins, tokens, places;  // places: which cell of the input each one was

    Cells(const Tensor& cells, int64_t rows, int64_t vocabulary) : begins(rows + 1, 0) {
        cells.expect(cells.rank() == 2 && cells.shape[1] == 2, "shape (cells, 2)");
        const int64_t count = cells.shape[0];
        const int64_t* pairs = cells.as<int64_t>();
        for (int64_t i = 0; i < count; ++i) {
            const int64_t row = pairs[2 * i], token = pairs[2 * i + 1];
            if (row < 0 || row >= rows || token < 0 || token >= vocabulary)
                refuse("m2m100.Rank: ", cells.name, ": expected cells of ", rows, " rows and ",
                       vocabulary, " tokens, found (", row, ", ", token, ")");
        }
        places.resize(count);
        std::iota(places.begin(), places.end(), int64_t{0});
        std::sort(places.begin(), places.end(), [pairs](int64_t a, int64_t b) {
            return std::pair(pairs[2 * a], pairs[2 * a + 1]) < std::pair(pairs[2 * b], pairs[2 * b + 1]);
        });
        tokens.reserve(count);
        for (int64_t place : places) {
            tokens.push_back(pairs[2 * place + 1]);
            ++begins[pairs[2 * place] + 1];
        }
        std::partial_sum(begins.begin(), begins.end(), begins.begin());
    }
};

class Rank : public Runs<Rank> {
public:
    static constexpr const char* kName = "Rank";
    static constexpr Slot kInputs[] = {
        {"hidden_states", kFloat}, {"weight", kAny},  {"scale", kAny},
        {"bias", kFloat, true},    {"count", kInt64}, {"repetition_penalty", kFloat},
        {"seen", kInt64},          {"banned", kInt64}, {"renormalized", kBool},
        {"column_scale", kFloat, true},
    };
    static constexpr Element kOutputs[] = {kFloat, kInt64, kFloat};

    explicit Rank(const Info& info) : matrix_(matrix_of(info, kInputs, 1, 9, inverse_)) {
        const Tensor bias = info.constant(3, kInputs[3]);
        if (bias) bias.expect_shape({matrix_.outputs});
        bias_ = bias.as<float>();
    }

    void compute(const Context& context) const {
        const Tensor x = context.input(0), count_of = context.input(4), penalty = context.input(5);
        const Tensor seen_cells = context.input(6), banned_cells = context.input(7);
        const Tensor renormalized = context.input(8);
        x.expect(x.rank() == 2 && x.width() == matrix_.inputs,
                 "shape (rows, " + std::to_string(matrix_.inputs) + ")");
        count_of.expect_shape({1});
        penalty.expect(penalty.count() == 1, "a number");
        renormalized.expect(renormalized.count() == 1, "a truth value");
        const int64_t rows = x.rows(), vocabulary = matrix_.outputs;
        const int64_t count = count_of.as<int64_t>()[0];
        if (count < 1 || count > vocabulary)
            refuse("m2m100.Rank: count: expected 1 to ", vocabulary, ", found ", count);
        const Cells seen(seen_cells, rows, vocabulary), banned(banned_cells, rows, vocabulary);
        float* scores = context.output<float>(0, {rows, count});
        int64_t* tokens = context.output<int64_t>(1, {rows, count});
        float* seen_scores = context.output<float>(2, {seen_cells.shape[0]});
        if (rows == 0) return;

        const int64_t chunks = (vocabulary + kChunk - 1) / kChunk;
        const int64_t stride = (chunks + 15) / 16 * 16;
        // A long list of candidates for each part would take more memory than the logits.
        const int64_t parts =
            count > 256 ? 1 : std::min(chunks, threads() * (rows <= 8 ? 1 : 2));
        std::vector<float> largest(rows * stride, -std::numeric_limits<float>::infinity());
        std::vector<float> sums(rows * stride, 0.0f), seen_logits(seen.tokens.size());
        std::vector<float> best(parts * rows * count);
        std::vector<int64_t> best_tokens(parts * rows * count), found(parts * rows, 0);
        const Norm none{nullptr, nullptr, 0};
        const Kernels& k = kernels();
        const Rows rounded_rows =
            rounded(context, x.as<float>(), rows, matrix_.inputs, false, matrix_.bits == 4, none);
        const Ranking ranking{
            {matrix_, rounded_rows, bias_, nullptr, nullptr, nullptr, 0, 0},
            count,
            *renormalized.as<bool>(),
            *penalty.as<float>(),
            seen.begins.data(),
            seen.tokens.data(),
            banned.begins.data(),
            banned.tokens.data(),
            seen_logits.data(),
            largest.data(),
            sums.data(),
            stride,
            best.data(),
            best_tokens.data(),
            found.data()};
        context.parallel(parts, [&, chunks, parts](int64_t p) {
            k.rank(ranking, p, chunks * p / parts, chunks * (p + 1) / parts);
        });

        std::vector<std::pair<float, int64_t>> all;
        for (int64_t r = 0; r < rows; ++r) {
            const float total = k.log_sum_exp(largest.data() + r * stride, sums.data() + r * stride, stride);
            all.clear();
            for (int64_t p = 0; p < parts; ++p) {
                const int64_t list = p * rows + r;
                for (int64_t i = 0; i < found[list]; ++i)
                    all.emplace_back(-best[list * count + i], best_tokens[list * count + i]);
            }
            std::sort(all.begin(), all.end());  // the largest first, and the lower of two tokens
            for (int64_t i = 0; i < count; ++i) {
                // Only logits that are NaN are no candidates; `total` is NaN then, too.
                const bool there = i < static_cast<int64_t>(all.size());
                scores[r * count + i] = (there ? -all[i].first : 0.0f) - total;
                tokens[r * count + i] = there ? all[i].second : 0;
            }
            for (int64_t i = seen.begins[r]; i < seen.begins[r + 1]; ++i)
                seen_scores[seen.places[i]] = seen_logits[i] - total;
        }
    }

private:
    std::vector<float> inverse_;  // of the matrix, so it comes first
    Matrix matrix_;
    const float* bias_;
};

}  // namespace

void add_rank(Ort::CustomOpDomain& domain) {
    static const Operator<Rank> rank;
    domain.Add(&rank);
}

}  // namespace m2m100
