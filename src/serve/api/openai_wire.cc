#include "serve/api/openai_wire.h"

#include <algorithm>
#include <random>

#include "serve/api/json_fields.h"
#include "text/detokenizer.h"

namespace still {

std::string random_hex(int n_digits) {
  thread_local std::mt19937_64 random{std::random_device{}()};
  std::string text;
  for (int i = 0; i < n_digits; ++i) text += "0123456789abcdef"[random() & 15];
  return text;
}

std::string system_fingerprint(const ServedModel& served) {
  return fmt::format("fp_still_{}_{}", STILL_VERSION, served.digest.substr(0, 12));
}

OpenAiHead make_openai_head(std::string_view id_prefix, std::string_view object, std::string_view model,
                            const ServedModel* served) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return {.id = std::string(id_prefix) + random_hex(24),
          .object = std::string(object),
          .created = std::chrono::duration_cast<std::chrono::seconds>(now).count(),
          .model = std::string(model),
          .fingerprint = served != nullptr ? system_fingerprint(*served) : std::string()};
}

std::string OpenAiHead::json() const {
  std::string out = "{\"id\":";
  append_json_string(out, id);
  out += ",\"object\":";
  append_json_string(out, object);
  out += fmt::format(",\"created\":{},\"model\":", created);
  append_json_string(out, model);
  out += ",\"system_fingerprint\":";
  append_json_string(out, fingerprint);
  return out;
}

void OpenAiUsage::add(const Usage& usage, bool is_new_prompt) {
  if (is_new_prompt) {
    n_prompt += usage.n_prompt;
    n_cached += usage.n_cached;
  }
  n_completion += usage.n_completion;
  n_reasoning += usage.n_reasoning;
}

void OpenAiUsage::append_to(std::string& out) const {
  out += fmt::format(
      "{{\"prompt_tokens\":{},\"completion_tokens\":{},\"total_tokens\":{},"
      "\"prompt_tokens_details\":{{\"cached_tokens\":{}}},\"completion_tokens_details\":{{\"reasoning_tokens\":{}}},"
      "\"prompt_cache_hit_tokens\":{},\"prompt_cache_miss_tokens\":{}}}",
      n_prompt, n_completion, n_prompt + n_completion, n_cached, n_reasoning, n_cached, n_prompt - n_cached);
}

std::string_view openai_finish_reason(const GenerationDone& done) {
  switch (done.finished.reason) {
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
    case FinishReason::kError:
      return "abort";
    case FinishReason::kStop:
    case FinishReason::kStopString:
      return done.has_tool_calls ? "tool_calls" : "stop";
  }
  return "stop";
}

namespace {
void append_logprob(std::string& out, std::string_view bytes, float logprob) {
  out += "{\"token\":";
  append_json_bytes(out, bytes);
  out += ",\"logprob\":";
  // JSON has no infinity; OpenAI writes this for what cannot be.
  append_json_number(out, std::max(logprob, -9999.0f));
  out += ",\"bytes\":[";
  for (std::size_t i = 0; i < bytes.size(); ++i)
    out += fmt::format("{}{}", i == 0 ? "" : ",", static_cast<unsigned>(static_cast<unsigned char>(bytes[i])));
  out += ']';
}
}  // namespace

void append_chat_logprob(std::string& out, const TokenEvent& token) {
  append_logprob(out, token.bytes, token.logprobs ? token.logprobs->logprob : 0.0f);
  out += ",\"top_logprobs\":[";
  bool is_first = true;
  for (const TopLogprob& top : token.logprobs ? token.logprobs->top : std::vector<TopLogprob>()) {
    if (!std::exchange(is_first, false)) out += ',';
    append_logprob(out, top.bytes, top.logprob);
    out += '}';
  }
  out += "]}";
}

std::string completion_token_text(std::string_view bytes) {
  Utf8Stream characters;
  std::string text = characters.add(bytes);
  if (text == bytes) return text;
  text = "bytes:";
  for (const char c : bytes) text += fmt::format("\\x{:02x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
  return text;
}

namespace {
std::int64_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}
}  // namespace

