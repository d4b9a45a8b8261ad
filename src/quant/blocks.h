// The blocks of ggml's weight formats, as they lie in a file (ggml-common.h of ggml 0.25), and how their packed
// sub-block scales unpack. f16 fields are kept as bits; a block is copied out with load_block, since a file's rows need
// not be aligned.
#pragma once

#include <cstdint>
#include <cstring>

namespace still {

struct BlockQ4_0 {
  std::uint16_t d;
  std::uint8_t qs[16];
};  // (q - 8) d
struct BlockQ4_1 {
  std::uint16_t d, m;
  std::uint8_t qs[16];
};  // q d + m
struct BlockQ5_0 {
  std::uint16_t d;
  std::uint8_t qh[4];
  std::uint8_t qs[16];
};  // (q - 16) d
struct BlockQ5_1 {
  std::uint16_t d, m;
  std::uint8_t qh[4];
  std::uint8_t qs[16];
};  // q d + m
struct BlockQ8_0 {
  std::uint16_t d;
  std::int8_t qs[32];
};  // q d
struct BlockIQ4_NL {
  std::uint16_t d;
  std::uint8_t qs[16];
};  // kIq4Values[q] d

// Super-blocks of 256 weights; sub-blocks of 16 (Q2_K, Q3_K, Q6_K) or 32 weights.
struct BlockQ2_K {
  std::uint8_t scales[16];
  std::uint8_t qs[64];
  std::uint16_t d, dmin;
};
struct BlockQ3_K {
  std::uint8_t hmask[32];
  std::uint8_t qs[64];
  std::uint8_t scales[12];
  std::uint16_t d;
};
struct BlockQ4_K {
  std::uint16_t d, dmin;
  std::uint8_t scales[12];
  std::uint8_t qs[128];
};
struct BlockQ5_K {
  std::uint16_t d, dmin;
  std::uint8_t scales[12];
  std::uint8_t qh[32];
  std::uint8_t qs[128];
};
struct BlockQ6_K {
  std::uint8_t ql[128];
  std::uint8_t qh[64];
  std::int8_t scales[16];
  std::uint16_t d;
};
struct BlockIQ4_XS {
  std::uint16_t d, scales_h;
  std::uint8_t scales_l[4];
  std::uint8_t qs[128];
};

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22);
static_assert(sizeof(BlockQ5_1) == 24 && sizeof(BlockQ8_0) == 34 && sizeof(BlockIQ4_NL) == 18);
static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144);
static_assert(sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210 && sizeof(BlockIQ4_XS) == 136);

template <class Block>
Block load_block(const std::uint8_t* row, std::int64_t block_idx) {
  Block block;
  std::memcpy(&block, row + block_idx * static_cast<std::int64_t>(sizeof(Block)), sizeof(Block));
  return block;
}

template <class Block>
void store_block(std::uint8_t* row, std::int64_t block_idx, const Block& block) {
  std::memcpy(row + block_idx * static_cast<std::int64_t>(sizeof(Block)), &block, sizeof(Block));
}

// The 16 levels of IQ4_NL and IQ4_XS.
inline constexpr std::int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};

// Q4_K, Q5_K: 8 scales and 8 minimums of 6 bits in 12 bytes.
inline void unpack_scales_k4(const std::uint8_t (&packed)[12], std::uint8_t (&scales)[8], std::uint8_t (&mins)[8]) {
  for (int j = 0; j < 4; ++j) {
    scales[j] = packed[j] & 63;
    mins[j] = packed[j + 4] & 63;
    scales[j + 4] = static_cast<std::uint8_t>((packed[j + 8] & 15) | ((packed[j] >> 6) << 4));
    mins[j + 4] = static_cast<std::uint8_t>((packed[j + 8] >> 4) | ((packed[j + 4] >> 6) << 4));
  }
}

// Q3_K: 16 scales of 6 bits, stored plus 32.
inline void unpack_scales_q3(const std::uint8_t (&packed)[12], std::int8_t (&scales)[16]) {
  for (int j = 0; j < 16; ++j) {
    const int low = j < 8 ? packed[j] & 15 : packed[j - 8] >> 4;
    const int high = (packed[8 + j % 4] >> (2 * (j / 4))) & 3;
    scales[j] = static_cast<std::int8_t>((low | (high << 4)) - 32);
  }
}

// IQ4_XS: 8 scales of 6 bits, stored plus 32.
inline void unpack_scales_iq4_xs(const BlockIQ4_XS& block, std::int8_t (&scales)[8]) {
  for (int j = 0; j < 8; ++j) {
    const int low = (block.scales_l[j / 2] >> (4 * (j % 2))) & 15;
    const int high = (block.scales_h >> (2 * j)) & 3;
    scales[j] = static_cast<std::int8_t>((low | (high << 4)) - 32);
  }
}

}  // namespace still
