// SHA-256 (FIPS 180-4) by OpenSSL's EVP: of memory, of a file, and of a file that is still being written.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "base/result.h"
#include "hub/cancel.h"

namespace still {

class Sha256 {
 public:
  Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  ~Sha256();
  void update(const void* data, std::int64_t size);
  std::string finish_hex();  // 64 lower-case hex digits; once

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string sha256_hex(std::string_view bytes);
Result<std::string> sha256_file(const std::filesystem::path& path, const CancelToken& cancel);
bool is_sha256_hex(std::string_view text);

// Hashes the growing prefix of a file in a thread of its own, behind whoever writes it, so that the digest is ready
// soon after the last byte. extend() and finish() belong to one thread. The descriptor must stay open meanwhile.
class PrefixHasher {
 public:
  PrefixHasher(int fd, std::filesystem::path path);
  ~PrefixHasher();
  void extend(std::int64_t n_bytes);  // [0, n_bytes) is written and will not change
  Result<std::string> finish_hex();   // the digest of all that was announced

 private:
  void run();

  int fd_;
  std::filesystem::path path_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::int64_t limit_ = 0;
  bool closing_ = false;
  bool abandoned_ = false;
  Status status_;
  Sha256 sha_;
  std::thread thread_;
};

}  // namespace still
