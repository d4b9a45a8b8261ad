// still serve: the server, until a signal ends it. The first SIGTERM or SIGINT lets what runs go on for a while, the
// second ends it at once.
#include <fmt/format.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <memory>

#include "cli/command.h"
#include "cli/model_ref.h"
#include "cli/serve_environment.h"
#include "serve/cors.h"
#include "serve/server.h"

namespace still {
namespace {

struct ServeArguments {
  std::optional<std::string> host, keep_alive, models, keys_file, tls_certificate, tls_key, access_log, unix_socket;
  std::optional<std::int64_t> port, context, parallel, threads, max_models, max_queue, memory, drain_seconds,
      tensor_parallel;
  std::string kv_type, device = "auto", speculation = "off", draft;
  bool reproducible = false;
  std::vector<std::string> origins;
  bool log_prompts = false;
};

constexpr std::int64_t kDefaultParallel = 16;

Status check_range(std::string_view name, std::int64_t value, std::int64_t min, std::int64_t max) {
  if (value >= min && value <= max) return ok();
  return error(Code::kInvalidArgument, "{} {}: expected {} to {}", name, value, min, max);
}

// An option of the command line, else of the environment, else the default.
Result<std::int64_t> chosen_number(std::string_view name, const std::optional<std::int64_t>& argument,
                                   const std::optional<std::int64_t>& variable, std::int64_t fallback, std::int64_t min,
                                   std::int64_t max) {
  const std::int64_t value = argument.value_or(variable.value_or(fallback));
  STILL_TRY_STATUS(check_range(name, value, min, max));
  return value;
}

Result<KvType> to_kv_type(const std::string& word) {
  if (word.empty() || word == "f16") return KvType::kF16;
  if (word == "q8_0") return KvType::kInt8;
  const std::optional<KvType> type = kv_type_of(word);
  if (type && type != KvType::kF32) return *type;
  return error(Code::kInvalidArgument, "KV type \"{}\": expected f16, int8, q8_0, bf16 or fp8", word);
}

Result<ServeOptions> to_options(const ServeArguments& arguments, const ServeEnvironment& environment,
                                const Context& context) {
  constexpr std::int64_t kMaxContext = std::int64_t{1} << 30;
  ServeOptions options;
  ServerAddress address = environment.address;
  if (arguments.host) {
    // "--host 0.0.0.0" keeps the port of the environment; "--host 0.0.0.0:80" brings its own.
    const ServerAddress given = parse_server_address(*arguments.host);
    address.host = given.host;
    if (given.port != ServerAddress().port) address.port = given.port;
  }
  STILL_TRY(const std::int64_t port, chosen_number("--port", arguments.port, address.port, address.port, 0, 65535));
  options.host = address.host;
  options.port = static_cast<std::uint16_t>(port);
  options.models = arguments.models ? std::filesystem::path(*arguments.models) : context.environment.models;
  options.ollama_models = context.environment.ollama_models;
  options.hub = context.environment.hub;
  STILL_TRY(options.engine.context,
            chosen_number("--context", arguments.context, environment.context, 0, 0, kMaxContext));
  // Ollama's 0 means "choose".
  const std::optional<std::int64_t> n_parallel =
      environment.n_parallel.value_or(0) > 0 ? environment.n_parallel : std::nullopt;
  STILL_TRY(options.engine.max_seqs,
            chosen_number("--parallel", arguments.parallel, n_parallel, kDefaultParallel, 1, 4096));
  STILL_TRY(const std::int64_t n_threads, chosen_number("--threads", arguments.threads, {}, 0, 0, 1024));
  options.engine.n_threads = static_cast<int>(n_threads);
  STILL_TRY(options.engine.kv_type, to_kv_type(arguments.kv_type.empty() ? environment.kv_type : arguments.kv_type));
  options.engine.reproducible = arguments.reproducible;
  options.device = arguments.device == "cpu"    ? DeviceChoice::kCpu
                   : arguments.device == "cuda" ? DeviceChoice::kCuda
                                                : DeviceChoice::kAuto;
  STILL_TRY(const std::int64_t n_ranks, chosen_number("--tensor-parallel", arguments.tensor_parallel, {}, 1, 1, 16));
  if (n_ranks > 1 && options.device == DeviceChoice::kCpu)
    return error(Code::kInvalidArgument, "--tensor-parallel {}: GPUs share a model, not the CPU", n_ranks);
  // Who asks for several GPUs does not want the CPU.
  if (n_ranks > 1) options.device = DeviceChoice::kCuda;
  options.engine.n_ranks = static_cast<std::int32_t>(n_ranks);
  if (arguments.speculation == "lookup") options.speculation = Speculation::kLookup;
  if (!arguments.draft.empty()) {
    STILL_TRY(const ResolvedModel found, find_model_here(context, arguments.draft));
    options.draft = found.path;
  }
  const bool cannot_repeat = arguments.reproducible && options.speculation != Speculation::kOff;
  if (options.device == DeviceChoice::kCuda && cannot_repeat)
    return error(Code::kInvalidArgument, "--reproducible: on a GPU not with --speculation {}", arguments.speculation);
  if (options.device == DeviceChoice::kCuda && !arguments.draft.empty())
    return error(Code::kInvalidArgument, "--draft: a draft model works on the CPU only");
  if (options.device == DeviceChoice::kAuto && cannot_repeat) options.device = DeviceChoice::kCpu;
  STILL_TRY(const std::int64_t mib, chosen_number("--memory", arguments.memory, {}, 0, 0, std::int64_t{1} << 30));
  options.engine.memory_limit = mib << 20;
  const std::optional<std::string> keep_alive = arguments.keep_alive ? arguments.keep_alive : environment.keep_alive;
  if (keep_alive) {
    STILL_TRY(options.keep_alive, parse_keep_alive(*keep_alive));
  }
  STILL_TRY(options.max_models,
            chosen_number("--max-models", arguments.max_models, environment.max_models, 0, 0, 1000));
  STILL_TRY(options.max_queue,
            chosen_number("--max-queue", arguments.max_queue, environment.max_queue, options.max_queue, 1, 1000000));
  STILL_TRY(const std::int64_t drain, chosen_number("--drain", arguments.drain_seconds, {}, 30, 0, 86400));
  options.drain_timeout = std::chrono::seconds(drain);
  options.origins = environment.origins;
  options.origins.insert(options.origins.end(), arguments.origins.begin(), arguments.origins.end());
  options.keys = environment.keys;
  options.keys_file = arguments.keys_file.value_or("");
  options.tls_certificate = arguments.tls_certificate.value_or("");
  options.tls_key = arguments.tls_key.value_or("");
  if (options.tls_certificate.empty() != options.tls_key.empty()) {
    return error(Code::kInvalidArgument, "TLS needs both --tls-cert and --tls-key");
  }
  options.unix_socket = arguments.unix_socket.value_or("");
  options.access_log = arguments.access_log.value_or("");
  options.log_prompts = arguments.log_prompts;
  return options;
}

void warn_of_open_server(const ServeOptions& options) {
  if (is_loopback_host(options.host)) return;
  if (options.keys.empty() && options.keys_file.empty()) {
    fmt::print(
        stderr,
        "still: WARNING: {} can be reached from other machines, and no API key is asked for: whoever reaches it\n"
        "still: WARNING: may use, pull and delete models. Set STILL_API_KEYS or --keys, or bind 127.0.0.1.\n",
        options.host);
  } else if (options.tls_certificate.empty()) {
    fmt::print(stderr,
               "still: warning: keys and prompts cross the network unencrypted; --tls-cert and --tls-key help\n");
  }
}

// A connection is a file: the soft limit of 1024 is for programs that use select().
void raise_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, 1 << 16);
  setrlimit(RLIMIT_NOFILE, &limit);
}

