#include "engine/core.h"

#include <algorithm>
#include <chrono>

#include "base/check.h"
#include "base/rng.h"

namespace still {

namespace {
SchedulerOptions scheduler_options(SchedulerOptions options, const ForwardPass& forward) {
  options.copies_tails = forward.can_copy_blocks();
  return options;
}
double seconds(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}
}  // namespace

EngineCore::EngineCore(const CoreOptions& options, Vocab vocab, std::unique_ptr<ForwardPass> forward,
                       std::unique_ptr<Drafter> drafter)
    : options_(options),
      vocab_(std::move(vocab)),
      forward_(std::move(forward)),
      drafter_(std::move(drafter)),
      pool_(options.n_blocks),
      cache_(pool_, options.scheduler.block_size, options.prefix_cache),
      scheduler_(scheduler_options(options.scheduler, *forward_), cache_),
      runner_(*forward_,
              {.vocab_size = vocab_.size,
               .max_tokens = options.scheduler.chunk_tokens,
               .max_seqs = options.scheduler.max_seqs,
               .max_logit_rows = options.scheduler.max_logit_rows,
               .max_blocks = (options.context + options.scheduler.block_size - 1) / options.scheduler.block_size,
               .answers_come_first = options.scheduler.answers_by_token}) {
  // One sequence alone always fits: preemption can make room for the oldest, whatever happens.
  STILL_CHECK(options.n_blocks * options.scheduler.block_size >= options.context);
  const int n_threads = forward_->threads() != nullptr ? forward_->threads()->size() : 1;
  samplers_.assign(static_cast<std::size_t>(n_threads), Sampler(*options.kernels));
  const auto max_seqs = static_cast<std::size_t>(options.scheduler.max_seqs);
  tasks_.resize(max_seqs);
  for (LaunchedStep* step : {&launched_, &next_}) {
    step->slots.reserve(max_seqs);
    step->draws.reserve(max_seqs);
  }
  for (SampleTask& task : tasks_) task.sample.top.reserve(kMaxLogprobs);
  prompt_sample_.top.reserve(kMaxLogprobs);
  slots_.reserve(max_seqs);
  in_forward_.reserve(max_seqs);
  n_prompt_rows_.reserve(max_seqs);
  const auto max_rows = static_cast<std::size_t>(options.scheduler.max_logit_rows);
  banned_begin_.reserve(max_rows + 1);
  banned_.reserve(max_rows * kCudaMaxBanned);
  admitted_.reserve(max_seqs);
  token_event_ = TokenEvent{};
  prompt_token_event_ = PromptTokenEvent{};
  progress_event_ = ProgressEvent{};
  counters_.n_blocks = options.n_blocks;
  counters_.block_size = options.scheduler.block_size;
  published_ = counters_;
}

EngineCore::~EngineCore() {
  stop(false);
}

Result<RequestId> EngineCore::submit(Request request, std::shared_ptr<EventSink> sink) {
  Status checked = check_request(
      request, {.vocab_size = vocab_.size, .context = options_.context, .has_thinking_tokens = vocab_.has_thinking()});
  auto sequence = std::make_unique<Sequence>();
  Sequence& s = *sequence;
  if (checked) {
    s.request = std::move(request);
    s.sink = std::move(sink);
    s.n_prompt = static_cast<std::int64_t>(s.request.prompt.size());
    const bool is_limited = s.request.max_tokens >= 0 && s.request.max_tokens <= options_.context - s.n_prompt;
    s.max_length = is_limited ? s.n_prompt + s.request.max_tokens : options_.context;
    s.is_context_limit = !is_limited;
    // Nothing grows while the sequence runs. A forced closing may overshoot the limit before it is cut.
    s.tokens.reserve(static_cast<std::size_t>(s.max_length + 1));
    s.tokens.assign(s.request.prompt.begin(), s.request.prompt.end());
    s.blocks.reserve(static_cast<std::size_t>(s.max_length / options_.scheduler.block_size + 2));
    s.draft.reserve(static_cast<std::size_t>(options_.scheduler.max_draft));
    s.draft_strengths.reserve(static_cast<std::size_t>(options_.scheduler.max_draft));
    s.draft_record = DraftRecord(options_.scheduler.max_draft);
    s.thinking = ThinkingState(s.request.thinking, vocab_);
    s.text = TextStream(s.request.stop);
    if (s.request.thinking.starts_in_thinking) s.text.skip_newlines();
    s.submitted = std::chrono::steady_clock::now();
  }

  std::lock_guard lock(mutex_);
  if (!checked) {
    ++published_.n_rejected;
    return tl::unexpected(checked.error());
  }
  if (is_stopping_ || is_draining_)
    return error(Code::kUnavailable, "the engine is stopping and takes no new requests");
  if (n_open_ >= options_.max_queue + options_.scheduler.max_seqs) {
    ++published_.n_rejected;
    return error(Code::kResourceExhausted, "queue full: {} requests wait or run, the limit is {}", n_open_,
                 options_.max_queue + options_.scheduler.max_seqs);
  }
  s.id = next_id_++;
  s.arrival = s.id;
  s.seed = s.request.sampling.seed.value_or(counter_random(options_.seed, s.id));
  ++n_open_;
  const RequestId id = s.id;
  incoming_.push_back(std::move(sequence));
  wake_.notify_one();
  return id;
}

void EngineCore::cancel(RequestId id) {
  std::lock_guard lock(mutex_);
  commands_.push_back({id, true});
  if (std::erase(in_forward_, id) > 0 && in_forward_.empty()) is_abandoned_ = true;
  wake_.notify_one();
}

void EngineCore::stop_thinking(RequestId id) {
  std::lock_guard lock(mutex_);
  commands_.push_back({id, false});
  wake_.notify_one();
}

EngineStats EngineCore::stats() const {
  std::lock_guard lock(mutex_);
  return published_;
}

// One forward pass of the slots. is_abandoned: all of them were cancelled meanwhile, and nothing came of it.
Status EngineCore::run_forward(bool& is_abandoned) {
  {
    std::lock_guard lock(mutex_);
    for (const StepSlot& slot : slots_) in_forward_.push_back(slot.sequence->id);
    // What came since take_incoming().
    for (const Command& command : commands_)
      if (command.is_cancel) std::erase(in_forward_, command.id);
    is_abandoned_ = in_forward_.empty() || is_stopping_;
  }
  best_ = list_best();
  Status ran = runner_.run(&is_abandoned_, best_);
  std::lock_guard lock(mutex_);
  in_forward_.clear();
  is_abandoned = is_abandoned_;
  return ran;
}

void EngineCore::take_incoming() {
  {
    std::lock_guard lock(mutex_);
    std::swap(incoming_, taken_);
    std::swap(commands_, taken_commands_);
  }
  for (auto& sequence : taken_) {
    Sequence* added = sequence.get();
    sequences_.emplace(added->id, std::move(sequence));
    scheduler_.add(added);
    is_queue_changed_ = true;
  }
  taken_.clear();
  for (const Command& command : taken_commands_) {
    const auto found = sequences_.find(command.id);
    if (found == sequences_.end() || found->second->is_finished) continue;
    if (command.is_cancel)
      finish(*found->second, FinishReason::kCancelled);
    else
      found->second->thinking.stop();
  }
  taken_commands_.clear();
}

void EngineCore::send(Sequence& sequence, const Event& event) {
  sequence.sink->on_event(event);
  if (sequence.has_events) return;
  sequence.has_events = true;
  touched_.push_back(&sequence);
}

// Only when the queue has moved: each place costs a pass over the queue.
void EngineCore::tell_positions() {
  if (!is_queue_changed_) return;
  is_queue_changed_ = false;
  auto& progress = std::get<ProgressEvent>(progress_event_);
  for (Sequence* sequence : scheduler_.waiting()) {
    const std::int64_t position = scheduler_.queue_position(*sequence);
    if (position == sequence->told_position || sequence->was_started) continue;
    sequence->told_position = position;
    progress = {.queue_position = position, .is_waiting = true, .n_prefilled = 0, .n_prompt = sequence->n_prompt};
    send(*sequence, progress_event_);
  }
}

void EngineCore::begin(Sequence& sequence) {
  is_queue_changed_ = true;
  if (sequence.was_started) return;
  sequence.was_started = true;
  sequence.started = now_;
  sequence.usage.n_prompt = sequence.n_prompt;
  sequence.usage.n_cached = sequence.n_computed;
  sequence.n_computed_before = sequence.n_computed;
  counters_.cached_tokens += sequence.n_computed;
  if (options_.prefix_cache && !sequence.request.prompt_logprobs) counters_.queried_tokens += sequence.n_prompt;
  counters_.queue.observe(seconds(now_ - sequence.submitted));
  send(sequence, StartedEvent{.n_prompt = sequence.n_prompt, .n_cached = sequence.n_computed, .seed = sequence.seed});
}

void EngineCore::fill_logprobs(const Sequence& sequence, const Sample& sample,
                               std::optional<Logprobs>& logprobs) const {
  if (sequence.request.n_logprobs < 0) {
    logprobs.reset();
    return;
  }
  if (!logprobs) logprobs.emplace();
  logprobs->logprob = sample.logprob;
  logprobs->top.resize(sample.top.size());
  for (std::size_t i = 0; i < sample.top.size(); ++i) {
    logprobs->top[i].id = sample.top[i].first;
    logprobs->top[i].logprob = sample.top[i].second;
    logprobs->top[i].bytes = vocab_.bytes(sample.top[i].first);
  }
}

void EngineCore::tell_prompt_tokens(Sequence& sequence, std::size_t slot_idx, std::int64_t first, std::int64_t n) {
  auto& event = std::get<PromptTokenEvent>(prompt_token_event_);
  const auto tell = [&](std::int64_t pos) {
    event.pos = pos;
    event.id = sequence.tokens[static_cast<std::size_t>(pos)];
    event.bytes = vocab_.bytes(event.id);
    send(sequence, prompt_token_event_);
    sequence.n_scored = pos + 1;
  };
  if (sequence.n_scored == 0) {
    event.logprobs.reset();
    tell(0);
  }
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t pos = first + i + 1;
    samplers_[0].score(runner_.logits(slot_idx, i), sequence.tokens[static_cast<std::size_t>(pos)],
                       sequence.request.n_logprobs, prompt_sample_);
    fill_logprobs(sequence, prompt_sample_, event.logprobs);
    tell(pos);
  }
}

