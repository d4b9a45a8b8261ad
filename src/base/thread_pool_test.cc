#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <utility>
#include <vector>

#include "base/topology.h"

namespace still {
namespace {

using Clock = std::chrono::steady_clock;

TEST(ThreadPool, RunsTheBodyOnceOnEveryThread) {
  for (int n_threads : {1, 2, 3, 7}) {
    ThreadPool pool({.n_threads = n_threads});
    ASSERT_EQ(pool.size(), n_threads);
    std::vector<int> calls(static_cast<std::size_t>(n_threads), 0);  // each thread writes its own: run() must publish
    for (int round = 0; round < 200; ++round) pool.run([&](int i) { ++calls[static_cast<std::size_t>(i)]; });
    for (int count : calls) EXPECT_EQ(count, 200);
  }
}

TEST(ThreadPool, CallerIsThreadZero) {
  ThreadPool pool({.n_threads = 3});
  const std::thread::id caller = std::this_thread::get_id();
  pool.run([&](int i) { EXPECT_EQ(std::this_thread::get_id() == caller, i == 0); });
}

TEST(ThreadPool, PartsWorkAmongNodes) {
  const CpuTopology two{{{0, {0}}, {1, {0, 0, 0}}}};  // the same CPU under other names
  ThreadPool pool({.n_threads = 8, .topology = &two});
  ASSERT_EQ(pool.n_nodes(), 2);
  EXPECT_EQ(pool.node_threads(0), std::pair(0, 2));
  EXPECT_EQ(pool.node_threads(1), std::pair(2, 8));
  EXPECT_EQ(pool.node_of(1), 0);
  EXPECT_EQ(pool.node_of(2), 1);
  for (const std::int64_t n : {0, 1, 7, 8, 1000}) {
    EXPECT_EQ(pool.node_share(n, 0).first, 0);
    EXPECT_EQ(pool.node_share(n, 0).second, pool.node_share(n, 1).first);
    EXPECT_EQ(pool.node_share(n, 1).second, n);
  }
  std::atomic<int> n_calls{0};
  std::thread([&] {
    for (int round = 0; round < 20; ++round) pool.run([&](int) { ++n_calls; });
  }).join();
  EXPECT_EQ(n_calls, 160);
  ThreadPool one({.n_threads = 3});
  EXPECT_EQ(one.node_share(10, one.node_of(2)), (std::pair<std::int64_t, std::int64_t>(0, 10)));
}

TEST(ThreadPool, WakesThreadsThatSleep) {
  ThreadPool pool({.n_threads = 3, .spin_us = 0});
  std::atomic<int> sum{0};
  for (int round = 0; round < 50; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(round % 5 == 0 ? 3 : 0));
    pool.run([&](int i) {
      if (i > 0 && round % 7 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // the caller sleeps too
      sum += i;
    });
  }
  EXPECT_EQ(sum, 50 * (1 + 2));
}

TEST(ThreadPool, BarrierSeparatesPhases) {
  for (int n_threads : {1, 2, 4}) {
    ThreadPool pool({.n_threads = n_threads});
    std::vector<int> values(static_cast<std::size_t>(n_threads), 0);
    std::atomic<int> wrong{0};
    pool.run([&](int i) {
      for (int phase = 1; phase <= 100; ++phase) {
        values[static_cast<std::size_t>(i)] = phase;
        pool.barrier();
        for (int value : values) wrong += value != phase;
        pool.barrier();
      }
    });
    EXPECT_EQ(wrong, 0);
  }
}

TEST(ThreadPool, ForEachDoesEveryTaskOnce) {
  ThreadPool pool({.n_threads = 3});
  for (std::int64_t n_tasks : {0, 1, 2, 1000}) {
    std::vector<std::atomic<int>> done(static_cast<std::size_t>(n_tasks));
    pool.for_each(n_tasks, [&](std::int64_t task) { ++done[static_cast<std::size_t>(task)]; });
    for (const auto& count : done) EXPECT_EQ(count, 1);
  }
}

TEST(ThreadPool, MoreThreadsThanCoresStillFinish) {
  ThreadPool pool({.n_threads = 4 * usable_cores() + 1});
  std::atomic<int> arrived{0};
  const Clock::time_point begin = Clock::now();
  for (int round = 0; round < 100; ++round) {
    pool.run([&](int) {
      ++arrived;
      pool.barrier();
    });
  }
  EXPECT_EQ(arrived, 100 * pool.size());
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds(20));
}

TEST(ThreadPool, AtLeastOneCoreIsUsable) {
  EXPECT_GE(usable_cores(), 1);
  EXPECT_EQ(ThreadPool({.n_threads = 0}).size(), usable_cores());
}

// The figure is printed, not judged: a busy machine may take any time.
TEST(ThreadPool, EmptyRegionLatency) {
  ThreadPool pool({.n_threads = 2});
  std::vector<double> times;
  for (int round = 0; round < 20000; ++round) {
    const Clock::time_point begin = Clock::now();
    pool.run([](int) {});
    times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
  }
  std::sort(times.begin(), times.end());
  std::printf("empty region, 2 threads: median %.3f us, 99%% %.3f us\n", times[times.size() / 2],
              times[times.size() * 99 / 100]);
  EXPECT_GT(times.front(), 0);
}

}  // namespace
}  // namespace still
