#include "ops/work_shares.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "base/thread_pool.h"

namespace still {
namespace {

using Units = std::pair<std::int64_t, std::int64_t>;

TEST(WorkShares, OwnShareFromTheFrontThenOthersFromTheBack) {
  WorkShares shares(2);
  shares.set(0, 0, 8);
  shares.set(1, 8, 16);
  EXPECT_EQ(shares.take(0, 0, 2, 2), Units(0, 4));
  EXPECT_EQ(shares.take(0, 0, 2, 2), Units(4, 6));
  EXPECT_EQ(shares.take(0, 0, 2, 2), Units(6, 8));
  EXPECT_EQ(shares.take(0, 0, 2, 2), Units(12, 16));
  EXPECT_EQ(shares.take(1, 0, 2, 2), Units(8, 10));
  EXPECT_EQ(shares.take(1, 0, 2, 2), Units(10, 12));
  const Units nothing = shares.take(1, 0, 2, 2);
  EXPECT_EQ(nothing.first, nothing.second);
}

TEST(WorkShares, AnotherTeamsShareIsLeftAlone) {
  WorkShares shares(2);
  shares.set(0, 0, 0);
  shares.set(1, 0, 5);
  const Units nothing = shares.take(0, 0, 1, 1);
  EXPECT_EQ(nothing.first, nothing.second);
  EXPECT_EQ(shares.take(1, 1, 2, 8), Units(0, 5));
}

TEST(WorkShares, EachUnitIsTakenOnce) {
  constexpr int kThreads = 4;
  ThreadPool threads({.n_threads = kThreads, .pin = false});
  WorkShares shares(kThreads);
  for (const std::int64_t n : {0, 1, 3, 4, 997}) {
    for (const std::int64_t least : {1, 2, 50}) {
      std::vector<std::atomic<int>> taken(static_cast<std::size_t>(n));
      // All of it belongs to one thread: the others live on what they take from it.
      for (int i = 0; i < kThreads; ++i) shares.set(i, i < 2 ? 0 : n, i < 1 ? 0 : n);
      threads.run([&](int thread_idx) {
        for (;;) {
          const auto [begin, end] = shares.take(thread_idx, 0, kThreads, least);
          if (begin == end) return;
          for (std::int64_t i = begin; i < end; ++i) ++taken[static_cast<std::size_t>(i)];
        }
      });
      for (const auto& count : taken) EXPECT_EQ(count.load(), 1);
    }
  }
}

}  // namespace
}  // namespace still
