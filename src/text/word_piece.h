// WordPiece, the tokenizer of BERT's family (Devlin et al. 2018, arXiv:1810.04805; Wu et al. 2016, arXiv:1609.08144):
// text is cleaned, lower-cased and stripped of accents, cut at white space, punctuation and around each CJK ideograph,
// and every word is covered from its start by the longest pieces of the vocabulary. Ids equal those of the Hugging Face
// tokenizers library.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "tensor/tensor.h"

namespace still {

struct WordPieceData {
  std::vector<std::string> tokens;  // by id; pieces inside a word have the prefix
  std::string prefix = "##";
  TokenId unknown = -1, cls = -1, sep = -1, pad = -1;
  std::vector<TokenId> special;  // matched in the text as they are spelled, before anything else
  bool clean_text = true;        // control characters vanish, white space becomes a space
  bool space_cjk = true;         // every ideograph is a word
  bool strip_accents = true;
  bool lowercase = true;
  std::int64_t max_word_chars = 100;  // longer words are unknown
};

// From the text of vocab.txt (a token a line), with tokenizer_config.json (may be empty: do_lower_case and the like).
Result<WordPieceData> read_word_piece_vocab(std::string_view vocab_txt, std::string_view tokenizer_config_json);
// From the text of tokenizer.json. kUnsupported for another model than WordPiece, another normaliser than BERT's.
Result<WordPieceData> read_word_piece_json(std::string_view tokenizer_json);
// From the tokens of a GGUF file: words carry U+2581 in front there, inner pieces nothing. `types` as
// tokenizer.ggml.token_type. Lower case unless the vocabulary has words with capitals.
Result<WordPieceData> read_word_piece_gguf(std::span<const std::string_view> tokens,
                                           std::span<const std::int32_t> types);

// Immutable; may be used from many threads.
class WordPiece {
 public:
  static Result<WordPiece> make(WordPieceData data);

  // [CLS] text [SEP], or the text alone. Bytes that are no UTF-8 are dropped.
  std::vector<TokenId> encode(std::string_view text, bool add_special = true) const;
  const WordPieceData& data() const { return data_; }
  std::int64_t vocab_size() const { return static_cast<std::int64_t>(data_.tokens.size()); }

 private:
  explicit WordPiece(WordPieceData data) : data_(std::move(data)) {}
  void encode_plain(std::vector<TokenId>& ids, std::string_view text) const;
  void encode_word(std::vector<TokenId>& ids, std::u32string_view word) const;
  std::u32string normalize(std::string_view text) const;

  WordPieceData data_;
  std::unordered_map<std::string, TokenId> words_, inner_;  // inner_ without the prefix
  std::size_t longest_ = 0;                                 // piece, in bytes
};

}  // namespace still
