#include "kernels/int8_peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "kernels/cpu/int8_peak.h"

namespace still {

double measure_int8_peak(ThreadPool& threads, std::string_view isa) {
  std::int64_t (*run_rounds)(std::int64_t) = nullptr;
  if (isa == "avx2") run_rounds = int8_peak_avx2;
  if (isa == "avx512") run_rounds = int8_peak_avx512;
  if (isa == "avx512_vnni") run_rounds = int8_peak_avx512_vnni;
  if (isa == "amx" || isa == "amx_bf16") run_rounds = int8_peak_amx;
  if (!run_rounds) return 0;
  constexpr std::int64_t kRounds = 2'000'000;  // about 10 ms
  constexpr int kRuns = 8;
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    std::atomic<std::int64_t> n_macs{0};
    const auto start = std::chrono::steady_clock::now();
    threads.run([&](int) { n_macs += run_rounds(kRounds); });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(n_macs.load()) / seconds.count());
  }
  return best;
}

}  // namespace still
