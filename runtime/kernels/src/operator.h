// The onnxruntime side of an operator: its declaration, and tensors that are checked before use.
//
// A kernel class declares `kName`, `kInputs` and `kOutputs`, takes `Info` when it is made and a
// `Context` at each run. Whatever it throws becomes an error of onnxruntime.
#pragma once

#ifndef ORT_API_MANUAL_INIT
#define ORT_API_MANUAL_INIT
#endif
#include <onnxruntime_cxx_api.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace m2m100 {

constexpr int64_t kOperatorsVersion = 1;

using Element = ONNXTensorElementDataType;
constexpr Element kAny = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
constexpr Element kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr Element kHalf = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr Element kInt8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
constexpr Element kUint8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
constexpr Element kInt32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr Element kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr Element kBool = ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;

struct Slot {
    const char* name;
    Element type;
    bool optional = false;
};

using Shape = std::vector<int64_t>;

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw std::invalid_argument(text.str());
}

inline std::string text_of(const Shape& shape) {
    std::ostringstream text;
    text << '(';
    for (size_t i = 0; i < shape.size(); ++i) text << (i ? ", " : "") << shape[i];
    text << ')';
    return text.str();
}

// A tensor whose type is known. `data` is null for an optional input that is missing.
struct Tensor {
    const char* op = "";
    const char* name = "";
    Element type = kAny;
    Shape shape;
    const void* data = nullptr;

    explicit operator bool() const { return data != nullptr; }
    template <class T>
    const T* as() const {
        return static_cast<const T*>(data);
    }
    int64_t rank() const { return static_cast<int64_t>(shape.size()); }
    int64_t count() const {
        int64_t n = 1;
        for (int64_t size : shape) n *= size;  // of a tensor that exists, so it cannot overflow
        return n;
    }
    // Numbers of the last axis, and how many rows of them there are.
    int64_t width() const { return shape.empty() ? 1 : shape.back(); }
    int64_t rows() const {
        int64_t n = 1;
        for (size_t i = 0; i + 1 < shape.size(); ++i) n *= shape[i];
        return n;
    }
    void expect(bool good, const std::string& what) const {
        if (!good)
            refuse("m2m100.", op, ": ", name, ": expected ", what, ", found shape ", text_of(shape));
    }
    void expect_shape(const Shape& wanted) const {
        if (shape != wanted) expect(false, "shape " + text_of(wanted));
    }
    void expect_type(Element wanted, const char* what) const {
        if (type != wanted)
            refuse("m2m100.", op, ": ", name, ": expected ", what, ", found element type ", type);
    }
};

inline Tensor tensor_of(const char* op, const Slot& slot, Ort::ConstValue value) {
    Tensor tensor;
    tensor.op = op;
    tensor.name = slot.name;
    if (!value || !value.HasValue()) {
        if (!slot.optional) refuse("m2m100.", op, ": ", slot.name, ": expected a tensor, found none");
        return tensor;
    }
    if (!value.IsTensor()) refuse("m2m100.", op, ": ", slot.name, ": expected a tensor");
    const auto info = value.GetTensorTypeAndShapeInfo();
    tensor.type = info.GetElementType();
    tensor.shape = info.GetShape();
    if (slot.type != kAny && tensor.type != slot.type)
        refuse("m2m100.", op, ": ", slot.name, ": expected element type ", slot.type, ", found ",
               tensor.type);
    static const char nothing[64] = {};  // an empty tensor may have no address
    tensor.data = value.GetTensorRawData();
    if (!tensor.data) tensor.data = nothing;
    return tensor;
}

