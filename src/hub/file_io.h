// File operations the store and the downloads stand on: errors of the system as sentences, atomic writes, locks between
// processes, free space. POSIX only. Paths of errors are printed as given.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/text_file.h"
#include "hub/cancel.h"

namespace still {

// An open file descriptor; move-only, closed with the object.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { reset(); }

  int get() const { return fd_; }
  int release();
  void reset();

 private:
  int fd_ = -1;
};

// "<action> <path>: <reason>", with a Code from errno; a full disk says what to do.
tl::unexpected<Error> system_error(int error_number, std::string_view action, const std::filesystem::path& path);

Result<UniqueFd> open_file(const std::filesystem::path& path, int flags, int mode = 0644);
Status make_folders(const std::filesystem::path& path);
Status write_at(int fd, const void* data, std::int64_t size, std::int64_t offset, const std::filesystem::path& path);
// Reads up to `size` bytes at `offset`; fewer only at the end of the file.
Result<std::int64_t> read_at(int fd, void* data, std::int64_t size, std::int64_t offset,
                             const std::filesystem::path& path);
// Temporary file in the same folder, fsync, rename, fsync of the folder: a reader sees the old bytes or the new ones.
Status write_file_atomic(const std::filesystem::path& path, std::string_view bytes);
Status rename_durably(const std::filesystem::path& from, const std::filesystem::path& to);

// Bytes that an ordinary user may still write on the file system of `folder`.
Result<std::int64_t> free_bytes(const std::filesystem::path& folder);
// An error with both figures when `needed` bytes (plus 1 MiB for bookkeeping) do not fit.
Status check_free_bytes(const std::filesystem::path& folder, std::int64_t needed, std::string_view what);
// Bytes that the file takes on disk (a sparse file takes less than its size); 0 if there is none.
std::int64_t allocated_bytes(const std::filesystem::path& path);

// "491.4 MB": decimal units, as disks and networks are sold.
std::string format_bytes(std::int64_t n_bytes);

// A lock between processes (flock) on a file made for it. Released with the object, and by the system when the process
// dies. With kRemove the file goes away when the lock is given back.
class LockFile {
 public:
  enum class Keep { kKeep, kRemove };
  // Waits until the lock is free; `on_wait` is called about five times a second meanwhile.
  static Result<LockFile> acquire(const std::filesystem::path& path, Keep keep, const CancelToken& cancel,
                                  const std::function<void()>& on_wait = {});
  static Result<std::optional<LockFile>> try_acquire(const std::filesystem::path& path, Keep keep);

  LockFile(LockFile&& other) noexcept = default;
  LockFile& operator=(LockFile&& other) noexcept;
  ~LockFile();

 private:
  LockFile(UniqueFd fd, std::filesystem::path path, Keep keep)
      : fd_(std::move(fd)), path_(std::move(path)), keep_(keep) {}
  void release();

  UniqueFd fd_;
  std::filesystem::path path_;
  Keep keep_;
};

}  // namespace still
