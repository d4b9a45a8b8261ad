// Runs a fuzz target without a fuzzer: every file of the corpus folder named, then seeded mutations of them (bit flips,
// cuts, copied ranges, overwritten 32-bit words). A crash or a sanitizer's report is the failure.
//   gguf_fuzz_replay FOLDER [N_MUTATIONS [SEED]]
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/rng.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Bytes = std::vector<std::uint8_t>;

Bytes mutate(Bytes input, still::Rng& rng) {
  constexpr std::uint32_t kNasty[] = {0, 1, 2, 8, 0x7f, 0xff, 0x100, 0x7fffffff, 0x80000000, 0xffffffff};
  for (std::int64_t n = 1 + rng.below(4); n > 0 && !input.empty(); --n) {
    const auto at = static_cast<std::size_t>(rng.below(static_cast<std::int64_t>(input.size())));
    switch (rng.below(4)) {
      case 0:
        input[at] ^= static_cast<std::uint8_t>(1u << rng.below(8));
        break;
      case 1:
        if (rng.below(4) == 0) input.resize(at);
        break;
      case 2: {
        const std::uint32_t word = kNasty[rng.below(std::size(kNasty))];
        std::memcpy(&input[at], &word, std::min(sizeof word, input.size() - at));
        break;
      }
      default: {
        const auto from = static_cast<std::size_t>(rng.below(static_cast<std::int64_t>(input.size())));
        const std::size_t length = std::min({std::size_t{32}, input.size() - at, input.size() - from});
        std::memmove(&input[at], &input[from], length);
      }
    }
  }
  return input;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s FOLDER [N_MUTATIONS [SEED]]\n", argv[0]);
    return 2;
  }
  const long n_mutations = argc > 2 ? std::atol(argv[2]) : 3000;
  const std::uint64_t seed = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1;
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  if (paths.empty()) {
    std::fprintf(stderr, "%s: no corpus files\n", argv[1]);
    return 1;
  }
  std::vector<Bytes> corpus;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    LLVMFuzzerTestOneInput(corpus.back().data(), corpus.back().size());
  }
  still::Rng rng(seed);
  for (long i = 0; i < n_mutations; ++i) {
    const Bytes input = mutate(corpus[static_cast<std::size_t>(rng.below(std::ssize(corpus)))], rng);
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("%zu files, %ld mutations, seed %llu\n", corpus.size(), n_mutations,
              static_cast<unsigned long long>(seed));
  return 0;
}
