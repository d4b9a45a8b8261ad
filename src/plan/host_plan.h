// This machine: what it is, and what this program's own engine takes on it for a model that need not be here. The bytes
// are those of memory.h, exact: the weights are planned with the sizes that the loader packs to.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/device.h"
#include "plan/memory.h"
#include "plan/quantisation.h"

namespace still {

struct NumaNode {
  int id = 0;
  std::string cpus;  // "0-15,32-47", as the system writes it
  std::int64_t memory_bytes = 0;
};
// A GPU as the driver describes it (NVML), with the figures of the database row that it is.
struct DetectedGpu {
  Device device;
  std::string row;  // of the database; empty: none is near, and speeds are unknown
  std::int64_t free_bytes = 0;
  int n_nvlinks = 0;               // active
  std::vector<std::string> links;  // to each GPU: "NVLink", "same PCIe switch", "same CPU", "other CPU", "itself"
};
struct Machine {
  std::string cpu;
  std::vector<std::string> isas;  // of our kernels, lowest first
  int n_cores = 0;
  std::int64_t memory_bytes = 0, available_bytes = 0;
  std::vector<NumaNode> nodes;    // at least one
  std::vector<DetectedGpu> gpus;  // empty without a driver
};
// nvml: the driver's library, opened at run time.
Machine detect_machine(const std::vector<Device>& database, const char* nvml = "libnvidia-ml.so.1");

struct HostWeights {
  std::int64_t arena_bytes = 0;   // packed matrices and f32 vectors: what WeightLayout::arena_bytes will be
  std::int64_t mapped_bytes = 0;  // embedding rows, read in the file
  std::int64_t max_k = 0;
  bool screens_head = false;  // as Model::screens_head() will say
};
// kUnsupported where the engine does not run this architecture or a type of the mixture.
Result<HostWeights> plan_host_weights(const ModelShape& shape, const Quantisation& quantisation);
Result<MemoryPlan> plan_host_memory(const ModelShape& shape, const Quantisation& quantisation,
                                    const EngineSettings& settings);

}  // namespace still
