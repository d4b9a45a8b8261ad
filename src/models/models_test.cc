// Forward passes against the published implementation's logits (testdata/tiny/SOURCE.md), from both file types, and the
// rule that the result does not depend on how a prompt is cut, on the batch, or on the number of threads.
#include <gtest/gtest.h>
#include <sched.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <numeric>
#include <sstream>
#include <thread>

#include "base/topology.h"
#include "kernels/dispatch.h"
#include "models/model.h"
#include "models/registry.h"

namespace still {
namespace {

const std::string kTiny = std::string(STILL_SOURCE_DIR) + "/testdata/tiny/";

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// A two-dimensional f32 array of NumPy's format version 1.
std::vector<float> read_npy(const std::string& path) {
  const std::string bytes = read_file(path);
  const std::size_t header =
      10 + static_cast<unsigned char>(bytes.at(8)) + 256 * static_cast<unsigned char>(bytes.at(9));
  std::vector<float> values((bytes.size() - header) / sizeof(float));
  std::memcpy(values.data(), bytes.data() + header, values.size() * sizeof(float));
  return values;
}

std::vector<TokenId> int_array(const Json& json) {
  std::vector<TokenId> values;
  for (const Json& value : json.as_array()) values.push_back(static_cast<TokenId>(value.to_number<std::int64_t>()));
  return values;
}

// A model with what a step needs, for one to `max_seqs` sequences.
struct Runner {
  std::shared_ptr<const Model> model;
  std::unique_ptr<Exec> exec;
  KvCache cache;
  RopeTable rope;
  Arena arena;
  StepBuffers buffers;
  std::int64_t max_blocks = 8;

  static Runner make(const std::string& path, int n_threads = 1, KvType kv_type = KvType::kF32,
                     const CpuKernels* kernels = nullptr) {
    Runner runner;
    auto model = Model::load(path, {.n_threads = n_threads, .kernels = kernels});
    EXPECT_TRUE(model) << (model ? "" : model.error().message);
    runner.model = *model;
    const ModelConfig& config = runner.model->config();
    ExecOptions options{.n_threads = n_threads, .kernels = kernels, .max_tokens = 256, .max_k = runner.model->max_k()};
    options.max_attention_parts = config.n_heads;
    options.head_dim = config.head_dim;
    options.n_heads = config.n_heads;
    runner.exec = std::move(*Exec::create(options));
    const KvGeometry geometry{
        .n_layers = config.n_layers, .n_kv_heads = config.n_kv_heads, .head_dim = config.head_dim, .type = kv_type};
    runner.cache = std::move(*KvCache::create(geometry, 4 * runner.max_blocks));
    runner.rope = RopeTable(config.rope, 256);
    runner.buffers = *StepBuffers::create(config, 256, 256, runner.arena);
    return runner;
  }

