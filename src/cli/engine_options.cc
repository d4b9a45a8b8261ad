#include "cli/engine_options.h"

#include <charconv>

#include "kernels/cuda/cuda_kernels.h"

namespace still {

void declare_engine_arguments(Options& options, EngineArguments& arguments, bool with_context) {
  options.value("-t,--threads", &arguments.threads, "Threads [the physical cores]");
  if (with_context)
    options.value("-c,--context", &arguments.context, "Tokens of context [the model's, or what fits in memory]");
  options.choice(
      "--speculation", &arguments.speculation, {"off", "lookup"},
      "Draft tokens from the text so far and verify them together: same text, faster where it repeats itself");
  options.value("--draft", &arguments.draft,
                "A smaller MODEL of the same vocabulary that drafts tokens: same text, faster where it pays");
  options.choice("--device", &arguments.device, {"auto", "cpu", "cuda"}, "What computes; auto: a GPU that it fits on");
  options.flag("--reproducible", &arguments.reproducible,
               "On a GPU: the same bits whatever is computed at the time; the CPU's always are");
  options.value("--gpu-layers", &arguments.gpu_layers,
                "Layers that the GPU computes, the CPU the others; auto: as many as fit it");
  options.value("--gpu-memory", &arguments.gpu_memory_gib, "GiB of a GPU to use at most [what is free]");
  options.value("--tensor-parallel", &arguments.tensor_parallel, "GPUs that share the model [1]");
  options.choice("--weights", &arguments.weights, {"stored", "fp8"},
                 "On a GPU, how matrices of floats are kept: as stored, or as FP8 with a scale for each row");
  options.choice("--kv-type", &arguments.kv_type, {"f16", "int8", "bf16", "fp8"},
                 "How keys and values are kept; bf16 and fp8 on GPUs only");
}

Result<std::optional<std::int32_t>> to_gpu_layers(const EngineArguments& arguments) {
  if (arguments.gpu_layers == "auto") return std::optional<std::int32_t>();
  constexpr std::int32_t kMost = 4096;
  std::int32_t n = 0;
  const char* end = arguments.gpu_layers.data() + arguments.gpu_layers.size();
  const auto [stop, problem] = std::from_chars(arguments.gpu_layers.data(), end, n);
  if (problem != std::errc() || stop != end || n < 0 || n > kMost)
    return error(Code::kInvalidArgument, "--gpu-layers {}: expected auto, or 0 to {}", arguments.gpu_layers, kMost);
  return std::optional<std::int32_t>(n);
}

Result<EngineOptions> to_engine_options(const EngineArguments& arguments) {
  constexpr std::int64_t kMaxThreads = 1024, kMaxContext = std::int64_t{1} << 30;
  EngineOptions options;
  if (arguments.threads) {
    if (*arguments.threads < 1 || *arguments.threads > kMaxThreads) {
      return error(Code::kInvalidArgument, "--threads {}: expected 1 to {}", *arguments.threads, kMaxThreads);
    }
    options.settings.n_threads = static_cast<int>(*arguments.threads);
  }
  if (arguments.context) {
    if (*arguments.context < 2 || *arguments.context > kMaxContext) {
      return error(Code::kInvalidArgument, "--context {}: expected 2 to {} tokens", *arguments.context, kMaxContext);
    }
    options.settings.context = *arguments.context;
  }
  if (arguments.gpu_memory_gib) {
    if (!(*arguments.gpu_memory_gib > 0 && *arguments.gpu_memory_gib < 1e6))
      return error(Code::kInvalidArgument, "--gpu-memory {}: expected GiB, more than 0", *arguments.gpu_memory_gib);
    options.settings.gpu_memory = static_cast<std::int64_t>(*arguments.gpu_memory_gib * (1 << 30));
  }
  STILL_TRY(const std::optional<std::int32_t> gpu_layers, to_gpu_layers(arguments));
  const std::int64_t n_ranks = arguments.tensor_parallel.value_or(1);
  if (n_ranks < 1 || n_ranks > kCudaMaxRanks)
    return error(Code::kInvalidArgument, "--tensor-parallel {}: expected 1 to {} GPUs", n_ranks, kCudaMaxRanks);
  if (n_ranks > 1 && arguments.device == "cpu")
    return error(Code::kInvalidArgument, "--tensor-parallel {}: GPUs share a model, not --device cpu", n_ranks);
  if (n_ranks > 1 && gpu_layers)
    return error(Code::kInvalidArgument, "--tensor-parallel {}: all layers are on the GPUs, no --gpu-layers {}",
                 n_ranks, *gpu_layers);
  options.settings.kv_type = kv_type_of(arguments.kv_type).value_or(KvType::kF16);
  options.settings.reproducible = arguments.reproducible;
  if (arguments.speculation == "lookup") options.speculation = Speculation::kLookup;
  return options;
}

}  // namespace still
