// The architectures, one list: it declares them and builds the array.
#pragma once

#include "models/arch.h"

#define STILL_ARCHS(X) X(kLlama) X(kQwen2)

namespace still {
#define STILL_DECLARE_ARCH(name) extern const Arch name;
STILL_ARCHS(STILL_DECLARE_ARCH)
#undef STILL_DECLARE_ARCH
}  // namespace still
