#include "serve/sampling_defaults.h"

#include <algorithm>
#include <limits>

#include "engine/chat.h"
#include "serve/api/json_fields.h"

namespace still {

namespace {

void read_float(JsonFields& fields, std::string_view name, float& target) {
  if (const auto number = fields.number(name)) target = static_cast<float>(*number);
}

void read_int(JsonFields& fields, std::string_view name, std::int32_t& target) {
  if (const auto number =
          fields.integer_in(name, std::numeric_limits<std::int32_t>::min(), std::numeric_limits<std::int32_t>::max()))
    target = static_cast<std::int32_t>(*number);
}

}  // namespace

Status apply_sampling(const JsonObject& object, SamplingParams& params) {
  JsonFields fields(object, "option");
  read_float(fields, "temperature", params.temperature);
  read_int(fields, "top_k", params.top_k);
  read_float(fields, "top_p", params.top_p);
  read_float(fields, "min_p", params.min_p);
  read_float(fields, "repeat_penalty", params.repetition_penalty);
  read_float(fields, "repetition_penalty", params.repetition_penalty);
  read_float(fields, "presence_penalty", params.presence_penalty);
  read_float(fields, "frequency_penalty", params.frequency_penalty);
  read_int(fields, "repeat_last_n", params.penalty_last_n);
  read_int(fields, "penalty_last_n", params.penalty_last_n);
  if (const auto seed = fields.integer("seed")) {
    params.seed.reset();
    if (*seed >= 0) params.seed = static_cast<std::uint64_t>(*seed);
  }
  params.top_k = std::max(params.top_k, 0);
  // 0 is legal in OpenAI's API and means what a very small share means: the best token alone.
  if (params.top_p == 0) params.top_p = 1e-6f;
  return fields.status();
}

Status set_sampling(const GenerationInput& input, const ServedModel& served, Request& request) {
  request.sampling = default_sampling(*served.model, input.fallback);
  STILL_TRY_STATUS(apply_sampling(served.parameters, request.sampling));
  STILL_TRY_STATUS(apply_sampling(input.sampling, request.sampling));
  request.sampling.logit_bias = input.logit_bias;
  request.sampling.ignore_eos = input.ignore_eos;
  request.stop = input.stop;
  request.max_tokens = input.max_tokens;
  JsonFields manifest(served.parameters, "parameter");
  if (request.stop.empty()) request.stop = manifest.texts("stop");
  if (request.max_tokens < 0)
    request.max_tokens = std::max<std::int64_t>(-1, manifest.integer("num_predict").value_or(-1));
  return manifest.status();
}

}  // namespace still
