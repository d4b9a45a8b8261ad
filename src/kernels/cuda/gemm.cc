// Dense bf16 products through cuBLASLt, loaded with dlopen so that the program starts without it. The few declarations
// it needs of the library's stable C interface stand here; a build needs no header of it.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include "kernels/cuda/cuda_kernels.h"

namespace still {

namespace {
using Handle = void*;
// cublasLt.h, CUDA 12 and 13.
struct Algo {
  std::uint64_t data[8];
};
struct Heuristic {
  Algo algo;
  std::size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
};
constexpr int kComputeF32 = 68;                                   // CUBLAS_COMPUTE_32F
constexpr int kF32 = 0, kBF16 = 14;                               // cudaDataType_t
constexpr int kAttrTransA = 3, kAttrEpilogue = 7, kAttrBias = 8;  // cublasLtMatmulDescAttributes_t
constexpr int kTranspose = 1;                                     // CUBLAS_OP_T
constexpr std::uint32_t kEpilogueBias = 4;                        // CUBLASLT_EPILOGUE_BIAS
constexpr int kPreferenceWorkspace = 1;                           // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
constexpr std::size_t kWorkspaceBytes = std::size_t{64} << 20;

struct Library {
  int (*create)(Handle*);
  int (*desc_create)(Handle*, int compute, int scale_type);
  int (*desc_set)(Handle, int attribute, const void* value, std::size_t bytes);
  int (*layout_create)(Handle*, int type, std::uint64_t rows, std::uint64_t columns, std::int64_t ld);
  int (*preference_create)(Handle*);
  int (*preference_set)(Handle, int attribute, const void* value, std::size_t bytes);
  int (*heuristic)(Handle, Handle desc, Handle a, Handle b, Handle c, Handle d, Handle preference, int wanted,
                   Heuristic* results, int* found);
  int (*matmul)(Handle, Handle desc, const void* alpha, const void* a, Handle a_layout, const void* b, Handle b_layout,
                const void* beta, const void* c, Handle c_layout, void* d, Handle d_layout, const Algo* algo,
                void* workspace, std::size_t workspace_bytes, cudaStream_t stream);

  bool load(const char** reason) {
    void* library = nullptr;
    for (const char* name :
         {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so", "/usr/local/cuda/lib64/libcublasLt.so"}) {
      library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (library != nullptr) break;
    }
    if (library == nullptr) {
      *reason = "libcublasLt is not installed";
      return false;
    }
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      return function != nullptr;
    };
    *reason = "libcublasLt lacks a function that is needed";
    return find(create, "cublasLtCreate") && find(desc_create, "cublasLtMatmulDescCreate") &&
           find(desc_set, "cublasLtMatmulDescSetAttribute") && find(layout_create, "cublasLtMatrixLayoutCreate") &&
           find(preference_create, "cublasLtMatmulPreferenceCreate") &&
           find(preference_set, "cublasLtMatmulPreferenceSetAttribute") &&
           find(heuristic, "cublasLtMatmulAlgoGetHeuristic") && find(matmul, "cublasLtMatmul");
  }
};

// A shape's descriptors and algorithm; they live as long as the process uses the shape.
struct Plan {
  Handle desc = nullptr, a = nullptr, b = nullptr, d = nullptr;
  Algo algo{};
  std::size_t workspace_bytes = 0;
  bool is_usable = false;
};

class CublasLtGemm : public CudaGemm {
 public:
  explicit CublasLtGemm(const Library& library) : library_(library) {}

  bool create(const char** reason) {
    if (library_.create(&handle_) != 0 || library_.preference_create(&preference_) != 0 ||
        library_.preference_set(preference_, kPreferenceWorkspace, &kWorkspaceBytes, sizeof(kWorkspaceBytes)) != 0) {
      *reason = "cuBLASLt does not start";
      return false;
    }
    if (cudaMalloc(&workspace_, kWorkspaceBytes) != cudaSuccess) {
      (void)cudaGetLastError();
      *reason = "no GPU memory for cuBLASLt's workspace";
      return false;
    }
    return true;
  }
  ~CublasLtGemm() override {
    if (workspace_ != nullptr) (void)cudaFree(workspace_);
  }

