// Speed on this machine, measured instead of guessed and without the model: a slice of its layers (the real widths and
// types, made-up weights) runs through the very forward pass that the engine calls; time is linear in the layers, so
// two slice lengths give the time of a layer and of the rest (embedding, head), and with them that of the whole model.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "plan/quantisation.h"
#include "plan/speed.h"

namespace still {

// Seconds of the whole model, as one round of measuring gives them: what the slice lacks is added.
struct HostRound {
  static constexpr std::array<std::int64_t, 3> kSeqs = {1, 4, 16};
  std::array<double, kSeqs.size()> decode{};  // a step of kSeqs[i] sequences with decode_kv_len tokens each
  double kv_token = 0;                        // what each further token in a sequence's cache adds to a step
  double prefill = 0;                         // n_prompt tokens
};

struct HostSpeed {
  std::vector<HostRound> rounds;  // at least one
  std::int64_t n_prompt = 0, decode_kv_len = 0;
  double prefill_pair_s = 0;  // what each further pair of a query and a key adds to a prefill
  std::int64_t slice_layers = 0, slice_bytes = 0;
  double seconds = 0;  // that the calibration took

  // Each with the median of the rounds, and the values that a tenth of them lies below and above.
  Interval step_s(std::int64_t n_seqs, double kv_len) const;                   // of decoding
  Interval prefill_s(std::int64_t n_tokens, std::int64_t chunk_tokens) const;  // until the first token
  SpeedPoint point(std::int64_t n_seqs, double kv_len) const;
};

struct CalibrationSettings {
  int n_threads = 0;
  std::int64_t n_prompt = 512;                           // tokens of the prefill chunk
  std::int64_t decode_kv_len = 64;                       // tokens in the cache while decoding
  std::int64_t deep_kv_len = 1088;                       // the second length, for the cost of attention
  double budget_s = 28;                                  // all of it; one round is made whatever it takes
  std::int64_t max_slice_bytes = std::int64_t{4} << 30;  // and half of the memory that is free
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

  void round();             // each quantity once, a second or a few
  HostSpeed speed() const;  // of the rounds so far; at least one

 private:
  struct State;
  explicit Calibrator(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// As many rounds as the budget holds.
Result<HostSpeed> calibrate_host(const ModelShape& shape, const Quantisation& quantisation,
                                 const CalibrationSettings& settings);

}  // namespace still
