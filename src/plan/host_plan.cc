#include "plan/host_plan.h"

#include <dlfcn.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "base/thread_pool.h"
#include "kernels/dispatch.h"
#include "kernels/packing.h"
#include "models/registry.h"
#include "plan/closest.h"

namespace still {

namespace {

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (!line.starts_with("model name")) continue;
    const std::size_t colon = line.find(": ");
    return colon == std::string::npos ? std::string() : line.substr(colon + 2);
  }
  return "unknown CPU";
}

std::int64_t total_memory() {
  std::ifstream file("/proc/meminfo");
  std::string name;
  std::int64_t kib = 0;
  file >> name >> kib;
  return name == "MemTotal:" ? kib * 1024 : 0;
}

std::string first_line(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::vector<NumaNode> numa_nodes() {
  std::vector<NumaNode> nodes;
  std::error_code code;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/devices/system/node", code)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("node") || name.size() < 5 || name[4] < '0' || name[4] > '9') continue;
    NumaNode node{.id = std::atoi(name.c_str() + 4), .cpus = first_line(entry.path() / "cpulist")};
    std::ifstream memory(entry.path() / "meminfo");  // "Node 0 MemTotal: 123 kB"
    std::string word;
    while (memory >> word)
      if (std::int64_t kib = 0; word == "MemTotal:" && memory >> kib) node.memory_bytes = kib * 1024;
    nodes.push_back(std::move(node));
  }
  if (nodes.empty())
    nodes.push_back({.cpus = first_line("/sys/devices/system/cpu/online"), .memory_bytes = total_memory()});
  std::sort(nodes.begin(), nodes.end(), [](const NumaNode& a, const NumaNode& b) { return a.id < b.id; });
  return nodes;
}

// The row of the database whose name or alias is the longest that the driver's name holds, of about this size.
const Device* row_of(const std::vector<Device>& database, std::string_view driver_name, std::int64_t bytes) {
  const Device* found = nullptr;
  std::size_t length = 0;
  const std::string wanted = folded_name(driver_name);
  for (const Device& row : database) {
    const double share = static_cast<double>(bytes) / static_cast<double>(row.usable_bytes);
    if (share < 0.9 || share > 1.1) continue;
    std::vector<std::string> names = row.aliases;
    names.push_back(row.name);
    for (const std::string& name : names) {
      const std::string folded = folded_name(name);
      if (folded.size() <= length || wanted.find(folded) == std::string::npos) continue;
      found = &row;
      length = folded.size();
    }
  }
  return found;
}

// The few functions of NVML that are needed, by the C signatures of its documentation. Optional ones may be null.
struct Nvml {
  struct Memory {
    unsigned long long total, free, used;
  };
  void* library = nullptr;
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  int (*count)(unsigned*) = nullptr;
  int (*handle)(unsigned, void**) = nullptr;
  int (*name)(void*, char*, unsigned) = nullptr;
  int (*memory)(void*, Memory*) = nullptr;
  int (*capability)(void*, int*, int*) = nullptr;           // optional
  int (*ancestor)(void*, void*, int*) = nullptr;            // optional
  int (*link_state)(void*, unsigned, unsigned*) = nullptr;  // optional

  explicit Nvml(const char* path) : library(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
    if (library == nullptr) return;
    find(init, "nvmlInit_v2");
    find(shutdown, "nvmlShutdown");
    find(count, "nvmlDeviceGetCount_v2");
    find(handle, "nvmlDeviceGetHandleByIndex_v2");
    find(name, "nvmlDeviceGetName");
    find(memory, "nvmlDeviceGetMemoryInfo");
    find(capability, "nvmlDeviceGetCudaComputeCapability");
    find(ancestor, "nvmlDeviceGetTopologyCommonAncestor");
    find(link_state, "nvmlDeviceGetNvLinkState");
  }
  ~Nvml() {
    if (library != nullptr) dlclose(library);
  }
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;
  bool is_complete() const { return init && shutdown && count && handle && name && memory; }

 private:
  template <class F>
  void find(F& function, const char* symbol) {
    function = reinterpret_cast<F>(dlsym(library, symbol));
  }
};

std::string link_name(int level, bool has_nvlink) {
  if (has_nvlink) return "NVLink";
  if (level <= 20) return "same PCIe switch";  // NVML_TOPOLOGY_INTERNAL, SINGLE, MULTIPLE
  if (level <= 40) return "same CPU";          // HOSTBRIDGE, NODE
  return "other CPU";                          // SYSTEM
}

