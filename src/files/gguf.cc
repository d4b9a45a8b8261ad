#include "files/gguf.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "files/file_error.h"

namespace still {

namespace {

constexpr std::uint64_t kMaxStringBytes = 1ull << 30;  // ggml's own limits
constexpr std::uint64_t kMaxArrayElements = 1ull << 30;
constexpr std::uint64_t kMaxEntries = 1ull << 24;  // of metadata, and of tensors; real files have hundreds
constexpr int kMaxArrayDepth = 4;
constexpr std::int64_t kMaxAlignment = 1ll << 20;
constexpr std::size_t kMaxNameBytes = 256;  // ggml has 64; a longer name is no danger, a megabyte of it is nonsense

// Reads forward. The first failure sticks: either an Error, or "the bytes end here, this many are needed".
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, std::string_view name) : bytes_(bytes), name_(name) {}

  bool failed() const { return failure_.has_value() || n_needed_ > 0; }
  std::int64_t n_needed() const { return n_needed_; }
  Error take_failure() { return std::move(*failure_); }
  std::size_t position() const { return position_; }
  std::size_t n_left() const { return bytes_.size() - position_; }

  template <class... Args>
  void fail(Code code, fmt::format_string<Args...> format, Args&&... args) {
    if (!failed())
      failure_ =
          Error{code, make_printable(std::string(name_) + ": " + fmt::format(format, std::forward<Args>(args)...))};
  }

  // n bytes, or null after a failure.
  const std::byte* take(std::uint64_t n) {
    if (failed()) return nullptr;
    if (n > n_left()) {
      const std::uint64_t needed = position_ + n;  // both below 2^63: callers bound n
      n_needed_ = static_cast<std::int64_t>(needed);
      return nullptr;
    }
    const std::byte* at = bytes_.data() + position_;
    position_ += n;
    return at;
  }

  template <class T>
  T number() {
    T value{};
    if (const std::byte* at = take(sizeof(T))) std::memcpy(&value, at, sizeof(T));
    return value;
  }

  std::string_view string(std::string_view what, std::uint64_t max_bytes) {
    const auto n = number<std::uint64_t>();
    if (failed()) return {};
    if (n > max_bytes) {
      fail(Code::kCorrupt, "{} at byte {} claims {} bytes, more than the limit of {}", what, position_ - 8, n,
           max_bytes);
      return {};
    }
    const std::byte* at = take(n);
    return at != nullptr ? std::string_view(reinterpret_cast<const char*>(at), n) : std::string_view();
  }

 private:
  std::span<const std::byte> bytes_;
  std::string_view name_;
  std::size_t position_ = 0;
  std::int64_t n_needed_ = 0;
  std::optional<Error> failure_;
};

bool read_type(Cursor& in, std::string_view key, GgufType& type) {
  const auto number = in.number<std::uint32_t>();
  if (in.failed()) return false;
  if (number >= kGgufTypeCount) {
    in.fail(Code::kCorrupt, "metadata {}: value type {} does not exist (there are 0 to {})", key, number,
            kGgufTypeCount - 1);
    return false;
  }
  type = static_cast<GgufType>(number);
  return true;
}

void read_array(Cursor& in, std::string_view key, int depth, GgufArray& array) {
  if (!read_type(in, key, array.element_type)) return;
  const auto n = in.number<std::uint64_t>();
  if (in.failed()) return;
  if (n > kMaxArrayElements) {
    in.fail(Code::kCorrupt, "metadata {}: the array claims {} elements, more than the limit of {}", key, n,
            kMaxArrayElements);
    return;
  }
  if (array.element_type == GgufType::kString) {
    array.strings.reserve(std::min<std::uint64_t>(n, in.n_left() / 8));
    for (std::uint64_t i = 0; i < n && !in.failed(); ++i) {
      const std::string_view text = in.string(key, kMaxStringBytes);
      if (!in.failed()) array.strings.append(text);
    }
  } else if (array.element_type == GgufType::kArray) {
    if (depth + 1 >= kMaxArrayDepth) {
      in.fail(Code::kCorrupt, "metadata {}: arrays nested deeper than {}", key, kMaxArrayDepth);
      return;
    }
    for (std::uint64_t i = 0; i < n && !in.failed(); ++i) read_array(in, key, depth + 1, array.nested.emplace_back());
  } else {
    const auto n_bytes = n * static_cast<std::uint64_t>(gguf_type_bytes(array.element_type));
    if (const std::byte* at = in.take(n_bytes)) array.packed.assign(at, at + n_bytes);
  }
}

