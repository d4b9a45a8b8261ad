// See sha256.h.
#include "hub/sha256.h"

#include <fcntl.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <vector>

#include "base/check.h"
#include "hub/file_io.h"

namespace still {

namespace {
constexpr std::int64_t kReadBytes = 1 << 20;
}

struct Sha256::Context {
  EVP_MD_CTX* md = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(md); }
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  STILL_CHECK(context_->md != nullptr && EVP_DigestInit_ex(context_->md, EVP_sha256(), nullptr) == 1);
}
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;
Sha256::~Sha256() = default;

void Sha256::update(const void* data, std::int64_t size) {
  STILL_CHECK(EVP_DigestUpdate(context_->md, data, static_cast<std::size_t>(size)) == 1);
}

std::string Sha256::finish_hex() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  STILL_CHECK(EVP_DigestFinal_ex(context_->md, digest.data(), &size) == 1 && size == 32);
  std::string hex;
  for (unsigned i = 0; i < size; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

std::string sha256_hex(std::string_view bytes) {
  Sha256 sha;
  sha.update(bytes.data(), static_cast<std::int64_t>(bytes.size()));
  return sha.finish_hex();
}

Result<std::string> sha256_file(const std::filesystem::path& path, const CancelToken& cancel) {
  STILL_TRY(UniqueFd fd, open_file(path, O_RDONLY));
  Sha256 sha;
  std::vector<char> buffer(kReadBytes);
  for (std::int64_t offset = 0;;) {
    if (cancel.is_cancelled()) return error(Code::kCancelled, "stopped while checking {}", path.string());
    STILL_TRY(const std::int64_t n, read_at(fd.get(), buffer.data(), kReadBytes, offset, path));
    sha.update(buffer.data(), n);
    offset += n;
    if (n < kReadBytes) return sha.finish_hex();
  }
}

bool is_sha256_hex(std::string_view text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

PrefixHasher::PrefixHasher(int fd, std::filesystem::path path)
    : fd_(fd), path_(std::move(path)), thread_([this] { run(); }) {}

PrefixHasher::~PrefixHasher() {
  {
    std::lock_guard lock(mutex_);
    closing_ = abandoned_ = true;
  }
  changed_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void PrefixHasher::extend(std::int64_t n_bytes) {
  {
    std::lock_guard lock(mutex_);
    limit_ = std::max(limit_, n_bytes);
  }
  changed_.notify_one();
}

Result<std::string> PrefixHasher::finish_hex() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_one();
  thread_.join();
  STILL_TRY_STATUS(status_);
  return sha_.finish_hex();
}

void PrefixHasher::run() {
  std::vector<char> buffer(kReadBytes);
  std::int64_t offset = 0;
  for (;;) {
    std::int64_t limit = 0;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return closing_ || limit_ > offset; });
      if (abandoned_ || limit_ == offset) return;
      limit = limit_;
    }
    const std::int64_t want = std::min(kReadBytes, limit - offset);
    Result<std::int64_t> n = read_at(fd_, buffer.data(), want, offset, path_);
    if (!n || *n < want) {
      status_ = n ? error(Code::kCorrupt, "{}: shorter than what was written", path_.string())
                  : Status(tl::unexpected(n.error()));
      return;
    }
    sha_.update(buffer.data(), want);
    offset += want;
  }
}

}  // namespace still
