// Chats that are too long for the context: the oldest turns are dropped, never in silence.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"
#include "engine/request.h"

namespace still {

// "" where it has none.
std::string_view role_of(const Json& message);

struct FittedChat {
  Request request;
  std::int64_t n_dropped = 0;  // messages
};

// Renders `messages`; where that takes more than `limit` tokens, again without the oldest turns, as few as possible:
// system messages and the last turn stay, and a chat begins with a user's message. kResourceExhausted where even the
// last turn is too long, with both numbers. `render` makes the request of some messages.
Result<FittedChat> fit_chat(const JsonArray& messages, std::int64_t limit,
                            const std::function<Result<Request>(JsonArray)>& render);

}  // namespace still
