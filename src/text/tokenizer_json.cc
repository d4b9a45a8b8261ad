// tokenizer.json and tokenizer_config.json of the Hugging Face tokenizers library, as far as byte-level BPE goes.
#include <simdjson.h>

#include <algorithm>

#include "text/tokenizer.h"

namespace still {

namespace {

namespace dom = simdjson::dom;

constexpr std::int64_t kMaxVocab = 1 << 22;  // a lying id must not make us allocate gigabytes

std::string_view string_or(simdjson::simdjson_result<dom::element> value, std::string_view otherwise) {
  std::string_view text;
  return value.get(text) == simdjson::SUCCESS ? text : otherwise;
}

bool bool_or(simdjson::simdjson_result<dom::element> value, bool otherwise) {
  bool flag = otherwise;
  return value.get(flag) == simdjson::SUCCESS ? flag : otherwise;
}

// The elements of a "Sequence" in `list`, or the element itself; nothing for null.
std::vector<dom::element> flatten(simdjson::simdjson_result<dom::element> value, const char* list) {
  dom::element element;
  if (value.get(element) != simdjson::SUCCESS || element.is_null()) return {};
  if (string_or(element["type"], "") != "Sequence") return {element};
  std::vector<dom::element> out;
  dom::array array;
  if (element[list].get(array) == simdjson::SUCCESS)
    for (const dom::element part : array)
      for (const dom::element inner : flatten(simdjson::simdjson_result<dom::element>(dom::element(part)), list))
        out.push_back(inner);
  return out;
}

// Puts `text` at `id`, with the table grown as needed.
Status place_token(TokenizerData& data, std::string_view text, std::int64_t id, TokenType type) {
  if (id < 0 || id >= kMaxVocab)
    return error(Code::kCorrupt, "tokenizer.json: token \"{}\" has id {}, expected 0 to {}", text.substr(0, 60), id,
                 kMaxVocab - 1);
  const auto at = static_cast<std::size_t>(id);
  if (at >= data.tokens.size()) {
    data.tokens.resize(at + 1);
    data.types.resize(at + 1, TokenType::kUnused);
  }
  if (data.types[at] != TokenType::kUnused && data.tokens[at] != text)
    return error(Code::kCorrupt, "tokenizer.json: id {} is both \"{}\" and \"{}\"", id, data.tokens[at].substr(0, 60),
                 text.substr(0, 60));
  data.tokens[at] = text;
  data.types[at] = type;
  return ok();
}

Status read_vocab(dom::element model, TokenizerData& data) {
  dom::object vocab;
  if (model["vocab"].get(vocab) != simdjson::SUCCESS)
    return error(Code::kCorrupt, "tokenizer.json: model.vocab is missing or no object");
  for (const auto [text, value] : vocab) {
    std::int64_t id = -1;
    if (value.get(id) != simdjson::SUCCESS)
      return error(Code::kCorrupt, "tokenizer.json: the id of token \"{}\" is no integer", text.substr(0, 60));
    STILL_TRY_STATUS(place_token(data, text, id, TokenType::kNormal));
  }
  return ok();
}

Status read_merges(dom::element model, TokenizerData& data) {
  dom::array merges;
  if (model["merges"].get(merges) != simdjson::SUCCESS)
    return error(Code::kCorrupt, "tokenizer.json: model.merges is missing or no array");
  for (const dom::element merge : merges) {
    std::string_view text, left, right;
    dom::array pair;
    if (merge.get(text) == simdjson::SUCCESS) {
      data.merges.emplace_back(text);
    } else if (merge.get(pair) == simdjson::SUCCESS && pair.size() == 2 && pair.at(0).get(left) == simdjson::SUCCESS &&
               pair.at(1).get(right) == simdjson::SUCCESS) {
      data.merges.push_back(std::string(left) + ' ' + std::string(right));
    } else {
      return error(Code::kCorrupt, "tokenizer.json: merge {} is neither a string nor two strings", data.merges.size());
    }
  }
  return ok();
}

Status read_added_tokens(dom::element root, TokenizerData& data) {
  dom::array added;
  if (root["added_tokens"].get(added) != simdjson::SUCCESS) return ok();
  for (const dom::element token : added) {
    std::int64_t id = -1;
    std::string_view content;
    if (token["id"].get(id) != simdjson::SUCCESS || token["content"].get(content) != simdjson::SUCCESS)
      return error(Code::kCorrupt, "tokenizer.json: added_tokens[{}] has no id or no content", data.added.size());
    const bool special = bool_or(token["special"], false);
    STILL_TRY_STATUS(place_token(data, content, id, special ? TokenType::kControl : TokenType::kUserDefined));
    data.added.push_back({.id = static_cast<TokenId>(id),
                          .special = special,
                          .lstrip = bool_or(token["lstrip"], false),
                          .rstrip = bool_or(token["rstrip"], false),
                          .single_word = bool_or(token["single_word"], false),
                          .normalized = bool_or(token["normalized"], false)});
  }
  return ok();
}

Status read_normalizer(dom::element root, TokenizerData& data) {
  for (const dom::element step : flatten(root["normalizer"], "normalizers")) {
    const std::string_view type = string_or(step["type"], "?");
    if (type != "NFC")
      return error(Code::kUnsupported, "tokenizer.json: normalizer \"{}\" is not computed, only NFC", type);
    data.normalize_nfc = true;
  }
  return ok();
}

Status read_pre_tokenizer(dom::element root, TokenizerData& data) {
  std::vector<PreTokenizerStep> steps;
  bool byte_level = false;
  for (const dom::element element : flatten(root["pre_tokenizer"], "pretokenizers")) {
    PreTokenizerStep step{.type = std::string(string_or(element["type"], "?"))};
    if (step.type == "ByteLevel") {
      byte_level = true;
      step.flag = bool_or(element["use_regex"], true);
      if (bool_or(element["add_prefix_space"], true))
        return error(Code::kUnsupported, "tokenizer.json: ByteLevel with add_prefix_space is not computed");
    } else if (step.type == "Digits") {
      step.flag = bool_or(element["individual_digits"], false);
    } else if (step.type == "Split") {
      step.regex = string_or(element["pattern"]["Regex"], "");
      const std::string_view behavior = string_or(element["behavior"], "?");
      const bool invert = bool_or(element["invert"], false);
      // "Removed" with invert keeps the matches alone; patterns that match everywhere split the same way as "Isolated".
      if (step.regex.empty() || !((behavior == "Isolated" && !invert) || (behavior == "Removed" && invert)))
        return error(Code::kUnsupported, "tokenizer.json: Split with behavior \"{}\", invert {} is not computed",
                     behavior, invert);
    }
    steps.push_back(std::move(step));
  }
  if (!byte_level)
    return error(Code::kUnsupported, "tokenizer.json: no ByteLevel pre_tokenizer; only byte-level BPE is computed");
  STILL_TRY(data.pre, recognize_pre_tokenizer(steps));
  return ok();
}

TokenId find_token(const TokenizerData& data, std::string_view text) {
  if (text.empty()) return -1;
  const auto at = std::find(data.tokens.begin(), data.tokens.end(), text);
  return at == data.tokens.end() ? -1 : static_cast<TokenId>(at - data.tokens.begin());
}

// TemplateProcessing puts BOS before or EOS after the text.
void read_post_processor(dom::element root, TokenizerData& data) {
  for (const dom::element step : flatten(root["post_processor"], "processors")) {
    dom::array parts;
    if (string_or(step["type"], "") != "TemplateProcessing" || step["single"].get(parts) != simdjson::SUCCESS) continue;
    bool text_seen = false;
    for (const dom::element part : parts) {
      const TokenId id = find_token(data, string_or(part["SpecialToken"]["id"], ""));
      if (id < 0) {
        text_seen = true;
      } else if (text_seen) {
        data.eos = id;
        data.add_eos = true;
      } else {
        data.bos = id;
        data.add_bos = true;
      }
    }
  }
}

Status read_config(std::string_view json, TokenizerData& data) {
  dom::parser parser;
  dom::element root;
  const simdjson::padded_string padded(json);
  if (const auto failure = parser.parse(padded).get(root); failure != simdjson::SUCCESS)
    return error(Code::kCorrupt, "tokenizer_config.json: not valid JSON: {}", simdjson::error_message(failure));
  const std::pair<const char*, TokenId*> named[] = {
      {"bos_token", &data.bos}, {"eos_token", &data.eos}, {"unk_token", &data.unknown}, {"pad_token", &data.padding}};
  for (const auto& [key, id] : named) {
    const std::string_view text = string_or(root[key], string_or(root[key]["content"], ""));
    if (const TokenId found = find_token(data, text); found >= 0) *id = found;
  }
  data.add_bos = bool_or(root["add_bos_token"], data.add_bos);
  data.add_eos = bool_or(root["add_eos_token"], data.add_eos);
  return ok();
}

}  // namespace

Result<TokenizerData> read_tokenizer_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json) {
  dom::parser parser;
  dom::element root;
  const simdjson::padded_string padded(tokenizer_json);
  if (const auto failure = parser.parse(padded).get(root); failure != simdjson::SUCCESS)
    return error(Code::kCorrupt, "tokenizer.json: not valid JSON: {}", simdjson::error_message(failure));
  dom::element model;
  if (root["model"].get(model) != simdjson::SUCCESS) return error(Code::kCorrupt, "tokenizer.json: model is missing");
  const std::string_view type = string_or(model["type"], "BPE");
  if (type != "BPE")
    return error(Code::kUnsupported, "tokenizer.json: model type \"{}\" is not computed, only BPE", type);
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (!string_or(model[key], "").empty())
      return error(Code::kUnsupported, "tokenizer.json: model.{} is not computed", key);

  TokenizerData data;
  data.ignore_merges = bool_or(model["ignore_merges"], false);
  STILL_TRY_STATUS(read_pre_tokenizer(root, data));
  STILL_TRY_STATUS(read_normalizer(root, data));
  STILL_TRY_STATUS(read_vocab(model, data));
  STILL_TRY_STATUS(read_merges(model, data));
  STILL_TRY_STATUS(read_added_tokens(root, data));
  read_post_processor(root, data);
  if (!tokenizer_config_json.empty()) STILL_TRY_STATUS(read_config(tokenizer_config_json, data));
  for (std::size_t id = 0; id < data.tokens.size(); ++id)
    if (data.types[id] == TokenType::kUnused && data.tokens[id].empty()) data.tokens[id] = fmt::format("[PAD{}]", id);
  return data;
}

}  // namespace still
