// still ps: the models that a running server holds in memory.
#include <fmt/format.h>

#include <ctime>
#include <memory>

#include "cli/command.h"
#include "cli/server_client.h"
#include "cli/table.h"
#include "hub/file_io.h"

namespace still {
namespace {

std::string text_of(const JsonObject& object, std::string_view name) {
  const Json* value = object.if_contains(name);
  return value && value->is_string() ? std::string(value->get_string()) : std::string();
}

std::int64_t number_of(const JsonObject& object, std::string_view name) {
  const Json* value = object.if_contains(name);
  return value && value->is_int64() ? value->get_int64() : 0;
}

// "2025-01-31T12:00:00..." to "in 4 m": people compare spans, not times of another zone.
std::string until(const std::string& expires) {
  std::tm utc{};
  if (strptime(expires.c_str(), "%Y-%m-%dT%H:%M:%S", &utc) == nullptr) return "for ever";
  const double seconds = std::difftime(timegm(&utc), std::time(nullptr));
  constexpr double kYears = 10.0 * 365 * 24 * 3600;
  if (seconds > kYears) return "for ever";
  return seconds <= 0 ? "now" : "in " + format_duration(seconds);
}

Status list_loaded(bool as_json) {
  STILL_TRY(const ServeEnvironment environment, read_serve_environment());
  STILL_TRY(const Json answer, call_server(environment, "/api/ps"));
  if (as_json) {
    fmt::print("{}\n", to_json(answer));
    return ok();
  }
  const Json* models = answer.is_object() ? answer.get_object().if_contains("models") : nullptr;
  std::vector<std::vector<std::string>> rows = {{"NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"}};
  if (models && models->is_array()) {
    for (const Json& item : models->get_array()) {
      if (!item.is_object()) continue;
      const JsonObject& model = item.get_object();
      const std::int64_t size = number_of(model, "size"), on_gpu = number_of(model, "size_vram");
      const std::int64_t percent = size > 0 ? on_gpu * 100 / size : 0;
      rows.push_back({text_of(model, "name"), text_of(model, "digest").substr(0, 12), format_bytes(size),
                      percent == 0     ? "100% CPU"
                      : percent >= 100 ? "100% GPU"
                                       : fmt::format("{}%/{}% CPU/GPU", 100 - percent, percent),
                      std::to_string(number_of(model, "context_length")), until(text_of(model, "expires_at"))});
    }
  }
  using enum Align;
  fmt::print("{}", format_table({kLeft, kLeft, kRight, kLeft, kRight, kLeft}, rows));
  return ok();
}

Command::Action declare_ps(Options& options) {
  auto as_json = std::make_shared<bool>(false);
  options.flag("--json", as_json.get(), "The server's answer as it is");
  return [as_json](const Context&) { return list_loaded(*as_json); };
}

}  // namespace

extern const Command kPsCommand;
const Command kPsCommand{.name = "ps",
                         .alias = nullptr,
                         .summary = "List the models that a server holds in memory",
                         .examples =
                             "  still ps\n"
                             "  STILL_HOST=10.0.0.5:11434 STILL_API_KEY=sk-1 still ps\n"
                             "  still ps --json | jq -r '.models[].name'",
                         .declare = declare_ps};

}  // namespace still
