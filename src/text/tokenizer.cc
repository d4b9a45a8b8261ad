#include "text/tokenizer.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <queue>
#include <tuple>
#include <utility>

#include "text/unicode.h"

namespace still {

namespace {

using std::size_t;

// GPT-2's spelling of bytes: printable Latin-1 characters stand for themselves, the others are U+0100, U+0101, ...
constexpr std::array<char32_t, 256> kByteToChar = [] {
  std::array<char32_t, 256> table{};
  char32_t next = 256;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    table[byte] = printable ? byte : next++;
  }
  return table;
}();

constexpr std::array<std::int16_t, 512> kCharToByte = [] {
  std::array<std::int16_t, 512> table{};
  for (auto& byte : table) byte = -1;
  for (int byte = 0; byte < 256; ++byte)
    table[kByteToChar[static_cast<size_t>(byte)]] = static_cast<std::int16_t>(byte);
  return table;
}();

// Appends the bytes that a spelling stands for; a spelling with any other character is its own bytes.
void append_spelled_bytes(std::string& out, std::string_view spelling) {
  const size_t start = out.size();
  for (size_t pos = 0; pos < spelling.size();) {
    const DecodedChar c = decode_char(spelling, pos);
    if (c.code >= 512 || kCharToByte[c.code] < 0) {
      out.resize(start);
      out += spelling;
      return;
    }
    out += static_cast<char>(kCharToByte[c.code]);
    pos += static_cast<size_t>(c.size);
  }
}

std::uint64_t hash_bytes(std::string_view text) {
  std::uint64_t hash = 0x9e3779b97f4a7c15ull ^ text.size();
  const auto mix = [&](std::uint64_t word) {
    const auto product = static_cast<unsigned __int128>(hash ^ word) * 0xe7037ed1a0b428dbull;
    hash = static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
  };
  while (text.size() >= 8) {
    std::uint64_t word;
    std::memcpy(&word, text.data(), 8);
    mix(word);
    text.remove_prefix(8);
  }
  std::uint64_t word = 0;
  std::memcpy(&word, text.data(), text.size());
  mix(word ^ 0xa0761d6478bd642full);
  return hash * 0x9e3779b97f4a7c15ull;  // the upper bits choose the slot
}

std::uint64_t hash_pair(std::uint64_t key) {
  const auto product = static_cast<unsigned __int128>(key ^ 0xa0761d6478bd642full) * 0xe7037ed1a0b428dbull;
  return (static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64)) * 0x9e3779b97f4a7c15ull;
}

// Slots for n keys at most half full: returns the shift that maps a 64-bit hash to a slot.
int table_shift(size_t n) {
  int bits = 4;
  while ((size_t{1} << bits) < 2 * n) ++bits;
  return 64 - bits;
}

std::uint64_t pair_key(TokenId left, TokenId right) {
  return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32) | static_cast<std::uint32_t>(right);
}

// A user-defined token that a model reads as a mark of structure, as "<think>" or "[INST]", and not as a run of text.
bool looks_like_markup(std::string_view text) {
  return text.size() >= 3 &&
         ((text.front() == '<' && text.back() == '>') || (text.front() == '[' && text.back() == ']'));
}

// Spellings that end an answer, in any vocabulary. A stray user turn is an end too: the model began to speak for the
// user.
constexpr std::string_view kEndSpellings[] = {
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|EOT|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "</s>",
    "<eos>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<|return|>",
    "<|call|>",
    "<\xef\xbd\x9c"
    "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>",
    "<\xef\xbd\x9cUser\xef\xbd\x9c>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<reponame>",
    "<file_sep>",
};

constexpr size_t kShortWord = 40;  // bytes; up to here a scan for the best pair beats a heap

}  // namespace

// Scratch and output of one encode call.
struct Tokenizer::Encoding {
  struct Piece {
    TokenId id;
    std::int32_t rank;  // of the pair that starts here; INT32_MAX for none
  };
  std::vector<TokenId> ids;
  Parse parse = Parse::kAll;
  std::vector<size_t> word_ends;
};

void Tokenizer::PairTable::reserve(size_t n) {
  shift = table_shift(n);
  entries.assign(size_t{1} << (64 - shift), {});
}

