#include "cli/plan_contract.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>

#include "base/rng.h"
#include "engine/engine.h"
#include "ops/screened_head.h"
#include "plan/host_plan.h"

namespace still {

namespace {

constexpr std::int64_t kSlack = std::int64_t{32} << 20;

// Fields of /proc/self/status, in bytes.
struct ProcessMemory {
  std::int64_t data = 0, anonymous = 0, file = 0, n_threads = 0;
};
ProcessMemory process_memory() {
  ProcessMemory memory;
  std::ifstream file("/proc/self/status");
  std::string name;
  while (file >> name) {
    std::int64_t value = 0;
    if (name == "VmData:" && file >> value) memory.data = value * 1024;
    if (name == "RssAnon:" && file >> value) memory.anonymous = value * 1024;
    if (name == "RssFile:" && file >> value) memory.file = value * 1024;
    if (name == "Threads:" && file >> value) memory.n_threads = value;
    file.ignore(4096, '\n');
  }
  return memory;
}

std::int64_t stack_bytes() {
  pthread_attr_t attributes;
  std::size_t size = 0;
  pthread_attr_init(&attributes);
  pthread_attr_getstacksize(&attributes, &size);
  pthread_attr_destroy(&attributes);
  return static_cast<std::int64_t>(size);
}

class LastEvent : public EventSink {
 public:
  void on_event(const Event& event) override {
    if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
      is_finished = true;
      if (finished->reason == FinishReason::kError) problem = finished->error.message;
    }
  }
  bool is_finished = false;
  std::string problem;
};

// Runs n sequences of n_prompt random tokens and n_gen greedy ones at once. Returns the first one's problem.
std::string run_sequences(Engine& engine, std::int64_t n, std::int64_t n_prompt, std::int64_t n_gen) {
  const std::int64_t vocab_size = std::min(engine.model().config().vocab_size, engine.model().tokenizer().vocab_size());
  std::vector<std::shared_ptr<LastEvent>> sinks;
  for (std::int64_t i = 0; i < n; ++i) {
    Request request;
    Rng rng(static_cast<std::uint64_t>(i) + 1);
    for (std::int64_t j = 0; j < std::max<std::int64_t>(1, n_prompt); ++j)
      request.prompt.push_back(static_cast<TokenId>(rng.below(vocab_size)));
    request.max_tokens = n_gen;
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    request.thinking.mode = ThinkingMode::kUntracked;
    sinks.push_back(std::make_shared<LastEvent>());
    if (const auto id = engine.submit(std::move(request), sinks.back()); !id) return id.error().message;
  }
  while (engine.step()) {
  }
  for (const auto& sink : sinks)
    if (!sink->problem.empty()) return sink->problem;
  return {};
}

// Every sequence prefills and ends together with the others, so that their KV lies side by side.
std::string fill(Engine& engine, std::int64_t fill_tokens) {
  const EngineSettings& settings = engine.plan().settings;
  // The coarse copy of the head is made while few sequences decode for a while.
  if (settings.screens_head)
    if (std::string problem = run_sequences(
            engine, 1, 1, std::min(ScreenedHead::kWaitSteps + ScreenedHead::kBuildSteps + 8, settings.context - 1));
        !problem.empty())
      return problem;
  // With a draft model some tokens more, so that it has steps to compute what it is behind.
  const std::int64_t n_gen = settings.draft != nullptr ? 24 : 2;
  const std::int64_t each = std::min(
      {settings.context - n_gen, settings.kv_tokens / settings.max_seqs - n_gen, fill_tokens / settings.max_seqs});
  return run_sequences(engine, settings.max_seqs, each, n_gen);
}

// What the child writes through the pipe.
struct Report {
  std::int64_t allocated = 0, resident = 0, mapped = 0;
  char refusal[400] = {};
};

void refuse(Report& report, const std::string& text) {
  std::strncpy(report.refusal, text.empty() ? "unknown" : text.c_str(), sizeof report.refusal - 1);
}

Report run_child(const std::filesystem::path& path, const std::filesystem::path& draft, const MemoryPlan& plan,
                 std::int64_t fill_tokens) {
  Report report;
  const ProcessMemory before = process_memory();
  // No more than the plan: an allocation beyond it fails here and is a refusal. Loading threads and the engine's have
  // stacks of their own.
  const auto limit = static_cast<rlim_t>(before.data + plan.total_bytes() + kSlack +
                                         2 * (plan.settings.n_threads + 1) * stack_bytes());
  const rlimit bound{limit, limit};
  ::setrlimit(RLIMIT_DATA, &bound);
  try {
    auto model = Model::load(path, {.n_threads = plan.settings.n_threads});
    if (!model) {
      refuse(report, model.error().message);
      return report;
    }
    EngineOptions options{.settings = plan.settings, .step = {.target_s = 0}};
    options.settings.memory_limit = plan.total_bytes();  // exactly what was planned must do
    if (!draft.empty()) {
      auto loaded = Model::load(draft, {.n_threads = plan.settings.n_threads});
      if (!loaded) {
        refuse(report, loaded.error().message);
        return report;
      }
      options.draft = *loaded;
    }
    auto engine = Engine::create(*model, options);
    if (!engine) {
      refuse(report, engine.error().message);
      return report;
    }
    if (const std::string problem = fill(**engine, fill_tokens); !problem.empty()) {
      refuse(report, problem);
      return report;
    }
    const ProcessMemory after = process_memory();
    report.allocated = after.data - before.data - (after.n_threads - before.n_threads) * stack_bytes();
    report.resident = after.anonymous - before.anonymous;
    report.mapped = after.file - before.file;
  } catch (const std::bad_alloc&) {
    refuse(report, "memory beyond the plan was asked for");
  }
  return report;
}

// What a model's header says.
struct Planned {
  ModelConfig config;
  HostWeights weights;
};
Result<Planned> read_planned(const std::filesystem::path& path) {
  STILL_TRY(const Checkpoint checkpoint, Checkpoint::open(path, {.allow_missing_data = true}));
  STILL_TRY(const ModelShape shape, shape_from_checkpoint(checkpoint, path.filename().string()));
  STILL_TRY(const Quantisation own, find_quantisation("own"));
  STILL_TRY(const HostWeights weights, plan_host_weights(shape, own));
  return Planned{.config = shape.config, .weights = weights};
}

bool is_near(std::int64_t planned, std::int64_t found) {
  return std::abs(planned - found) <= std::max(kSlack, planned / 100);
}

}  // namespace