// The chunk is in the KV cache, or will be before anything that is launched from now on: count it and tell of it.
void EngineCore::count_computed(Sequence& sequence, std::int64_t n_tokens) {
  if (n_tokens == 0) return;
  const std::int64_t begin = sequence.n_computed, end = begin + n_tokens;
  scheduler_.computed(&sequence, n_tokens);
  const std::int64_t n_again = std::max<std::int64_t>(0, std::min(end, sequence.n_computed_before) - begin);
  counters_.recomputed_tokens += n_again;
  counters_.prompt_tokens += std::max<std::int64_t>(0, std::min(end, sequence.n_prompt) - begin - n_again);
  sequence.n_computed_before = std::max(sequence.n_computed_before, end);
  if (begin < sequence.n_prompt && !sequence.has_token) {
    auto& progress = std::get<ProgressEvent>(progress_event_);
    progress = {.queue_position = 0, .is_waiting = false, .n_prefilled = end, .n_prompt = sequence.n_prompt};
    send(sequence, progress_event_);
  }
}

// Counts what a slot has computed, and notes whether a token is to be sampled.
void EngineCore::after_forward(std::size_t slot_idx, const StepSlot& slot, std::int64_t n_prompt_rows) {
  Sequence& sequence = *slot.sequence;
  const bool is_complete = slot.is_complete();
  if (sequence.request.prompt_logprobs && sequence.n_scored < sequence.n_prompt) {
    std::int64_t first = 0;
    ModelRunner::n_prompt_rows(slot, &first);
    tell_prompt_tokens(sequence, slot_idx, first, n_prompt_rows);
  }
  count_computed(sequence, slot.n_tokens);
  if (!is_complete) return;
  if (sequence.length() >= sequence.max_length) {  // max_tokens 0
    finish(sequence, FinishReason::kLength);
    return;
  }
  tasks_[n_tasks_].is_done = false;
  tasks_[n_tasks_++].slot_idx = slot_idx;
}