bool Tokenizer::PairTable::insert(std::uint64_t key, std::int32_t rank, TokenId merged) {
  size_t slot = static_cast<size_t>(hash_pair(key) >> shift);
  for (; entries[slot].key != kEmpty; slot = (slot + 1) & (entries.size() - 1))
    if (entries[slot].key == key) return false;
  entries[slot] = {key, rank, merged};
  return true;
}

const Tokenizer::PairTable::Entry* Tokenizer::PairTable::find(std::uint64_t key) const {
  size_t slot = static_cast<size_t>(hash_pair(key) >> shift);
  for (; entries[slot].key != kEmpty; slot = (slot + 1) & (entries.size() - 1))
    if (entries[slot].key == key) return &entries[slot];
  return nullptr;
}

Result<Tokenizer> Tokenizer::make(TokenizerData data) {
  if (data.model != "gpt2")
    return error(Code::kUnsupported, "tokenizer: model \"{}\" is not computed, only byte-level BPE (\"gpt2\")",
                 data.model);
  const size_t n = data.tokens.size();
  if (n == 0 || n > (size_t{1} << 30)) return error(Code::kCorrupt, "tokenizer: {} tokens", n);
  if (data.types.empty()) data.types.assign(n, TokenType::kNormal);
  if (data.types.size() != n)
    return error(Code::kCorrupt, "tokenizer: {} token types for {} tokens", data.types.size(), n);
  size_t total = 0;
  for (const std::string& token : data.tokens) total += token.size();
  if (total > 0xffffffffu) return error(Code::kCorrupt, "tokenizer: the tokens have {} bytes", total);
  const std::pair<std::string_view, TokenId*> named[] = {{"bos", &data.bos},
                                                         {"eos", &data.eos},
                                                         {"eot", &data.eot},
                                                         {"unknown", &data.unknown},
                                                         {"padding", &data.padding}};
  for (const auto& [name, id] : named)
    if (*id < -1 || *id >= static_cast<TokenId>(n))
      return error(Code::kCorrupt, "tokenizer: {} token id {} is outside the vocabulary of {}", name, *id, n);
  if (data.bos < 0) data.add_bos = false;
  if (data.eos < 0) data.add_eos = false;

  Tokenizer tokenizer;
  STILL_TRY(tokenizer.pre_tokenizer_, find_pre_tokenizer(data.pre));
  const std::string_view llama3_names[] = {"llama3", "llama-v3", "llama-bpe", "falcon3"};
  tokenizer.ignore_merges_ =
      data.ignore_merges.value_or(std::ranges::find(llama3_names, data.pre) != std::end(llama3_names));
  tokenizer.data_ = std::move(data);
  tokenizer.build_bytes();
  STILL_TRY_STATUS(tokenizer.build_merges());
  STILL_TRY_STATUS(tokenizer.build_added_tokens());
  tokenizer.collect_end_of_generation();
  tokenizer.merges_to_itself_ = std::make_unique<std::atomic<std::uint8_t>[]>(n);
  return tokenizer;
}

void Tokenizer::build_bytes() {
  const size_t n = data_.tokens.size();
  const auto insert = [](StringTable& table, std::string_view key, TokenId id, auto&& text_of) {
    size_t slot = static_cast<size_t>(hash_bytes(key) >> table.shift);
    for (; table.slots[slot] >= 0; slot = (slot + 1) & (table.slots.size() - 1))
      if (text_of(table.slots[slot]) == key) return;  // of equal spellings the first is found
    table.slots[slot] = id;
  };
  for (StringTable* table : {&by_text_, &by_bytes_}) {
    table->shift = table_shift(n);
    table->slots.assign(size_t{1} << (64 - table->shift), -1);
  }
  bytes_at_.reserve(n + 1);
  bytes_at_.push_back(0);
  byte_ids_.fill(-1);
  for (size_t i = 0; i < n; ++i) {
    const auto id = static_cast<TokenId>(i);
    const std::string& text = data_.tokens[i];
    unsigned value = 0;
    if (data_.types[i] == TokenType::kNormal) {
      append_spelled_bytes(bytes_, text);
    } else if (data_.types[i] == TokenType::kByte && text.size() == 6 &&
               std::sscanf(text.c_str(), "<0x%2X>", &value) == 1) {
      bytes_ += static_cast<char>(value);
    } else {
      bytes_ += text;
    }
    bytes_at_.push_back(static_cast<std::uint32_t>(bytes_.size()));
    insert(by_text_, text, id,
           [&](TokenId other) { return std::string_view(data_.tokens[static_cast<size_t>(other)]); });
    if (data_.types[i] == TokenType::kNormal) {
      insert(by_bytes_, token_bytes(id), id, [&](TokenId other) { return token_bytes(other); });
    }
    if (data_.types[i] == TokenType::kByte && token_bytes(id).size() == 1 && byte_ids_[value & 255] < 0)
      byte_ids_[value & 255] = id;
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    if (const TokenId id = find_bytes(std::string_view(&c, 1)); id >= 0) byte_ids_[byte] = id;
  }
}

