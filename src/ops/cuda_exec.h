// CudaExec: the CUDA side of an Exec: a stream, the operators' scratch, one step's batch in device memory, and captured
// decode steps. Operators call the methods below with what they were called with (ops/linear.cc and the like); shapes
// are checked there. Launches are asynchronous; the first error shows at wait() and stays.
//
// A step of decodes alone is padded to a size of a ladder and to a power of two of KV parts. The second time such a
// step comes it is captured, and from then on replayed: its pointers are fixed, what changes lies in device memory.
//
// Steps overlap: stage_draws(), run_step() and draw() launch a step with the draw of its tokens, collect() waits for
// the oldest one's. Two may be under way, and the later may name the tokens of the one before it, which the host does
// not know yet: an id -1 - i is the token of row i.
#pragma once

#include <chrono>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <tuple>
#include <vector>

#include "kernels/cuda/cuda_kernels.h"
#include "ops/attention.h"
#include "ops/comm.h"
#include "ops/cuda_options.h"
#include "ops/kv_cache.h"
#include "ops/linear.h"
#include "ops/rope.h"
#include "ops/weight.h"
#include "tensor/cuda.h"

namespace still {

class CudaExec {
 public:
  // comm: where several ranks share the model.
  static Result<std::unique_ptr<CudaExec>> create(const CudaOptions& options, Comm* comm = nullptr);
  // Device bytes that create() takes: the plan's formula.
  static std::int64_t scratch_bytes(const CudaOptions& options);

  const CudaKernels& kernels() const { return *kernels_; }
  CudaStream& stream() { return stream_; }
  Status wait(std::string_view what) { return stream_.wait(what); }
  const CudaOptions& options() const { return options_; }
  const char* gemm_missing() const { return gemm_missing_; }  // why there is no cuBLASLt; null: there is

  // Uploads the batch, then calls body with it (or with a padded one), or replays what body did.
  Status run_step(const RaggedBatch& batch, const std::function<void(const RaggedBatch&)>& body);

  void embed(TensorView y, const EmbeddingTable& table);
  void rms_norm(TensorView y, TensorView x, TensorView w, float eps);
  void linear(TensorView x, std::span<const LinearOutput> outputs);
  void linear_add(TensorView y, TensorView x, const Weight& w);
  void linear_swiglu(TensorView y, TensorView x, const Weight& gate, const Weight& up);
  // Brings the table to the device; rope_kv_write does it where it was not done before the first step.
  Status upload_rope(const RopeTable& rope);
  void rope_kv_write(TensorView q, TensorView k, TensorView v, std::int64_t n_heads, const RopeTable& rope,
                     const KvCache& cache, std::int32_t layer);
  void attention(TensorView out, TensorView q, const KvCache& cache, std::int32_t layer, std::int64_t n_heads,
                 float scale, std::int64_t window);
  // y[i] = x[the step's wanted row i]; products that follow are of these rows.
  void take_wanted(TensorView y, TensorView x);
  // is_taken: x has the wanted rows alone.
  void logits(TensorView y, TensorView x, bool is_taken, const Weight& head, TensorView gathered);

  // Copies of activations in other types are kept until their tensor changes; who changes one by other means says so.
  void forget_copies(const void* of);  // null: all

  // Rows whose tokens draw() will choose: they travel with the next step's batch.
  void stage_draws(std::span<const CudaSampleRow> rows);
  // After run_step(): chooses the staged rows' tokens from device logits [*, vocab_size].
  Status draw(const float* logits);
  // Tokens of the oldest drawn step that was not collected, until the second draw after it; waits. -1 where the logits
  // are not finite.
  Result<std::span<const TokenId>> collect();
  // Waits for what is under way and forgets it: after a step that could not be launched.
  void abandon();
  // With options().measure_idle, of the steps collected so far: seconds between steps that followed one another
  // at once, and inside steps.
  double idle_seconds() const { return idle_seconds_; }
  double busy_seconds() const { return busy_seconds_; }
  // Draws tokens from device logits [*, vocab_size]; waits.
  Result<std::span<const TokenId>> sample(const float* logits, std::span<const CudaSampleRow> rows);
  // A row of device floats into pinned memory; waits.
  Result<float*> fetch(const float* row, std::int64_t n);

