// WordPiece: a vocabulary and a text of any bytes, cut at the first zero byte; and tokenizer.json of any bytes.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "text/word_piece.h"

using namespace still;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto try_out = [](Result<WordPieceData> read, std::string_view text) {
    if (!read) return;
    const auto tokenizer = WordPiece::make(std::move(*read));
    if (!tokenizer) return;
    for (const TokenId id : tokenizer->encode(text)) STILL_CHECK(id >= 0 && id < tokenizer->vocab_size());
  };
  const std::size_t cut = input.find('\0');
  const std::string_view text = cut == std::string_view::npos ? input : input.substr(cut + 1);
  try_out(read_word_piece_json(input.substr(0, cut)), text);
  try_out(read_word_piece_vocab("[UNK]\n[CLS]\n[SEP]\n" + std::string(input.substr(0, cut)), ""), text);
  return 0;
}