void read_entry(Cursor& in, GgufMetadata& metadata) {
  const std::size_t key_at = in.position();
  const std::string key(in.string("a metadata key", 65535));
  if (in.failed()) return;
  if (key.empty()) return in.fail(Code::kCorrupt, "empty metadata key at byte {}", key_at);
  if (metadata.find(key) != nullptr) return in.fail(Code::kCorrupt, "metadata {} appears twice", key);
  GgufType type;
  if (!read_type(in, key, type)) return;
  if (type == GgufType::kString) {
    std::string text(in.string(key, kMaxStringBytes));
    if (!in.failed()) metadata.set(key, GgufValue::of_string(std::move(text)));
  } else if (type == GgufType::kArray) {
    GgufArray array;
    read_array(in, key, 0, array);
    if (!in.failed()) metadata.set(key, GgufValue::of_array(std::move(array)));
  } else {
    const auto width = static_cast<std::size_t>(gguf_type_bytes(type));
    std::uint64_t bits = 0;
    if (const std::byte* at = in.take(width)) std::memcpy(&bits, at, width);
    if (in.failed()) return;
    if (type == GgufType::kBool && bits > 1)
      return in.fail(Code::kCorrupt, "metadata {}: a bool of value {}", key, bits);
    metadata.set(key, GgufValue::of_bits(type, bits));
  }
}

void read_tensor(Cursor& in, GgufHeader& header) {
  GgufTensor tensor;
  tensor.name = in.string("a tensor name", kMaxNameBytes);
  if (in.failed()) return;
  const std::string& name = tensor.name;
  if (name.empty()) return in.fail(Code::kCorrupt, "a tensor without a name at byte {}", in.position());
  if (header.find_tensor(name) != nullptr) return in.fail(Code::kCorrupt, "tensor {} appears twice", name);

  const auto n_dims = in.number<std::uint32_t>();
  if (in.failed()) return;
  if (n_dims > Shape::kMaxRank)
    return in.fail(Code::kCorrupt, "tensor {}: {} dimensions, more than {}", name, n_dims, Shape::kMaxRank);
  tensor.is_scalar = n_dims == 0;
  tensor.shape.rank = std::max<int>(1, static_cast<int>(n_dims));
  tensor.shape.dims[0] = 1;
  std::uint64_t n_elements = 1;
  for (int i = 0; i < static_cast<int>(n_dims); ++i) {
    const auto size = in.number<std::uint64_t>();
    if (in.failed()) return;
    if (size > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) ||
        (size > 0 && n_elements > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) / size))
      return in.fail(Code::kCorrupt, "tensor {}: dimension {} of {} makes more elements than any memory has", name, i,
                     size);
    n_elements *= size;
    tensor.shape.dims[tensor.shape.rank - 1 - i] = static_cast<std::int64_t>(size);
  }

  const auto type_id = in.number<std::uint32_t>();
  const auto offset = in.number<std::uint64_t>();
  if (in.failed()) return;
  const std::optional<DType> dtype = dtype_from_ggml(type_id);
  if (!dtype)
    return in.fail(Code::kUnsupported, "tensor {}: type number {} is {}", name, type_id,
                   describe_ggml_type_number(type_id));
  tensor.dtype = *dtype;
  const DTypeInfo& info = dtype_info(*dtype);
  const std::int64_t row_size = tensor.shape[tensor.shape.rank - 1];
  if (row_size % info.block_size != 0)
    return in.fail(Code::kCorrupt, "tensor {}: rows of {} elements, but {} comes in blocks of {}", name, row_size,
                   info.name, info.block_size);
  const std::uint64_t n_blocks = n_elements / static_cast<std::uint64_t>(info.block_size);
  constexpr std::uint64_t kMaxBytes = 1ull << 60;
  if (n_blocks > kMaxBytes / static_cast<std::uint64_t>(info.block_bytes) || offset > kMaxBytes)
    return in.fail(Code::kCorrupt, "tensor {}: shape {} at offset {} is larger than any file", name,
                   to_string(tensor.shape), offset);
  tensor.n_bytes = static_cast<std::int64_t>(n_blocks) * info.block_bytes;
  tensor.offset = static_cast<std::int64_t>(offset);
  if (tensor.offset % header.alignment != 0)
    return in.fail(Code::kCorrupt, "tensor {}: offset {} is not a multiple of the alignment {}", name, tensor.offset,
                   header.alignment);
  header.add_tensor(std::move(tensor));
}

