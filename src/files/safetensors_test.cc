// safetensors: reading, writing, and every way the header may lie.
#include "files/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/rng.h"
#include "files/test_files.h"

namespace still {
namespace {

using testing::HasSubstr;

std::string file_of(std::string_view header, std::size_t n_data) {
  std::string bytes;
  append(bytes, std::uint64_t{header.size()});
  bytes += header;
  for (std::size_t i = 0; i < n_data; ++i) bytes += static_cast<char>(i);
  return bytes;
}

constexpr std::string_view kGood =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
    R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"e":{"dtype":"I64","shape":[0,7],"data_offsets":[16,16]}})";

TEST(Safetensors, ReadsTensorsInTheHeadersOrder) {
  const TemporaryFolder folder;
  write_file(folder / "m.safetensors", file_of(kGood, 16));
  const auto file = SafetensorsFile::open(folder / "m.safetensors");
  ASSERT_TRUE(file) << file.error().message;
  const auto& tensors = file->header().tensors;
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[0].name, "b");
  EXPECT_EQ(tensors[0].dtype, DType::kBF16);
  EXPECT_EQ(tensors[0].shape, (Shape{2, 3}));
  EXPECT_EQ(static_cast<int>(file->data(tensors[0])[0]), 4);
  EXPECT_EQ(file->data(tensors[0]).size(), 12u);
  EXPECT_TRUE(tensors[1].is_scalar);
  EXPECT_EQ(tensors[2].n_bytes, 0);
  EXPECT_EQ(file->header().metadata[0].second, "pt");
}

TEST(Safetensors, WritesBackWhatTheReferenceWrote) {
  const TemporaryFolder folder;
  for (const char* name : {"llama", "qwen2_tied"}) {
    const auto path = test_data("tiny") / name / "model.safetensors";
    const auto file = SafetensorsFile::open(path);
    ASSERT_TRUE(file) << file.error().message;
    const SafetensorsHeader& header = file->header();
    auto writer = SafetensorsWriter::create(folder / "copy.safetensors", header.metadata, header.tensors);
    ASSERT_TRUE(writer) << writer.error().message;
    for (std::size_t i = 0; i < header.tensors.size(); ++i) {
      const auto data = file->data(header.tensors[i]);
      const std::size_t half = data.size() / 2;
      EXPECT_TRUE(writer->write(static_cast<std::int64_t>(i), static_cast<std::int64_t>(half), data.subspan(half)));
      EXPECT_TRUE(writer->write(static_cast<std::int64_t>(i), 0, data.first(half)));
    }
    ASSERT_TRUE(writer->finish());
    EXPECT_TRUE(read_file(folder / "copy.safetensors") == read_file(path)) << name;
  }
  EXPECT_EQ(folder.n_files(), 1u);
}

TEST(Safetensors, WriterRefusesWhatTheFormatLacks) {
  const TemporaryFolder folder;
  SafetensorsTensor tensor;
  tensor.name = "w";
  tensor.shape = {2, 256};
  tensor.dtype = DType::kQ4_K;
  EXPECT_EQ(SafetensorsWriter::create(folder / "m", {}, {tensor}).error().code, Code::kUnsupported);
  tensor.dtype = DType::kF32;
  EXPECT_EQ(SafetensorsWriter::create(folder / "m", {}, {tensor, tensor}).error().code, Code::kInvalidArgument);
  auto writer = SafetensorsWriter::create(folder / "m", {}, {tensor});
  ASSERT_TRUE(writer);
  EXPECT_FALSE(writer->finish());
  writer = SafetensorsWriter::create(folder / "n", {}, {});
  ASSERT_TRUE(writer);
  EXPECT_TRUE(writer->finish());
  EXPECT_TRUE(SafetensorsFile::open(folder / "n"));
}

