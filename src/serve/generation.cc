#include "serve/generation.h"

#include <atomic>
#include <mutex>
#include <random>

#include "serve/answer_shape.h"
#include "serve/answer_stream.h"
#include "serve/auth.h"
#include "serve/context.h"
#include "serve/generation_registry.h"
#include "serve/prompt.h"

namespace still {

namespace {

std::string new_generation_id() {
  static std::atomic<std::uint64_t> counter{0};
  thread_local std::random_device random;
  const std::uint64_t number = (static_cast<std::uint64_t>(random()) << 32 | random()) + counter++;
  return fmt::format("gen-{:016x}", number);
}

// One request to the pool, then n to the engine. Lives as long as the pool's callback, the engine's sinks or a handler
// hold it; the registry knows it until the sink's last call.
//
// Two locks: sink_mutex_ makes the sink's calls one at a time, and is held while the requests are submitted, so that no
// piece comes before on_begun; state_mutex_ guards what cancel() and stop_thinking() need, which a sink may call.
class EngineGeneration final : public Generation, public std::enable_shared_from_this<EngineGeneration> {
 public:
  EngineGeneration(ServeContext& context, GenerationInput input, std::shared_ptr<GenerationSink> sink)
      : context_(context), id_(new_generation_id()), input_(std::move(input)), sink_(std::move(sink)) {}

  std::string id() const override { return id_; }
  void begin();
  void cancel() override;
  void stop_thinking() override;
  GenerationState state() const override;

  // Of the engine, for one answer.
  void on_event(AnswerStream& stream, const Event& event, int answer);
  void on_step_end();

 private:
  enum class Phase : std::uint8_t { kWaiting, kRunning, kEnded };

  void on_model(Result<std::shared_ptr<ModelLease>> lease);
  Result<AnswerShape> compile(const ServedModel& served);
  void on_ready(Result<std::shared_ptr<ModelLease>> lease, Result<AnswerShape> shape);
  Status submit(const ServedModel& served, const AnswerShape& shape);
  void end(const Error* failure);

  ServeContext& context_;
  const std::string id_;
  GenerationInput input_;

  std::mutex sink_mutex_;
  std::shared_ptr<GenerationSink> sink_;  // null after its last call
  std::shared_ptr<ModelLease> lease_;
  int n_open_ = 0;

  mutable std::mutex state_mutex_;
  Phase phase_ = Phase::kWaiting;
  bool is_cancelled_ = false, is_thinking_stopped_ = false;
  std::shared_ptr<void> ticket_;
  Engine* engine_ = nullptr;  // while running
  std::vector<RequestId> requests_;
  ProgressEvent progress_;  // of the first answer
  std::atomic<std::int64_t> n_tokens_{0};
};

class AnswerEvents final : public EventSink {
 public:
  AnswerEvents(std::shared_ptr<EngineGeneration> generation, AnswerStreamOptions options, GenerationSink& sink)
      : generation_(std::move(generation)), answer_(options.answer), stream_(std::move(options), sink) {}
  void on_event(const Event& event) override { generation_->on_event(stream_, event, answer_); }
  void on_step_end() override { generation_->on_step_end(); }

