// See file_io.h.
#include "hub/file_io.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

namespace still {
namespace fs = std::filesystem;

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = other.release();
  }
  return *this;
}

int UniqueFd::release() {
  return std::exchange(fd_, -1);
}

void UniqueFd::reset() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

tl::unexpected<Error> system_error(int error_number, std::string_view action, const fs::path& path) {
  switch (error_number) {
    case ENOSPC:
    case EDQUOT:
      return error(
          Code::kResourceExhausted,
          "{} {}: the disk is full; free some space there and repeat the command, what is loaded so far is kept",
          action, path.string());
    case EACCES:
    case EPERM:
    case EROFS:
      return error(Code::kPermissionDenied, "{} {}: {}", action, path.string(), std::strerror(error_number));
    case ENOENT:
    case ENOTDIR:
      return error(Code::kNotFound, "{} {}: {}", action, path.string(), std::strerror(error_number));
    default:
      return error(Code::kInternal, "{} {}: {}", action, path.string(), std::strerror(error_number));
  }
}

Result<UniqueFd> open_file(const fs::path& path, int flags, int mode) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  if (fd < 0) return system_error(errno, (flags & O_ACCMODE) == O_RDONLY ? "cannot open" : "cannot write", path);
  return UniqueFd(fd);
}

Status make_folders(const fs::path& path) {
  std::error_code failure;
  fs::create_directories(path, failure);
  if (failure) return system_error(failure.value(), "cannot make the folder", path);
  return ok();
}

Status write_at(int fd, const void* data, std::int64_t size, std::int64_t offset, const fs::path& path) {
  const char* bytes = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t n = ::pwrite(fd, bytes, static_cast<std::size_t>(size), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return system_error(n < 0 ? errno : ENOSPC, "cannot write", path);
    bytes += n;
    offset += n;
    size -= n;
  }
  return ok();
}

Result<std::int64_t> read_at(int fd, void* data, std::int64_t size, std::int64_t offset, const fs::path& path) {
  char* bytes = static_cast<char*>(data);
  std::int64_t n_read = 0;
  while (n_read < size) {
    const ssize_t n = ::pread(fd, bytes + n_read, static_cast<std::size_t>(size - n_read), offset + n_read);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return system_error(errno, "cannot read", path);
    if (n == 0) break;
    n_read += n;
  }
  return n_read;
}

namespace {

Status sync_folder(const fs::path& folder) {
  STILL_TRY(UniqueFd fd, open_file(folder, O_RDONLY | O_DIRECTORY));
  // Some file systems cannot sync a folder (EINVAL); the rename itself is atomic there all the same.
  if (::fsync(fd.get()) != 0 && errno != EINVAL) return system_error(errno, "cannot sync", folder);
  return ok();
}

fs::path temporary_beside(const fs::path& path) {
  static std::atomic<unsigned> counter{0};
  return path.parent_path() / fmt::format(".{}.{}.{}.tmp", path.filename().string(), ::getpid(), counter++);
}

}  // namespace

Status write_file_atomic(const fs::path& path, std::string_view bytes) {
  const fs::path temporary = temporary_beside(path);
  const auto write = [&]() -> Status {
    STILL_TRY(UniqueFd fd, open_file(temporary, O_WRONLY | O_CREAT | O_EXCL));
    STILL_TRY_STATUS(write_at(fd.get(), bytes.data(), static_cast<std::int64_t>(bytes.size()), 0, path));
    if (::fsync(fd.get()) != 0) return system_error(errno, "cannot sync", path);
    return rename_durably(temporary, path);
  };
  Status status = write();
  if (!status) ::unlink(temporary.c_str());
  return status;
}

Status rename_durably(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) return system_error(errno, "cannot rename to", to);
  return sync_folder(to.parent_path());
}

Result<std::int64_t> free_bytes(const fs::path& folder) {
  struct statvfs info{};
  if (::statvfs(folder.c_str(), &info) != 0) return system_error(errno, "cannot ask the free space of", folder);
  return static_cast<std::int64_t>(info.f_bavail) * static_cast<std::int64_t>(info.f_frsize);
}

Status check_free_bytes(const fs::path& folder, std::int64_t needed, std::string_view what) {
  STILL_TRY(const std::int64_t free, free_bytes(folder));
  constexpr std::int64_t kBookkeeping = 1 << 20;
  if (needed + kBookkeeping > free) {
    return error(
        Code::kResourceExhausted,
        "{} needs {} more on disk, but {} has {} free: free some space (still rm) or keep the models elsewhere", what,
        format_bytes(needed), folder.string(), format_bytes(free));
  }
  return ok();
}

std::int64_t allocated_bytes(const fs::path& path) {
  struct stat info{};
  if (::stat(path.c_str(), &info) != 0) return 0;
  return static_cast<std::int64_t>(info.st_blocks) * 512;
}

std::string format_bytes(std::int64_t n_bytes) {
  constexpr std::array kUnits = {"kB", "MB", "GB", "TB"};
  if (n_bytes < 1000) return fmt::format("{} B", n_bytes);
  double value = static_cast<double>(n_bytes) / 1000;
  std::size_t unit = 0;
  while (value >= 999.95 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

Result<std::optional<LockFile>> LockFile::try_acquire(const fs::path& path, Keep keep) {
  for (;;) {
    STILL_TRY(UniqueFd fd, open_file(path, O_RDWR | O_CREAT));
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK || errno == EINTR) return std::optional<LockFile>();
      return system_error(errno, "cannot lock", path);
    }
    // The holder before us may have removed the file between our open and our lock: then we hold a lock on a file
    // that nobody else will find, and take a new one.
    struct stat held{}, named{};
    if (::fstat(fd.get(), &held) == 0 && ::stat(path.c_str(), &named) == 0 && held.st_ino == named.st_ino &&
        held.st_dev == named.st_dev) {
      return std::optional<LockFile>(LockFile(std::move(fd), path, keep));
    }
  }
}

Result<LockFile> LockFile::acquire(const fs::path& path, Keep keep, const CancelToken& cancel,
                                   const std::function<void()>& on_wait) {
  for (int n_tries = 0;; ++n_tries) {
    STILL_TRY(std::optional<LockFile> lock, try_acquire(path, keep));
    if (lock) return std::move(*lock);
    if (cancel.is_cancelled()) return error(Code::kCancelled, "stopped while waiting for another process");
    if (on_wait && n_tries % 10 == 0) on_wait();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

LockFile& LockFile::operator=(LockFile&& other) noexcept {
  if (this != &other) {
    release();
    fd_ = std::move(other.fd_);
    path_ = std::move(other.path_);
    keep_ = other.keep_;
  }
  return *this;
}

LockFile::~LockFile() {
  release();
}

void LockFile::release() {
  if (fd_.get() >= 0 && keep_ == Keep::kRemove) ::unlink(path_.c_str());
  fd_.reset();
}

}  // namespace still