void EngineCore::sample_row(Sampler& sampler, const Sequence& sequence, std::span<float> logits, SampleTask& task) {
  const Request& request = sequence.request;
  const bool ends_banned = request.sampling.ignore_eos || sequence.n_answer() < request.min_tokens;
  task.has_mask = request.constraint != nullptr && (request.constrain_reasoning || !sequence.thinking.is_inside());
  if (task.has_mask) {
    task.mask.resize(static_cast<std::size_t>(token_mask_words(vocab_.size)));
    request.constraint->fill_mask(task.mask);
    if (sequence.thinking.may_open()) {
      const TokenId open = sequence.thinking.open_tag();
      task.mask[static_cast<std::size_t>(open / 32)] |= std::uint32_t{1} << (open % 32);
    }
  }
  sampler.sample(
      {.logits = logits,
       .params = &request.sampling,
       .tokens = sequence.tokens,
       .n_prompt = sequence.n_prompt,
       .seed = sequence.seed,
       .banned = request.banned_tokens,
       .banned_ends = ends_banned ? std::span<const TokenId>(vocab_.end_tokens) : std::span<const TokenId>(),
       .banned_stops = sequence.n_answer() < request.min_tokens ? std::span<const TokenId>(request.stop_tokens)
                                                                : std::span<const TokenId>(),
       .banned_tag = sequence.thinking.banned_tag(),
       .mask = task.has_mask ? std::span<const std::uint32_t>(task.mask) : std::span<const std::uint32_t>(),
       .n_logprobs = request.n_logprobs},
      task.sample);
}

