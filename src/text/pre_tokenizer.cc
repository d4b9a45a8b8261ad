#include "text/pre_tokenizer.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "text/unicode.h"

namespace still {

namespace {

using std::size_t;

struct Char {
  std::uint8_t bits = 0;
  int size = 0;
  char32_t code = kInvalidChar;
};

inline Char read(std::string_view text, size_t pos) {
  if (pos >= text.size()) return {};
  const auto byte = static_cast<unsigned char>(text[pos]);
  if (byte < 128) return {char_class(byte), 1, byte};
  const DecodedChar decoded = decode_char(text, pos);
  return {char_class(decoded.code), decoded.size, decoded.code};
}

// End of the run of characters with (bits & wanted) from pos.
inline size_t skip_class(std::string_view text, size_t pos, std::uint8_t wanted) {
  for (Char c = read(text, pos); c.bits & wanted; c = read(text, pos)) pos += static_cast<size_t>(c.size);
  return pos;
}

// End of the run of characters with none of `unwanted` from pos.
inline size_t skip_until_class(std::string_view text, size_t pos, std::uint8_t unwanted) {
  for (Char c = read(text, pos); c.size > 0 && !(c.bits & unwanted); c = read(text, pos))
    pos += static_cast<size_t>(c.size);
  return pos;
}

constexpr std::uint8_t kL = kClassLetter, kM = kClassMark, kN = kClassNumber, kP = kClassPunctuation, kS = kClassSymbol,
                       kSpace = kClassSpace, kNewline = kClassNewline;

// 's|'t|'re|'ve|'m|'ll|'d after an apostrophe at pos. Without case (?i:...) includes U+017F, which folds to s.
size_t match_contraction(std::string_view text, size_t pos, bool any_case) {
  if (pos >= text.size() || text[pos] != '\'') return pos;
  const auto lower = [&](size_t at) -> char {
    if (at >= text.size()) return '\0';
    const char c = text[at];
    return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  const char first = lower(pos + 1);
  const char second = lower(pos + 2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return pos + 2;
  if ((first == 'r' || first == 'v') && second == 'e') return pos + 3;
  if (first == 'l' && second == 'l') return pos + 3;
  if (any_case && text.substr(pos + 1, 2) == "\xc5\xbf") return pos + 3;
  return pos;
}

// \s+(?!\S)|\s+ : a run of white space, without its last character where a word follows (unless it is alone).
size_t match_space_run(std::string_view text, size_t pos) {
  size_t end = pos;
  size_t last = pos;
  for (Char c = read(text, end); c.bits & kSpace; c = read(text, end)) {
    last = end;
    end += static_cast<size_t>(c.size);
  }
  if (end == pos || end == text.size() || last == pos) return end;
  return last;
}

// \s*[\r\n]+ : white space up to and with the last line end of the run.
size_t match_line_ends(std::string_view text, size_t pos) {
  size_t end = pos;
  for (size_t at = pos;;) {
    const Char c = read(text, at);
    if (!(c.bits & kSpace)) return end;
    at += static_cast<size_t>(c.size);
    if (c.bits & kNewline) end = at;
  }
}

// " ?X+" with X given as a mask; `pos` where there is no X.
size_t match_spaced_run(std::string_view text, size_t pos, std::uint8_t wanted) {
  const size_t start = pos < text.size() && text[pos] == ' ' ? pos + 1 : pos;
  const size_t end = skip_class(text, start, wanted);
  return end > start ? end : pos;
}

// " ?[^\s\p{L}\p{N}]+" and more unwanted classes
size_t match_spaced_other(std::string_view text, size_t pos, std::uint8_t unwanted) {
  const size_t start = pos < text.size() && text[pos] == ' ' ? pos + 1 : pos;
  const size_t end = skip_until_class(text, start, unwanted);
  return end > start ? end : pos;
}

// GPT-2: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
size_t gpt2_rule(std::string_view text, size_t pos) {
  if (const size_t end = match_contraction(text, pos, false); end > pos) return end;
  if (const size_t end = match_spaced_run(text, pos, kL); end > pos) return end;
  if (const size_t end = match_spaced_run(text, pos, kN); end > pos) return end;
  if (const size_t end = match_spaced_other(text, pos, kSpace | kL | kN); end > pos) return end;
  return match_space_run(text, pos);
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?LETTER+|\p{N}{1,MaxDigits}| ?[^\s LETTER \p{N}]+[\r\n]*|\s*[\r\n]+|
// \s+(?!\S)|\s+   LETTER is \p{L}, with Marks also \p{M}.
template <int MaxDigits, bool Marks>
size_t modern_rule(std::string_view text, size_t pos) {
  constexpr std::uint8_t kLetter = Marks ? kL | kM : kL;
  if (const size_t end = match_contraction(text, pos, true); end > pos) return end;
  const Char first = read(text, pos);
  if (!(first.bits & (kNewline | kL | kN))) {
    const size_t start = pos + static_cast<size_t>(first.size);
    if (const size_t end = skip_class(text, start, kLetter); end > start) return end;
  }
  if (first.bits & kLetter) return skip_class(text, pos, kLetter);
  if (first.bits & kN) {
    size_t end = pos;
    Char c = first;
    for (int i = 0; i < MaxDigits && (c.bits & kN); ++i, c = read(text, end)) end += static_cast<size_t>(c.size);
    return end;
  }
  if (const size_t end = match_spaced_other(text, pos, kSpace | kLetter | kN); end > pos)
    return skip_class(text, end, kNewline);
  if (const size_t end = match_line_ends(text, pos); end > pos) return end;
  return match_space_run(text, pos);
}

size_t up_to_three_digits_rule(std::string_view text, size_t pos) {
  for (int i = 0; i < 3; ++i) {
    const Char c = read(text, pos);
    if (!(c.bits & kN)) break;
    pos += static_cast<size_t>(c.size);
  }
  return pos;
}

size_t one_digit_rule(std::string_view text, size_t pos) {
  const Char c = read(text, pos);
  return c.bits & kN ? pos + static_cast<size_t>(c.size) : pos;
}

size_t digits_rule(std::string_view text, size_t pos) {
  return skip_class(text, pos, kN);
}

// [U+4E00-U+9FA5 U+3040-U+309F U+30A0-U+30FF]+  (CJK ideographs, hiragana, katakana)
size_t cjk_kana_rule(std::string_view text, size_t pos) {
  for (;;) {
    const Char c = read(text, pos);
    if (c.size == 0 || !((c.code >= 0x4e00 && c.code <= 0x9fa5) || (c.code >= 0x3040 && c.code <= 0x30ff))) return pos;
    pos += static_cast<size_t>(c.size);
  }
}

// DeepSeek-V3, third split: [!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|
//  ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
size_t deepseek_v3_rule(std::string_view text, size_t pos) {
  const auto is_ascii_letter = [&](size_t at) {
    return at < text.size() && ((text[at] | 32) >= 'a' && (text[at] | 32) <= 'z');
  };
  const Char first = read(text, pos);
  if (first.code < 128 && (first.bits & (kP | kS)) && is_ascii_letter(pos + 1)) {
    size_t end = pos + 1;
    while (is_ascii_letter(end)) ++end;
    return end;
  }
  if (first.size > 0 && !(first.bits & (kNewline | kL | kP | kS))) {
    const size_t start = pos + static_cast<size_t>(first.size);
    if (const size_t end = skip_class(text, start, kL | kM); end > start) return end;
  }
  if (first.bits & (kL | kM)) return skip_class(text, pos, kL | kM);
  if (const size_t end = match_spaced_run(text, pos, kP | kS); end > pos) return skip_class(text, end, kNewline);
  if (const size_t end = match_line_ends(text, pos); end > pos) return end;
  return match_space_run(text, pos);
}

// The letters that DeepSeek-LLM's pattern lists: the cased letters of an older Unicode.
constexpr std::pair<char32_t, char32_t> kDeepseekLlmLetters[] = {
    {0x41, 0x5a},       {0x61, 0x7a},       {0xb5, 0xb5},       {0xc0, 0xd6},       {0xd8, 0xf6},
    {0xf8, 0x1ba},      {0x1bc, 0x1bf},     {0x1c4, 0x293},     {0x295, 0x2af},     {0x370, 0x373},
    {0x376, 0x377},     {0x37b, 0x37d},     {0x37f, 0x37f},     {0x386, 0x386},     {0x388, 0x38a},
    {0x38c, 0x38c},     {0x38e, 0x3a1},     {0x3a3, 0x3f5},     {0x3f7, 0x481},     {0x48a, 0x52f},
    {0x531, 0x556},     {0x10a0, 0x10c5},   {0x13a0, 0x13f5},   {0x13f8, 0x13fd},   {0x1c90, 0x1cba},
    {0x1cbd, 0x1cbf},   {0x1d00, 0x1d2b},   {0x1d6b, 0x1d77},   {0x1d79, 0x1d9a},   {0x1e00, 0x1f15},
    {0x1f18, 0x1f1d},   {0x1f20, 0x1f45},   {0x1f48, 0x1f4d},   {0x1f50, 0x1f57},   {0x1f59, 0x1f59},
    {0x1f5b, 0x1f5b},   {0x1f5d, 0x1f5d},   {0x1f5f, 0x1f7d},   {0x1f80, 0x1fb4},   {0x1fb6, 0x1fbc},
    {0x1fbe, 0x1fbe},   {0x1fc2, 0x1fc4},   {0x1fc6, 0x1fcc},   {0x1fd0, 0x1fd3},   {0x1fd6, 0x1fdb},
    {0x1fe0, 0x1fec},   {0x1ff2, 0x1ff4},   {0x1ff6, 0x1ffc},   {0x2102, 0x2102},   {0x2107, 0x2107},
    {0x210a, 0x2113},   {0x2115, 0x2115},   {0x2119, 0x211d},   {0x2124, 0x2124},   {0x2126, 0x2126},
    {0x2128, 0x2128},   {0x212a, 0x212d},   {0x212f, 0x2134},   {0x2139, 0x2139},   {0x213c, 0x213f},
    {0x2145, 0x2149},   {0x214e, 0x214e},   {0x2183, 0x2184},   {0x2c00, 0x2c7b},   {0x2c7e, 0x2ce4},
    {0x2ceb, 0x2cee},   {0x2cf2, 0x2cf3},   {0xa640, 0xa66d},   {0xa680, 0xa69b},   {0xa722, 0xa76f},
    {0xa771, 0xa787},   {0xa78b, 0xa78e},   {0xab70, 0xabbf},   {0xfb00, 0xfb06},   {0xfb13, 0xfb17},
    {0xff21, 0xff3a},   {0xff41, 0xff5a},   {0x10400, 0x1044f}, {0x104b0, 0x104d3}, {0x104d8, 0x104fb},
    {0x10c80, 0x10cb2}, {0x10cc0, 0x10cf2}, {0x118a0, 0x118df}, {0x1e900, 0x1e943},
};

bool is_deepseek_llm_letter(char32_t code) {
  const auto* range = std::upper_bound(std::begin(kDeepseekLlmLetters), std::end(kDeepseekLlmLetters), code,
                                       [](char32_t c, const auto& entry) { return c < entry.first; });
  return range != std::begin(kDeepseekLlmLetters) && code <= std::prev(range)->second;
}

// [!-/:-~ U+FF01-U+FF0F U+FF1A-U+FF5E U+2018-U+201F U+3000-U+3002]
bool is_deepseek_llm_punctuation(char32_t c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '~') || (c >= 0xff01 && c <= 0xff0f) ||
         (c >= 0xff1a && c <= 0xff5e) || (c >= 0x2018 && c <= 0x201f) || (c >= 0x3000 && c <= 0x3002);
}

bool is_letter(char32_t c) {
  return char_class(c) & kL;
}
bool is_punctuation(char32_t c) {
  return char_class(c) & kP;
}

// \s?[...]+ with the set given as a predicate. The optional space is tried first, then the set alone
// (U+3000 is in both).
template <bool (*InSet)(char32_t)>
size_t spaced_set_rule(std::string_view text, size_t pos) {
  const auto skip_set = [&](size_t at) {
    for (Char c = read(text, at); c.size > 0 && InSet(c.code); c = read(text, at)) at += static_cast<size_t>(c.size);
    return at;
  };
  const Char first = read(text, pos);
  if (first.bits & kSpace) {
    const size_t start = pos + static_cast<size_t>(first.size);
    if (const size_t end = skip_set(start); end > start) return end;
  }
  return skip_set(pos);
}

size_t newline_rule(std::string_view text, size_t pos) {
  return read(text, pos).bits & kNewline ? pos + 1 : pos;
}

// \s+$ . Inside a run nothing can match that did not match at its start: without that check a long run costs its
// square.
size_t trailing_space_rule(std::string_view text, size_t pos) {
  for (size_t back = 1; back <= 4 && back <= pos; ++back) {
    const Char previous = read(text, pos - back);
    if (static_cast<size_t>(previous.size) == back && (previous.bits & kSpace)) return pos;
  }
  const size_t end = skip_class(text, pos, kSpace);
  return end == text.size() ? end : pos;
}

// [U+4E00-U+9FA5 U+0800-U+4E00 U+AC00-U+D7FF]+
size_t cjk_hangul_rule(std::string_view text, size_t pos) {
  for (;;) {
    const Char c = read(text, pos);
    if (c.size == 0 || !((c.code >= 0x800 && c.code <= 0x9fa5) || (c.code >= 0xac00 && c.code <= 0xd7ff))) return pos;
    pos += static_cast<size_t>(c.size);
  }
}

// [\p{P}\$\+<=>\^~\|]+
size_t punctuation_rule(std::string_view text, size_t pos) {
  for (;;) {
    const Char c = read(text, pos);
    const bool listed =
        c.code < 128 && std::string_view("$+<=>^~|").find(static_cast<char>(c.code)) != std::string_view::npos;
    if (c.size == 0 || !((c.bits & kP) || listed)) return pos;
    pos += static_cast<size_t>(c.size);
  }
}

// [0-9][0-9][0-9]
size_t three_ascii_digits_rule(std::string_view text, size_t pos) {
  if (text.size() - pos < 3) return pos;
  for (size_t i = 0; i < 3; ++i)
    if (text[pos + i] < '0' || text[pos + i] > '9') return pos;
  return pos + 3;
}

constexpr std::string_view kDefault = "default", kGpt2 = "gpt-2", kSmollm = "smollm", kQwen2 = "qwen2",
                           kQwen35 = "qwen35", kLlama3 = "llama-bpe", kDeepseekV3 = "deepseek-v3",
                           kDeepseekLlm = "deepseek-llm", kDeepseekCoder = "deepseek-coder";

// Other names of GGUF files for the same splits.
constexpr std::pair<std::string_view, std::string_view> kAliases[] = {
    {"", kDefault},
    {"mpt", kGpt2},
    {"olmo", kGpt2},
    {"phi-2", kGpt2},
    {"jais", kGpt2},
    {"trillion", kGpt2},
    {"starcoder", kSmollm},
    {"refact", kSmollm},
    {"command-r", kSmollm},
    {"codeshell", kSmollm},
    {"exaone", kSmollm},
    {"minerva-7b", kSmollm},
    {"deepseek-r1-qwen", kQwen2},
    {"stablelm2", kQwen2},
    {"hunyuan", kQwen2},
    {"megrez", kQwen2},
    {"llama3", kLlama3},
    {"llama-v3", kLlama3},
    {"dbrx", kLlama3},
    {"smaug-bpe", kLlama3},
    {"chatglm-bpe", kLlama3},
    {"glm4", kLlama3},
    {"falcon3", kLlama3},
    {"deepseek-r1", kDeepseekV3},
    {"hunyuan-dense", kDeepseekV3},
};

PreTokenizer make_pre_tokenizer(std::string_view name) {
  if (name == kGpt2) return {kGpt2, {gpt2_rule}};
  if (name == kSmollm) return {kSmollm, {one_digit_rule, gpt2_rule}};
  if (name == kQwen2) return {kQwen2, {modern_rule<1, false>}};
  if (name == kQwen35) return {kQwen35, {modern_rule<1, true>}};
  if (name == kLlama3) return {kLlama3, {modern_rule<3, false>}};
  if (name == kDeepseekV3) return {kDeepseekV3, {up_to_three_digits_rule, cjk_kana_rule, deepseek_v3_rule}};
  if (name == kDeepseekLlm)
    return {kDeepseekLlm,
            {newline_rule, spaced_set_rule<is_deepseek_llm_letter>, spaced_set_rule<is_deepseek_llm_punctuation>,
             trailing_space_rule, cjk_hangul_rule, one_digit_rule}};
  if (name == kDeepseekCoder)
    return {
        kDeepseekCoder,
        {newline_rule, spaced_set_rule<is_letter>, spaced_set_rule<is_punctuation>, cjk_hangul_rule, one_digit_rule}};
  if (name == kDefault) return {kDefault, {punctuation_rule, gpt2_rule, digits_rule, three_ascii_digits_rule}};
  return {};
}

// Every step but those that only map bytes, as one line: what recognition compares.
std::string fingerprint(const std::vector<PreTokenizerStep>& steps) {
  std::string out;
  for (const PreTokenizerStep& step : steps) {
    if (step.type == "ByteLevel") {
      if (step.flag) out += "gpt2\n";
    } else if (step.type == "Digits") {
      out += step.flag ? "digit\n" : "digits\n";
    } else if (step.regex == "\\p{N}") {
      out += "digit\n";
    } else {
      out += step.type + " " + step.regex + "\n";
    }
  }
  return out;
}

// The letters of DeepSeek-LLM's second split as they stand in its file are many; its beginning tells it apart.
constexpr std::string_view kDeepseekLlmStart = "Split [\r\n]\nSplit \\s?[A-Za-z\xc2\xb5\xc3\x80-\xc3\x96";

struct KnownPattern {
  std::string_view fingerprint;
  std::string_view name;
};

constexpr KnownPattern kKnownPatterns[] = {
    {"gpt2\n", kGpt2},
    {"Split 's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+\n", kGpt2},
    {"digit\ngpt2\n", kSmollm},
    {"Split (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
     "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+\n",
     kQwen2},
    {"Split (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| "
     "?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|"
     "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+\n",
     kQwen35},
    {"Split (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
     "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+\n",
     kLlama3},
    {"Split \\p{N}{1,3}\nSplit [\xe4\xb8\x80-\xe9\xbe\xa5\xe3\x81\x80-\xe3\x82\x9f\xe3\x82\xa0-\xe3\x83\xbf]+\n"
     "Split [!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
     " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+\n",
     kDeepseekV3},
    {"Split [\r\n]\nSplit \\s?\\p{L}+\nSplit \\s?\\p{P}+\nSplit "
     "[\xe4\xb8\x80-\xe9\xbe\xa5\xe0\xa0\x80-\xe4\xb8\x80\xea\xb0\x80-"
     "\xed\x9f\xbf]+\ndigit\n",
     kDeepseekCoder},
};

void split_with(const std::vector<SplitRule>& rules, size_t rule_idx, std::string_view text, size_t base,
                std::vector<size_t>& ends) {
  if (rule_idx == rules.size()) {
    if (!text.empty()) ends.push_back(base + text.size());
    return;
  }
  const auto next_rule = [&](size_t begin, size_t end) {
    split_with(rules, rule_idx + 1, text.substr(begin, end - begin), base + begin, ends);
  };
  size_t gap = 0;  // start of the text that nothing matched yet
  for (size_t pos = 0; pos < text.size();) {
    const size_t end = rules[rule_idx](text, pos);
    if (end == pos) {
      pos += static_cast<size_t>(read(text, pos).size);
      continue;
    }
    if (gap < pos) next_rule(gap, pos);
    next_rule(pos, end);
    gap = pos = end;
  }
  if (gap < text.size()) next_rule(gap, text.size());
}

}  // namespace

Result<PreTokenizer> find_pre_tokenizer(std::string_view name) {
  for (const auto& [alias, target] : kAliases)
    if (name == alias) return make_pre_tokenizer(target);
  PreTokenizer found = make_pre_tokenizer(name);
  if (found.rules.empty()) {
    return error(
        Code::kUnsupported,
        "tokenizer: pre-tokenizer \"{}\" is not known; known are default, gpt-2, smollm, qwen2, qwen35, llama-bpe, "
        "deepseek-v3, deepseek-llm, deepseek-coder and their aliases",
        name);
  }
  return found;
}

Result<std::string_view> recognize_pre_tokenizer(const std::vector<PreTokenizerStep>& steps) {
  const std::string found = fingerprint(steps);
  for (const KnownPattern& known : kKnownPatterns)
    if (found == known.fingerprint) return known.name;
  if (found.starts_with(kDeepseekLlmStart) && found.ends_with("\ndigit\n")) return kDeepseekLlm;
  return error(Code::kUnsupported, "tokenizer.json: pre_tokenizer is none of the known ones: {}",
               found.empty() ? "no split" : found.substr(0, 300));
}

void split_words(const PreTokenizer& pre_tokenizer, std::string_view text, std::vector<std::size_t>& ends) {
  split_with(pre_tokenizer.rules, 0, text, 0, ends);
}

}  // namespace still
