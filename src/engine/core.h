// EngineCore: the engine without a model: takes a ForwardPass and a Vocab, so that everything but the arithmetic is
// tested with scripted tokens. Engine (engine.h) is this with a Model.
//
// step() is: take what came in; end what was cancelled; schedule; one forward pass; sample; give out events.
//
// On a device that draws tokens itself steps overlap: step() launches the next step, then handles the tokens of the one
// before, so that the device does not wait for the host. The next step is made before those tokens are known: each
// stands in its sequence as a number below 0, which the device replaces. What the host then finds undoes the rest: a
// sequence that has ended gives its next token to nobody, and one whose rules have changed (a thinking tag, a budget
// that is used up) draws again. Masks, penalties, log-probabilities and drafts need the host between two steps: a step
// with one of them is finished before the next is made.
// Threads: submit, cancel, stop_thinking and stats from any; everything else from the thread that steps.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <vector>

#include "engine/block_pool.h"
#include "engine/model_runner.h"
#include "engine/prefix_cache.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/stats.h"
#include "engine/vocab.h"

namespace still {

struct CoreOptions {
  SchedulerOptions scheduler;
  std::int64_t n_blocks = 0;  // >= context / block_size
  std::int64_t context = 0;
  bool prefix_cache = true;
  std::int64_t max_queue = 256;
  bool preempt_every_step = false;
  bool run_ahead = true;                // on a device: launch a step before the last one's tokens are handled
  const CpuKernels* kernels = nullptr;  // the sampler's
  std::uint64_t seed = 0;               // of the seeds that requests do not bring
  std::function<void(bool begins)> around_step_ends;  // EngineOptions
};

class EngineCore {
 public:
  // drafter may be null.
  EngineCore(const CoreOptions& options, Vocab vocab, std::unique_ptr<ForwardPass> forward,
             std::unique_ptr<Drafter> drafter);
  ~EngineCore();

  Result<RequestId> submit(Request request, std::shared_ptr<EventSink> sink);
  void cancel(RequestId id);
  void stop_thinking(RequestId id);
  EngineStats stats() const;

  bool step();
  void start();
  void stop(bool drain);
  bool is_started() const { return thread_.joinable(); }

  const PrefixCache& cache() const { return cache_; }
  const BlockPool& pool() const { return pool_; }

 private:
  struct StepCounts {
    std::int64_t n_decode = 0, n_drafted = 0, n_prefill = 0;  // tokens
  };
  struct Command {
    RequestId id = 0;
    bool is_cancel = false;  // else: stop thinking
  };
  // What one slot's sampling works with; one per slot, reused.
  struct SampleTask {
    std::size_t slot_idx = 0;
    Sample sample;
    std::vector<std::uint32_t> mask;
    bool has_mask = false;
    bool is_done = false;  // by the device
  };

  // A step that is under way on a device.
  struct LaunchedSlot {
    Sequence* sequence = nullptr;  // null: nothing more is wanted of it
    std::int64_t n_computed = 0;   // when it was scheduled
    std::int64_t draw_idx = -1;    // of the launch's draws; -1: none
  };
  struct LaunchedStep {
    bool is_open = false;
    std::vector<LaunchedSlot> slots;
    std::vector<CudaSampleRow> draws;
    StepCounts counts;
    TimePoint launched;
  };

  Status run_forward(bool& is_abandoned);
  BestOnly list_best();
  bool may_go_on(const Sequence& sequence, std::int64_t row_idx) const;
  void take_incoming();
  void begin(Sequence& sequence);
  void tell_positions();
  void step_on_host();
  void step_on_device();
  // What the device's sampler is asked for; nothing where the host must sample.
  std::optional<CudaSampleRow> draw_row(const Sequence& sequence, std::int64_t row) const;
  bool list_draws(LaunchedStep& step);  // true: the step needs nothing of the host
  void drop_stale(LaunchedStep& step);
  void go_ahead(LaunchedStep& step);
  void finish_launched();
  void advance_all(const LaunchedStep* drawn, std::span<const TokenId> ids);
  void observe(const StepCounts& counts, TimePoint since);
  void after_forward(std::size_t slot_idx, const StepSlot& slot, std::int64_t n_prompt_rows);
  void count_computed(Sequence& sequence, std::int64_t n_tokens);
  void tell_prompt_tokens(Sequence& sequence, std::size_t slot_idx, std::int64_t first, std::int64_t n);
  void sample_all();
  void sample_row(Sampler& sampler, const Sequence& sequence, std::span<float> logits, SampleTask& task);
  void advance(SampleTask& task, const StepSlot& slot, std::int64_t first_row);
  // Appends a token and tells of it; true where the sequence has finished.
  bool accept(Sequence& sequence, TokenId id, const Sample* sample);
  bool accept_forced(Sequence& sequence, std::span<const TokenId> ids);
  void fill_logprobs(const Sequence& sequence, const Sample& sample, std::optional<Logprobs>& logprobs) const;
  void finish(Sequence& sequence, FinishReason reason);
  void fail(Sequence& sequence, Error error);
  void finish_all(FinishReason reason);
  void send(Sequence& sequence, const Event& event);
  void end_step();
  void publish_counters();
  bool has_work() const;
  void run_thread();

  CoreOptions options_;
  Vocab vocab_;
  std::unique_ptr<ForwardPass> forward_;
  std::unique_ptr<Drafter> drafter_;
  BlockPool pool_;
  PrefixCache cache_;
  Scheduler scheduler_;
  ModelRunner runner_;
  std::vector<Sampler> samplers_;  // one per thread

  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  std::vector<Sequence*> admitted_, finished_, touched_;
  std::vector<SampleTask> tasks_;
  std::size_t n_tasks_ = 0;
  Sample prompt_sample_, drawn_sample_;
  LaunchedStep launched_, next_;  // under way; being made
  TimePoint last_finished_;       // when the last step's tokens were there
  std::vector<StepSlot> slots_;   // of this step, before sequences move on
  std::vector<std::int64_t> n_prompt_rows_;
  std::vector<std::int32_t> banned_begin_, banned_;  // of list_best()
  BestOnly best_;                                    // of the last forward pass on the host
  StepCounts step_counts_;
  Event token_event_, prompt_token_event_, progress_event_;  // reused: their strings keep their memory
  TimePoint now_;
  bool is_queue_changed_ = false;
  EngineStats counters_;

  // Shared with other threads.
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::unique_ptr<Sequence>> incoming_, taken_;
  std::vector<Command> commands_, taken_commands_;
  EngineStats published_;
  std::int64_t n_open_ = 0;  // submitted and not finished
  RequestId next_id_ = 1;
  bool is_stopping_ = false, is_draining_ = false;
  std::vector<RequestId> in_forward_;      // of the forward pass that runs, less those cancelled meanwhile
  std::atomic<bool> is_abandoned_{false};  // none of them is left
  std::thread thread_;
};

}  // namespace still
