#include "tensor/arena.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace still {

Result<Arena> Arena::create(std::int64_t bytes, std::string_view what, bool huge_pages) {
  STILL_CHECK(bytes >= 0);
  Arena arena;
  if (bytes == 0) return arena;
  constexpr std::int64_t kHugePage = 2 * 1024 * 1024;
  arena.size_ = reserved(bytes);
  void* mapped = ::mmap(nullptr, static_cast<std::size_t>(arena.size_), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) {
    return error(Code::kResourceExhausted, "{}: cannot reserve {} bytes of memory: {}", what, arena.size_,
                 std::strerror(errno));
  }
  if (huge_pages && arena.size_ >= kHugePage) ::madvise(mapped, static_cast<std::size_t>(arena.size_), MADV_HUGEPAGE);
  arena.data_ = static_cast<std::byte*>(mapped);
  return arena;
}

Arena::Arena(Arena&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      used_(std::exchange(other.used_, 0)) {}

Arena& Arena::operator=(Arena&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(used_, other.used_);
  return *this;
}

Arena::~Arena() {
  if (data_ != nullptr) ::munmap(data_, static_cast<std::size_t>(size_));
}

std::byte* Arena::allocate(std::int64_t bytes) {
  const std::int64_t size = rounded(bytes);
  STILL_CHECK(bytes >= 0 && used_ + size <= size_);
  std::byte* result = data_ + used_;
  used_ += size;
  return result;
}

}  // namespace still
