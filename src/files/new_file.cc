#include "files/new_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

namespace still {

namespace {
Code code_of_errno(int number) {
  switch (number) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return Code::kResourceExhausted;
    case EACCES:
    case EPERM:
    case EROFS:
      return Code::kPermissionDenied;
    case ENOENT:
    case ENOTDIR:
      return Code::kNotFound;
    default:
      return Code::kInternal;
  }
}
}  // namespace

Result<NewFile> NewFile::create(const std::filesystem::path& target, std::int64_t size) {
  NewFile file;
  file.target_ = target;
  std::string name = target.string() + ".tmpXXXXXX";
  file.fd_ = ::mkostemp(name.data(), O_CLOEXEC);
  if (file.fd_ < 0) return error(code_of_errno(errno), "{}: cannot create: {}", target.string(), std::strerror(errno));
  file.temporary_ = name;
  // mkostemp makes the file private; give it what the user's umask would.
  const mode_t mask = ::umask(0);
  ::umask(mask);
  ::fchmod(file.fd_, 0666 & ~mask);
  if (size > 0) {
    if (::fallocate(file.fd_, 0, 0, size) != 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG))
      return error(Code::kResourceExhausted, "{}: no room for {} bytes: {}", target.string(), size,
                   std::strerror(errno));
    if (::ftruncate(file.fd_, size) != 0)
      return error(code_of_errno(errno), "{}: cannot make {} bytes: {}", target.string(), size, std::strerror(errno));
  }
  return file;
}

NewFile::NewFile(NewFile&& other) noexcept
    : target_(std::move(other.target_)),
      temporary_(std::exchange(other.temporary_, {})),
      fd_(std::exchange(other.fd_, -1)) {}

NewFile& NewFile::operator=(NewFile&& other) noexcept {
  std::swap(target_, other.target_);
  std::swap(temporary_, other.temporary_);
  std::swap(fd_, other.fd_);
  return *this;
}

NewFile::~NewFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

Status NewFile::write_at(std::int64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd_, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      return error(code_of_errno(errno), "{}: cannot write at byte {}: {}", target_.string(), offset,
                   std::strerror(errno));
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    offset += n;
  }
  return ok();
}

Status NewFile::commit() {
  if (::fsync(fd_) != 0)
    return error(code_of_errno(errno), "{}: cannot sync: {}", target_.string(), std::strerror(errno));
  if (::rename(temporary_.c_str(), target_.c_str()) != 0)
    return error(code_of_errno(errno), "{}: cannot rename into place: {}", target_.string(), std::strerror(errno));
  temporary_.clear();
  ::close(std::exchange(fd_, -1));
  const std::filesystem::path folder = target_.has_parent_path() ? target_.parent_path() : ".";
  const int folder_fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder_fd >= 0) {
    ::fsync(folder_fd);
    ::close(folder_fd);
  }
  return ok();
}

}  // namespace still
