#include "plan/device.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "plan/closest.h"
#include "plan/plan_data.h"

namespace still {

namespace {

constexpr double kMiB = 1 << 20;

double number_or(const JsonObject& object, std::string_view key, double fallback) {
  const Json* value = object.if_contains(key);
  if (value == nullptr || !value->is_number()) return fallback;
  return value->to_number<double>();
}
std::string text_or(const JsonObject& object, std::string_view key) {
  const Json* value = object.if_contains(key);
  return value == nullptr || !value->is_string() ? std::string() : std::string(value->get_string());
}
const JsonObject* member(const JsonObject& object, std::string_view key) {
  const Json* value = object.if_contains(key);
  return value == nullptr || !value->is_object() ? nullptr : &value->get_object();
}

void read_efficiency(const JsonObject& json, DeviceEfficiency& e) {
  e.decode = number_or(json, "decode", e.decode);
  e.kv_read = number_or(json, "kv_read", e.kv_read);
  e.prefill = number_or(json, "prefill", e.prefill);
  e.overhead_us_per_layer = number_or(json, "overhead_us_per_layer", e.overhead_us_per_layer);
  e.n = static_cast<int>(number_or(json, "n", 0));
  e.relative_error = number_or(json, "relative_error", e.n > 0 ? 0.2 : e.relative_error);
  if (std::string source = text_or(json, "source"); !source.empty()) e.source = std::move(source);
}

Result<Device> read_device(const JsonObject& json, const DeviceEfficiency& fallback, std::string_view what) {
  Device device;
  device.name = text_or(json, "name");
  if (device.name.empty()) return error(Code::kCorrupt, "{}: a device without a name", what);
  device.vendor = text_or(json, "vendor");
  device.arch = text_or(json, "arch");
  device.link = text_or(json, "link");
  device.source = text_or(json, "source");
  device.confidence = text_or(json, "confidence");
  device.note = text_or(json, "note");
  if (const Json* aliases = json.if_contains("aliases"); aliases != nullptr && aliases->is_array())
    for (const Json& alias : aliases->get_array())
      if (alias.is_string()) device.aliases.emplace_back(alias.get_string());
  const std::string kind = text_or(json, "kind");
  device.kind = kind == "cpu"     ? Device::Kind::kCpu
                : kind == "npu"   ? Device::Kind::kNpu
                : kind == "apple" ? Device::Kind::kApple
                                  : Device::Kind::kGpu;
  device.sm = static_cast<int>(number_or(json, "sm", 0));
  device.label_gb = number_or(json, "label_gb", 0);
  device.usable_bytes = static_cast<std::int64_t>(number_or(json, "usable_mib", 0) * kMiB);
  device.bandwidth = number_or(json, "bandwidth_gbs", 0) * 1e9;
  if (device.usable_bytes <= 0 || device.bandwidth <= 0)
    return error(Code::kCorrupt, "{}: device \"{}\" needs usable_mib and bandwidth_gbs above 0", what, device.name);
  if (const JsonObject* tflops = member(json, "tflops")) {
    device.f16 = number_or(*tflops, "f16", 0) * 1e12;
    device.f16_f32_accumulate = number_or(*tflops, "f16_f32_accumulate", device.f16 * 1e-12) * 1e12;
    device.bf16 = number_or(*tflops, "bf16", 0) * 1e12;
    device.int8 = number_or(*tflops, "int8", 0) * 1e12;
    device.fp8 = number_or(*tflops, "fp8", 0) * 1e12;
    device.fp4 = number_or(*tflops, "fp4", 0) * 1e12;
  }
  device.link_bandwidth = number_or(json, "link_gbs", 0) * 1e9;
  device.pcie_bandwidth = number_or(json, "pcie_gbs", 0) * 1e9;
  device.tdp_w = number_or(json, "tdp_w", 0);
  device.efficiency = fallback;
  if (device.kind == Device::Kind::kCpu) device.efficiency.overhead_us_per_layer = 20;
  if (const JsonObject* efficiency = member(json, "efficiency")) read_efficiency(*efficiency, device.efficiency);
  if (const JsonObject* price = member(json, "price")) {
    device.price = {.usd_per_hour_low = number_or(*price, "usd_per_hour_low", 0),
                    .usd_per_hour_high = number_or(*price, "usd_per_hour_high", 0),
                    .provider = text_or(*price, "provider"),
                    .date = text_or(*price, "date")};
  }
  return device;
}

}  // namespace

double DevicePrice::middle() const {
  return std::sqrt(usd_per_hour_low * usd_per_hour_high);
}

Result<std::vector<Device>> read_devices(std::string_view text, std::string_view what) {
  STILL_TRY(const Json json, parse_json(text, what));
  const Json* rows = json.is_object() ? json.get_object().if_contains("devices") : nullptr;
  if (rows == nullptr || !rows->is_array())
    return error(Code::kCorrupt, "{}: expected an object with an array \"devices\"", what);
  DeviceEfficiency fallback;
  if (const JsonObject* values = member(json.get_object(), "default_efficiency")) read_efficiency(*values, fallback);
  std::vector<Device> devices;
  for (const Json& row : rows->get_array()) {
    if (!row.is_object()) return error(Code::kCorrupt, "{}: a device that is no object", what);
    STILL_TRY(Device device, read_device(row.get_object(), fallback, what));
    devices.push_back(std::move(device));
  }
  return devices;
}

Result<std::vector<Device>> built_in_devices() {
  return read_devices(plan_data_text("devices"), "devices.json");
}

Result<Device> find_device(const std::vector<Device>& devices, std::string_view name) {
  const std::string folded = folded_name(name);
  std::vector<std::string> names;
  for (const Device& device : devices) {
    if (folded_name(device.name) == folded) return device;
    names.push_back(device.name);
    for (const std::string& alias : device.aliases) {
      if (folded_name(alias) == folded) return device;
      names.push_back(alias);
    }
  }
  return error(Code::kNotFound, "no device \"{}\" in the database{} (--devices FILE adds your own)", name,
               closest_text(name, names));
}

std::string DeviceSet::label() const {
  return count == 1 ? device.name : fmt::format("{}x {}", count, device.name);
}

Result<DeviceSet> parse_device_set(const std::vector<Device>& devices, std::string_view text) {
  DeviceSet set;
  std::string_view name = text;
  std::int64_t count = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (code == std::errc() && end != text.data() + text.size() && (*end == 'x' || *end == 'X' || *end == '*')) {
    if (count < 1 || count > 100000)
      return error(Code::kInvalidArgument, "\"{}\": {} devices, expected 1 to 100000", text, count);
    set.count = count;
    name = std::string_view(end + 1, static_cast<std::size_t>(text.data() + text.size() - end - 1));
  }
  STILL_TRY(set.device, find_device(devices, name));
  return set;
}

}  // namespace still
