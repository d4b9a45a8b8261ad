#include "serve/api/openai_chat.h"

#include <fmt/format.h>

#include "serve/api/errors.h"

namespace still {

namespace {

// Both names that clients read; neither where there is no reasoning: an empty one would hide the other.
void append_reasoning(std::string& out, std::string_view reasoning) {
  if (reasoning.empty()) return;
  const std::string text = json_string(reasoning);
  out += ",\"reasoning_content\":";
  out += text;
  out += ",\"reasoning\":";
  out += text;
}

void append_stop_reason(std::string& out, const FinishedEvent& finished) {
  if (finished.reason != FinishReason::kStopString) return;
  out += ",\"stop_reason\":";
  append_json_string(out, finished.matched_stop);
}

std::string join_ids(const std::vector<TokenId>& ids) {
  return fmt::format("{}", fmt::join(ids, ","));
}

}  // namespace

OpenAiChatSink::OpenAiChatSink(const ChatCall& call, std::shared_ptr<ResponseWriter> writer)
    : model_(call.input.model.name),
      stream_(call.stream),
      has_logprobs_(call.input.n_logprobs >= 0),
      includes_stop_(call.includes_stop),
      returns_token_ids_(call.returns_token_ids),
      writer_(writer),
      sse_(std::move(writer)),
      answers_(static_cast<std::size_t>(call.input.n)) {}

void OpenAiChatSink::on_begun(const GenerationBegun& begun) {
  head_ =
      make_openai_head("chatcmpl-", stream_.is_on ? "chat.completion.chunk" : "chat.completion", model_, begun.model);
  head_json_ = head_.json();
  generation_id_ = begun.id;
  n_prompt_ = begun.n_prompt;
  if (returns_token_ids_) prompt_ids_ = begun.prompt_ids;
  warnings_ = begun.warnings;
  if (!stream_.is_on) return;
  sse_.start(generation_id_, warnings_);
  for (std::size_t i = 0; i < answers_.size(); ++i) {
    chunk_.clear();
    begin_chunk(chunk_, static_cast<int>(i));
    chunk_ += "\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]";
    if (returns_token_ids_) chunk_ += ",\"prompt_token_ids\":[" + join_ids(prompt_ids_) + "]";
    end_chunk(chunk_, static_cast<int>(i));
    sse_.send(chunk_);
  }
  sse_.flush();
}

void OpenAiChatSink::on_progress(const ProgressEvent&, int) {
  if (stream_.is_on) sse_.ping_if_silent();
}

void OpenAiChatSink::begin_chunk(std::string& out, int answer) const {
  out += head_json_;
  out += ",\"choices\":[{\"index\":";
  out += std::to_string(answer);
  out += ",\"delta\":{";
}

void OpenAiChatSink::end_chunk(std::string& out, int answer) const {
  if (stream_.continuous_usage) {
    out += ",\"usage\":";
    OpenAiUsage usage;
    usage.n_prompt = n_prompt_;
    usage.n_completion = answers_[static_cast<std::size_t>(answer)].n_completion;
    usage.append_to(out);
  } else if (stream_.include_usage) {
    out += ",\"usage\":null";
  }
  out += '}';
}

void OpenAiChatSink::on_piece(GenerationPiece&& piece) {
  Answer& answer = answers_[static_cast<std::size_t>(piece.answer)];
  std::string logprobs, ids;
  for (const TokenEvent& token : piece.tokens) {
    ++answer.n_completion;
    if (returns_token_ids_) {
      if (!ids.empty()) ids += ',';
      ids += std::to_string(token.id);
    }
    if (!has_logprobs_ || token.channel != Channel::kContent || token.is_tag || token.is_end) continue;
    if (!logprobs.empty()) logprobs += ',';
    append_chat_logprob(logprobs, token);
  }
  if (!stream_.is_on) {
    answer.reasoning += piece.reasoning;
    answer.content += piece.content;
    for (ToolCallDelta& delta : piece.tool_calls) {
      if (static_cast<std::size_t>(delta.index) >= answer.calls.size()) answer.calls.resize(delta.index + 1);
      Call& call = answer.calls[static_cast<std::size_t>(delta.index)];
      call.id += delta.id;
      call.name += delta.name;
      call.arguments += delta.arguments;
    }
    const auto join = [](std::string& list, const std::string& more) {
      if (!list.empty() && !more.empty()) list += ',';
      list += more;
    };
    join(answer.logprobs, logprobs);
    join(answer.token_ids, ids);
    return;
  }
  const bool is_empty = piece.reasoning.empty() && piece.content.empty() && piece.tool_calls.empty();
  if (is_empty && logprobs.empty() && ids.empty()) return;
  chunk_.clear();
  begin_chunk(chunk_, piece.answer);
  const std::size_t first = chunk_.size();
  if (!piece.content.empty() || is_empty) {
    chunk_ += ",\"content\":";
    append_json_string(chunk_, piece.content);
  }
  append_reasoning(chunk_, piece.reasoning);
  if (!piece.tool_calls.empty()) {
    chunk_ += ",\"tool_calls\":[";
    for (std::size_t i = 0; i < piece.tool_calls.size(); ++i) {
      const ToolCallDelta& delta = piece.tool_calls[i];
      chunk_ += fmt::format("{}{{\"index\":{}", i == 0 ? "" : ",", delta.index);
      if (!delta.id.empty()) {
        chunk_ += ",\"id\":";
        append_json_string(chunk_, delta.id);
        chunk_ += ",\"type\":\"function\"";
      }
      chunk_ += ",\"function\":{";
      if (!delta.name.empty()) {
        chunk_ += "\"name\":";
        append_json_string(chunk_, delta.name);
        chunk_ += ',';
      }
      chunk_ += "\"arguments\":";
      append_json_string(chunk_, delta.arguments);
      chunk_ += "}}";
    }
    chunk_ += ']';
  }
  if (chunk_.size() > first) chunk_.erase(first, 1);  // the comma before the first member
  chunk_ += "},\"logprobs\":";
  chunk_ += logprobs.empty() ? "null" : "{\"content\":[" + logprobs + "],\"refusal\":null}";
  chunk_ += ",\"finish_reason\":null";
  if (!ids.empty()) chunk_ += ",\"token_ids\":[" + ids + "]";
  chunk_ += "}]";
  end_chunk(chunk_, piece.answer);
  sse_.send(chunk_);
}

void OpenAiChatSink::on_done(const GenerationDone& done) {
  Answer& answer = answers_[static_cast<std::size_t>(done.answer)];
  if (includes_stop_ && !done.finished.matched_stop.empty())
    on_piece({.answer = done.answer, .content = done.finished.matched_stop});
  answer.done = done;
  answer.n_completion = done.finished.usage.n_completion;
  usage_.add(done.finished.usage, done.answer == 0);
  merge_warnings(warnings_, done.finished.warnings);
  if (!stream_.is_on) return;
  chunk_.clear();
  begin_chunk(chunk_, done.answer);
  chunk_ += "},\"logprobs\":null,\"finish_reason\":";
  append_json_string(chunk_, openai_finish_reason(done));
  append_stop_reason(chunk_, done.finished);
  chunk_ += "}]";
  append_warnings(chunk_, done.finished.warnings);
  end_chunk(chunk_, done.answer);
  sse_.send(chunk_);
}

void OpenAiChatSink::on_step_end() {
  if (stream_.is_on) sse_.flush();
}

void OpenAiChatSink::on_end() {
  if (!stream_.is_on) {
    send_whole();
    return;
  }
  if (stream_.include_usage) {
    chunk_ = head_json_;
    chunk_ += ",\"choices\":[],\"usage\":";
    usage_.append_to(chunk_);
    chunk_ += '}';
    sse_.send(chunk_);
  }
  sse_.finish();
}

void OpenAiChatSink::append_message(std::string& out, const Answer& answer) const {
  out += "{\"role\":\"assistant\",\"content\":";
  if (answer.content.empty() && !answer.calls.empty())
    out += "null";
  else
    append_json_string(out, answer.content);
  append_reasoning(out, answer.reasoning);
  out += ",\"refusal\":null";
  if (!answer.calls.empty()) {
    out += ",\"tool_calls\":[";
    for (std::size_t i = 0; i < answer.calls.size(); ++i) {
      const Call& call = answer.calls[i];
      out += i == 0 ? "{\"id\":" : ",{\"id\":";
      append_json_string(out, call.id);
      out += ",\"type\":\"function\",\"function\":{\"name\":";
      append_json_string(out, call.name);
      out += ",\"arguments\":";
      append_json_string(out, call.arguments);
      out += "}}";
    }
    out += ']';
  }
  out += '}';
}

void OpenAiChatSink::send_whole() {
  std::string out = head_json_ + ",\"choices\":[";
  for (std::size_t i = 0; i < answers_.size(); ++i) {
    const Answer& answer = answers_[i];
    out += fmt::format("{}{{\"index\":{},\"message\":", i == 0 ? "" : ",", i);
    append_message(out, answer);
    out += ",\"logprobs\":";
    out += has_logprobs_ ? "{\"content\":[" + answer.logprobs + "],\"refusal\":null}" : "null";
    out += ",\"finish_reason\":";
    append_json_string(out, openai_finish_reason(answer.done));
    append_stop_reason(out, answer.done.finished);
    if (returns_token_ids_) out += ",\"token_ids\":[" + answer.token_ids + "]";
    out += '}';
  }
  out += "],\"usage\":";
  usage_.append_to(out);
  if (returns_token_ids_) out += ",\"prompt_token_ids\":[" + join_ids(prompt_ids_) + "]";
  append_warnings(out, warnings_);
  out += '}';
  HttpResponse response{.body = std::move(out), .headers = {{"X-Still-Generation", generation_id_}}};
  if (!warnings_.empty()) response.headers.push_back({"X-Still-Warning", warnings_.front()});
  writer_->send(std::move(response));
}

void OpenAiChatSink::on_failed(const Error& error) {
  if (!sse_.is_started()) {
    writer_->send(error_response(ApiShape::kOpenAi, error));
    return;
  }
  sse_.send(error_body(ApiShape::kOpenAi, error));
  sse_.finish();
}

}  // namespace still
