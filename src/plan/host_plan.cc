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

int count_numa_nodes() {
  int n = 0;
  std::error_code code;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/devices/system/node", code)) {
    const std::string name = entry.path().filename();
    n += name.starts_with("node") && name.size() > 4 && name[4] >= '0' && name[4] <= '9';
  }
  return std::max(1, n);
}

// The few functions of libnvidia-ml.so.1 that are needed, by their documented C signatures.
std::vector<Device> detect_gpus(const std::vector<Device>& database) {
  std::vector<Device> gpus;
  void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return gpus;
  struct NvmlMemory {
    unsigned long long total, free, used;
  };
  const auto init = reinterpret_cast<int (*)()>(dlsym(library, "nvmlInit_v2"));
  const auto count_gpus = reinterpret_cast<int (*)(unsigned*)>(dlsym(library, "nvmlDeviceGetCount_v2"));
  const auto handle_of = reinterpret_cast<int (*)(unsigned, void**)>(dlsym(library, "nvmlDeviceGetHandleByIndex_v2"));
  const auto name_of = reinterpret_cast<int (*)(void*, char*, unsigned)>(dlsym(library, "nvmlDeviceGetName"));
  const auto memory_of = reinterpret_cast<int (*)(void*, NvmlMemory*)>(dlsym(library, "nvmlDeviceGetMemoryInfo"));
  const auto shutdown = reinterpret_cast<int (*)()>(dlsym(library, "nvmlShutdown"));
  unsigned n = 0;
  if (init && count_gpus && handle_of && name_of && memory_of && shutdown && init() == 0) {
    if (count_gpus(&n) != 0) n = 0;
    for (unsigned i = 0; i < n; ++i) {
      void* handle = nullptr;
      char name[96] = {};
      NvmlMemory memory{};
      if (handle_of(i, &handle) != 0 || name_of(handle, name, sizeof name) != 0 || memory_of(handle, &memory) != 0)
        continue;
      // The row of the database whose name or alias is the longest that the driver's name holds, of about this size.
      Device found;
      std::size_t length = 0;
      const std::string driver_name = folded_name(name);
      for (const Device& row : database) {
        std::vector<std::string> names = row.aliases;
        names.push_back(row.name);
        const double share = static_cast<double>(memory.total) / static_cast<double>(row.usable_bytes);
        if (share < 0.9 || share > 1.1) continue;
        for (const std::string& candidate : names) {
          const std::string folded = folded_name(candidate);
          if (folded.size() > length && driver_name.find(folded) != std::string::npos) {
            found = row;
            length = folded.size();
          }
        }
      }
      found.name = name;
      found.usable_bytes = static_cast<std::int64_t>(memory.total);
      gpus.push_back(std::move(found));
    }
    shutdown();
  }
  dlclose(library);
  return gpus;
}

}  // namespace

Machine detect_machine(const std::vector<Device>& database) {
  return {.cpu = cpu_name(),
          .isas = available_isas(),
          .n_cores = usable_cores(),
          .n_numa_nodes = count_numa_nodes(),
          .memory_bytes = total_memory(),
          .available_bytes = available_memory(),
          .gpus = detect_gpus(database)};
}

Result<HostWeights> plan_host_weights(const ModelShape& shape, const Quantisation& q) {
  STILL_TRY(const Arch* arch, find_arch(shape.config.model_type));
  (void)arch;
  if (q.kind != Quantisation::Kind::kOwn && q.kind != Quantisation::Kind::kPlain &&
      q.kind != Quantisation::Kind::kMixture && q.kind != Quantisation::Kind::kPure)
    return error(Code::kUnsupported, "{}: the engine computes ggml types and plain floats", q.name);
  if (q.kind == Quantisation::Kind::kOwn && !shape.has_own_types)
    return error(Code::kInvalidArgument, "{} is a shape without a file: name a quantisation", shape.name);
  HostWeights weights;
  for (const PlannedTensor& t : shape.tensors) {
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
  }
  return weights;
}

Result<MemoryPlan> plan_host_memory(const ModelShape& shape, const Quantisation& q, const EngineSettings& settings) {
  STILL_TRY(const HostWeights weights, plan_host_weights(shape, q));
  return plan_memory(shape.config, weights.arena_bytes, weights.max_k, settings);
}

}  // namespace still
