#include "quant/registry.h"

namespace still {

// clang-format off: it does not settle on one layout of this list
#define STILL_QUANT_FORMATS(X) \
  X(kFormatF32) X(kFormatF16) X(kFormatBF16) \
  X(kFormatQ4_0) X(kFormatQ4_1) X(kFormatQ5_0) X(kFormatQ5_1) X(kFormatQ8_0) X(kFormatIQ4_NL) \
  X(kFormatQ2_K) X(kFormatQ3_K) X(kFormatQ4_K) X(kFormatQ5_K) X(kFormatQ6_K) X(kFormatIQ4_XS)
// clang-format on

#define STILL_DECLARE(name) extern const QuantFormat name;
STILL_QUANT_FORMATS(STILL_DECLARE)

#define STILL_ADDRESS(name) &name,
static constexpr const QuantFormat* kFormats[] = {STILL_QUANT_FORMATS(STILL_ADDRESS)};

std::span<const QuantFormat* const> quant_formats() {
  return kFormats;
}

const QuantFormat* find_format(DType type) {
  for (const QuantFormat* format : kFormats)
    if (format->dtype == type) return format;
  return nullptr;
}

}  // namespace still
