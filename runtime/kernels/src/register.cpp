// What onnxruntime calls when the library is registered: adds the operators to a session's options.
#include "kernels.h"
#include "operator.h"

#if defined(_WIN32)
#define M2M100_PUBLIC extern "C" __declspec(dllexport)
#else
#define M2M100_PUBLIC extern "C" __attribute__((visibility("default")))
#endif

M2M100_PUBLIC OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                        const OrtApiBase* base) {
    using namespace m2m100;
    const OrtApi* api = base->GetApi(ORT_API_VERSION);
    if (!api) {
        // An older onnxruntime: its oldest functions can still make a status.
        return base->GetApi(1)->CreateStatus(
            ORT_FAIL, "m2m100-onnx-kernels: expected onnxruntime 1.21 or newer");
    }
    Ort::InitApi(api);
    return guarded([&] {
        kernels();  // an instruction set that the environment names may not exist
        static Ort::CustomOpDomain domain = [] {
            Ort::CustomOpDomain made("m2m100");
            add_linear(made);
            add_rank(made);
            add_attention(made);
            return made;
        }();
        Ort::UnownedSessionOptions(options).Add(domain);
    });
}

// The name of the instruction set that runs, or null where the environment names none that exists.
M2M100_PUBLIC const char* m2m100_kernels_name() {
    try {
        return m2m100::kernels().name;
    } catch (const std::exception&) {
        return nullptr;
    }
}