namespace {
Error constraint_error(const TokenConstraint& constraint, std::string_view what) {
  if (!constraint.problem().empty()) return {Code::kInvalidArgument, std::string(constraint.problem())};
  return {Code::kInternal, fmt::format("the constraint {}", what)};
}

Error no_token_error() {
  return {Code::kInternal,
          "the model's logits are not finite, or all tokens are banned: if its weights are damaged, get them again"};
}

// What the device's sampler does; bans are counted.
bool is_simple(const Request& request) {
  const SamplingParams& params = request.sampling;
  return params.repetition_penalty == 1 && params.presence_penalty == 0 && params.frequency_penalty == 0 &&
         params.logit_bias.empty() && request.n_logprobs < 0 && request.constraint == nullptr;
}
}  // namespace

std::optional<CudaSampleRow> EngineCore::draw_row(const Sequence& sequence, std::int64_t row_idx) const {
  const Request& request = sequence.request;
  if (!sequence.thinking.forced_tokens().empty() || !is_simple(request)) return std::nullopt;
  CudaSampleRow row;
  row.row = static_cast<std::int32_t>(row_idx);
  row.temperature = request.sampling.temperature;
  row.top_k = request.sampling.top_k;
  row.top_p = request.sampling.top_p;
  row.min_p = request.sampling.min_p;
  row.random = counter_random(sequence.seed, static_cast<std::uint64_t>(sequence.tokens.size()));
  bool fits = true;
  const auto ban = [&](TokenId id) {
    if (id < 0) return;
    if (row.n_banned == kCudaMaxBanned) {
      fits = false;
    } else {
      row.banned[row.n_banned++] = id;
    }
  };
  for (const TokenId id : request.banned_tokens) ban(id);
  if (request.sampling.ignore_eos || sequence.n_answer() < request.min_tokens)
    for (const TokenId id : vocab_.end_tokens) ban(id);
  if (sequence.n_answer() < request.min_tokens)
    for (const TokenId id : request.stop_tokens) ban(id);
  ban(sequence.thinking.banned_tag());
  if (!fits) return std::nullopt;
  return row;
}

// Where every row of logits that the step gives is looked at for its largest alone. Of a draft's rows what is banned
// now is taken to stay so; may_go_on() looks whether it did.
BestOnly EngineCore::list_best() {
  banned_begin_.assign(1, 0);
  banned_.clear();
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    const Sequence& sequence = *slots_[i].sequence;
    if (n_prompt_rows_[i] > 0) return {};
    if (!slots_[i].is_complete()) continue;
    // What the device's sampler can be told is all that there is to a choice.
    const std::optional<CudaSampleRow> row = draw_row(sequence, 0);
    if (!row || !is_greedy(sequence.request.sampling)) return {};
    for (std::size_t j = 0; j <= sequence.draft.size(); ++j) {
      banned_.insert(banned_.end(), row->banned, row->banned + row->n_banned);
      banned_begin_.push_back(static_cast<std::int32_t>(banned_.size()));
    }
  }
  if (banned_begin_.size() == 1) return {};
  return {.banned_begin = banned_begin_, .banned = banned_};
}

// Whether the next row of a draft has all logits that its choice may need, now that the tokens before it are known.
bool EngineCore::may_go_on(const Sequence& sequence, std::int64_t row_idx) const {
  if (best_.banned_begin.empty() || !sequence.thinking.forced_tokens().empty()) return true;
  const std::optional<CudaSampleRow> row = draw_row(sequence, row_idx);
  const auto begin = static_cast<std::size_t>(best_.banned_begin[static_cast<std::size_t>(row_idx)]);
  const auto end = static_cast<std::size_t>(best_.banned_begin[static_cast<std::size_t>(row_idx + 1)]);
  return row && std::ranges::equal(best_.banned.subspan(begin, end - begin), std::span(row->banned, row->n_banned));
}

// First tokens of all slots, in parallel: each depends on its own row and request alone.
void EngineCore::sample_all() {
  const auto one = [&](std::size_t task_idx, Sampler& sampler) {
    SampleTask& task = tasks_[task_idx];
    const Sequence& sequence = *slots_[task.slot_idx].sequence;
    if (task.is_done || !sequence.thinking.forced_tokens().empty()) return;
    sample_row(sampler, sequence, runner_.logits(task.slot_idx, n_prompt_rows_[task.slot_idx]), task);
  };
  ThreadPool* threads = forward_->threads();
  if (threads == nullptr || n_tasks_ < 2) {
    for (std::size_t i = 0; i < n_tasks_; ++i) one(i, samplers_[0]);
    return;
  }
  std::atomic<std::size_t> next{0};
  threads->run([&](int thread_idx) {
    for (std::size_t i = next++; i < n_tasks_; i = next++) one(i, samplers_[static_cast<std::size_t>(thread_idx)]);
  });
}

