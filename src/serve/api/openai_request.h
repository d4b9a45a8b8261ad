// Requests of OpenAI's API, with the extensions of DeepSeek, vLLM, llama-server and Ollama that clients send there.
// Names and limits: https://platform.openai.com/docs/api-reference/chat, https://api-docs.deepseek.com,
// https://docs.vllm.ai (openai_compatible_server).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "serve/api/json_fields.h"
#include "serve/generation.h"

namespace still {

struct OpenAiStream {
  bool is_on = false;
  bool include_usage = false;
  bool continuous_usage = false;  // in every chunk
};

struct ChatCall {
  GenerationInput input;
  OpenAiStream stream;
  bool includes_stop = false;  // the stop string is part of the answer
  bool returns_token_ids = false;
};

struct CompletionCall {
  GenerationInput input;  // its prompt is empty: one generation for each of `prompts`
  std::vector<std::variant<TextInput, TokenInput>> prompts;
  OpenAiStream stream;
  std::int32_t n = 1;  // best of input.n
  bool echo = false;
  std::int32_t n_logprobs = -1;  // what is told; -1: none
  bool includes_stop = false;
  bool returns_token_ids = false;
};

// Mistakes are left in `fields`.
ChatCall read_chat_call(JsonFields& fields);
CompletionCall read_completion_call(JsonFields& fields);

// What both share with other APIs that take OpenAI's names (responses): each reads its members, unset ones stay.
void read_openai_sampling(JsonFields& fields, GenerationInput& input);
void read_openai_thinking(JsonFields& fields, GenerationInput& input);
void read_openai_format(JsonFields& fields, FormatWish& format);
void read_openai_tools(JsonFields& fields, ToolWish& tools);
void read_openai_model(JsonFields& fields, ModelWish& model);  // model, num_ctx, keep_alive

// Messages with content as one string each: text parts are joined by line ends, others refused by name; roles and tool
// calls are checked; what templates do not know is left out. `is_prefix`: the last one is an assistant's to be
// continued (DeepSeek's prefix).
JsonArray read_openai_messages(JsonFields& fields, bool& is_prefix);

// The defaults of OpenAI's API: temperature 1, nothing cut.
SamplingParams openai_sampling_defaults();

}  // namespace still
