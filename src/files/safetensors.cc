#include "files/safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <unordered_map>
#include <unordered_set>

#include "base/check.h"
#include "base/json.h"
#include "files/file_error.h"

namespace still {

namespace {

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's limit

// A JSON number that is a non-negative integer below 2^63.
std::optional<std::int64_t> as_size(const Json& value) {
  if (const std::int64_t* i = value.if_int64(); i != nullptr && *i >= 0) return *i;
  return std::nullopt;
}

Result<SafetensorsTensor> read_tensor(const std::string& tensor_name, const Json& value, std::string_view file) {
  const auto corrupt = [&](std::string_view what) {
    return file_error(Code::kCorrupt, "{}: tensor {}: {}", file, tensor_name, what);
  };
  const JsonObject* object = value.if_object();
  if (object == nullptr) return corrupt("its header entry is not an object");
  const Json* dtype_name_value = object->if_contains("dtype");
  const Json* shape_value = object->if_contains("shape");
  const Json* offsets_value = object->if_contains("data_offsets");
  if (dtype_name_value == nullptr || !dtype_name_value->is_string()) return corrupt("no dtype");
  if (shape_value == nullptr || !shape_value->is_array()) return corrupt("no shape");
  if (offsets_value == nullptr || !offsets_value->is_array() || offsets_value->get_array().size() != 2)
    return corrupt("no data_offsets of two numbers");

  SafetensorsTensor tensor;
  tensor.name = tensor_name;
  const std::string_view type_text = dtype_name_value->get_string();
  const std::optional<DType> dtype = dtype_from_name(type_text);
  if (!dtype || (dtype_info(*dtype).block_size > 1 && static_cast<int>(*dtype) < 100))
    return file_error(Code::kUnsupported, "{}: tensor {}: unknown type \"{}\"", file, tensor_name,
                      type_text.substr(0, 40));
  tensor.dtype = *dtype;

  const JsonArray& dims = shape_value->get_array();
  if (dims.size() > static_cast<std::size_t>(Shape::kMaxRank))
    return file_error(Code::kUnsupported, "{}: tensor {}: {} dimensions, more than {}", file, tensor_name, dims.size(),
                      Shape::kMaxRank);
  tensor.is_scalar = dims.empty();
  tensor.shape.rank = std::max<int>(1, static_cast<int>(dims.size()));
  tensor.shape.dims[0] = 1;
  std::int64_t n_elements = 1;
  for (std::size_t i = 0; i < dims.size(); ++i) {
    const std::optional<std::int64_t> size = as_size(dims[i]);
    if (!size) return corrupt("its shape holds something that is no size");
    if (*size > 0 && n_elements > (std::numeric_limits<std::int64_t>::max() >> 4) / *size)
      return corrupt("its shape has more elements than any memory");
    n_elements *= *size;
    tensor.shape.dims[i] = *size;
  }
  const std::optional<std::int64_t> begin = as_size(offsets_value->get_array()[0]);
  const std::optional<std::int64_t> end = as_size(offsets_value->get_array()[1]);
  if (!begin || !end || *end < *begin) return corrupt("its data_offsets are no byte range");
  tensor.offset = *begin;
  tensor.n_bytes = *end - *begin;
  const DTypeInfo& info = dtype_info(tensor.dtype);
  if (n_elements % info.block_size != 0 || tensor.n_bytes != dtype_bytes(tensor.dtype, n_elements))
    return file_error(Code::kCorrupt, "{}: tensor {}: shape {} of {} does not make the {} bytes of its data_offsets",
                      file, tensor_name, to_string(tensor.shape), info.name, tensor.n_bytes);
  return tensor;
}

// The data section must be covered exactly once.
Result<std::int64_t> check_ranges(const std::vector<SafetensorsTensor>& tensors, std::string_view file) {
  std::vector<const SafetensorsTensor*> by_offset;
  for (const SafetensorsTensor& tensor : tensors) by_offset.push_back(&tensor);
  std::sort(by_offset.begin(), by_offset.end(), [](const SafetensorsTensor* a, const SafetensorsTensor* b) {
    return a->offset != b->offset ? a->offset < b->offset : a->n_bytes < b->n_bytes;
  });
  std::int64_t end = 0;
  for (const SafetensorsTensor* tensor : by_offset) {
    if (tensor->offset != end)
      return file_error(Code::kCorrupt,
                        "{}: tensor {} begins at byte {} of the data, expected {}: a hole or an overlap", file,
                        tensor->name, tensor->offset, end);
    end += tensor->n_bytes;
  }
  return end;
}

}  // namespace

Result<std::variant<SafetensorsHeader, SafetensorsNeedMore>> SafetensorsHeader::parse(std::span<const std::byte> bytes,
                                                                                      std::string_view name) {
  if (bytes.size() < 8) return SafetensorsNeedMore{8};
  std::uint64_t n_header = 0;
  std::memcpy(&n_header, bytes.data(), 8);
  if (n_header < 2 || n_header > kMaxHeaderBytes)
    return file_error(Code::kCorrupt, "{}: not a safetensors file: a header of {} bytes (2 to {} are allowed)", name,
                      n_header, kMaxHeaderBytes);
  if (bytes.size() - 8 < n_header) return SafetensorsNeedMore{static_cast<std::int64_t>(8 + n_header)};
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, n_header);
  if (text.front() != '{')
    return file_error(Code::kCorrupt, "{}: not a safetensors file: its header does not begin with '{{'", name);
  STILL_TRY(const Json json, parse_json(text, name));
  SafetensorsHeader header;
  header.data_offset = static_cast<std::int64_t>(8 + n_header);
  for (const auto& [key, value] : json.as_object()) {
    if (key == "__metadata__") {
      const JsonObject* entries = value.if_object();
      if (entries == nullptr) return file_error(Code::kCorrupt, "{}: __metadata__ is not an object", name);
      for (const auto& [entry_key, entry_value] : *entries) {
        if (!entry_value.is_string())
          return file_error(Code::kCorrupt, "{}: __metadata__ {} is not a string", name, std::string_view(entry_key));
        header.metadata.emplace_back(entry_key, std::string_view(entry_value.get_string()));
      }
      continue;
    }
    STILL_TRY(SafetensorsTensor tensor, read_tensor(std::string(key), value, name));
    header.tensors.push_back(std::move(tensor));
  }
  STILL_TRY(header.data_bytes, check_ranges(header.tensors, name));
  return header;
}

