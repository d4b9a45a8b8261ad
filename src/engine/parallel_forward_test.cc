// Ranks of a forward pass get the same batches in the same order, each on one thread of its own; what one of them fails
// at ends all later steps.
#include "engine/parallel_forward.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

namespace still {
namespace {

class RecordingRank : public ForwardPass {
 public:
  RecordingRank(std::vector<TokenId>& seen, std::set<std::thread::id>& threads, std::int64_t fail_at)
      : seen_(seen), threads_(threads), fail_at_(fail_at) {}
  Result<float*> run(const RaggedBatch& batch) override {
    threads_.insert(std::this_thread::get_id());
    if (static_cast<std::int64_t>(seen_.size()) == fail_at_) return error(Code::kUnavailable, "GPU 1 is gone");
    seen_.push_back(batch.ids[0]);
    logits_ = static_cast<float>(batch.ids[0]);
    return &logits_;
  }

 private:
  std::vector<TokenId>& seen_;
  std::set<std::thread::id>& threads_;
  std::int64_t fail_at_;
  float logits_ = 0;
};

struct Ranks {
  std::vector<TokenId> seen[3];
  std::set<std::thread::id> threads[3];
  std::unique_ptr<ForwardPass> forward;

  explicit Ranks(std::int64_t fail_at = -1) {
    std::vector<std::unique_ptr<ForwardPass>> ranks;
    for (int i = 0; i < 3; ++i)
      ranks.push_back(std::make_unique<RecordingRank>(seen[i], threads[i], i == 1 ? fail_at : -1));
    forward = make_parallel_forward(std::move(ranks), nullptr);
  }
  Result<float*> run(TokenId id) {
    const std::int32_t zero = 0, one = 1, starts[2] = {0, 1};
    return forward->run({.ids = {&id, 1},
                         .positions = {&zero, 1},
                         .q_start = starts,
                         .kv_len = {&one, 1},
                         .block_tables = {&zero, 1},
                         .max_blocks = 1,
                         .logit_rows = {&zero, 1}});
  }
};

TEST(ParallelForward, AllRanksRunEachStep) {
  Ranks ranks;
  std::vector<TokenId> want;
  for (TokenId id = 0; id < 500; ++id) {
    if (id == 250) std::this_thread::sleep_for(std::chrono::milliseconds(60));  // they are asleep by then
    const Result<float*> logits = ranks.run(id);
    ASSERT_TRUE(logits);
    EXPECT_EQ(**logits, static_cast<float>(id));
    want.push_back(id);
    for (const auto& seen : ranks.seen) ASSERT_EQ(seen, want);  // run() returns when all have it
  }
  for (const auto& threads : ranks.threads) EXPECT_EQ(threads.size(), 1u);
  EXPECT_EQ(*ranks.threads[0].begin(), std::this_thread::get_id());
  EXPECT_NE(ranks.threads[1], ranks.threads[2]);
}

TEST(ParallelForward, ALostRankEndsAllLaterSteps) {
  Ranks ranks(2);
  EXPECT_TRUE(ranks.run(1));
  EXPECT_TRUE(ranks.run(2));
  for (int i = 0; i < 3; ++i) {
    const Result<float*> lost = ranks.run(3);
    ASSERT_FALSE(lost);
    EXPECT_EQ(lost.error().message, "GPU 1 is gone");
  }
  EXPECT_EQ(ranks.seen[2].size(), 3u);  // nobody was asked again
}

}  // namespace
}  // namespace still
