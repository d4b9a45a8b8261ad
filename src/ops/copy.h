// What crosses from the host to where the operators run.
#pragma once

#include "ops/exec.h"
#include "tensor/tensor.h"

namespace still {

// y = x. y: [n, k] f32; x in host memory (pinned, where the operators run on a GPU), unchanged until the step is done.
void copy_from_host(Exec& exec, TensorView y, const float* x);

}  // namespace still
