// Modelfiles: read, refused, written and read again.
#include "hub/modelfile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace still {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(Modelfile, ReadsEveryInstruction) {
  const auto file = parse_modelfile(
      "# a comment\n"
      "from qwen2.5:0.5b\r\n"
      "PARAMETER temperature 0.6\n"
      "parameter num_ctx 4096\n"
      "PARAMETER stop \"<|im_end|>\"\n"
      "PARAMETER stop User:\n"
      "PARAMETER penalize_newline false\n"
      "TEMPLATE \"\"\"{{ if .System }}\n# not a comment\n{{ end }}\"\"\"\n"
      "SYSTEM You are  helpful. \n"
      "LICENSE \"\"\"\nMIT\n\"\"\"\n"
      "MESSAGE user Hi\n"
      "MESSAGE assistant \"\"\"two\nlines\"\"\"\n"
      "ADAPTER ./a.gguf\n"
      "REQUIRES 0.5.1\n"
      "RENDERER qwen3\n");
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_THAT(file->from, ElementsAre("qwen2.5:0.5b"));
  EXPECT_EQ(file->parameters.at("temperature").as_double(), 0.6);
  EXPECT_EQ(file->parameters.at("num_ctx").as_int64(), 4096);
  EXPECT_EQ(to_json(file->parameters.at("stop")), R"(["<|im_end|>","User:"])");
  EXPECT_EQ(file->parameters.at("penalize_newline").as_bool(), false);
  EXPECT_EQ(file->template_text, "{{ if .System }}\n# not a comment\n{{ end }}");
  EXPECT_EQ(file->system, "You are  helpful.");
  EXPECT_THAT(file->licences, ElementsAre("\nMIT\n"));
  EXPECT_EQ(to_json(file->messages), R"([{"role":"user","content":"Hi"},{"role":"assistant","content":"two\nlines"}])");
  EXPECT_THAT(file->adapters, ElementsAre("./a.gguf"));
  EXPECT_EQ(file->requires_version, "0.5.1");
  EXPECT_EQ(file->other.at("renderer"), "qwen3");
}

TEST(Modelfile, RefusesWithTheLine) {
  const auto message = [](std::string_view text) { return parse_modelfile(text).error().message; };
  EXPECT_THAT(message(""), HasSubstr("no FROM"));
  EXPECT_THAT(message("FROM a\n\nFROB x"), HasSubstr("line 3: unknown instruction \"FROB\""));
  EXPECT_THAT(message("FROM a\nSYSTEM \"\"\"x\ny"), HasSubstr("line 2: SYSTEM"));
  EXPECT_THAT(message("FROM a\nSYSTEM \"\"\"x\"\"\" y"), HasSubstr("text behind"));
  EXPECT_THAT(message("FROM a\nMESSAGE robot hi"), HasSubstr("the role must be"));
  EXPECT_THAT(message("FROM a\nPARAMETER"), HasSubstr("without a name"));
  EXPECT_THAT(message("FROM a\nPARAMETER stop"), HasSubstr("without a value"));
  EXPECT_THAT(message("FROM"), HasSubstr("without a value"));
}

TEST(Modelfile, WrittenReadsBackToTheSame) {
  Modelfile file;
  file.from = {"/models/a b.gguf"};
  file.template_text = "{{ .Prompt }}\n";
  file.system = " padded ";
  file.parameters = {{"stop", JsonArray{"<|im_end|>", "\"x\"", "\n"}}, {"temperature", 0.25}, {"num_ctx", 4096}};
  file.messages = {JsonObject{{"role", "user"}, {"content", "a\nb"}}};
  file.licences = {"MIT", "two\nlines"};
  const std::string text = write_modelfile(file);
  const auto again = parse_modelfile(text);
  ASSERT_TRUE(again) << text << again.error().message;
  EXPECT_EQ(again->from, file.from);
  EXPECT_EQ(again->template_text, file.template_text);
  EXPECT_EQ(again->system, file.system);
  EXPECT_EQ(again->parameters.at("num_ctx"), file.parameters.at("num_ctx"));
  EXPECT_EQ(again->parameters.at("temperature"), file.parameters.at("temperature"));
  EXPECT_EQ(again->messages, file.messages);
  EXPECT_EQ(again->licences, file.licences);
  // A stop string in quotes cannot be told from a quoted one: it is left out, and said so.
  EXPECT_EQ(to_json(again->parameters.at("stop")), R"(["<|im_end|>","\n"])");
  EXPECT_THAT(text, HasSubstr("# PARAMETER stop: left out"));
}

TEST(Modelfile, ParametersAsShown) {
  EXPECT_EQ(format_parameters({{"temperature", 0.6}, {"stop", JsonArray{"<a>", "b"}}}),
            "temperature                    0.6\n"
            "stop                           \"<a>\"\n"
            "stop                           \"b\"");
  EXPECT_EQ(format_parameters({}), "");
}

}  // namespace
}  // namespace still
