// What the memory plan says where the wanted settings do not fit.
#include "plan/memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace still {
namespace {

using testing::HasSubstr;
using testing::Not;

ModelConfig small_config() {
  ModelConfig config{.model_type = "llama",
                     .n_layers = 2,
                     .hidden_size = 64,
                     .intermediate_size = 128,
                     .n_heads = 4,
                     .n_kv_heads = 2,
                     .head_dim = 16,
                     .vocab_size = 256,
                     .max_seq_len = 65536};
  config.rope.n_rot = 16;
  return config;
}

EngineSettings settings_of(std::int64_t context, std::int64_t max_seqs, std::int64_t kv_tokens) {
  return {.n_threads = 1,
          .context = context,
          .max_seqs = max_seqs,
          .kv_tokens = kv_tokens,
          .memory_limit = std::int64_t{256} << 20};
}

// Several contexts that are too much together are not told the longest single one, which would be longer than theirs.
TEST(PlanMemory, TooManySequencesAreToldTheTokensThatFit) {
  const auto plan = plan_memory(small_config(), 1 << 20, 128, settings_of(32768, 64, 64 * 32768));
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().code, Code::kResourceExhausted);
  EXPECT_THAT(plan.error().message, HasSubstr("64 sequences with a KV cache of 2097152 tokens in all need"));
  EXPECT_THAT(plan.error().message, Not(HasSubstr("longest context")));
  // What it says fits does, and not much more.
  const std::string& message = plan.error().message;
  const std::size_t at = message.find("are available: ");
  ASSERT_NE(at, std::string::npos);
  const std::int64_t fitting = std::stoll(message.substr(at + 15));
  EXPECT_GE(fitting, 32768);
  EXPECT_TRUE(plan_memory(small_config(), 1 << 20, 128, settings_of(32768, 64, fitting)));
  EXPECT_FALSE(plan_memory(small_config(), 1 << 20, 128, settings_of(32768, 64, fitting + 65536)));
}

// The copy of the output head is taken only where every sequence's keys and values have their room.
TEST(PlanMemory, TheCopyOfTheHeadComesLast) {
  ModelConfig config = small_config();
  config.vocab_size = 100'000;
  EngineSettings settings = settings_of(4096, 8, 0);
  const auto without = plan_memory(config, 1 << 20, 128, settings);
  ASSERT_TRUE(without) << without.error().message;
  EXPECT_EQ(without->screen_bytes, 0);
  settings.screens_head = true;
  const auto with = plan_memory(config, 1 << 20, 128, settings);
  ASSERT_TRUE(with) << with.error().message;
  EXPECT_TRUE(with->settings.screens_head);
  EXPECT_GT(with->screen_bytes, 4 << 20);
  EXPECT_EQ(with->n_blocks, without->n_blocks);
  EXPECT_EQ(with->total_bytes() - with->screen_bytes - (with->workspace_bytes - without->workspace_bytes),
            without->total_bytes());
  // Where the limit leaves less than the copy, there is none, and not one block less.
  settings.memory_limit = without->total_bytes() + (2 << 20);
  const auto tight = plan_memory(config, 1 << 20, 128, settings);
  ASSERT_TRUE(tight) << tight.error().message;
  EXPECT_FALSE(tight->settings.screens_head);
  EXPECT_EQ(tight->screen_bytes, 0);
  EXPECT_EQ(tight->n_blocks, without->n_blocks);
}

// What is left for more sequences is shared by both models' caches.
TEST(PlanMemory, ADraftModelsKeysAndValuesAreCountedForAllSequences) {
  EngineSettings settings = settings_of(32768, 64, 0);
  DraftShape draft{.config = small_config(), .weight_bytes = 1 << 20, .max_k = 128};
  draft.config.n_layers = 1;
  settings.draft = std::make_shared<const DraftShape>(draft);
  const auto plan = plan_memory(small_config(), 1 << 20, 128, settings);
  ASSERT_TRUE(plan) << plan.error().message;
  EXPECT_LE(plan->total_bytes(), settings.memory_limit);
  EXPECT_GT(plan->total_bytes(), settings.memory_limit - (std::int64_t{8} << 20));
  EXPECT_LT(plan->settings.kv_tokens, 64 * 32768) << "all would fit: the test shows nothing";
  EXPECT_GE(plan->draft_kv_bytes, plan->kv_bytes / 2);
  // More than fits: what it says fits does.
  settings.kv_tokens = 64 * 32768;
  const auto refused = plan_memory(small_config(), 1 << 20, 128, settings);
  ASSERT_FALSE(refused);
  const std::size_t at = refused.error().message.find("are available: ");
  ASSERT_NE(at, std::string::npos);
  settings.kv_tokens = std::stoll(refused.error().message.substr(at + 15));
  EXPECT_TRUE(plan_memory(small_config(), 1 << 20, 128, settings));
}

// The steps of very many sequences take the memory, not the model: so it says how many would do, and they do.
TEST(PlanMemory, TooManyStepsAreToldTheSequencesThatFit) {
  for (const std::int64_t context : {std::int64_t{0}, std::int64_t{4096}}) {
    const auto plan = plan_memory(small_config(), 1 << 20, 128, settings_of(context, 1'000'000, 0));
    ASSERT_FALSE(plan);
    const std::string& message = plan.error().message;
    EXPECT_THAT(message, HasSubstr("1000000 sequences at once need"));
    EXPECT_THAT(message, HasSubstr("workspace"));
    const std::size_t at = message.find("are available: ");
    ASSERT_NE(at, std::string::npos) << message;
    const std::int64_t fitting = std::stoll(message.substr(at + 15));
    EXPECT_TRUE(plan_memory(small_config(), 1 << 20, 128, settings_of(context, fitting, 0))) << fitting;
    EXPECT_FALSE(plan_memory(small_config(), 1 << 20, 128, settings_of(context, fitting + 1, 0))) << fitting;
  }
}

TEST(PlanMemory, OneSequenceIsToldTheLongestContext) {
  EngineSettings settings = settings_of(65536, 1, 0);
  settings.memory_limit = std::int64_t{20} << 20;
  const auto plan = plan_memory(small_config(), 1 << 20, 128, settings);
  ASSERT_FALSE(plan);
  EXPECT_THAT(plan.error().message, HasSubstr("the longest context that fits is"));
}

}  // namespace
}  // namespace still
