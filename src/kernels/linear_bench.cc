// Speed of the CPU kernels against this machine's own limits, measured in the same run: DRAM read bandwidth, int8 and
// f32 peaks of the instruction set. Weights are rotated through copies that no cache holds, as in a model.
//   kernels_bench [--isa NAME] [--threads 1,2] [--formats Q4_K,Q8_0] [--rows 1,16] [--shapes 896x896] [--part
//   linear,pack]
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/machine_limits.h"
#include "base/thread_pool.h"
#include "kernels/dispatch.h"
#include "kernels/int8_peak.h"
#include "kernels/packing.h"
#include "kernels/testing.h"
#include "tensor/arena.h"

namespace still {
namespace {

using testing::AlignedBytes;

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Runs task(thread) on every thread at once and returns the seconds until the slowest ends: the median of `repeats`
// runs after a warm-up. Threads wait for each other first, so that starting them does not count.
double median_seconds(int n_threads, int repeats, const std::function<void(int)>& task) {
  std::vector<double> runs;
  for (int r = 0; r <= repeats; ++r) {
    std::vector<double> seconds(static_cast<std::size_t>(n_threads));
    std::atomic<int> waiting{n_threads};
    const auto body = [&](int thread) {
      --waiting;
      while (waiting.load() > 0) {
      }
      const double start = seconds_now();
      task(thread);
      seconds[static_cast<std::size_t>(thread)] = seconds_now() - start;
    };
    std::vector<std::thread> threads;
    for (int t = 1; t < n_threads; ++t) threads.emplace_back(body, t);
    body(0);
    for (std::thread& thread : threads) thread.join();
    if (r > 0) runs.push_back(*std::max_element(seconds.begin(), seconds.end()));
  }
  std::sort(runs.begin(), runs.end());
  return runs[0];
}

// The limits: what `still bench` measures, and f32 products.
constexpr std::int64_t kPeakRounds = 4'000'000;

__attribute__((target("avx512f"))) void f32_peak_avx512() {
  for (std::int64_t i = 0; i < kPeakRounds; ++i)
    asm volatile(
        "vfmadd231ps %%zmm20, %%zmm20, %%zmm0\nvfmadd231ps %%zmm20, %%zmm20, %%zmm1\n"
        "vfmadd231ps %%zmm20, %%zmm20, %%zmm2\nvfmadd231ps %%zmm20, %%zmm20, %%zmm3\n"
        "vfmadd231ps %%zmm20, %%zmm20, %%zmm4\nvfmadd231ps %%zmm20, %%zmm20, %%zmm5\n"
        "vfmadd231ps %%zmm20, %%zmm20, %%zmm6\nvfmadd231ps %%zmm20, %%zmm20, %%zmm7" ::
            : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
}
__attribute__((target("avx2,fma"))) void f32_peak_avx2() {
  for (std::int64_t i = 0; i < kPeakRounds; ++i)
    asm volatile(
        "vfmadd231ps %%ymm15, %%ymm15, %%ymm0\nvfmadd231ps %%ymm15, %%ymm15, %%ymm1\n"
        "vfmadd231ps %%ymm15, %%ymm15, %%ymm2\nvfmadd231ps %%ymm15, %%ymm15, %%ymm3\n"
        "vfmadd231ps %%ymm15, %%ymm15, %%ymm4\nvfmadd231ps %%ymm15, %%ymm15, %%ymm5\n"
        "vfmadd231ps %%ymm15, %%ymm15, %%ymm6\nvfmadd231ps %%ymm15, %%ymm15, %%ymm7\n"
        "vfmadd231ps %%ymm15, %%ymm15, %%ymm8\nvfmadd231ps %%ymm15, %%ymm15, %%ymm9" ::
            : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9");
}

struct Peaks {
  double read_gb = 0, int8_gop = 0, f32_gflop = 0;
};
Peaks measure_peaks(int n_threads, std::string_view isa) {
  Peaks peaks;
  ThreadPool threads({.n_threads = n_threads});
  peaks.read_gb = measure_read_bandwidth(threads).value_or(0) * 1e-9;
  peaks.int8_gop = 2e-9 * measure_int8_peak(threads, isa);
  const bool is_wide = isa != "avx2" && __builtin_cpu_supports("avx512f");
  if (isa != "ref") {
    const double flop = is_wide ? 8 * 32 : 10 * 16;
    peaks.f32_gflop = static_cast<double>(kPeakRounds) * flop * n_threads * 1e-9 /
                      median_seconds(n_threads, 5, [&](int) { is_wide ? f32_peak_avx512() : f32_peak_avx2(); });
  }
  return peaks;
}

struct Options {
  std::string isa;
  std::vector<int> threads = {1, 2};
  std::vector<std::string> formats, parts = {"linear", "pack", "attention"};
  std::vector<std::int64_t> rows = {1, 2, 4, 8, 16, 64, 512};
  std::vector<std::pair<std::int64_t, std::int64_t>> shapes = {{896, 896},   {4864, 896},  {896, 4864},
                                                               {1536, 8960}, {8960, 1536}, {151936, 896}};
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> words;
  std::istringstream stream(text);
  for (std::string word; std::getline(stream, word, ',');) words.push_back(word);
  return words;
}

// Random bytes of which every f16, bf16 and f32 is a normal number.
void fill_finite(std::uint8_t* bytes, std::int64_t size) {
  Rng rng(1);
  for (std::int64_t i = 0; i < size; i += 8) {
    const std::uint64_t word = (rng.next() & 0x83ff83ff83ff83ffull) | 0x3000300030003000ull;
    std::memcpy(bytes + i, &word, 8);
  }
}

// One matrix shape in one format: all row counts.
void bench_linear(const CpuKernels& kernels, PackedFormat format, std::int64_t n_out, std::int64_t k,
                  const Options& options, int n_threads, const Peaks& peaks) {
  const std::int64_t panel_bytes = packed_panel_bytes(format, k);
  const std::int64_t n_panels = (n_out + kPanelRows - 1) / kPanelRows;
  const std::int64_t matrix_bytes = panel_bytes * n_panels;
  const std::int64_t n_copies = std::max<std::int64_t>(1, (std::int64_t{160} << 20) / matrix_bytes);
  // As a model's weights lie: huge pages where the system gives them.
  Result<Arena> arena = Arena::create(n_copies * matrix_bytes + 32768, "weights");
  STILL_CHECK(arena.has_value());
  auto* weights = arena->allocate_array<std::uint8_t>(n_copies * matrix_bytes);
  fill_finite(weights, n_copies * matrix_bytes);
  std::vector<AlignedBytes> scratch;
  for (int t = 0; t < n_threads; ++t) scratch.emplace_back(kLinearScratchBytes);
  Rng rng(2);
  for (const std::int64_t n : options.rows) {
    if (n > 16 && n_out > 20000) continue;  // logits are wanted for few rows
    const std::vector<float> x = testing::random_floats(rng, n * k);
    const std::int32_t block = activation_block(format);
    testing::QuantizedActivations q;
    if (block != 0) q = testing::quantize_activations(x, n, k, block);
    std::vector<float> y(static_cast<std::size_t>(n * n_out));
    // Enough products for 20 ms and more.
    const std::int64_t products = std::clamp<std::int64_t>(
        static_cast<std::int64_t>(0.02 * 3e11 / (2.0 * static_cast<double>(n_out * k * n))), 1, n_copies);
    std::int64_t copy = 0;
    const double seconds = median_seconds(n_threads, 7, [&](int t) {
      LinearArgs args{};
      args.panel_bytes = panel_bytes;
      args.panel_begin = n_panels * t / n_threads;
      args.panel_end = n_panels * (t + 1) / n_threads;
      args.n_out = n_out;
      args.k = k;
      if (block != 0) args.x = q.view();
      args.x_f32 = x.data();
      args.x_stride = k;
      args.n_rows = n;
      args.y = y.data();
      args.y_stride = n_out;
      args.scratch = scratch[static_cast<std::size_t>(t)].data();
      for (std::int64_t i = 0; i < products; ++i) {
        args.weights = weights + (copy + i) % n_copies * matrix_bytes;
        kernels.linear[static_cast<int>(format)](args);
      }
      if (t == 0) copy += products;
    });
    const double gb = static_cast<double>(matrix_bytes * products) * 1e-9 / seconds;
    const double gop = 2e-9 * static_cast<double>(n_out * k * n * products) / seconds;
    const double peak = block != 0 ? peaks.int8_gop : peaks.f32_gflop;
    std::printf("%-6s %6ldx%-5ld rows %3ld threads %d  %8.1f us  %6.2f GB/s (%3.0f%%)  %7.1f Gop/s (%3.0f%%)\n",
                std::string(dtype_name(packed_dtype(format))).c_str(), static_cast<long>(n_out), static_cast<long>(k),
                static_cast<long>(n), n_threads, seconds / static_cast<double>(products) * 1e6, gb,
                100 * gb / peaks.read_gb, gop, peak > 0 ? 100 * gop / peak : 0);
    std::fflush(stdout);
  }
}

void bench_pack(const CpuKernels& kernels, PackedFormat format, int n_threads) {
  const std::int64_t k = 1536, n_out = 40960;
  const std::int64_t panel_bytes = packed_panel_bytes(format, k), n_panels = n_out / kPanelRows;
  const std::int64_t row_bytes = dtype_bytes(packed_dtype(format), k);
  AlignedBytes source(row_bytes * n_out), packed(panel_bytes * n_panels);
  fill_finite(source.data(), source.size());
  const double seconds = median_seconds(n_threads, 5, [&](int t) {
    kernels.pack[static_cast<int>(format)]({.source = source.data(),
                                            .row_map = nullptr,
                                            .row_bytes = row_bytes,
                                            .n_out = n_out,
                                            .k = k,
                                            .panel_begin = n_panels * t / n_threads,
                                            .panel_end = n_panels * (t + 1) / n_threads,
                                            .packed = packed.data(),
                                            .panel_bytes = panel_bytes});
  });
  std::printf("pack %-6s threads %d  %6.2f GB/s of file bytes\n", std::string(dtype_name(packed_dtype(format))).c_str(),
              n_threads, static_cast<double>(row_bytes * n_out) * 1e-9 / seconds);
}

// One KV head: decode (one query, its group) and prefill (a chunk), at a depth.
void bench_attention(const CpuKernels& kernels, KvType type, std::int32_t head_dim, std::int32_t group,
                     std::int64_t n_q, std::int64_t depth, int n_threads, const Peaks& peaks) {
  const std::int64_t block_size = 64, n_blocks = (depth + n_q + block_size - 1) / block_size;
  const std::int64_t element = type == KvType::kF16 ? 2 : 1, n_groups = head_dim / kv_group(head_dim);
  const std::int64_t part = block_size * head_dim * element, scale_part = block_size * n_groups * 2;
  const std::int64_t block_bytes = 2 * (part + (type == KvType::kInt8 ? scale_part : 0));
  // Many heads: what decode reads is no longer in a cache.
  const std::int64_t n_heads = std::max<std::int64_t>(2, n_q > 1 ? 2 : (96 << 20) / (n_blocks * block_bytes));
  AlignedBytes cache(n_heads * n_blocks * block_bytes);
  fill_finite(cache.data(), cache.size());
  std::vector<std::int32_t> table(static_cast<std::size_t>(n_blocks));
  for (std::int64_t i = 0; i < n_blocks; ++i) table[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
  Rng rng(3);
  const std::vector<float> q = testing::random_floats(rng, n_q * group * head_dim);
  std::vector<std::vector<float>> out(static_cast<std::size_t>(n_threads), std::vector<float>(q.size()));
  std::vector<AlignedBytes> scratch;
  for (int t = 0; t < n_threads; ++t) scratch.emplace_back(kAttentionScratchBytes);
  const double seconds = median_seconds(n_threads, 5, [&](int t) {
    for (std::int64_t head = n_heads * t / n_threads; head < n_heads * (t + 1) / n_threads; ++head) {
      kernels.attention({.kv = {.base = cache.data() + head * n_blocks * block_bytes,
                                .block_bytes = block_bytes,
                                .k_offset = 0,
                                .v_offset = part,
                                .k_scale_offset = 2 * part,
                                .v_scale_offset = 2 * part + scale_part,
                                .block_table = table.data(),
                                .block_size = block_size,
                                .head_dim = head_dim,
                                .type = type},
                         .q = q.data(),
                         .q_stride = group * head_dim,
                         .group = group,
                         .n_q = n_q,
                         .q_pos = depth,
                         .kv_begin = 0,
                         .kv_end = depth + n_q,
                         .window = 0,
                         .scale = 0.1f,
                         .out = out[static_cast<std::size_t>(t)].data(),
                         .out_stride = group * head_dim,
                         .m = nullptr,
                         .l = nullptr,
                         .finish = true,
                         .scratch = scratch[static_cast<std::size_t>(t)].data()});
    }
  });
  const double gb = static_cast<double>(n_heads * n_blocks * block_bytes) * 1e-9 / seconds;
  const double pairs = static_cast<double>(n_q) * (static_cast<double>(depth) + static_cast<double>(n_q + 1) / 2);
  const double gflop = 4e-9 * pairs * group * head_dim * static_cast<double>(n_heads) / seconds;
  std::printf(
      "attention %s head_dim %3d group %d queries %3ld depth %5ld threads %d  %6.2f GB/s (%3.0f%%)  %6.1f Gflop/s "
      "(%3.0f%%)\n",
      type == KvType::kF16 ? "f16 " : "int8", head_dim, group, static_cast<long>(n_q), static_cast<long>(depth),
      n_threads, gb, 100 * gb / peaks.read_gb, gflop, peaks.f32_gflop > 0 ? 100 * gflop / peaks.f32_gflop : 0);
  std::fflush(stdout);
}

bool wants(const std::vector<std::string>& names, std::string_view name) {
  return names.empty() || std::find(names.begin(), names.end(), name) != names.end();
}

int run(const Options& options) {
  const Result<const CpuKernels*> kernels =
      options.isa.empty() ? default_cpu_kernels() : select_cpu_kernels(options.isa);
  if (!kernels) {
    std::fprintf(stderr, "%s\n", kernels.error().message.c_str());
    return 1;
  }
  for (const int n_threads : options.threads) {
    const Peaks peaks = measure_peaks(n_threads, (*kernels)->name);
    std::printf("isa %s, %d threads: read %.1f GB/s, int8 %.0f Gop/s, f32 %.0f Gflop/s\n", (*kernels)->name, n_threads,
                peaks.read_gb, peaks.int8_gop, peaks.f32_gflop);
    for (int f = 0; f < kPackedFormatCount; ++f) {
      const auto format = static_cast<PackedFormat>(f);
      if (!wants(options.formats, dtype_name(packed_dtype(format)))) continue;
      if (wants(options.parts, "linear")) {
        for (const auto& [n_out, k] : options.shapes)
          if (k % packed_tile_k(format) == 0) bench_linear(**kernels, format, n_out, k, options, n_threads, peaks);
      }
      if (wants(options.parts, "pack")) bench_pack(**kernels, format, n_threads);
    }
    if (wants(options.parts, "attention")) {
      for (const KvType type : {KvType::kF16, KvType::kInt8}) {
        for (const auto& [head_dim, group] : {std::pair{64, 7}, std::pair{64, 3}, std::pair{128, 6}}) {
          for (const std::int64_t depth : {1000, 8000}) {
            bench_attention(**kernels, type, head_dim, group, 1, depth, n_threads, peaks);
          }
          bench_attention(**kernels, type, head_dim, group, 512, 0, n_threads, peaks);
          bench_attention(**kernels, type, head_dim, group, 512, 3584, n_threads, peaks);
        }
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace still

int main(int argc, char** argv) {
  still::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const std::vector<std::string> values = still::split(argv[i + 1]);
    if (name == "--isa") options.isa = argv[i + 1];
    if (name == "--formats") options.formats = values;
    if (name == "--part") options.parts = values;
    if (name == "--threads") {
      options.threads.clear();
      for (const std::string& value : values) options.threads.push_back(std::atoi(value.c_str()));
    }
    if (name == "--rows") {
      options.rows.clear();
      for (const std::string& value : values) options.rows.push_back(std::atol(value.c_str()));
    }
    if (name == "--shapes") {
      options.shapes.clear();
      for (const std::string& value : values) {
        const std::size_t x = value.find('x');
        options.shapes.emplace_back(std::atol(value.c_str()), std::atol(value.c_str() + x + 1));
      }
    }
  }
  return still::run(options);
}