Result<SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path, bool allow_missing_data) {
  SafetensorsFile result;
  STILL_TRY(result.file_, MappedFile::open(path));
  STILL_TRY(auto parsed, SafetensorsHeader::parse(result.file_.bytes(), path.string()));
  const std::int64_t n_file = result.file_.size();
  if (const auto* more = std::get_if<SafetensorsNeedMore>(&parsed))
    return file_error(Code::kCorrupt, "{}: the header is truncated: {} bytes are needed, the file has {}",
                      path.string(), more->n_bytes, n_file);
  result.header_ = std::get<SafetensorsHeader>(std::move(parsed));
  const std::int64_t n_data = n_file - result.header_.data_offset;
  if (n_data > result.header_.data_bytes)
    return file_error(Code::kCorrupt, "{}: {} bytes after the last tensor", path.string(),
                      n_data - result.header_.data_bytes);
  if (!allow_missing_data)
    for (const SafetensorsTensor& tensor : result.header_.tensors)
      if (tensor.offset + tensor.n_bytes > n_data)
        return file_error(Code::kCorrupt, "{}: truncated: tensor {} needs the file to have {} bytes, it has {}",
                          path.string(), tensor.name, result.header_.data_offset + tensor.offset + tensor.n_bytes,
                          n_file);
  return result;
}

std::span<const std::byte> SafetensorsFile::data(const SafetensorsTensor& tensor) const {
  const std::int64_t begin = header_.data_offset + tensor.offset;
  if (begin + tensor.n_bytes > file_.size()) return {};
  return file_.bytes().subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(tensor.n_bytes));
}

Result<SafetensorsIndex> SafetensorsIndex::parse(std::string_view text, std::string_view name) {
  STILL_TRY(const Json json, parse_json(text, name));
  const JsonObject* object = json.if_object();
  const Json* map_value = object != nullptr ? object->if_contains("weight_map") : nullptr;
  const JsonObject* map = map_value != nullptr ? map_value->if_object() : nullptr;
  if (map == nullptr) return file_error(Code::kCorrupt, "{}: no weight_map object", name);
  SafetensorsIndex index;
  std::unordered_map<std::string, std::size_t> positions;
  for (const auto& [tensor, file_value] : *map) {
    const std::string_view tensor_name = tensor;
    if (!file_value.is_string())
      return file_error(Code::kCorrupt, "{}: {}: its file is not a string", name, tensor_name);
    const std::string file(file_value.get_string().c_str(), file_value.get_string().size());
    // A name with a folder in it could reach outside the model.
    if (file.empty() || file == "." || file == ".." ||
        file.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos)
      return file_error(Code::kCorrupt, "{}: {}: \"{}\" is not a plain file name", name, tensor_name, file);
    const auto [place, is_new] = positions.try_emplace(file, index.files.size());
    if (is_new) index.files.push_back(file);
    index.tensors.emplace_back(tensor_name, place->second);
  }
  if (index.files.empty()) return file_error(Code::kCorrupt, "{}: weight_map names no files", name);
  return index;
}

