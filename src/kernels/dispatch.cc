// Asks the processor and the operating system what they support, and picks the kernel table.
#include "kernels/dispatch.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

#include "kernels/cpu/cpu_kernels.h"

namespace still {

namespace {

struct CpuidLeaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};
CpuidLeaf cpuid(unsigned leaf, unsigned subleaf = 0) {
  CpuidLeaf result;
  __get_cpuid_count(leaf, subleaf, &result.eax, &result.ebx, &result.ecx, &result.edx);
  return result;
}
constexpr bool has_bits(std::uint64_t value, std::uint64_t bits) {
  return (value & bits) == bits;
}

// Which register states the system saves (XCR0); 0 without OSXSAVE.
std::uint64_t saved_states() {
  constexpr unsigned kOsxsave = 1u << 27;
  if (!has_bits(cpuid(1).ecx, kOsxsave)) return 0;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}

bool has_avx2() {
  constexpr std::uint64_t kSseAvx = 0x6;
  constexpr unsigned kFma = 1u << 12, kAvx = 1u << 28, kF16c = 1u << 29, kAvx2 = 1u << 5;
  return has_bits(saved_states(), kSseAvx) && has_bits(cpuid(1).ecx, kFma | kAvx | kF16c) &&
         has_bits(cpuid(7).ebx, kAvx2);
}
bool has_avx512() {
  constexpr std::uint64_t kSseAvxZmm = 0xe6;
  constexpr unsigned kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;
  return has_avx2() && has_bits(saved_states(), kSseAvxZmm) && has_bits(cpuid(7).ebx, kF | kDq | kBw | kVl);
}
bool has_avx512_vnni() {
  constexpr unsigned kVnni = 1u << 11;
  return has_avx512() && has_bits(cpuid(7).ecx, kVnni);
}
// Linux gives a process the 8 KiB of tile state only when asked (arch_prctl(2), ARCH_REQ_XCOMP_PERM).
bool has_amx() {
  constexpr std::uint64_t kTileConfigAndData = 0x60000;
  constexpr unsigned kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  if (!has_avx512_vnni() || !has_bits(cpuid(7).edx, kAmxTile | kAmxInt8)) return false;
  if (!has_bits(saved_states(), kTileConfigAndData)) return false;
  constexpr long kArchReqXcompPerm = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
}
bool has_amx_bf16() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAvx512Bf16 = 1u << 5;
  return has_bits(cpuid(7).edx, kAmxBf16) && has_bits(cpuid(7, 1).eax, kAvx512Bf16) && has_amx();
}

struct Level {
  const char* name;
  bool is_exact;  // the reference's bits
  bool (*is_available)();
  const CpuKernels& (*kernels)();
};
const CpuKernels& ref_kernels() {
  return kRefKernels;
}
constexpr Level kLevels[] = {
    {"ref", true, [] { return true; }, ref_kernels},
    {"avx2", true, has_avx2, avx2_kernels},
    {"avx512", true, has_avx512, avx512_kernels},
    {"avx512_vnni", true, has_avx512_vnni, avx512_vnni_kernels},
    {"amx", true, has_amx, amx_kernels},
    {"amx_bf16", false, has_amx_bf16, amx_bf16_kernels},
};

std::vector<std::string> names_of_levels(bool is_exact) {
  std::vector<std::string> names;
  for (const Level& level : kLevels)
    if (level.is_exact == is_exact && level.is_available()) names.emplace_back(level.name);
  return names;
}
}  // namespace

std::vector<std::string> available_isas() {
  return names_of_levels(true);
}
std::vector<std::string> inexact_isas() {
  return names_of_levels(false);
}

Result<const CpuKernels*> select_cpu_kernels(std::string_view isa) {
  const CpuKernels* best = nullptr;
  std::string names;
  for (const Level& level : kLevels) {
    if (!level.is_available()) continue;
    names += (names.empty() ? "" : ", ") + std::string(level.name);
    const bool is_any = level.is_exact && (isa.empty() || isa == "auto");
    if (is_any || isa == level.name) best = &level.kernels();
  }
  if (best == nullptr)
    return error(Code::kUnsupported, "STILL_ISA: \"{}\" does not run here; this machine has {}", isa, names);
  return best;
}

Result<const CpuKernels*> default_cpu_kernels() {
  const char* isa = std::getenv("STILL_ISA");
  return select_cpu_kernels(isa == nullptr ? "" : isa);
}

}  // namespace still