Status Tokenizer::build_merges() {
  merges_.reserve(data_.merges.size());
  std::string joined;
  for (size_t rank = 0; rank < data_.merges.size(); ++rank) {
    const std::string& merge = data_.merges[rank];
    const size_t space = merge.find(' ', 1);
    if (merge.empty() || space == std::string::npos || space + 1 == merge.size())
      return error(Code::kCorrupt, "tokenizer: merge {} is \"{}\", expected two tokens with a space between", rank,
                   merge);
    const std::string_view left = std::string_view(merge).substr(0, space);
    const std::string_view right = std::string_view(merge).substr(space + 1);
    joined.assign(left);
    joined += right;
    const auto left_id = find(left), right_id = find(right), merged_id = find(joined);
    if (!left_id || !right_id || !merged_id)
      return error(Code::kCorrupt, "tokenizer: merge {}: \"{}\" is not in the vocabulary", rank,
                   !left_id    ? left
                   : !right_id ? right
                               : std::string_view(joined));
    merges_.insert(pair_key(*left_id, *right_id), static_cast<std::int32_t>(rank), *merged_id);
  }
  data_.merges.clear();
  data_.merges.shrink_to_fit();
  return ok();
}

void Tokenizer::add_to_trie(Trie& trie, std::string_view text, std::int32_t added_idx) {
  if (trie.nodes.empty()) trie.nodes.emplace_back();
  trie.starts[static_cast<unsigned char>(text[0])] = true;
  size_t node = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    auto& children = trie.nodes[node].children;
    const auto at = std::lower_bound(children.begin(), children.end(), byte,
                                     [](const auto& child, unsigned char value) { return child.first < value; });
    if (at != children.end() && at->first == byte) {
      node = static_cast<size_t>(at->second);
    } else {
      const auto child = static_cast<std::int32_t>(trie.nodes.size());
      children.insert(at, {byte, child});
      trie.nodes.emplace_back();
      node = static_cast<size_t>(child);
    }
  }
  if (trie.nodes[node].added_idx < 0) trie.nodes[node].added_idx = added_idx;
}

Status Tokenizer::build_added_tokens() {
  if (data_.added.empty()) {
    for (size_t i = 0; i < data_.tokens.size(); ++i) {
      const TokenType type = data_.types[i];
      if (type == TokenType::kControl || type == TokenType::kUnknown || type == TokenType::kUserDefined)
        data_.added.push_back({.id = static_cast<TokenId>(i), .special = type != TokenType::kUserDefined});
    }
  }
  for (size_t i = 0; i < data_.added.size(); ++i) {
    const AddedToken& added = data_.added[i];
    if (added.id < 0 || added.id >= static_cast<TokenId>(data_.tokens.size()))
      return error(Code::kCorrupt, "tokenizer: added token id {} is outside the vocabulary of {}", added.id,
                   data_.tokens.size());
    const std::string& text = data_.tokens[static_cast<size_t>(added.id)];
    is_markup_.push_back(added.special || looks_like_markup(text));
    if (text.empty()) continue;
    // Without a normaliser both kinds match the same text, but the raw ones are still cut out first.
    add_to_trie(added.normalized ? normalized_trie_ : raw_trie_,
                added.normalized && data_.normalize_nfc ? normalize_nfc(text) : text, static_cast<std::int32_t>(i));
  }
  return ok();
}

