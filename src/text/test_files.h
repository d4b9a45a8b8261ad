// For the tests of text/ only: files of testdata/text, and the vocabulary of a GGUF file. files/ has the real reader,
// but it stands beside text/ and may not be included here.
#pragma once

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "base/check.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "text/tokenizer.h"

namespace still::test {

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  STILL_CHECK(in);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline std::string testdata(const std::string& name) {
  return std::string(STILL_SOURCE_DIR) + "/testdata/text/" + name;
}

inline Json read_json(const std::string& path) {
  auto json = parse_json(read_file(path), path);
  STILL_CHECK(json);
  return *json;
}

inline std::string to_string(const Json& json) {
  return std::string(json.as_string());
}

inline std::vector<TokenId> to_ids(const Json& json) {
  std::vector<TokenId> ids;
  for (const Json& id : json.as_array()) ids.push_back(static_cast<TokenId>(id.as_int64()));
  return ids;
}

// Where the big models are (STILL_TEST_MODELS), or empty.
inline std::string models_folder() {
  const char* folder = std::getenv("STILL_TEST_MODELS");
  return folder ? folder : "";
}

struct GgufVocabulary {
  TokenizerData data;
  std::string chat_template;
};

// The keys tokenizer.* of a well-formed, little-endian GGUF file.
inline GgufVocabulary read_gguf_vocabulary(const std::string& path) {
  auto file = MappedFile::open(path);
  STILL_CHECK(file);

  const auto* bytes = reinterpret_cast<const char*>(file->data());
  std::size_t pos = 16;
  const auto read = [&]<class T>(T value) {
    std::memcpy(&value, bytes + pos, sizeof(T));
    pos += sizeof(T);
    return value;
  };
  const auto read_string = [&] {
    const auto size = read(std::uint64_t{});
    std::string text(bytes + pos, size);
    pos += size;
    return text;
  };
  constexpr std::size_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  GgufVocabulary out;
  TokenizerData& data = out.data;
  for (auto n = read(std::uint64_t{}); n > 0; --n) {
    const std::string key = read_string();
    const auto type = read(std::uint32_t{});
    if (type == 9) {
      const auto element = read(std::uint32_t{});
      for (auto count = read(std::uint64_t{}); count > 0; --count) {
        if (element == 8) {
          std::string text = read_string();
          if (key == "tokenizer.ggml.tokens")
            data.tokens.push_back(std::move(text));
          else if (key == "tokenizer.ggml.merges")
            data.merges.push_back(std::move(text));
        } else {
          if (key == "tokenizer.ggml.token_type") data.types.push_back(static_cast<TokenType>(bytes[pos]));
          pos += kSizes[element];
        }
      }
    } else if (type == 8) {
      std::string text = read_string();
      if (key == "tokenizer.ggml.pre") data.pre = text;
      if (key == "tokenizer.ggml.model") data.model = text;
      if (key == "tokenizer.chat_template") out.chat_template = text;
    } else {
      std::uint64_t value = 0;
      std::memcpy(&value, bytes + pos, kSizes[type]);
      pos += kSizes[type];
      if (key == "tokenizer.ggml.bos_token_id") data.bos = static_cast<TokenId>(value);
      if (key == "tokenizer.ggml.eos_token_id") data.eos = static_cast<TokenId>(value);
      if (key == "tokenizer.ggml.add_bos_token") data.add_bos = value != 0;
    }
  }
  return out;
}

inline Tokenizer small_tokenizer(const std::string& name) {
  auto data = read_tokenizer_json(read_file(testdata("small_tokenizers/" + name + ".json")), "");
  STILL_CHECK(data);
  auto tokenizer = Tokenizer::make(std::move(*data));
  STILL_CHECK(tokenizer);
  return std::move(*tokenizer);
}

}  // namespace still::test
