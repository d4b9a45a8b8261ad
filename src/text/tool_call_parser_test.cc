// The tool call parser: every format whole and cut at every byte, several calls, and texts that are none.
#include "text/tool_call_parser.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "text/test_files.h"

namespace still {
namespace {

#define STILL_MARK(text) "<\xef\xbd\x9c" text "\xef\xbd\x9c>"
#define STILL_JOIN "\xe2\x96\x81"
#define CALLS_BEGIN STILL_MARK("tool" STILL_JOIN "calls" STILL_JOIN "begin")
#define CALLS_END STILL_MARK("tool" STILL_JOIN "calls" STILL_JOIN "end")
#define CALL_BEGIN STILL_MARK("tool" STILL_JOIN "call" STILL_JOIN "begin")
#define CALL_END STILL_MARK("tool" STILL_JOIN "call" STILL_JOIN "end")
#define SEP STILL_MARK("tool" STILL_JOIN "sep")

using F = ToolCallFormat;

// "text" for content, "#name(arguments)" for a call.
struct Summary {
  std::string text;
  void add(const std::vector<ToolCallEvent>& events) {
    for (const ToolCallEvent& event : events) {
      if (event.kind == ToolCallEvent::Kind::kContent) {
        EXPECT_FALSE(event.text.empty());
        text += event.text;
      } else {
        EXPECT_EQ(event.index, n_calls++);
        text += "#" + event.name + "(" + event.arguments + ")" + event.id;
      }
    }
  }
  int n_calls = 0;
};

std::string parse_in_pieces(F format, std::string_view text, const std::vector<std::size_t>& cuts) {
  ToolCallParser parser(format);
  Summary summary;
  std::size_t begin = 0;
  for (const std::size_t cut : cuts) {
    summary.add(parser.feed(text.substr(begin, cut - begin)));
    begin = cut;
  }
  summary.add(parser.feed(text.substr(begin)));
  summary.add(parser.finish());
  EXPECT_EQ(parser.n_calls(), summary.n_calls);
  return summary.text;
}

struct Case {
  F format;
  std::string text, wanted;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> list = {
      {F::kHermes, "Hello <b>", "Hello <b>"},
      {F::kHermes,
       "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1.0, \"a\": \"}</tool_call>\\\"{\"}}\n</tool_call>",
       "#f({\"b\": 1.0, \"a\": \"}</tool_call>\\\"{\"})"},
      {F::kHermes,
       "Ok.\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</"
       "tool_call>\n<tool_call>\n{\"name\":\"g\",\"arguments\":{\"x\":[1,{}]}}\n</tool_call>\n",
       "Ok.\n#f({})#g({\"x\":[1,{}]})"},
      {F::kHermes, "<tool_call>{\"arguments\":\"{\\\"k\\\":1}\",\"name\":\"\u00e9\u540d\"}",
       "#\u00e9\u540d({\"k\":1})"},
      {F::kHermes, "<tool_call>{\"name\":\"f\"}</tool_call> bye", "#f({})bye"},
      {F::kHermes, "<tool_call>nothing</tool_call>", "<tool_call>nothing</tool_call>"},
      {F::kHermes, "<tool_call>{\"name\": 3}</tool_call>", "<tool_call>{\"name\": 3}</tool_call>"},
      {F::kHermes, "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
       "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>"},
      {F::kHermes, "<tool_call>{\"name\": \"f\", \"argum", "<tool_call>{\"name\": \"f\", \"argum"},
      {F::kHermes, "<tool_call>{bad}</tool_call><tool_call>{\"name\":\"f\"}</tool_call>",
       "<tool_call>{bad}</tool_call>#f({})"},
      {F::kHermes, "a <tool_ca", "a <tool_ca"},
      {F::kLlama3, "{\"name\": \"f\", \"parameters\": {\"q\": \"\u00fc\"}}", "#f({\"q\": \"\u00fc\"})"},
      {F::kLlama3,
       "\n<|python_tag|>{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}; "
       "{\"name\":\"g\",\"parameters\":{\"a\":1}}",
       "\n#f({})#g({\"a\":1})"},
      {F::kLlama3, "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"a\":2}}}", "#f({\"a\":2})"},
      {F::kLlama3, "{\"answer\": {\"name\": \"f\", \"parameters\": {}}}",
       "{\"answer\": {\"name\": \"f\", \"parameters\": {}}}"},
      {F::kLlama3, "Sure: {\"name\": \"f\", \"parameters\": {}}", "Sure: {\"name\": \"f\", \"parameters\": {}}"},
      {F::kLlama3, "<|python_tag|>print(1)", "<|python_tag|>print(1)"},
      {F::kLlama3, "{}", "{}"},
      {F::kDeepSeek,
       "Let me look." CALLS_BEGIN CALL_BEGIN "function" SEP "f\n```json\n{\"a\": \"```\"}\n```" CALL_END "\n" CALL_BEGIN
       "function" SEP "g\n```json\n{}\n```" CALL_END CALLS_END,
       "Let me look.#f({\"a\": \"```\"})#g({})"},
      {F::kDeepSeek, CALL_BEGIN "function" SEP "f\n```json\n{}", "#f({})"},
      {F::kDeepSeek, CALLS_BEGIN "what", CALLS_BEGIN "what"},
      {F::kDeepSeek, CALLS_BEGIN CALL_BEGIN "function" SEP "f\n```json\n{oops}\n```" CALL_END CALLS_END,
       CALLS_BEGIN CALL_BEGIN "function" SEP "f\n```json\n{oops}\n```" CALL_END CALLS_END},
      {F::kDeepSeek31,
       CALLS_BEGIN CALL_BEGIN "f" SEP "{\"x\":1}" CALL_END CALL_BEGIN "g" SEP "{\"y\": {}}" CALL_END CALLS_END,
       "#f({\"x\":1})#g({\"y\": {}})"},
      {F::kDeepSeek31, "\xef\xbd\x9c < " STILL_MARK("tool") " x", "\xef\xbd\x9c < " STILL_MARK("tool") " x"},
      {F::kMistral,
       "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": \"]\"}, \"id\": \"Xy1\"}, {\"name\": \"g\", "
       "\"arguments\": {}}]",
       "#f({\"a\": \"]\"})Xy1#g({})"},
      {F::kMistral, "[{\"name\": \"f\", \"arguments\": {}}]", "#f({})"},
      {F::kMistral, "[TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g[CALL_ID]123[ARGS]{}", "#f({\"a\": 1})#g({})123"},
      {F::kMistral, "[1, 2]", "[1, 2]"},
      {F::kMistral, "[TOOL_CALLS] oh\nno", "[TOOL_CALLS] oh\nno"},
      {F::kMistral, "[{\"a\": 1}]", "[{\"a\": 1}]"},
      {F::kNone, "<tool_call>{\"name\":\"f\"}</tool_call>", "<tool_call>{\"name\":\"f\"}</tool_call>"},
  };
  return list;
}

TEST(ToolCallParser, GivesTheSameWhereverTheTextIsCut) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.text);
    EXPECT_EQ(parse_in_pieces(c.format, c.text, {}), c.wanted);
    for (std::size_t cut = 0; cut <= c.text.size(); ++cut)
      EXPECT_EQ(parse_in_pieces(c.format, c.text, {cut}), c.wanted) << cut;
    std::vector<std::size_t> all;
    for (std::size_t cut = 1; cut < c.text.size(); ++cut) all.push_back(cut);
    EXPECT_EQ(parse_in_pieces(c.format, c.text, all), c.wanted);
  }
}

