// What a pull tells while it works, and the rate and time left it works out for that.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>

namespace still {

struct Progress {
  enum class Phase {
    kNote,         // a line for the user (`message`): a source that failed, a retry
    kListing,      // asking a source what it has
    kWaiting,      // another process loads the same bytes
    kDownloading,  // from the network, or by pip
    kCopying,      // from a local file
    kVerifying,    // the digest is being finished
    kWriting,      // into the store
  };
  Phase phase = Phase::kNote;
  std::string message;            // kNote: the line; else the file or source it is about
  std::string digest;             // SHA-256 of the file under way, where it is known before; else empty
  std::int64_t done_bytes = 0;    // of the whole model
  std::int64_t total_bytes = -1;  // -1: not known
  double bytes_per_s = 0;         // over the last seconds
  double seconds_left = -1;       // -1: not known
};

// Called from the thread of the pull, at most about ten times a second while bytes move. Must not throw.
using ProgressFn = std::function<void(const Progress&)>;

// Bytes a second over a sliding window of five seconds.
class RateMeter {
 public:
  using Clock = std::chrono::steady_clock;
  void add(std::int64_t done_bytes, Clock::time_point now = Clock::now()) {
    samples_.emplace_back(now, done_bytes);
    while (samples_.size() > 2 && now - samples_.front().first > std::chrono::seconds(5)) samples_.pop_front();
  }
  double bytes_per_s() const {
    if (samples_.size() < 2) return 0;
    const double seconds = std::chrono::duration<double>(samples_.back().first - samples_.front().first).count();
    return seconds > 0 ? static_cast<double>(samples_.back().second - samples_.front().second) / seconds : 0;
  }

 private:
  std::deque<std::pair<Clock::time_point, std::int64_t>> samples_;
};

}  // namespace still
