// Engine: requests in, events out. One thread owns scheduler, cache and runner and calls step() again and again: take
// new requests and cancellations, choose sequences, one forward pass, sample, tell. Either start() gives it its own
// thread, or the caller drives step() (trainer, benchmarks, tests).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "base/result.h"
#include "engine/event.h"
#include "engine/request.h"
#include "engine/stats.h"
#include "engine/step_time.h"
#include "models/model.h"
#include "plan/memory.h"

namespace still {

class ForwardPass;  // engine/model_runner.h

// What a plan must know of a draft model.
std::shared_ptr<const DraftShape> draft_shape(const Model& draft);

enum class Speculation : std::uint8_t { kOff, kLookup };

struct EngineOptions {
  EngineSettings settings;
  bool prefix_cache = true;
  Speculation speculation = Speculation::kOff;
  // A smaller model of the same vocabulary, which drafts where lookup (if it is on) finds nothing. null: none.
  std::shared_ptr<const Model> draft;
  std::int64_t max_draft = 7;    // tokens drafted for a sequence in a step: with its last, rows of one fast kernel call
  std::int64_t max_queue = 256;  // requests that wait; the next is refused with kResourceExhausted "queue full"
  StepLimits step;               // how long a step with prefill may take
  // Called around the sinks' on_step_end() of a step, on the thread that steps: with true before the first, with false
  // after the last. Who sends what sinks say to many wakes its own thread once so. May be empty.
  std::function<void(bool begins)> around_step_ends;
  // For tests: other answers must not come of these.
  bool screens_head = true;               // on the CPU: where only the largest logit is wanted (ops/screened_head.h)
  bool run_ahead = true;                  // on a GPU: steps overlap (core.h)
  bool preempt_every_step = false;        // each sequence that got a token is preempted
  const CpuKernels* kernels = nullptr;    // null: default_cpu_kernels()
  const CpuTopology* topology = nullptr;  // where threads run; null: this machine's
};

class Engine {
 public:
  // Plans the memory, allocates it, and is then ready. kResourceExhausted with the nearest setting that fits.
  static Result<std::unique_ptr<Engine>> create(std::shared_ptr<const Model> model, const EngineOptions& options);
  ~Engine();  // stop(false)
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // These may be called from any thread.
  // Checks the request and queues it; the sink lives until its FinishedEvent was given out.
  Result<RequestId> submit(Request request, std::shared_ptr<EventSink> sink);
  // Ends at the next step with reason kCancelled; its KV is free then. Unknown or finished ids are ignored.
  void cancel(RequestId id);
  // Closes the thinking block at the next token, if it is open or could open; the answer follows.
  void stop_thinking(RequestId id);
  EngineStats stats() const;

  // One step; true while work remains. Only where start() was not called, from one thread.
  bool step();
  // The engine's own thread, until stop().
  void start();
  // drain: waits for all requests, new ones are refused (kUnavailable); else the running ones end with kCancelled.
  void stop(bool drain);
  bool is_started() const;

  const MemoryPlan& plan() const;
  const Model& model() const;
  const EngineOptions& options() const;
  std::int64_t context() const { return plan().settings.context; }

 private:
  struct State;
  explicit Engine(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace still