// Appends the first token, then the drafted ones as far as the sampler would have chosen them.
void EngineCore::advance(SampleTask& task, const StepSlot& slot, std::int64_t first_row) {
  Sequence& sequence = *slot.sequence;
  const auto n_draft = static_cast<std::int64_t>(sequence.draft.size());
  const std::int64_t length_before = sequence.length();
  std::int64_t n_accepted = 0;
  for (std::int64_t i = 0; i <= n_draft; ++i) {
    const auto forced = sequence.thinking.forced_tokens();
    if (!forced.empty()) {
      if (accept_forced(sequence, forced)) return;
      break;
    }
    if (i > 0) sample_row(samplers_[0], sequence, runner_.logits(task.slot_idx, first_row + i), task);
    if (task.sample.id < 0) {
      fail(sequence, task.has_mask ? constraint_error(*sequence.request.constraint, "allows no token after this text")
                                   : no_token_error());
      return;
    }
    const TokenId id = task.sample.id;
    const bool is_drafted = i < n_draft && sequence.draft[static_cast<std::size_t>(i)] == id;
    if (accept(sequence, id, &task.sample)) return;
    if (!is_drafted || !may_go_on(sequence, runner_.row_of(task.slot_idx, first_row + i + 1))) break;
    // The drafted token's keys and values are already where they belong.
    scheduler_.computed(&sequence, 1);
    ++n_accepted;
  }
  sequence.n_computed_before = std::max(sequence.n_computed_before, sequence.n_computed);
  // What the drafter computed beyond the tokens that came true is of other tokens.
  sequence.n_drafter_computed = std::min(sequence.n_drafter_computed, length_before + n_accepted);
  sequence.draft_record.update(sequence.draft_strengths, n_accepted);
  sequence.usage.n_drafted += n_draft;
  sequence.usage.n_accepted += n_accepted;
  counters_.drafted_tokens += n_draft;
  counters_.accepted_tokens += n_accepted;
  sequence.draft.clear();
  sequence.draft_strengths.clear();
}

bool EngineCore::accept_forced(Sequence& sequence, std::span<const TokenId> ids) {
  // The span may belong to the state that accept() changes: opening and closing tokens are constant members.
  for (const TokenId id : ids)
    if (accept(sequence, id, nullptr)) return true;
  return false;
}

bool EngineCore::accept(Sequence& sequence, TokenId id, const Sample* sample) {
  const Request& request = sequence.request;
  auto& event = std::get<TokenEvent>(token_event_);
  event.id = id;
  event.text.clear();
  event.bytes = vocab_.bytes(id);
  event.channel = sequence.thinking.channel();
  event.is_tag = event.is_end = false;
  event.is_forced = sample == nullptr;
  if (sample != nullptr)
    fill_logprobs(sequence, *sample, event.logprobs);
  else
    event.logprobs.reset();

  const TimePoint now = std::chrono::steady_clock::now();
  if (sequence.has_token) {
    counters_.inter_token.observe(seconds(now - sequence.last_token));
  } else {
    sequence.first_token = now;
    counters_.ttft.observe(seconds(now - sequence.submitted));
  }
  sequence.last_token = now;
  sequence.has_token = true;
  sequence.tokens.push_back(id);
  ++sequence.usage.n_completion;
  ++counters_.completion_tokens;

  std::optional<FinishReason> reason;
  const bool is_stop_token =
      std::find(request.stop_tokens.begin(), request.stop_tokens.end(), id) != request.stop_tokens.end();
  if (sample != nullptr && (vocab_.is_end(id) || is_stop_token)) {
    event.is_end = true;
    sequence.stop_token = id;
    reason = FinishReason::kStop;
  } else {
    const bool is_constrained = request.constraint != nullptr && sample != nullptr &&
                                (request.constrain_reasoning || !sequence.thinking.is_inside());
    const std::int64_t n_reasoning = sequence.thinking.n_tokens();
    event.is_tag = sequence.thinking.accept(id);
    counters_.reasoning_tokens += sequence.thinking.n_tokens() - n_reasoning;
    if (event.is_tag) {
      sequence.text.flush(event.text);
      sequence.text.skip_newlines();
    } else if (!sequence.text.push(vocab_.is_hidden(id) ? std::string_view() : std::string_view(event.bytes),
                                   event.channel == Channel::kContent, event.text)) {
      reason = FinishReason::kStopString;
    }
    if (is_constrained && !event.is_tag && !reason) {
      if (!request.constraint->accept(id)) {
        fail(sequence, constraint_error(*request.constraint, "refuses a token that its mask allowed"));
        return true;
      }
      if (request.constraint->is_complete()) reason = FinishReason::kStop;
    }
  }
  if (!reason && sequence.length() >= sequence.max_length) reason = FinishReason::kLength;
  if (reason) sequence.text.flush(event.text);
  send(sequence, token_event_);
  if (reason) finish(sequence, *reason);
  return reason.has_value();
}

