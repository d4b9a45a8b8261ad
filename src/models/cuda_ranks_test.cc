// Models over several GPUs, or over a GPU and the host, against one GPU or the CPU. Two ranks may share a GPU, so that
// what they do together is tested where there is one only; NCCL needs two. Skipped, with the reason, where there is
// none.
#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/json.h"
#include "base/rng.h"
#include "dist/cuda_group.h"
#include "kernels/testing.h"
#include "models/model.h"
#include "ops/cuda_exec.h"
#include "tensor/float16.h"

namespace still {
namespace {

const std::string kTiny = std::string(STILL_SOURCE_DIR) + "/testdata/tiny/";
constexpr std::int64_t kMaxTokens = 96, kBlocks = 8;

class CudaRanksTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string reason;
    n_devices_ = static_cast<std::int32_t>(list_cuda_devices(&reason).size());
    if (n_devices_ == 0) GTEST_SKIP() << "no GPU: " << reason;
  }
  std::int32_t n_devices_ = 0;
};

// One GPU's part of a model with what its steps need; one sequence.
struct GpuRunner {
  std::shared_ptr<const Model> model;
  std::unique_ptr<Exec> exec;
  KvCache cache;
  RopeTable rope;
  DeviceBuffer memory;
  StepBuffers buffers;

  GpuRunner(std::shared_ptr<const Model> m, Comm* comm) : model(std::move(m)) {
    const ModelConfig& config = model->config();
    ExecOptions options;
    options.comm = comm;
    options.cuda = CudaOptions{.device = model->cuda_device(),
                               .max_tokens = kMaxTokens,
                               .max_seqs = 4,
                               .max_rows = kMaxTokens,
                               .max_blocks = kBlocks,
                               .block_size = 32,
                               .max_k = std::max(model->max_k(), config.hidden_size),
                               .max_gate = config.intermediate_size,
                               .max_matrix = std::max(config.vocab_size, config.intermediate_size) * config.hidden_size,
                               .n_heads = config.n_heads,
                               .n_kv_heads = config.n_kv_heads,
                               .head_dim = config.head_dim,
                               .vocab_size = config.vocab_size,
                               .has_f32_activations = model->has_f32_activations()};
    auto made = Exec::create(options);
    EXPECT_TRUE(made) << (made ? "" : made.error().message);
    exec = std::move(*made);
    cache = std::move(*KvCache::create_on_cuda({.n_layers = config.n_layers - model->n_host_layers(),
                                                .n_kv_heads = config.n_kv_heads,
                                                .head_dim = config.head_dim},
                                               kBlocks, exec->cuda()->stream()));
    rope = RopeTable(config.rope, 256);
    EXPECT_TRUE(exec->cuda()->upload_rope(rope));
    const ActivationLayout layout{.is_joined = true, .type = model->has_f32_activations() ? DType::kF32 : DType::kBF16};
    buffers = *StepBuffers::create_on_cuda(config, kMaxTokens, kMaxTokens, layout, memory);
  }
};

// Calls step(batch, n) for the prompt at once and then for each token alone: eager, captured, replayed.
template <class Step>
void feed(const std::vector<TokenId>& ids, std::size_t n_prompt, Step&& step) {
  const std::vector<std::int32_t> blocks = {4, 2, 7, 1, 0, 3, 5, 6};
  for (std::size_t at = 0; at < ids.size();) {
    const std::size_t n = at == 0 ? n_prompt : 1;
    std::vector<std::int32_t> positions, rows;
    for (std::size_t i = 0; i < n; ++i) {
      positions.push_back(static_cast<std::int32_t>(at + i));
      rows.push_back(static_cast<std::int32_t>(i));
    }
    const std::int32_t q_start[2] = {0, static_cast<std::int32_t>(n)};
    const std::int32_t kv_len[1] = {static_cast<std::int32_t>(at + n)};
    step(RaggedBatch{std::span(ids).subspan(at, n), positions, q_start, kv_len, blocks, kBlocks, rows});
    at += n;
  }
}

