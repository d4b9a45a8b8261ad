// GGUF bytes: whatever parses must write back to what it was, and open as a checkpoint whose every view lies in the
// file.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <variant>

#include "base/check.h"
#include "files/checkpoint.h"
#include "files/gguf_writer.h"

using namespace still;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  auto parsed = GgufHeader::parse(bytes, "input");
  if (!parsed) {
    STILL_CHECK(parsed.error().message.starts_with("input: "));
    return 0;
  }
  if (const auto* more = std::get_if<GgufNeedMore>(&*parsed)) {
    STILL_CHECK(more->n_bytes > static_cast<std::int64_t>(size));
    return 0;
  }
  GgufHeader& header = std::get<GgufHeader>(*parsed);
  const std::int64_t data_offset = header.data_offset;
  const std::string written = serialize_gguf_header(header);
  STILL_CHECK(header.data_offset == data_offset);
  // Equal but for the padding, which may be anything in the input, or absent.
  const std::size_t n_compare = std::min(size, written.find_last_not_of('\0') + 1);
  STILL_CHECK(std::memcmp(written.data(), data, n_compare) == 0);

  static const int fd = ::memfd_create("gguf", MFD_CLOEXEC);
  STILL_CHECK(fd >= 0 && ::ftruncate(fd, 0) == 0);
  STILL_CHECK(::pwrite(fd, data, size, 0) == static_cast<ssize_t>(size));
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  for (const bool allow_missing_data : {false, true}) {
    const auto checkpoint = Checkpoint::open(path, {allow_missing_data});
    if (!checkpoint) continue;
    unsigned sum = 0;
    for (const CheckpointTensor& tensor : checkpoint->tensors()) {
      STILL_CHECK(allow_missing_data || static_cast<std::int64_t>(tensor.data.size()) == tensor.n_bytes);
      if (!tensor.data.empty())
        sum += static_cast<unsigned>(tensor.data.front()) + static_cast<unsigned>(tensor.data.back());
      if (tensor.permuted_rows())
        STILL_CHECK(tensor.source_row(tensor.shape[0] - 1) < tensor.shape[0] || tensor.shape[0] == 0);
    }
    (void)sum;
    (void)checkpoint->tokenizer_source();
  }
  return 0;
}