TEST(ToolCallParser, PassesTextOnAtOnceAndHoldsOnlyWhatMayBeACall) {
  ToolCallParser parser(F::kHermes);
  auto events = parser.feed("Hello wor");
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].text, "Hello wor");
  EXPECT_TRUE(parser.feed("<tool").empty());
  events = parser.feed("box>");
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].text, "<toolbox>");
  ToolCallParser llama(F::kLlama3);
  EXPECT_TRUE(llama.feed("{\"na").empty());
  EXPECT_EQ(llama.feed("tion\": ")[0].text, "{\"nation\": ");
}

TEST(ToolCallParser, LosesNothingOfRandomGarbage) {
  constexpr std::uint64_t kSeed = 11;
  SCOPED_TRACE(kSeed);
  Rng rng(kSeed);
  const std::vector<std::string> pieces = {"<tool_call>",
                                           "</tool_call>",
                                           "{",
                                           "}",
                                           "\"",
                                           "name",
                                           ":",
                                           "[",
                                           "]",
                                           "x",
                                           "<|python_tag|>",
                                           "[TOOL_CALLS]",
                                           "[ARGS]",
                                           CALLS_BEGIN,
                                           CALLS_END,
                                           CALL_BEGIN,
                                           CALL_END,
                                           SEP,
                                           "```json",
                                           "\n",
                                           "\\",
                                           "\u00e9",
                                           ";",
                                           ","};
  for (int round = 0; round < 4000; ++round) {
    std::string text;
    std::vector<std::size_t> cuts;
    for (auto n = rng.below(25); n > 0; --n) {
      text += pieces[static_cast<std::size_t>(rng.below(static_cast<std::int64_t>(pieces.size())))];
      if (rng.below(2) == 0) cuts.push_back(text.size());
    }
    const auto format = static_cast<F>(rng.below(6));
    const std::string whole = parse_in_pieces(format, text, {});
    EXPECT_EQ(parse_in_pieces(format, text, cuts), whole) << text;
    if (whole.find('#') == std::string::npos) {
      EXPECT_EQ(whole, text);
    }
  }
}

