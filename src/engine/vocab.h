// Vocab: what the engine must know of a tokenizer, as plain data; tests make their own.
#pragma once

#include <string_view>
#include <vector>

#include "tensor/tensor.h"
#include "text/tokenizer.h"

namespace still {

struct Vocab {
  std::int64_t size = 0;                      // rows of the logits; may exceed the tokenizer's own count
  std::vector<TokenId> end_tokens;            // ascending
  TokenId think_open = -1, think_close = -1;  // -1: the model has no single tokens for the tags
  std::vector<TokenId> open_block;            // "<think>\n": what begins a block that is required
  std::vector<TokenId> close_block;           // "</think>\n\n": what ends one before its time
  const void* context = nullptr;
  std::string_view (*bytes_of)(const void* context, TokenId id) = nullptr;
  bool (*is_hidden_of)(const void* context, TokenId id) = nullptr;  // control tokens: no text

  std::string_view bytes(TokenId id) const { return bytes_of(context, id); }
  bool is_hidden(TokenId id) const { return is_hidden_of(context, id); }
  bool is_end(TokenId id) const;
  bool has_thinking() const { return think_open >= 0 && think_close >= 0; }
};

// The tokenizer must outlive the result.
Vocab make_vocab(const Tokenizer& tokenizer, std::int64_t vocab_size);

}  // namespace still
