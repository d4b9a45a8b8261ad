#include "files/gguf_writer.h"

#include <cstring>

#include "base/check.h"
#include "files/file_error.h"

namespace still {

namespace {

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

void put_string(std::string& out, std::string_view text) {
  put(out, static_cast<std::uint64_t>(text.size()));
  out += text;
}

void put_array(std::string& out, const GgufArray& array) {
  put(out, static_cast<std::uint32_t>(array.element_type));
  put(out, static_cast<std::uint64_t>(array.size()));
  if (array.element_type == GgufType::kString) {
    for (std::int64_t i = 0; i < array.size(); ++i) put_string(out, array.strings[i]);
  } else if (array.element_type == GgufType::kArray) {
    for (const GgufArray& inner : array.nested) put_array(out, inner);
  } else {
    out.append(reinterpret_cast<const char*>(array.packed.data()), array.packed.size());
  }
}

void put_value(std::string& out, const GgufValue& value) {
  put(out, static_cast<std::uint32_t>(value.type()));
  if (const std::string* text = value.string()) {
    put_string(out, *text);
  } else if (const GgufArray* array = value.array()) {
    put_array(out, *array);
  } else {
    const std::uint64_t bits = value.bits();
    out.append(reinterpret_cast<const char*>(&bits), static_cast<std::size_t>(gguf_type_bytes(value.type())));
  }
}

std::int64_t align_up(std::int64_t n, std::int64_t alignment) {
  return (n + alignment - 1) / alignment * alignment;
}

}  // namespace

std::string serialize_gguf_header(GgufHeader& header) {
  std::string out = "GGUF";
  put(out, header.version);
  put(out, static_cast<std::uint64_t>(header.tensors().size()));
  put(out, static_cast<std::uint64_t>(header.metadata.entries().size()));
  for (const GgufEntry& entry : header.metadata.entries()) {
    put_string(out, entry.key);
    put_value(out, entry.value);
  }
  for (const GgufTensor& tensor : header.tensors()) {
    put_string(out, tensor.name);
    const int n_dims = tensor.is_scalar ? 0 : tensor.shape.rank;
    put(out, static_cast<std::uint32_t>(n_dims));
    for (int i = 0; i < n_dims; ++i) put(out, static_cast<std::uint64_t>(tensor.shape[tensor.shape.rank - 1 - i]));
    put(out, static_cast<std::uint32_t>(tensor.dtype));
    put(out, static_cast<std::uint64_t>(tensor.offset));
  }
  header.data_offset = align_up(static_cast<std::int64_t>(out.size()), header.alignment);
  out.resize(static_cast<std::size_t>(header.data_offset), '\0');
  return out;
}

Result<GgufWriter> GgufWriter::create(const std::filesystem::path& path, GgufHeader header, std::int64_t file_bytes) {
  for (const GgufTensor& tensor : header.tensors())
    if (static_cast<std::uint32_t>(tensor.dtype) >= 100)
      return file_error(Code::kUnsupported, "{}: tensor {} is {}, which GGUF cannot hold", path.string(), tensor.name,
                        dtype_name(tensor.dtype));
  const std::string head = serialize_gguf_header(header);
  if (file_bytes == 0) file_bytes = header.data_offset + align_up(header.data_bytes(), header.alignment);
  // A file of metadata alone may have been written without its padding.
  if (!header.tensors().empty() && file_bytes < header.data_offset + header.data_bytes())
    return file_error(Code::kInvalidArgument, "{}: {} bytes asked for, its tensors end at {}", path.string(),
                      file_bytes, header.data_offset + header.data_bytes());
  STILL_TRY(NewFile file, NewFile::create(path, file_bytes));
  const auto bytes = std::as_bytes(std::span(head)).first(std::min(head.size(), static_cast<std::size_t>(file_bytes)));
  STILL_TRY_STATUS(file.write_at(0, bytes));
  GgufWriter writer(std::move(file), std::move(header));
  writer.n_written_.assign(writer.header_.tensors().size(), 0);
  return writer;
}

Status GgufWriter::write(std::int64_t tensor_idx, std::int64_t begin, std::span<const std::byte> bytes) {
  STILL_CHECK(tensor_idx >= 0 && tensor_idx < static_cast<std::int64_t>(n_written_.size()));
  const GgufTensor& tensor = header_.tensors()[static_cast<std::size_t>(tensor_idx)];
  const auto n = static_cast<std::int64_t>(bytes.size());
  if (begin < 0 || begin + n > tensor.n_bytes)
    return file_error(Code::kInvalidArgument, "{}: tensor {} has {} bytes, {} were given at {}",
                      file_.target().string(), tensor.name, tensor.n_bytes, n, begin);
  STILL_TRY_STATUS(file_.write_at(header_.data_offset + tensor.offset + begin, bytes));
  n_written_[static_cast<std::size_t>(tensor_idx)] += n;
  return ok();
}

Status GgufWriter::finish() {
  for (std::size_t i = 0; i < n_written_.size(); ++i) {
    const GgufTensor& tensor = header_.tensors()[i];
    if (n_written_[i] != tensor.n_bytes)
      return file_error(Code::kInvalidArgument, "{}: tensor {} has {} bytes, {} were written", file_.target().string(),
                        tensor.name, tensor.n_bytes, n_written_[i]);
  }
  return file_.commit();
}

std::vector<GgufHeader> split_gguf_header(const GgufHeader& header, std::int64_t max_data_bytes) {
  std::vector<GgufHeader> parts;
  const auto add_part = [&] {
    GgufHeader& part = parts.emplace_back();
    part.version = header.version;
    part.alignment = header.alignment;
    if (parts.size() == 1)
      part.metadata = header.metadata;
    else if (const GgufValue* alignment = header.metadata.find("general.alignment"))
      part.metadata.set("general.alignment", *alignment);
  };
  std::int64_t n_bytes = 0;
  for (const GgufTensor& tensor : header.tensors()) {
    const std::int64_t n = align_up(dtype_bytes(tensor.dtype, tensor.shape.n_elements()), header.alignment);
    if (parts.empty() || (n_bytes + n > max_data_bytes && n_bytes > 0)) {
      add_part();
      n_bytes = 0;
    }
    n_bytes += n;
    parts.back().add_tensor(tensor);
  }
  if (parts.empty()) add_part();
  for (std::size_t i = 0; i < parts.size(); ++i) {
    GgufMetadata& metadata = parts[i].metadata;
    metadata.set("split.no", GgufValue::of_u16(static_cast<std::uint16_t>(i)));
    metadata.set("split.count", GgufValue::of_u16(static_cast<std::uint16_t>(parts.size())));
    metadata.set("split.tensors.count", GgufValue::of_i32(static_cast<std::int32_t>(header.tensors().size())));
    parts[i].lay_out();
  }
  return parts;
}

}  // namespace still
