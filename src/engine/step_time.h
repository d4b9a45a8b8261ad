// StepTime: what a step takes on this machine, learned from the steps so far, and so how many tokens of prompts the
// next one may compute. A short step lets those that decode go on, a cancelled request end, and a new one begin; a long
// one reads the weights for more tokens at once. Where a chunk ends does not change any token's bits.
#pragma once

#include <array>
#include <cstdint>

namespace still {

struct StepLimits {
  // A step takes about so long at most, or what good_chunk tokens of prompts take where that is more: with fewer tokens
  // the unpacking of the weights costs more than it should. 0: no limit.
  double target_s = 0.25;
  std::int64_t good_chunk = 128;
  // A step with prefill takes about so many times as long as one without, for those that decode; 0: no limit.
  double max_stall = 2.0;
  std::int64_t min_chunk = 3;  // prefill goes on by so many tokens at least, whatever the limits say
  // Rows that the products compute together: one row of the next group costs as much as all of it. Beside sequences
  // that decode, a chunk fills the last group of theirs and takes whole ones.
  std::int64_t row_group = 1;
};

class StepTime {
 public:
  explicit StepTime(const StepLimits& limits) : limits_(limits) {}

  // n_decode rows of sequences that decode, n_prefill of prompts, no drafts.
  void observe(std::int64_t n_decode, std::int64_t n_prefill, double seconds);
  // Tokens of prompts beside n_decode decoding sequences, where n_behind others wait for their first token: the more of
  // them to each that decodes, the more of the step is theirs.
  std::int64_t affordable_prefill(std::int64_t n_decode, std::int64_t n_behind) const;
  double prefill_tokens_per_s() const { return prefill_rate_; }  // recent mean; 0: unknown

 private:
  double decode_seconds(std::int64_t n_decode) const;  // 0: unknown
  // Rows that n_decode sequences leave free in their last group.
  std::int64_t free_rows(std::int64_t n_decode) const {
    return (limits_.row_group - n_decode % limits_.row_group) % limits_.row_group;
  }

  StepLimits limits_;
  double prefill_rate_ = 0;                  // tokens of prompts a second, those in free rows not counted
  std::array<double, 16> decode_seconds_{};  // of 1, 2-3, 4-7, ... sequences without prefill, recent means; 0: unknown
};

}  // namespace still
