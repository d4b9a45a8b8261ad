// still run: one answer, or a chat on a terminal.
#include <fmt/format.h>
#include <unistd.h>

#include <memory>

#include "base/json.h"
#include "cli/answer_printer.h"
#include "cli/chat.h"
#include "cli/chat_repl.h"
#include "cli/command.h"
#include "cli/input.h"
#include "cli/interrupt.h"

namespace still {
namespace {

struct RunOptions {
  std::string model;
  std::vector<std::string> prompt;
  std::optional<std::string> system, think;
  std::optional<double> temperature, top_p, min_p, repeat_penalty;
  std::optional<std::int64_t> top_k, seed, max_tokens;
  std::vector<std::string> stop;
  EngineArguments engine;
  bool raw = false, ignore_eos = false, stats = false, json = false, interactive = false;
  bool no_word_wrap = false;
};

// What the options say over what the model and the store say.
Status apply(const RunOptions& options, ChatSettings& settings) {
  SamplingParams& sampling = settings.sampling;
  if (options.temperature) sampling.temperature = static_cast<float>(*options.temperature);
  if (options.top_p) sampling.top_p = static_cast<float>(*options.top_p);
  if (options.min_p) sampling.min_p = static_cast<float>(*options.min_p);
  if (options.repeat_penalty) sampling.repetition_penalty = static_cast<float>(*options.repeat_penalty);
  if (options.top_k) STILL_TRY_STATUS(set_parameter(settings, "top_k", std::to_string(*options.top_k)));
  if (options.seed) STILL_TRY_STATUS(set_parameter(settings, "seed", std::to_string(*options.seed)));
  if (options.max_tokens) settings.max_tokens = *options.max_tokens;
  for (const std::string& stop : options.stop) STILL_TRY_STATUS(check_utf8(stop, "--stop"));
  if (!options.stop.empty()) settings.stop = options.stop;
  if (options.system) {
    STILL_TRY_STATUS(check_utf8(*options.system, "--system"));
    settings.system = *options.system;
  }
  if (options.think) {
    STILL_TRY(settings.think, ThinkSetting::parse(*options.think));
  }
  sampling.ignore_eos = options.ignore_eos;
  return check_settings(settings);
}

// Text on stdin comes before the words of the command line, as a document before its question.
Result<std::string> gather_prompt(const RunOptions& options) {
  std::string text = fmt::format("{}", fmt::join(options.prompt, " "));
  if (isatty(STDIN_FILENO) == 1) return text;
  STILL_TRY(std::string from_stdin, read_stdin());
  if (text.empty() || from_stdin.empty()) return text + from_stdin;
  if (!from_stdin.ends_with('\n')) from_stdin += '\n';
  return from_stdin + '\n' + text;
}

Json to_json_result(const Chat& chat, const GenerateResult& result) {
  const Usage& usage = result.finished.usage;
  const Timings& timings = result.finished.timings;
  const double prefill = to_seconds(timings.prefill), decode = to_seconds(timings.decode);
  const auto rate = [](std::int64_t n, double seconds) { return seconds > 0 ? static_cast<double>(n) / seconds : 0.0; };
  const std::vector<TokenId> ids = result.ids();
  const auto& warnings = result.finished.warnings;
  return JsonObject{
      {"model", chat.found().name},
      {"text", result.text},
      {"reasoning", result.reasoning},
      {"tokens", JsonArray(ids.begin(), ids.end())},
      {"finish_reason", to_string(result.finished.reason)},
      {"seed", result.started.seed},
      {"counts", JsonObject{{"prompt", usage.n_prompt},
                            {"cached", usage.n_cached},
                            {"completion", usage.n_completion},
                            {"reasoning", usage.n_reasoning},
                            {"drafted", usage.n_drafted},
                            {"accepted", usage.n_accepted}}},
      {"seconds", JsonObject{{"load", chat.load_seconds()},
                             {"queue", to_seconds(timings.queue)},
                             {"prefill", prefill},
                             {"decode", decode},
                             {"ttft", to_seconds(timings.ttft)},
                             {"total", to_seconds(timings.total)}}},
      {"tokens_per_s", JsonObject{{"prefill", rate(usage.n_prompt - usage.n_cached, prefill)},
                                  {"decode", rate(std::max<std::int64_t>(usage.n_completion - 1, 0), decode)}}},
      {"warnings", JsonArray(warnings.begin(), warnings.end())}};
}

Status answer_as_json(Chat& chat, const std::string& prompt, const ChatSettings& settings, bool is_raw) {
  const InterruptScope interrupt;
  const auto on_event = [&](const Event&) { return !interrupt.is_interrupted(); };
  STILL_TRY(const GenerateResult result,
            is_raw ? chat.complete(prompt, settings, on_event) : chat.answer(prompt, settings, on_event));
  fmt::print("{}\n", to_json(to_json_result(chat, result)));
  if (result.finished.reason == FinishReason::kCancelled) return error(Code::kCancelled, "stopped");
  return ok();
}

Status run(const RunOptions& options, const Context& context) {
  // Wrong numbers are told before a model is pulled or loaded.
  ChatSettings trial;
  STILL_TRY_STATUS(apply(options, trial));
  STILL_TRY(const EngineOptions engine_options, to_engine_options(options.engine));
  const bool is_terminal = isatty(STDIN_FILENO) == 1 && context.out.is_tty();
  STILL_TRY(const std::string prompt, gather_prompt(options));
  STILL_TRY_STATUS(check_utf8(prompt, "prompt"));
  const bool is_chat = is_terminal && !options.json && !options.raw && (prompt.empty() || options.interactive);
  if (prompt.empty() && !is_chat) {
    return error(Code::kInvalidArgument, "no prompt: give it as an argument or on stdin (a chat needs a terminal)");
  }

  STILL_TRY(const ResolvedModel found, find_or_pull_model(context, options.model, engine_options.settings));
  STILL_TRY(Chat chat, Chat::open(context, found, options.engine));
  STILL_TRY(ChatSettings settings, default_settings(found, chat.engine().model()));
  STILL_TRY_STATUS(apply(options, settings));
  if (settings.think.budget >= 0 && !chat.can_think()) {
    fmt::print(stderr, "still: {}, so --think {} has no effect\n", chat.cannot_think(), settings.think.budget);
  }
  if (options.json) return answer_as_json(chat, prompt, settings, options.raw);
  if (is_chat) {
    return run_chat_repl(
        context, chat,
        {.settings = settings, .stats = options.stats, .wraps_words = !options.no_word_wrap, .first_message = prompt});
  }
  STILL_TRY(const GenerateResult result,
            print_answer(context, chat, prompt, settings, options.raw, !options.no_word_wrap));
  if (options.stats) print_stats(result, chat.load_seconds());
  if (result.finished.reason == FinishReason::kCancelled) return error(Code::kCancelled, "stopped");
  return ok();
}

Command::Action declare_run(Options& options) {
  auto chosen = std::make_shared<RunOptions>();
  options.required("MODEL", &chosen->model,
                   "A store name, a name of `still list --catalogue` (pulled first), or the path of a file or folder");
  options.rest("PROMPT", &chosen->prompt, false, "The question; text on stdin goes before it. Without both: a chat");
  options.flag("-i,--interactive", &chosen->interactive, "Go on as a chat after the answer, on a terminal");
  options.value("--system", &chosen->system, "System prompt");
  options.value("--think", &chosen->think, "on, off, hide, auto, or at most N tokens of thinking");
  options.value("--temperature", &chosen->temperature, "0: always the most probable token");
  options.value("--top-p", &chosen->top_p, "Nucleus sampling");
  options.value("--top-k", &chosen->top_k, "Only the K most probable tokens; 0: all");
  options.value("--min-p", &chosen->min_p, "Only tokens of at least this share of the best one's probability");
  options.value("--repeat-penalty", &chosen->repeat_penalty, "Above 1: tokens that were there become less probable");
  options.value("--seed", &chosen->seed, "Same seed, same answer; -1: a new one");
  options.value("-n,--max-tokens", &chosen->max_tokens, "Tokens of the answer at most; -1: until the context is full");
  options.repeated("--stop", &chosen->stop, "End the answer at this text; may be given several times");
  options.flag("--ignore-eos", &chosen->ignore_eos, "Never end by itself");
  declare_engine_arguments(options, chosen->engine, true);
  options.flag("--raw", &chosen->raw, "The prompt as it is, without the model's chat template");
  options.flag("--stats,--verbose", &chosen->stats, "Counts, rates and times afterwards, on stderr");
  options.flag("--nowordwrap", &chosen->no_word_wrap, "Break lines where the terminal does, not between words");
  options.flag("--json", &chosen->json, "One object: text, reasoning, tokens, counts, seconds");
  return [chosen](const Context& context) { return run(*chosen, context); };
}

}  // namespace

extern const Command kRunCommand;
const Command kRunCommand{
    .name = "run",
    .alias = nullptr,
    .summary = "Ask a model, or chat with it",
    .examples =
        "  still run smollm2:135m                                  chat\n"
        "  still run smollm2:135m \"Why is the sky blue?\"           one answer\n"
        "  still run smollm2:135m \"Sum this up:\" < report.txt      text from stdin\n"
        "  still run deepseek-r1:1.5b --think 500 \"What is 17*23?\" at most 500 tokens of thinking\n"
        "  still run ./model.gguf --temperature 0 --stats \"Hello\"  a file, greedy, with rates\n"
        "  still run --json --raw smollm2:135m \"Once upon\" | jq .tokens",
    .declare = declare_run};

}  // namespace still