void check_overlap(Cursor& in, const std::vector<GgufTensor>& tensors) {
  std::vector<const GgufTensor*> by_offset;
  for (const GgufTensor& tensor : tensors)
    if (tensor.n_bytes > 0) by_offset.push_back(&tensor);
  std::sort(by_offset.begin(), by_offset.end(),
            [](const GgufTensor* a, const GgufTensor* b) { return a->offset < b->offset; });
  for (std::size_t i = 1; i < by_offset.size(); ++i) {
    const GgufTensor &a = *by_offset[i - 1], &b = *by_offset[i];
    if (b.offset < a.offset + a.n_bytes)
      return in.fail(Code::kCorrupt, "tensor {} begins at offset {}, inside tensor {} which ends at {}", b.name,
                     b.offset, a.name, a.offset + a.n_bytes);
  }
}

void read_header(Cursor& in, GgufHeader& header) {
  const auto magic = in.number<std::uint32_t>();
  if (in.failed()) return;
  if (magic != 0x46554747u) {  // "GGUF"
    if (magic == 0x47475546u)
      return in.fail(Code::kUnsupported, "a big-endian GGUF file, expected a little-endian one");
    return in.fail(Code::kCorrupt,
                   "not a GGUF file: it begins with bytes {:02x} {:02x} {:02x} {:02x}, expected 47 47 55 46 (\"GGUF\")",
                   magic & 255, magic >> 8 & 255, magic >> 16 & 255, magic >> 24);
  }
  header.version = in.number<std::uint32_t>();
  if (in.failed()) return;
  if (header.version != 0 && (header.version & 0xffffu) == 0)
    return in.fail(Code::kUnsupported, "a big-endian GGUF file, expected a little-endian one");
  if (header.version != 2 && header.version != 3)
    return in.fail(Code::kUnsupported, "GGUF version {}, expected 2 or 3", header.version);
  const auto n_tensors = in.number<std::uint64_t>();
  const auto n_entries = in.number<std::uint64_t>();
  if (in.failed()) return;
  if (n_tensors > kMaxEntries || n_entries > kMaxEntries)
    return in.fail(Code::kCorrupt, "the header claims {} tensors and {} metadata entries; the limit is {}", n_tensors,
                   n_entries, kMaxEntries);

  for (std::uint64_t i = 0; i < n_entries && !in.failed(); ++i) read_entry(in, header.metadata);
  if (in.failed()) return;
  if (const GgufValue* value = header.metadata.find("general.alignment")) {
    const std::optional<std::int64_t> alignment = value->integer();
    if (!alignment || *alignment <= 0 || *alignment > kMaxAlignment || (*alignment & (*alignment - 1)) != 0)
      return in.fail(Code::kCorrupt, "general.alignment must be a power of two up to {}, found {}", kMaxAlignment,
                     alignment ? std::to_string(*alignment) : std::string(gguf_type_name(value->type())));
    header.alignment = *alignment;
  }

  for (std::uint64_t i = 0; i < n_tensors && !in.failed(); ++i) read_tensor(in, header);
  if (in.failed()) return;
  check_overlap(in, header.tensors());
  const auto position = static_cast<std::int64_t>(in.position());
  header.data_offset = (position + header.alignment - 1) / header.alignment * header.alignment;
}

}  // namespace

