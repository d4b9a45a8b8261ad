// The memory contract: what a plan says, what the engine allocates and what the operating system counts, for a model
// under one setting. Each run is a process of its own, so that nothing of an earlier one is in the figures.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "plan/memory.h"

namespace still {

struct ContractRun {
  MemoryPlan plan;              // made from the header alone, before anything is loaded
  std::string refusal;          // not empty: the engine did not start or a request failed; the rest is then 0
  std::int64_t allocated = 0;   // growth of the process's private writable address space, less the threads' stacks
  std::int64_t resident = 0;    // growth of anonymous resident memory after every sequence filled its context
  std::int64_t mapped = 0;      // growth of resident file pages: what is read of the mapped model file
  std::int64_t mapped_max = 0;  // the plan's bound of it
  // |planned - found| is at most 1 % or 32 MiB, whichever is more.
  bool holds() const;
};

// Loads `path` under `settings` in a child process that may not take more than the plan says (and 32 MiB), fills the
// KV cache with sequences (of at most fill_tokens in all), and reports. kInvalidArgument and what plan_memory gives.
// draft: a model that drafts for it, which is planned and filled, too.
Result<ContractRun> run_contract(const std::filesystem::path& path, const EngineSettings& settings,
                                 std::int64_t fill_tokens, const std::filesystem::path& draft = {});

// Settings that differ in context, sequences, KV type, chunk and threads, for a model of this context.
std::vector<EngineSettings> contract_settings(std::int64_t max_context, std::int64_t fill_tokens);

}  // namespace still