 private:
  CudaExec() = default;
  struct Layout;
  struct GraphKey {
    std::int64_t n_tokens, n_parts;
    auto operator<=>(const GraphKey&) const = default;
  };
  struct StepGraph {
    bool was_run = false;
    CudaGraph graph;
  };
  // The norm of a single row, kept until its first reader: the products with it compute it themselves
  // (CudaLinearArgs::norm). `y` holds it once was_launched; `stale` is a y whose x has changed since.
  struct PendingNorm {
    TensorView x, y, w;
    float eps = 0;
    bool is_pending = false;
    const void* stale = nullptr;
  };
  // Where the forms of activations of up to kCudaSkinnyRows rows lie, and of which tensor they are.
  struct QuantizedCopy {
    CudaQuantizedOut out;
    const void* of = nullptr;
  };
  // Pinned memory of one of two steps that may be under way.
  struct Stage {
    std::byte* lists = nullptr;
    TokenId* ids = nullptr;  // of the drawn rows
    std::int64_t n_draws = 0;
    bool is_used = false, is_drawn = false;
    CudaEvent done;
  };
  bool is_decode(const RaggedBatch& batch, std::int64_t seq) const;
  Status check_launched(std::string_view what);
  Status upload(const RaggedBatch& batch, std::int64_t n_padded, std::int64_t n_parts);
  void multiply(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                std::span<const Weight* const> weights, bool y_is_bf16);
  // Rows [begin, end) of x and y.
  void multiply_dense(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                      std::span<const Weight* const> weights, bool y_is_bf16, std::int64_t begin, std::int64_t end,
                      std::int64_t fixed_rows);
  void multiply_in_groups(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                          std::span<const Weight* const> weights, bool y_is_bf16, std::int64_t begin, std::int64_t end);
  void multiply_reproducibly(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                             std::span<const Weight* const> weights, bool y_is_bf16);
  void multiply_rows(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                     std::span<const Weight* const> weights, bool y_is_bf16, bool in_tiles);
  bool can_tile(std::span<const Weight* const> weights) const;
  bool is_tiled(std::int64_t n, std::span<const Weight* const> weights) const;
  const std::uint8_t* as_f8(TensorView x);
  bool can_chain(std::span<const Weight* const> weights) const;
  void multiply_chains(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                       std::span<const Weight* const> weights, bool y_is_bf16, std::int64_t n);
  struct Columns {
    std::int64_t begin, n;
  };
  void add_chains(TensorView x, const Weight& w, const CudaProduct& product, Columns columns);
  // Rows [begin, begin + n) of x; of these and of the weights some columns.
  bool gemm_f8(TensorView x, std::int64_t begin, std::int64_t n, const Weight& w, const CudaProduct& product,
               bool y_is_bf16, bool add, bool is_chain, Columns columns);
  CudaGemmArgs gemm_args(const std::uint16_t* x, std::int64_t n, const Weight& w, const CudaProduct& product,
                         bool y_is_bf16, bool add, std::int64_t fixed_rows) const;
  bool can_chain_bf16(std::span<const Weight* const> weights) const;
  std::int32_t bf16_chain_parts(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                                std::span<const Weight* const> weights, bool y_is_bf16, std::int64_t n,
                                bool may_compare);
  bool multiply_bf16_chain(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                           std::span<const Weight* const> weights, bool y_is_bf16, std::int64_t n,
                           std::int32_t n_parts);
  bool gemm(TensorView x, std::int64_t begin, std::int64_t n, const Weight& w, const CudaProduct& product,
            bool y_is_bf16, bool add, std::int64_t fixed_rows);
  // Sizes of steps that come again and again: decodes of the ladder, full chunks of prompts.
  bool is_recurring(std::int64_t n_rows) const { return batch_.is_plain || n_rows == options_.max_tokens; }
  void add_parts();  // takes the sum that is still to be taken
  PackedFormat form_of(const Weight& w, std::int64_t n_rows) const;
  CudaActivations activations(TensorView x, const Weight& w, bool in_tiles);
  const std::uint16_t* as_bf16(TensorView x);
  bool can_take_norm(const Weight& w, TensorView x) const;
  void launch_norm();  // the pending one
  QuantizedCopy& copy_for(std::int32_t block) { return copies_[block == 32 ? 0 : 1]; }
  CudaKv kv_of(const KvCache& cache, std::int32_t layer) const;