bool ContractRun::holds() const {
  return refusal.empty() && is_near(plan.total_bytes(), allocated) && is_near(plan.total_bytes(), resident) &&
         mapped <= mapped_max + kSlack;
}

Result<ContractRun> run_contract(const std::filesystem::path& path, const EngineSettings& settings,
                                 std::int64_t fill_tokens, const std::filesystem::path& draft) {
  ContractRun run;
  {
    EngineSettings wanted = settings;
    STILL_TRY(const Planned model, read_planned(path));
    run.mapped_max = model.weights.mapped_bytes;
    if (!draft.empty()) {
      STILL_TRY(const Planned drafting, read_planned(draft));
      wanted.draft = std::make_shared<const DraftShape>(DraftShape{
          .config = drafting.config, .weight_bytes = drafting.weights.arena_bytes, .max_k = drafting.weights.max_k});
      run.mapped_max += drafting.weights.mapped_bytes;
    }
    wanted.screens_head = model.weights.screens_head;
    STILL_TRY(run.plan, plan_memory(model.config, model.weights.arena_bytes, model.weights.max_k, wanted));
  }
  int ends[2];
  if (::pipe(ends) != 0) return error(Code::kInternal, "pipe: {}", std::strerror(errno));
  const pid_t child = ::fork();
  if (child < 0) return error(Code::kInternal, "fork: {}", std::strerror(errno));
  if (child == 0) {
    ::close(ends[0]);
    const Report report = run_child(path, draft, run.plan, fill_tokens);
    const bool is_written = ::write(ends[1], &report, sizeof report) == static_cast<ssize_t>(sizeof report);
    ::_exit(is_written ? 0 : 1);
  }
  ::close(ends[1]);
  Report report;
  std::size_t n_read = 0;
  while (n_read < sizeof report) {
    const ssize_t n = ::read(ends[0], reinterpret_cast<char*>(&report) + n_read, sizeof report - n_read);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    n_read += static_cast<std::size_t>(n);
  }
  ::close(ends[0]);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (n_read < sizeof report) {
    run.refusal = "the process died";
    return run;
  }
  run.refusal = report.refusal;
  run.allocated = report.allocated;
  run.resident = report.resident;
  run.mapped = report.mapped;
  return run;
}

std::vector<EngineSettings> contract_settings(std::int64_t max_context, std::int64_t fill_tokens) {
  const std::int64_t context = std::min(max_context, fill_tokens);
  const std::int64_t quarter = std::max<std::int64_t>(64, context / 4);
  const std::int64_t few = std::min<std::int64_t>(context, 128);  // f32: attention of the reference kernels, slow
  using enum KvType;
  // Chunks are no longer than what is filled: memory that no token reaches is allocated, but never resident.
  return {
      {.n_threads = 1, .context = context, .chunk_tokens = std::min<std::int64_t>(512, context), .kv_type = kF16},
      {.n_threads = 2, .context = context, .chunk_tokens = 64, .kv_type = kInt8},
      {.n_threads = 2, .context = few, .chunk_tokens = few, .kv_type = kF32},
      {.n_threads = 2, .context = quarter, .max_seqs = 4, .chunk_tokens = quarter, .kv_type = kF16},
      {.n_threads = 1, .context = quarter, .max_seqs = 4, .chunk_tokens = context, .kv_type = kInt8},
      {.n_threads = 4, .context = quarter, .max_seqs = 16, .kv_tokens = context, .chunk_tokens = 128, .kv_type = kF16},
      {.n_threads = 2, .context = context, .max_seqs = 1, .chunk_tokens = context, .kv_type = kF16}};
}

}  // namespace still