void CompletionLogprobs::skip_text(std::string_view text) {
  offset_ += count_characters(text);
}

void CompletionLogprobs::add(std::string_view bytes, const std::optional<Logprobs>& logprobs) {
  const auto separate = [](std::string& list) {
    if (!list.empty()) list += ',';
  };
  separate(tokens_);
  append_json_string(tokens_, completion_token_text(bytes));
  separate(logprobs_);
  separate(tops_);
  separate(offsets_);
  offsets_ += std::to_string(offset_);
  offset_ += count_characters(bytes);
  if (!logprobs) {
    logprobs_ += "null";
    tops_ += "null";
    return;
  }
  append_json_number(logprobs_, std::max(logprobs->logprob, -9999.0f));
  // An object by the tokens' text: of two tokens with the same text the better one stays. The chosen one is in it even
  // where it is not among the best.
  tops_ += '{';
  std::vector<std::string> seen;
  const auto add_top = [&](std::string_view top_bytes, float logprob) {
    std::string text = completion_token_text(top_bytes);
    if (std::find(seen.begin(), seen.end(), text) != seen.end()) return;
    if (!seen.empty()) tops_ += ',';
    append_json_string(tops_, text);
    tops_ += ':';
    append_json_number(tops_, std::max(logprob, -9999.0f));
    seen.push_back(std::move(text));
  };
  for (const TopLogprob& top : logprobs->top) add_top(top.bytes, top.logprob);
  add_top(bytes, logprobs->logprob);
  tops_ += '}';
}

std::string CompletionLogprobs::take() {
  std::string out =
      fmt::format("{{\"tokens\":[{}],\"token_logprobs\":[{}],\"top_logprobs\":[{}],\"text_offset\":[{}]}}", tokens_,
                  logprobs_, tops_, offsets_);
  tokens_.clear();
  logprobs_.clear();
  tops_.clear();
  offsets_.clear();
  return out;
}

void append_warnings(std::string& out, const std::vector<std::string>& warnings) {
  if (warnings.empty()) return;
  out += ",\"warnings\":[";
  for (std::size_t i = 0; i < warnings.size(); ++i) {
    if (i > 0) out += ',';
    append_json_bytes(out, warnings[i]);
  }
  out += ']';
}

void merge_warnings(std::vector<std::string>& into, const std::vector<std::string>& more) {
  for (const std::string& warning : more)
    if (std::find(into.begin(), into.end(), warning) == into.end()) into.push_back(warning);
}

namespace {
constexpr auto kPingAfter = std::chrono::seconds(10);
}

void SseStream::start(std::string_view generation_id, const std::vector<std::string>& warnings) {
  if (std::exchange(is_started_, true)) return;
  // The second asks proxies not to gather the chunks.
  std::vector<HttpHeader> headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
  if (!generation_id.empty()) headers.push_back({"X-Still-Generation", std::string(generation_id)});
  if (!warnings.empty()) headers.push_back({"X-Still-Warning", warnings.front()});
  writer_->start(200, "text/event-stream", std::move(headers));
  last_ = std::chrono::steady_clock::now();
}

void SseStream::send(std::string_view json) {
  writer_->write("data: ");
  writer_->write(json);
  writer_->write("\n\n");
  has_unsent_ = true;
}

void SseStream::flush() {
  if (!std::exchange(has_unsent_, false)) return;
  writer_->flush();
  last_ = std::chrono::steady_clock::now();
}

void SseStream::ping_if_silent() {
  if (!is_started_ || std::chrono::steady_clock::now() - last_ < kPingAfter) return;
  writer_->write(": ping\n\n");
  has_unsent_ = true;
  flush();
}

void SseStream::finish() {
  send("[DONE]");
  flush();
  writer_->finish();
}

}  // namespace still
