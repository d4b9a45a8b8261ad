// Where a request's sampling comes from: what the client set, else the manifest's parameters, else the model's own
// generation_config, else the API's documented defaults.
#pragma once

#include "base/json.h"
#include "base/result.h"
#include "engine/request.h"
#include "serve/generation.h"

namespace still {

// Sets what `fields` holds: temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty,
// penalty_last_n, seed, and Ollama's names repeat_penalty and repeat_last_n. null and unknown names are skipped, a
// negative seed is none, top_k -1 is off. kInvalidArgument names the member: option "top_k" must be of type integer.
Status apply_sampling(const JsonObject& fields, SamplingParams& params);

// sampling, stop and max_tokens of `request` for `input` on `served`; manifest parameters stop and num_predict count
// where the client set none.
Status set_sampling(const GenerationInput& input, const ServedModel& served, Request& request);

}  // namespace still
