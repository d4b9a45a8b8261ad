#include "serve/truncation.h"

#include <vector>

namespace still {

std::string_view role_of(const Json& message) {
  const JsonObject* object = message.if_object();
  const Json* role = object != nullptr ? object->if_contains("role") : nullptr;
  return role != nullptr && role->is_string() ? std::string_view(role->get_string()) : std::string_view();
}

namespace {

bool is_system(const Json& message) {
  return role_of(message) == "system" || role_of(message) == "developer";
}

// Where the chat may begin: at each user's message but the first, so that no answer stands without its question and no
// tool's result without its call.
std::vector<std::size_t> possible_beginnings(const JsonArray& messages) {
  std::vector<std::size_t> beginnings;
  bool is_first = true;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    if (is_system(messages[i])) continue;
    if (!is_first && role_of(messages[i]) == "user") beginnings.push_back(i);
    is_first = false;
  }
  return beginnings;
}

JsonArray without_oldest(const JsonArray& messages, std::size_t beginning) {
  JsonArray kept;
  for (std::size_t i = 0; i < messages.size(); ++i)
    if (i >= beginning || is_system(messages[i])) kept.push_back(messages[i]);
  return kept;
}

}  // namespace

Result<FittedChat> fit_chat(const JsonArray& messages, std::int64_t limit,
                            const std::function<Result<Request>(JsonArray)>& render) {
  const auto length = [](const Request& request) { return static_cast<std::int64_t>(request.prompt.size()); };
  STILL_TRY(Request whole, render(messages));
  if (length(whole) <= limit) return FittedChat{std::move(whole), 0};
  const std::vector<std::size_t> beginnings = possible_beginnings(messages);
  const auto too_long = [&](std::int64_t n_tokens) {
    return error(Code::kResourceExhausted,
                 "the prompt has {} tokens{}, the context leaves room for {}: shorten it or choose a larger context",
                 n_tokens, beginnings.empty() ? "" : " without the older turns", limit);
  };
  if (beginnings.empty()) return too_long(length(whole));
  // The earliest beginning that fits; later ones are shorter.
  STILL_TRY(Request best, render(without_oldest(messages, beginnings.back())));
  if (length(best) > limit) return too_long(length(best));
  std::size_t low = 0, high = beginnings.size() - 1;
  while (low < high) {
    const std::size_t middle = (low + high) / 2;
    STILL_TRY(Request request, render(without_oldest(messages, beginnings[middle])));
    if (length(request) <= limit) {
      best = std::move(request);
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  const auto n_kept = static_cast<std::int64_t>(without_oldest(messages, beginnings[high]).size());
  return FittedChat{std::move(best), static_cast<std::int64_t>(messages.size()) - n_kept};
}

}  // namespace still
