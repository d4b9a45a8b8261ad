// From what a checkpoint's files say about its tokenizer to a Tokenizer.
#include "models/model.h"

namespace still {

namespace {

TokenizerData from_gguf(const TokenizerSource& source) {
  TokenizerData data;
  data.model = source.model;
  data.pre = source.pre;
  data.tokens.assign(source.tokens.begin(), source.tokens.end());
  data.merges.assign(source.merges.begin(), source.merges.end());
  for (const std::int32_t type : source.token_types)
    data.types.push_back(type >= 1 && type <= 6 ? static_cast<TokenType>(type) : TokenType::kNormal);
  data.bos = source.bos_id.value_or(-1);
  data.eos = source.eos_id.value_or(-1);
  data.eot = source.eot_id.value_or(-1);
  data.unknown = source.unknown_id.value_or(-1);
  data.padding = source.padding_id.value_or(-1);
  data.add_bos = source.add_bos.value_or(false);
  data.add_eos = source.add_eos.value_or(false);
  return data;
}

}  // namespace

Result<Tokenizer> load_tokenizer(const Checkpoint& checkpoint) {
  STILL_TRY(const TokenizerSource source, checkpoint.tokenizer_source());
  switch (source.kind) {
    case TokenizerSource::Kind::kNone:
      return error(Code::kNotFound,
                   "{}: no tokenizer (expected tokenizer.json beside the weights, or tokenizer.ggml.* keys)",
                   checkpoint.path().string());
    case TokenizerSource::Kind::kGguf:
      return Tokenizer::make(from_gguf(source));
    case TokenizerSource::Kind::kJson: {
      STILL_TRY(TokenizerData data, read_tokenizer_json(source.tokenizer_json, source.tokenizer_config_json));
      return Tokenizer::make(std::move(data));
    }
  }
  STILL_CHECK(!"unknown kind of tokenizer");
}

}  // namespace still