void append_logits(GpuRunner& runner, std::size_t n_rows, std::vector<float>& logits) {
  const std::int64_t vocab = runner.model->config().vocab_size;
  for (std::size_t row = 0; row < n_rows; ++row) {
    const auto fetched =
        runner.exec->cuda()->fetch(runner.buffers.logits + static_cast<std::int64_t>(row) * vocab, vocab);
    ASSERT_TRUE(fetched) << fetched.error().message;
    logits.insert(logits.end(), *fetched, *fetched + vocab);
  }
}

// Logits of all tokens on every rank; devices: of the ranks.
std::vector<std::vector<float>> logits_of_ranks(const std::string& path, const std::vector<std::int32_t>& devices,
                                                const std::vector<TokenId>& ids, std::size_t n_prompt,
                                                CudaGroupOptions options = {}) {
  const std::size_t n_ranks = devices.size();
  std::vector<std::shared_ptr<const Model>> models;
  for (std::size_t i = 0; i < n_ranks; ++i) {
    auto model = Model::load(path, {.n_threads = 1,
                                    .cuda_device = devices[i],
                                    .rank = {static_cast<std::int32_t>(i), static_cast<std::int32_t>(n_ranks)}});
    EXPECT_TRUE(model) << (model ? "" : model.error().message);
    if (!model) return {};
    models.push_back(*model);
  }
  std::unique_ptr<CudaGroup> group;
  if (n_ranks > 1) {
    options.devices = devices;
    options.has_bf16_parts = !models[0]->has_f32_activations();
    options.max_tokens = options.max_rows = kMaxTokens;
    options.hidden_size = models[0]->config().hidden_size;
    for (const auto& model : models) options.first_column.push_back(model->parts().vocabulary.begin);
    options.first_column.push_back(models[0]->config().vocab_size);
    auto made = CudaGroup::create(options);
    EXPECT_TRUE(made) << (made ? "" : made.error().message);
    if (!made) return {};
    group = std::move(*made);
  }
  std::vector<std::unique_ptr<GpuRunner>> runners;
  for (std::size_t i = 0; i < n_ranks; ++i) {
    runners.push_back(
        std::make_unique<GpuRunner>(models[i], group == nullptr ? nullptr : &group->rank(static_cast<int>(i))));
    if (group != nullptr) group->set_logits(static_cast<int>(i), runners[i]->buffers.logits);
  }
  std::vector<std::vector<float>> logits(n_ranks);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < n_ranks; ++i) {
    threads.emplace_back([&, i] {
      EXPECT_TRUE(use_cuda_device(devices[i]));
      GpuRunner& runner = *runners[i];
      feed(ids, n_prompt, [&](const RaggedBatch& batch) {
        const Status done = runner.model->forward(*runner.exec, batch, runner.cache, runner.rope, runner.buffers);
        ASSERT_TRUE(done) << done.error().message;
        append_logits(runner, batch.logit_rows.size(), logits[i]);
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (group != nullptr) {
    const Status status = group->status();
    EXPECT_TRUE(status) << (status ? "" : status.error().message);
  }
  return logits;
}

// ||a - b|| / ||b||
double distance(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size() || a.empty()) return INFINITY;
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i])) return INFINITY;
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    norm += static_cast<double>(b[i]) * b[i];
  }
  return std::sqrt(difference / norm);
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size() || a.empty()) return INFINITY;
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    worst = std::isfinite(a[i]) ? std::max(worst, std::abs(static_cast<double>(a[i]) - b[i])) : INFINITY;
  return worst;
}

std::vector<TokenId> random_ids(std::size_t n) {
  Rng rng(41);
  std::vector<TokenId> ids;
  for (std::size_t i = 0; i < n; ++i) ids.push_back(static_cast<TokenId>(rng.below(320)));
  return ids;
}

// The ways in which GPUs may reach one another.
struct Way {
  const char* name;
  bool use_peers, use_nccl;
  std::vector<std::int32_t> devices = {0, 1};
};
const Way kWays[] = {{"peers", true, false}, {"NCCL", false, true}, {"peers and NCCL", true, true}};

