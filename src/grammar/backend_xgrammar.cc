// The grammar engine: xgrammar's compiler and matcher behind GrammarCompiler and TokenConstraint. Its exceptions end
// here.
#include <xgrammar/xgrammar.h>

#include <algorithm>
#include <bit>
#include <list>
#include <map>
#include <mutex>

#include "grammar/compiler.h"
#include "grammar/work_limit.h"

namespace still {
namespace {

// xgrammar's sentences speak of its own source files; only what the user can use is kept.
std::string first_line(std::string_view message) {
  return std::string(message.substr(0, std::min(message.find('\n'), std::size_t{400})));
}

class XgrammarCompiled : public CompiledGrammar {
 public:
  XgrammarCompiled(xgrammar::CompiledGrammar given, std::chrono::milliseconds mask_time)
      : compiled(std::move(given)),
        max_mask_time(mask_time),
        bytes_(static_cast<std::int64_t>(compiled.MemorySizeBytes())) {}
  std::int64_t memory_bytes() const override { return bytes_; }

  const xgrammar::CompiledGrammar compiled;
  const std::chrono::milliseconds max_mask_time;

 private:
  std::int64_t bytes_;
};

class XgrammarCompiler : public GrammarCompiler {
 public:
  XgrammarCompiler(const GrammarLimits& limits, const xgrammar::TokenizerInfo& vocabulary)
      : GrammarCompiler(limits), compiler_(vocabulary, limits.n_threads, /*cache_enabled=*/false) {}

 protected:
  Result<std::shared_ptr<const CompiledGrammar>> compile_text(std::string ebnf, std::string_view name) override {
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = by_source_.find(ebnf); found != by_source_.end()) {
        recent_.splice(recent_.begin(), recent_, found->second);
        return recent_.front().grammar;
      }
    }
    std::shared_ptr<const CompiledGrammar> grammar;
    const WorkLimit limit{std::chrono::steady_clock::now() + limits_.max_time, limits_.is_stopped.get()};
    const WorkLimitScope scope(&limit);
    try {
      grammar = std::make_shared<XgrammarCompiled>(compiler_.CompileGrammar(ebnf), limits_.max_mask_time);
    } catch (const WorkLimitReached&) {
      if (limits_.is_stopped && *limits_.is_stopped) return error(Code::kCancelled, "{}: the server is ending", name);
      return error(
          Code::kResourceExhausted,
          "{}: compiling it takes more than {:.3g} s: smaller lengths and counts (maxLength, {{m,n}}) or fewer "
          "alternatives help",
          name, std::chrono::duration<double>(limits_.max_time).count());
    } catch (const std::bad_alloc&) {
      return error(Code::kResourceExhausted, "{}: not enough memory to compile it", name);
    } catch (const std::exception& problem) {
      return error(Code::kInvalidArgument, "{}: {}", name, first_line(problem.what()));
    }
    const std::lock_guard lock(mutex_);
    if (by_source_.contains(ebnf)) return grammar;  // another thread was faster
    recent_.push_front({std::move(ebnf), grammar});
    by_source_.emplace(recent_.front().source, recent_.begin());
    cached_bytes_ += cost(recent_.front());
    while (recent_.size() > limits_.cache_entries || (cached_bytes_ > limits_.cache_bytes && recent_.size() > 1)) {
      cached_bytes_ -= cost(recent_.back());
      by_source_.erase(recent_.back().source);
      recent_.pop_back();
    }
    return grammar;
  }

 private:
  struct Entry {
    std::string source;
    std::shared_ptr<const CompiledGrammar> grammar;
  };
  static std::int64_t cost(const Entry& entry) {
    return entry.grammar->memory_bytes() + static_cast<std::int64_t>(entry.source.size());
  }

  xgrammar::GrammarCompiler compiler_;
  std::mutex mutex_;
  std::list<Entry> recent_;  // the last used first
  std::map<std::string_view, std::list<Entry>::iterator> by_source_;
  std::int64_t cached_bytes_ = 0;
};

class XgrammarConstraint : public TokenConstraint {
 public:
  explicit XgrammarConstraint(std::shared_ptr<const XgrammarCompiled> grammar)
      : grammar_(std::move(grammar)),
        matcher_(grammar_->compiled, std::nullopt, /*terminate_without_stop_token=*/false, /*max_rollback_tokens=*/0),
        words_(static_cast<std::size_t>(token_mask_words(grammar_->compiled.GetTokenizerInfo().GetVocabSize()))) {}

  void fill_mask(TokenMask mask) override {
    std::ranges::fill(mask, 0u);
    if (is_complete_ || is_broken_) return;
    compute();
    std::copy_n(words_.begin(), std::min(words_.size(), mask.size()), mask.begin());
  }