void EngineCore::fail(Sequence& sequence, Error error) {
  sequence.error = std::move(error);
  finish(sequence, FinishReason::kError);
}

void EngineCore::finish(Sequence& sequence, FinishReason reason) {
  sequence.is_finished = true;
  scheduler_.remove(&sequence);
  is_queue_changed_ = true;
  auto& token = std::get<TokenEvent>(token_event_);
  token.text.clear();
  sequence.text.flush(token.text);
  if (!token.text.empty()) {
    token.id = -1;
    token.bytes.clear();
    token.channel = sequence.thinking.channel();
    token.is_tag = token.is_end = token.is_forced = false;
    token.logprobs.reset();
    send(sequence, token_event_);
  }

  const TimePoint now = std::chrono::steady_clock::now();
  FinishedEvent event;
  event.reason = reason;
  event.matched_stop = sequence.text.matched_stop();
  event.stop_token = sequence.stop_token;
  event.usage = sequence.usage;
  event.usage.n_prompt = sequence.n_prompt;
  event.usage.n_reasoning = sequence.thinking.n_tokens();
  event.timings.total = now - sequence.submitted;
  event.timings.queue = (sequence.was_started ? sequence.started : now) - sequence.submitted;
  if (sequence.was_started)
    event.timings.prefill = (sequence.has_token ? sequence.first_token : now) - sequence.started;
  if (sequence.has_token) {
    event.timings.decode = sequence.last_token - sequence.first_token;
    event.timings.ttft = sequence.first_token - sequence.submitted;
  }
  event.warnings = sequence.request.warnings;
  if (reason == FinishReason::kLength && sequence.is_context_limit) {
    event.warnings.push_back(fmt::format("the context of {} tokens is full: the answer was cut after {} tokens",
                                         options_.context, sequence.n_answer()));
  }
  event.error = sequence.error;
  counters_.end_to_end.observe(seconds(event.timings.total));
  if (sequence.has_token) {
    counters_.prefill.observe(seconds(event.timings.prefill));
    counters_.decode.observe(seconds(event.timings.decode));
    counters_.inference.observe(seconds(event.timings.prefill + event.timings.decode));
  }
  counters_.request_prompt_tokens.observe(static_cast<double>(event.usage.n_prompt));
  counters_.request_completion_tokens.observe(static_cast<double>(event.usage.n_completion));
  ++counters_.n_finished[static_cast<std::size_t>(reason)];
  // Before it is told: a sink may pass the end on at once, and who asks then must find it counted.
  publish_counters();
  send(sequence, event);
  finished_.push_back(&sequence);
}

void EngineCore::finish_all(FinishReason reason) {
  if (launched_.is_open) forward_->abandon();
  launched_.is_open = false;
  take_incoming();
  for (auto& [id, sequence] : sequences_)
    if (!sequence->is_finished) finish(*sequence, reason);
  end_step();
}

void EngineCore::end_step() {
  if (options_.around_step_ends && !touched_.empty()) options_.around_step_ends(true);
  for (Sequence* sequence : touched_) {
    sequence->has_events = false;
    sequence->sink->on_step_end();
  }
  if (options_.around_step_ends && !touched_.empty()) options_.around_step_ends(false);
  touched_.clear();
  publish_counters();
  {
    std::lock_guard lock(mutex_);
    n_open_ -= static_cast<std::int64_t>(finished_.size());
  }
  for (const Sequence* sequence : finished_) sequences_.erase(sequence->id);
  finished_.clear();
}

void EngineCore::publish_counters() {
  counters_.n_running = static_cast<std::int64_t>(scheduler_.running().size());
  counters_.n_waiting = static_cast<std::int64_t>(scheduler_.waiting().size());
  counters_.n_blocks_used = pool_.n_blocks() - pool_.n_free() - cache_.n_unused();
  counters_.n_blocks_cached = cache_.n_unused();
  counters_.n_preemptions = scheduler_.n_preemptions();
  counters_.prefill_tokens_per_s = scheduler_.prefill_tokens_per_s();
  const ForwardPass::DeviceTimes times = forward_->device_times();
  counters_.device_busy_s = times.busy;
  counters_.device_idle_s = times.idle;
  const ScreenStats screened = forward_->screen_stats();
  counters_.screened_rows = screened.n_screened;
  counters_.unscreened_rows = screened.n_full;
  counters_.screened_panels = screened.n_panels;
  counters_.exact_panels = screened.n_exact_panels;
  std::lock_guard lock(mutex_);
  counters_.n_rejected = published_.n_rejected;
  counters_.n_waiting += static_cast<std::int64_t>(incoming_.size());
  published_ = counters_;
}

