// The ZIP reader against archives written here, whole and damaged.
#include "hub/zip.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <fstream>
#include <random>

#include "hub/test_server.h"
#include "hub/test_zip.h"

namespace still {
namespace {

using test::make_zip;
using test::random_bytes;
using test::TempFolder;
using test::ZipEntry;

Result<std::string> extract(const ZipReader& zip, const ZipMember& member) {
  std::string out;
  STILL_TRY_STATUS(zip.extract(member, [&](std::span<const std::byte> bytes) -> Status {
    out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return ok();
  }));
  return out;
}

class ZipTest : public testing::Test {
 protected:
  std::filesystem::path write(const std::string& bytes) {
    std::ofstream(folder_ / "x.whl", std::ios::binary) << bytes;
    return folder_ / "x.whl";
  }
  TempFolder folder_;
};

TEST_F(ZipTest, ReadsStoredAndDeflatedMembers) {
  const std::vector<ZipEntry> entries = {
      {"a/empty", "", true},
      {"a/stored", random_bytes(70000, 1), false},
      {"a/zeros", std::string(3 << 20, '\0'), true},  // an exact multiple of the buffer
      {"a/deflated", random_bytes((2 << 20) + 17, 2), true}};
  for (const bool is_zip64 : {false, true}) {
    const auto zip = ZipReader::open(write(make_zip(entries, is_zip64)));
    ASSERT_TRUE(zip) << zip.error().message;
    ASSERT_EQ(zip->members().size(), entries.size());
    for (std::size_t i = 0; i < entries.size(); ++i) {
      EXPECT_EQ(zip->members()[i].name, entries[i].name);
      const auto bytes = extract(*zip, zip->members()[i]);
      ASSERT_TRUE(bytes) << bytes.error().message;
      EXPECT_TRUE(*bytes == entries[i].bytes) << entries[i].name;
    }
  }
}

TEST_F(ZipTest, DamageIsFound) {
  const std::string good = make_zip({{"m", std::string(100000, 'x') + random_bytes(1000, 3), true}}, false);
  std::string bad = good;
  bad[good.find("m") + 600] ^= 0x40;  // inside the packed bytes
  auto zip = ZipReader::open(write(bad));
  ASSERT_TRUE(zip);
  EXPECT_FALSE(extract(*zip, zip->members()[0]));
  for (const std::size_t size : {std::size_t{0}, std::size_t{10}, good.size() / 2, good.size() - 30}) {
    EXPECT_FALSE(ZipReader::open(write(good.substr(0, size)))) << size;
  }
  EXPECT_FALSE(ZipReader::open(write(std::string(1000, 'P'))));
}

TEST_F(ZipTest, RandomDamageNeverCrashesAndNeverPassesUnnoticed) {
  const unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  Rng rng(seed);
  const std::string plain = std::string(3000, 'y') + random_bytes(500, 4);
  for (const bool is_zip64 : {false, true}) {
    const std::string good = make_zip({{"one", plain, true}, {"two", "2", false}}, is_zip64);
    for (int round = 0; round < 500; ++round) {
      std::string bad = good;
      for (std::int64_t i = rng.below(4); i >= 0; --i) {
        bad[static_cast<std::size_t>(rng.below(static_cast<std::int64_t>(bad.size())))] = static_cast<char>(rng.next());
      }
      const auto zip = ZipReader::open(write(bad));
      if (!zip) continue;
      for (const ZipMember& member : zip->members()) {
        const auto bytes = extract(*zip, member);
        if (bytes && member.name == "one" && member.size == static_cast<std::int64_t>(plain.size())) {
          EXPECT_TRUE(*bytes == plain ||
                      member.crc32 != ::crc32(0, reinterpret_cast<const Bytef*>(plain.data()), 3500));
        }
      }
    }
  }
}

}  // namespace
}  // namespace still
