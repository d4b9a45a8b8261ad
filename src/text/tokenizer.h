// Byte-level byte pair encoding (Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2): text to token ids and
// back. Added tokens are cut out first (leftmost, longest), then the pre-tokeniser cuts words, then merges join bytes,
// the lowest rank first and of equal ranks the leftmost. Ids equal those of the Hugging Face tokenizers library. Not
// here: SentencePiece and WordPiece vocabularies (refused by name), reading GGUF (files/ fills TokenizerData).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tensor/tensor.h"
#include "text/pre_tokenizer.h"

namespace still {

// Values as in tokenizer.ggml.token_type.
enum class TokenType : std::uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,      // "special": changes the meaning of what follows; never produced from plain text
  kUserDefined = 4,  // matched before merging, but part of the text when decoded
  kUnused = 5,       // padding of the table; never produced
  kByte = 6,         // "<0xAB>"
};

struct AddedToken {
  TokenId id = -1;
  bool special = false;
  bool lstrip = false;       // takes white space before it along
  bool rstrip = false;       // and after it
  bool single_word = false;  // only where no word character touches it
  bool normalized = false;   // matched after normalisation instead of before
};

struct TokenizerData {
  std::string model = "gpt2";       // tokenizer.ggml.model; only "gpt2" (byte-level BPE) is computed
  std::string pre;                  // tokenizer.ggml.pre, see find_pre_tokenizer
  std::vector<std::string> tokens;  // by id, in the byte-to-character spelling of GPT-2 ("\u0120Hello")
  std::vector<TokenType> types;     // by id; may be empty: all normal
  std::vector<std::string> merges;  // "left right", best first
  std::vector<AddedToken> added;    // may be empty: then made from the types control, user_defined and unknown
  TokenId bos = -1, eos = -1, eot = -1, unknown = -1, padding = -1;  // -1: the model has none
  bool add_bos = false, add_eos = false;                             // what encode does with add_special
  // A word that is a token is that token, whatever the merges say. GGUF has no key for it: unset means by the name in
  // `pre`, true for Llama 3's.
  std::optional<bool> ignore_merges;
  bool normalize_nfc = false;
};

// From the text of tokenizer.json and tokenizer_config.json (may be empty; gives bos, eos, add_bos, add_eos).
// kUnsupported for other model types, normalisers and pre-tokenisers than those listed in text/pre_tokenizer.h.
Result<TokenizerData> read_tokenizer_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json);

struct EncodeOptions {
  bool add_special = false;   // BOS and EOS as the model's file says
  bool parse_special = true;  // false: control tokens in the text are plain text; user-defined ones still match
};

// A run of text from one source, see encode_runs.
struct TextRun {
  std::string_view text;
  bool is_trusted = false;
};

// Immutable after make(); all const functions may be called from many threads.
class Tokenizer {
 public:
  static Result<Tokenizer> make(TokenizerData data);

  std::vector<TokenId> encode(std::string_view text, EncodeOptions options = {}) const;
  // The runs as one text, but a token that looks like markup (control, or spelled <...> or [...]) comes only from
  // trusted bytes. Equals encode() of the joined text where no other run spells such a token. No BOS or EOS is added.
  std::vector<TokenId> encode_runs(std::span<const TextRun> runs) const;

  // The bytes of the tokens, joined; may be invalid UTF-8 (text/detokenizer.h). Ids outside the vocabulary give
  // nothing.
  std::string decode(std::span<const TokenId> ids, bool skip_special) const;
  std::string_view token_bytes(TokenId id) const;  // empty for ids outside the vocabulary

  // The id of a token by its spelling in the vocabulary ("<think>", "\u0120the").
  std::optional<TokenId> find(std::string_view token) const;
  std::string_view token_text(TokenId id) const;  // that spelling
  TokenType token_type(TokenId id) const;         // kUnused for ids outside the vocabulary
  bool is_special(TokenId id) const;              // control or unknown: not shown to users

  std::int64_t vocab_size() const { return static_cast<std::int64_t>(data_.tokens.size()); }
  TokenId bos() const { return data_.bos; }
  TokenId eos() const { return data_.eos; }
  TokenId padding() const { return data_.padding; }
  bool adds_bos() const { return data_.add_bos; }
  bool adds_eos() const { return data_.add_eos; }
  // Tokens that end an answer, ascending: EOS, EOT and those known by their spelling (<|im_end|>, <|eot_id|>, ...).
  std::span<const TokenId> end_of_generation() const { return end_of_generation_; }
  bool ends_generation(TokenId id) const;

 private:
  // Open addressing over 64-bit keys; built once.
  struct PairTable {
    struct Entry {
      std::uint64_t key = kEmpty;
      std::int32_t rank = 0;
      TokenId merged = -1;
    };
    static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
    std::vector<Entry> entries;
    int shift = 63;  // the hash's upper bits choose the slot
    void reserve(std::size_t n);
    bool insert(std::uint64_t key, std::int32_t rank, TokenId merged);  // false where the key is there already
    const Entry* find(std::uint64_t key) const;
  };
  // Strings by hash; the strings themselves are elsewhere.
  struct StringTable {
    std::vector<TokenId> slots;
    int shift = 63;
  };
  struct TrieNode {
    std::vector<std::pair<unsigned char, std::int32_t>> children;
    std::int32_t added_idx = -1;
  };
  struct Trie {
    std::vector<TrieNode> nodes;
    std::array<bool, 256> starts{};
    bool empty() const { return nodes.size() <= 1; }
  };
  enum class Parse { kAll, kNoControl };
  struct Encoding;  // state of one encode call

  Tokenizer() = default;
  Status build_added_tokens();
  Status build_merges();
  void build_bytes();
  void add_to_trie(Trie& trie, std::string_view text, std::int32_t added_idx);
  void collect_end_of_generation();
  TokenId find_bytes(std::string_view bytes) const;
  void encode_marked(Encoding& encoding, const Trie& trie, std::string_view text, std::string_view trust,
                     bool raw) const;
  void encode_plain(Encoding& encoding, std::string_view text) const;
  void encode_word(Encoding& encoding, std::string_view word) const;
  void merge_short(Encoding& encoding, std::string_view word) const;
  void merge_long(Encoding& encoding, std::string_view word) const;

  TokenizerData data_;
  PreTokenizer pre_tokenizer_;
  bool ignore_merges_ = false;
  StringTable by_text_;                  // spelling to id
  StringTable by_bytes_;                 // bytes to id, normal tokens only
  std::string bytes_;                    // the bytes of all tokens, one after another
  std::vector<std::uint32_t> bytes_at_;  // [vocab_size + 1]
  std::array<TokenId, 256> byte_ids_{};  // the token of a single byte, -1 for none
  PairTable merges_;
  Trie raw_trie_, normalized_trie_;
  std::vector<bool> is_markup_;  // by added_idx
  std::vector<TokenId> end_of_generation_;
  // What merging the bytes of a token gives: 0 not tried, 1 the token itself, 2 others. Filled as words come; a race
  // between threads writes the same value twice.
  std::unique_ptr<std::atomic<std::uint8_t>[]> merges_to_itself_;
};

}  // namespace still
