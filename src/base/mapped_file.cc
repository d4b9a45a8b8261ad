#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace still {

Result<MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const Code code = errno == ENOENT ? Code::kNotFound : errno == EACCES ? Code::kPermissionDenied : Code::kInternal;
    return error(code, "{}: cannot open: {}", path.string(), std::strerror(errno));
  }
  struct stat info{};
  if (::fstat(fd, &info) != 0) {
    const int saved = errno;
    ::close(fd);
    return error(Code::kInternal, "{}: cannot stat: {}", path.string(), std::strerror(saved));
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(fd);
    return error(Code::kInvalidArgument, "{}: not a regular file", path.string());
  }
  MappedFile file;
  file.path_ = path;
  file.size_ = info.st_size;
  if (file.size_ > 0) {
    void* mapped = ::mmap(nullptr, static_cast<std::size_t>(file.size_), PROT_READ, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) {
      const int saved = errno;
      ::close(fd);
      return error(Code::kResourceExhausted, "{}: cannot map {} bytes: {}", path.string(), file.size_,
                   std::strerror(saved));
    }
    file.data_ = static_cast<const std::byte*>(mapped);
  }
  ::close(fd);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), static_cast<std::size_t>(size_));
}

namespace {
// The whole pages inside [offset, offset + size), as madvise wants them.
bool page_range(std::int64_t offset, std::int64_t size, std::int64_t file_size, std::int64_t& begin,
                std::int64_t& end) {
  const std::int64_t page = ::sysconf(_SC_PAGESIZE);
  begin = (offset + page - 1) / page * page;
  end = offset + size >= file_size ? file_size : (offset + size) / page * page;
  return begin < end;
}
}  // namespace

void MappedFile::will_need(std::int64_t offset, std::int64_t size) const {
  std::int64_t begin = 0, end = 0;
  if (!page_range(offset, size, size_, begin, end)) return;
  ::madvise(const_cast<std::byte*>(data_ + begin), static_cast<std::size_t>(end - begin), MADV_WILLNEED);
}

void MappedFile::release(std::int64_t offset, std::int64_t size) const {
  std::int64_t begin = 0, end = 0;
  if (!page_range(offset, size, size_, begin, end)) return;
  ::madvise(const_cast<std::byte*>(data_ + begin), static_cast<std::size_t>(end - begin), MADV_DONTNEED);
}

}  // namespace still
