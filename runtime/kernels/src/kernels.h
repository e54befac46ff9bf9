// What every instruction set offers to the operators: one table of functions each.
//
// Knows no onnxruntime. All pointers are checked by the operators before they come here. Shapes:
// R rows, K inputs and N outputs of a matrix, B sentences, H heads, E numbers a head, D = H * E.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace m2m100 {

// A matrix as it lies in the weights file. Nothing is copied or rearranged before it is used.
struct Matrix {
    const uint8_t* data;     // signed bytes; or four-bit numbers, two a byte, the lower half first
    int64_t inputs;          // K
    int64_t outputs;         // N
    bool transposed;         // (N, K) as an embedding lies, not (K, N)
    int bits;                // 8 or 4; four bits are never transposed
    const float* scale;      // (N), of every column
    // Of four bits: the scales of blocks, (ceil(K / kBlock), N) in half precision. They are whole multiples
    // of the column's scale. So a number of four bits times its multiple is one of eight bits.
    const uint16_t* scales;
    const float* inverse;    // of four bits: 1 / scale, or 0 where that is not finite, (N)
};

constexpr int64_t kBlock = 32;           // inputs that share a scale in four bits
constexpr float kLargestMultiple = 15;  // a number of four bits times it is at least -120

// Rows rounded to signed bytes: x is about `bytes * step`, or `(bytes + kReluShift) * step` after ReLU.
constexpr int kReluShift = 127;

struct Rows {
    int64_t count;        // R
    int64_t stride;       // bytes from one row to the next: K rounded up to 256, and more, zeros at the end
    const int8_t* bytes;  // (R, stride)
    const float* step;    // (R)
    const int32_t* sums;  // (R, stride / kBlock + 1) of each block, of four bits alone, and last of all
};

struct Product {
    Matrix matrix;
    Rows rows;
    const float* bias;      // (N) or null
    const float* residual;  // (R, N) or null
    // After ReLU the scaled sum of every column's weights, (N): what the shift of the rows lacks. Or null.
    const float* columns;
    float* out;             // row r, column c at `out + r * out_stride + c - out_first`
    int64_t out_stride, out_first;
};

// The best tokens of every row, out of logits that are never written as a whole.
struct Ranking {
    Product product;        // of hidden states and the LM head; `out` is not used
    int64_t count;          // candidates of a row
    bool amended;           // whether penalty and bans come before the softmax
    float penalty;
    // Cells in the order of rows and tokens. Those of row r are `begins[r]` up to `begins[r + 1]`.
    const int64_t *seen_begins, *seen;
    const int64_t *banned_begins, *banned;
    float* seen_logits;     // of the cells `seen`, in their order
    // Every `kChunk` tokens of a row: the largest logit, and the sum of exp(logit - largest).
    float *largest, *sums;  // (R, chunks_stride)
    int64_t chunks_stride;
    // The best tokens of every part of a row, as a heap with the worst first, and how many they are.
    float* scores;          // (parts, R, count)
    int64_t* tokens;        // (parts, R, count)
    int64_t* found;         // (parts, R), 0 before
};
constexpr int64_t kChunk = 512;

// Queries against keys and values that lie scattered. A sentence has `group` rows of queries.
struct Attention {
    int64_t heads, size, group;  // H, E, rows of a sentence
    // Row r, head h at `query + r * query_row + h * size`.
    const float* query;
    int64_t query_row;
    // Position t of head h at `place * row + h * head + t * position`. The place is the number of
    // the sentence; with a table, it is that of the row `sentence * group + table[r * table_row + t]`.
    const void *key, *value;
    int64_t row, head, position;
    const int32_t* table;        // or null
    int64_t table_row;
    const int32_t* lengths;      // with a table: positions of every row, at least 1
    int64_t positions;           // without: of every sentence,
    const int64_t* mask;         // (sentences, positions), 0 at those that do not exist
    float* out;                  // (R, H * E)
    bool half;                   // whether keys and values are of half precision
    // With a table, or null: the key of every row's last position, row r, head h at
    // `fresh + r * query_row + h * size`, and its value H * E numbers later. Both are written to
    // `new_key` and `new_value` first, which are `key` and `value`.
    const float* fresh;
    void *new_key, *new_value;
};

constexpr int64_t kMostQueries = 16;  // rows of a sentence that are computed together

// Memory of one thread for `attend`.
struct AttentionRoom {
    int64_t stride;     // positions of the longest row, rounded up to 16
    float* queries;     // (kMostQueries, E rounded up to 16)
    float* weights;     // (kMostQueries, stride)
    int64_t* offsets;   // (kMostQueries, stride)
    uint16_t* first;    // (kMostQueries, stride / 16)
    // (stride, E) each, of a head whose positions lie far apart and have no table; or null.
    void *keys, *values;
};

struct Kernels {
    const char* name;
    // y = (x - mean) / sqrt(variance + epsilon) * weight + bias of a row of `width` numbers.
    void (*normalize)(const float* x, const float* weight, const float* bias, float epsilon,
                      int64_t width, float* y);
    // Rounds a row to 127ths of its largest magnitude, or ReLU of it to 254ths less `kReluShift`, and adds
    // up its bytes, in blocks too if asked. Bytes from `width` to `stride` are 0.
    void (*round)(const float* x, int64_t width, int64_t stride, bool relu, bool blocks, int8_t* bytes,
                  float* step, int32_t* sums);
    // Columns [begin, end) of a product; `begin` is a multiple of 64.
    void (*multiply)(const Product&, int64_t begin, int64_t end);
    // Chunks [begin, end) of a ranking, whose candidates become those of one part.
    void (*rank)(const Ranking&, int64_t part, int64_t begin, int64_t end);
    // log(sum of sums[i] * exp(largest[i])); `count` is a multiple of 16.
    float (*log_sum_exp)(const float* largest, const float* sums, int64_t count);
    // All rows of the pairs [begin, end) of sentence and head, `sentence * heads + head`.
    void (*attend)(const Attention&, const AttentionRoom&, int64_t begin, int64_t end);
};

// `dispatch.cpp` says which of them a processor has.
extern const Kernels *const kPlain;
#if defined(__x86_64__)
extern const Kernels *const kAmx, *const kAvx512, *const kAvxVnni, *const kAvx2;
#elif defined(__aarch64__)
extern const Kernels *const kI8mm, *const kNeon;
#endif

// What this processor can run, the fastest first.
std::vector<const Kernels*> available();

// The fastest that this processor has, or the one that M2M100_KERNELS names.
const Kernels& kernels();

}  // namespace m2m100
