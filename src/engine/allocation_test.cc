// No step allocates after warm-up: operator new of this test program counts.
#include <gtest/gtest.h>

#include <cstdlib>
#include <new>

#include "engine/fake_forward.h"

// A sanitizer replaces the same operators with its own, so these tests are of the release build alone.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

namespace {
thread_local bool is_counting = false;
thread_local long n_allocations = 0;
}  // namespace

// g++ sees malloc and free inlined into new and delete, and takes them for a mismatch.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
void* operator new(std::size_t size) {
  if (is_counting) ++n_allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace still {
namespace {

class SilentSink : public EventSink {
 public:
  void on_event(const Event& event) override { n_tokens += std::holds_alternative<TokenEvent>(event) ? 1 : 0; }
  std::int64_t n_tokens = 0;
};

void run(std::function<void(Request&)> change, bool speculate) {
  testing::FakeEngine engine(
      {.n_blocks = 4096, .context = 2048, .max_seqs = 8, .chunk_tokens = 32, .max_logit_rows = 32}, {},
      speculate ? make_lookup_drafter(1, 3) : nullptr);
  std::vector<std::shared_ptr<SilentSink>> sinks;
  for (int i = 0; i < 8; ++i) {
    Request request;
    request.prompt.assign(static_cast<std::size_t>(100 * (i + 1)), static_cast<TokenId>(10 + i));
    request.sampling.seed = static_cast<std::uint64_t>(i);
    request.sampling.ignore_eos = true;
    change(request);
    sinks.push_back(std::make_shared<SilentSink>());
    ASSERT_TRUE(engine.core->submit(std::move(request), sinks.back()));
  }
  // Warm-up: all have begun, some are still in their prefill.
  for (int i = 0; i < 60; ++i) engine.core->step();
  n_allocations = 0;
  is_counting = true;
  for (int i = 0; i < 200; ++i) engine.core->step();
  is_counting = false;
  EXPECT_EQ(n_allocations, 0);
  std::int64_t n_tokens = 0;
  for (const auto& sink : sinks) n_tokens += sink->n_tokens;
  EXPECT_GT(n_tokens, 800);
}

TEST(Allocation, NoneInASteadyStep) {
  run([](Request& request) { request.sampling.temperature = 0; }, false);
}
TEST(Allocation, NoneWithFiltersPenaltiesLogprobsAndStops) {
  run(
      [](Request& request) {
        request.sampling.temperature = 0.8f;
        request.sampling.top_p = 0.95f;
        request.sampling.repetition_penalty = 1.1f;
        request.n_logprobs = 5;
        request.stop = {"this is a long stop string that never comes"};
      },
      false);
}
TEST(Allocation, NoneWithSpeculation) {
  run([](Request& request) { request.sampling.temperature = 0; }, true);
}

}  // namespace
}  // namespace still

#endif
