// Speed on this machine, measured instead of guessed and without the model: a slice of its layers (the real widths and
// types, made-up weights) runs through the very forward pass that the engine calls; time is linear in the layers, so
// two slice lengths give the time of a layer and of the rest (embedding, head), and with them that of the whole model.
#pragma once

#include <cstdint>

#include "plan/quantisation.h"

namespace still {

struct HostSpeed {
  double decode_tok_per_s = 0, prefill_tok_per_s = 0;
  double decode_layer_s = 0, decode_rest_s = 0;  // of one token
  std::int64_t slice_layers = 0, slice_bytes = 0;
  double seconds = 0;  // that the calibration took
};

struct CalibrationSettings {
  int n_threads = 0;
  std::int64_t n_prompt = 512;      // tokens of the prefill chunk
  std::int64_t decode_kv_len = 64;  // tokens in the cache while decoding
  double budget_s = 10;             // measuring, after the slice is made
  std::int64_t max_slice_bytes = std::int64_t{1} << 30;
};
// kUnsupported where the engine does not run the architecture or a type; kResourceExhausted where two layers and the
// head do not fit max_slice_bytes.
Result<HostSpeed> calibrate_host(const ModelShape& shape, const Quantisation& quantisation,
                                 const CalibrationSettings& settings);

}  // namespace still
