// BeamAttention, CrossAttention and SelfAttention.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "kernels.h"
#include "linear.h"
#include "operator.h"

namespace m2m100 {
namespace {

constexpr int64_t kMostPositions = 1 << 24;

// Memory that a thread keeps from one run to the next.
class Room {
public:
    // For rows of up to `positions` positions and heads of `size` numbers.
    AttentionRoom of(int64_t positions, int64_t size, bool scattered) {
        const int64_t stride = (positions + 15) / 16 * 16, width = (size + 15) / 16 * 16;
        const int64_t queries = kMostQueries * width, weights = kMostQueries * stride;
        const int64_t keys = scattered ? stride * size : 0;
        grow(numbers_, queries + weights + 2 * keys + 16);
        grow(offsets_, kMostQueries * stride);
        grow(first_, kMostQueries * stride / 16);
        // From a cache line on: a load that spans two lines takes twice as long.
        const auto address = reinterpret_cast<uintptr_t>(numbers_.data());
        float* numbers = numbers_.data() + (64 - address % 64) % 64 / sizeof(float);
        float* copies = scattered ? numbers + queries + weights : nullptr;
        return {stride,        numbers, numbers + queries, offsets_.data(),
                first_.data(), copies,  copies + keys};
    }

private:
    template <class T>
    static void grow(std::vector<T>& vector, int64_t size) {
        if (vector.size() < static_cast<size_t>(size)) vector.resize(static_cast<size_t>(size));
    }
    std::vector<float> numbers_;
    std::vector<int64_t> offsets_;
    std::vector<uint16_t> first_;
};
thread_local Room room_of_thread;

// Attends for all pairs of sentence and head, which read some `numbers` of keys.
void attend(const Context& context, const Attention& job, int64_t sentences, int64_t longest,
            int64_t numbers) {
    const Kernels& k = kernels();
    const int64_t pairs = sentences * job.heads;
    // To wake another thread takes as long as reading some 8,000 numbers of keys, and one that gets no
    // part of this node is asleep at the next.
    const int64_t parts = numbers < 8000 ? std::min<int64_t>(pairs, 1) : std::min(pairs, 4 * threads());
    const bool scattered = !job.table && job.position > job.size;
    std::atomic<bool> no_memory{false};  // a part must not throw
    context.parallel(parts, [&, parts, pairs](int64_t p) {
        try {
            const AttentionRoom room = room_of_thread.of(longest, job.size, scattered);
            k.attend(job, room, pairs * p / parts, pairs * (p + 1) / parts);
        } catch (const std::bad_alloc&) {
            no_memory = true;
        }
    });
    if (no_memory) throw std::bad_alloc();
}

void expect_size(const Tensor& tensor, int64_t positions, int64_t size) {
    tensor.expect(size >= 1 && positions <= kMostPositions,
                  "at most " + std::to_string(kMostPositions) + " positions and a head_size");
}

// kType: of past and present keys and values.
template <Element kType>
class BeamAttention : public Runs<BeamAttention<kType>> {
public:
    static constexpr const char* kName = "BeamAttention";
    static constexpr Slot kInputs[] = {
        {"qkv", kFloat},         {"past_key", kType},   {"past_value", kType},
        {"past_length", kInt32}, {"beam_size", kInt32}, {"cache_indirection", kInt32},
    };
    static constexpr Element kOutputs[] = {kFloat, kType, kType};

    explicit BeamAttention(const Info& info) : heads_(info.attribute("num_heads", 1, 4096)) {}

    void compute(const Context& context) const {
        const Tensor qkv = context.input(0), key = context.input(1), value = context.input(2);
        const Tensor past = context.input(3), beam_size = context.input(4), table = context.input(5);
        key.expect(key.rank() == 4 && key.shape[1] == heads_,
                   "shape (rows, " + std::to_string(heads_) + ", max_length, head_size)");
        const int64_t rows = key.shape[0], capacity = key.shape[2], size = key.shape[3];
        const int64_t width = heads_ * size;
        expect_size(key, capacity, size);
        value.expect_shape(key.shape);
        qkv.expect_shape({rows, 1, 3 * width});
        beam_size.expect_shape({1});
        const int64_t beams = *beam_size.as<int32_t>();
        if (beams < 1 || rows % beams)
            refuse("m2m100.BeamAttention: beam_size: expected a divisor of ", rows, " rows, found ", beams);
        table.expect_shape({rows / beams, beams, capacity});
        const std::vector<int32_t> lengths = lengths_of(past, rows, capacity);
        check_table(table, lengths, beams, capacity);
        float* out = context.output<float>(0, {rows, 1, width});
        void* new_key = context.output<char>(1, key.shape);
        void* new_value = context.output<char>(2, key.shape);
        if (rows == 0) return;
        if (new_key != key.data || new_value != value.data)
            refuse("m2m100.BeamAttention: expected present keys and values bound to the buffers of the "
                   "past ones");
        Attention job{};
        job.heads = heads_;
        job.size = size;
        job.group = beams;
        job.query = qkv.as<float>();
        job.query_row = 3 * width;
        job.key = new_key;
        job.value = new_value;
        job.half = kType == kHalf;
        job.row = heads_ * capacity * size;
        job.head = capacity * size;
        job.position = size;
        job.table = table.as<int32_t>();
        job.table_row = capacity;
        job.lengths = lengths.data();
        job.fresh = job.query + width;
        job.new_key = new_key;
        job.new_value = new_value;
        job.out = out;
        const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
        attend(context, job, rows / beams, longest, rows * longest * width);
    }

private:
    // The positions of each row, that of the new token included.
    static std::vector<int32_t> lengths_of(const Tensor& past, int64_t rows, int64_t capacity) {
        past.expect(past.rank() == 1 && (past.shape[0] == 1 || past.shape[0] == rows),
                    "a length, or one for each of " + std::to_string(rows) + " rows");
        std::vector<int32_t> lengths(rows);
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t length = past.as<int32_t>()[past.shape[0] == 1 ? 0 : r];
            if (length < 0 || length >= capacity)
                refuse("m2m100.BeamAttention: past_length: expected 0 to ", capacity - 1, ", found ", length);
            lengths[r] = static_cast<int32_t>(length + 1);
        }
        return lengths;
    }