  bool accept(TokenId id) override {
    if (is_broken_ || is_complete_) return false;
    const WorkLimit limit{std::chrono::steady_clock::now() + grammar_->max_mask_time};
    const WorkLimitScope scope(&limit);
    try {
      if (!matcher_.AcceptToken(id)) return false;
      is_computed_ = false;
      if (matcher_.IsTerminated()) {
        is_complete_ = true;
      } else if (matcher_.IsCompleted()) {
        // The text may end here; where nothing else may follow, it has ended.
        compute();
        is_complete_ = only_stop_tokens();
      }
    } catch (const WorkLimitReached&) {
      give_up();
    } catch (const std::exception&) {
      is_broken_ = true;
    }
    return !is_broken_;
  }

  bool is_complete() const override { return is_complete_; }
  std::string_view problem() const override { return problem_; }

 private:
  void give_up() {
    is_broken_ = true;
    problem_ = fmt::format("the form of the answer is too hard to keep to: more than {:.3g} s for one token",
                           std::chrono::duration<double>(grammar_->max_mask_time).count());
  }

  void compute() {
    if (is_computed_) return;
    std::int64_t shape = static_cast<std::int64_t>(words_.size());
    DLTensor tensor{.data = words_.data(),
                    .device = {kDLCPU, 0},
                    .ndim = 1,
                    .dtype = xgrammar::GetBitmaskDLType(),
                    .shape = &shape,
                    .strides = nullptr,
                    .byte_offset = 0};
    const WorkLimit limit{std::chrono::steady_clock::now() + grammar_->max_mask_time};
    const WorkLimitScope scope(&limit);
    try {
      // False: everything is allowed, and the mask was left alone.
      if (!matcher_.FillNextTokenBitmask(&tensor)) allow_all();
      is_computed_ = true;
    } catch (const WorkLimitReached&) {
      std::ranges::fill(words_, 0u);
      give_up();
    } catch (const std::exception&) {
      std::ranges::fill(words_, 0u);  // the request ends with an error
      is_broken_ = true;
    }
  }

  void allow_all() {
    std::ranges::fill(words_, ~0u);
    for (const std::int32_t id : grammar_->compiled.GetTokenizerInfo().GetSpecialTokenIds()) clear(words_, id);
  }

  static void clear(std::vector<std::uint32_t>& words, std::int32_t id) {
    words[static_cast<std::size_t>(id) / 32] &= ~(1u << (id % 32));
  }

  bool only_stop_tokens() const {
    std::vector<std::uint32_t> rest = words_;
    for (const int id : matcher_.GetStopTokenIds()) clear(rest, id);
    return std::ranges::all_of(rest, [](std::uint32_t word) { return word == 0; });
  }

  std::shared_ptr<const XgrammarCompiled> grammar_;
  xgrammar::GrammarMatcher matcher_;
  std::vector<std::uint32_t> words_;
  bool is_computed_ = false;
  bool is_complete_ = false;
  bool is_broken_ = false;
  std::string problem_;
};

}  // namespace

Result<std::shared_ptr<GrammarCompiler>> GrammarCompiler::make(const Tokenizer& tokenizer,
                                                               const GrammarLimits& limits) {
  // Special tokens have no text here: no grammar allows them.
  std::vector<std::string> tokens(static_cast<std::size_t>(tokenizer.vocab_size()));
  for (std::int64_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const auto token = static_cast<TokenId>(id);
    const bool is_text = !tokenizer.is_special(token) && !tokenizer.ends_generation(token) &&
                         tokenizer.token_type(token) != TokenType::kUnused;
    if (is_text) tokens[static_cast<std::size_t>(id)] = std::string(tokenizer.token_bytes(token));
  }
  const std::span<const TokenId> ends = tokenizer.end_of_generation();
  try {
    const xgrammar::TokenizerInfo vocabulary(tokens, xgrammar::VocabType::RAW, static_cast<int>(tokenizer.vocab_size()),
                                             std::vector<std::int32_t>(ends.begin(), ends.end()));
    return std::make_shared<XgrammarCompiler>(limits, vocabulary);
  } catch (const std::exception& problem) {
    return error(Code::kUnsupported, "this vocabulary cannot be constrained: {}", first_line(problem.what()));
  }
}

std::shared_ptr<TokenConstraint> make_constraint(std::shared_ptr<const CompiledGrammar> grammar) {
  return std::make_shared<XgrammarConstraint>(std::static_pointer_cast<const XgrammarCompiled>(std::move(grammar)));
}

std::string_view grammar_engine() {
  return "xgrammar 0.2.8";
}

}  // namespace still
