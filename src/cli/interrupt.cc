#include "cli/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

#include "base/check.h"

namespace still {
namespace {

// The one mutable global: a signal handler has no other way to its data.
std::atomic<const CancelToken*> active_token{nullptr};
struct sigaction previous_action;

void on_interrupt(int) {
  const CancelToken* token = active_token.load();
  if (!token || token->is_cancelled()) _exit(130);
  token->cancel();
}

}  // namespace

InterruptScope::InterruptScope() {
  STILL_CHECK(active_token.load() == nullptr);
  active_token.store(&token_);
  struct sigaction action{};
  action.sa_handler = on_interrupt;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, &previous_action);
}

InterruptScope::~InterruptScope() {
  sigaction(SIGINT, &previous_action, nullptr);
  active_token.store(nullptr);
}

}  // namespace still
