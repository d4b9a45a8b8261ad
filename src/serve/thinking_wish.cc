#include "serve/thinking_wish.h"

#include <algorithm>
#include <array>

namespace still {

namespace {

struct Effort {
  std::string_view name, in_template;
  std::int64_t budget;
};
// Chosen so that each step is about four times the one before; R1 itself spends 1,000 to 20,000 tokens on a problem of
// mathematics (arXiv:2501.12948, section 3).
constexpr std::array<Effort, 8> kEfforts = {{{"none", "none", 0},
                                             {"minimal", "low", 512},
                                             {"low", "low", 2048},
                                             {"medium", "medium", 8192},
                                             {"high", "high", 24576},
                                             {"xhigh", "high", -1},
                                             {"max", "high", -1},
                                             {"ultra", "high", -1}}};

const Effort* find_effort(std::string_view name) {
  const auto found = std::find_if(kEfforts.begin(), kEfforts.end(), [name](const Effort& e) { return e.name == name; });
  return found == kEfforts.end() ? nullptr : &*found;
}

}  // namespace

Result<std::int64_t> effort_budget(std::string_view effort) {
  if (const Effort* found = find_effort(effort)) return found->budget;
  return error(Code::kInvalidArgument,
               "reasoning effort \"{}\": expected none, minimal, low, medium, high, xhigh or max", effort);
}

std::string_view template_effort(std::string_view effort) {
  const Effort* found = find_effort(effort);
  return found == nullptr ? std::string_view() : found->in_template;
}

Result<ChatThinking> resolve_thinking(const ThinkingWish& wish, bool can_think, std::string_view model_name,
                                      JsonObject& template_variables) {
  ChatThinking thinking;
  std::optional<bool> enabled = wish.enabled;
  thinking.budget = wish.budget;
  thinking.budget_message = wish.budget_message;
  if (!wish.effort.empty()) {
    STILL_TRY(const std::int64_t budget, effort_budget(wish.effort));
    if (!enabled) enabled = budget != 0;
    if (thinking.budget < 0) thinking.budget = budget;
    if (budget != 0 && *enabled) template_variables.emplace("reasoning_effort", template_effort(wish.effort));
  }
  if (wish.budget == 0) enabled = false;
  if (enabled == false) {
    thinking.mode = ThinkingMode::kForbidden;
    thinking.budget = -1;
  } else if (!can_think) {
    if (enabled == true && wish.must_support)
      return error(Code::kInvalidArgument, "\"{}\" does not support thinking", model_name);
    thinking.budget = -1;
  } else if (enabled == true) {
    thinking.mode = ThinkingMode::kRequired;
  }
  return thinking;
}

}  // namespace still