// What launched steps have left behind: sequences that ended, or gave their blocks back, after the step was made.
void EngineCore::drop_stale(LaunchedStep& step) {
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    LaunchedSlot& slot = step.slots[i];
    const Sequence& sequence = *slot.sequence;
    if (!sequence.is_running || sequence.is_finished || sequence.n_computed != slot.n_computed) {
      slot.sequence = nullptr;
      slots_[i].sequence = nullptr;
    }
  }
}

bool EngineCore::list_draws(LaunchedStep& step) {
  step.slots.clear();
  step.draws.clear();
  bool is_independent = drafter_ == nullptr && options_.run_ahead;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    const StepSlot& slot = slots_[i];
    const Sequence& sequence = *slot.sequence;
    LaunchedSlot launched{.sequence = slot.sequence, .n_computed = sequence.n_computed};
    if (n_prompt_rows_[i] > 0) is_independent = false;
    if (slot.is_complete()) {
      const bool wants_none = sequence.length() >= sequence.max_length;  // max_tokens 0
      const auto row = wants_none ? std::nullopt : draw_row(sequence, runner_.row_of(i, n_prompt_rows_[i]));
      if (row) {
        launched.draw_idx = static_cast<std::int64_t>(step.draws.size());
        step.draws.push_back(*row);
      } else {
        is_independent = false;
      }
    }
    step.slots.push_back(launched);
  }
  return is_independent;
}

// The step is under way: its sequences move on by tokens that are not known yet.
void EngineCore::go_ahead(LaunchedStep& step) {
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    LaunchedSlot& launched = step.slots[i];
    if (launched.sequence == nullptr) continue;
    Sequence& sequence = *launched.sequence;
    const std::int64_t n_tokens = slots_[i].n_tokens;
    if (launched.draw_idx < 0) {
      count_computed(sequence, n_tokens);
      continue;
    }
    // The tokens before are known by now. Where they have changed what may follow, this draw is void.
    const auto forced = sequence.thinking.forced_tokens();
    if (!forced.empty()) {
      launched.sequence = nullptr;
      count_computed(sequence, n_tokens);
      accept_forced(sequence, forced);
      continue;
    }
    const CudaSampleRow& row = step.draws[static_cast<std::size_t>(launched.draw_idx)];
    if (draw_row(sequence, row.row) != row) {
      launched.sequence = nullptr;
      count_computed(sequence, n_tokens - 1);  // the last one again, for its logits
      continue;
    }
    count_computed(sequence, n_tokens);
    sequence.tokens.push_back(static_cast<TokenId>(-1 - launched.draw_idx));
  }
}

// Waits for the step that is under way and hands out its tokens.
void EngineCore::finish_launched() {
  if (!launched_.is_open) return;
  launched_.is_open = false;
  const auto ids = forward_->collect();
  for (const LaunchedSlot& slot : launched_.slots) {
    if (slot.sequence == nullptr || slot.sequence->is_finished) continue;
    Sequence& sequence = *slot.sequence;
    if (!ids) {
      fail(sequence, ids.error());
      continue;
    }
    if (slot.draw_idx < 0) continue;
    sequence.tokens.pop_back();
    drawn_sample_.id = (*ids)[static_cast<std::size_t>(slot.draw_idx)];
    if (drawn_sample_.id < 0) {
      fail(sequence, no_token_error());
      continue;
    }
    const bool has_ended = accept(sequence, drawn_sample_.id, &drawn_sample_);
    if (options_.preempt_every_step && !has_ended && sequence.is_running) scheduler_.preempt(&sequence);
  }
  observe(launched_.counts, std::max(launched_.launched, last_finished_));
}

void EngineCore::observe(const StepCounts& counts, TimePoint since) {
  last_finished_ = std::chrono::steady_clock::now();
  const double step_seconds = seconds(last_finished_ - since);
  ++counters_.n_steps;
  counters_.step.observe(step_seconds);
  counters_.step_tokens.observe(static_cast<double>(counts.n_decode + counts.n_drafted + counts.n_prefill));
  scheduler_.observe_step(counts.n_decode, counts.n_drafted, counts.n_prefill, step_seconds);
}

// Samples where the device has not drawn, and lets all slots go on.
void EngineCore::advance_all(const LaunchedStep* drawn, std::span<const TokenId> ids) {
  n_tasks_ = 0;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].sequence == nullptr) continue;
    const std::size_t task_idx = n_tasks_;
    after_forward(i, slots_[i], n_prompt_rows_[i]);
    if (drawn == nullptr || n_tasks_ == task_idx || drawn->slots[i].draw_idx < 0) continue;
    // The draw counts where it was made by the rules that hold now.
    const auto draw_idx = static_cast<std::size_t>(drawn->slots[i].draw_idx);
    const CudaSampleRow& row = drawn->draws[draw_idx];
    if (draw_row(*slots_[i].sequence, row.row) != row) continue;
    SampleTask& task = tasks_[task_idx];
    task.sample.id = ids[draw_idx];
    task.sample.logprob = 0;
    task.sample.top.clear();
    task.has_mask = false;
    task.is_done = true;
  }
  sample_all();
  for (std::size_t i = 0; i < n_tasks_; ++i) {
    const StepSlot& slot = slots_[tasks_[i].slot_idx];
    advance(tasks_[i], slot, n_prompt_rows_[tasks_[i].slot_idx]);
    if (options_.preempt_every_step && !slot.sequence->is_finished) scheduler_.preempt(slot.sequence);
  }
}