// What a node is, when its kernel is made.
class Info {
public:
    Info(const char* op, const OrtKernelInfo* info) : op_(op), info_(info) {
        const int64_t version = attribute("version");
        if (version > kOperatorsVersion)
            refuse("m2m100.", op_, ": expected version ", kOperatorsVersion,
                   " or older, found version ", version, ": install a newer m2m100-onnx-kernels");
    }
    int64_t attribute(const char* name) const { return info_.GetAttribute<int64_t>(name); }
    // One of [least, most].
    int64_t attribute(const char* name, int64_t least, int64_t most) const {
        const int64_t value = attribute(name);
        if (value < least || value > most)
            refuse("m2m100.", op_, ": attribute ", name, ": expected ", least, " to ", most,
                   ", found ", value);
        return value;
    }
    float number(const char* name) const { return info_.GetAttribute<float>(name); }
    // An input that is a constant of the graph. onnxruntime keeps it where it is.
    Tensor constant(size_t index, const Slot& slot) const {
        if (index >= info_.GetInputCount()) return tensor_of(op_, slot, Ort::ConstValue{nullptr});
        int is_constant = 0;
        Ort::ConstValue value = info_.GetTensorConstantInput(index, &is_constant);
        if (!is_constant && !slot.optional)
            refuse("m2m100.", op_, ": ", slot.name, ": expected a constant of the graph");
        return tensor_of(op_, slot, is_constant ? value : Ort::ConstValue{nullptr});
    }

private:
    const char* op_;
    Ort::ConstKernelInfo info_;
};

// The inputs and outputs of one run.
class Context {
public:
    Context(const char* op, const Slot* inputs, OrtKernelContext* context)
        : op_(op), inputs_(inputs), context_(context), count_(context_.GetInputCount()) {}
    const char* op() const { return op_; }
    Tensor input(size_t index) const {
        return tensor_of(op_, inputs_[index],
                         index < count_ ? context_.GetInput(index) : Ort::ConstValue{nullptr});
    }
    template <class T>
    T* output(size_t index, const Shape& shape) const {
        return context_.GetOutput(index, shape.data(), shape.size()).GetTensorMutableData<T>();
    }
    // Calls `work(part)` for every part, on the threads of the session. Throws the first error of a part.
    template <class Work>
    void parallel(int64_t parts, Work work) const {
        if (parts <= 1) {
            if (parts == 1) work(int64_t{0});
            return;
        }
        struct Shared {
            Work& work;
            std::atomic<bool> failed{false};
            std::exception_ptr error;
        } shared{work};
        context_.ParallelFor(
            [](void* data, size_t part) {
                Shared& all = *static_cast<Shared*>(data);
                try {
                    all.work(static_cast<int64_t>(part));
                } catch (...) {  // onnxruntime's threads know no exceptions
                    if (!all.failed.exchange(true)) all.error = std::current_exception();
                }
            },
            static_cast<size_t>(parts), 0, &shared);
        if (shared.error) std::rethrow_exception(shared.error);
    }

private:
    const char* op_;
    const Slot* inputs_;
    Ort::KernelContext context_;
    size_t count_;
};

// Turns what `work` throws into a status of onnxruntime.
template <class Work>
OrtStatusPtr guarded(Work work) {
    try {
        work();
        return nullptr;
    } catch (const Ort::Exception& error) {
        return Ort::Status(error.what(), error.GetOrtErrorCode()).release();
    } catch (const std::invalid_argument& error) {
        return Ort::Status(error.what(), ORT_INVALID_ARGUMENT).release();
    } catch (const std::exception& error) {
        return Ort::Status(error.what(), ORT_FAIL).release();
    }
}

template <class Kernel>
struct Operator : Ort::CustomOpBase<Operator<Kernel>, Kernel, true> {
    const char* GetName() const { return Kernel::kName; }
    size_t GetInputTypeCount() const { return std::size(Kernel::kInputs); }
    Element GetInputType(size_t i) const { return Kernel::kInputs[i].type; }
    OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t i) const {
        return Kernel::kInputs[i].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
    }
    size_t GetOutputTypeCount() const { return std::size(Kernel::kOutputs); }
    Element GetOutputType(size_t i) const { return Kernel::kOutputs[i]; }
    OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
        return guarded([&] { *kernel = new Kernel(Info(Kernel::kName, info)); });
    }
};

// What every kernel class derives from.
template <class Kernel>
struct Runs {
    OrtStatusPtr ComputeV2(OrtKernelContext* context) {
        return guarded([&] {
            static_cast<Kernel*>(this)->compute(Context(Kernel::kName, Kernel::kInputs, context));
        });
    }
};

// Adds a file's operators to the domain; one function for each file `op_*.cpp`.
void add_linear(Ort::CustomOpDomain&);
void add_rank(Ort::CustomOpDomain&);
void add_attention(Ort::CustomOpDomain&);

}  // namespace m2m100
