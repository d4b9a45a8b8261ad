// Splitting rows among the threads of an Exec, or not at all where waking them costs more than the work.
#pragma once

#include <cstdint>

#include "ops/exec.h"

namespace still {

// Elements of simple work (a few operations each) below which the caller does everything itself: about 4 us.
inline constexpr std::int64_t kInlineElements = 16 * 1024;

// body(begin, end) over [0, n_rows) in one contiguous range per thread.
template <class Body>
void parallel_rows(Exec& exec, std::int64_t n_rows, std::int64_t row_size, Body&& body) {
  const std::int64_t n_threads = exec.n_threads();
  if (n_threads == 1 || n_rows < 2 || n_rows * row_size < kInlineElements) {
    body(std::int64_t{0}, n_rows);
    return;
  }
  exec.threads().run([&](int thread_idx) {
    const std::int64_t begin = n_rows * thread_idx / n_threads, end = n_rows * (thread_idx + 1) / n_threads;
    if (begin < end) body(begin, end);
  });
}

}  // namespace still
