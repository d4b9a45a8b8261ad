// GrammarCache: one grammar compiler for each loaded model's vocabulary, made at its first constrained request.
// Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "grammar/compiler.h"
#include "models/model.h"

namespace still {

class GrammarCache {
 public:
  // kUnsupported where the program was built without grammars.
  Result<std::shared_ptr<GrammarCompiler>> compiler_of(const std::shared_ptr<const Model>& model);

 private:
  struct Entry {
    std::weak_ptr<const Model> model;  // unloaded: the entry goes
    std::shared_ptr<GrammarCompiler> compiler;
  };
  std::mutex mutex_;
  std::map<const Model*, Entry> entries_;
};

}  // namespace still
