// See word_piece.h.
#include "text/word_piece.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>

#include "base/json.h"
#include "text/unicode.h"

namespace still {

namespace {

utf8proc_int32_t signed_code(char32_t code) {
  return static_cast<utf8proc_int32_t>(code);
}

bool is_white(char32_t code) {
  return code == '\t' || code == '\n' || code == '\r' || (char_class(code) & kClassSpace) != 0;
}

// Unicode's "other" characters: control, format, surrogate, private, unassigned.
bool is_control(char32_t code) {
  if (code == '\t' || code == '\n' || code == '\r') return false;
  switch (utf8proc_category(signed_code(code))) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CS:
      return true;
    default:
      return false;
  }
}

bool is_cjk(char32_t c) {
  return (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) || (c >= 0x20000 && c <= 0x2a6df) ||
         (c >= 0x2a700 && c <= 0x2b73f) || (c >= 0x2b740 && c <= 0x2b81f) || (c >= 0x2b920 && c <= 0x2ceaf) ||
         (c >= 0xf900 && c <= 0xfaff) || (c >= 0x2f800 && c <= 0x2fa1f);
}

bool is_bert_punctuation(char32_t c) {
  const bool is_ascii = (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) || (c >= 123 && c <= 126);
  return is_ascii || (char_class(c) & kClassPunctuation) != 0;
}

// Canonical decomposition of one character, then of the whole the canonical order is not needed: the marks that would
// be reordered are removed.
void append_without_marks(std::u32string& out, char32_t code) {
  utf8proc_int32_t parts[32];
  int boundary = 0;
  const utf8proc_ssize_t n = utf8proc_decompose_char(signed_code(code), parts, 32,
                                                     static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE), &boundary);
  if (n <= 0 || n > 32) {
    out += code;
    return;
  }
  for (utf8proc_ssize_t i = 0; i < n; ++i)
    if (utf8proc_category(parts[i]) != UTF8PROC_CATEGORY_MN) out += static_cast<char32_t>(parts[i]);
}

TokenId find_piece(const std::vector<std::string>& tokens, std::string_view text) {
  const auto found = std::ranges::find(tokens, text);
  return found == tokens.end() ? -1 : static_cast<TokenId>(found - tokens.begin());
}

void find_special(WordPieceData& data) {
  if (data.unknown < 0) data.unknown = find_piece(data.tokens, "[UNK]");
  if (data.cls < 0) data.cls = find_piece(data.tokens, "[CLS]");
  if (data.sep < 0) data.sep = find_piece(data.tokens, "[SEP]");
  if (data.pad < 0) data.pad = find_piece(data.tokens, "[PAD]");
  if (!data.special.empty()) return;
  for (const TokenId id : {data.unknown, data.cls, data.sep, data.pad, find_piece(data.tokens, "[MASK]")})
    if (id >= 0) data.special.push_back(id);
}

std::optional<bool> flag(const JsonObject& object, std::string_view key) {
  const Json* value = object.if_contains(key);
  return value != nullptr && value->is_bool() ? std::optional(value->get_bool()) : std::nullopt;
}

}  // namespace

Result<WordPieceData> read_word_piece_vocab(std::string_view vocab_txt, std::string_view tokenizer_config_json) {
  WordPieceData data;
  while (!vocab_txt.empty()) {
    const std::size_t end = std::min(vocab_txt.find('\n'), vocab_txt.size());
    std::string_view line = vocab_txt.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    data.tokens.emplace_back(line);
    vocab_txt.remove_prefix(std::min(end + 1, vocab_txt.size()));
  }
  if (!tokenizer_config_json.empty()) {
    STILL_TRY(const Json json, parse_json(tokenizer_config_json, "tokenizer_config.json"));
    if (const JsonObject* config = json.if_object()) {
      data.lowercase = flag(*config, "do_lower_case").value_or(true);
      data.space_cjk = flag(*config, "tokenize_chinese_chars").value_or(true);
      data.strip_accents = flag(*config, "strip_accents").value_or(data.lowercase);
    }
  }
  find_special(data);
  return data;
}