  // A sum of the ranks' parts that is still to be taken: done together with the norm that follows.
  struct PendingSum {
    float* y = nullptr;
    std::int64_t n_rows = 0, k = 0;
    bool is_new = false;
    PartKind kind = PartKind::kF32;
  };

  CudaOptions options_;
  Comm* comm_ = nullptr;
  PendingSum sum_;
  const CudaExchange* exchange_ = nullptr;  // where the product that is launched sends its row
  const CudaKernels* kernels_ = nullptr;
  std::unique_ptr<CudaGemm> gemm_;
  const char* gemm_missing_ = nullptr;
  CudaStream stream_;
  DeviceBuffer memory_;
  PinnedBuffer pinned_;

  std::byte* step_device_ = nullptr;  // the batch
  Stage stages_[2];
  std::int64_t n_steps_ = 0, n_collected_ = 0;
  std::vector<CudaSampleRow> draws_;          // of the next step
  const CudaSampleRow* draw_rows_ = nullptr;  // of this one, on the device
  // Begin and end of the last steps, where they are measured.
  static constexpr std::int64_t kTimes = 4;
  CudaEvent begins_[kTimes], ends_[kTimes];
  bool follows_at_once_[kTimes] = {};
  std::chrono::steady_clock::time_point last_collected_;
  double idle_seconds_ = 0, busy_seconds_ = 0;
  CudaBatch batch_;
  // Reproducible: the first so many rows of what is multiplied are of answers (all before the first step), and of the
  // wanted ones.
  std::int64_t n_answer_rows_ = std::numeric_limits<std::int64_t>::max(), n_answer_wanted_ = 0;
  bool has_failed_ = false;        // a product of this step could not be launched
  CudaRopeKvArgs rope_{};          // what the attention that follows does of it:
  bool is_q_raw_ = false;          // rotate q
  bool is_rope_pending_ = false;   // all of it, in a step of decodes
  std::uint16_t* bf16_ = nullptr;  // [max_tokens, max_k], where activations are f32
  const void* bf16_of_ = nullptr;
  const void* f8_of_ = nullptr;  // whose e4m3 (is_f8_bytes_) or f16 form lies in bf16_, and its
  float* f8_scale_ = nullptr;    // scales
  bool is_f8_bytes_ = false;
  PendingNorm norm_;
  QuantizedCopy copies_[2];     // in blocks of 32, of 256
  bool has_quantized_ = false;  // some weights seen so far
  bool f8_unusable_ = false;    // by cuBLASLt
  bool has_f8_chains_ = false, has_bf16_chains_ = false;
  std::uint16_t* gate_up_ = nullptr;  // [max_tokens, 2 * max_gate]
  std::int64_t gate_up_bytes_ = 0;
  std::uint16_t* dense_ = nullptr;  // a quantised matrix made dense, or rows of it
  std::int64_t dense_elements_ = 0;
  const void* images_of_ = nullptr;  // whose images lie there, and their kind
  std::int32_t images_kind_ = -1;
  bool has_tiles_ = false;
  float* partials_ = nullptr;
  std::int32_t* arrivals_ = nullptr;
  std::int64_t split_ = 128, max_parts_ = 1;
  std::uint8_t* sample_scratch_ = nullptr;
  CudaSampleRow* sample_rows_ = nullptr;
  CudaSampleRow* sample_rows_host_ = nullptr;
  TokenId* sampled_ = nullptr;
  TokenId* sampled_host_ = nullptr;
  float* row_host_ = nullptr;

  std::map<GraphKey, StepGraph> graphs_;
  std::vector<std::int32_t> padded_ids_, padded_starts_, padded_lens_, padded_tables_, padded_rows_;
  std::map<const RopeTable*, DeviceBuffer> rope_tables_;
};

}  // namespace still
