// Grammars compiled for a vocabulary, and the constraint that a request carries. Behind it stands the core of xgrammar
// (Dong et al. 2024, arXiv:2411.15100): which tokens fit is computed once for every state of the grammar that does not
// depend on the stack, so that a mask costs microseconds. Nothing of it shows here.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "engine/constraint.h"
#include "grammar/draft.h"
#include "grammar/json_schema.h"
#include "text/tokenizer.h"

namespace still {

// Immutable; may be shared by many requests and threads.
class CompiledGrammar {
 public:
  virtual ~CompiledGrammar() = default;
  virtual std::int64_t memory_bytes() const = 0;
};

struct GrammarLimits {
  std::size_t max_source_bytes = 256 << 10;  // of a schema, pattern or grammar as given
  std::size_t cache_entries = 64;
  std::int64_t cache_bytes = 256 << 20;
  int n_threads = 2;                                    // of one compilation
  std::chrono::milliseconds max_time{30000};            // of one compilation
  std::chrono::milliseconds max_mask_time{2000};        // of one mask, computed on the engine's thread
  std::shared_ptr<const std::atomic<bool>> is_stopped;  // compilations under way give up; null: never
};

// One for each vocabulary; thread-safe. Compiling takes milliseconds to seconds: never on the engine's thread. What was
// compiled lately is found again by its source.
class GrammarCompiler {
 public:
  // kUnsupported, in a sentence, where the program was built without xgrammar.
  static Result<std::shared_ptr<GrammarCompiler>> make(const Tokenizer& tokenizer, const GrammarLimits& limits = {});
  virtual ~GrammarCompiler() = default;

  // `name` stands before the place in errors, for example "response_format.json_schema.schema".
  Result<std::shared_ptr<const CompiledGrammar>> compile_json_schema(const Json& schema,
                                                                     std::string_view name = "schema",
                                                                     const SchemaOptions& options = {});
  Result<std::shared_ptr<const CompiledGrammar>> compile_json_object(const SchemaOptions& options = {});
  // The whole answer matches the pattern.
  Result<std::shared_ptr<const CompiledGrammar>> compile_regex(std::string_view pattern,
                                                               std::string_view name = "regex");
  // The EBNF of xgrammar (and, nearly, of llama.cpp's GBNF): root ::= "a" [0-9]{1,3} rest*. The rule "root" is the
  // start.
  Result<std::shared_ptr<const CompiledGrammar>> compile_ebnf(std::string_view ebnf, std::string_view name = "grammar");
  // One of these texts.
  Result<std::shared_ptr<const CompiledGrammar>> compile_choice(std::span<const std::string> choices,
                                                                std::string_view name = "choice");
  // A draft made by others (grammar/tool_grammar.h), from `root` on.
  Result<std::shared_ptr<const CompiledGrammar>> compile_draft(const GrammarDraft& draft, GrammarDraft::Node root,
                                                               std::string_view name);

 protected:
  explicit GrammarCompiler(const GrammarLimits& limits) : limits_(limits) {}
  virtual Result<std::shared_ptr<const CompiledGrammar>> compile_text(std::string ebnf, std::string_view name) = 0;
  Status check_size(std::size_t n_bytes, std::string_view name) const;

  GrammarLimits limits_;
};

// The state of one answer. Its masks never allow special tokens, and end tokens only where the text may end.
std::shared_ptr<TokenConstraint> make_constraint(std::shared_ptr<const CompiledGrammar> grammar);

// "xgrammar 0.2.8", or "none: ..." for `still version --verbose`.
std::string_view grammar_engine();

}  // namespace still