// Waits for a signal of the set; 0 if none came in time.
int wait_for_signal(const sigset_t& signals, std::chrono::milliseconds timeout) {
  const timespec time{.tv_sec = static_cast<time_t>(timeout.count() / 1000),
                      .tv_nsec = static_cast<long>(timeout.count() % 1000) * 1000000};
  const int number = sigtimedwait(&signals, nullptr, &time);
  return number > 0 ? number : 0;
}

Status serve(const ServeArguments& arguments, const Context& context) {
  STILL_TRY(const ServeEnvironment environment, read_serve_environment());
  STILL_TRY(ServeOptions options, to_options(arguments, environment, context));
  warn_of_open_server(options);
  raise_file_limit();
  // Blocked before any thread is made: only this one takes them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  const auto drain_timeout = options.drain_timeout;
  STILL_TRY(const std::unique_ptr<Server> server, Server::create(std::move(options)));
  server->start();
  fmt::print(stderr, "still {}: listening on {}\n", STILL_VERSION, server->url());
  std::fflush(stderr);

  while (wait_for_signal(signals, std::chrono::hours(1)) == 0) {
  }
  fmt::print(stderr, "still: shutting down; requests under way have {} s, a second signal ends them now\n",
             drain_timeout.count());
  server->drain();
  const auto deadline = std::chrono::steady_clock::now() + drain_timeout;
  while (std::chrono::steady_clock::now() < deadline && !server->wait_idle(std::chrono::milliseconds(0))) {
    if (wait_for_signal(signals, std::chrono::milliseconds(50)) != 0) {
      fmt::print(stderr, "still: ended at once\n");
      std::fflush(nullptr);
      _exit(130);
    }
  }
  server->stop();
  return ok();
}