void Tokenizer::collect_end_of_generation() {
  for (const TokenId id : {data_.eos, data_.eot})
    if (id >= 0) end_of_generation_.push_back(id);
  for (const std::string_view spelling : kEndSpellings) {
    const auto id = find(spelling);
    if (id && token_type(*id) != TokenType::kNormal) end_of_generation_.push_back(*id);
  }
  std::sort(end_of_generation_.begin(), end_of_generation_.end());
  end_of_generation_.erase(std::unique(end_of_generation_.begin(), end_of_generation_.end()), end_of_generation_.end());
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  Encoding encoding;
  encoding.parse = options.parse_special ? Parse::kAll : Parse::kNoControl;
  encoding.ids.reserve(text.size() / 4 + 2);
  if (options.add_special && data_.add_bos) encoding.ids.push_back(data_.bos);
  encode_marked(encoding, raw_trie_, text, {}, true);
  if (options.add_special && data_.add_eos) encoding.ids.push_back(data_.eos);
  return std::move(encoding.ids);
}

std::vector<TokenId> Tokenizer::encode_runs(std::span<const TextRun> runs) const {
  std::string text, trust;
  for (const TextRun& run : runs) {
    text += run.text;
    trust.append(run.text.size(), run.is_trusted ? '\1' : '\0');
  }
  Encoding encoding;
  encoding.ids.reserve(text.size() / 4 + 2);
  encode_marked(encoding, raw_trie_, text, trust, true);
  return std::move(encoding.ids);
}

// Cuts the tokens of `trie` out of the text and passes on what lies between. `trust` has a byte per byte of text
// (0: no markup may come from it), or is empty: all may.
void Tokenizer::encode_marked(Encoding& encoding, const Trie& trie, std::string_view text, std::string_view trust,
                              bool raw) const {
  const auto trust_of = [&](size_t begin, size_t end) {
    return trust.empty() ? trust : trust.substr(begin, end - begin);
  };
  const auto pass_on = [&](size_t begin, size_t end) {
    if (begin == end) return;
    const std::string_view part = text.substr(begin, end - begin);
    if (!raw) return encode_plain(encoding, part);
    if (!data_.normalize_nfc) return encode_marked(encoding, normalized_trie_, part, trust_of(begin, end), false);
    if (trust.empty()) return encode_marked(encoding, normalized_trie_, normalize_nfc(part), {}, false);
    // Each run of equal trust on its own, so that the marks stay with their bytes.
    std::string normalized, marks;
    for (size_t pos = begin; pos < end;) {
      size_t stop = pos;
      while (stop < end && trust[stop] == trust[pos]) ++stop;
      normalized += normalize_nfc(text.substr(pos, stop - pos));
      marks.resize(normalized.size(), trust[pos]);
      pos = stop;
    }
    encode_marked(encoding, normalized_trie_, normalized, marks, false);
  };
  if (trie.empty()) return pass_on(0, text.size());

  const auto accepts = [&](std::int32_t added_idx, size_t begin, size_t end) {
    const AddedToken& added = data_.added[static_cast<size_t>(added_idx)];
    if (added.special && encoding.parse == Parse::kNoControl) return false;
    if (!trust.empty() && is_markup_[static_cast<size_t>(added_idx)] &&
        trust.substr(begin, end - begin).find('\0') != std::string_view::npos)
      return false;
    if (!added.single_word) return true;
    if (end < text.size() && is_word_char(decode_char(text, end).code)) return false;
    size_t before = begin;
    while (before > 0 && begin - before < 4 && (static_cast<unsigned char>(text[--before]) & 0xc0) == 0x80) {
    }
    return begin == 0 || !is_word_char(decode_char(text, before).code);
  };
  size_t done = 0;
  for (size_t pos = 0; pos < text.size();) {
    if (!trie.starts[static_cast<unsigned char>(text[pos])]) {
      ++pos;
      continue;
    }
    std::int32_t best = -1;
    size_t best_end = pos;
    size_t node = 0;
    for (size_t at = pos; at < text.size(); ++at) {
      const auto& children = trie.nodes[node].children;
      const auto byte = static_cast<unsigned char>(text[at]);
      const auto child = std::lower_bound(children.begin(), children.end(), byte,
                                          [](const auto& entry, unsigned char value) { return entry.first < value; });
      if (child == children.end() || child->first != byte) break;
      node = static_cast<size_t>(child->second);
      const std::int32_t added_idx = trie.nodes[node].added_idx;
      if (added_idx >= 0 && accepts(added_idx, pos, at + 1)) {
        best = added_idx;
        best_end = at + 1;
      }
    }
    if (best < 0) {
      ++pos;
      continue;
    }
    const AddedToken& added = data_.added[static_cast<size_t>(best)];
    size_t begin = pos;
    if (added.lstrip) {
      // Back over white space, at most to the end of the token before.
      for (size_t at = done; at < pos;) {
        const DecodedChar c = decode_char(text, at);
        at += static_cast<size_t>(c.size);
        begin = char_class(c.code) & kClassSpace ? std::min(begin, at - static_cast<size_t>(c.size)) : pos;
      }
    }
    if (added.rstrip) {
      for (DecodedChar c = decode_char(text, best_end); c.size > 0 && (char_class(c.code) & kClassSpace);
           c = decode_char(text, best_end))
        best_end += static_cast<size_t>(c.size);
    }
    pass_on(done, begin);
    encoding.ids.push_back(added.id);
    done = pos = best_end;
  }
  pass_on(done, text.size());
}

