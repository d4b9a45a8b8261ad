// Sequence: one request on its way: its tokens, its KV blocks, and what the engine must remember between steps.
// The engine's thread owns it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/drafter.h"
#include "engine/event.h"
#include "engine/prefix_cache.h"
#include "engine/request.h"
#include "engine/text_stream.h"
#include "engine/thinking.h"

namespace still {

using TimePoint = std::chrono::steady_clock::time_point;

struct Sequence {
  RequestId id = 0;
  Request request;
  std::shared_ptr<EventSink> sink;
  std::uint64_t seed = 0;
  std::int64_t max_length = 0;    // tokens in all: the context, or prompt + max_tokens
  bool is_context_limit = false;  // max_length is the context's, not the request's

  std::vector<TokenId> tokens;  // prompt, then answer; the last one is below 0 while only a device knows it
  std::int64_t n_prompt = 0;
  std::int64_t n_computed = 0;  // tokens whose keys and values are in the blocks
  std::vector<std::int32_t> blocks;
  PrefixKey key;                  // of the last registered block
  std::int64_t n_registered = 0;  // blocks known to the prefix cache

  ThinkingState thinking;
  TextStream text;
  std::vector<TokenId> draft;  // proposals of this step
  std::vector<std::uint8_t> draft_strengths;
  DraftRecord draft_record;
  std::int64_t n_drafter_computed = -1;  // DraftTask::n_computed
  bool is_constrained = false;           // the constraint has begun

  // Scheduling.
  std::uint64_t arrival = 0;  // order of submission
  std::int32_t user_idx = -1;
  bool is_running = false;
  bool was_started = false;  // StartedEvent was sent
  bool is_finished = false;
  bool has_events = false;  // in this step
  TokenId stop_token = -1;
  Error error;
  std::int64_t told_position = -1;  // last queue position sent
  std::int64_t n_scored = 0;        // prompt tokens whose log-probabilities were sent

  // Accounting.
  std::int64_t n_computed_before = 0;  // most tokens ever computed: beyond it nothing is recomputation
  Usage usage;
  TimePoint submitted, started, first_token, last_token;
  bool has_token = false;

  std::int64_t length() const { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t n_pending() const { return length() - n_computed; }
  std::int64_t n_answer() const { return length() - n_prompt; }
  // One token to compute, and it is not the prompt's last: the next step gives the next token.
  bool is_decoding() const { return n_pending() == 1 && (has_token || has_unknown()); }
  bool is_answering() const { return n_computed >= n_prompt; }  // the next token to compute is the answer's
  bool has_unknown() const { return tokens.back() < 0; }
  // It ends with the token that only a device knows.
  bool will_end() const { return has_unknown() && length() >= max_length; }
};

}  // namespace still
