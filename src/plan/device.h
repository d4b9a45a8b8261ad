// Device: what a plan knows of a GPU, an accelerator, or a CPU with its memory. Rows of data/plan/devices.json, a
// user's own file, or this machine as it was found (machine.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace still {

struct DevicePrice {
  double usd_per_hour_low = 0, usd_per_hour_high = 0;  // 0: unknown
  std::string provider, date;
  double middle() const;  // geometric mean
};

// How near to its peaks an engine comes: measured where n > 0, else the database's default with a wide interval.
struct DeviceEfficiency {
  double decode = 0.75;               // share of the bandwidth while weights are read
  double kv_read = 0.5;               // share of it while KV is read
  double prefill = 0.45;              // share of the compute peak
  double overhead_us_per_layer = 60;  // launches, synchronisation, sampling
  double relative_error = 0.35;       // half width of the interval around a prediction
  int n = 0;                          // published or own measurements behind it
  std::string source;
};

struct Device {
  enum class Kind : std::uint8_t { kGpu, kNpu, kApple, kCpu };
  std::string name, vendor, arch, link, source, confidence, note;
  std::vector<std::string> aliases;
  Kind kind = Kind::kGpu;
  int sm = 0;  // NVIDIA compute capability * 10; 0: not NVIDIA
  double label_gb = 0;
  std::int64_t usable_bytes = 0;  // by the driver
  double bandwidth = 0;           // bytes/s
  // Dense peaks, FLOP/s or op/s; 0: does not compute it.
  double f16 = 0, f16_f32_accumulate = 0, bf16 = 0, int8 = 0, fp8 = 0, fp4 = 0;
  double link_bandwidth = 0;  // bytes/s to its peers, both directions; 0: PCIe only
  double pcie_bandwidth = 0;  // bytes/s to the host, one direction
  double tdp_w = 0;
  DeviceEfficiency efficiency;
  DevicePrice price;
  bool is_host() const { return kind == Kind::kCpu; }
};

// The built-in database, or a user's in the same form. kCorrupt names the row and member.
Result<std::vector<Device>> read_devices(std::string_view text, std::string_view what);
Result<std::vector<Device>> built_in_devices();
// By name or alias; kNotFound with the closest names.
Result<Device> find_device(const std::vector<Device>& devices, std::string_view name);

// "2x3090", "8xH100", "a100-40": a count and a device.
struct DeviceSet {
  Device device;
  std::int64_t count = 1;
  std::string label() const;
};
Result<DeviceSet> parse_device_set(const std::vector<Device>& devices, std::string_view text);

}  // namespace still