  // Logits of every token of `ids`, which start at `pos` of sequence `seq`.
  std::vector<float> step(std::span<const TokenId> ids, std::int32_t pos, std::int32_t seq = 0) {
    std::vector<std::int32_t> positions, rows, blocks;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      positions.push_back(pos + static_cast<std::int32_t>(i));
      rows.push_back(static_cast<std::int32_t>(i));
    }
    for (std::int64_t b = 0; b < max_blocks; ++b) blocks.push_back(static_cast<std::int32_t>(seq * max_blocks + b));
    const std::int32_t q_start[2] = {0, static_cast<std::int32_t>(ids.size())};
    const std::int32_t kv_len[1] = {pos + static_cast<std::int32_t>(ids.size())};
    const RaggedBatch batch{ids, positions, q_start, kv_len, blocks, max_blocks, rows};
    EXPECT_TRUE(model->forward(*exec, batch, cache, rope, buffers));
    return {buffers.logits, buffers.logits + ids.size() * static_cast<std::size_t>(model->config().vocab_size)};
  }
};

class TinyModel : public ::testing::TestWithParam<const char*> {};

TEST_P(TinyModel, LogitsEqualThePublishedImplementation) {
  const std::string folder = kTiny + GetParam();
  const Json expect = *parse_json(read_file(folder + "/expect.json"), "expect.json");
  const std::vector<TokenId> prompt = int_array(expect.at("prompt"));
  const std::vector<float> want = read_npy(folder + "/logits.npy");
  for (const std::string& path : {folder, folder + "/model.gguf"}) {
    Runner runner = Runner::make(path);
    const std::vector<float> got = runner.step(prompt, 0);
    ASSERT_EQ(got.size(), want.size()) << path;
    double worst = 0;
    for (std::size_t i = 0; i < got.size(); ++i)
      worst = std::max(worst, std::abs(static_cast<double>(got[i]) - want[i]));
    EXPECT_LE(worst, 1e-4) << path;
  }
}

TEST_P(TinyModel, GreedyTokensEqualThePublishedImplementation) {
  const std::string folder = kTiny + GetParam();
  const Json expect = *parse_json(read_file(folder + "/expect.json"), "expect.json");
  std::vector<TokenId> ids = int_array(expect.at("prompt"));
  const auto n_prompt = static_cast<std::int32_t>(ids.size());
  Runner runner = Runner::make(folder + "/model.gguf", 2, KvType::kF16);
  const std::int64_t vocab = runner.model->config().vocab_size;
  std::vector<float> logits = runner.step(ids, 0);
  std::vector<TokenId> got;
  for (std::int32_t i = 0; i < 24; ++i) {
    const float* last = logits.data() + logits.size() - vocab;
    const auto next = static_cast<TokenId>(runner.exec->kernels().argmax(last, vocab));
    got.push_back(next);
    logits = runner.step({&next, 1}, n_prompt + i);
  }
  EXPECT_EQ(got, int_array(expect.at("greedy")));
}

TEST_P(TinyModel, SameBitsWhateverTheChunkTheThreadsAndTheKernels) {
  const std::string folder = kTiny + GetParam();
  const std::vector<TokenId> prompt =
      int_array(parse_json(read_file(folder + "/expect.json"), "expect.json")->at("prompt"));
  for (const KvType kv_type : {KvType::kF32, KvType::kF16, KvType::kInt8}) {
    Runner whole = Runner::make(folder + "/model.gguf", 1, kv_type);
    const std::vector<float> want = whole.step(prompt, 0);
    for (const std::string& isa : available_isas()) {
      Runner cut = Runner::make(folder + "/model.gguf", 2, kv_type, *select_cpu_kernels(isa));
      std::vector<float> got;
      for (std::size_t i = 0; i < prompt.size();) {
        const std::size_t n = std::min<std::size_t>(1 + i % 7, prompt.size() - i);
        const std::vector<float> part = cut.step(std::span(prompt).subspan(i, n), static_cast<std::int32_t>(i), 2);
        got.insert(got.end(), part.begin(), part.end());
        i += n;
      }
      ASSERT_EQ(got.size(), want.size());
      EXPECT_EQ(std::memcmp(got.data(), want.data(), want.size() * sizeof(float)), 0)
          << isa << ", KV type " << static_cast<int>(kv_type);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, TinyModel, ::testing::Values("llama", "llama_tied", "qwen2", "qwen2_tied"));

TEST(ModelLoad, NamesATensorOfAnotherShape) {
  auto checkpoint = Checkpoint::open(kTiny + "qwen2/model.gguf");
  ASSERT_TRUE(checkpoint);
  auto config = read_decoder_config(checkpoint->config());
  ASSERT_TRUE(config);
  config->attention_bias = true;
  config->intermediate_size += 32;
  const auto layout = weight_layout(**find_arch("qwen2"), *config, *checkpoint);
  ASSERT_FALSE(layout);
  EXPECT_EQ(layout.error().message, "model.layers.0.mlp.gate_proj.weight: shape [72, 80], expected [104, 80]");
}

TEST(ModelLoad, NamesAMissingTensor) {
  auto checkpoint = Checkpoint::open(kTiny + "qwen2/model.gguf");
  ASSERT_TRUE(checkpoint);
  auto config = read_decoder_config(checkpoint->config());
  ASSERT_TRUE(config);
  config->n_layers = 3;
  const auto layout = weight_layout(**find_arch("qwen2"), *config, *checkpoint);
  ASSERT_FALSE(layout);
  EXPECT_EQ(layout.error().message,
            "model.layers.2.input_layernorm.weight: missing from the model (expected shape [80])");
}

TEST(ModelLoad, AllocatesWhatTheLayoutSays) {
  for (const char* name : {"llama", "qwen2_tied"}) {
    auto model = Model::load(kTiny + name, {.n_threads = 1});
    ASSERT_TRUE(model) << model.error().message;
    const auto layout = weight_layout((*model)->arch(), (*model)->config(), (*model)->checkpoint());
    ASSERT_TRUE(layout);
    EXPECT_EQ((*model)->weight_bytes(), Arena::rounded(layout->arena_bytes));
  }
}

// Who packs a panel is near who multiplies with it: kernels that note the CPU they run on, told that two CPUs of this
// machine are two nodes.
namespace placement {
const CpuKernels* real = nullptr;
std::mutex mutex;
std::map<const std::uint8_t*, int> packed_on, used_on;  // a panel's memory, the CPU
int n_moved = 0;                                        // panels that two CPUs used

void note(std::map<const std::uint8_t*, int>& cpus, const std::uint8_t* memory, std::int64_t panel_bytes,
          std::int64_t begin, std::int64_t end) {
  const int cpu = ::sched_getcpu();
  const std::lock_guard lock(mutex);
  for (std::int64_t panel = begin; panel < end; ++panel) {
    const auto [at, is_new] = cpus.emplace(memory + panel * panel_bytes, cpu);
    n_moved += is_new || at->second == cpu ? 0 : 1;
  }
}
template <std::size_t Format>
void pack(const PackArgs& args) {
  note(packed_on, args.packed, args.panel_bytes, args.panel_begin, args.panel_end);
  real->pack[Format](args);
}
template <std::size_t Format>
void linear(const LinearArgs& args) {
  note(used_on, args.weights, args.panel_bytes, args.panel_begin, args.panel_end);
  real->linear[Format](args);
}
template <std::size_t... Format>
CpuKernels noting(std::index_sequence<Format...>) {
  CpuKernels kernels = *real;
  ((kernels.pack[Format] = pack<Format>, kernels.linear[Format] = linear<Format>), ...);
  return kernels;
}
}  // namespace placement

TEST(ModelLoad, PanelsLieNearTheThreadsThatUseThem) {
  const std::vector<CpuTopology::Node>& nodes = CpuTopology::machine().nodes;
  std::vector<int> cpus;
  for (const CpuTopology::Node& node : nodes) cpus.insert(cpus.end(), node.cpus.begin(), node.cpus.end());
  if (cpus.size() < 2) GTEST_SKIP() << "one core only";
  const CpuTopology two{{{0, {cpus[0]}}, {1, {cpus[1]}}}};
  placement::real = *select_cpu_kernels("ref");
  const CpuKernels kernels = placement::noting(std::make_index_sequence<kPackedFormatCount>());
  // On a thread of its own, which is bound; this one stays free.
  std::thread([&] {
    auto model = Model::load(kTiny + "qwen2/model.gguf", {.n_threads = 2, .kernels = &kernels, .topology = &two});
    ASSERT_TRUE(model) << model.error().message;
    const ModelConfig& config = (*model)->config();
    auto exec = Exec::create({.n_threads = 2,
                              .kernels = &kernels,
                              .max_tokens = 64,
                              .max_k = (*model)->max_k(),
                              .max_attention_parts = config.n_heads,
                              .head_dim = config.head_dim,
                              .n_heads = config.n_heads,
                              .topology = &two});
    ASSERT_TRUE(exec);
    const KvGeometry geometry{config.n_layers, config.n_kv_heads, config.head_dim, 32, KvType::kF32};
    auto cache = KvCache::create(geometry, 4);
    ASSERT_TRUE(cache);
    Arena arena;
    auto buffers = StepBuffers::create(config, 64, 4, arena);
    ASSERT_TRUE(buffers);
    const RopeTable rope(config.rope, 128);
    std::vector<TokenId> ids(64, 7);
    std::vector<std::int32_t> positions(64), q_start = {0, 64}, kv_len = {64}, blocks = {0, 1, 2, 3}, rows = {63};
    std::iota(positions.begin(), positions.end(), 0);
    ASSERT_TRUE((*model)->forward(**exec,
                                  {.ids = ids,
                                   .positions = positions,
                                   .q_start = q_start,
                                   .kv_len = kv_len,
                                   .block_tables = blocks,
                                   .max_blocks = 4,
                                   .logit_rows = rows,
                                   // Else the last layer has work for one thread only.
                                   .wants_all_states = true},
                                  *cache, rope, *buffers));
  }).join();
  EXPECT_EQ(placement::n_moved, 0);
  int n_elsewhere = 0;
  std::map<int, int> n_by_cpu;
  for (const auto& [memory, cpu] : placement::used_on) {
    const auto packed = placement::packed_on.find(memory);
    ASSERT_NE(packed, placement::packed_on.end());
    n_elsewhere += packed->second == cpu ? 0 : 1;
    ++n_by_cpu[cpu];
  }
  EXPECT_GT(placement::used_on.size(), 20u);
  // What is too little to wake a thread for is done by the first, wherever it lies.
  std::printf("%zu panels, %d used on another node than they lie on\n", placement::used_on.size(), n_elsewhere);
  EXPECT_EQ(n_elsewhere, 0);
  EXPECT_EQ(n_by_cpu.size(), 2u);
}

TEST(Registry, NamesTheArchitecturesItKnows) {
  const auto arch = find_arch("mamba");
  ASSERT_FALSE(arch);
  EXPECT_EQ(arch.error().message, "architecture \"mamba\" is not supported, expected one of llama, qwen2");
}

TEST(Config, RefusesWhatCannotBe) {
  const auto read = [](std::string_view text) { return read_decoder_config(parse_json(text, "test")->as_object()); };
  const std::string base = R"("num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 100)";
  EXPECT_TRUE(read("{" + base + R"(, "num_attention_heads": 4})"));
  EXPECT_EQ(read("{" + base + R"(, "num_attention_heads": 4, "num_key_value_heads": 3})").error().message,
            "config: num_attention_heads 4 is not a multiple of num_key_value_heads 3");
  EXPECT_EQ(read("{" + base + "}").error().message, "config: \"num_attention_heads\" is missing");
  EXPECT_EQ(read(R"({"num_hidden_layers": -1})").error().message,
            "config: \"num_hidden_layers\" is -1, expected 1 to 4096");
  EXPECT_EQ(read(R"({"num_hidden_layers": "two"})").error().message,
            "config: \"num_hidden_layers\" is \"two\", expected an integer");
}

}  // namespace
}  // namespace still
