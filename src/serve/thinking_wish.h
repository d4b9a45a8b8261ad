// From a client's wish about thinking (serve/generation.h) to what the engine and the template understand.
#pragma once

#include <optional>

#include "base/json.h"
#include "base/result.h"
#include "engine/chat.h"
#include "serve/generation.h"

namespace still {

// Tokens that an effort may think: minimal 512, low 2048, medium 8192, high 24576, xhigh, max and ultra without limit
// (-1), none 0. kInvalidArgument for other words.
Result<std::int64_t> effort_budget(std::string_view effort);

// The word that templates know (gpt-oss and others: low, medium, high).
std::string_view template_effort(std::string_view effort);

// Mode and budget for a model; sets the template variable reasoning_effort where an effort was named. On a model that
// cannot think a wish to is dropped, or refused where it must be supported: `"smollm2:135m" does not support thinking`.
Result<ChatThinking> resolve_thinking(const ThinkingWish& wish, bool can_think, std::string_view model_name,
                                      JsonObject& template_variables);

}  // namespace still
