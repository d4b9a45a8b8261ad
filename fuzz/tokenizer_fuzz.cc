// tokenizer.json: any bytes may be read; what makes a tokenizer encodes any text and decodes any id.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

using namespace still;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  auto read = read_tokenizer_json(input, "");
  if (!read) return 0;
  const auto tokenizer = Tokenizer::make(std::move(*read));
  if (!tokenizer) return 0;
  // The file itself is the text: full of what the vocabulary holds, and of broken UTF-8.
  const std::string_view text = input.substr(input.size() > 4096 ? input.size() - 4096 : 0);
  for (const bool parse_special : {true, false}) {
    Detokenizer detokenizer(*tokenizer, false);
    std::string streamed;
    const auto ids = tokenizer->encode(text, {.add_special = true, .parse_special = parse_special});
    for (const TokenId id : ids) {
      STILL_CHECK(id >= 0 && id < tokenizer->vocab_size());
      streamed += detokenizer.add(id);
    }
    streamed += detokenizer.flush();
    STILL_CHECK(is_valid_utf8(streamed));
  }
  const TextRun runs[] = {{text.substr(0, text.size() / 2), true}, {text.substr(text.size() / 2), false}};
  (void)tokenizer->encode_runs(runs);
  return 0;
}
