// The options that every command with an engine has: threads, context, KV type, speculation.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "cli/options.h"
#include "engine/engine.h"

namespace still {

struct EngineArguments {
  std::optional<std::int64_t> threads;
  std::optional<std::int64_t> context;
  std::string kv_type = "f16";
  std::string speculation = "off";
  std::string draft;  // a model; empty: none
  std::string device = "auto";
  bool reproducible = false;
  std::string gpu_layers = "auto";
  std::optional<double> gpu_memory_gib;
  std::optional<std::int64_t> tensor_parallel;
  std::string weights = "stored";
};

// with_context: also --context, for commands where the user chooses it.
void declare_engine_arguments(Options& options, EngineArguments& arguments, bool with_context = false);
// kInvalidArgument for numbers that cannot be.
Result<EngineOptions> to_engine_options(const EngineArguments& arguments);
// --gpu-layers: absent where the plan chooses.
Result<std::optional<std::int32_t>> to_gpu_layers(const EngineArguments& arguments);

}  // namespace still
