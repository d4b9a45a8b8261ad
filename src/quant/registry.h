// The formats that this program computes.
#pragma once

#include <span>

#include "quant/format.h"

namespace still {

std::span<const QuantFormat* const> quant_formats();

// Null: a type that is known by name only (it is refused at load).
const QuantFormat* find_format(DType type);

}  // namespace still