void Tokenizer::encode_plain(Encoding& encoding, std::string_view text) const {
  encoding.word_ends.clear();
  split_words(pre_tokenizer_, text, encoding.word_ends);
  size_t begin = 0;
  for (const size_t end : encoding.word_ends) {
    encode_word(encoding, text.substr(begin, end - begin));
    begin = end;
  }
}

void Tokenizer::encode_word(Encoding& encoding, std::string_view word) const {
  const TokenId whole = find_bytes(word);
  if (whole >= 0) {
    auto& known = merges_to_itself_[static_cast<size_t>(whole)];
    const std::uint8_t state = ignore_merges_ ? 1 : known.load(std::memory_order_relaxed);
    if (state == 1) {
      encoding.ids.push_back(whole);
      return;
    }
    const size_t before = encoding.ids.size();
    word.size() <= kShortWord ? merge_short(encoding, word) : merge_long(encoding, word);
    const bool itself = encoding.ids.size() == before + 1 && encoding.ids.back() == whole;
    if (state == 0) known.store(itself ? 1 : 2, std::memory_order_relaxed);
    return;
  }
  word.size() <= kShortWord ? merge_short(encoding, word) : merge_long(encoding, word);
}

// Scans for the best pair again after each merge: quadratic, but in cache and without allocation.
void Tokenizer::merge_short(Encoding& encoding, std::string_view word) const {
  constexpr std::int32_t kNone = INT32_MAX;
  Encoding::Piece pieces[kShortWord + 1];
  size_t n = 0;
  for (const char c : word) {
    const TokenId id = byte_ids_[static_cast<unsigned char>(c)];
    if (id >= 0) pieces[n++] = {id, kNone};  // a byte without a token is dropped, as the tokenizers library does
  }
  const auto rank_at = [&](size_t i) {
    const auto* entry = i + 1 < n ? merges_.find(pair_key(pieces[i].id, pieces[i + 1].id)) : nullptr;
    return entry ? entry->rank : kNone;
  };
  for (size_t i = 0; i + 1 < n; ++i) pieces[i].rank = rank_at(i);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i)
      if (pieces[i].rank < pieces[best].rank) best = i;
    if (pieces[best].rank == kNone) break;
    pieces[best].id = merges_.find(pair_key(pieces[best].id, pieces[best + 1].id))->merged;
    std::copy(pieces + best + 2, pieces + n, pieces + best + 1);
    --n;
    pieces[n].rank = kNone;
    pieces[best].rank = rank_at(best);
    if (best > 0) pieces[best - 1].rank = rank_at(best - 1);
  }
  for (size_t i = 0; i < n; ++i) encoding.ids.push_back(pieces[i].id);
}

