// What a plan says is what the engine takes and what the operating system counts: tiny models always, real ones where
// STILL_TEST_MODELS names their folder. Prints the table of docs/plan.md.
#include "cli/plan_contract.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "files/checkpoint.h"

namespace still {
namespace {

void expect_contract(const std::filesystem::path& path, std::int64_t max_context, std::int64_t fill_tokens,
                     const std::filesystem::path& draft = {}) {
  SCOPED_TRACE(path);
  int i = 0;
  for (const EngineSettings& settings : contract_settings(max_context, fill_tokens)) {
    SCOPED_TRACE(i++);
    const auto run = run_contract(path, settings, fill_tokens, draft);
    ASSERT_TRUE(run) << run.error().message;
    EXPECT_TRUE(run->refusal.empty()) << "said to fit, but: " << run->refusal;
    EXPECT_TRUE(run->holds()) << "planned " << run->plan.total_bytes() << ", allocated " << run->allocated
                              << ", resident " << run->resident << ", mapped " << run->mapped << " of "
                              << run->mapped_max;
    std::printf(
        "%s threads %d context %ld x %ld chunk %ld: planned %.1f allocated %.1f resident %.1f mapped %.1f MiB\n",
        path.filename().c_str(), settings.n_threads, settings.context, settings.max_seqs, settings.chunk_tokens,
        static_cast<double>(run->plan.total_bytes()) / (1 << 20), static_cast<double>(run->allocated) / (1 << 20),
        static_cast<double>(run->resident) / (1 << 20), static_cast<double>(run->mapped) / (1 << 20));
  }
}

// Sanitizers keep shadow memory of their own, which is no part of a plan.
bool has_shadow_memory() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return true;
#else
  return false;
#endif
}

TEST(MemoryContract, HoldsForTinyModels) {
  if (has_shadow_memory()) GTEST_SKIP() << "built with a sanitizer";
  const std::string tiny = std::string(STILL_SOURCE_DIR) + "/testdata/tiny/";
  for (const char* name : {"llama/model.gguf", "llama_tied", "qwen2", "qwen2_tied/model.gguf"})
    expect_contract(tiny + name, 256, 256);
  expect_contract(tiny + "llama/model.gguf", 256, 256, tiny + "llama_tied/model.gguf");
}

TEST(MemoryContract, HoldsForRealModels) {
  if (has_shadow_memory()) GTEST_SKIP() << "built with a sanitizer";
  const char* folder = std::getenv("STILL_TEST_MODELS");
  if (folder == nullptr) GTEST_SKIP() << "STILL_TEST_MODELS is not set";
  expect_contract(std::string(folder) + "/smollm2.gguf", 8192, 2048);
  expect_contract(std::string(folder) + "/q05.gguf", 32768, 1024);
  expect_contract(std::string(folder) + "/q15.gguf", 32768, 512);
  expect_contract(std::string(folder) + "/q15.gguf", 32768, 512, std::string(folder) + "/q05.gguf");
}

// Random settings under random limits: what is said to fit does, in a process that cannot take more than the plan.
TEST(MemoryContract, NeverSaysThatItFitsWhereItDoesNot) {
  if (has_shadow_memory()) GTEST_SKIP() << "built with a sanitizer";
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const std::string tiny = std::string(STILL_SOURCE_DIR) + "/testdata/tiny/";
  const auto up_to = [&](std::int64_t n) { return 1 + static_cast<std::int64_t>(random() % n); };
  int n_fit = 0, n_refused = 0;
  for (int i = 0; i < 24; ++i) {
    const char* name = std::vector<const char*>{"llama/model.gguf", "qwen2_tied/model.gguf", "qwen2"}[random() % 3];
    const KvType kv = std::vector<KvType>{KvType::kF16, KvType::kF32, KvType::kInt8}[random() % 3];
    EngineSettings settings{.n_threads = static_cast<int>(up_to(3)),
                            .context = 8 + up_to(248),
                            .max_seqs = up_to(24),
                            .chunk_tokens = up_to(256),
                            .kv_type = kv,
                            .memory_limit = (std::int64_t{8} << 20) + up_to(std::int64_t{24} << 20)};
    const auto run = run_contract(tiny + name, settings, 256);
    if (!run) {
      EXPECT_EQ(run.error().code, Code::kResourceExhausted) << run.error().message;
      ++n_refused;
      continue;
    }
    EXPECT_TRUE(run->refusal.empty()) << name << " context " << settings.context << " x " << settings.max_seqs
                                      << " was said to fit, but: " << run->refusal;
    EXPECT_LE(run->plan.total_bytes(), settings.memory_limit);
    ++n_fit;
  }
  EXPECT_GT(n_fit, 0);
  EXPECT_GT(n_fit + n_refused, 20);
}

// What does not fit is refused with one byte less than the plan.
TEST(MemoryContract, RefusesOneByteLess) {
  const std::string path = std::string(STILL_SOURCE_DIR) + "/testdata/tiny/llama";
  EngineSettings settings{.n_threads = 1, .context = 256};
  const auto plan = run_contract(path, settings, 16);
  ASSERT_TRUE(plan) << plan.error().message;
  settings.memory_limit = plan->plan.total_bytes();
  EXPECT_TRUE(run_contract(path, settings, 16));
  settings.memory_limit -= 1;
  const auto refused = run_contract(path, settings, 16);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kResourceExhausted);
  EXPECT_FALSE(run_contract("/nowhere.gguf", settings, 16));
}

}  // namespace
}  // namespace still
