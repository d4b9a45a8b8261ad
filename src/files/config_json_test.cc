#include "files/config_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "files/test_files.h"

namespace still {
namespace {

using testing::HasSubstr;

JsonObject object(std::string_view text) {
  return parse_json_object(text, "test").value();
}

TEST(ConfigJson, MovesTheRopeParametersOfNewWritersBack) {
  const auto yarn = normalize_config(
      object(R"({"model_type":"qwen2","rope_parameters":{"rope_theta":1e6,"rope_type":"yarn","factor":4.0}})"), "c");
  ASSERT_TRUE(yarn);
  EXPECT_EQ(yarn->at("rope_theta").as_double(), 1e6);
  EXPECT_EQ(yarn->at("rope_scaling").at("rope_type").as_string(), "yarn");
  EXPECT_FALSE(yarn->at("rope_scaling").as_object().contains("rope_theta"));
  EXPECT_FALSE(yarn->contains("rope_parameters"));
  const auto plain = normalize_config(
      object(R"({"model_type":"qwen2","rope_parameters":{"rope_theta":1e4,"rope_type":"default"}})"), "c");
  ASSERT_TRUE(plain);
  EXPECT_FALSE(plain->contains("rope_scaling"));
  EXPECT_EQ(plain->at("rope_theta").as_double(), 1e4);
}

TEST(ConfigJson, TakesTheTextModelOutOfALargerOne) {
  const auto config = normalize_config(object(R"({"model_type":"vl","text_config":{"model_type":"qwen3"}})"), "c");
  ASSERT_TRUE(config);
  EXPECT_EQ(config->at("model_type").as_string(), "qwen3");
}

TEST(ConfigJson, ErrorsNameTheFile) {
  const TemporaryFolder folder;
  const auto failure = [&](std::string_view text) {
    write_file(folder / "config.json", text);
    const auto read = read_json_object(folder / "config.json");
    EXPECT_FALSE(read) << text;
    if (read) return std::string();
    expect_sentence(read.error());
    return read.error().message;
  };
  EXPECT_THAT(failure(""), HasSubstr("config.json: not valid JSON"));
  EXPECT_THAT(failure("[1]"), HasSubstr("config.json: a JSON object is expected"));
  EXPECT_THAT(failure("{\"a\":\n\n1,}"), HasSubstr("line 3"));
  EXPECT_THAT(failure("{} x"), HasSubstr("text after the value"));
  EXPECT_THAT(failure(std::string(200000, '[')), HasSubstr("not valid JSON"));
  EXPECT_EQ(read_json_object(folder / "absent.json").error().code, Code::kNotFound);
  EXPECT_EQ(read_text_file(folder / "config.json", 10).error().code, Code::kCorrupt);
  EXPECT_THAT(normalize_config(object("{}"), "c.json").error().message, HasSubstr("c.json: no model_type"));
  EXPECT_FALSE(normalize_config(object(R"({"model_type":3})"), "c"));
  EXPECT_THAT(normalize_config(object(R"({"model_type":"x","rope_scaling":{"factor":[1e999]}})"), "c").error().message,
              HasSubstr("rope_scaling is out of the range"));
}

TEST(ConfigJson, FindsTheChatTemplate) {
  EXPECT_EQ(chat_template_of(object(R"({"chat_template":"x"})")), "x");
  EXPECT_EQ(chat_template_of(
                object(R"({"chat_template":[{"name":"tool_use","template":"t"},{"name":"default","template":"d"}]})")),
            "d");
  for (const char* none : {"{}", R"({"chat_template":3})", R"({"chat_template":[]})", R"({"chat_template":[1,{}]})",
                           R"({"chat_template":[{"name":"default"}]})"})
    EXPECT_EQ(chat_template_of(object(none)), "") << none;
}

}  // namespace
}  // namespace still
