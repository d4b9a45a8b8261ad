// Random numbers that are the same on every machine: SplitMix64 (Steele et al. 2014) to seed, xoshiro256**
// (Blackman & Vigna 2018) to draw, and a counter form for values that must not depend on how many were drawn before.
#pragma once

#include <cstdint>

namespace still {

constexpr std::uint64_t split_mix64(std::uint64_t& state) {
  std::uint64_t z = (state += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// A value that depends on (seed, counter) alone; the sampler of step `counter` uses it.
constexpr std::uint64_t counter_random(std::uint64_t seed, std::uint64_t counter) {
  std::uint64_t state = seed ^ (counter * 0xd1342543de82ef95ull + 0x632be59bd9b4e019ull);
  split_mix64(state);
  return split_mix64(state);
}

// [0, 1) with 53 random bits.
constexpr double to_unit(std::uint64_t bits) {
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

class Rng {
 public:
  explicit constexpr Rng(std::uint64_t seed) {
    for (auto& word : state_) word = split_mix64(seed);
  }
  constexpr std::uint64_t next() {
    const std::uint64_t result = rotate(state_[1] * 5, 7) * 9;
    const std::uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = rotate(state_[3], 45);
    return result;
  }
  constexpr double uniform() { return to_unit(next()); }
  // [0, n); the bias of the modulus is below n / 2^64.
  constexpr std::int64_t below(std::int64_t n) {
    return static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(n));
  }

 private:
  static constexpr std::uint64_t rotate(std::uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }
  std::uint64_t state_[4] = {};
};

}  // namespace still
