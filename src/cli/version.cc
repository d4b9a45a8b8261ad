// still version: what this program is, and with --verbose what it found on this machine.
#include <fmt/format.h>
#include <still_commit.h>

#include <memory>

#include "base/json.h"
#include "base/thread_pool.h"
#include "cli/command.h"
#include "grammar/compiler.h"
#include "hub/file_io.h"
#include "kernels/dispatch.h"
#include "plan/memory.h"

namespace still {
namespace {

struct VersionOptions {
  bool verbose = false;
  bool json = false;
};

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "g++ " __VERSION__;
#endif

Status show_version(const VersionOptions& options, const Context& context) {
  if (!options.verbose && !options.json) {
    fmt::print("still version {}\n", STILL_VERSION);
    return ok();
  }
  STILL_TRY(const CpuKernels* kernels, default_cpu_kernels());
  const std::vector<std::string> isas = available_isas();
  if (options.json) {
    fmt::print("{}\n", to_json(JsonObject{{"version", STILL_VERSION},
                                          {"commit", STILL_COMMIT},
                                          {"compiler", kCompiler},
                                          {"isa", kernels->name},
                                          {"grammars", std::string(grammar_engine())},
                                          {"isas_available", JsonArray(isas.begin(), isas.end())},
                                          {"cores", usable_cores()},
                                          {"available_memory_bytes", available_memory()},
                                          {"models", context.environment.models.string()}}));
    return ok();
  }
  fmt::print("still version {}\n", STILL_VERSION);
  fmt::print("commit        {}\n", STILL_COMMIT);
  fmt::print("compiler      {}\n", kCompiler);
  const std::vector<std::string> inexact = inexact_isas();
  fmt::print("kernels       {}   (this machine can run: {}; STILL_ISA forces one{})\n", kernels->name,
             fmt::join(isas, ", "),
             inexact.empty() ? "" : fmt::format(", or one of other bits: {}", fmt::join(inexact, ", ")));
  fmt::print("cores         {}\n", usable_cores());
  fmt::print("memory        {} available\n", format_bytes(available_memory()));
  fmt::print("grammars      {}\n", grammar_engine());
  fmt::print("models        {}\n", context.environment.models.string());
  return ok();
}

Command::Action declare_version(Options& options) {
  auto chosen = std::make_shared<VersionOptions>();
  options.flag("-v,--verbose", &chosen->verbose, "Also commit, compiler, instruction sets, cores and folders");
  options.flag("--json", &chosen->json, "All of it as one object");
  return [chosen](const Context& context) { return show_version(*chosen, context); };
}

}  // namespace

extern const Command kVersionCommand;
const Command kVersionCommand{.name = "version",
                              .alias = nullptr,
                              .summary = "Print the version, and what this machine offers",
                              .examples =
                                  "  still version --verbose\n"
                                  "  STILL_ISA=avx2 still version --verbose",
                              .declare = declare_version};

}  // namespace still
