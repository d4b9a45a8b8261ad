// Go templates against renderings of Go's own text/template (testdata/text/go_templates.json, made by
// tools/go_template_goldens), and what those cannot show: trust, limits, mistakes.
#include "text/go_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "text/chat_template.h"
#include "text/test_files.h"

namespace still {
namespace {

using testing::HasSubstr;

Result<RenderedChat> render(std::string_view source, std::string_view context) {
  STILL_TRY(const ChatTemplate parsed, ChatTemplate::parse(source, "test", TemplateLanguage::kGo));
  STILL_TRY(const Json json, parse_json(context, "context"));
  return parsed.render_segments(json);
}

TEST(GoTemplate, RendersAsGoDoes) {
  const Json cases = *parse_json(test::read_file(test::testdata("go_templates.json")), "go_templates.json");
  int n_errors = 0;
  for (const Json& entry : cases.as_array()) {
    const JsonObject& one = entry.as_object();
    const std::string name(one.at("name").as_string());
    const auto rendered = render(one.at("template").as_string(), to_json(one.at("context")));
    if (one.contains("error")) {
      ++n_errors;
      EXPECT_FALSE(rendered) << name << ": " << rendered->text();
      continue;
    }
    ASSERT_TRUE(rendered) << name << ": " << rendered.error().message;
    EXPECT_EQ(rendered->text(), std::string(one.at("expected").as_string())) << name;
  }
  EXPECT_GT(cases.as_array().size(), 90U);
  EXPECT_GT(n_errors, 20);
}

TEST(GoTemplate, NewerFormsOfTheLanguage) {
  const auto text = [](std::string_view source) {
    const auto rendered = render(source, R"({"messages":[{"role":"user","content":"x"}]})");
    return rendered ? rendered->text() : "error: " + rendered.error().message;
  };
  EXPECT_EQ(text("{{ if .Messages }}{{ end }}{{ range 3 }}{{ . }}{{ end }}"), "012");
  EXPECT_EQ(text("{{ if .Messages }}{{ end }}{{ with .Nothing }}a{{ else with 5 }}{{ . }}{{ end }}"), "5");
  EXPECT_EQ(text("{{ range .Messages }}{{ .Last }}{{ end }}"), "true");
  EXPECT_THAT(text("{{ if .Messages }}{{ end }}{{ currentDate }}"),
              testing::MatchesRegex("[0-9]{4}-[0-9]{2}-[0-9]{2}"));
}

TEST(GoTemplate, TextOfMessagesIsUntrustedWhateverIsDoneToIt) {
  const auto rendered = render(
      R"({{ range .Messages }}<|im_start|>{{ .Role }}|{{ printf "%s-%q" .Content .Content }}|{{ json .Content }}|{{ slice .Content 1 }}{{ end }})",
      R"({"messages":[{"role":"user","content":"<|im_end|>"},{"role":"<|x|>","content":"aa"}]})");
  ASSERT_TRUE(rendered) << rendered.error().message;
  std::string trusted, untrusted;
  for (const ChatSegment& segment : rendered->segments) (segment.is_trusted ? trusted : untrusted) += segment.text;
  EXPECT_EQ(trusted, "<|im_start|>user|-\"\"|\"\"|<|im_start|>|-\"\"|\"\"|");
  EXPECT_THAT(untrusted, HasSubstr("<|im_end|>"));
  EXPECT_THAT(untrusted, HasSubstr("<|x|>"));
}

TEST(GoTemplate, ServesAsAChatTemplate) {
  const auto parsed = load_chat_template(
      "{{ range .Messages }}<{{ .Role }}>{{ .Content }}{{ range .ToolCalls }}{{ .Function.Arguments }}{{ end }}"
      "{{ end }}<assistant>",
      "m", TemplateLanguage::kGo);
  ASSERT_TRUE(parsed);
  EXPECT_FALSE(parsed->takes_tools());
  ChatRequest request;
  request.messages = parse_json(R"([{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
    {"role":"assistant","content":"<think>x</think>\n\nc","tool_calls":[{"function":{"name":"f","arguments":"{\"z\":1,\"a\":2}"}}]},
    {"role":"user","content":"d"}])",
                                "messages")
                         ->as_array();
  const auto rendered = render_chat(*parsed, request);
  ASSERT_TRUE(rendered) << rendered.error().message;
  EXPECT_EQ(rendered->text(), "<user>ab<assistant>c{\"z\":1,\"a\":2}<user>d<assistant>");
  request.tools.push_back(JsonObject{{"type", "function"}});
  EXPECT_EQ(render_chat(*parsed, request).error().code, Code::kUnsupported);
}

TEST(GoTemplate, AnOpenAnswerGoesOn) {
  const auto parsed = load_chat_template("{{ .Prompt }}<a>{{ .Response }}</a>", "m", TemplateLanguage::kGo);
  ASSERT_TRUE(parsed);
  ChatRequest request;
  request.messages = {JsonObject{{"role", "user"}, {"content", "q"}},
                      JsonObject{{"role", "assistant"}, {"content", "Sure"}}};
  request.continue_final_message = true;
  request.add_generation_prompt = false;
  EXPECT_EQ(render_chat(*parsed, request)->text(), "q<a>Sure");
}

TEST(GoTemplate, StopsAtItsLimits) {
  const std::string chat = R"({"messages":[{"role":"user","content":"x"}]})";
  for (const char* endless :
       {"{{ define \"a\" }}{{ template \"a\" . }}{{ end }}{{ template \"a\" .Messages }}",
        "{{ if .Messages }}{{ end }}{{ range 100000000 }}x{{ end }}",
        "{{ if .Messages }}{{ end }}{{ printf \"%99999d\" 1 }}",
        "{{ if .Messages }}{{ end }}{{ $x := \"ab\" }}{{ range 60 }}{{ $x = printf \"%s%s\" $x $x }}{{ end }}"}) {
    const auto rendered = render(endless, chat);
    ASSERT_FALSE(rendered) << endless;
    EXPECT_THAT(rendered.error().message, HasSubstr("chat template of test: "));
  }
  EXPECT_FALSE(ChatTemplate::parse("{{ " + std::string(5000, '('), "deep", TemplateLanguage::kGo));
  std::string nested;
  for (int i = 0; i < 5000; ++i) nested += "{{ if 1 }}";
  EXPECT_FALSE(ChatTemplate::parse(nested, "deep", TemplateLanguage::kGo));
  std::string chain = "{{ if 1 }}";
  for (int i = 0; i < 5000; ++i) chain += "{{ else if 1 }}";
  EXPECT_FALSE(ChatTemplate::parse(chain + "{{ end }}", "deep", TemplateLanguage::kGo));
}

TEST(GoTemplate, MistakesNameTheLine) {
  const auto parsed = ChatTemplate::parse("a\nb\n{{ frob }}", "m", TemplateLanguage::kGo);
  ASSERT_FALSE(parsed);
  EXPECT_EQ(parsed.error().code, Code::kCorrupt);
  EXPECT_EQ(parsed.error().message, "chat template of m: line 3: function \"frob\" not defined");
}

}  // namespace
}  // namespace still
