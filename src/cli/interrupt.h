// Ctrl-C, while something runs that can be stopped: the first cancels it, the second ends the program.
#pragma once

#include "hub/cancel.h"

namespace still {

// Signals know only globals, so one scope at a time. Outside a scope Ctrl-C ends the program as usual.
class InterruptScope {
 public:
  InterruptScope();
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

  const CancelToken& token() const { return token_; }
  bool is_interrupted() const { return token_.is_cancelled(); }

 private:
  CancelToken token_;
};

}  // namespace still
