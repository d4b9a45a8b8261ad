#include "serve/api/openai_completions.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <numeric>

#include "serve/api/errors.h"
#include "text/detokenizer.h"

namespace still {

namespace {

// Enough to keep an engine's batch full; more would only fill its queue.
constexpr std::size_t kMaxAtATime = 32;

struct Choice {
  std::string text, token_ids;
  CompletionLogprobs logprobs;
  GenerationDone done;
  double sum_logprob = 0;
  std::int64_t n_tokens = 0;
  bool is_done = false;
};

struct PromptState {
  std::vector<Choice> choices;  // input.n: for best_of more than are told
  std::string echo_text;
  std::vector<TokenId> prompt_ids;
  std::size_t n_ended_before = 0;  // prompts that had ended when it was started
};

class CompletionJob : public std::enable_shared_from_this<CompletionJob> {
 public:
  CompletionJob(ServeContext& context, CompletionCall call, std::shared_ptr<ResponseWriter> writer)
      : context_(context), call_(std::move(call)), writer_(writer), sse_(std::move(writer)) {
    prompts_.resize(call_.prompts.size());
    for (PromptState& prompt : prompts_) prompt.choices.resize(static_cast<std::size_t>(call_.input.n));
  }

  void begin();
  void cancel();

  // Of the generation of one prompt.
  void on_begun(std::size_t prompt_idx, const GenerationBegun& begun);
  void on_prompt_token(std::size_t prompt_idx, const PromptTokenEvent& event, int answer);
  void on_piece(std::size_t prompt_idx, GenerationPiece&& piece);
  void on_done(std::size_t prompt_idx, const GenerationDone& done);
  void on_progress();
  void on_step_end();
  void on_end();
  void on_failed(std::size_t prompt_idx, const Error& error);

 private:
  void start_next();
  std::size_t choice_idx(std::size_t prompt_idx, int answer) const {
    return prompt_idx * static_cast<std::size_t>(call_.n) + static_cast<std::size_t>(answer);
  }
  void append_choice(std::string& out, std::size_t idx, Choice& choice, std::string_view text, bool is_final);
  void send_chunk(std::size_t prompt_idx, int answer, std::string_view text, std::string_view ids, bool is_final);
  void send_whole();
  std::vector<std::size_t> best_answers(const PromptState& prompt) const;

  ServeContext& context_;
  CompletionCall call_;
  std::shared_ptr<ResponseWriter> writer_;

  std::mutex mutex_;  // the generations of several prompts come from several threads
  SseStream sse_;
  OpenAiHead head_;
  std::string head_json_, generation_id_, chunk_;
  std::vector<PromptState> prompts_;
  std::size_t n_started_ = 0, n_ended_ = 0, n_running_ = 0;
  std::vector<std::size_t> postponed_;  // prompts that the queue had no place for beside the others of this request
  bool is_over_ = false;
  OpenAiUsage usage_;
  std::vector<std::string> warnings_;

  std::mutex generations_mutex_;
  std::vector<std::weak_ptr<Generation>> generations_;
  bool is_cancelled_ = false;
};

class PromptSink : public GenerationSink {
 public:
  PromptSink(std::shared_ptr<CompletionJob> job, std::size_t prompt_idx)
      : job_(std::move(job)), prompt_idx_(prompt_idx) {}
  void on_begun(const GenerationBegun& begun) override { job_->on_begun(prompt_idx_, begun); }
  void on_progress(const ProgressEvent&, int) override { job_->on_progress(); }
  void on_prompt_token(const PromptTokenEvent& event, int answer) override {
    job_->on_prompt_token(prompt_idx_, event, answer);
  }
  void on_piece(GenerationPiece&& piece) override { job_->on_piece(prompt_idx_, std::move(piece)); }
  void on_done(const GenerationDone& done) override { job_->on_done(prompt_idx_, done); }
  void on_step_end() override { job_->on_step_end(); }
  void on_end() override { job_->on_end(); }
  void on_failed(const Error& error) override { job_->on_failed(prompt_idx_, error); }