void check_tiny_models(std::span<const Way> ways) {
  const std::vector<TokenId> ids = random_ids(60);
  for (const char* name : {"llama", "llama_tied", "qwen2_tied"}) {
    const std::string path = kTiny + name + "/model.gguf";
    const std::vector<float> want = logits_of_ranks(path, {0}, ids, 50)[0];
    for (const Way& way : ways) {
      SCOPED_TRACE(fmt::format("{}: {}", name, way.name));
      // 16 rows a call, so that the prompt's 50 go through NCCL, or in four calls.
      const auto got = logits_of_ranks(path, way.devices, ids, 50,
                                       {.use_peers = way.use_peers, .use_nccl = way.use_nccl, .max_sum_rows = 16});
      ASSERT_EQ(got.size(), 2u);
      EXPECT_EQ(got[0], got[1]);  // both draw from the same bits
      // f32 but for keys and values, whose f16 rounding turns where sums differ in their last bit.
      const double worst = largest_difference(got[0], want);
      EXPECT_LE(worst, 1e-2);
      std::printf("%s, %s: largest difference of a logit %.2g\n", name, way.name, worst);
    }
  }
}

// Not under compute-sanitizer's memcheck, which holds back something of one rank's replayed step while the other's
// waits for it (bench/results/gpu-h100.md): sums then end after their 20 s.
TEST_F(CudaRanksTest, RanksThatShareAGpuGiveItsLogits) {
  const Way way{"one GPU", true, false, {0, 0}};
  check_tiny_models({&way, 1});
}

TEST_F(CudaRanksTest, RanksGiveOneGpusLogits) {
  if (n_devices_ < 2) GTEST_SKIP() << "one GPU";
  check_tiny_models(kWays);
}

