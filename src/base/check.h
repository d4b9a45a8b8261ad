// STILL_CHECK: an invariant of this program. A failure is a bug: it prints where and aborts.
// Nothing that a request, a file or a peer holds may reach one; use Result for those.
#pragma once

namespace still {
[[noreturn]] void check_failed(const char* file, int line, const char* condition);
}  // namespace still

#define STILL_CHECK(condition) \
  (static_cast<bool>(condition) ? void(0) : ::still::check_failed(__FILE__, __LINE__, #condition))

#ifdef STILL_DCHECKS
#define STILL_DCHECK(condition) STILL_CHECK(condition)
#else
#define STILL_DCHECK(condition) (true ? void(0) : void(static_cast<bool>(condition)))
#endif
