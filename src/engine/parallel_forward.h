// A forward pass of several ranks, one thread each: the engine's thread is rank 0's, the others follow the same batch.
#pragma once

#include <memory>
#include <vector>

#include "dist/cuda_group.h"
#include "engine/model_runner.h"

namespace still {

// ranks in order, each on a device and made for the group's Comms. All draw the same tokens; those of rank 0 are told.
std::unique_ptr<ForwardPass> make_parallel_forward(std::vector<std::unique_ptr<ForwardPass>> ranks,
                                                   std::unique_ptr<CudaGroup> group);

}  // namespace still