std::string_view describe_ggml_type_number(std::uint32_t type_id) {
  switch (type_id) {
    case 4:
      return "Q4_2, which was removed from ggml in 2023";
    case 5:
      return "Q4_3, which was removed from ggml in 2023";
    case 31:
      return "Q4_0_4_4, an interleaved Q4_0 removed from ggml; use the Q4_0 file";
    case 32:
      return "Q4_0_4_8, an interleaved Q4_0 removed from ggml; use the Q4_0 file";
    case 33:
      return "Q4_0_8_8, an interleaved Q4_0 removed from ggml; use the Q4_0 file";
    case 36:
    case 37:
    case 38:
      return "an interleaved IQ4_NL removed from ggml; use the IQ4_NL file";
    default:
      return "not a type that ggml defines; the file may come from a fork, or be damaged";
  }
}

Result<std::variant<GgufHeader, GgufNeedMore>> GgufHeader::parse(std::span<const std::byte> bytes,
                                                                 std::string_view name) {
  Cursor in(bytes, name);
  GgufHeader header;
  read_header(in, header);
  if (in.n_needed() > 0) return GgufNeedMore{in.n_needed()};
  if (in.failed()) return tl::unexpected(in.take_failure());
  return header;
}

const GgufTensor* GgufHeader::find_tensor(std::string_view tensor_name) const {
  const auto found = index_.find(std::string(tensor_name));
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

bool GgufHeader::add_tensor(GgufTensor tensor) {
  if (!index_.try_emplace(tensor.name, tensors_.size()).second) return false;
  tensors_.push_back(std::move(tensor));
  return true;
}

void GgufHeader::clear_tensors() {
  tensors_.clear();
  index_.clear();
}

void GgufHeader::lay_out() {
  std::int64_t offset = 0;
  for (GgufTensor& tensor : tensors_) {
    tensor.offset = offset;
    tensor.n_bytes = dtype_bytes(tensor.dtype, tensor.shape.n_elements());
    offset += (tensor.n_bytes + alignment - 1) / alignment * alignment;
  }
}

std::int64_t GgufHeader::data_bytes() const {
  std::int64_t end = 0;
  for (const GgufTensor& tensor : tensors_) end = std::max(end, tensor.offset + tensor.n_bytes);
  return end;
}

Result<GgufFile> GgufFile::open(const std::filesystem::path& path, GgufOpenOptions options) {
  GgufFile result;
  STILL_TRY(result.file_, MappedFile::open(path));
  STILL_TRY(auto parsed, GgufHeader::parse(result.file_.bytes(), path.string()));
  if (const auto* more = std::get_if<GgufNeedMore>(&parsed))
    return file_error(Code::kCorrupt, "{}: the header is truncated: at least {} bytes are needed, the file has {}",
                      path.string(), more->n_bytes, result.file_.size());
  result.header_ = std::get<GgufHeader>(std::move(parsed));
  const std::int64_t n_data = result.file_.size() - result.header_.data_offset;
  for (const GgufTensor& tensor : result.header_.tensors()) {
    if (tensor.n_bytes == 0 || tensor.offset + tensor.n_bytes <= n_data) continue;
    result.is_complete_ = false;
    if (!options.allow_missing_data)
      return file_error(Code::kCorrupt, "{}: truncated: tensor {} needs the file to have {} bytes, it has {}",
                        path.string(), tensor.name, result.header_.data_offset + tensor.offset + tensor.n_bytes,
                        result.file_.size());
  }
  return result;
}

std::span<const std::byte> GgufFile::data(const GgufTensor& tensor) const {
  const std::int64_t begin = header_.data_offset + tensor.offset;
  if (begin + tensor.n_bytes > file_.size()) return {};
  return file_.bytes().subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(tensor.n_bytes));
}

