// A model shared out over ranks gives what the whole gives: two to five ranks as threads of this process, each with its
// slices of the weights, its heads' keys and values and its part of the vocabulary.
#include "models/shard.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>

#include "base/rng.h"
#include "dist/local_group.h"
#include "models/model.h"
#include "models/registry.h"

namespace still {
namespace {

const std::string kTiny = std::string(STILL_SOURCE_DIR) + "/testdata/tiny/";

// One rank with what its steps need; one sequence.
struct RankRunner {
  std::shared_ptr<const Model> model;
  std::unique_ptr<Exec> exec;
  KvCache cache;
  RopeTable rope;
  Arena arena;
  StepBuffers buffers;

  RankRunner(std::shared_ptr<const Model> m, Comm* comm, KvType kv_type) : model(std::move(m)) {
    const ModelConfig& config = model->config();
    exec = std::move(*Exec::create({.n_threads = 1,
                                    .max_tokens = 64,
                                    .max_k = std::max(model->max_k(), config.hidden_size),
                                    .max_attention_parts = config.n_heads,
                                    .head_dim = config.head_dim,
                                    .n_heads = config.n_heads,
                                    .comm = comm}));
    cache = std::move(*KvCache::create(
        {.n_layers = config.n_layers, .n_kv_heads = config.n_kv_heads, .head_dim = config.head_dim, .type = kv_type},
        8));
    rope = RopeTable(config.rope, 256);
    buffers = *StepBuffers::create(config, 64, 64, arena);
  }

