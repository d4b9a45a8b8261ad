#include "engine/vocab.h"

#include <algorithm>

namespace still {

bool Vocab::is_end(TokenId id) const {
  return std::binary_search(end_tokens.begin(), end_tokens.end(), id);
}

Vocab make_vocab(const Tokenizer& tokenizer, std::int64_t vocab_size) {
  Vocab vocab;
  vocab.size = vocab_size;
  const auto ends = tokenizer.end_of_generation();
  vocab.end_tokens.assign(ends.begin(), ends.end());
  std::sort(vocab.end_tokens.begin(), vocab.end_tokens.end());
  vocab.think_open = tokenizer.find("<think>").value_or(-1);
  vocab.think_close = tokenizer.find("</think>").value_or(-1);
  if (vocab.has_thinking()) {
    vocab.open_block = tokenizer.encode("<think>\n");
    vocab.close_block = tokenizer.encode("</think>\n\n");
  }
  vocab.context = &tokenizer;
  vocab.bytes_of = [](const void* context, TokenId id) {
    return static_cast<const Tokenizer*>(context)->token_bytes(id);
  };
  vocab.is_hidden_of = [](const void* context, TokenId id) {
    return static_cast<const Tokenizer*>(context)->is_special(id);
  };
  return vocab;
}

}  // namespace still
