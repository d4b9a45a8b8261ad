// Ranks of a forward pass get the same batches in the same order, each on one thread of its own; what one of them fails
// at ends all later steps.
#include "engine/parallel_forward.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

namespace still {
namespace {

// Draws the first id of each batch; `lost_at`: the launch that fails.
class RecordingRank : public ForwardPass {
 public:
  RecordingRank(std::vector<TokenId>& seen, std::set<std::thread::id>& threads, std::int64_t lost_at)
      : seen_(seen), threads_(threads), lost_at_(lost_at) {}
  Result<float*> run(const RaggedBatch&) override { return error(Code::kInternal, "not on the host"); }
  bool is_on_device() const override { return true; }
  Status launch(const RaggedBatch& batch, std::span<const CudaSampleRow> draws) override {
    threads_.insert(std::this_thread::get_id());
    if (static_cast<std::int64_t>(seen_.size()) == lost_at_) return error(Code::kUnavailable, "GPU 1 is gone");
    EXPECT_EQ(draws.size(), 1u);
    seen_.push_back(batch.ids[0]);
    return ok();
  }
  Result<std::span<const TokenId>> collect() override {
    EXPECT_LT(n_collected_, seen_.size());
    return std::span<const TokenId>(&seen_[n_collected_++], 1);
  }

 private:
  std::vector<TokenId>& seen_;
  std::set<std::thread::id>& threads_;
  std::int64_t lost_at_;
  std::size_t n_collected_ = 0;
};

struct Ranks {
  std::vector<TokenId> seen[3];
  std::set<std::thread::id> threads[3];
  std::unique_ptr<ForwardPass> forward;

  explicit Ranks(std::int64_t lost_at = -1) {
    std::vector<std::unique_ptr<ForwardPass>> ranks;
    for (int i = 0; i < 3; ++i)
      ranks.push_back(std::make_unique<RecordingRank>(seen[i], threads[i], i == 1 ? lost_at : -1));
    forward = make_parallel_forward(std::move(ranks), nullptr);
  }
  Status launch(TokenId id) {
    const std::int32_t zero = 0, one = 1, starts[2] = {0, 1};
    const CudaSampleRow draw;
    return forward->launch({.ids = {&id, 1},
                            .positions = {&zero, 1},
                            .q_start = starts,
                            .kv_len = {&one, 1},
                            .block_tables = {&zero, 1},
                            .max_blocks = 1,
                            .logit_rows = {&zero, 1}},
                           {&draw, 1});
  }
};

TEST(ParallelForward, AllRanksLaunchEachStep) {
  Ranks ranks;
  std::vector<TokenId> want;
  for (TokenId id = 0; id < 500; ++id) {
    if (id == 250) std::this_thread::sleep_for(std::chrono::milliseconds(60));  // they are asleep by then
    ASSERT_TRUE(ranks.launch(id));
    want.push_back(id);
    for (const auto& seen : ranks.seen) ASSERT_EQ(seen, want);  // launch() returns when all have it
    if (id == 0) continue;                                      // two are under way
    const auto drawn = ranks.forward->collect();
    ASSERT_TRUE(drawn);
    EXPECT_EQ((*drawn)[0], id - 1);
  }
  for (const auto& threads : ranks.threads) EXPECT_EQ(threads.size(), 1u);
  EXPECT_EQ(*ranks.threads[0].begin(), std::this_thread::get_id());
  EXPECT_NE(ranks.threads[1], ranks.threads[2]);
}

TEST(ParallelForward, ALostRankEndsAllLaterSteps) {
  Ranks ranks(2);
  EXPECT_TRUE(ranks.launch(1));
  EXPECT_TRUE(ranks.launch(2));
  for (int i = 0; i < 3; ++i) {
    const Status lost = ranks.launch(3);
    ASSERT_FALSE(lost);
    EXPECT_EQ(lost.error().message, "GPU 1 is gone");
    EXPECT_EQ(ranks.forward->collect().error().message, "GPU 1 is gone");
  }
  EXPECT_EQ(ranks.seen[2].size(), 3u);  // nobody was asked again
}

}  // namespace
}  // namespace still
