#include "files/gguf_value.h"

#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"

namespace still {

std::string_view gguf_type_name(GgufType type) {
  constexpr std::string_view kNames[kGgufTypeCount] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                       "bool", "string", "array", "u64", "i64", "f64"};
  const auto number = static_cast<std::uint32_t>(type);
  return number < kGgufTypeCount ? kNames[number] : "unknown";
}

std::int64_t gguf_type_bytes(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      break;
  }
  return 0;
}

double shortest_double(float value) {
  if (!std::isfinite(value)) return value;
  char text[32];
  const auto written = std::to_chars(text, text + sizeof text, value);
  double result = value;
  std::from_chars(text, written.ptr, result);
  return result;
}

namespace {
std::optional<std::int64_t> integer_of_bits(GgufType type, std::uint64_t bits) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kU16:
    case GgufType::kU32:
      return static_cast<std::int64_t>(bits);
    case GgufType::kI8:
      return static_cast<std::int8_t>(bits);
    case GgufType::kI16:
      return static_cast<std::int16_t>(bits);
    case GgufType::kI32:
      return static_cast<std::int32_t>(bits);
    case GgufType::kI64:
      return static_cast<std::int64_t>(bits);
    case GgufType::kU64:
      if (bits > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) return std::nullopt;
      return static_cast<std::int64_t>(bits);
    default:
      return std::nullopt;
  }
}

std::optional<double> number_of_bits(GgufType type, std::uint64_t bits) {
  if (type == GgufType::kF32) return shortest_double(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  if (type == GgufType::kF64) return std::bit_cast<double>(bits);
  if (type == GgufType::kU64) return static_cast<double>(bits);
  if (const auto value = integer_of_bits(type, bits)) return static_cast<double>(*value);
  return std::nullopt;
}

std::uint64_t element_bits(const GgufArray& array, std::int64_t i) {
  const auto width = static_cast<std::size_t>(gguf_type_bytes(array.element_type));
  std::uint64_t bits = 0;
  std::memcpy(&bits, array.packed.data() + static_cast<std::size_t>(i) * width, width);
  return bits;
}

template <class T>
GgufArray pack(GgufType type, const std::vector<T>& values) {
  GgufArray array;
  array.element_type = type;
  array.packed.resize(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(array.packed.data(), values.data(), array.packed.size());
  return array;
}
}  // namespace

static_assert(std::endian::native == std::endian::little, "GGUF files are little-endian, and so are our numbers");

std::int64_t GgufArray::size() const {
  if (element_type == GgufType::kString) return strings.size();
  if (element_type == GgufType::kArray) return static_cast<std::int64_t>(nested.size());
  return static_cast<std::int64_t>(packed.size()) / gguf_type_bytes(element_type);
}

std::optional<std::int64_t> GgufArray::integer(std::int64_t i) const {
  if (gguf_type_bytes(element_type) == 0 || i < 0 || i >= size()) return std::nullopt;
  return integer_of_bits(element_type, element_bits(*this, i));
}

std::optional<double> GgufArray::number(std::int64_t i) const {
  if (gguf_type_bytes(element_type) == 0 || i < 0 || i >= size()) return std::nullopt;
  return number_of_bits(element_type, element_bits(*this, i));
}

GgufArray GgufArray::of_strings(const std::vector<std::string>& values) {
  GgufArray array;
  array.element_type = GgufType::kString;
  for (const std::string& value : values) array.strings.append(value);
  return array;
}
GgufArray GgufArray::of_i32(const std::vector<std::int32_t>& values) {
  return pack(GgufType::kI32, values);
}
GgufArray GgufArray::of_f32(const std::vector<float>& values) {
  return pack(GgufType::kF32, values);
}

GgufValue GgufValue::of_f32(float value) {
  return GgufValue(GgufType::kF32, std::bit_cast<std::uint32_t>(value));
}

GgufValue GgufValue::of_string(std::string value) {
  GgufValue result(GgufType::kString, 0);
  result.text_ = std::move(value);
  return result;
}

GgufValue GgufValue::of_array(GgufArray value) {
  GgufValue result(GgufType::kArray, 0);
  result.array_ = std::make_shared<const GgufArray>(std::move(value));
  return result;
}

std::optional<std::int64_t> GgufValue::integer() const {
  return integer_of_bits(type_, bits_);
}
std::optional<double> GgufValue::number() const {
  return number_of_bits(type_, bits_);
}

std::optional<bool> GgufValue::boolean() const {
  if (type_ != GgufType::kBool) return std::nullopt;
  return bits_ != 0;
}

const GgufValue* GgufMetadata::find(std::string_view key) const {
  const auto found = index_.find(std::string(key));
  return found == index_.end() ? nullptr : &entries_[found->second].value;
}

void GgufMetadata::set(std::string key, GgufValue value) {
  const auto [place, is_new] = index_.try_emplace(key, entries_.size());
  if (is_new)
    entries_.push_back({std::move(key), std::move(value)});
  else
    entries_[place->second].value = std::move(value);
}

bool GgufMetadata::erase(std::string_view key) {
  const auto found = index_.find(std::string(key));
  if (found == index_.end()) return false;
  const std::size_t at = found->second;
  index_.erase(found);
  entries_.erase(entries_.begin() + static_cast<std::ptrdiff_t>(at));
  for (auto& [name, position] : index_)
    if (position > at) --position;
  return true;
}

std::optional<std::int64_t> GgufMetadata::integer(std::string_view key) const {
  const GgufValue* value = find(key);
  return value != nullptr ? value->integer() : std::nullopt;
}
std::optional<double> GgufMetadata::number(std::string_view key) const {
  const GgufValue* value = find(key);
  return value != nullptr ? value->number() : std::nullopt;
}
std::optional<bool> GgufMetadata::boolean(std::string_view key) const {
  const GgufValue* value = find(key);
  return value != nullptr ? value->boolean() : std::nullopt;
}
std::optional<std::string_view> GgufMetadata::string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr || value->string() == nullptr) return std::nullopt;
  return std::string_view(*value->string());
}
const GgufArray* GgufMetadata::array(std::string_view key) const {
  const GgufValue* value = find(key);
  return value != nullptr ? value->array() : nullptr;
}

}  // namespace still