Result<WordPieceData> read_word_piece_json(std::string_view tokenizer_json) {
  STILL_TRY(const Json json, parse_json(tokenizer_json, "tokenizer.json"));
  const auto member = [](const Json* value, std::string_view key) -> const Json* {
    const JsonObject* object = value != nullptr ? value->if_object() : nullptr;
    const Json* found = object != nullptr ? object->if_contains(key) : nullptr;
    return found != nullptr && found->is_null() ? nullptr : found;
  };
  const auto text = [&](const Json* value, std::string_view key) -> std::string_view {
    const Json* found = member(value, key);
    return found != nullptr && found->is_string() ? std::string_view(found->get_string()) : std::string_view();
  };
  const Json* model = member(&json, "model");
  // Files of old writers leave the type out.
  if (const std::string_view type = text(model, "type"); !type.empty() && type != "WordPiece")
    return error(Code::kUnsupported, "tokenizer.json: model \"{}\", expected WordPiece", type);
  const Json* vocab = member(model, "vocab");
  if (vocab == nullptr || !vocab->is_object()) return error(Code::kCorrupt, "tokenizer.json: the model has no vocab");
  WordPieceData data;
  data.tokens.resize(vocab->get_object().size());
  std::vector<bool> seen(data.tokens.size());
  for (const auto& [token, id] : vocab->get_object()) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() >= static_cast<std::int64_t>(seen.size()) ||
        seen[static_cast<std::size_t>(id.get_int64())])
      return error(Code::kCorrupt, "tokenizer.json: token \"{}\" has the id {}, expected 0 to {}, each once",
                   std::string_view(token), to_json(id), seen.size() - 1);
    seen[static_cast<std::size_t>(id.get_int64())] = true;
    data.tokens[static_cast<std::size_t>(id.get_int64())] = std::string(token);
  }
  if (const std::string_view prefix = text(model, "continuing_subword_prefix"); !prefix.empty()) data.prefix = prefix;
  if (const std::string_view unknown = text(model, "unk_token"); !unknown.empty())
    data.unknown = find_piece(data.tokens, unknown);
  if (const Json* limit = member(model, "max_input_chars_per_word"); limit != nullptr && limit->is_int64())
    data.max_word_chars = limit->get_int64();
  const Json* normalizer = member(&json, "normalizer");
  if (text(normalizer, "type") != "BertNormalizer")
    return error(Code::kUnsupported, "tokenizer.json: normalizer \"{}\", expected BertNormalizer",
                 text(normalizer, "type"));
  const JsonObject& options = normalizer->get_object();
  data.clean_text = flag(options, "clean_text").value_or(true);
  data.space_cjk = flag(options, "handle_chinese_chars").value_or(true);
  data.lowercase = flag(options, "lowercase").value_or(true);
  data.strip_accents = flag(options, "strip_accents").value_or(data.lowercase);
  if (const std::string_view type = text(member(&json, "pre_tokenizer"), "type"); type != "BertPreTokenizer")
    return error(Code::kUnsupported, "tokenizer.json: pre_tokenizer \"{}\", expected BertPreTokenizer", type);
  if (const Json* added = member(&json, "added_tokens"); added != nullptr && added->is_array())
    for (const Json& entry : added->get_array()) {
      const TokenId id = find_piece(data.tokens, text(&entry, "content"));
      if (id >= 0) data.special.push_back(id);
    }
  find_special(data);
  return data;
}

Result<WordPieceData> read_word_piece_gguf(std::span<const std::string_view> tokens,
                                           std::span<const std::int32_t> types) {
  constexpr std::string_view kWordMark = "\xe2\x96\x81";
  WordPieceData data;
  bool has_capitals = false;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const std::string_view token = tokens[i];
    const bool is_special = (i < types.size() && types[i] == 3) || (token.starts_with('[') && token.ends_with(']'));
    if (is_special) {
      data.tokens.emplace_back(token);
    } else if (token.starts_with(kWordMark)) {
      data.tokens.emplace_back(token.substr(kWordMark.size()));
      has_capitals = has_capitals || std::ranges::any_of(token, [](char c) { return c >= 'A' && c <= 'Z'; });
    } else {
      data.tokens.push_back(data.prefix + std::string(token));
    }
  }
  data.lowercase = data.strip_accents = !has_capitals;
  find_special(data);
  return data;
}

Result<WordPiece> WordPiece::make(WordPieceData data) {
  const auto check = [&](TokenId id, std::string_view what) -> Status {
    if (id >= 0 && id < static_cast<TokenId>(data.tokens.size())) return ok();
    return error(Code::kCorrupt, "WordPiece vocabulary of {} tokens: no {}", data.tokens.size(), what);
  };
  STILL_TRY_STATUS(check(data.unknown, "unknown token ([UNK])"));
  STILL_TRY_STATUS(check(data.cls, "[CLS]"));
  STILL_TRY_STATUS(check(data.sep, "[SEP]"));
  for (const TokenId id : data.special) STILL_TRY_STATUS(check(id, "special token"));
  WordPiece tokenizer(std::move(data));
  const WordPieceData& kept = tokenizer.data_;
  for (std::size_t i = 0; i < kept.tokens.size(); ++i) {
    const std::string& token = kept.tokens[i];
    tokenizer.longest_ = std::max(tokenizer.longest_, token.size());
    tokenizer.words_.emplace(token, static_cast<TokenId>(i));
    if (!kept.prefix.empty() && token.size() > kept.prefix.size() && token.starts_with(kept.prefix))
      tokenizer.inner_.emplace(token.substr(kept.prefix.size()), static_cast<TokenId>(i));
  }
  return tokenizer;
}

