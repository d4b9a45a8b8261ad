// Speed on this machine, measured instead of guessed and without the model: a slice of its layers (the real widths and
// types, made-up weights) runs through the very forward pass that the engine calls; time is linear in the layers, so
// two slice lengths give the time of a layer and of the rest (embedding, head), and with them that of the whole model.
#pragma once

#include <cstdint>
#include <memory>

#include "plan/quantisation.h"

namespace still {

struct HostSpeed {
  double decode_tok_per_s = 0, prefill_tok_per_s = 0;  // with decode_kv_len tokens in the cache; of n_prompt tokens
  double decode_layer_s = 0, decode_rest_s = 0;        // of one token
  double decode_s_per_kv_token = 0;                    // what each further token in the cache adds to a step
  std::int64_t slice_layers = 0, slice_bytes = 0;
  double seconds = 0;  // that the calibration took
  // Decoding with kv_len tokens in the cache.
  double tok_per_s_at(double kv_len) const;
  double decode_kv_len = 0;
};

struct CalibrationSettings {
  int n_threads = 0;
  std::int64_t n_prompt = 512;      // tokens of the prefill chunk
  std::int64_t decode_kv_len = 64;  // tokens in the cache while decoding
  std::int64_t deep_kv_len = 1088;  // the second length, for the cost of attention
  double budget_s = 25;             // measuring, after the slice is made
  std::int64_t max_slice_bytes = std::int64_t{1} << 30;
};

// The slice, ready to be measured turn by turn: a busy neighbour then slows all quantities alike, and what is compared
// with the engine can be measured between two rounds.
class Calibrator {
 public:
  // kUnsupported where the engine does not run the architecture or a type; kResourceExhausted where two layers and the
  // head do not fit max_slice_bytes.
  static Result<Calibrator> create(const ModelShape& shape, const Quantisation& quantisation,
                                   const CalibrationSettings& settings);
  Calibrator(Calibrator&&) noexcept;
  Calibrator& operator=(Calibrator&&) noexcept;
  ~Calibrator();

  void round();             // each quantity once, a fraction of a second
  HostSpeed speed() const;  // medians of the rounds; at least one round

 private:
  struct State;
  explicit Calibrator(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Rounds for the budget.
Result<HostSpeed> calibrate_host(const ModelShape& shape, const Quantisation& quantisation,
                                 const CalibrationSettings& settings);

}  // namespace still