std::optional<GgufPartName> parse_gguf_part_name(std::string_view file_name) {
  // STEM-ddddd-of-ddddd.gguf
  constexpr std::size_t kTail = 6 + 4 + 5 + 5;
  if (file_name.size() <= kTail || !file_name.ends_with(".gguf")) return std::nullopt;
  const std::string_view tail = file_name.substr(file_name.size() - kTail);
  const auto digits = [](std::string_view text) -> std::int64_t {
    std::int64_t value = 0;
    for (const char c : text) {
      if (c < '0' || c > '9') return -1;
      value = value * 10 + (c - '0');
    }
    return value;
  };
  GgufPartName name{std::string(file_name.substr(0, file_name.size() - kTail)), digits(tail.substr(1, 5)),
                    digits(tail.substr(10, 5))};
  if (tail[0] != '-' || tail.substr(6, 4) != "-of-" || name.part < 1 || name.part > name.n_parts) return std::nullopt;
  return name;
}

std::string gguf_part_name(const GgufPartName& name) {
  return fmt::format("{}-{:05}-of-{:05}.gguf", name.stem, name.part, name.n_parts);
}

Result<GgufSet> GgufSet::open(const std::filesystem::path& path, GgufOpenOptions options) {
  const std::optional<GgufPartName> name = parse_gguf_part_name(path.filename().string());
  std::vector<std::filesystem::path> paths;
  if (!name) {
    paths.push_back(path);
    return open_parts(paths, options);
  }
  for (std::int64_t part = 1; part <= name->n_parts; ++part)
    paths.push_back(path.parent_path() / gguf_part_name({name->stem, part, name->n_parts}));
  return open_parts(paths, options);
}

Result<GgufSet> GgufSet::open_parts(std::span<const std::filesystem::path> paths, GgufOpenOptions options) {
  GgufSet set;
  const auto n_parts = static_cast<std::int64_t>(paths.size());
  if (n_parts == 0) return file_error(Code::kInvalidArgument, "no GGUF file named");
  std::int64_t n_tensors = 0;
  std::optional<std::int64_t> n_tensors_wanted;
  std::unordered_map<std::string, std::size_t> owner;
  for (std::size_t i = 0; i < paths.size(); ++i) {
    auto part = GgufFile::open(paths[i], options);
    if (!part && part.error().code == Code::kNotFound && n_parts > 1) {
      if (options.allow_missing_data && i > 0) {
        ++set.n_parts_missing_;
        continue;
      }
      return file_error(Code::kNotFound, "{}: part {} of {} is missing", paths[i].string(), i + 1, n_parts);
    }
    if (!part) return tl::unexpected(std::move(part).error());
    const GgufHeader& header = part->header();
    const std::int64_t count = header.metadata.integer("split.count").value_or(n_parts == 1 ? 1 : 0);
    const std::int64_t number = header.metadata.integer("split.no").value_or(n_parts == 1 ? 0 : -1);
    // A split of one part (count 0 or 1) is an ordinary file.
    if (n_parts == 1 && count > 1)
      return file_error(Code::kInvalidArgument,
                        "{}: this is part {} of {}; name the parts NAME-00001-of-{:05}.gguf and so on, in one folder",
                        paths[i].string(), number + 1, count, count);
    if (n_parts > 1 && (count != n_parts || number != static_cast<std::int64_t>(i)))
      return file_error(Code::kCorrupt, "{}: its name says part {} of {}, its metadata split.no {} of split.count {}",
                        paths[i].string(), i + 1, n_parts, number, count);
    if (n_parts > 1 && !n_tensors_wanted) n_tensors_wanted = header.metadata.integer("split.tensors.count");
    n_tensors += static_cast<std::int64_t>(header.tensors().size());
    for (const GgufTensor& tensor : header.tensors()) {
      const auto [place, is_new] = owner.try_emplace(tensor.name, i);
      if (!is_new)
        return file_error(Code::kCorrupt, "{}: tensor {} is also in {}", paths[i].string(), tensor.name,
                          paths[place->second].string());
    }
    set.parts_.push_back(std::move(*part));
  }
  if (n_tensors_wanted && set.n_parts_missing_ == 0 && *n_tensors_wanted != n_tensors)
    return file_error(Code::kCorrupt, "{}: split.tensors.count is {}, but the {} parts hold {} tensors",
                      paths[0].string(), *n_tensors_wanted, n_parts, n_tensors);
  return set;
}

}  // namespace still
