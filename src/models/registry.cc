#include "models/registry.h"

namespace still {

std::span<const Arch* const> architectures() {
#define STILL_ARCH_ADDRESS(name) &name,
  static constexpr const Arch* kAll[] = {STILL_ARCHS(STILL_ARCH_ADDRESS)};
#undef STILL_ARCH_ADDRESS
  return kAll;
}

Result<const Arch*> find_arch(std::string_view model_type) {
  std::string known;
  for (const Arch* arch : architectures()) {
    if (arch->model_type == model_type) return arch;
    known += (known.empty() ? "" : ", ") + std::string(arch->model_type);
  }
  return error(Code::kUnsupported, "architecture \"{}\" is not supported, expected one of {}", model_type, known);
}

}  // namespace still
