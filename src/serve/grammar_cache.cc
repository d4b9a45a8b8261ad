#include "serve/grammar_cache.h"

namespace still {

Result<std::shared_ptr<GrammarCompiler>> GrammarCache::compiler_of(const std::shared_ptr<const Model>& model) {
  const std::lock_guard lock(mutex_);
  std::erase_if(entries_, [](const auto& entry) { return entry.second.model.expired(); });
  const auto found = entries_.find(model.get());
  if (found != entries_.end()) return found->second.compiler;
  STILL_TRY(std::shared_ptr<GrammarCompiler> compiler, GrammarCompiler::make(model->tokenizer()));
  entries_.emplace(model.get(), Entry{model, compiler});
  return compiler;
}

}  // namespace still
