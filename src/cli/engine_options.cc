#include "cli/engine_options.h"

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
  options.choice("--kv-type", &arguments.kv_type, {"f16", "int8"}, "How keys and values are kept");
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
  options.settings.kv_type = arguments.kv_type == "int8" ? KvType::kInt8 : KvType::kF16;
  if (arguments.speculation == "lookup") options.speculation = Speculation::kLookup;
  return options;
}

}  // namespace still
