#include "cli/model_ref.h"

#include <fmt/format.h>
#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <tuple>

#include "cli/interrupt.h"
#include "hub/catalogue.h"
#include "hub/file_io.h"
#include "hub/remote_header.h"
#include "models/registry.h"
#include "plan/layer_split.h"

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

HeaderFolder::~HeaderFolder() {
  std::error_code ignored;  // a temporary folder that stays behind is no reason to fail
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

Result<std::filesystem::path> HeaderFolder::create() {
  std::string name = (std::filesystem::temp_directory_path() / "still-header-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) return system_error(errno, "cannot make the folder", name);
  path_ = name;
  return path_;
}

Result<ResolvedModel> find_model_here(const Context& context, const std::string& model) {
  Result<ResolvedModel> found = find_model(context, model);
  if (found || !is_source(model) || !is_absent(found.error())) return found;
  return error(Code::kNotFound, "{} is not here: get it with \"still pull {}\", then name it as \"still list\" does",
               model, model);
}

namespace {

// What is known of a model before it is here.
struct WantedModel {
  std::string family;  // "deepseek-r1"; empty: not of the catalogue
  double parameters = 0;
};

// "; the nearest that runs here is ...": of the catalogue's models that are computed and whose weights leave half a
// GiB of the available memory, the one of the same family, then of the nearest size, then of the finest quantisation.
std::string nearest_that_runs(const WantedModel& wanted) {
  constexpr std::int64_t kSpareBytes = std::int64_t{512} << 20;
  const std::int64_t available = available_memory();
  std::optional<std::tuple<bool, double, std::int64_t, std::string>> best;
  for (const CatalogueEntry& entry : list_catalogue()) {
    if (!find_arch(entry.architecture) || entry.approx_bytes + kSpareBytes > available) continue;
    const double ratio = wanted.parameters > 0 ? std::abs(std::log(entry.parameters / wanted.parameters)) : 0;
    std::tuple key(entry.name.model != wanted.family, ratio, -entry.approx_bytes, entry.name.str());
    if (!best || key < *best) best = std::move(key);
  }
  if (!best) return "; still list --catalogue shows smaller models";
  return fmt::format("; the nearest that runs here is {0}: still run {0}", std::get<3>(*best));
}

// Whether the model behind these headers can be computed, and its weights and caches held.
Status check_headers(const RemoteModel& remote, const WantedModel& known, const EngineSettings& settings) {
  HeaderFolder folder;
  STILL_TRY(const std::filesystem::path path, folder.create());
  STILL_TRY(const std::filesystem::path header, save_headers(remote, path));
  WantedModel candidate = known;
  const auto refuse = [&](const Error& problem) {
    std::string message = problem.message;
    // The headers' place is gone when this is read.
    if (const std::size_t at = message.find(header.string()); at != std::string::npos) {
      message.replace(at, header.string().size(), remote.name);
    } else {
      message = fmt::format("{}: {}", remote.name, message);
    }
    return error(problem.code, "{}{}", message, nearest_that_runs(candidate));
  };
  const Result<Checkpoint> checkpoint = Checkpoint::open(header, {.allow_missing_data = true});
  if (!checkpoint) return refuse(checkpoint.error());
  candidate.parameters = 0;
  for (const CheckpointTensor& tensor : checkpoint->tensors()) {
    candidate.parameters += static_cast<double>(tensor.shape.n_elements());
  }
  const Result<const Arch*> arch = find_arch(checkpoint->architecture());
  if (!arch) return refuse(arch.error());
  const Result<ModelConfig> config = (*arch)->read_config(checkpoint->config());
  if (!config) return refuse(config.error());
  const Result<WeightLayout> layout = weight_layout(**arch, *config, *checkpoint);
  if (!layout) return refuse(layout.error());
  std::int64_t max_k = 0;
  for (const WeightLayout::Item& item : layout->items) {
    if (item.source != nullptr && item.spec.role == TensorRole::kMatrix) {
      max_k = std::max(max_k, item.source->shape[1]);
    }
  }
  EngineSettings least = settings;
  least.context = least.kv_tokens = 0;
  if (const auto plan = plan_memory(*config, layout->arena_bytes, max_k, least); !plan) return refuse(plan.error());
  // It fits, if not with the context that was asked for: the sentence says which would.
  const auto plan = plan_memory(*config, layout->arena_bytes, max_k, settings);
  return plan ? Status() : error(plan.error().code, "{}: {}", remote.name, plan.error().message);
}

Status check_before_pull(const Context& context, const std::string& model, const Store& store,
                         const EngineSettings& settings) {
  WantedModel candidate;
  bool is_pip = model.starts_with("pip:");
  if (!is_source(model)) {
    STILL_TRY(const ModelName name, ModelName::parse(model));
    const std::optional<CatalogueEntry> entry = find_in_catalogue(name);
    STILL_CHECK(entry.has_value());  // can_be_pulled() found it
    candidate = {.family = entry->name.model, .parameters = entry->parameters};
    if (const auto arch = find_arch(entry->architecture); !arch) {
      return error(arch.error().code, "{}: {}{}", model, arch.error().message, nearest_that_runs(candidate));
    }
    // The first source serves in the ordinary case; and what is stored under another name needs no asking.
    is_pip = !entry->sources.empty() && entry->sources.front().source.starts_with("pip:");
    for (const CatalogueSource& source : entry->sources) {
      if (!source.sha256.empty() && store.has_blob(source.sha256, source.size)) return ok();
    }
  }
  if (is_pip) return ok();
  const Result<RemoteModel> remote = [&] {
    ProgressLine line(context.err);
    line.update("reading the header of " + model, -1, "");
    const InterruptScope interrupt;
    return read_remote_model(model, context.environment.hub, interrupt.token());
  }();
  if (remote) return check_headers(*remote, candidate, settings);
  const Code code = remote.error().code;
  // A source that does not answer, or not in parts: the pull says what is wrong, or another source of the list serves.
  const bool is_bad = is_source(model) && (code == Code::kCorrupt || code == Code::kUnsupported);
  if (is_bad) return error(code, "{}{}", remote.error().message, nearest_that_runs(candidate));
  return code == Code::kCancelled ? Status(tl::unexpected(remote.error())) : ok();
}

}  // namespace

Result<ResolvedModel> find_or_pull_model(const Context& context, const std::string& model,
                                         const EngineSettings& settings) {
  Result<ResolvedModel> found = find_model(context, model);
  if (found || !is_absent(found.error()) || !can_be_pulled(model)) return found;
  STILL_TRY(Store store, Store::open(context.environment.models));
  STILL_TRY_STATUS(check_before_pull(context, model, store, settings));
  fmt::print(stderr, "{} is not here yet: pulling it into {}\n", model, store.root().string());
  STILL_TRY(PullReport report, pull_with_progress(context, store, model, ""));
  return ResolvedModel{.name = report.manifest.name.str(),
                       .path = std::move(report.path),
                       .is_stored = true,
                       .manifest = std::move(report.manifest)};
}

namespace {
// On one GPU, whole or with as many layers as fit; or shared by several.
Result<std::shared_ptr<const Model>> load_on_gpus(const ResolvedModel& found, LoadOptions options,
                                                  const std::vector<CudaDeviceInfo>& gpus,
                                                  const EngineArguments& arguments,
                                                  std::optional<std::int32_t> gpu_layers) {
  STILL_TRY(Checkpoint opened, Checkpoint::open(found.path));
  const auto checkpoint = std::make_shared<const Checkpoint>(std::move(opened));
  const auto n_ranks = static_cast<std::size_t>(arguments.tensor_parallel.value_or(1));
  if (n_ranks > gpus.size())
    return error(Code::kUnavailable, "--tensor-parallel {}: there are {} GPUs", n_ranks, gpus.size());
  if (n_ranks > 1) {
    std::vector<std::int32_t> devices;
    for (std::size_t i = 0; i < n_ranks; ++i) devices.push_back(gpus[i].index);
    return Model::over_devices(devices, [&](Rank rank, std::int32_t device) {
      options.rank = rank;
      options.cuda_device = device;
      return Model::load(checkpoint, options);
    });
  }
  STILL_TRY(const EngineOptions engine, to_engine_options(arguments));
  STILL_TRY(const Arch* arch, find_arch(checkpoint->architecture()));
  STILL_TRY(const ModelConfig config, arch->read_config(checkpoint->config()));
  const std::int64_t gpu_bytes = engine.settings.gpu_memory > 0
                                     ? std::min(engine.settings.gpu_memory, gpus.front().free_bytes)
                                     : gpus.front().free_bytes;
  STILL_TRY(const LayerSplit split, plan_layer_split(*arch, config, *checkpoint, engine.settings, gpu_bytes,
                                                     available_memory(), gpu_layers, options.to_f8));
  options.cuda_device = gpus.front().index;
  options.n_host_layers = config.n_layers - split.n_gpu_layers;
  return Model::load(checkpoint, options);
}
}  // namespace

Result<std::shared_ptr<const Model>> load_model(const Context& context, const ResolvedModel& found, int n_threads,
                                                const EngineArguments* arguments) {
  ProgressLine line(context.err);
  const auto start = ProgressLine::Clock::now();
  LoadOptions options;
  options.n_threads = n_threads;
  options.progress = [&](std::int64_t done, std::int64_t total) {
    const double share = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : -1;
    const double seconds = std::chrono::duration<double>(ProgressLine::Clock::now() - start).count();
    line.update("loading " + found.name, share, share > 0 ? format_duration(seconds / share - seconds) + " left" : "");
  };
  const std::string device = arguments == nullptr ? "cpu" : arguments->device;
  options.to_f8 = arguments != nullptr && arguments->weights == "fp8";
  if (device != "cpu") {
    std::string reason;
    const std::vector<CudaDeviceInfo> gpus = list_cuda_devices(&reason);
    STILL_TRY(const std::optional<std::int32_t> gpu_layers, to_gpu_layers(*arguments));
    const std::int64_t n_ranks = arguments->tensor_parallel.value_or(1);
    const std::string wish = n_ranks > 1        ? fmt::format("--tensor-parallel {}", n_ranks)
                             : gpu_layers > 0   ? fmt::format("--gpu-layers {}", *gpu_layers)
                             : device == "cuda" ? "--device cuda"
                                                : "";
    const bool is_wanted = gpu_layers != 0 && (!wish.empty() || !gpus.empty());
    if (gpus.empty() && is_wanted) return error(Code::kUnavailable, "{}: {}", wish, reason);
    if (is_wanted) {
      Result<std::shared_ptr<const Model>> on_gpu = load_on_gpus(found, options, gpus, *arguments, gpu_layers);
      // What a GPU does not take, the CPU does where we may choose.
      if (on_gpu) return on_gpu;
      const Code code = on_gpu.error().code;
      if (!wish.empty() || (code != Code::kResourceExhausted && code != Code::kUnsupported))
        return tl::unexpected(explain_failure(std::move(on_gpu).error(), found));
    }
  }
  if (options.to_f8) return error(Code::kInvalidArgument, "--weights fp8: GPUs only, and the model is on the CPU");
  Result<std::shared_ptr<const Model>> model = Model::load(found.path, options);
  if (!model) return tl::unexpected(explain_failure(std::move(model).error(), found));
  return model;
}

Result<std::shared_ptr<const Model>> load_draft(const Context& context, const EngineArguments& arguments) {
  if (arguments.draft.empty()) return std::shared_ptr<const Model>();
  STILL_TRY(const ResolvedModel found, find_model_here(context, arguments.draft));
  return load_model(context, found, static_cast<int>(arguments.threads.value_or(0)));
}

}  // namespace still