std::u32string WordPiece::normalize(std::string_view text) const {
  std::u32string cleaned;
  for (std::size_t pos = 0; pos < text.size();) {
    const DecodedChar c = decode_char(text, pos);
    pos += static_cast<std::size_t>(c.size);
    if (c.code == kInvalidChar) continue;
    if (data_.clean_text) {
      if (c.code == 0 || c.code == 0xfffd || is_control(c.code)) continue;
      if (is_white(c.code)) {
        cleaned += U' ';
        continue;
      }
    }
    const bool spaced = data_.space_cjk && is_cjk(c.code);
    if (spaced) cleaned += U' ';
    cleaned += c.code;
    if (spaced) cleaned += U' ';
  }
  if (data_.strip_accents) {
    std::u32string bare;
    for (const char32_t code : cleaned) append_without_marks(bare, code);
    cleaned = std::move(bare);
  }
  if (data_.lowercase) {
    std::u32string lower;
    for (const char32_t code : cleaned) {
      lower += static_cast<char32_t>(utf8proc_tolower(signed_code(code)));
      if (code == 0x130) lower += U'\u0307';  // the one letter whose small form is two characters
    }
    cleaned = std::move(lower);
  }
  return cleaned;
}

void WordPiece::encode_word(std::vector<TokenId>& ids, std::u32string_view word) const {
  if (static_cast<std::int64_t>(word.size()) > data_.max_word_chars) {
    ids.push_back(data_.unknown);
    return;
  }
  std::string bytes;
  std::vector<std::size_t> starts;  // of characters
  for (const char32_t code : word) {
    starts.push_back(bytes.size());
    append_utf8(bytes, code);
  }
  starts.push_back(bytes.size());
  const std::size_t n_before = ids.size();
  for (std::size_t begin = 0; begin + 1 < starts.size();) {
    const auto& table = begin == 0 ? words_ : inner_;
    std::size_t end = starts.size() - 1;
    for (; end > begin; --end) {
      const std::size_t size = starts[end] - starts[begin];
      if (size > longest_) continue;
      const auto found = table.find(bytes.substr(starts[begin], size));
      if (found == table.end()) continue;
      ids.push_back(found->second);
      break;
    }
    if (end == begin) {
      // One gap makes the whole word unknown.
      ids.resize(n_before);
      ids.push_back(data_.unknown);
      return;
    }
    begin = end;
  }
}

void WordPiece::encode_plain(std::vector<TokenId>& ids, std::string_view text) const {
  const std::u32string normalized = normalize(text);
  const std::u32string_view all = normalized;
  for (std::size_t at = 0; at < all.size();) {
    if (is_white(all[at])) {
      ++at;
      continue;
    }
    std::size_t end = at + 1;
    if (!is_bert_punctuation(all[at]))
      while (end < all.size() && !is_white(all[end]) && !is_bert_punctuation(all[end])) ++end;
    encode_word(ids, all.substr(at, end - at));
    at = end;
  }
}

std::vector<TokenId> WordPiece::encode(std::string_view text, bool add_special) const {
  std::vector<TokenId> ids;
  if (add_special) ids.push_back(data_.cls);
  while (!text.empty()) {
    // The leftmost special token, of several the longest.
    std::size_t at = std::string_view::npos, size = 0;
    TokenId special = -1;
    for (const TokenId id : data_.special) {
      const std::string& spelled = data_.tokens[static_cast<std::size_t>(id)];
      const std::size_t found = spelled.empty() ? std::string_view::npos : text.find(spelled);
      if (found == std::string_view::npos || found > at || (found == at && spelled.size() <= size)) continue;
      at = found;
      size = spelled.size();
      special = id;
    }
    encode_plain(ids, text.substr(0, std::min(at, text.size())));
    if (special < 0) break;
    ids.push_back(special);
    text.remove_prefix(at + size);
  }
  if (add_special) ids.push_back(data_.sep);
  return ids;
}

}  // namespace still