TEST(Safetensors, RefusesContradictions) {
  const TemporaryFolder folder;
  const auto message = [&](std::string_view header, std::size_t n_data) {
    write_file(folder / "m.safetensors", file_of(header, n_data));
    const auto file = SafetensorsFile::open(folder / "m.safetensors");
    EXPECT_FALSE(file) << header;
    if (file) return std::string();
    expect_sentence(file.error());
    return file.error().message;
  };
  const auto one = [](std::string_view entry) { return R"({"t":)" + std::string(entry) + "}"; };
  EXPECT_THAT(message("", 0), HasSubstr("a header of 0 bytes"));
  EXPECT_THAT(message("[]", 0), HasSubstr("does not begin with '{'"));
  EXPECT_THAT(message("{]", 0), HasSubstr("not valid JSON"));
  EXPECT_THAT(message(one("3"), 0), HasSubstr("not an object"));
  EXPECT_THAT(message(one(R"({"shape":[1],"data_offsets":[0,4]})"), 4), HasSubstr("no dtype"));
  EXPECT_THAT(message(one(R"({"dtype":"F32","data_offsets":[0,4]})"), 4), HasSubstr("no shape"));
  EXPECT_THAT(message(one(R"({"dtype":"F32","shape":[1]})"), 4), HasSubstr("no data_offsets"));
  EXPECT_THAT(message(one(R"({"dtype":"F31","shape":[1],"data_offsets":[0,4]})"), 4),
              HasSubstr("unknown type \"F31\""));
  EXPECT_THAT(message(one(R"({"dtype":"Q4_K","shape":[256],"data_offsets":[0,144]})"), 144), HasSubstr("unknown type"));
  EXPECT_THAT(message(one(R"({"dtype":"U8","shape":[1,1,1,1,1],"data_offsets":[0,1]})"), 1), HasSubstr("5 dimensions"));
  EXPECT_THAT(message(one(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})"), 4), HasSubstr("no size"));
  EXPECT_THAT(message(one(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})"), 4), HasSubstr("no size"));
  EXPECT_THAT(message(one(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]})"), 4),
              HasSubstr("more elements"));
  EXPECT_THAT(message(one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})"), 4), HasSubstr("no byte range"));
  EXPECT_THAT(message(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})"), 4), HasSubstr("does not make the 4"));
  EXPECT_THAT(message(one(R"({"dtype":"F4","shape":[3],"data_offsets":[0,2]})"), 2), HasSubstr("does not make"));
  EXPECT_THAT(message(one(R"({"dtype":"U8","shape":[1],"data_offsets":[1,2]})"), 2), HasSubstr("a hole or an overlap"));
  EXPECT_THAT(message(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                      R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                      3),
              HasSubstr("tensor b begins at byte 1"));
  EXPECT_THAT(message(one(R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})"), 2), HasSubstr("1 bytes after"));
  EXPECT_THAT(message(R"({"__metadata__":{"a":1}})", 0), HasSubstr("is not a string"));
  std::string huge(8, '\xff');
  write_file(folder / "m.safetensors", huge);
  EXPECT_EQ(SafetensorsFile::open(folder / "m.safetensors").error().code, Code::kCorrupt);
}

TEST(Safetensors, EveryCutAndManyFlipsAreErrorsOrHarmless) {
  const TemporaryFolder folder;
  const std::string bytes = file_of(kGood, 16);
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    write_file(folder / "m.safetensors", std::string_view(bytes).substr(0, n));
    const auto file = SafetensorsFile::open(folder / "m.safetensors");
    ASSERT_FALSE(file) << n;
    expect_sentence(file.error());
  }
  constexpr std::uint64_t kSeed = 7;
  SCOPED_TRACE(kSeed);
  Rng rng(kSeed);
  for (int round = 0; round < 5000; ++round) {
    std::string flipped = bytes;
    for (std::int64_t n = 1 + rng.below(4); n > 0; --n)
      flipped[static_cast<std::size_t>(rng.below(std::ssize(flipped)))] ^= static_cast<char>(1 << rng.below(8));
    const auto parsed = SafetensorsHeader::parse(as_bytes_of(flipped), "m");
    if (!parsed) expect_sentence(parsed.error());
  }
}

TEST(Safetensors, HeaderWithoutDataIsEnoughForAPlan) {
  const TemporaryFolder folder;
  write_file(folder / "m.safetensors", file_of(kGood, 0));
  const auto refused = SafetensorsFile::open(folder / "m.safetensors");
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("truncated: tensor b needs the file to have"));
  const auto file = SafetensorsFile::open(folder / "m.safetensors", true);
  ASSERT_TRUE(file);
  EXPECT_TRUE(file->data(file->header().tensors[0]).empty());
  EXPECT_EQ(file->header().tensors[0].n_bytes, 12);
}

TEST(SafetensorsIndex, ListsEachFileOnceAndStaysInItsFolder) {
  const auto index = SafetensorsIndex::parse(R"({"weight_map":{"a":"x","b":"y","c":"x"}})", "i");
  ASSERT_TRUE(index);
  EXPECT_EQ(index->files, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(index->tensors[2], (std::pair<std::string, std::size_t>{"c", 0}));
  for (const char* bad :
       {"", "[]", "{}", R"({"weight_map":{}})", R"({"weight_map":{"a":1}})", R"({"weight_map":{"a":"../x"}})",
        R"({"weight_map":{"a":"/etc/x"}})", R"({"weight_map":{"a":".."}})", R"({"weight_map":{"a":""}})",
        R"({"weight_map":{"a":"x\u0000y"}})"}) {
    const auto refused = SafetensorsIndex::parse(bad, "i");
    ASSERT_FALSE(refused) << bad;
    EXPECT_EQ(refused.error().code, Code::kCorrupt);
  }
}

}  // namespace
}  // namespace still
