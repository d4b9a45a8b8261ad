// still perplexity: how well a model predicts a text, counted as llama.cpp's tool counts.
#include "engine/perplexity.h"

#include <fmt/format.h>

#include <memory>

#include "base/json.h"
#include "cli/command.h"
#include "cli/engine_options.h"
#include "cli/input.h"
#include "cli/interrupt.h"
#include "cli/model_ref.h"

namespace still {
namespace {

struct PerplexityArguments {
  std::string model;
  std::string file = "-";
  std::int64_t n_ctx = 512;
  std::optional<std::int64_t> n_chunks;
  EngineArguments engine;
  bool json = false;
};

Status measure(const PerplexityArguments& arguments, const Context& context) {
  if (arguments.n_ctx < 8)
    return error(Code::kInvalidArgument, "--chunk {}: expected 8 or more tokens", arguments.n_ctx);
  if (arguments.n_chunks && *arguments.n_chunks < 1) {
    return error(Code::kInvalidArgument, "--chunks {}: expected 1 or more", *arguments.n_chunks);
  }
  STILL_TRY(const EngineOptions engine, to_engine_options(arguments.engine));
  STILL_TRY(const std::string text, read_text_argument(arguments.file));
  STILL_TRY_STATUS(check_utf8(text, arguments.file == "-" ? "stdin" : arguments.file));
  STILL_TRY(const ResolvedModel found, find_model_here(context, arguments.model));
  STILL_TRY(const std::shared_ptr<const Model> model,
            load_model(context, found, engine.settings.n_threads, &arguments.engine));

  ProgressLine line(context.err);
  const InterruptScope interrupt;
  PerplexityOptions options{.n_ctx = arguments.n_ctx,
                            .n_chunks = arguments.n_chunks.value_or(-1),
                            .n_threads = engine.settings.n_threads,
                            .kv_type = engine.settings.kv_type};
  options.progress = [&](std::int64_t done, std::int64_t total, double so_far) {
    line.update(fmt::format("chunk {} of {}", done, total), static_cast<double>(done) / static_cast<double>(total),
                fmt::format("perplexity {:.4f}", so_far));
    return !interrupt.is_interrupted();
  };
  STILL_TRY(const PerplexityResult result, perplexity(*model, text, options));
  line.clear();
  if (arguments.json) {
    fmt::print("{}\n", to_json(JsonObject{{"perplexity", result.perplexity},
                                          {"standard_error", result.standard_error},
                                          {"n_ctx", arguments.n_ctx},
                                          {"n_chunks", result.n_chunks},
                                          {"n_scored", result.n_scored},
                                          {"tokens_per_s", result.tokens_per_s}}));
    return ok();
  }
  fmt::print("perplexity {:.4f} +/- {:.4f}   ({} tokens scored in {} chunks of {}, {:.1f} tok/s)\n", result.perplexity,
             result.standard_error, result.n_scored, result.n_chunks, arguments.n_ctx, result.tokens_per_s);
  return ok();
}

Command::Action declare_perplexity(Options& options) {
  auto chosen = std::make_shared<PerplexityArguments>();
  options.required("MODEL", &chosen->model, "A store name, or the path of a file or folder");
  options.optional("FILE", &chosen->file, "The text; \"-\" or nothing: stdin");
  options.value("--chunk", &chosen->n_ctx, "Tokens of a chunk");
  options.value("--chunks", &chosen->n_chunks, "At most so many chunks [all]");
  declare_engine_arguments(options, chosen->engine);
  options.flag("--json", &chosen->json, "One object");
  return [chosen](const Context& context) { return measure(*chosen, context); };
}

}  // namespace

extern const Command kPerplexityCommand;
const Command kPerplexityCommand{.name = "perplexity",
                                 .alias = nullptr,
                                 .summary = "Measure how well a model predicts a text",
                                 .examples =
                                     "  still perplexity smollm2:135m text.txt\n"
                                     "  still perplexity --chunk 512 --chunks 8 qwen2.5:0.5b < text.txt",
                                 .declare = declare_perplexity};

}  // namespace still