// A linked list of pieces and a heap of pairs: n log n for words without end (base64, runs of one letter).
void Tokenizer::merge_long(Encoding& encoding, std::string_view word) const {
  struct Node {
    TokenId id;
    std::int64_t previous, next;  // -1 at the ends
  };
  struct Candidate {
    std::int32_t rank;
    std::int64_t at;
    TokenId left, right, merged;
    bool operator>(const Candidate& other) const { return std::tie(rank, at) > std::tie(other.rank, other.at); }
  };
  std::vector<Node> nodes;
  nodes.reserve(word.size());
  for (const char c : word) {
    const TokenId id = byte_ids_[static_cast<unsigned char>(c)];
    if (id < 0) continue;
    const auto at = static_cast<std::int64_t>(nodes.size());
    nodes.push_back({id, at - 1, at + 1});
  }
  if (nodes.empty()) return;
  nodes.back().next = -1;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto push = [&](std::int64_t at) {
    if (at < 0 || nodes[static_cast<size_t>(at)].next < 0) return;
    const Node& left = nodes[static_cast<size_t>(at)];
    const TokenId right = nodes[static_cast<size_t>(left.next)].id;
    if (const auto* entry = merges_.find(pair_key(left.id, right)))
      queue.push({entry->rank, at, left.id, right, entry->merged});
  };
  for (size_t i = 0; i < nodes.size(); ++i) push(static_cast<std::int64_t>(i));
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Node& left = nodes[static_cast<size_t>(best.at)];
    if (left.id != best.left || left.next < 0) continue;  // merged since
    Node& right = nodes[static_cast<size_t>(left.next)];
    if (right.id != best.right) continue;
    left.id = best.merged;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) nodes[static_cast<size_t>(left.next)].previous = best.at;
    push(left.previous);
    push(best.at);
  }
  for (std::int64_t at = 0; at >= 0; at = nodes[static_cast<size_t>(at)].next)
    encoding.ids.push_back(nodes[static_cast<size_t>(at)].id);
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool skip_special) const {
  std::string out;
  for (const TokenId id : ids)
    if (!skip_special || !is_special(id)) out += token_bytes(id);
  return out;
}

std::string_view Tokenizer::token_bytes(TokenId id) const {
  if (id < 0 || static_cast<size_t>(id) + 1 >= bytes_at_.size()) return {};
  const size_t begin = bytes_at_[static_cast<size_t>(id)];
  return std::string_view(bytes_).substr(begin, bytes_at_[static_cast<size_t>(id) + 1] - begin);
}

std::optional<TokenId> Tokenizer::find(std::string_view token) const {
  for (size_t slot = static_cast<size_t>(hash_bytes(token) >> by_text_.shift); by_text_.slots[slot] >= 0;
       slot = (slot + 1) & (by_text_.slots.size() - 1))
    if (data_.tokens[static_cast<size_t>(by_text_.slots[slot])] == token) return by_text_.slots[slot];
  return std::nullopt;
}

TokenId Tokenizer::find_bytes(std::string_view bytes) const {
  for (size_t slot = static_cast<size_t>(hash_bytes(bytes) >> by_bytes_.shift); by_bytes_.slots[slot] >= 0;
       slot = (slot + 1) & (by_bytes_.slots.size() - 1))
    if (token_bytes(by_bytes_.slots[slot]) == bytes) return by_bytes_.slots[slot];
  return -1;
}

std::string_view Tokenizer::token_text(TokenId id) const {
  return id < 0 || id >= vocab_size() ? std::string_view() : std::string_view(data_.tokens[static_cast<size_t>(id)]);
}

TokenType Tokenizer::token_type(TokenId id) const {
  return id < 0 || id >= vocab_size() ? TokenType::kUnused : data_.types[static_cast<size_t>(id)];
}

bool Tokenizer::is_special(TokenId id) const {
  const TokenType type = token_type(id);
  return type == TokenType::kControl || type == TokenType::kUnknown;
}

bool Tokenizer::ends_generation(TokenId id) const {
  return std::binary_search(end_of_generation_.begin(), end_of_generation_.end(), id);
}

}  // namespace still