 private:
  std::shared_ptr<EngineGeneration> generation_;
  int answer_;
  AnswerStream stream_;
};

void EngineGeneration::begin() {
  context_.generations->add(shared_from_this());
  const std::lock_guard lock(state_mutex_);
  ticket_ = context_.pool->acquire(
      input_.model,
      [self = shared_from_this()](Result<std::shared_ptr<ModelLease>> lease) { self->on_model(std::move(lease)); });
}

void EngineGeneration::on_model(Result<std::shared_ptr<ModelLease>> lease) {
  // What cannot generate is refused with its prompt.
  if (!lease || (*lease)->model().engine == nullptr) return on_ready(std::move(lease), AnswerShape{});
  if (!needs_grammar(input_)) {
    Result<AnswerShape> shape = prepare_answer(context_.grammars, input_, (*lease)->model());
    return on_ready(std::move(lease), std::move(shape));
  }
  // Not on a thread that others wait for. Until it is compiled the request still waits, and can be cancelled.
  const bool is_posted = context_.grammars.post([self = shared_from_this(), held = *lease] {
    Result<AnswerShape> shape = self->compile(held->model());
    self->on_ready(held, std::move(shape));
  });
  if (is_posted) return;
  on_ready(error(Code::kUnavailable, "server busy, please try again.  maximum pending requests exceeded"),
           AnswerShape{});
}

Result<AnswerShape> EngineGeneration::compile(const ServedModel& served) {
  {
    const std::lock_guard lock(state_mutex_);
    if (phase_ != Phase::kWaiting) return AnswerShape{};  // nobody waits for it any more
  }
  return prepare_answer(context_.grammars, input_, served);
}

void EngineGeneration::on_ready(Result<std::shared_ptr<ModelLease>> lease, Result<AnswerShape> shape) {
  const std::lock_guard sink_lock(sink_mutex_);
  {
    const std::lock_guard lock(state_mutex_);
    if (phase_ != Phase::kWaiting) return;
    phase_ = Phase::kRunning;
  }
  if (!lease) {
    // A model that can never fit is not a prompt that is too long.
    Error failure = std::move(lease).error();
    if (failure.code == Code::kResourceExhausted) failure.code = Code::kInternal;
    end(&failure);
    return;
  }
  lease_ = std::move(*lease);
  if (!shape) return end(&shape.error());
  if (Status submitted = submit(lease_->model(), *shape); !submitted) end(&submitted.error());
}

Status EngineGeneration::submit(const ServedModel& served, const AnswerShape& shape) {
  STILL_TRY(const Request prompt, prepare_prompt(input_, served));
  // More answers than ever fit must not be sent to try again.
  const std::int64_t capacity = served.engine->options().max_queue + served.engine->plan().settings.max_seqs;
  if (input_.n > capacity)
    return error(Code::kInvalidArgument, "{} answers were asked for: this server computes and queues {} at most",
                 input_.n, capacity);
  GenerationBegun begun;
  begun.id = id_;
  begun.model = &served;
  begun.load_duration = lease_->load_duration();
  begun.n_prompt = static_cast<std::int64_t>(prompt.prompt.size());
  begun.prompt_ids = prompt.prompt;
  begun.warnings = prompt.warnings;

  std::vector<RequestId> requests;
  Status status = ok();
  for (int answer = 0; answer < input_.n && status; ++answer) {
    Request request = prompt;
    if (request.sampling.seed) request.sampling.seed = *request.sampling.seed + static_cast<std::uint64_t>(answer);
    AnswerStreamOptions options{.answer = answer,
                                .reasoning_format = input_.reasoning_format,
                                .wants_tokens = input_.wants_tokens || input_.n_logprobs >= 0};
    request.constraint = shape.make_constraint();
    options.reader = shape.make_reader();
    Result<RequestId> submitted = served.engine->submit(
        std::move(request), std::make_shared<AnswerEvents>(shared_from_this(), std::move(options), *sink_));
    if (submitted) {
      requests.push_back(*submitted);
    } else {
      Error failure = std::move(submitted).error();
      // The prompt was checked: only the queue can be exhausted.
      if (failure.code == Code::kResourceExhausted)
        failure = {Code::kUnavailable, "server busy, please try again.  maximum pending requests exceeded"};
      status = tl::unexpected(std::move(failure));
    }
  }
  bool is_cancelled = false, is_thinking_stopped = false;
  {
    const std::lock_guard lock(state_mutex_);
    engine_ = served.engine.get();
    requests_ = requests;
    is_cancelled = is_cancelled_;
    is_thinking_stopped = is_thinking_stopped_;
  }
  for (const RequestId request : requests) {
    if (!status || is_cancelled) served.engine->cancel(request);
    if (is_thinking_stopped) served.engine->stop_thinking(request);
  }
  STILL_TRY_STATUS(status);
  n_open_ = input_.n;
  if (input_.facts) {
    const std::lock_guard lock(input_.facts->mutex);
    input_.facts->model = served.name;
    if (input_.facts->generation.empty()) input_.facts->generation = id_;
    input_.facts->n_prompt += begun.n_prompt;
  }
  sink_->on_begun(begun);
  return ok();
}

void EngineGeneration::on_event(AnswerStream& stream, const Event& event, int answer) {
  const std::lock_guard lock(sink_mutex_);
  if (sink_ == nullptr) return;
  if (const auto* token = std::get_if<TokenEvent>(&event)) {
    n_tokens_.fetch_add(1, std::memory_order_relaxed);
    stream.on_token(*token);
  } else if (const auto* progress = std::get_if<ProgressEvent>(&event)) {
    if (answer == 0) {
      const std::lock_guard state_lock(state_mutex_);
      progress_ = *progress;
    }
    if (input_.wants_progress) sink_->on_progress(*progress, answer);
  } else if (const auto* prompt_token = std::get_if<PromptTokenEvent>(&event)) {
    sink_->on_prompt_token(*prompt_token, answer);
  } else if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
    if (input_.facts) {
      const std::lock_guard facts_lock(input_.facts->mutex);
      input_.facts->n_completion += finished->usage.n_completion;
    }
    if (context_.auth != nullptr)
      context_.auth->count_tokens(input_.user, finished->usage.n_prompt + finished->usage.n_completion);
    if (finished->reason == FinishReason::kError) {
      end(&finished->error);
      return;
    }
    stream.on_finished(*finished);
    if (--n_open_ == 0) end(nullptr);
  }
}

void EngineGeneration::on_step_end() {
  const std::lock_guard lock(sink_mutex_);
  if (sink_ != nullptr) sink_->on_step_end();
}

// The sink's last call; what still runs is cancelled. Under sink_mutex_.
void EngineGeneration::end(const Error* failure) {
  std::shared_ptr<void> ticket;
  {
    const std::lock_guard lock(state_mutex_);
    phase_ = Phase::kEnded;
    if (failure != nullptr && engine_ != nullptr)
      for (const RequestId request : requests_) engine_->cancel(request);
    engine_ = nullptr;
    ticket = std::move(ticket_);
  }
  const std::shared_ptr<GenerationSink> sink = std::move(sink_);
  sink_ = nullptr;
  context_.generations->remove(id_);
  if (failure != nullptr)
    sink->on_failed(*failure);
  else
    sink->on_end();
  lease_ = nullptr;
}

void EngineGeneration::cancel() {
  std::shared_ptr<void> ticket;
  {
    const std::lock_guard lock(state_mutex_);
    if (is_cancelled_ || phase_ == Phase::kEnded) return;
    is_cancelled_ = true;
    if (phase_ == Phase::kRunning) {
      if (engine_ != nullptr)
        for (const RequestId request : requests_) engine_->cancel(request);
      return;
    }
    phase_ = Phase::kEnded;
    ticket = std::move(ticket_);
  }
  // Nothing was begun, and nobody else calls the sink any more.
  ticket.reset();
  const std::lock_guard lock(sink_mutex_);
  const Error failure{Code::kCancelled, "request canceled"};
  end(&failure);
}

void EngineGeneration::stop_thinking() {
  const std::lock_guard lock(state_mutex_);
  is_thinking_stopped_ = true;
  if (engine_ == nullptr) return;
  for (const RequestId request : requests_) engine_->stop_thinking(request);
}

GenerationState EngineGeneration::state() const {
  GenerationState state{.model = input_.model.name, .user = input_.user};
  state.n_completion = n_tokens_.load(std::memory_order_relaxed);
  const std::lock_guard lock(state_mutex_);
  state.queue_position = progress_.queue_position;
  state.n_prompt = progress_.n_prompt;
  state.n_prefilled = progress_.n_prefilled;
  if (state.n_completion > 0) {
    state.phase = GenerationState::Phase::kRunning;
    state.n_prefilled = state.n_prompt;
    state.queue_position = 0;
  } else if (engine_ != nullptr) {
    const bool is_reading = progress_.n_prompt > 0 && !progress_.is_waiting;
    state.phase = is_reading ? GenerationState::Phase::kPrefill : GenerationState::Phase::kWaiting;
  }
  return state;
}

}  // namespace

void set_asker(GenerationInput& input, const HttpRequest& request) {
  // Requests of different keys, or of different machines, take turns.
  input.user = request.key.empty() ? request.peer.substr(0, request.peer.rfind(':')) : request.key;
  input.facts = request.facts;
}

std::shared_ptr<Generation> start_generation(ServeContext& context, GenerationInput input,
                                             std::shared_ptr<GenerationSink> sink) {
  auto generation = std::make_shared<EngineGeneration>(context, std::move(input), std::move(sink));
  generation->begin();
  return generation;
}

}  // namespace still
