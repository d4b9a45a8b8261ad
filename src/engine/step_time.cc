#include "engine/step_time.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace still {

namespace {
// Weight of the newest measurement in the running means.
constexpr double kNewest = 0.25;
// The first chunk beside sequences that decode, when nothing is known of the machine.
constexpr std::int64_t kFirstChunk = 64;

void update_mean(double& mean, double value) {
  mean = mean == 0 ? value : mean + kNewest * (value - mean);
}

std::size_t size_class(std::int64_t n_decode, std::size_t n_classes) {
  return std::min<std::size_t>(static_cast<std::size_t>(std::bit_width(static_cast<std::uint64_t>(n_decode))),
                               n_classes) -
         1;
}
}  // namespace

// Of so many sequences, else of the nearest number that was seen, fewer ones first.
double StepTime::decode_seconds(std::int64_t n_decode) const {
  if (n_decode <= 0) return 0;
  const std::size_t wanted = size_class(n_decode, decode_seconds_.size());
  for (std::size_t i = wanted + 1; i-- > 0;)
    if (decode_seconds_[i] > 0) return decode_seconds_[i];
  for (std::size_t i = wanted + 1; i < decode_seconds_.size(); ++i)
    if (decode_seconds_[i] > 0) return decode_seconds_[i];
  return 0;
}

void StepTime::observe(std::int64_t n_decode, std::int64_t n_prefill, double seconds) {
  if (n_prefill == 0) {
    if (n_decode > 0) update_mean(decode_seconds_[size_class(n_decode, decode_seconds_.size())], seconds);
    return;
  }
  const double prefill_seconds = seconds - decode_seconds(n_decode);
  const std::int64_t n_paid = n_prefill - free_rows(n_decode);
  // A few tokens measure the weights' traffic, not the arithmetic.
  if (n_prefill < limits_.min_chunk || n_paid <= 0 || prefill_seconds <= 0.1 * seconds) return;
  // The mean of the times, not of the rates: one step that was measured too fast would outweigh many.
  double seconds_per_token = prefill_rate_ == 0 ? 0 : 1 / prefill_rate_;
  update_mean(seconds_per_token, prefill_seconds / static_cast<double>(n_paid + free_rows(n_paid)));
  prefill_rate_ = 1 / seconds_per_token;
}

std::int64_t StepTime::affordable_prefill(std::int64_t n_decode, std::int64_t n_behind) const {
  constexpr std::int64_t kAny = std::numeric_limits<std::int64_t>::max();
  if (limits_.target_s <= 0 && (n_decode == 0 || limits_.max_stall <= 0)) return kAny;
  if (prefill_rate_ == 0) return n_decode > 0 ? kFirstChunk : limits_.good_chunk;
  const double decode = decode_seconds(n_decode);
  double seconds = std::numeric_limits<double>::infinity();
  if (limits_.target_s > 0)
    seconds = std::max(limits_.target_s, decode + static_cast<double>(limits_.good_chunk) / prefill_rate_);
  if (decode > 0 && limits_.max_stall > 0) {
    const double weight = std::max(1.0, static_cast<double>(n_behind) / static_cast<double>(n_decode));
    seconds = std::min(seconds, limits_.max_stall * decode * weight);
  }
  const double affordable = (seconds - decode) * prefill_rate_;
  if (affordable >= 1e9) return kAny;
  const std::int64_t n_free = free_rows(n_decode);
  auto n_paid = static_cast<std::int64_t>(affordable);
  n_paid -= n_paid % limits_.row_group;
  while (n_free + n_paid < limits_.min_chunk) n_paid += limits_.row_group;
  return n_free + n_paid;
}

}  // namespace still