  bool run(void* stream, const CudaGemmArgs& args) override {
    Plan& plan = plan_of(args);
    if (!plan.is_usable) return false;
    if (args.bias != nullptr && library_.desc_set(plan.desc, kAttrBias, &args.bias, sizeof(args.bias)) != 0)
      return false;
    const float alpha = 1.0f, beta = args.add ? 1.0f : 0.0f;
    return library_.matmul(handle_, plan.desc, &alpha, args.w, plan.a, args.x, plan.b, &beta, args.y, plan.d, args.y,
                           plan.d, &plan.algo, workspace_, plan.workspace_bytes,
                           static_cast<cudaStream_t>(stream)) == 0;
  }

 private:
  using Key =
      std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool, bool, bool, std::int64_t>;

  // In the library's column-major terms: d [n_out x n_rows] = w^T [n_out x k] * x [k x n_rows].
  Plan& plan_of(const CudaGemmArgs& args) {
    const Key key{args.n_rows, args.n_out,           args.k,         args.w_stride, args.y_stride, args.y_is_bf16,
                  args.add,    args.bias != nullptr, args.fixed_rows};
    const auto [entry, is_new] = plans_.try_emplace(key);
    Plan& plan = entry->second;
    if (!is_new) return plan;
    if (args.fixed_rows > 0 && args.fixed_rows != args.n_rows) {
      CudaGemmArgs fixed = args;
      fixed.n_rows = args.fixed_rows;
      const Plan& chosen = plan_of(fixed);
      plan.algo = chosen.algo;
      plan.workspace_bytes = kWorkspaceBytes;  // a split of k needs more of it for more rows
      plan.is_usable = chosen.is_usable && describe(plan, args);
      return plan;
    }
    bool good = describe(plan, args);
    Heuristic result{};
    int found = 0;
    good =
        good &&
        library_.heuristic(handle_, plan.desc, plan.a, plan.b, plan.d, plan.d, preference_, 1, &result, &found) == 0 &&
        found > 0 && result.status == 0;
    if (good) {
      plan.algo = result.algo;
      plan.workspace_bytes = result.workspace_bytes;
      plan.is_usable = true;
    }
    return plan;
  }

  // The plan's descriptors; false: the library refuses them.
  bool describe(Plan& plan, const CudaGemmArgs& args) {
    const auto rows = static_cast<std::uint64_t>(args.n_rows), out = static_cast<std::uint64_t>(args.n_out),
               k = static_cast<std::uint64_t>(args.k);
    bool good = library_.desc_create(&plan.desc, kComputeF32, kF32) == 0 &&
                library_.desc_set(plan.desc, kAttrTransA, &kTranspose, sizeof(kTranspose)) == 0;
    if (args.bias != nullptr)
      good = good && library_.desc_set(plan.desc, kAttrEpilogue, &kEpilogueBias, sizeof(kEpilogueBias)) == 0 &&
             library_.desc_set(plan.desc, kAttrBias, &args.bias, sizeof(args.bias)) == 0;
    good = good && library_.layout_create(&plan.a, kBF16, k, out, args.w_stride) == 0 &&
           library_.layout_create(&plan.b, kBF16, k, rows, args.k) == 0 &&
           library_.layout_create(&plan.d, args.y_is_bf16 ? kBF16 : kF32, out, rows, args.y_stride) == 0;
    return good;
  }

  Library library_;
  Handle handle_ = nullptr, preference_ = nullptr;
  void* workspace_ = nullptr;
  std::map<Key, Plan> plans_;
};
}  // namespace

CudaGemm* make_cuda_gemm(const char** reason) {
  Library library{};
  if (!library.load(reason)) return nullptr;
  auto gemm = std::make_unique<CublasLtGemm>(library);
  if (!gemm->create(reason)) return nullptr;
  return gemm.release();
}

}  // namespace still
