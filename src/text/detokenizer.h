// Token ids to text as they come: never half a UTF-8 character. Bytes become U+FFFD only once they are known to be
// invalid (one for each maximal part, as Unicode 14 section 3.9 recommends); until then they wait for the next token.
#pragma once

#include <string>
#include <string_view>

#include "text/tokenizer.h"

namespace still {

// Bytes in, whole characters out.
class Utf8Stream {
 public:
  void add(std::string_view bytes, std::string& out);  // appends to `out`
  std::string add(std::string_view bytes);
  std::string flush();  // what still waits, as U+FFFD

 private:
  std::string pending_;  // at most 3 bytes: the beginning of a character
};

// Keeps a reference to the tokenizer. One per sequence; not thread-safe.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}
  std::string add(TokenId id);
  std::string flush() { return stream_.flush(); }

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  Utf8Stream stream_;
};

}  // namespace still
