#include "cli/model_ref.h"

#include <fmt/format.h>

#include "cli/interrupt.h"
#include "hub/catalogue.h"
#include "hub/file_io.h"

namespace still {
namespace {

void show_progress(ProgressLine& line, const Progress& progress) {
  if (progress.phase == Progress::Phase::kNote) {
    line.note(progress.message);
    return;
  }
  std::string_view verb = "";
  switch (progress.phase) {
    case Progress::Phase::kNote:
      break;
    case Progress::Phase::kListing:
      verb = "asking";
      break;
    case Progress::Phase::kWaiting:
      verb = "another process pulls";
      break;
    case Progress::Phase::kDownloading:
      verb = "pulling";
      break;
    case Progress::Phase::kCopying:
      verb = "copying";
      break;
    case Progress::Phase::kVerifying:
      verb = "verifying";
      break;
    case Progress::Phase::kWriting:
      verb = "storing";
      break;
  }
  double share = -1;
  std::string tail;
  if (progress.total_bytes > 0) {
    share = static_cast<double>(progress.done_bytes) / static_cast<double>(progress.total_bytes);
    tail = fmt::format("{} / {}", format_bytes(progress.done_bytes), format_bytes(progress.total_bytes));
  } else if (progress.done_bytes > 0) {
    tail = format_bytes(progress.done_bytes);
  }
  if (progress.bytes_per_s > 0) {
    tail += fmt::format("  {}/s", format_bytes(static_cast<std::int64_t>(progress.bytes_per_s)));
  }
  if (progress.seconds_left >= 0) tail += fmt::format("  {} left", format_duration(progress.seconds_left));
  line.update(fmt::format("{} {}", verb, progress.message), share, tail);
}

}  // namespace

bool can_be_pulled(const std::string& model) {
  if (is_source(model)) return true;
  const Result<ModelName> name = ModelName::parse(model);
  return name && find_in_catalogue(*name).has_value();
}

Result<PullReport> pull_with_progress(const Context& context, Store& store, const std::string& what,
                                      const std::string& name) {
  PullRequest request{.what = what, .name = name, .command = "still pull " + what, .options = context.environment.hub};
  if (!name.empty()) request.command += " --name " + name;
  ProgressLine line(context.err, std::chrono::milliseconds(0));
  const InterruptScope interrupt;
  return pull(store, request, [&](const Progress& progress) { show_progress(line, progress); }, interrupt.token());
}

Result<Library> open_library(const Context& context) {
  return Library::open({.store = context.environment.models, .ollama = context.environment.ollama_models});
}

Result<ResolvedModel> find_model(const Context& context, const std::string& model) {
  STILL_TRY(const Library library, open_library(context));
  STILL_TRY(const LibraryModel found, library.find(model));
  return found.resolved();
}

Result<ResolvedModel> find_or_pull_model(const Context& context, const std::string& model) {
  Result<ResolvedModel> found = find_model(context, model);
  if (found || !is_absent(found.error()) || !can_be_pulled(model)) return found;
  STILL_TRY(Store store, Store::open(context.environment.models));
  fmt::print(stderr, "{} is not here yet: pulling it into {}\n", model, store.root().string());
  STILL_TRY(PullReport report, pull_with_progress(context, store, model, ""));
  return ResolvedModel{.name = report.manifest.name.str(),
                       .path = std::move(report.path),
                       .is_stored = true,
                       .manifest = std::move(report.manifest)};
}

Result<std::shared_ptr<const Model>> load_model(const Context& context, const ResolvedModel& found, int n_threads) {
  ProgressLine line(context.err);
  const auto start = ProgressLine::Clock::now();
  LoadOptions options;
  options.n_threads = n_threads;
  options.progress = [&](std::int64_t done, std::int64_t total) {
    const double share = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : -1;
    const double seconds = std::chrono::duration<double>(ProgressLine::Clock::now() - start).count();
    line.update("loading " + found.name, share, share > 0 ? format_duration(seconds / share - seconds) + " left" : "");
  };
  return Model::load(found.path, options);
}

}  // namespace still