    static void check_table(const Tensor& table, const std::vector<int32_t>& lengths, int64_t beams,
                            int64_t capacity) {
        const auto outside = [beams](int32_t beam) { return beam < 0 || beam >= beams; };
        for (size_t r = 0; r < lengths.size(); ++r) {
            const int32_t* row = table.as<int32_t>() + static_cast<int64_t>(r) * capacity;
            const int32_t* found = std::find_if(row, row + lengths[r], outside);
            if (found != row + lengths[r])
                refuse("m2m100.BeamAttention: cache_indirection: expected 0 to ", beams - 1, ", found ",
                       *found, " in row ", r, " at position ", found - row);
        }
    }

    int64_t heads_;
};

class CrossAttention : public Runs<CrossAttention> {
public:
    static constexpr const char* kName = "CrossAttention";
    static constexpr Slot kInputs[] = {
        {"query", kFloat}, {"key", kAny}, {"value", kAny}, {"mask", kInt64}};
    static constexpr Element kOutputs[] = {kFloat};

    explicit CrossAttention(const Info& info) : heads_(info.attribute("num_heads", 1, 4096)) {}

    void compute(const Context& context) const {
        const Tensor query = context.input(0), key = context.input(1), value = context.input(2);
        const Tensor mask = context.input(3);
        key.expect(key.rank() == 4 && key.shape[1] == heads_,
                   "shape (sentences, " + std::to_string(heads_) + ", length, head_size)");
        const int64_t sentences = key.shape[0], length = key.shape[2], size = key.shape[3];
        const int64_t width = heads_ * size;
        key.expect(key.type == kFloat || key.type == kHalf, "floats of 32 or 16 bits");
        value.expect_type(key.type, "the type of the keys");
        expect_size(key, length, size);
        value.expect_shape(key.shape);
        mask.expect_shape({sentences, length});
        query.expect(query.rank() == 3 && query.shape[1] == 1 && query.shape[2] == width,
                     "shape (rows, 1, " + std::to_string(width) + ")");
        const int64_t rows = query.shape[0];
        query.expect(sentences ? rows % sentences == 0 : rows == 0,
                     "as many rows for each of " + std::to_string(sentences) + " sentences");
        float* out = context.output<float>(0, query.shape);
        if (rows == 0) return;
        Attention job{};
        job.heads = heads_;
        job.size = size;
        job.group = rows / sentences;
        job.query = query.as<float>();
        job.query_row = width;
        job.key = key.data;
        job.value = value.data;
        job.half = key.type == kHalf;
        job.row = heads_ * length * size;
        job.head = length * size;
        job.position = size;
        job.positions = length;
        job.mask = mask.as<int64_t>();
        job.out = out;
        attend(context, job, sentences, length, rows * length * width);
    }

private:
    int64_t heads_;
};

class SelfAttention : public Runs<SelfAttention> {
public:
    static constexpr const char* kName = "SelfAttention";
    static constexpr Slot kInputs[] = {{"qkv", kFloat}, {"mask", kInt64}};
    static constexpr Element kOutputs[] = {kFloat};

    explicit SelfAttention(const Info& info) : heads_(info.attribute("num_heads", 1, 4096)) {}

    void compute(const Context& context) const {
        const Tensor qkv = context.input(0), mask = context.input(1);
        qkv.expect(qkv.rank() == 3 && qkv.shape[2] % (3 * heads_) == 0,
                   "shape (sentences, length, 3 * " + std::to_string(heads_) + " * head_size)");
        const int64_t sentences = qkv.shape[0], length = qkv.shape[1], width = qkv.shape[2] / 3;
        const int64_t size = width / heads_;
        expect_size(qkv, length, size);
        mask.expect_shape({sentences, length});
        float* out = context.output<float>(0, {sentences, length, width});
        if (sentences * length == 0) return;
        const float* x = qkv.as<float>();
        Attention job{};
        job.heads = heads_;
        job.size = size;
        job.group = length;
        job.query = x;
        job.query_row = 3 * width;
        job.key = x + width;
        job.value = x + 2 * width;
        job.row = length * 3 * width;
        job.head = size;
        job.position = 3 * width;
        job.positions = length;
        job.mask = mask.as<int64_t>();
        job.out = out;
        attend(context, job, sentences, length, sentences * length * length * width);
    }

private:
    int64_t heads_;
};

}  // namespace

void add_attention(Ort::CustomOpDomain& domain) {
    static const Operator<BeamAttention<kFloat>> beam;
    static const Operator<BeamAttention<kHalf>> half_beam;
    static const Operator<CrossAttention> cross;
    static const Operator<SelfAttention> self;
    domain.Add(&beam);
    domain.Add(&half_beam);
    domain.Add(&cross);
    domain.Add(&self);
}

}  // namespace m2m100
