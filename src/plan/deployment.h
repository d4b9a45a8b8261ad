// Deployment: a model in a quantisation on ranks of one kind of device, and the bytes each rank takes. Formulas and
// their sources: docs/plan.md. What this program's own engine takes on the host is exact and stands in memory.h; the
// figures here are for any device and any engine, and say which of them are estimates.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "plan/device.h"
#include "plan/quantisation.h"

namespace still {

// How an entry of the KV cache is stored.
struct KvStorage {
  std::string name = "f16";
  std::int64_t block_elements = 1, block_bytes = 2;
};
Result<KvStorage> find_kv_storage(std::string_view name);  // f32, f16, bf16, fp8, int8, q8_0, q5_1, q5_0, q4_1, q4_0

// How ranks share a model. tensor * pipeline * data is the number of devices; experts are spread over `expert` of the
// tensor * data ranks of a stage (1: cut like other matrices). Data ranks hold all but the experts each and share out
// the sequences ("data-parallel attention"). redundant: copies of busy experts beside the model's.
struct Parallelism {
  std::int64_t tensor = 1, pipeline = 1, expert = 1, data = 1, redundant = 0;
  std::int64_t n_ranks() const { return tensor * pipeline * data; }
};
// kInvalidArgument: which dimension does not divide, and the counts that would do.
Status check_parallelism(const ModelShape& shape, const Quantisation& quantisation, const Parallelism& parallelism);
// Tensor-parallel degrees up to `max` that divide everything that must be divided.
std::vector<std::int64_t> possible_tensor_ranks(const ModelShape& shape, const Quantisation& quantisation,
                                                std::int64_t max);
// An engine's habits, beside the model's need. Ours sizes to the need; vLLM reserves a share of each device. What is
// said of other engines is an estimate from their sources and published measurements.
struct EngineProfile {
  std::string name = "still";
  double utilisation = 0.92;                           // of what the driver reports, at most
  std::int64_t runtime_bytes = std::int64_t{3} << 29;  // a device: context, libraries, graphs, fragmentation (1.5 GiB)
  bool reserves = false;                               // takes the whole share, whatever is needed
  bool flash_attention = true;                         // otherwise scores [n_heads, chunk, context] and a mask in f32
  bool latent_kv = true;                               // of MLA; otherwise every head's keys and values are cached
  bool table_on_host = false;                          // the embedding table is looked up in host memory
  bool whole_prompt = false;          // a prompt is one step, and its activations are gone when the answer's KV is full
  std::int64_t activation_bytes = 2;  // of a value
  bool splits_by_layer = false;       // several devices: whole layers each, one after the other
};
// still, vllm, llama.cpp, llama.cpp-no-fa, llama.cpp-2025-02 (before its latent cache), transformers
Result<EngineProfile> find_engine_profile(std::string_view name);

// The best use of n devices: the largest possible tensor degree that divides n, the rest as pipeline stages; or what
// the engine does.
Result<Parallelism> choose_parallelism(const ModelShape& shape, const Quantisation& quantisation,
                                       std::int64_t n_devices, const EngineProfile& engine = {},
                                       std::int64_t devices_per_node = 8);

struct DeploymentSettings {
  std::int64_t context = 8192;      // tokens of one sequence
  std::int64_t concurrency = 1;     // sequences at once, each with a whole context
  std::int64_t chunk_tokens = 512;  // tokens of one step at most
  std::int64_t block_size = 16;     // tokens of a KV block
  KvStorage kv;
  Parallelism parallelism;
  EngineProfile engine;
  bool with_mtp = false;
  bool experts_on_host = false;     // routed experts in host memory, the rest on the device
  std::int64_t host_capacity = 0;   // bytes of a machine's own memory; 0: not compared
  std::int64_t answer_tokens = 0;   // of the context, that are generated (engines with whole_prompt)
  double network_bandwidth = 50e9;  // bytes/s of a device to those of other nodes (400 Gb/s)
  std::int64_t devices_per_node = 8;
};

// What does not depend on context and concurrency, of the fullest rank: a grid computes it once.
struct RankWeights {
  std::array<std::int64_t, kWeightGroupCount> groups{};
  std::int64_t bytes = 0;       // on the device
  std::int64_t host_bytes = 0;  // of host memory: routed experts (experts_on_host), the table; of all ranks together
  std::int64_t kv_bytes_per_token = 0;
  std::int64_t window_kv_bytes_per_token = 0;  // of layers with a sliding window
  std::int64_t all_ranks_bytes = 0;            // sum over ranks: the file plus what is replicated
  std::int64_t file_bytes = 0;
};
Result<RankWeights> plan_rank_weights(const ModelShape& shape, const Quantisation& quantisation,
                                      const DeploymentSettings& settings);

struct RankMemory {
  std::int64_t weight_bytes = 0, kv_bytes = 0, activation_bytes = 0, logit_bytes = 0, runtime_bytes = 0;
  std::int64_t need() const { return weight_bytes + kv_bytes + activation_bytes + logit_bytes + runtime_bytes; }
};
RankMemory plan_rank_memory(const ModelShape& shape, const RankWeights& weights, const DeploymentSettings& settings);

// KV bytes of one token over all layers, and of `tokens` of one sequence (whole blocks; the window's limit). latent
// false: of MLA every head's keys and values instead of the latent.
std::int64_t kv_bytes_per_token(const ModelShape& shape, const KvStorage& kv, bool latent = true);
std::int64_t kv_bytes_of_sequence(const ModelShape& shape, const KvStorage& kv, std::int64_t tokens,
                                  std::int64_t block_size);

// Tokens that a sequence's cache holds on average while it grows to `context`; a window keeps no more than itself.
double mean_kv_tokens(const ModelShape& shape, std::int64_t context);

double to_gb(std::int64_t bytes);
double to_gib(std::int64_t bytes);
std::string both_units(std::int64_t bytes);  // "15.23 GB (14.19 GiB)"

}  // namespace still
