// Arena: one block of page-aligned memory, handed out front to back, freed as a whole.
// What the plan computed is reserved once at load; nothing is allocated afterwards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/result.h"

namespace still {

class Arena {
 public:
  // Reserves and commits nothing yet: pages are taken on first touch. huge_pages asks for transparent huge pages.
  // `what` names the arena in the message when memory is short.
  static Result<Arena> create(std::int64_t bytes, std::string_view what, bool huge_pages = true);
  Arena() = default;
  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&& other) noexcept;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  // `bytes` rounded up to a multiple of 64, 64-byte aligned; asking for more than is left is a bug.
  std::byte* allocate(std::int64_t bytes);
  template <class T>
  T* allocate_array(std::int64_t n) {
    return reinterpret_cast<T*>(allocate(n * static_cast<std::int64_t>(sizeof(T))));
  }
  static constexpr std::int64_t rounded(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }
  // What create(bytes) reserves: whole huge pages from one of them on.
  static constexpr std::int64_t reserved(std::int64_t bytes) {
    constexpr std::int64_t kHugePage = 2 * 1024 * 1024;
    return bytes >= kHugePage ? (bytes + kHugePage - 1) / kHugePage * kHugePage : rounded(bytes);
  }

  std::byte* data() { return data_; }
  std::int64_t size() const { return size_; }
  std::int64_t used() const { return used_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t size_ = 0, used_ = 0;
};

}  // namespace still