  void step(std::span<const TokenId> ids, std::int32_t pos) {
    std::vector<std::int32_t> positions, rows, blocks = {4, 2, 7, 1, 0, 3, 5, 6};
    for (std::size_t i = 0; i < ids.size(); ++i) {
      positions.push_back(pos + static_cast<std::int32_t>(i));
      rows.push_back(static_cast<std::int32_t>(i));
    }
    const std::int32_t q_start[2] = {0, static_cast<std::int32_t>(ids.size())};
    const std::int32_t kv_len[1] = {pos + static_cast<std::int32_t>(ids.size())};
    const RaggedBatch batch{ids, positions, q_start, kv_len, blocks, 8, rows};
    EXPECT_TRUE(model->forward(*exec, batch, cache, rope, buffers));
  }
};

// Logits of all tokens: a prompt of `n_prompt` at once, the rest one by one.
std::vector<float> logits_of(const std::string& path, std::int32_t n_ranks, const std::vector<TokenId>& ids,
                             std::size_t n_prompt) {
  std::vector<std::shared_ptr<const Model>> models;
  for (std::int32_t i = 0; i < n_ranks; ++i) {
    auto model = Model::load(path, {.n_threads = 1, .rank = {i, n_ranks}});
    EXPECT_TRUE(model) << (model ? "" : model.error().message);
    if (!model) return {};
    models.push_back(*model);
  }
  const std::int64_t vocab = models[0]->config().vocab_size;
  std::vector<std::int64_t> first_column;
  for (const auto& model : models) first_column.push_back(model->parts().vocabulary.begin);
  first_column.push_back(vocab);
  LocalGroup group(first_column, 64 * models[0]->config().hidden_size, 64);
  std::vector<float> logits;
  std::vector<std::thread> threads;
  for (int i = 0; i < n_ranks; ++i) {
    threads.emplace_back([&, i] {
      RankRunner runner(models[static_cast<std::size_t>(i)], n_ranks == 1 ? nullptr : &group.rank(i), KvType::kF32);
      for (std::size_t at = 0; at < ids.size();) {
        const std::size_t n = at == 0 ? n_prompt : 1;
        runner.step(std::span(ids).subspan(at, n), static_cast<std::int32_t>(at));
        if (i == 0)
          logits.insert(logits.end(), runner.buffers.logits,
                        runner.buffers.logits + n * static_cast<std::size_t>(vocab));
        at += n;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return logits;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    if (!std::isfinite(a[i])) return INFINITY;
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - b[i]));
  }
  return worst;
}

std::vector<TokenId> random_ids(std::int64_t vocab, std::size_t n) {
  Rng rng(31);
  std::vector<TokenId> ids;
  for (std::size_t i = 0; i < n; ++i) ids.push_back(static_cast<TokenId>(rng.below(static_cast<std::uint64_t>(vocab))));
  return ids;
}

TEST(Shard, RanksTogetherGiveTheWholesLogits) {
  struct Case {
    const char* name;
    std::int32_t n_ranks;
  };
  // 4 heads of 2, 4 of 1 and 5 of 1 of keys: those are copied; 321 ids and widths of 72 and 88 that do not divide.
  for (const Case& c : {Case{"llama", 2}, Case{"llama", 4}, Case{"llama_tied", 2}, Case{"llama_tied", 4},
                        Case{"qwen2", 5}, Case{"qwen2_tied", 2}}) {
    for (const char* file : {"", "/model.gguf"}) {
      SCOPED_TRACE(fmt::format("{}{} over {} ranks", c.name, file, c.n_ranks));
      const std::vector<TokenId> ids = random_ids(320, 24);
      const std::vector<float> want = logits_of(kTiny + c.name + file, 1, ids, 19);
      const std::vector<float> got = logits_of(kTiny + c.name + file, c.n_ranks, ids, 19);
      // f32 weights: only the order of a few hundred additions differs. The whole's own distance from the published
      // logits is bounded by 1e-4 (models_test.cc).
      EXPECT_LE(largest_difference(got, want), 1e-4);
    }
  }
}

// Q4_K_M of two ranks: each has whole blocks, so that the integers are the same and only their sums' order differs.
TEST(Shard, RanksOfAQuantisedModelGiveTheWholesLogits) {
  const char* folder = std::getenv("STILL_TEST_MODELS");
  if (folder == nullptr) GTEST_SKIP() << "STILL_TEST_MODELS is not set";
  const std::string path = std::string(folder) + "/q05.gguf";
  if (!std::ifstream(path)) GTEST_SKIP() << path << " is not there";
  const std::vector<TokenId> ids = random_ids(100000, 12);
  const std::vector<float> want = logits_of(path, 1, ids, 9);
  const std::vector<float> got = logits_of(path, 2, ids, 9);
  const double worst = largest_difference(got, want);
  std::printf("q05: largest difference of a logit %.3g\n", worst);
  // A difference of 1e-6 turns the rounding of some activation to int8, 1/127 of its block's largest value, which is
  // then what all after it differ by: 0.1 of logits that deviate by 3.
  EXPECT_LE(worst, 0.5);
  const std::size_t vocab = want.size() / ids.size();
  std::size_t n_same = 0, n_clear = 0;
  for (std::size_t row = 0; row < ids.size(); ++row) {
    const auto begin = static_cast<std::ptrdiff_t>(row * vocab), end = begin + static_cast<std::ptrdiff_t>(vocab);
    std::vector<float> sorted(want.begin() + begin, want.begin() + end);
    std::nth_element(sorted.begin(), sorted.begin() + 1, sorted.end(), std::greater<>());
    if (sorted[0] - sorted[1] < 2 * worst) continue;
    ++n_clear;
    n_same += std::max_element(want.begin() + begin, want.begin() + end) - want.begin() - begin ==
              std::max_element(got.begin() + begin, got.begin() + end) - got.begin() - begin;
  }
  EXPECT_EQ(n_same, n_clear);
}

TEST(Shard, EachElementIsSomebodys) {
  ModelConfig config;
  config.n_heads = 28;
  config.n_kv_heads = 4;
  config.head_dim = 128;
  config.hidden_size = 3584;
  config.intermediate_size = 18944;
  config.vocab_size = 152064;
  config.n_layers = 1;
  const std::vector<TensorSpec> specs = (*find_arch("qwen2"))->tensors(config);
  for (const DType type : {DType::kBF16, DType::kQ4_K}) {
    for (const std::int32_t n : {1, 2, 4, 7, 14, 28}) {
      if (n == 7 || n == 14) {  // 4 heads of keys are neither shared nor copied evenly
        const auto parts = share_out(specs, config, {0, n}, [&](const TensorSpec&) { return type; });
        ASSERT_FALSE(parts);
        EXPECT_NE(parts.error().message.find("possible are 1, 2, 4, 28"), std::string::npos) << parts.error().message;
        continue;
      }
      std::int64_t heads = 0, ffn = 0, vocabulary = 0;
      for (std::int32_t i = 0; i < n; ++i) {
        const auto parts = share_out(specs, config, {i, n}, [&](const TensorSpec&) { return type; });
        ASSERT_TRUE(parts) << parts.error().message;
        EXPECT_EQ(parts->heads.begin, heads);
        EXPECT_EQ(parts->ffn.begin, ffn);
        EXPECT_EQ(parts->vocabulary.begin, vocabulary);
        heads = parts->heads.end;
        ffn = parts->ffn.end;
        vocabulary = parts->vocabulary.end;
        EXPECT_EQ(ffn % (type == DType::kQ4_K ? 256 : 16), 0);
        // The heads of keys are those that this rank's queries ask.
        const std::int64_t group = 28 / 4, first = parts->heads.begin / 128, last = parts->heads.end / 128 - 1;
        EXPECT_EQ(parts->kv_heads.begin / 128, first / group);
        EXPECT_EQ(parts->kv_heads.end / 128 - 1, last / group);
        EXPECT_EQ(parts->config(config).n_heads % parts->config(config).n_kv_heads, 0);
      }
      EXPECT_EQ(heads, 28 * 128);
      EXPECT_EQ(ffn, 18944);
      EXPECT_EQ(vocabulary, 152064);
    }
  }
}

TEST(Shard, RefusesCutsInsideABlock) {
  const auto whole = Model::load(kTiny + "llama", {.n_threads = 1, .rank = {0, 3}});
  ASSERT_FALSE(whole);
  EXPECT_EQ(
      whole.error().message,
      "4 attention heads, 2 of keys and values, and a feed-forward width of 80 in units of 16 cannot be split over "
      "3 ranks: possible are 1, 2, 4");
}

}  // namespace
}  // namespace still
