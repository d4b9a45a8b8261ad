// GGUF: what is read, what is refused and in which words, and that what is written back is what was read.
#include "files/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/rng.h"
#include "files/gguf_writer.h"
#include "files/test_files.h"

namespace still {
namespace {

using testing::HasSubstr;

// Parses and expects a header.
GgufHeader parse_whole(std::string_view bytes) {
  auto parsed = GgufHeader::parse(as_bytes_of(bytes), "m.gguf");
  EXPECT_TRUE(parsed) << parsed.error().message;
  if (!parsed || !std::holds_alternative<GgufHeader>(*parsed)) {
    ADD_FAILURE() << "no header";
    return {};
  }
  return std::get<GgufHeader>(std::move(*parsed));
}

Error parse_failure(std::string_view bytes) {
  auto parsed = GgufHeader::parse(as_bytes_of(bytes), "m.gguf");
  EXPECT_FALSE(parsed);
  if (parsed) return {};
  expect_sentence(parsed.error());
  EXPECT_TRUE(parsed.error().message.starts_with("m.gguf: "));
  return parsed.error();
}

// Every kind of value, a nested array, four tensors of which one is a scalar and one is quantized.
RawGguf rich_file() {
  RawGguf raw = minimal_model("llama");
  raw.entry("k.u8", 0, "\x80").entry("k.i8", 1, "\xff").entry("k.u16", 2, "\x01\x80").entry("k.i16", 3, "\xff\xff");
  raw.entry("k.i32", 5, std::string("\xfe\xff\xff\xff", 4)).f32("k.f32", 1e-6f).boolean("k.bool", true);
  raw.entry("k.u64", 10, std::string(8, '\xff')).entry("k.i64", 11, std::string(8, '\xff'));
  raw.entry("k.f64", 12, std::string("\0\0\0\0\0\0\xf8\x3f", 8));
  raw.strings("k.strings", {"", "a", std::string(300, 'x')});
  std::string nested;
  append(nested, std::uint32_t{9});
  append(nested, std::uint64_t{2});
  for (int i = 0; i < 2; ++i) {
    append(nested, std::uint32_t{2});
    append(nested, std::uint64_t{1});
    append(nested, std::uint16_t{7});
  }
  raw.entry("k.nested", 9, nested);
  raw.tensor("token_embd.weight", {8, 3}, 0, 0).tensor("q", {256, 2}, 12, 96).tensor("s", {}, 0, 384);
  raw.tensor("e", {0}, 1, 416);
  raw.data.resize(416);
  for (std::size_t i = 0; i < 388; ++i) raw.data[i] = static_cast<char>(i);
  for (std::size_t i = 388; i < 416; ++i) raw.data[i] = 0;
  return raw;
}

TEST(Gguf, ReadsEveryKindOfValueInOrder) {
  const GgufHeader header = parse_whole(rich_file().bytes());
  const GgufMetadata& metadata = header.metadata;
  EXPECT_EQ(header.version, 3u);
  EXPECT_EQ(header.architecture(), "llama");
  EXPECT_EQ(metadata.entries()[0].key, "general.architecture");
  EXPECT_EQ(metadata.entries()[4].key, "k.u8");
  EXPECT_EQ(metadata.integer("k.u8"), 128);
  EXPECT_EQ(metadata.integer("k.i8"), -1);
  EXPECT_EQ(metadata.integer("k.u16"), 0x8001);
  EXPECT_EQ(metadata.integer("k.i16"), -1);
  EXPECT_EQ(metadata.integer("k.i32"), -2);
  EXPECT_EQ(metadata.number("k.f32"), 1e-6);  // not 9.99999997e-7
  EXPECT_EQ(metadata.boolean("k.bool"), true);
  EXPECT_EQ(metadata.integer("k.u64"), std::nullopt);  // 2^64 - 1 does not fit
  EXPECT_EQ(metadata.number("k.u64"), 0x1p64);
  EXPECT_EQ(metadata.integer("k.i64"), -1);
  EXPECT_EQ(metadata.number("k.f64"), 1.5);
  const GgufArray* strings = metadata.array("k.strings");
  ASSERT_NE(strings, nullptr);
  ASSERT_EQ(strings->size(), 3);
  EXPECT_EQ(strings->strings[0], "");
  EXPECT_EQ(strings->strings[1], "a");
  EXPECT_EQ(strings->strings[2], std::string(300, 'x'));
  const GgufArray* nested = metadata.array("k.nested");
  ASSERT_NE(nested, nullptr);
  ASSERT_EQ(nested->size(), 2);
  EXPECT_EQ(nested->nested[1].integer(0), 7);
  EXPECT_EQ(nested->nested[1].integer(1), std::nullopt);
  EXPECT_EQ(metadata.find("absent"), nullptr);
  EXPECT_EQ(metadata.string("k.u8"), std::nullopt);
}

TEST(Gguf, TurnsShapesOutermostFirst) {
  const GgufHeader header = parse_whole(rich_file().bytes());
  ASSERT_EQ(header.tensors().size(), 4u);
  const GgufTensor& embedding = header.tensors()[0];
  EXPECT_EQ(embedding.shape, (Shape{3, 8}));
  EXPECT_EQ(embedding.n_bytes, 96);
  EXPECT_EQ(header.find_tensor("q")->dtype, DType::kQ4_K);
  EXPECT_EQ(header.find_tensor("q")->n_bytes, 288);
  EXPECT_TRUE(header.find_tensor("s")->is_scalar);
  EXPECT_EQ(header.find_tensor("s")->shape, (Shape{1}));
  EXPECT_EQ(header.find_tensor("e")->n_bytes, 0);
  EXPECT_EQ(header.data_offset % 32, 0);
}

// Copies a file through reader and writer.
std::string write_back(const TemporaryFolder& folder, const std::filesystem::path& path, GgufOpenOptions options = {}) {
  auto file = GgufFile::open(path, options);
  EXPECT_TRUE(file) << file.error().message;
  if (!file) return {};
  auto writer = GgufWriter::create(folder / "copy.gguf", file->header(), file->file().size());
  EXPECT_TRUE(writer) << writer.error().message;
  if (!writer) return {};
  const auto& tensors = file->header().tensors();
  for (std::int64_t i = std::ssize(tensors) - 1; i >= 0; --i) {  // backwards: order must not matter
    const auto data = file->data(tensors[static_cast<std::size_t>(i)]);
    const std::size_t half = data.size() / 2;
    EXPECT_TRUE(writer->write(i, static_cast<std::int64_t>(half), data.subspan(half)));
    EXPECT_TRUE(writer->write(i, 0, data.first(half)));
  }
  const Status finished = writer->finish();
  EXPECT_TRUE(finished) << finished.error().message;
  return read_file(folder / "copy.gguf");
}

TEST(Gguf, WritesBackByteForByte) {
  const TemporaryFolder folder;
  RawGguf aligned = rich_file();
  aligned.u32("general.alignment", 64);
  aligned.alignment = 64;
  aligned.tensors.clear();
  aligned.n_tensors = 0;
  aligned.tensor("a", {3}, 0, 0).tensor("b", {5}, 24, 64);
  aligned.data.assign(69, 'x');  // and not padded at its end
  std::memset(aligned.data.data() + 12, 0, 52);
  RawGguf version_2 = rich_file();
  version_2.version = 2;
  RawGguf holes = minimal_model("llama");  // not in ggml's layout, but no harm
  holes.tensor("b", {2}, 0, 64).tensor("a", {2}, 0, 0);
  holes.data = "aaaabbbb" + std::string(56, '\0') + "ccccdddd";
  RawGguf no_tensors = minimal_model("llama");
  for (const RawGguf& raw : {rich_file(), version_2, aligned, holes, no_tensors}) {
    write_file(folder / "in.gguf", raw.bytes());
    EXPECT_EQ(write_back(folder, folder / "in.gguf"), raw.bytes());
  }
}

TEST(Gguf, WritesBackTheTinyModelsByteForByte) {
  const TemporaryFolder folder;
  for (const char* name : {"llama", "llama_tied", "qwen2", "qwen2_tied"}) {
    const auto path = test_data("tiny") / name / "model.gguf";
    EXPECT_EQ(write_back(folder, path), read_file(path)) << name;
  }
}

TEST(Gguf, WritesBackRealModelsByteForByte) {
  const char* models = std::getenv("STILL_TEST_MODELS");
  if (models == nullptr) GTEST_SKIP() << "STILL_TEST_MODELS names no folder of real models";
  const TemporaryFolder folder;
  for (const char* name : {"smollm2.gguf", "q05.gguf"}) {
    const auto path = std::filesystem::path(models) / name;
    if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
    EXPECT_TRUE(write_back(folder, path) == read_file(path)) << name;
  }
}

TEST(Gguf, ReadsAndRewritesARealHeaderWithoutData) {
  const auto path = test_data("files/r1-distill-qwen-7b-q4_k_m-header.gguf");
  const std::string bytes = read_file(path);
  GgufHeader header = parse_whole(bytes);
  EXPECT_EQ(header.tensors().size(), 339u);
  EXPECT_EQ(header.find_tensor("token_embd.weight")->shape, (Shape{152064, 3584}));
  EXPECT_EQ(header.find_tensor("output.weight")->dtype, DType::kQ6_K);
  EXPECT_EQ(header.metadata.string("tokenizer.ggml.pre"), "deepseek-r1-qwen");
  EXPECT_EQ(serialize_gguf_header(header), bytes);
  // The offsets are the ones that lay_out() would give.
  GgufHeader again = header;
  again.lay_out();
  for (std::size_t i = 0; i < header.tensors().size(); ++i)
    EXPECT_EQ(again.tensors()[i].offset, header.tensors()[i].offset);
  EXPECT_EQ(header.data_bytes(), 4677120000) << "the published file has this much data";
  const auto whole = GgufFile::open(path);
  ASSERT_FALSE(whole);
  EXPECT_EQ(whole.error().code, Code::kCorrupt);
  EXPECT_THAT(whole.error().message, HasSubstr("truncated: tensor output.weight needs the file to have"));
  const auto headless = GgufFile::open(path, {.allow_missing_data = true});
  ASSERT_TRUE(headless);
  EXPECT_FALSE(headless->is_complete());
  EXPECT_TRUE(headless->data(headless->header().tensors()[0]).empty());
}

TEST(Gguf, AsksForMoreBytesUntilTheHeaderIsWhole) {
  const std::string bytes = rich_file().bytes();
  const auto whole = static_cast<std::int64_t>(bytes.size()) - 416;
  std::int64_t n = 0;
  int n_rounds = 0;
  for (;; ++n_rounds) {
    auto parsed = GgufHeader::parse(as_bytes_of(bytes).first(static_cast<std::size_t>(n)), "m");
    ASSERT_TRUE(parsed) << parsed.error().message;
    const auto* more = std::get_if<GgufNeedMore>(&*parsed);
    if (more == nullptr) break;
    ASSERT_GT(more->n_bytes, n);
    ASSERT_LE(more->n_bytes, whole);
    n = more->n_bytes;
  }
  EXPECT_GT(n_rounds, 20);
}

TEST(Gguf, EveryCutIsAnErrorThatNamesWhatIsMissing) {
  const TemporaryFolder folder;
  const std::string bytes = rich_file().bytes();
  const std::size_t end_of_data = bytes.size() - 28;
  for (std::size_t n = 0; n < bytes.size(); n += 7) {
    write_file(folder / "cut.gguf", std::string_view(bytes).substr(0, n));
    const auto file = GgufFile::open(folder / "cut.gguf");
    EXPECT_EQ(static_cast<bool>(file), n >= end_of_data) << n;
    if (file) continue;
    expect_sentence(file.error());
    EXPECT_EQ(file.error().code, Code::kCorrupt);
    EXPECT_THAT(file.error().message, HasSubstr("truncated"));
    EXPECT_THAT(file.error().message, HasSubstr(std::to_string(n)));
  }
}

TEST(Gguf, BitFlipsNeverCrash) {
  const std::string bytes = rich_file().bytes();
  constexpr std::uint64_t kSeed = 20240101;
  SCOPED_TRACE(kSeed);
  Rng rng(kSeed);
  const TemporaryFolder folder;
  for (int round = 0; round < 3000; ++round) {
    std::string flipped = bytes;
    for (std::int64_t n = 1 + rng.below(8); n > 0; --n)
      flipped[static_cast<std::size_t>(rng.below(std::ssize(flipped)))] ^= static_cast<char>(1 << rng.below(8));
    auto parsed = GgufHeader::parse(as_bytes_of(flipped), "m.gguf");
    if (!parsed) {
      expect_sentence(parsed.error());
      continue;
    }
    if (std::holds_alternative<GgufNeedMore>(*parsed)) continue;
    // What still parses is true to its bytes, and data never lies outside.
    write_file(folder / "flipped.gguf", flipped);
    const auto file = GgufFile::open(folder / "flipped.gguf");
    if (!file) continue;
    for (const GgufTensor& tensor : file->header().tensors())
      ASSERT_EQ(file->data(tensor).size(), static_cast<std::size_t>(tensor.n_bytes));
  }
}

std::string with_count(std::size_t at, std::uint64_t count) {
  std::string bytes = rich_file().bytes();
  std::memcpy(bytes.data() + at, &count, 8);
  return bytes;
}

TEST(Gguf, LyingCountsAreFoundBeforeMemoryIsTaken) {
  for (const std::uint64_t count : {std::uint64_t{1} << 25, std::uint64_t{1} << 40, ~std::uint64_t{0}}) {
    EXPECT_EQ(parse_failure(with_count(8, count)).code, Code::kCorrupt);
    EXPECT_EQ(parse_failure(with_count(16, count)).code, Code::kCorrupt);
    EXPECT_EQ(parse_failure(with_count(24, count)).code, Code::kCorrupt);  // the first key's length
    RawGguf raw = minimal_model("llama");
    std::string array;
    append(array, std::uint32_t{4});
    append(array, count << 12);
    EXPECT_EQ(parse_failure(raw.entry("a", 9, array).bytes()).code, Code::kCorrupt);
    RawGguf text = minimal_model("llama");
    std::string length;
    append(length, count << 12);
    EXPECT_EQ(parse_failure(text.entry("t", 8, length).bytes()).code, Code::kCorrupt);
  }
  // Within the limits, but more than there is: more bytes are asked for, none are reserved.
  std::string array;
  append(array, std::uint32_t{8});
  append(array, std::uint64_t{1} << 30);
  RawGguf raw = minimal_model("llama");
  const auto parsed = GgufHeader::parse(as_bytes_of(raw.entry("a", 9, array).bytes()), "m");
  ASSERT_TRUE(parsed);
  EXPECT_TRUE(std::holds_alternative<GgufNeedMore>(*parsed));
}

TEST(Gguf, RefusesWhatItCannotRead) {
  RawGguf raw = minimal_model("llama");
  raw.magic = "GGML";
  EXPECT_THAT(parse_failure(raw.bytes()).message, HasSubstr("not a GGUF file: it begins with bytes 47 47 4d 4c"));
  raw.magic = "GGUF";
  raw.version = 1;
  EXPECT_THAT(parse_failure(raw.bytes()).message, HasSubstr("GGUF version 1"));
  raw.version = 4;
  EXPECT_EQ(parse_failure(raw.bytes()).code, Code::kUnsupported);
  raw.version = 0x03000000;
  EXPECT_THAT(parse_failure(raw.bytes()).message, HasSubstr("big-endian"));
  raw.version = 3;
  raw.magic = "FUGG";
  EXPECT_THAT(parse_failure(raw.bytes()).message, HasSubstr("big-endian"));
}

TEST(Gguf, RefusesContradictions) {
  const auto base = [] { return minimal_model("llama"); };
  const auto message = [](const RawGguf& raw) { return parse_failure(raw.bytes()).message; };
  constexpr std::uint64_t kHuge = std::numeric_limits<std::uint64_t>::max();
  EXPECT_THAT(message(base().u32("a", 1).u32("a", 1)), HasSubstr("metadata a appears twice"));
  EXPECT_THAT(message(base().u32("", 1)), HasSubstr("empty metadata key"));
  EXPECT_THAT(message(base().entry("a", 13, "")), HasSubstr("value type 13 does not exist"));
  EXPECT_THAT(message(base().entry("a", 7, "\x02")), HasSubstr("a bool of value 2"));
  EXPECT_THAT(message(base().u32("general.alignment", 0)), HasSubstr("power of two"));
  EXPECT_THAT(message(base().u32("general.alignment", 24)), HasSubstr("found 24"));
  EXPECT_THAT(message(base().text("general.alignment", "32")), HasSubstr("found string"));
  EXPECT_THAT(message(base().tensor("t", {4}, 0, 0).tensor("t", {4}, 0, 32)), HasSubstr("tensor t appears twice"));
  EXPECT_THAT(message(base().tensor("", {4}, 0, 0)), HasSubstr("without a name"));
  EXPECT_THAT(message(base().tensor(std::string(300, 'n'), {4}, 0, 0)), HasSubstr("claims 300 bytes"));
  EXPECT_THAT(message(base().tensor("t", {1, 1, 1, 1, 1}, 0, 0)), HasSubstr("5 dimensions"));
  EXPECT_THAT(message(base().tensor("t", {kHuge}, 0, 0)), HasSubstr("more elements"));
  EXPECT_THAT(message(base().tensor("t", {1ull << 40, 1ull << 40}, 0, 0)), HasSubstr("more elements"));
  EXPECT_THAT(message(base().tensor("t", {1ull << 62}, 0, 0)), HasSubstr("larger than any file"));
  EXPECT_THAT(message(base().tensor("t", {4}, 0, kHuge & ~31ull)), HasSubstr("larger than any file"));
  EXPECT_THAT(message(base().tensor("t", {4}, 0, 8)), HasSubstr("not a multiple of the alignment 32"));
  EXPECT_THAT(message(base().tensor("t", {255}, 12, 0)), HasSubstr("blocks of 256"));
  EXPECT_THAT(message(base().tensor("t", {16}, 0, 0).tensor("u", {4}, 0, 32)), HasSubstr("inside tensor t"));
  EXPECT_THAT(message(base().tensor("t", {32}, 43, 0)), HasSubstr("type number 43"));
  EXPECT_THAT(message(base().tensor("t", {32}, 31, 0)), HasSubstr("Q4_0_4_4"));
  EXPECT_THAT(message(base().tensor("t", {256}, 138, 0)), HasSubstr("type number 138"));
  EXPECT_EQ(parse_failure(base().tensor("t", {32}, 99, 0).bytes()).code, Code::kUnsupported);
  std::string deep;
  for (int depth = 0; depth < 6; ++depth) {
    append(deep, std::uint32_t{9});
    append(deep, std::uint64_t{1});
  }
  EXPECT_THAT(message(base().entry("a", 9, deep)), HasSubstr("nested deeper"));
}

TEST(Gguf, KnowsPartNames) {
  const auto name = parse_gguf_part_name("a-00001-of-00002-00002-of-00005.gguf");
  ASSERT_TRUE(name);
  EXPECT_EQ(name->stem, "a-00001-of-00002");
  EXPECT_EQ(name->part, 2);
  EXPECT_EQ(name->n_parts, 5);
  EXPECT_EQ(gguf_part_name(*name), "a-00001-of-00002-00002-of-00005.gguf");
  for (const char* other : {"a.gguf", "a-00000-of-00002.gguf", "a-00003-of-00002.gguf", "-00001-of-00002.gguf",
                            "a-0001-of-00002.gguf", "a-00001-of-0000x.gguf", "a-00001-of-00002.bin"})
    EXPECT_FALSE(parse_gguf_part_name(other)) << other;
}

// A model of 5 tensors in parts; returns their paths.
std::vector<std::filesystem::path> write_parts(const TemporaryFolder& folder) {
  GgufHeader header;
  header.metadata.set("general.architecture", GgufValue::of_string("llama"));
  for (int i = 0; i < 5; ++i) {
    GgufTensor tensor;
    tensor.name = "t" + std::to_string(i);
    tensor.shape = {4, 3};
    header.add_tensor(tensor);
  }
  std::vector<std::filesystem::path> paths;
  const std::vector<GgufHeader> parts = split_gguf_header(header, 128);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    paths.push_back(folder / gguf_part_name({"m", static_cast<std::int64_t>(i) + 1, std::ssize(parts)}));
    auto writer = GgufWriter::create(paths.back(), parts[i]);
    EXPECT_TRUE(writer);
    for (std::size_t k = 0; k < parts[i].tensors().size(); ++k) {
      const std::string bytes(48, parts[i].tensors()[k].name[1]);
      EXPECT_TRUE(writer->write(static_cast<std::int64_t>(k), 0, as_bytes_of(bytes)));
    }
    EXPECT_TRUE(writer->finish());
  }
  return paths;
}

TEST(Gguf, OpensAllPartsFromAnyOfThem) {
  const TemporaryFolder folder;
  const auto paths = write_parts(folder);
  ASSERT_EQ(paths.size(), 3u);  // 2, 2 and 1 tensors of 64 bytes with padding
  EXPECT_EQ(folder.n_files(), 3u);
  for (const auto& path : paths) {
    const auto set = GgufSet::open(path);
    ASSERT_TRUE(set) << set.error().message;
    EXPECT_EQ(set->metadata().string("general.architecture"), "llama");
    ASSERT_EQ(set->parts().size(), 3u);
    const GgufFile& last = set->parts()[2];
    ASSERT_EQ(last.header().tensors().size(), 1u);
    EXPECT_EQ(static_cast<char>(last.data(last.header().tensors()[0])[0]), '4');
  }
}

TEST(Gguf, RefusesBrokenSetsOfParts) {
  const TemporaryFolder folder;
  const auto paths = write_parts(folder);
  const std::string second = read_file(paths[1]);

  // A part under a name of its own says what to do.
  write_file(folder / "alone.gguf", second);
  EXPECT_THAT(GgufSet::open(folder / "alone.gguf").error().message, HasSubstr("part 2 of 3"));
  // Swapped parts.
  write_file(paths[1], read_file(paths[2]));
  EXPECT_THAT(GgufSet::open(paths[0]).error().message, HasSubstr("its name says part 2 of 3"));
  // A missing part; for a plan it may be missing.
  std::filesystem::remove(paths[1]);
  const auto missing = GgufSet::open(paths[0]);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, Code::kNotFound);
  EXPECT_THAT(missing.error().message, HasSubstr("part 2 of 3 is missing"));
  const auto planned = GgufSet::open(paths[0], {.allow_missing_data = true});
  ASSERT_TRUE(planned);
  EXPECT_EQ(planned->n_parts_missing(), 1);
  // A tensor in two parts, and a wrong total.
  auto parsed = parse_whole(second);
  GgufHeader changed = parsed;
  changed.clear_tensors();
  for (const char* name : {"t0", "t3"}) {
    GgufTensor tensor;
    tensor.name = name;
    tensor.shape = {1};
    changed.add_tensor(tensor);
  }
  changed.lay_out();
  std::string bytes = serialize_gguf_header(changed) + std::string(64, 'x');
  write_file(paths[1], bytes);
  EXPECT_THAT(GgufSet::open(paths[0]).error().message, HasSubstr("tensor t0 is also in"));
  changed.clear_tensors();
  bytes = serialize_gguf_header(changed);
  write_file(paths[1], bytes);
  EXPECT_THAT(GgufSet::open(paths[0]).error().message, HasSubstr("split.tensors.count is 5, but the 3 parts hold 3"));
}

