// generate(): one request from start to end, for commands, tests and scripts.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace still {

struct GeneratedToken {
  TokenId id = -1;
  Channel channel = Channel::kContent;
  std::optional<Logprobs> logprobs;
};

struct GenerateResult {
  std::string text;                             // of the content channel
  std::string reasoning;                        // of the reasoning channel
  std::vector<GeneratedToken> tokens;           // all but the end token
  std::vector<PromptTokenEvent> prompt_tokens;  // where prompt_logprobs was asked for
  StartedEvent started;
  FinishedEvent finished;

  std::vector<TokenId> ids() const;
};

// Submits and waits; drives step() itself where the engine was not started. `on_event` sees every event as it comes, on
// the calling thread, and returns false to cancel. The error of a refused request, or of one that finished with kError.
Result<GenerateResult> generate(Engine& engine, Request request,
                                const std::function<bool(const Event&)>& on_event = {});

}  // namespace still