 private:
  std::shared_ptr<CompletionJob> job_;
  std::size_t prompt_idx_;
};

void CompletionJob::begin() {
  for (std::size_t i = 0; i < std::min(kMaxAtATime, prompts_.size()); ++i) start_next();
}

void CompletionJob::start_next() {
  std::size_t idx = 0;
  {
    const std::lock_guard lock(mutex_);
    if (is_over_) return;
    if (!postponed_.empty()) {
      idx = postponed_.back();
      postponed_.pop_back();
    } else if (n_started_ < prompts_.size()) {
      idx = n_started_++;
    } else {
      return;
    }
    ++n_running_;
    prompts_[idx].n_ended_before = n_ended_;
  }
  GenerationInput input = call_.input;
  input.wants_progress = call_.stream.is_on;
  std::visit([&input](const auto& prompt) { input.prompt = prompt; }, call_.prompts[idx]);
  const auto generation =
      start_generation(context_, std::move(input), std::make_shared<PromptSink>(shared_from_this(), idx));
  const std::lock_guard lock(generations_mutex_);
  if (is_cancelled_)
    generation->cancel();
  else
    generations_.push_back(generation);
}

// Ends all; what they tell from now on is not heard.
void CompletionJob::cancel() {
  std::vector<std::weak_ptr<Generation>> generations;
  {
    const std::lock_guard lock(generations_mutex_);
    is_cancelled_ = true;
    generations.swap(generations_);
  }
  for (const auto& weak : generations)
    if (const auto generation = weak.lock()) generation->cancel();
}

void CompletionJob::on_begun(std::size_t prompt_idx, const GenerationBegun& begun) {
  const std::lock_guard lock(mutex_);
  if (is_over_) return;
  if (head_.id.empty()) {
    head_ = make_openai_head("cmpl-", "text_completion", call_.input.model.name, begun.model);
    head_json_ = head_.json();
    generation_id_ = begun.id;
  }
  merge_warnings(warnings_, begun.warnings);
  PromptState& prompt = prompts_[prompt_idx];
  if (call_.returns_token_ids) prompt.prompt_ids = begun.prompt_ids;
  if (call_.echo) {
    const auto* text = std::get_if<TextInput>(&call_.prompts[prompt_idx]);
    Utf8Stream characters;
    prompt.echo_text =
        text != nullptr
            ? text->text
            : characters.add(begun.model->model->tokenizer().decode(begun.prompt_ids, true)) + characters.flush();
  }
  if (!call_.stream.is_on) return;
  sse_.start(generation_id_, warnings_);
  // With log-probabilities the prompt is told token by token, see on_prompt_token.
  if (call_.echo && call_.n_logprobs < 0)
    for (int answer = 0; answer < call_.n; ++answer) send_chunk(prompt_idx, answer, prompt.echo_text, {}, false);
  sse_.flush();
}

void CompletionJob::on_prompt_token(std::size_t prompt_idx, const PromptTokenEvent& event, int answer) {
  const std::lock_guard lock(mutex_);
  if (is_over_ || !call_.echo) return;
  Choice& choice = prompts_[prompt_idx].choices[static_cast<std::size_t>(answer)];
  choice.logprobs.add(event.bytes, event.logprobs);
}

void CompletionJob::on_piece(std::size_t prompt_idx, GenerationPiece&& piece) {
  const std::lock_guard lock(mutex_);
  if (is_over_) return;
  Choice& choice = prompts_[prompt_idx].choices[static_cast<std::size_t>(piece.answer)];
  if (call_.echo && call_.stream.is_on && call_.n_logprobs >= 0 && choice.n_tokens == 0)
    send_chunk(prompt_idx, piece.answer, prompts_[prompt_idx].echo_text, {}, false);
  std::string ids;
  for (const TokenEvent& token : piece.tokens) {
    ++choice.n_tokens;
    if (token.logprobs) choice.sum_logprob += token.logprobs->logprob;
    if (call_.n_logprobs >= 0) choice.logprobs.add(token.bytes, token.logprobs);
    if (call_.returns_token_ids) ids += (ids.empty() ? "" : ",") + std::to_string(token.id);
  }
  if (!call_.stream.is_on) {
    choice.text += piece.content;
    if (!ids.empty()) choice.token_ids += (choice.token_ids.empty() ? "" : ",") + ids;
    return;
  }
  if (piece.content.empty() && ids.empty() && choice.logprobs.empty()) return;
  send_chunk(prompt_idx, piece.answer, piece.content, ids, false);
}

void CompletionJob::append_choice(std::string& out, std::size_t idx, Choice& choice, std::string_view text,
                                  bool is_final) {
  out += fmt::format("{{\"index\":{},\"text\":", idx);
  append_json_string(out, text);
  out += ",\"logprobs\":";
  out += call_.n_logprobs >= 0 && !choice.logprobs.empty() ? choice.logprobs.take() : "null";
  out += ",\"finish_reason\":";
  if (!is_final) {
    out += "null";
    return;
  }
  append_json_string(out, openai_finish_reason(choice.done));
  if (choice.done.finished.reason != FinishReason::kStopString) return;
  out += ",\"stop_reason\":";
  append_json_string(out, choice.done.finished.matched_stop);
}

void CompletionJob::send_chunk(std::size_t prompt_idx, int answer, std::string_view text, std::string_view ids,
                               bool is_final) {
  Choice& choice = prompts_[prompt_idx].choices[static_cast<std::size_t>(answer)];
  chunk_ = head_json_;
  chunk_ += ",\"choices\":[";
  append_choice(chunk_, choice_idx(prompt_idx, answer), choice, text, is_final);
  if (!ids.empty()) {
    chunk_ += ",\"token_ids\":[";
    chunk_ += ids;
    chunk_ += ']';
  }
  chunk_ += "}]";
  if (is_final) append_warnings(chunk_, choice.done.finished.warnings);
  if (call_.stream.continuous_usage) {
    OpenAiUsage usage = usage_;
    usage.n_completion += is_final ? 0 : choice.n_tokens;
    chunk_ += ",\"usage\":";
    usage.append_to(chunk_);
  } else if (call_.stream.include_usage) {
    chunk_ += ",\"usage\":null";
  }
  chunk_ += '}';
  sse_.send(chunk_);
}

void CompletionJob::on_done(std::size_t prompt_idx, const GenerationDone& done) {
  const std::lock_guard lock(mutex_);
  if (is_over_) return;
  Choice& choice = prompts_[prompt_idx].choices[static_cast<std::size_t>(done.answer)];
  choice.done = done;
  choice.is_done = true;
  usage_.add(done.finished.usage, done.answer == 0);
  merge_warnings(warnings_, done.finished.warnings);
  const std::string_view stop = call_.includes_stop ? std::string_view(done.finished.matched_stop) : std::string_view();
  if (call_.stream.is_on) {
    // An echo with log-probabilities and no answer at all: the prompt is still to be told.
    const bool is_echo_due = call_.echo && call_.n_logprobs >= 0 && choice.n_tokens == 0;
    send_chunk(prompt_idx, done.answer,
               is_echo_due ? prompts_[prompt_idx].echo_text + std::string(stop) : std::string(stop), {}, true);
  } else {
    choice.text += stop;
  }
}

void CompletionJob::on_progress() {
  const std::lock_guard lock(mutex_);
  if (!is_over_) sse_.ping_if_silent();
}

void CompletionJob::on_step_end() {
  const std::lock_guard lock(mutex_);
  if (!is_over_ && call_.stream.is_on) sse_.flush();
}

void CompletionJob::on_end() {
  {
    const std::lock_guard lock(mutex_);
    if (is_over_) return;
    --n_running_;
    if (++n_ended_ == prompts_.size()) {
      is_over_ = true;
      if (!call_.stream.is_on) {
        send_whole();
        return;
      }
      if (call_.stream.include_usage) {
        chunk_ = head_json_ + ",\"choices\":[],\"usage\":";
        usage_.append_to(chunk_);
        chunk_ += '}';
        sse_.send(chunk_);
      }
      sse_.finish();
      return;
    }
  }
  start_next();
}

// The answers of a prompt that are told: with best_of the ones whose tokens are the likeliest on average.
std::vector<std::size_t> CompletionJob::best_answers(const PromptState& prompt) const {
  std::vector<std::size_t> order(prompt.choices.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto mean = [&](std::size_t i) {
    const Choice& choice = prompt.choices[i];
    return choice.n_tokens == 0 ? -1e9 : choice.sum_logprob / static_cast<double>(choice.n_tokens);
  };
  const auto n = static_cast<std::size_t>(call_.n);
  if (order.size() > n)
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return mean(a) > mean(b); });
  order.resize(n);
  return order;
}

void CompletionJob::send_whole() {
  std::string out = head_json_ + ",\"choices\":[";
  for (std::size_t i = 0; i < prompts_.size(); ++i) {
    int answer = 0;
    for (const std::size_t best : best_answers(prompts_[i])) {
      Choice& choice = prompts_[i].choices[best];
      if (i > 0 || answer > 0) out += ',';
      append_choice(out, choice_idx(i, answer), choice, prompts_[i].echo_text + choice.text, true);
      if (call_.returns_token_ids)
        out += fmt::format(",\"token_ids\":[{}],\"prompt_token_ids\":[{}]", choice.token_ids,
                           fmt::join(prompts_[i].prompt_ids, ","));
      out += '}';
      ++answer;
    }
  }
  out += "],\"usage\":";
  usage_.append_to(out);
  append_warnings(out, warnings_);
  out += '}';
  writer_->send({.body = std::move(out), .headers = {{"X-Still-Generation", generation_id_}}});
}

void CompletionJob::on_failed(std::size_t prompt_idx, const Error& error) {
  bool is_postponed = false;
  {
    const std::lock_guard lock(mutex_);
    --n_running_;
    // A full queue is full of this request's own prompts, perhaps: the next that ends makes room, or has just made it.
    const bool has_made_room = n_ended_ > prompts_[prompt_idx].n_ended_before;
    is_postponed = error.code == Code::kUnavailable && !is_over_ && (n_running_ > 0 || has_made_room);
    if (is_postponed) {
      postponed_.push_back(prompt_idx);
      if (n_running_ > 0) return;
    }
  }
  if (is_postponed) return start_next();
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(is_over_, true)) return;
    if (sse_.is_started()) {
      sse_.send(error_body(ApiShape::kOpenAi, error));
      sse_.finish();
    } else {
      writer_->send(error_response(ApiShape::kOpenAi, error));
    }
  }
  cancel();
}

}  // namespace

void start_completions(ServeContext& context, CompletionCall call, std::shared_ptr<ResponseWriter> writer) {
  const auto job = std::make_shared<CompletionJob>(context, std::move(call), writer);
  job->begin();
  writer->on_closed([weak = std::weak_ptr(job)] {
    if (const auto open = weak.lock()) open->cancel();
  });
}

}  // namespace still
