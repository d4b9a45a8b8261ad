// still tokenize: text on stdin to token ids, or back.
#include <fmt/format.h>

#include <charconv>
#include <memory>

#include "base/json.h"
#include "cli/command.h"
#include "cli/input.h"
#include "cli/model_ref.h"
#include "files/checkpoint.h"
#include "models/model.h"

namespace still {
namespace {

struct TokenizeOptions {
  std::string model;
  std::string text;
  bool json = false;
  bool count = false;
  bool decode = false;
  bool no_special = false;
  bool plain = false;
};

// "1 2 3", "[1,2,3]": whole numbers with anything but digits and minus signs between them.
Result<std::vector<TokenId>> parse_ids(std::string_view text, std::int64_t vocab_size) {
  std::vector<TokenId> ids;
  std::size_t i = 0;
  while (true) {
    i = text.find_first_not_of(" \t\r\n,[]", i);
    if (i == std::string_view::npos) return ids;
    const std::size_t end = std::min(text.find_first_of(" \t\r\n,[]", i), text.size());
    const std::string_view word = text.substr(i, end - i);
    TokenId id = -1;
    const auto [stop, problem] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (problem != std::errc() || stop != word.data() + word.size() || id < 0 || id >= vocab_size) {
      return error(Code::kInvalidArgument, "token id \"{}\": expected a number from 0 to {}", printable_line(word),
                   vocab_size - 1);
    }
    ids.push_back(id);
    i = end;
  }
}

void print_tokens(const Tokenizer& tokenizer, std::span<const TokenId> ids, const TokenizeOptions& options) {
  if (options.count) {
    fmt::print("{}\n", ids.size());
  } else if (options.json) {
    fmt::print("[{}]\n", fmt::join(ids, ","));
  } else {
    for (const TokenId id : ids) {
      std::string quoted;
      for (const char byte : tokenizer.token_bytes(id)) {
        if (byte == '\n') {
          quoted += "\\n";
        } else if (static_cast<unsigned char>(byte) < 0x20 || byte == 0x7f) {
          quoted += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
        } else {
          quoted += byte;
        }
      }
      fmt::print("{:>7}  '{}'\n", id, printable_line(quoted));
    }
  }
}

Status tokenize(const TokenizeOptions& options, const Context& context) {
  STILL_TRY(const ResolvedModel found, find_model_here(context, options.model));
  const auto load = [&]() -> Result<Tokenizer> {
    STILL_TRY(const Checkpoint checkpoint, Checkpoint::open(found.path, {.allow_missing_data = true}));
    return load_tokenizer(checkpoint);
  };
  const Result<Tokenizer> loaded = load();
  if (!loaded) return tl::unexpected(explain_failure(loaded.error(), found));
  const Tokenizer& tokenizer = *loaded;
  std::string text = options.text;
  if (text.empty()) {
    STILL_TRY(text, read_stdin());
  }
  if (options.decode) {
    STILL_TRY(const std::vector<TokenId> ids, parse_ids(text, tokenizer.vocab_size()));
    const std::string bytes = tokenizer.decode(ids, false);
    std::fwrite(bytes.data(), 1, bytes.size(), stdout);
    return ok();
  }
  STILL_TRY_STATUS(check_utf8(text, options.text.empty() ? "stdin" : "TEXT"));
  const std::vector<TokenId> ids =
      tokenizer.encode(text, {.add_special = !options.no_special, .parse_special = !options.plain});
  print_tokens(tokenizer, ids, options);
  return ok();
}

Command::Action declare_tokenize(Options& options) {
  auto chosen = std::make_shared<TokenizeOptions>();
  options.required("MODEL", &chosen->model, "A store name, or the path of a file or folder (a header is enough)");
  options.optional("TEXT", &chosen->text, "The text; without it, all of stdin (UTF-8)");
  options.flag("--json", &chosen->json, "An array of ids");
  options.flag("--count", &chosen->count, "Only how many");
  options.flag("--decode", &chosen->decode, "The other way: ids on stdin to text");
  options.flag("--no-special", &chosen->no_special, "Without the begin and end tokens that the model adds");
  options.flag("--plain", &chosen->plain, "\"<|im_end|>\" and the like in the text are plain characters");
  return [chosen](const Context& context) { return tokenize(*chosen, context); };
}

}  // namespace

extern const Command kTokenizeCommand;
const Command kTokenizeCommand{.name = "tokenize",
                               .alias = nullptr,
                               .summary = "Turn text into token ids, or back",
                               .examples =
                                   "  still tokenize smollm2:135m \"Hello world\"\n"
                                   "  still tokenize --json smollm2:135m < text.txt\n"
                                   "  still tokenize --count smollm2:135m < text.txt\n"
                                   "  echo '[9906, 1917]' | still tokenize --decode smollm2:135m",
                               .declare = declare_tokenize};

}  // namespace still
