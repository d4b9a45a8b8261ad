#include "engine/generate.h"

namespace still {

std::vector<TokenId> GenerateResult::ids() const {
  std::vector<TokenId> ids;
  ids.reserve(tokens.size());
  for (const GeneratedToken& token : tokens) ids.push_back(token.id);
  return ids;
}

namespace {
void collect(const Event& event, GenerateResult& result) {
  if (const auto* started = std::get_if<StartedEvent>(&event)) result.started = *started;
  if (const auto* token = std::get_if<PromptTokenEvent>(&event)) result.prompt_tokens.push_back(*token);
  if (const auto* finished = std::get_if<FinishedEvent>(&event)) result.finished = *finished;
  const auto* token = std::get_if<TokenEvent>(&event);
  if (token == nullptr) return;
  (token->channel == Channel::kReasoning ? result.reasoning : result.text) += token->text;
  if (token->id >= 0 && !token->is_end) result.tokens.push_back({token->id, token->channel, token->logprobs});
}
}  // namespace

Result<GenerateResult> generate(Engine& engine, Request request, const std::function<bool(const Event&)>& on_event) {
  const auto queue = std::make_shared<EventQueue>();
  STILL_TRY(const RequestId id, engine.submit(std::move(request), queue));
  GenerateResult result;
  while (true) {
    std::optional<Event> event;
    if (engine.is_started()) {
      event = queue->pop();
    } else {
      while (!(event = queue->try_pop())) engine.step();
    }
    collect(*event, result);
    if (on_event && !on_event(*event)) engine.cancel(id);
    if (std::holds_alternative<FinishedEvent>(*event)) break;
  }
  if (result.finished.reason == FinishReason::kError) return tl::unexpected(result.finished.error);
  return result;
}

}  // namespace still
