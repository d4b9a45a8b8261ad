#include "base/machine_limits.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace still {
namespace {

// Huge pages where the system has them, so that address translation is not what is measured.
class Buffer {
 public:
  explicit Buffer(std::int64_t n_bytes)
      : n_bytes_(static_cast<std::size_t>(n_bytes)),
        data_(mmap(nullptr, n_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    if (is_mapped()) madvise(data_, n_bytes_, MADV_HUGEPAGE);
  }
  ~Buffer() {
    if (is_mapped()) munmap(data_, n_bytes_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  bool is_mapped() const { return data_ != MAP_FAILED; }
  std::uint64_t* words() const { return static_cast<std::uint64_t*>(data_); }

 private:
  std::size_t n_bytes_;
  void* data_;
};

constexpr std::int64_t kLineWords = 8;  // a cache line of 64 bytes

// Reads every line of [words, words + n_words) once, as n_streams parts in step. One load a line moves the whole line,
// so that the loads themselves cost nothing; the sum keeps the compiler from leaving them out.
std::uint64_t read_lines(const std::uint64_t* words, std::int64_t n_words, std::int64_t n_streams) {
  const std::int64_t n_part = n_words / n_streams / kLineWords * kLineWords;
  constexpr std::int64_t kAhead = 64 * kLineWords;  // 4 KiB: beyond what the hardware prefetches across a page
  std::uint64_t sum = 0;
  for (std::int64_t i = 0; i < n_part; i += kLineWords) {
    for (std::int64_t stream = 0; stream < n_streams; ++stream) {
      const std::uint64_t* line = words + stream * n_part + i;
      __builtin_prefetch(line + kAhead);
      sum += *line;
    }
  }
  return sum;
}

}  // namespace

Result<double> measure_read_bandwidth(ThreadPool& threads, std::int64_t n_bytes) {
  const Buffer buffer(n_bytes);
  if (!buffer.is_mapped()) {
    return error(Code::kResourceExhausted, "measuring the memory needs {} MiB: {}", n_bytes >> 20,
                 std::strerror(errno));
  }
  const std::int64_t n_thread_words = n_bytes / 8 / threads.size() / kLineWords * kLineWords;
  // Each thread writes its part first: pages then lie on its own node.
  threads.run([&](int thread_idx) {
    std::memset(buffer.words() + thread_idx * n_thread_words, 1, static_cast<std::size_t>(n_thread_words) * 8);
  });
  double best = 0;
  std::atomic<std::uint64_t> sink{0};
  for (const std::int64_t n_streams : {1, 2, 4, 8}) {
    for (int run = 0; run < 3; ++run) {
      const auto start = std::chrono::steady_clock::now();
      threads.run([&](int thread_idx) {
        sink += read_lines(buffer.words() + thread_idx * n_thread_words, n_thread_words, n_streams);
      });
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      best = std::max(best, static_cast<double>(n_thread_words * 8 * threads.size()) / seconds.count());
    }
  }
  return best;
}

}  // namespace still