Command::Action declare_serve(Options& options) {
  auto chosen = std::make_shared<ServeArguments>();
  options.value("--host", &chosen->host, "Address to listen on [127.0.0.1, or STILL_HOST, OLLAMA_HOST]");
  options.value("-p,--port", &chosen->port, "Port [11434]; 0: any free one");
  options.value("-c,--context", &chosen->context,
                "Tokens of context of each model [the model's, or what fits; OLLAMA_CONTEXT_LENGTH]");
  options.value("--parallel", &chosen->parallel, "Requests of a model that decode together [16; OLLAMA_NUM_PARALLEL]");
  options.value("--keep-alive", &chosen->keep_alive,
                "How long an idle model stays loaded: 5m, 300, -1 for ever [5m; OLLAMA_KEEP_ALIVE]");
  options.value("--kv-type", &chosen->kv_type,
                "How keys and values are kept: f16, int8; on GPUs bf16, fp8 [f16; OLLAMA_KV_CACHE_TYPE]");
  options.value("-t,--threads", &chosen->threads, "Threads [the physical cores]");
  options.choice("--device", &chosen->device, {"auto", "cpu", "cuda"},
                 "What computes; auto: a GPU for each model that fits there");
  options.value("--tensor-parallel", &chosen->tensor_parallel, "GPUs that share each model [1]");
  options.flag("--reproducible", &chosen->reproducible, "On a GPU: no answer depends on the others of its time");
  options.choice(
      "--speculation", &chosen->speculation, {"off", "lookup"},
      "Draft tokens from the text so far and verify them together: same text, faster where it repeats itself");
  options.value("--draft", &chosen->draft,
                "A small MODEL that drafts tokens for larger ones of its vocabulary: same text, faster where it pays");
  options.value("--memory", &chosen->memory, "MiB that all models together may take [what is available]");
  options.value("--max-models", &chosen->max_models, "Models loaded at once [what fits; OLLAMA_MAX_LOADED_MODELS]");
  options.value("--max-queue", &chosen->max_queue, "Requests that wait; the next gets 503 [512; OLLAMA_MAX_QUEUE]");
  options.value("--models", &chosen->models, "Folder of the store [STILL_MODELS]");
  options.value("--keys", &chosen->keys_file, "File of API keys and their limits [STILL_API_KEYS: a list of keys]");
  options.repeated("--origin", &chosen->origins, "Web origin that may use the server, * for any [OLLAMA_ORIGINS]");
  options.value("--tls-cert", &chosen->tls_certificate, "Certificate chain, PEM");
  options.value("--tls-key", &chosen->tls_key, "Its key, PEM");
  options.value("--unix-socket", &chosen->unix_socket, "Listen on this socket file, too");
  options.value("--access-log", &chosen->access_log, "File for one JSON line a request [standard error]");
  options.flag("--log-prompts", &chosen->log_prompts, "Requests' bodies in the access log: prompts are private");
  options.value("--drain", &chosen->drain_seconds, "Seconds that requests under way get at the end [30]");
  return [chosen](const Context& context) { return serve(*chosen, context); };
}

}  // namespace

extern const Command kServeCommand;
const Command kServeCommand{
    .name = "serve",
    .alias = "start",
    .summary = "Answer over HTTP, as Ollama and OpenAI do",
    .examples =
        "  still serve                                     on 127.0.0.1:11434; models load when they are asked for\n"
        "  still serve --parallel 64 --kv-type int8        many users at once\n"
        "  STILL_API_KEYS=sk-1,sk-2 still serve --host 0.0.0.0\n"
        "  still serve --port 8443 --tls-cert cert.pem --tls-key key.pem --keys keys.json\n"
        "  curl localhost:11434/v1/chat/completions -d '{\"model\": \"smollm2:135m\", \"messages\": [{\"role\": "
        "\"user\", "
        "\"content\": \"Hi\"}]}'",
    .declare = declare_serve};

}  // namespace still