// A qwen2 of bf16 weights, so that tensor cores, cuBLASLt and bf16 activations are in it.
class RandomModelFolder {
 public:
  RandomModelFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "still-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
    for (const char* file : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"})
      std::filesystem::copy_file(kTiny + "qwen2/" + file, path_ / file);
    write(
        "config.json",
        R"({"model_type": "qwen2", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 3,)"
        R"("num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 1003,)"
        R"("max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false})");
    std::string header = "{";
    std::string data;
    Rng rng(42);
    const auto add = [&](const std::string& tensor, std::vector<std::int64_t> shape, float mean, float deviation) {
      std::int64_t n = 1;
      for (const std::int64_t size : shape) n *= size;
      const std::size_t begin = data.size();
      const std::vector<float> values = testing::random_floats(rng, n, deviation);
      for (std::int64_t i = 0; i < n; ++i) {
        const std::uint16_t bits = f32_to_bf16(mean + values[static_cast<std::size_t>(i)]);
        data.append(reinterpret_cast<const char*>(&bits), 2);
      }
      header += fmt::format(R"({}"{}":{{"dtype":"BF16","shape":[{}],"data_offsets":[{},{}]}})",
                            header.size() > 1 ? "," : "", tensor, fmt::join(shape, ","), begin, data.size());
    };
    add("model.embed_tokens.weight", {1003, 512}, 0, 1);
    add("model.norm.weight", {512}, 1, 0.1f);
    add("lm_head.weight", {1003, 512}, 0, 0.05f);
    for (int layer = 0; layer < 3; ++layer) {
      const std::string p = fmt::format("model.layers.{}.", layer);
      add(p + "input_layernorm.weight", {512}, 1, 0.1f);
      add(p + "post_attention_layernorm.weight", {512}, 1, 0.1f);
      add(p + "self_attn.q_proj.weight", {512, 512}, 0, 0.05f);
      add(p + "self_attn.k_proj.weight", {128, 512}, 0, 0.05f);
      add(p + "self_attn.v_proj.weight", {128, 512}, 0, 0.05f);
      add(p + "self_attn.q_proj.bias", {512}, 0, 0.2f);
      add(p + "self_attn.k_proj.bias", {128}, 0, 0.2f);
      add(p + "self_attn.v_proj.bias", {128}, 0, 0.2f);
      add(p + "self_attn.o_proj.weight", {512, 512}, 0, 0.05f);
      add(p + "mlp.gate_proj.weight", {1408, 512}, 0, 0.05f);
      add(p + "mlp.up_proj.weight", {1408, 512}, 0, 0.05f);
      add(p + "mlp.down_proj.weight", {512, 1408}, 0, 0.03f);
    }
    header += "}";
    while (header.size() % 8 != 0) header += ' ';
    const std::uint64_t size = header.size();
    write("model.safetensors", std::string(reinterpret_cast<const char*>(&size), 8) + header + data);
  }
  ~RandomModelFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  void write(const std::string& name, const std::string& bytes) {
    std::ofstream(path_ / name, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  std::filesystem::path path_;
};

TEST_F(CudaRanksTest, RanksOfABf16ModelGiveOneGpusLogits) {
  std::vector<Way> ways = {{"one GPU", true, false, {0, 0}}};
  if (n_devices_ >= 2) ways.insert(ways.end(), std::begin(kWays), std::end(kWays));
  const RandomModelFolder folder;
  const std::vector<TokenId> ids = random_ids(90);
  const std::string path = folder.path().string();
  for (const Way& way : ways) {
    SCOPED_TRACE(way.name);
    // A first launch of a cuBLASLt kernel would wait for the other rank where both are on one GPU.
    const std::size_t n_prompt = way.devices[0] == way.devices[1] ? 12 : 80;
    const std::vector<float> want = logits_of_ranks(path, {0}, ids, n_prompt)[0];
    const std::size_t vocab = want.size() / ids.size();
    const auto got = logits_of_ranks(path, way.devices, ids, n_prompt,
                                     {.use_peers = way.use_peers, .use_nccl = way.use_nccl, .max_sum_rows = 32});
    ASSERT_EQ(got.size(), 2u);
    EXPECT_EQ(got[0], got[1]);
    // Activations are bf16: what differs in its last bit in f32 may round to the neighbour, 2^-8 of it, in each of
    // seven places of three layers, independently.
    const double difference = distance(got[0], want);
    EXPECT_LE(difference, std::sqrt(21.0) / 256);
    std::printf("bf16, %s: distance %.2g\n", way.name, difference);
    const double worst = largest_difference(got[0], want);
    for (std::size_t row = 0; row < ids.size(); ++row) {
      const auto begin = static_cast<std::ptrdiff_t>(row * vocab), end = begin + static_cast<std::ptrdiff_t>(vocab);
      const auto best = std::max_element(want.begin() + begin, want.begin() + end) - want.begin();
      const auto own = std::max_element(got[0].begin() + begin, got[0].begin() + end) - got[0].begin();
      EXPECT_LE(want[static_cast<std::size_t>(best)] - want[static_cast<std::size_t>(own)], 2 * worst);
    }
  }
}

TEST_F(CudaRanksTest, EveryNumberOfLayersOnTheHostGivesTheGpusLogits) {
  const std::vector<TokenId> ids = random_ids(40);
  const RandomModelFolder folder;
  std::vector<std::string> paths = {folder.path().string()};
  for (const char* name : {"llama", "llama_tied", "qwen2", "qwen2_tied"}) paths.push_back(kTiny + name + "/model.gguf");
  for (const std::string& path : paths) {
    const std::vector<float> want = logits_of_ranks(path, {0}, ids, 30)[0];
    const std::int32_t n_layers = (*Model::load(path, {.n_threads = 1}))->config().n_layers;
    for (std::int32_t n_host = 1; n_host < n_layers; ++n_host) {
      SCOPED_TRACE(fmt::format("{}: {} of {} layers on the host", path, n_host, n_layers));
      auto loaded = Model::load(path, {.n_threads = 1, .cuda_device = 0, .n_host_layers = n_host});
      ASSERT_TRUE(loaded) << loaded.error().message;
      const std::shared_ptr<const Model> model = *loaded;
      const ModelConfig& config = model->config();
      GpuRunner gpu(model, nullptr);
      auto cpu = std::move(*Exec::create({.n_threads = 2,
                                          .max_tokens = kMaxTokens,
                                          .max_k = std::max(model->max_k(), config.hidden_size),
                                          .max_attention_parts = config.n_heads,
                                          .head_dim = config.head_dim,
                                          .n_heads = config.n_heads}));
      KvCache cache = std::move(*KvCache::create(
          {.n_layers = n_host, .n_kv_heads = config.n_kv_heads, .head_dim = config.head_dim}, kBlocks));
      Arena arena;
      StepBuffers buffers = *StepBuffers::create(config, kMaxTokens, 1, arena);
      PinnedBuffer pinned = std::move(*PinnedBuffer::create(kMaxTokens * config.hidden_size * 4, "test"));
      buffers.hidden = reinterpret_cast<float*>(pinned.data());
      gpu.buffers.input = buffers.hidden;
      std::vector<float> got;
      feed(ids, 30, [&](const RaggedBatch& batch) {
        ASSERT_TRUE(model->forward(*cpu, batch, cache, gpu.rope, buffers));
        const Status done = model->forward(*gpu.exec, batch, gpu.cache, gpu.rope, gpu.buffers);
        ASSERT_TRUE(done) << done.error().message;
        append_logits(gpu, batch.logit_rows.size(), got);
      });
      // The tiny ones are f32 with f16 keys and values; the other has bf16 activations on the GPU and f32 on the CPU.
      if (path == folder.path()) {
        EXPECT_LE(distance(got, want), std::sqrt(21.0) / 256);
      } else {
        EXPECT_LE(largest_difference(got, want), 3e-2);
      }
    }
  }
}

// Logits of all tokens on the CPU.
std::vector<float> logits_of_cpu(const std::string& path, const std::vector<TokenId>& ids, std::size_t n_prompt) {
  const std::shared_ptr<const Model> model = *Model::load(path, {});
  const ModelConfig& config = model->config();
  auto exec = std::move(*Exec::create({.max_tokens = kMaxTokens,
                                       .max_k = std::max(model->max_k(), config.hidden_size),
                                       .max_attention_parts = config.n_heads,
                                       .head_dim = config.head_dim,
                                       .n_heads = config.n_heads}));
  KvCache cache = std::move(*KvCache::create(
      {.n_layers = config.n_layers, .n_kv_heads = config.n_kv_heads, .head_dim = config.head_dim}, kBlocks));
  const RopeTable rope(config.rope, 256);
  Arena arena;
  StepBuffers buffers = *StepBuffers::create(config, kMaxTokens, kMaxTokens, arena);
  std::vector<float> logits;
  feed(ids, n_prompt, [&](const RaggedBatch& batch) {
    ASSERT_TRUE(model->forward(*exec, batch, cache, rope, buffers));
    logits.insert(logits.end(), buffers.logits,
                  buffers.logits + static_cast<std::ptrdiff_t>(batch.logit_rows.size()) * config.vocab_size);
  });
  return logits;
}

// A real model of 4-bit weights: where the CPU's best token is further ahead than rounding can account for, it is the
// GPU's best, too. Needs the models: the folder in STILL_TEST_MODELS. Its tokens are a reference's answers.
//
// What rounding accounts for: both round the input of each product to int8 in blocks of 32, by the block's largest
// value m: an error of m / 127 / sqrt(12), which is at most sqrt(32) / (127 sqrt(12)) = 0.0129 of the block's root mean
// square (one value alone) and 0.0053 where the 32 are normal (m = 2.3 of it). One value that another order of sums
// moves to the next integer changes all that follows, so the two engines' errors are as good as independent. A layer
// rounds four times; were all layers' errors to add up in squares in the residual stream, its relative error would be
// sqrt(4 n_layers) times one, and that of the two engines' difference sqrt(2) times that. Logits inherit it: their
// difference deviates by so much of their own deviation, the difference of two logits by sqrt(2) more.
TEST_F(CudaRanksTest, BestTokensAreTheCpusWhereRoundingCannotChangeThem) {
  const char* folder = std::getenv("STILL_TEST_MODELS");
  if (folder == nullptr) GTEST_SKIP() << "STILL_TEST_MODELS is not set: no smollm2.gguf";
  const std::string path = std::string(folder) + "/smollm2.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " does not exist";
  const std::string answers = std::string(STILL_SOURCE_DIR) + "/testdata/reference_outputs/smollm2.json";
  std::ifstream file(answers, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  const Json reference = *parse_json(text.str(), answers);
  const auto model = Model::load(path, {.n_threads = 1});
  ASSERT_TRUE(model) << model.error().message;
  const auto vocab = static_cast<std::size_t>((*model)->config().vocab_size);
  const double one = 2.3 / (127 * std::sqrt(12.0)), relative = one * std::sqrt(2 * 4.0 * (*model)->config().n_layers);
  double squares = 0, variances = 0, largest_flip = 0;
  std::int64_t n_rows = 0, n_sure = 0, n_flips = 0;
  for (const Json& run : reference.at("greedy").as_array()) {
    std::vector<TokenId> ids;
    for (const Json& id : run.at("prompt_ids").as_array()) ids.push_back(id.to_number<TokenId>());
    const std::size_t n_prompt = ids.size();
    for (const Json& id : run.at("ids").as_array()) ids.push_back(id.to_number<TokenId>());
    ids.resize(std::min<std::size_t>(ids.size(), kMaxTokens));
    const std::vector<float> cpu = logits_of_cpu(path, ids, n_prompt);
    const std::vector<float> gpu = logits_of_ranks(path, {0}, ids, n_prompt)[0];
    ASSERT_EQ(cpu.size(), ids.size() * vocab);
    ASSERT_EQ(gpu.size(), cpu.size());
    for (std::size_t row = n_prompt - 1; row < ids.size(); ++row) {
      const std::span<const float> c = std::span(cpu).subspan(row * vocab, vocab),
                                   g = std::span(gpu).subspan(row * vocab, vocab);
      // Softmax does not see a constant: differences count from their mean.
      double mean = 0, mean_difference = 0, variance = 0, square = 0;
      for (std::size_t i = 0; i < vocab; ++i) {
        mean += c[i] / static_cast<double>(vocab);
        mean_difference += (static_cast<double>(g[i]) - c[i]) / static_cast<double>(vocab);
      }
      for (std::size_t i = 0; i < vocab; ++i) {
        const double difference = static_cast<double>(g[i]) - c[i] - mean_difference;
        variance += (c[i] - mean) * (c[i] - mean) / static_cast<double>(vocab);
        square += difference * difference / static_cast<double>(vocab);
      }
      ASSERT_TRUE(std::isfinite(square));
      squares += square;
      variances += variance;
      const auto best = std::max_element(c.begin(), c.end()) - c.begin();
      const auto own = std::max_element(g.begin(), g.end()) - g.begin();
      float second = -INFINITY;
      for (std::size_t i = 0; i < vocab; ++i)
        if (static_cast<std::ptrdiff_t>(i) != best) second = std::max(second, c[i]);
      const double margin = static_cast<double>(c[static_cast<std::size_t>(best)]) - second,
                   bound = 4 * std::sqrt(2.0) * relative * std::sqrt(variance);
      ++n_rows;
      n_sure += margin > bound;
      if (own == best) continue;
      ++n_flips;
      largest_flip = std::max(largest_flip, margin);
      EXPECT_LE(margin, bound) << "run of " << n_prompt << " tokens, token " << row;
    }
  }
  const double measured = std::sqrt(squares / variances);
  std::printf(
      "smollm2: %lld of %lld tokens surer than rounding; %lld others best on the GPU, the surest by %.3f; logits "
      "differ "
      "by %.4f of their deviation (%.2f), by rounding %.4f at most\n",
      static_cast<long long>(n_sure), static_cast<long long>(n_rows), static_cast<long long>(n_flips), largest_flip,
      measured, std::sqrt(variances / static_cast<double>(n_rows)), relative);
  EXPECT_LE(measured, relative);
  EXPECT_GT(n_sure, 0);
}

}  // namespace
}  // namespace still
