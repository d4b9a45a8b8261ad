#include "text/think_splitter.h"

#include <algorithm>
#include <utility>

namespace still {

namespace {

constexpr std::string_view kBegin = "<think>", kEnd = "</think>";
constexpr std::string_view kSpaces = " \t\r\n";

std::optional<TokenId> find_tag(const Tokenizer& tokenizer, std::string_view tag) {
  const auto id = tokenizer.find(tag);
  // A tag that merging may produce from plain text is no tag.
  return id && tokenizer.token_type(*id) != TokenType::kNormal && tokenizer.token_type(*id) != TokenType::kUnused
             ? id
             : std::nullopt;
}

// Length of the longest end of `text` that is a beginning of `tag`.
std::size_t partial_tag(std::string_view text, std::string_view tag) {
  for (std::size_t n = std::min(text.size(), tag.size() - 1); n > 0; --n)
    if (text.ends_with(tag.substr(0, n))) return n;
  return 0;
}

}  // namespace

ThinkTokens find_think_tokens(const Tokenizer& tokenizer) {
  return {find_tag(tokenizer, kBegin), find_tag(tokenizer, kEnd)};
}

bool prompt_ends_in_thinking(const Tokenizer& tokenizer, std::span<const TokenId> prompt) {
  const ThinkTokens tokens = find_think_tokens(tokenizer);
  // Only what follows the last control token: an unfinished block in an earlier turn does not count.
  std::size_t first = prompt.size();
  while (first > 0) {
    const TokenId id = prompt[first - 1];
    if (tokens.are_tokens() && (id == *tokens.begin || id == *tokens.end)) return id == *tokens.begin;
    if (tokenizer.is_special(id) || tokenizer.ends_generation(id)) break;
    --first;
  }
  if (tokens.are_tokens()) return false;
  const std::string text = tokenizer.decode(prompt.subspan(first), false);
  const std::size_t begin = text.rfind(kBegin), end = text.rfind(kEnd);
  return begin != std::string::npos && (end == std::string::npos || end < begin);
}

ThinkSplitter::ThinkSplitter(const Tokenizer& tokenizer, bool starts_inside)
    : tokenizer_(tokenizer),
      tokens_(find_think_tokens(tokenizer)),
      detokenizer_(tokenizer),
      state_(starts_inside ? State::kThinking : State::kStart) {}

void ThinkSplitter::open() {
  state_ = State::kThinking;
  held_.clear();
  at_beginning_ = true;
}

void ThinkSplitter::close(std::vector<ThinkEvent>& events) {
  take_text(detokenizer_.flush(), events);
  state_ = State::kContent;
  was_closed_ = true;
  at_beginning_ = true;
}

std::vector<ThinkEvent> ThinkSplitter::add(TokenId id) {
  std::vector<ThinkEvent> events;
  if (tokens_.are_tokens()) {
    // A model that is told to think may still write the tag itself.
    if (id == *tokens_.begin && (state_ == State::kStart || (state_ == State::kThinking && at_beginning_))) {
      open();
      return events;
    }
    if (id == *tokens_.end && state_ != State::kContent) {
      if (state_ == State::kStart) held_.clear();
      close(events);
      return events;
    }
    if (state_ == State::kThinking && !tokenizer_.ends_generation(id)) ++n_thinking_tokens_;
    take_text(detokenizer_.add(id), events);
    return events;
  }
  const bool was_inside = state_ == State::kThinking;
  take_tagged_text(detokenizer_.add(id), events);
  if (was_inside && state_ == State::kThinking && !tokenizer_.ends_generation(id)) ++n_thinking_tokens_;
  return events;
}

std::vector<ThinkEvent> ThinkSplitter::finish() {
  std::vector<ThinkEvent> events;
  std::string rest = std::exchange(held_, {});
  rest += detokenizer_.flush();
  if (state_ == State::kStart) state_ = State::kContent, at_beginning_ = false;
  take_text(std::move(rest), events);
  return events;
}

// Text that is known to hold no tag.
void ThinkSplitter::take_text(std::string text, std::vector<ThinkEvent>& events) {
  if (state_ == State::kStart) {
    held_ += text;
    if (held_.find_first_not_of(kSpaces) == std::string::npos) return;
    state_ = State::kContent;
    at_beginning_ = false;
    text = std::exchange(held_, {});
  }
  if (at_beginning_) {
    text.erase(0, std::min(text.find_first_not_of("\r\n"), text.size()));
    if (text.empty()) return;
    at_beginning_ = false;
  }
  if (text.empty()) return;
  const auto kind = state_ == State::kThinking ? ThinkEvent::Kind::kReasoning : ThinkEvent::Kind::kContent;
  if (!events.empty() && events.back().kind == kind) {
    events.back().text += text;
  } else {
    events.push_back({kind, std::move(text)});
  }
}

// Vocabularies without tag tokens: the tags may be spread over several tokens, so what could begin one is held back.
void ThinkSplitter::take_tagged_text(std::string text, std::vector<ThinkEvent>& events) {
  text = std::exchange(held_, {}) + text;
  if (state_ == State::kStart) {
    const std::size_t word = std::min(text.find_first_not_of(kSpaces), text.size());
    const std::string_view rest = std::string_view(text).substr(word);
    if (rest.starts_with(kBegin)) {
      text.erase(0, word + kBegin.size());
      open();
    } else if (kBegin.starts_with(rest)) {
      held_ = std::move(text);
      return;
    } else {
      take_text(std::move(text), events);
      return;
    }
  }
  if (state_ == State::kThinking) {
    if (at_beginning_) {
      const std::size_t word = std::min(text.find_first_not_of("\r\n"), text.size());
      const std::string_view rest = std::string_view(text).substr(word);
      if (rest.starts_with(kBegin))
        text.erase(0, word + kBegin.size());
      else if (!rest.empty() && kBegin.starts_with(rest)) {
        held_ = std::move(text);
        return;
      }
    }
    const std::size_t end = text.find(kEnd);
    if (end == std::string::npos) {
      held_ = text.substr(text.size() - partial_tag(text, kEnd));
      text.resize(text.size() - held_.size());
      take_text(std::move(text), events);
      return;
    }
    take_text(text.substr(0, end), events);
    text.erase(0, end + kEnd.size());
    state_ = State::kContent;
    was_closed_ = true;
    at_beginning_ = true;
  }
  take_text(std::move(text), events);
}

}  // namespace still
