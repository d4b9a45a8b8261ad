// A file mapped read-only. Move-only; the mapping lives as long as the object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

#include "base/result.h"

namespace still {

class MappedFile {
 public:
  static Result<MappedFile> open(const std::filesystem::path& path);
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, static_cast<std::size_t>(size_)}; }
  const std::byte* data() const { return data_; }
  std::int64_t size() const { return size_; }
  const std::filesystem::path& path() const { return path_; }

  // Asks the system to read [offset, offset + size) ahead.
  void will_need(std::int64_t offset, std::int64_t size) const;
  // Takes the pages of [offset, offset + size) out of this process; they stay in the page cache and come back on
  // access.
  void release(std::int64_t offset, std::int64_t size) const;

 private:
  const std::byte* data_ = nullptr;
  std::int64_t size_ = 0;
  std::filesystem::path path_;
};

}  // namespace still