std::vector<DetectedGpu> detect_gpus(const std::vector<Device>& database, const char* path) {
  constexpr unsigned kMostGpus = 64, kMostLinks = 18;
  std::vector<DetectedGpu> gpus;
  const Nvml nvml(path);
  if (nvml.library == nullptr || !nvml.is_complete() || nvml.init() != 0) return gpus;
  unsigned n = 0;
  if (nvml.count(&n) != 0) n = 0;
  std::vector<void*> handles;
  for (unsigned i = 0; i < std::min(n, kMostGpus); ++i) {
    void* handle = nullptr;
    char name[96] = {};
    Nvml::Memory memory{};
    if (nvml.handle(i, &handle) != 0 || nvml.name(handle, name, sizeof name - 1) != 0 ||
        nvml.memory(handle, &memory) != 0)
      continue;
    DetectedGpu gpu;
    const auto bytes = static_cast<std::int64_t>(memory.total);
    if (const Device* row = row_of(database, name, bytes)) {
      gpu.device = *row;
      gpu.row = row->name;
    }
    gpu.device.name = name;
    gpu.device.usable_bytes = bytes;
    gpu.free_bytes = static_cast<std::int64_t>(memory.free);
    if (int major = 0, minor = 0; nvml.capability != nullptr && nvml.capability(handle, &major, &minor) == 0)
      gpu.device.sm = 10 * major + minor;
    for (unsigned link = 0; nvml.link_state != nullptr && link < kMostLinks; ++link)
      if (unsigned is_active = 0; nvml.link_state(handle, link, &is_active) == 0) gpu.n_nvlinks += is_active != 0;
    gpus.push_back(std::move(gpu));
    handles.push_back(handle);
  }
  for (std::size_t i = 0; i < gpus.size(); ++i) {
    for (std::size_t j = 0; j < gpus.size(); ++j) {
      int level = 50;
      if (nvml.ancestor == nullptr || i == j || nvml.ancestor(handles[i], handles[j], &level) != 0) level = 50;
      const bool has_nvlink = gpus[i].n_nvlinks > 0 && gpus[j].n_nvlinks > 0;
      gpus[i].links.push_back(i == j ? "itself" : link_name(level, has_nvlink));
    }
  }
  nvml.shutdown();
  return gpus;
}

}  // namespace

Machine detect_machine(const std::vector<Device>& database, const char* nvml) {
  return {.cpu = cpu_name(),
          .isas = available_isas(),
          .n_cores = usable_cores(),
          .memory_bytes = total_memory(),
          .available_bytes = available_memory(),
          .nodes = numa_nodes(),
          .gpus = detect_gpus(database, nvml)};
}

Result<HostWeights> plan_host_weights(const ModelShape& shape, const Quantisation& q) {
  STILL_TRY(const Arch* arch, find_arch(shape.config.model_type));
  (void)arch;
  if (shape.is_moe()) return error(Code::kUnsupported, "{}: the engine computes no experts yet", shape.name);
  if (q.kind != Quantisation::Kind::kOwn && q.kind != Quantisation::Kind::kPlain &&
      q.kind != Quantisation::Kind::kMixture && q.kind != Quantisation::Kind::kPure)
    return error(Code::kUnsupported, "{}: the engine computes ggml types and plain floats", q.name);
  if (q.kind == Quantisation::Kind::kOwn && !shape.has_own_types)
    return error(Code::kInvalidArgument, "{} is a shape without a file: name a quantisation", shape.name);
  HostWeights weights;
  for (const PlannedTensor& t : planned_tensors(q, shape)) {
    if (t.part == TensorPart::kOther || t.group == WeightGroup::kMtp) continue;
    if (t.is_vector) {
      weights.arena_bytes += Arena::rounded(t.n_params() * static_cast<std::int64_t>(sizeof(float)));
      continue;
    }
    const bool is_table = t.part == TensorPart::kEmbedding;
    if (is_table) weights.mapped_bytes += planned_bytes(q, shape, t);
    if (is_table && !shape.config.tied_embeddings) continue;  // tied: packed once more as the head
    const DType type = planned_type(q, shape, t);
    const auto format = packed_format(type);
    if (!format) return error(Code::kUnsupported, "{}: the engine does not compute {} yet", q.name, dtype_name(type));
    weights.arena_bytes += Arena::rounded(packed_bytes(*format, t.rows, t.cols));
    weights.max_k = std::max(weights.max_k, t.cols);
    if (is_table || t.part == TensorPart::kOutput) weights.screens_head = ScreenedHead::pays(*format, t.rows, t.cols);
  }
  return weights;
}

Result<MemoryPlan> plan_host_memory(const ModelShape& shape, const Quantisation& q, const EngineSettings& settings) {
  STILL_TRY(const HostWeights weights, plan_host_weights(shape, q));
  EngineSettings wanted = settings;
  wanted.screens_head = weights.screens_head;
  return plan_memory(shape.config, weights.arena_bytes, weights.max_k, wanted);
}

}  // namespace still