TEST(GgufWriter, LeavesNothingBehindUnlessFinished) {
  const TemporaryFolder folder;
  write_file(folder / "m.gguf", "what was there");
  {
    auto writer = GgufWriter::create(folder / "m.gguf", parse_whole(rich_file().bytes()));
    ASSERT_TRUE(writer);
    const std::string row(96, 'x');
    EXPECT_TRUE(writer->write(0, 0, as_bytes_of(row)));
    EXPECT_FALSE(writer->write(0, 1, as_bytes_of(row)));
    const Status unfinished = writer->finish();
    ASSERT_FALSE(unfinished);
    EXPECT_THAT(unfinished.error().message, HasSubstr("tensor q has 288 bytes, 0 were written"));
  }
  EXPECT_EQ(read_file(folder / "m.gguf"), "what was there");
  EXPECT_EQ(folder.n_files(), 1u);
  const auto nowhere = GgufWriter::create(folder / "no/such/m.gguf", GgufHeader());
  ASSERT_FALSE(nowhere);
  EXPECT_EQ(nowhere.error().code, Code::kNotFound);
}

TEST(GgufWriter, RefusesTypesThatGgufLacks) {
  const TemporaryFolder folder;
  GgufHeader header;
  GgufTensor tensor;
  tensor.name = "w";
  tensor.shape = {4};
  tensor.dtype = DType::kF8_E4M3;
  header.add_tensor(tensor);
  header.lay_out();
  EXPECT_EQ(GgufWriter::create(folder / "m.gguf", header).error().code, Code::kUnsupported);
}

TEST(GgufWriter, MetadataCanBeChanged) {
  GgufHeader header = parse_whole(rich_file().bytes());
  header.metadata.set("k.u8", GgufValue::of_string("now a string"));
  header.metadata.set("new", GgufValue::of_array(GgufArray::of_i32({1, -2})));
  EXPECT_TRUE(header.metadata.erase("k.i8"));
  EXPECT_FALSE(header.metadata.erase("k.i8"));
  const GgufHeader again = parse_whole(serialize_gguf_header(header));
  EXPECT_EQ(again.metadata.entries()[4].key, "k.u8");
  EXPECT_EQ(again.metadata.entries()[5].key, "k.u16");
  EXPECT_EQ(again.metadata.string("k.u8"), "now a string");
  EXPECT_EQ(again.metadata.array("new")->integer(1), -2);
}

}  // namespace
}  // namespace still
