// Result<T> and Status: how anything that input, files, peers or memory limits can cause is reported.
// A bug is STILL_CHECK (base/check.h) instead. Messages name the thing, the value found and the value wanted.
#pragma once

#include <fmt/core.h>

#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace still {

// What kind of failure; becomes an exit code in cli/ and an HTTP status in serve/.
enum class Code {
  kInvalidArgument,    // the caller asked for something that cannot be: a bad option, shape, request field
  kNotFound,           // no such file, model, tensor
  kCorrupt,            // bytes that contradict themselves: a truncated file, a wrong digest, a broken header
  kUnsupported,        // well-formed, but not something this program computes
  kResourceExhausted,  // memory, disk, context length, queue
  kUnavailable,        // a peer does not answer; trying again may help
  kPermissionDenied,   // the system or a peer refuses
  kCancelled,          // the user or a client stopped it
  kInternal,           // an operation of the system failed in a way nobody expects
};

struct Error {
  Code code = Code::kInternal;
  std::string message;
};

template <class T>
class [[nodiscard]] Result : public tl::expected<T, Error> {
 public:
  using tl::expected<T, Error>::expected;
};

using Status = Result<void>;

inline Status ok() {
  return Status();
}

// error(Code::kCorrupt, "{}: truncated at byte {}", path, n)
template <class... Args>
tl::unexpected<Error> error(Code code, fmt::format_string<Args...> format, Args&&... args) {
  return tl::unexpected<Error>(Error{code, fmt::format(format, std::forward<Args>(args)...)});
}

#define STILL_CONCAT_INNER(a, b) a##b
#define STILL_CONCAT(a, b) STILL_CONCAT_INNER(a, b)

// STILL_TRY(ModelConfig config, read_config(json)): declares `config`, or returns the error to the caller.
#define STILL_TRY(declaration, ...)                                               \
  auto STILL_CONCAT(still_try_, __LINE__) = (__VA_ARGS__);                        \
  if (!STILL_CONCAT(still_try_, __LINE__))                                        \
    return tl::unexpected(std::move(STILL_CONCAT(still_try_, __LINE__)).error()); \
  declaration = std::move(*STILL_CONCAT(still_try_, __LINE__))

// STILL_TRY_STATUS(write(path)): returns the error to the caller, or goes on.
#define STILL_TRY_STATUS(...)                                                          \
  do {                                                                                 \
    auto still_try_status = (__VA_ARGS__);                                             \
    if (!still_try_status) return tl::unexpected(std::move(still_try_status).error()); \
  } while (0)

}  // namespace still