Result<SafetensorsWriter> SafetensorsWriter::create(const std::filesystem::path& path,
                                                    std::vector<std::pair<std::string, std::string>> metadata,
                                                    std::vector<SafetensorsTensor> tensors) {
  SafetensorsHeader header;
  JsonObject json;
  if (!metadata.empty()) {
    JsonObject& entries = json["__metadata__"].emplace_object();
    for (const auto& [key, value] : metadata) entries[key] = value;
  }
  for (SafetensorsTensor& tensor : tensors) {
    const DTypeInfo& info = dtype_info(tensor.dtype);
    const std::int64_t n_elements = tensor.shape.n_elements();
    if ((info.block_size > 1 && static_cast<int>(tensor.dtype) < 100) || n_elements % info.block_size != 0)
      return file_error(Code::kUnsupported, "{}: tensor {}: safetensors cannot hold {} of shape {}", path.string(),
                        tensor.name, info.name, to_string(tensor.shape));
    if (json.contains(tensor.name) || tensor.name == "__metadata__")
      return file_error(Code::kInvalidArgument, "{}: tensor {} appears twice", path.string(), tensor.name);
    tensor.offset = header.data_bytes;
    tensor.n_bytes = dtype_bytes(tensor.dtype, n_elements);
    header.data_bytes += tensor.n_bytes;
    JsonArray dims;
    for (int axis = 0; axis < tensor.shape.rank && !tensor.is_scalar; ++axis) dims.emplace_back(tensor.shape[axis]);
    json[tensor.name] = JsonObject{{"dtype", info.name},
                                   {"shape", std::move(dims)},
                                   {"data_offsets", JsonArray{tensor.offset, header.data_bytes}}};
  }
  std::string text = to_json(json);
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data section begins at a multiple of 8
  header.metadata = std::move(metadata);
  header.tensors = std::move(tensors);
  header.data_offset = static_cast<std::int64_t>(8 + text.size());
  STILL_TRY(NewFile file, NewFile::create(path, header.data_offset + header.data_bytes));
  const std::uint64_t n_header = text.size();
  STILL_TRY_STATUS(file.write_at(0, std::as_bytes(std::span(&n_header, 1))));
  STILL_TRY_STATUS(file.write_at(8, std::as_bytes(std::span(text))));
  SafetensorsWriter writer(std::move(file), std::move(header));
  writer.n_written_.assign(writer.header_.tensors.size(), 0);
  return writer;
}

Status SafetensorsWriter::write(std::int64_t tensor_idx, std::int64_t begin, std::span<const std::byte> bytes) {
  STILL_CHECK(tensor_idx >= 0 && tensor_idx < static_cast<std::int64_t>(n_written_.size()));
  const SafetensorsTensor& tensor = header_.tensors[static_cast<std::size_t>(tensor_idx)];
  const auto n = static_cast<std::int64_t>(bytes.size());
  if (begin < 0 || begin + n > tensor.n_bytes)
    return file_error(Code::kInvalidArgument, "{}: tensor {} has {} bytes, {} were given at {}",
                      file_.target().string(), tensor.name, tensor.n_bytes, n, begin);
  STILL_TRY_STATUS(file_.write_at(header_.data_offset + tensor.offset + begin, bytes));
  n_written_[static_cast<std::size_t>(tensor_idx)] += n;
  return ok();
}

Status SafetensorsWriter::finish() {
  for (std::size_t i = 0; i < n_written_.size(); ++i)
    if (n_written_[i] != header_.tensors[i].n_bytes)
      return file_error(Code::kInvalidArgument, "{}: tensor {} has {} bytes, {} were written", file_.target().string(),
                        header_.tensors[i].name, header_.tensors[i].n_bytes, n_written_[i]);
  return file_.commit();
}

}  // namespace still