TEST(ToolCallParser, IsChosenByTheTemplate) {
  const auto format_of = [](const std::string& name) {
    auto parsed = ChatTemplate::parse(test::read_file(test::testdata("templates/" + name + ".jinja")), name);
    STILL_CHECK(parsed);
    return detect_tool_call_format(*parsed);
  };
  EXPECT_EQ(format_of("qwen2.5"), F::kHermes);
  EXPECT_EQ(format_of("qwen3"), F::kHermes);
  EXPECT_EQ(format_of("deepseek-r1"), F::kDeepSeek);
  EXPECT_EQ(format_of("deepseek-r1-distill-qwen"), F::kDeepSeek);
  EXPECT_EQ(format_of("deepseek-v3.1"), F::kDeepSeek31);
  EXPECT_EQ(format_of("smollm2"), F::kNone);
}

// Smaller models forget the tags.
TEST(ToolCallParser, TakesKnownCallsWithoutTags) {
  const std::pair<std::string, std::string> untagged[] = {
      {R"({"name": "f", "arguments": {"a": 1}})", R"(#f({"a": 1}))"},
      {"\n{\"name\": \"f\"}", "\n#f({})"},
      {"```json\n{\"name\": \"g\", \"arguments\": {}}\n```\n", "#g({})"},
      {"```{\"name\": \"g\"}", "#g({})"},
      {R"({"name": "f"} {"name": "g"})", "#f({})#g({})"},
      {R"({"name": "f"}<tool_call>{"name": "h"}</tool_call>)", "#f({})#h({})"},
      {R"({"name": "Bob", "arguments": {"a": 1}})", R"({"name": "Bob", "arguments": {"a": 1}})"},
      {R"({"age": 3, "name": "f"})", R"({"age": 3, "name": "f"})"},
      {R"(Call: {"name": "f"})", R"(Call: {"name": "f"})"},
      {"```python\nprint(1)\n```", "```python\nprint(1)\n```"},
      {"```json\n[1]\n```", "```json\n[1]\n```"},
      {"``", "``"},
      {R"({"name": "f", "argu)", R"({"name": "f", "argu)"},
      {"{}", "{}"},
  };
  for (const auto& [text, wanted] : untagged) {
    for (std::size_t cut = 0; cut <= text.size(); ++cut) {
      ToolCallParser parser(F::kHermes, {"f", "g"});
      Summary summary;
      summary.add(parser.feed(std::string_view(text).substr(0, cut)));
      summary.add(parser.feed(std::string_view(text).substr(cut)));
      summary.add(parser.finish());
      EXPECT_EQ(summary.text, wanted) << cut;
    }
    ToolCallParser bytes(F::kHermes, {"f", "g"});
    Summary summary;
    for (const char& c : text) summary.add(bytes.feed({&c, 1}));
    summary.add(bytes.finish());
    EXPECT_EQ(summary.text, wanted);
  }
  // What cannot become a call goes on at once.
  ToolCallParser parser(F::kHermes, {"f"});
  EXPECT_FALSE(parser.feed("{\"age\": ").empty());
}

}  // namespace
}  // namespace still
