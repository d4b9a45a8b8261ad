// Dense bf16 products through cuBLASLt, loaded with dlopen so that the program starts without it. The few declarations
// it needs of the library's stable C interface stand here; a build needs no header of it.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "kernels/cuda/linear.cuh"

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
constexpr int kComputeF32 = 68;                // CUBLAS_COMPUTE_32F
constexpr int kF32 = 0, kBF16 = 14, kF8 = 28;  // cudaDataType_t; kF8: CUDA_R_8F_E4M3
constexpr int kAttrScaleA = 17, kAttrScaleB = 18, kAttrFastSum = 25, kAttrScaleModeA = 31, kAttrScaleModeB = 32;
constexpr int kScaleOuterVector = 3;  // CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F: one for each row and column
constexpr int kMostCandidates = 12, kRepeats = 3, kMostProposals = 32;
constexpr int kConfigSplit = 2, kConfigReduction = 3;             // cublasLtMatmulAlgoConfigAttributes_t
constexpr std::uint32_t kReduceInF32 = 2;                         // CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
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
  int (*config_get)(const Algo*, int attribute, void* value, std::size_t bytes, std::size_t* written);

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
           find(heuristic, "cublasLtMatmulAlgoGetHeuristic") && find(matmul, "cublasLtMatmul") &&
           find(config_get, "cublasLtMatmulAlgoConfigGetAttribute");
  }
};

