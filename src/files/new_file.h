// A file that appears whole or not at all: bytes go to a temporary name beside the target, commit() syncs and renames.
// Without commit() the temporary file is removed and whatever stood under the target's name is untouched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

#include "base/result.h"

namespace still {

// Move-only, not thread-safe.
class NewFile {
 public:
  // Reserves `size` bytes of disk at once, so that a full disk is found before work starts (kResourceExhausted).
  // Bytes that are never written read as zeros.
  static Result<NewFile> create(const std::filesystem::path& target, std::int64_t size);
  NewFile(NewFile&& other) noexcept;
  NewFile& operator=(NewFile&& other) noexcept;
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile();

  Status write_at(std::int64_t offset, std::span<const std::byte> bytes);
  // fsync, rename over the target, fsync of the folder.
  Status commit();
  const std::filesystem::path& target() const { return target_; }

 private:
  NewFile() = default;
  std::filesystem::path target_;
  std::filesystem::path temporary_;
  int fd_ = -1;
};

}  // namespace still
