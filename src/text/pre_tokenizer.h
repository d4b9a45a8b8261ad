// Pre-tokenisers: how a text is cut into words before byte pair encoding. Each is one or more splits applied in
// turn, every split working inside the pieces of the one before; what a split does not match stays a piece.
// The patterns are those of the published tokenizer.json files, written by hand: a regular expression engine would be
// slower, and engines disagree on Unicode. Unicode classes: text/unicode.h.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace still {

// Where a pattern matches at `pos` inside `piece`: the end of the match, or `pos` for none.
using SplitRule = std::size_t (*)(std::string_view piece, std::size_t pos);

struct PreTokenizer {
  std::string_view name;  // one of the names that GGUF files use (tokenizer.ggml.pre)
  std::vector<SplitRule> rules;
};

// By GGUF name ("gpt-2", "smollm", "qwen2", "deepseek-r1-qwen", "llama-bpe", "deepseek-v3", "deepseek-llm", "default",
// ...). kUnsupported for a name not known: a wrong split would silently give other tokens.
Result<PreTokenizer> find_pre_tokenizer(std::string_view name);

// One step of a tokenizer.json's pre_tokenizer, in the form it is recognised by.
struct PreTokenizerStep {
  std::string type;   // "Split", "Digits", "ByteLevel"
  std::string regex;  // of a Split
  bool flag = false;  // ByteLevel: use_regex; Digits: individual_digits
};

// The name whose splits equal those steps; kUnsupported names the first pattern not known.
Result<std::string_view> recognize_pre_tokenizer(const std::vector<PreTokenizerStep>& steps);

// Appends the end offset of each word of `text` to `ends` (the last one is text.size()).
void split_words(const PreTokenizer& pre_tokenizer, std::string_view text, std::vector<std::size_t>& ends);

}  // namespace still
