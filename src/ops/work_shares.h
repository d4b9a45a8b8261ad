// Work in a row of units, parted among a team: each thread takes from the front of its own share, at first half of what
// is left, then ever less; whose share is empty takes from the back of another's. So neighbours in memory mostly stay
// with one thread, and all end together although one was slower or came late.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

namespace still {

class WorkShares {
 public:
  explicit WorkShares(int n_threads) : shares_(static_cast<std::size_t>(n_threads)) {}

  // Before the team starts, for each thread: units [begin, end), below 2^32.
  void set(int thread_idx, std::int64_t begin, std::int64_t end) {
    share(thread_idx).store(packed(begin, end), std::memory_order_relaxed);
  }

  // What the thread does next, of its own share or of those of the threads [team_begin, team_end); empty: all is taken.
  // At least `least` units where as many are left together.
  std::pair<std::int64_t, std::int64_t> take(int thread_idx, int team_begin, int team_end, std::int64_t least) {
    const int team = team_end - team_begin;
    for (int i = 0; i < team; ++i) {
      std::atomic<std::uint64_t>& from = share(team_begin + (thread_idx - team_begin + i) % team);
      std::uint64_t seen = from.load(std::memory_order_relaxed);
      for (;;) {
        const auto begin = static_cast<std::int64_t>(seen >> 32), end = static_cast<std::int64_t>(seen & 0xffffffffu);
        const std::int64_t left = end - begin;
        if (left <= 0) break;
        const std::int64_t n = left < 2 * least ? left : left / 2;
        const std::uint64_t rest = i == 0 ? packed(begin + n, end) : packed(begin, end - n);
        if (!from.compare_exchange_weak(seen, rest, std::memory_order_relaxed)) continue;
        return i == 0 ? std::pair(begin, begin + n) : std::pair(end - n, end);
      }
    }
    return {0, 0};
  }

 private:
  struct alignas(64) Share {
    std::atomic<std::uint64_t> units{0};  // begin in the upper half, end in the lower
  };
  static std::uint64_t packed(std::int64_t begin, std::int64_t end) {
    return static_cast<std::uint64_t>(begin) << 32 | static_cast<std::uint64_t>(end);
  }
  std::atomic<std::uint64_t>& share(int thread_idx) { return shares_[static_cast<std::size_t>(thread_idx)].units; }

  std::vector<Share> shares_;
};

}  // namespace still