// A shape's descriptors and algorithm; they live as long as the process uses the shape.
struct Plan {
  Handle desc = nullptr, a = nullptr, b = nullptr, d = nullptr;
  Heuristic choice{};
  std::vector<Heuristic> candidates;  // to be measured
  bool must_equal_choice = false;     // bit by bit
  bool must_equal_chain = false;
  bool is_usable = false, was_measured = false;
  std::int32_t chain_parts = -1;  // of linear_bf16_chain with the same bits; 0: none, -1: not known
  const Plan* lender = nullptr;   // whose algorithm is taken as long as this shape has none of its own
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
    if (args.is_f8 && (library_.desc_set(plan.desc, kAttrScaleA, &args.w_scale, sizeof(args.w_scale)) != 0 ||
                       library_.desc_set(plan.desc, kAttrScaleB, &args.x_scale, sizeof(args.x_scale)) != 0))
      return false;
    if (!plan.candidates.empty()) measure(static_cast<cudaStream_t>(stream), plan, args);
    if (!plan.is_usable) return false;
    if (plan.lender != nullptr) {
      Heuristic lent = plan.lender->choice;
      lent.workspace_bytes = kWorkspaceBytes;
      if (multiply(static_cast<cudaStream_t>(stream), plan, args, lent, args.y)) return true;
      if (!propose(plan, args)) return false;
    }
    return multiply(static_cast<cudaStream_t>(stream), plan, args, plan.choice, args.y);
  }

  std::int32_t chain_parts(void* stream, const CudaGemmArgs& args, bool may_compare) override {
    Plan& plan = plan_of(args);
    if (plan.chain_parts >= 0 || !may_compare) return plan.chain_parts;
    std::int32_t n_parts = 0;
    if (plan.is_usable && !equals_chain(static_cast<cudaStream_t>(stream), plan, args, n_parts)) n_parts = 0;
    return plan.chain_parts = n_parts;
  }

 private:
  using Key = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool, bool,
                         bool, bool, bool, std::int64_t>;

  bool multiply(cudaStream_t stream, const Plan& plan, const CudaGemmArgs& args, const Heuristic& choice, void* y) {
    const float alpha = 1.0f, beta = args.add ? 1.0f : 0.0f;
    return library_.matmul(handle_, plan.desc, &alpha, args.w, plan.a, args.x, plan.b, &beta, args.y, plan.d, y, plan.d,
                           &choice.algo, workspace_, choice.workspace_bytes, stream) == 0;
  }

  // Whether algorithms cut k alike. Those that do add in the same order whatever their tiles are: found so for all
  // that the library proposes for the shapes of a 7B model and 1 to 4,096 rows.
  bool adds_alike(const Algo& a, const Algo& b) const {
    for (const int attribute : {kConfigSplit, kConfigReduction}) {
      std::uint32_t of_a = 0, of_b = 0;
      if (!config(a, attribute, of_a) || !config(b, attribute, of_b) || of_a != of_b) return false;
    }
    return true;
  }

  bool config(const Algo& algo, int attribute, std::uint32_t& value) const {
    std::size_t written = 0;
    return library_.config_get(&algo, attribute, &value, sizeof(value), &written) == 0;
  }

  // Whether the plan's algorithm gives the bits of linear_bf16_chain, which cuts k into n_parts as that does. Results
  // that are rounded to bf16 would hide another order of sums, so then k must not be cut.
  bool equals_chain(cudaStream_t stream, const Plan& plan, const CudaGemmArgs& args, std::int32_t& n_parts) {
    std::uint32_t split = 0, reduction = 0;
    if (!config(plan.choice.algo, kConfigSplit, split) || !config(plan.choice.algo, kConfigReduction, reduction))
      return false;
    if (split > 1 && (reduction != kReduceInF32 || args.y_is_bf16)) return false;
    n_parts = static_cast<std::int32_t>(std::max(split, 1U));
    void* y = args.add ? args.room : args.y;
    const std::int64_t element = args.y_is_bf16 ? 2 : 4;
    if (args.w_stride != args.k || args.x_stride != args.k) return false;
    if (args.add && args.room_bytes < args.n_rows * args.y_stride * element) return false;
    if (!is_any_set(stream, args.x, args.n_rows * args.k * 2)) return false;  // zeros tell nothing
    if (args.bias != nullptr && library_.desc_set(plan.desc, kAttrBias, &args.bias, sizeof(args.bias)) != 0)
      return false;
    if (!multiply(stream, plan, args, plan.choice, y)) return false;
    const std::vector<std::byte> wanted = bytes_at(stream, args, y, args.n_rows);
    const auto pitch = static_cast<std::size_t>(args.y_stride * element),
               width = static_cast<std::size_t>(args.n_out * element);
    const cudaError_t status =
        args.add ? cudaMemcpy2DAsync(y, pitch, args.y, pitch, width, static_cast<std::size_t>(args.n_rows),
                                     cudaMemcpyDeviceToDevice, stream)
                 : cudaMemset2DAsync(y, pitch, 0, width, static_cast<std::size_t>(args.n_rows), stream);
    if (wanted.empty() || status != cudaSuccess) return false;
    CudaLinearArgs chain{.format = PackedFormat::kBF16,
                         .epilogue = args.add ? CudaEpilogue::kAdd : CudaEpilogue::kStore,
                         .y_is_bf16 = args.y_is_bf16,
                         .k = static_cast<std::int32_t>(args.k),
                         .n_rows = static_cast<std::int32_t>(args.n_rows)};
    chain.products[0] = {.weights = static_cast<const std::uint8_t*>(args.w),
                         .n_out = static_cast<std::int32_t>(args.n_out),
                         .y = y,
                         .y_stride = args.y_stride,
                         .bias = args.bias};
    chain.x.bf16 = static_cast<const std::uint16_t*>(args.x);
    return cuda::linear_bf16_chain(stream, chain, n_parts) && bytes_at(stream, args, y, args.n_rows) == wanted;
  }

  static bool is_any_set(cudaStream_t stream, const void* at, std::int64_t n_bytes) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(n_bytes));
    if (cudaMemcpyAsync(bytes.data(), at, bytes.size(), cudaMemcpyDeviceToHost, stream) != cudaSuccess ||
        cudaStreamSynchronize(stream) != cudaSuccess)
      return false;
    return std::any_of(bytes.begin(), bytes.end(), [](std::byte b) { return b != std::byte{0}; });
  }

  // Some rows of y as bytes; none: the device failed.
  static constexpr std::int64_t kComparedRows = 4;
  static std::vector<std::byte> bytes_at(cudaStream_t stream, const CudaGemmArgs& args, const void* y,
                                         std::int64_t most = kComparedRows) {
    const std::int64_t element = args.y_is_bf16 ? 2 : 4, n = std::min(most, args.n_rows);
    const auto width = static_cast<std::size_t>(args.n_out * element),
               pitch = static_cast<std::size_t>(args.y_stride * element);
    std::vector<std::byte> bytes(width * static_cast<std::size_t>(n));
    if (cudaMemcpy2DAsync(bytes.data(), width, y, pitch, width, static_cast<std::size_t>(n), cudaMemcpyDeviceToHost,
                          stream) != cudaSuccess ||
        cudaStreamSynchronize(stream) != cudaSuccess)
      return {};
    return bytes;
  }
  // By an algorithm; none: it failed.
  std::vector<std::byte> bytes_of(cudaStream_t stream, const Plan& plan, const CudaGemmArgs& args,
                                  const Heuristic& choice, void* y) {
    if (!multiply(stream, plan, args, choice, y)) return {};
    return bytes_at(stream, args, y);
  }
  // By the chain kernel, in one part.
  static std::vector<std::byte> chain_bytes(cudaStream_t stream, const CudaGemmArgs& args, void* y) {
    const std::int64_t element = args.y_is_bf16 ? 2 : 4, n = std::min(kComparedRows, args.n_rows);
    const auto pitch = static_cast<std::size_t>(args.y_stride * element);
    if (args.add && cudaMemcpy2DAsync(y, pitch, args.y, pitch, static_cast<std::size_t>(args.n_out * element),
                                      static_cast<std::size_t>(n), cudaMemcpyDeviceToDevice, stream) != cudaSuccess)
      return {};
    CudaLinearArgs chain{.epilogue = args.add ? CudaEpilogue::kAdd : CudaEpilogue::kStore,
                         .y_is_bf16 = args.y_is_bf16,
                         .k = static_cast<std::int32_t>(args.k),
                         .n_rows = static_cast<std::int32_t>(n),
                         .f8_stride = args.w_stride,
                         .f8_scale = args.w_scale};
    chain.products[0] = {.weights = static_cast<const std::uint8_t*>(args.w),
                         .n_out = static_cast<std::int32_t>(args.n_out),
                         .y = y,
                         .y_stride = args.y_stride};
    chain.x.f8 = static_cast<const std::uint8_t*>(args.x);
    chain.x.scale = args.x_scale;
    cuda::linear_f8(stream, chain);
    return bytes_at(stream, args, y);
  }

  // The fastest candidate becomes the plan's choice; each run begins with another matrix in the cache.
  void measure(cudaStream_t stream, Plan& plan, const CudaGemmArgs& args) {
    std::vector<Heuristic> candidates = std::move(plan.candidates);
    plan.candidates.clear();
    void* y = args.add ? args.room : args.y;
    if (args.add && args.room_bytes < args.n_rows * args.y_stride * (args.y_is_bf16 ? 2 : 4)) {
      if (plan.must_equal_chain) plan.is_usable = false;
      return;
    }
    if (plan.must_equal_chain) {
      const std::vector<std::byte> wanted = chain_bytes(stream, args, y);
      std::erase_if(candidates, [&](const Heuristic& candidate) {
        return wanted.empty() || bytes_of(stream, plan, args, candidate, y) != wanted;
      });
      plan.is_usable = !candidates.empty();
      if (candidates.empty()) return;
      plan.choice = candidates[0];
      if (candidates.size() == 1 || !args.is_recurring) return;
    }
    if (plan.must_equal_choice) {
      const std::vector<std::byte> wanted = bytes_of(stream, plan, args, plan.choice, y);
      std::erase_if(candidates, [&](const Heuristic& candidate) {
        return wanted.empty() || bytes_of(stream, plan, args, candidate, y) != wanted;
      });
      if (candidates.empty()) return;
      if (candidates.size() == 1) {  // nothing to measure
        plan.choice = candidates[0];
        return;
      }
    }
    cudaEvent_t begin = nullptr, end = nullptr;
    if (cudaEventCreate(&begin) != cudaSuccess || cudaEventCreate(&end) != cudaSuccess) return;
    // In rounds, so that a clock that sinks under load does not favour the first ones.
    std::vector<float> best(candidates.size(), 1e30f);
    for (int round = 0; round <= kRepeats; ++round) {
      for (std::size_t i = 0; i < candidates.size(); ++i) {
        (void)cudaMemsetAsync(workspace_, 0, kWorkspaceBytes, stream);
        (void)cudaEventRecord(begin, stream);
        if (!multiply(stream, plan, args, candidates[i], y)) continue;
        (void)cudaEventRecord(end, stream);
        float ms = 0;
        if (cudaEventSynchronize(end) != cudaSuccess || cudaEventElapsedTime(&ms, begin, end) != cudaSuccess) continue;
        if (round > 0) best[i] = std::min(best[i], ms);
      }
    }
    plan.choice = candidates[static_cast<std::size_t>(std::min_element(best.begin(), best.end()) - best.begin())];
    (void)cudaEventDestroy(begin);
    (void)cudaEventDestroy(end);
  }

  // In the library's column-major terms: d [n_out x n_rows] = w^T [n_out x k] * x [k x n_rows].
  Plan& plan_of(const CudaGemmArgs& args) {
    const Key key{args.n_rows,    args.n_out, args.k,     args.x_stride,        args.w_stride, args.y_stride,
                  args.y_is_bf16, args.add,   args.is_f8, args.bias != nullptr, args.is_chain, args.fixed_rows};
    const auto [entry, is_new] = plans_.try_emplace(key);
    Plan& plan = entry->second;
    if (!is_new) {
      // Now that the shape comes again and again.
      if (args.is_recurring && !plan.was_measured && plan.is_usable) {
        if (args.is_chain) {
          propose_chain(plan, args);
        } else if (args.fixed_rows == 0) {
          propose(plan, args);
        }
        if (args.fixed_rows > 0 && args.fixed_rows != args.n_rows) propose_alike(plan, args);
      }
      return plan;
    }
    if (args.fixed_rows > 0 && args.fixed_rows != args.n_rows) {
      CudaGemmArgs fixed = args;
      fixed.n_rows = args.fixed_rows;
      const Plan& chosen = plan_of(fixed);
      plan.choice = chosen.choice;
      plan.choice.workspace_bytes = kWorkspaceBytes;  // a split of k needs more of it for more rows
      plan.is_usable = chosen.is_usable && describe(plan, args);
      if (plan.is_usable) propose_alike(plan, args);
      return plan;
    }
    if (!describe(plan, args)) return plan;
    if (args.is_chain) {
      propose_chain(plan, args);
      return plan;
    }
    const std::int64_t rounded = rounded_rows(args.n_rows);
    if (!args.is_recurring && args.fixed_rows == 0 && rounded != args.n_rows) {
      CudaGemmArgs lender = args;
      lender.n_rows = rounded;
      plan.lender = &plan_of(lender);
      plan.is_usable = plan.lender->is_usable || propose(plan, args);
      return plan;
    }
    propose(plan, args);
    return plan;
  }

  // Rows of the shape whose algorithm serves the one-off shape of so many: few, since the library loads an
  // algorithm at its first launch.
  static std::int64_t rounded_rows(std::int64_t n) {
    if (n > 256) return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(n)));
    const std::int64_t step = n <= 64 ? 16 : 64;
    return (n + step - 1) / step * step;
  }

  // The library's proposals for a described plan: its first is the choice, all are candidates where they are measured.
  bool propose(Plan& plan, const CudaGemmArgs& args) {
    plan.lender = nullptr;
    // What is measured may be chosen otherwise next time, which a fixed algorithm must not be.
    plan.was_measured = args.is_recurring && args.fixed_rows == 0;
    std::vector<Heuristic> results = proposals(plan, plan.was_measured ? kMostCandidates : 1);
    plan.is_usable = !results.empty();
    if (results.empty()) return false;
    plan.choice = results[0];
    if (results.size() > 1) plan.candidates = std::move(results);
    return true;
  }

  // Proposals that add as the plan's choice does: of what does not come again the first.
  void propose_alike(Plan& plan, const CudaGemmArgs& args) {
    plan.was_measured = args.is_recurring;
    plan.must_equal_choice = true;
    plan.candidates = proposals(plan, kMostProposals);
    std::erase_if(plan.candidates, [&](const Heuristic& result) { return !adds_alike(result.algo, plan.choice.algo); });
    plan.candidates.resize(std::min<std::size_t>(plan.candidates.size(), args.is_recurring ? kMostCandidates : 1));
    if (args.is_recurring) plan.candidates.push_back(plan.choice);
  }

  // Those that do not cut k; they are tried against the chain kernel when they first run.
  void propose_chain(Plan& plan, const CudaGemmArgs& args) {
    plan.was_measured = args.is_recurring;
    plan.must_equal_chain = true;
    plan.candidates = proposals(plan, kMostProposals);
    std::erase_if(plan.candidates, [&](const Heuristic& result) {
      std::uint32_t n_parts = 0;
      return !config(result.algo, kConfigSplit, n_parts) || n_parts > 1;
    });
    plan.is_usable = !plan.candidates.empty();
  }

  std::vector<Heuristic> proposals(const Plan& plan, int most) {
    std::vector<Heuristic> results(static_cast<std::size_t>(most));
    int found = 0;
    if (library_.heuristic(handle_, plan.desc, plan.a, plan.b, plan.d, plan.d, preference_, most, results.data(),
                           &found) != 0)
      found = 0;
    results.resize(static_cast<std::size_t>(found));
    std::erase_if(results, [](const Heuristic& result) { return result.status != 0; });
    return results;
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
    const int type = args.is_f8 ? kF8 : kBF16;
    if (args.is_f8) {
      const signed char fast = 1;
      good = good && library_.desc_set(plan.desc, kAttrScaleModeA, &kScaleOuterVector, sizeof(int)) == 0 &&
             library_.desc_set(plan.desc, kAttrScaleModeB, &kScaleOuterVector, sizeof(int)) == 0 &&
             library_.desc_set(plan.desc, kAttrScaleA, &args.w_scale, sizeof(args.w_scale)) == 0 &&
             library_.desc_set(plan.desc, kAttrScaleB, &args.x_scale, sizeof(args.x_scale)) == 0 &&
             library_.desc_set(plan.desc, kAttrFastSum, &fast, sizeof(fast)) == 0;
    }
    good = good && library_.layout_create(&plan.a, type, k, out, args.w_stride) == 0 &&
           library_.layout_create(&plan.b, type, k, rows, args.x_stride) == 0 &&
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
