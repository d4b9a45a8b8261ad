// safetensors bytes: the header and, of the same bytes, the JSON index of a sharded model.
#include <cstdint>
#include <span>
#include <string_view>
#include <variant>

#include "base/check.h"
#include "files/safetensors.h"

using namespace still;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto index = SafetensorsIndex::parse({reinterpret_cast<const char*>(data), size}, "input");
  if (index)
    for (const std::string& file : index->files) STILL_CHECK(!file.empty() && file.find('/') == std::string::npos);

  const auto parsed = SafetensorsHeader::parse(std::as_bytes(std::span(data, size)), "input");
  if (!parsed) {
    STILL_CHECK(parsed.error().message.starts_with("input: "));
    return 0;
  }
  if (const auto* more = std::get_if<SafetensorsNeedMore>(&*parsed)) {
    STILL_CHECK(more->n_bytes > static_cast<std::int64_t>(size));
    return 0;
  }
  const auto& header = std::get<SafetensorsHeader>(*parsed);
  std::int64_t n_bytes = 0;
  for (const SafetensorsTensor& tensor : header.tensors) {
    STILL_CHECK(tensor.offset >= 0 && tensor.n_bytes >= 0 && tensor.offset + tensor.n_bytes <= header.data_bytes);
    n_bytes += tensor.n_bytes;
  }
  STILL_CHECK(n_bytes == header.data_bytes);
  return 0;
}