void EngineCore::step_on_host() {
  if (slots_.empty()) return;
  runner_.prepare(slots_);
  bool is_abandoned = false;
  const Status ran = run_forward(is_abandoned);
  if (is_abandoned) {
    for (const StepSlot& slot : slots_) {
      Sequence& sequence = *slot.sequence;
      sequence.draft.clear();
      sequence.draft_strengths.clear();
      sequence.n_drafter_computed = std::min(sequence.n_drafter_computed, sequence.length());
    }
    return;
  }
  if (!ran) {
    for (const StepSlot& slot : slots_) fail(*slot.sequence, ran.error());
  } else {
    advance_all(nullptr, {});
  }
  observe(step_counts_, now_);
}

void EngineCore::step_on_device() {
  if (slots_.empty()) return finish_launched();
  runner_.prepare(slots_);
  const bool is_independent = list_draws(next_);
  next_.counts = step_counts_;
  next_.launched = now_;
  const Status launched = runner_.launch(next_.draws);
  finish_launched();  // while the device computes
  if (!launched) {
    forward_->abandon();
    for (const StepSlot& slot : slots_)
      if (!slot.sequence->is_finished) fail(*slot.sequence, launched.error());
    return;
  }
  drop_stale(next_);
  std::swap(launched_, next_);
  if (is_independent) {
    launched_.is_open = true;
    go_ahead(launched_);
    return;
  }
  const auto ids = forward_->collect();
  if (ids) {
    advance_all(&launched_, *ids);
  } else {
    for (const StepSlot& slot : slots_)
      if (slot.sequence != nullptr) fail(*slot.sequence, ids.error());
  }
  observe(step_counts_, std::max(now_, last_finished_));
}

bool EngineCore::step() {
  now_ = std::chrono::steady_clock::now();
  take_incoming();
  const auto scheduled = scheduler_.schedule(drafter_.get(), admitted_);
  for (const BlockCopy& copy : scheduler_.copies()) forward_->copy_block(copy.from, copy.to);
  scheduler_.copied();
  for (Sequence* sequence : admitted_)
    if (sequence->is_running) begin(*sequence);
  tell_positions();
  slots_.assign(scheduled.begin(), scheduled.end());
  if (options_.scheduler.answers_by_token)
    std::stable_partition(slots_.begin(), slots_.end(),
                          [](const StepSlot& slot) { return slot.sequence->is_answering(); });
  n_prompt_rows_.clear();
  step_counts_ = {};
  for (const StepSlot& slot : slots_) {
    n_prompt_rows_.push_back(ModelRunner::n_prompt_rows(slot));
    (slot.sequence->is_decoding() ? step_counts_.n_decode : step_counts_.n_prefill) += slot.n_tokens;
    step_counts_.n_drafted += static_cast<std::int64_t>(slot.sequence->draft.size());
  }
  if (forward_->is_on_device()) {
    step_on_device();
  } else {
    step_on_host();
  }
  end_step();
  return has_work();
}

bool EngineCore::has_work() const {
  if (!sequences_.empty()) return true;
  std::lock_guard lock(mutex_);
  return !incoming_.empty() || !commands_.empty();
}

void EngineCore::run_thread() {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] {
        return is_stopping_ || is_draining_ || !incoming_.empty() || !commands_.empty() || !sequences_.empty();
      });
      if (is_stopping_) break;
      if (is_draining_ && incoming_.empty() && sequences_.empty()) break;
    }
    step();
  }
  finish_all(FinishReason::kCancelled);
}

void EngineCore::start() {
  STILL_CHECK(!thread_.joinable());
  {
    std::lock_guard lock(mutex_);
    is_stopping_ = is_draining_ = false;
  }
  thread_ = std::thread([this] { run_thread(); });
}

void EngineCore::stop(bool drain) {
  {
    std::lock_guard lock(mutex_);
    (drain ? is_draining_ : is_stopping_) = true;
    if (is_stopping_) is_abandoned_ = true;
    wake_.notify_one();
  }
  if (thread_.joinable()) {
    thread_.join();
    return;
  }
  while (drain && step()) {
  }
  finish_all(FinishReason::kCancelled);
}

}  // namespace still
