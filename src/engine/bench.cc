#include "engine/bench.h"

#include <algorithm>
#include <chrono>

#include "base/rng.h"
#include "kernels/cuda/cuda_kernels.h"
#include "tensor/cuda.h"

namespace still {

namespace {

class CountingSink : public EventSink {
 public:
  void on_event(const Event& event) override {
    if (std::holds_alternative<TokenEvent>(event)) ++n_tokens;
    if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
      is_finished = true;
      error = finished->error;
      reason = finished->reason;
    }
  }
  std::int64_t n_tokens = 0;
  bool is_finished = false;
  FinishReason reason = FinishReason::kStop;
  Error error;
};

Request random_request(const Engine& engine, std::int64_t n_prompt, std::int64_t n_gen, std::uint64_t seed) {
  Request request;
  Rng rng(seed);
  const std::int64_t vocab_size = std::min(engine.model().config().vocab_size, engine.model().tokenizer().vocab_size());
  for (std::int64_t i = 0; i < n_prompt; ++i) request.prompt.push_back(static_cast<TokenId>(rng.below(vocab_size)));
  request.max_tokens = n_gen;
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  request.thinking.mode = ThinkingMode::kUntracked;
  request.keep_prefix = false;
  return request;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Status check_fits(const Engine& engine, std::int64_t n_tokens) {
  if (n_tokens <= engine.context()) return ok();
  return error(Code::kInvalidArgument, "{} tokens: the engine's context holds {}", n_tokens, engine.context());
}

}  // namespace

double BenchRuns::median() const {
  if (tokens_per_s.empty()) return 0;
  std::vector<double> sorted = tokens_per_s;
  std::sort(sorted.begin(), sorted.end());
  const std::size_t middle = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
double BenchRuns::min() const {
  return tokens_per_s.empty() ? 0 : *std::min_element(tokens_per_s.begin(), tokens_per_s.end());
}
double BenchRuns::max() const {
  return tokens_per_s.empty() ? 0 : *std::max_element(tokens_per_s.begin(), tokens_per_s.end());
}

Result<BenchRuns> bench_prefill(Engine& engine, std::int64_t n_prompt, int n_repeats) {
  if (n_prompt < 1) return error(Code::kInvalidArgument, "prefill of {} tokens: expected 1 or more", n_prompt);
  STILL_TRY_STATUS(check_fits(engine, n_prompt + 1));
  BenchRuns runs;
  for (int repeat = -1; repeat < n_repeats; ++repeat) {
    const auto sink = std::make_shared<CountingSink>();
    // Other ids each time: a prefix cache has nothing to offer.
    STILL_TRY(const RequestId id,
              engine.submit(random_request(engine, n_prompt, 1, 1 + static_cast<std::uint64_t>(repeat + 1)), sink));
    (void)id;
    const auto start = std::chrono::steady_clock::now();
    while (!sink->is_finished) engine.step();
    const double seconds = seconds_since(start);
    if (sink->reason == FinishReason::kError) return tl::unexpected(sink->error);
    if (repeat >= 0) runs.tokens_per_s.push_back(static_cast<double>(n_prompt) / seconds);
  }
  return runs;
}

Result<BenchRuns> bench_decode(Engine& engine, std::int64_t n_gen, std::int64_t depth, std::int64_t n_seqs,
                               int n_repeats, bool is_sampled) {
  if (n_gen < 1) return error(Code::kInvalidArgument, "decode of {} tokens: expected 1 or more", n_gen);
  if (n_seqs < 1 || n_seqs > engine.plan().settings.max_seqs)
    return error(Code::kInvalidArgument, "{} sequences: the engine decodes 1 to {} together", n_seqs,
                 engine.plan().settings.max_seqs);
  const std::int64_t n_prompt = std::max<std::int64_t>(1, depth);
  STILL_TRY_STATUS(check_fits(engine, n_prompt + n_gen + 1));
  if (n_seqs * (n_prompt + n_gen + 1 + engine.plan().settings.block_size) >
      engine.plan().n_blocks * engine.plan().settings.block_size)
    return error(Code::kResourceExhausted, "{} sequences of {} tokens: the KV cache holds {} tokens", n_seqs,
                 n_prompt + n_gen + 1, engine.plan().n_blocks * engine.plan().settings.block_size);
  BenchRuns runs;
  for (int repeat = -1; repeat < n_repeats; ++repeat) {
    std::vector<std::shared_ptr<CountingSink>> sinks;
    std::vector<RequestId> ids;
    const auto all_have = [&](std::int64_t n) {
      return std::all_of(sinks.begin(), sinks.end(),
                         [&](const auto& sink) { return sink->is_finished || sink->n_tokens >= n; });
    };
    // Those that finish their prompt first would decode meanwhile; they get room for it, and all stop together.
    const std::int64_t room = engine.context() - n_prompt;
    for (std::int64_t i = 0; i < n_seqs; ++i) {
      sinks.push_back(std::make_shared<CountingSink>());
      Request request = random_request(engine, n_prompt, room, 100 + static_cast<std::uint64_t>(i));
      if (is_sampled) {
        request.sampling.temperature = 0.8f;
        request.sampling.top_k = 50;
        request.sampling.top_p = 0.95f;
      }
      STILL_TRY(ids.emplace_back(), engine.submit(std::move(request), sinks.back()));
    }
    while (!all_have(1)) engine.step();
    std::int64_t n_before = 0, n_after = 0;
    for (const auto& sink : sinks) n_before += sink->n_tokens;
    const auto start = std::chrono::steady_clock::now();
    // One step is one token for each.
    for (std::int64_t i = 0; i < n_gen; ++i) engine.step();
    const double seconds = seconds_since(start);
    for (const auto& sink : sinks) n_after += sink->n_tokens;
    for (const RequestId id : ids) engine.cancel(id);
    while (engine.step()) {
    }
    for (const auto& sink : sinks)
      if (sink->reason == FinishReason::kError) return tl::unexpected(sink->error);
    if (repeat >= 0) runs.tokens_per_s.push_back(static_cast<double>(n_after - n_before) / seconds);
  }
  return runs;
}

Result<double> measure_cuda_read_bandwidth() {
  constexpr std::int64_t kBytes = std::int64_t{4} << 30;
  if (cuda_kernels() == nullptr) return error(Code::kUnsupported, "this program was built without CUDA");
  STILL_TRY(CudaStream stream, CudaStream::create());
  STILL_TRY(CudaTimer timer, CudaTimer::create());
  STILL_TRY(const DeviceBuffer memory, DeviceBuffer::create(kBytes + 256, "read test"));
  cuda_kernels()->fill_f32(stream.handle(), reinterpret_cast<float*>(memory.data()), kBytes / 4, 1, 0, 1);
  double best = 0;
  for (int i = 0; i < 6; ++i) {
    timer.start(stream);
    cuda_kernels()->read(stream.handle(), memory.data(), kBytes,
                         reinterpret_cast<std::uint32_t*>(memory.data() + kBytes));
    timer.stop(stream);
    best = std::max(best, static_cast<double>(kBytes) / (timer.milliseconds() * 1e-3));
  }
  STILL_TRY_STATUS(stream.wait("read test"));
  return best;
}

}  // namespace still
