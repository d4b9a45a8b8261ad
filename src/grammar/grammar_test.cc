// Constrained decoding: random sampling through masks gives only what validates; what is refused says where.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "grammar/compiler.h"
#include "grammar/number_range.h"
#include "grammar/test_schemas.h"
#include "grammar/tool_grammar.h"
#include "text/test_files.h"

namespace still {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct Vocabulary {
  explicit Vocabulary(Tokenizer given) : tokenizer(std::move(given)) {
    auto made = GrammarCompiler::make(tokenizer);
    if (made) compiler = *made;
  }
  Tokenizer tokenizer;
  std::shared_ptr<GrammarCompiler> compiler;
};

const Vocabulary& small_vocabulary() {
  static const Vocabulary vocabulary(test::small_tokenizer("smollm"));
  return vocabulary;
}

#define STILL_NEEDS_ENGINE() \
  if (!small_vocabulary().compiler) GTEST_SKIP() << grammar_engine()

struct Sample {
  std::string text;
  bool finished = false;
  std::int64_t n_tokens = 0;
};
struct MaskTimes {
  std::vector<double> us;
  double quantile(double q) {
    std::ranges::sort(us);
    return us.empty() ? 0 : us[static_cast<std::size_t>(q * static_cast<double>(us.size() - 1))];
  }
};

// Draws at temperature 2 from random logits. Closing marks grow likelier with the length, for among the thousands of
// tokens of a string the quote would hardly ever be drawn.
Sample draw(const Vocabulary& vocabulary, const std::shared_ptr<const CompiledGrammar>& grammar, Rng& rng,
            std::int64_t max_tokens, MaskTimes* times = nullptr) {
  const Tokenizer& tokenizer = vocabulary.tokenizer;
  const std::shared_ptr<TokenConstraint> constraint = make_constraint(grammar);
  std::vector<std::uint32_t> mask(static_cast<std::size_t>(token_mask_words(tokenizer.vocab_size())) + 2, 1u);
  Sample sample;
  for (; sample.n_tokens < max_tokens; ++sample.n_tokens) {
    if (constraint->is_complete()) {
      sample.finished = true;
      break;
    }
    const auto begin = std::chrono::steady_clock::now();
    constraint->fill_mask(mask);
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
    if (times) times->us.push_back(took.count());
    EXPECT_EQ(mask.back(), 0u) << "bits behind the vocabulary";
    double best = -1e30;
    TokenId chosen = -1;
    for (TokenId id = 0; id < tokenizer.vocab_size(); ++id) {
      if (!(mask[static_cast<std::size_t>(id) / 32] >> (id % 32) & 1)) continue;
      const bool ends = tokenizer.ends_generation(id);
      EXPECT_TRUE(ends || !tokenizer.is_special(id)) << "special token " << tokenizer.token_text(id);
      double logit = 4 * (rng.uniform() + rng.uniform() + rng.uniform() + rng.uniform() - 2) * 1.7;
      const std::string_view bytes = tokenizer.token_bytes(id);
      if (ends || bytes.find_first_not_of("\"}],") == std::string_view::npos)
        logit += 6 + 0.5 * static_cast<double>(sample.n_tokens);
      // Gumbel's way to draw from a softmax.
      const double noisy = logit / 2 - std::log(-std::log(rng.uniform() + 1e-12));
      if (noisy > best) {
        best = noisy;
        chosen = id;
      }
    }
    if (chosen < 0) {
      ADD_FAILURE() << "nothing is allowed after " << sample.text;
      break;
    }
    EXPECT_TRUE(constraint->accept(chosen));
    if (tokenizer.ends_generation(chosen)) {
      sample.finished = true;
      break;
    }
    sample.text += tokenizer.token_bytes(chosen);
  }
  return sample;
}

void check_random_schemas(const Vocabulary& vocabulary, int n_schemas, int n_samples, std::uint64_t seed) {
  // Pairs for tools/check_structured_output.py.
  const char* dump_path = std::getenv("STILL_GRAMMAR_DUMP");
  std::ofstream dump;
  if (dump_path) dump.open(dump_path, std::ios::app);
  test::SchemaGenerator generator(seed);
  Rng rng(seed + 1);
  MaskTimes times;
  MaskTimes compile_times;
  int n_finished = 0, n_drawn = 0;
  for (int i = 0; i < n_schemas; ++i) {
    const Json schema = generator.make();
    SCOPED_TRACE(fmt::format("seed {}, schema {}: {}", seed, i, to_json(schema)));
    const auto begin = std::chrono::steady_clock::now();
    const auto grammar = vocabulary.compiler->compile_json_schema(schema, "schema", {.allows_whitespace = i % 2 == 0});
    compile_times.us.push_back(
        std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
    ASSERT_TRUE(grammar) << grammar.error().message;
    for (int k = 0; k < n_samples; ++k) {
      const Sample sample = draw(vocabulary, *grammar, rng, 500, &times);
      ++n_drawn;
      if (!sample.finished) continue;
      ++n_finished;
      ASSERT_TRUE(is_valid_utf8(sample.text)) << sample.text;
      const auto value = parse_json(sample.text, "output");
      ASSERT_TRUE(value) << sample.text << "\n" << value.error().message;
      ASSERT_TRUE(test::validates(*value, schema, schema)) << sample.text;
      if (i % 2 == 1) {
        ASSERT_EQ(sample.text.find('\n'), std::string::npos) << sample.text;
      }
      if (dump.is_open()) dump << to_json(JsonObject{{"schema", schema}, {"output", sample.text}}) << '\n';
    }
  }
  EXPECT_GT(n_finished, n_drawn * 9 / 10);
  fmt::print(
      "{} schemas, {} of {} outputs finished and valid, {} masks: median {:.0f} us, 99 % {:.0f} us; compiling: median "
      "{:.1f} ms, most {:.0f} ms; vocabulary {}\n",
      n_schemas, n_finished, n_drawn, times.us.size(), times.quantile(0.5), times.quantile(0.99),
      compile_times.quantile(0.5) / 1e3, compile_times.quantile(1) / 1e3, vocabulary.tokenizer.vocab_size());
}

TEST(GrammarCompiler, RandomSamplesOfRandomSchemasValidate) {
  STILL_NEEDS_ENGINE();
  check_random_schemas(small_vocabulary(), 200, 3, 20);
}

TEST(GrammarCompiler, RandomSamplesValidateWithAPublishedVocabulary) {
  STILL_NEEDS_ENGINE();
  if (test::models_folder().empty()) GTEST_SKIP() << "STILL_TEST_MODELS names no folder with smollm2.gguf";
  auto tokenizer = Tokenizer::make(test::read_gguf_vocabulary(test::models_folder() + "/smollm2.gguf").data);
  ASSERT_TRUE(tokenizer);
  const Vocabulary vocabulary(std::move(*tokenizer));
  check_random_schemas(vocabulary, 40, 2, 7);
}

// What is compiled from `schema` accepts a text.
bool accepts(const std::shared_ptr<const CompiledGrammar>& grammar, std::string_view text) {
  const Tokenizer& tokenizer = small_vocabulary().tokenizer;
  const std::shared_ptr<TokenConstraint> constraint = make_constraint(grammar);
  std::vector<std::uint32_t> mask(static_cast<std::size_t>(token_mask_words(tokenizer.vocab_size())));
  for (const TokenId id : tokenizer.encode(text)) {
    if (constraint->is_complete()) return false;
    constraint->fill_mask(mask);
    const bool allowed = mask[static_cast<std::size_t>(id) / 32] >> (id % 32) & 1;
    const bool accepted = constraint->accept(id);
    EXPECT_EQ(allowed, accepted) << text;
    if (!accepted) return false;
  }
  if (constraint->is_complete()) return true;
  constraint->fill_mask(mask);
  return std::ranges::any_of(tokenizer.end_of_generation(),
                             [&](TokenId id) { return mask[static_cast<std::size_t>(id) / 32] >> (id % 32) & 1; });
}

bool schema_accepts(std::string_view schema, std::string_view text) {
  const auto grammar = small_vocabulary().compiler->compile_json_schema(*parse_json(schema, "schema"));
  EXPECT_TRUE(grammar) << grammar.error().message;
  return grammar && accepts(*grammar, text);
}

TEST(JsonSchema, AcceptsWhatItShould) {
  STILL_NEEDS_ENGINE();
  const char* person =
      R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0,"maximum":150}},"required":["name"]})";
  EXPECT_TRUE(schema_accepts(person, R"({"name": "Ann", "age": 42})"));
  EXPECT_TRUE(schema_accepts(person, "{\n  \"name\": \"A\\u00e9\\ud83d\\ude00\"\n}"));
  EXPECT_FALSE(schema_accepts(person, R"({"age": 42})"));
  EXPECT_FALSE(schema_accepts(person, R"({"name": "Ann", "age": 151})"));
  EXPECT_FALSE(schema_accepts(person, R"({"name": "\ud83d"})"));
  EXPECT_FALSE(schema_accepts(person, R"({"name": "Ann", "x": 1})"));
  EXPECT_TRUE(schema_accepts("{}", R"({"a": [1, -2.5e3, true, null, {"b": ""}]})"));
  EXPECT_TRUE(schema_accepts(R"({"type":"object"})", "{}"));
  EXPECT_TRUE(schema_accepts(R"({"enum":["a\"b",1]})", R"("a\"b")"));
  EXPECT_FALSE(schema_accepts(R"({"enum":["a",1],"type":"string"})", "1"));
  EXPECT_TRUE(schema_accepts(R"({"type":"string","pattern":"^ab"})", R"("abzz")"));
  EXPECT_FALSE(schema_accepts(R"({"type":"string","pattern":"^ab$"})", R"("abzz")"));
  // A key that is not named may not spell one that is.
  const char* open = R"({"properties":{"ab":{"const":1}},"additionalProperties":{"const":2}})";
  EXPECT_TRUE(schema_accepts(open, R"({"ab": 1, "abc": 2, "a": 2})"));
  EXPECT_FALSE(schema_accepts(open, R"({"ab": 1, "ab": 2})"));
  EXPECT_FALSE(schema_accepts(open, R"({"ab": 1, "a\u0062": 2})"));
  const char* tree =
      R"({"$ref":"#/$defs/t","$defs":{"t":{"type":"object","properties":{"k":{"type":"array","items":{"$ref":"#/$defs/t"}}},"required":["k"]}}})";
  EXPECT_TRUE(schema_accepts(tree, R"({"k": [{"k": []}, {"k": [{"k": []}]}]})"));
  const char* either =
      R"({"type":"object","properties":{"a":{"type":"integer"}},"anyOf":[{"required":["a"]},{"properties":{"b":{"const":true}},"required":["b"]}]})";
  EXPECT_TRUE(schema_accepts(either, R"({"a": 1})"));
  EXPECT_TRUE(schema_accepts(either, R"({"b": true})"));
  EXPECT_FALSE(schema_accepts(either, "{}"));
}

TEST(JsonSchema, RefusesByNameAndPlace) {
  STILL_NEEDS_ENGINE();
  const auto refusal = [](std::string_view schema) {
    const auto grammar = small_vocabulary().compiler->compile_json_schema(*parse_json(schema, "schema"), "s");
    return grammar ? std::string("accepted") : grammar.error().message;
  };
  EXPECT_EQ(refusal(R"({"properties":{"a":{"not":{}}}})"), "s/properties/a/not: this keyword is not supported");
  EXPECT_EQ(refusal(R"({"items":{"type":"strin"}})"),
            "s/items/type: \"strin\": expected object, array, string, number, integer, boolean or null");
  EXPECT_THAT(refusal(R"({"type":"array","uniqueItems":true})"), HasSubstr("s/uniqueItems"));
  EXPECT_THAT(refusal(R"({"type":"integer","minimum":3,"maximum":2})"), HasSubstr("no value can fit"));
  EXPECT_THAT(refusal(R"({"properties":{"a":false},"required":["a"]})"),
              AllOf(HasSubstr("s/properties/a"), HasSubstr("no value can fit")));
  EXPECT_THAT(refusal(R"({"properties":{"a":{"$ref":"#"}},"required":["a"]})"), HasSubstr("contain itself"));
  EXPECT_THAT(refusal(R"({"$ref":"#"})"), HasSubstr("contain itself"));
  EXPECT_THAT(refusal(R"({"allOf":[{"$ref":"#"}],"type":"object"})"), HasSubstr("circle"));
  EXPECT_THAT(refusal(R"({"$ref":"#/$defs/x"})"), HasSubstr("no such place"));
  EXPECT_THAT(refusal(R"({"$ref":"https://example.org/s.json"})"), HasSubstr("inside the schema"));
  EXPECT_THAT(refusal(R"({"oneOf":[{"type":"integer"},{"type":"number"}]})"),
              HasSubstr("s/oneOf: a value might fit branches 0 and 1"));
  EXPECT_THAT(refusal(R"x({"pattern":"(?=a)"})x"), AllOf(HasSubstr("s/pattern"), HasSubstr("look-ahead")));
  EXPECT_THAT(refusal(R"x({"pattern":"a("})x"), HasSubstr("'(' without ')'"));
  EXPECT_THAT(refusal(R"({"type":"string","minLength":5,"maxLength":4})"), HasSubstr("no value can fit"));
  EXPECT_THAT(refusal(R"({"type":"string","minLength":-1})"), HasSubstr("s/minLength: -1"));
  EXPECT_THAT(refusal(R"({"allOf":[{"type":"string"},{"type":"integer"}]})"), HasSubstr("no value can fit"));
  EXPECT_THAT(refusal(R"({"required":["x"],"additionalProperties":false})"), HasSubstr("s/required: \"x\""));
  EXPECT_THAT(refusal("3"), HasSubstr("expected a schema"));
  // An optional property that cannot be is left out.
  EXPECT_TRUE(schema_accepts(R"({"properties":{"a":false,"b":{"const":1}}})", R"({"b": 1})"));
}

TEST(JsonSchema, BombsEndQuickly) {
  STILL_NEEDS_ENGINE();
  const auto refused = [](const Json& schema) {
    const auto begin = std::chrono::steady_clock::now();
    const auto grammar = small_vocabulary().compiler->compile_json_schema(schema);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
    return !grammar;
  };
  // Each definition holds the next one twice, through allOf, which has no rule to share.
  JsonObject defs;
  for (int i = 0; i < 25; ++i) {
    const Json next{{"$ref", fmt::format("#/$defs/d{}", i + 1)}};
    const Json wrapped = JsonObject{{"allOf", JsonArray{next, Json(JsonObject{{"type", "object"}})}}};
    defs[fmt::format("d{}", i)] = JsonObject{{"type", "object"},
                                             {"properties", JsonObject{{"a", wrapped}, {"b", wrapped}}},
                                             {"required", JsonArray{"a", "b"}}};
  }
  defs["d25"] = JsonObject{{"type", "object"}};
  EXPECT_TRUE(refused(JsonObject{{"$ref", "#/$defs/d0"}, {"$defs", defs}}));
  EXPECT_TRUE(refused(*parse_json(R"({"type":"array","minItems":1000000000})", "")));
  EXPECT_TRUE(refused(*parse_json(R"x({"type":"string","pattern":"((a{1000}){1000}){1000}"})x", "")));
  Json deep(JsonObject{});
  for (int i = 0; i < 100; ++i) deep = JsonObject{{"items", deep}};
  EXPECT_TRUE(refused(deep));
  EXPECT_TRUE(refused(JsonObject{{"description", std::string(300 << 10, 'x')}}));
}

TEST(GrammarCompiler, GivesUpWhatTakesTooLong) {
  STILL_NEEDS_ENGINE();
  using std::chrono::milliseconds;
  const auto made = GrammarCompiler::make(small_vocabulary().tokenizer, {.max_time = milliseconds(300)});
  ASSERT_TRUE(made);
  GrammarCompiler& compiler = **made;
  // A nest of repetitions, many states with a wide class each, an ambiguous sum, and alternatives that multiply.
  std::string words = "root ::= ", doubles = "root ::= r0\n";
  for (int i = 0; i < 3000; ++i) words += fmt::format("{}[^{}]* \"{}\"", i == 0 ? "" : " | ", i % 10, i);
  for (int i = 0; i < 28; ++i) doubles += fmt::format("r{0} ::= r{1} r{1} | r{1} \"{0}\" r{1}\n", i, i + 1);
  doubles += "r28 ::= [a-z] | \"\"\n";
  const std::vector<std::string> bombs = {
      "root ::= ((([^x]{1,40}){1,40}){1,40}){1,40}",
      "root ::= [^\"]{1,100000}",
      "root ::= a{1,50000}\na ::= [^x]{1,5} b | b [^y]{2,7}\nb ::= [a-z]{3,9}",
      "root ::= e\ne ::= e \"+\" e | e e | [a-z]{1,9} | \"\" e",
      words + "\n",
      doubles,
  };
  for (const std::string& bomb : bombs) {
    const auto begin = std::chrono::steady_clock::now();
    const auto grammar = compiler.compile_ebnf(bomb);
    // Generous: sanitizers and other jobs. Without a limit these take minutes to days, or are quick.
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20)) << bomb.substr(0, 60);
    if (!grammar) {
      EXPECT_THAT(grammar.error().message, HasSubstr("compiling it takes more than 0.3 s"));
    }
    if (std::getenv("STILL_TEST_VERBOSE") != nullptr)
      fmt::print("{} {:.2f} s\n", grammar ? "compiled" : "gave up",
                 std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  const auto schema = compiler.compile_json_schema(*parse_json(R"({"type":"string","maxLength":90000})", ""));
  if (!schema) {
    EXPECT_EQ(schema.error().code, Code::kResourceExhausted);
  }
  // The compiler goes on working.
  EXPECT_TRUE(compiler.compile_ebnf("root ::= \"a\" [0-9]{1,3}\n"));
}

TEST(GrammarCompiler, GivesUpAMaskThatTakesTooLong) {
  STILL_NEEDS_ENGINE();
  const auto made =
      GrammarCompiler::make(small_vocabulary().tokenizer, {.max_mask_time = std::chrono::milliseconds(0)});
  ASSERT_TRUE(made);
  // So many ways through that the first mask looks at the clock.
  const auto grammar = (*made)->compile_ebnf("root ::= ([^x]{1,60} | [^y]{1,60} | a)*\na ::= [a-z]* | a a | \"b\" a\n");
  ASSERT_TRUE(grammar) << grammar.error().message;
  const auto constraint = make_constraint(*grammar);
  std::vector<std::uint32_t> mask(
      static_cast<std::size_t>(token_mask_words(small_vocabulary().tokenizer.vocab_size())));
  const std::vector<TokenId> ids = small_vocabulary().tokenizer.encode("a quite ordinary text, which fits");
  bool is_given_up = false;
  for (std::size_t i = 0; i < ids.size() && !is_given_up; ++i) {
    constraint->fill_mask(mask);
    is_given_up = !constraint->accept(ids[i]);
  }
  ASSERT_TRUE(is_given_up);
  EXPECT_THAT(std::string(constraint->problem()), HasSubstr("too hard to keep to"));
  constraint->fill_mask(mask);
  EXPECT_TRUE(std::ranges::all_of(mask, [](std::uint32_t word) { return word == 0; }));
}

TEST(GrammarCompiler, GivesUpWhenItIsStopped) {
  STILL_NEEDS_ENGINE();
  const auto is_stopped = std::make_shared<std::atomic<bool>>(true);
  const auto made = GrammarCompiler::make(small_vocabulary().tokenizer, {.is_stopped = is_stopped});
  ASSERT_TRUE(made);
  EXPECT_EQ((*made)->compile_ebnf("root ::= [^x]{1,9}").error().code, Code::kCancelled);
}

TEST(GrammarCompiler, KnowsRegexChoiceEbnfAndObjects) {
  STILL_NEEDS_ENGINE();
  GrammarCompiler& compiler = *small_vocabulary().compiler;
  const auto phone = compiler.compile_regex(R"(\+?\d{1,3}( \d{2,4}){2})");
  ASSERT_TRUE(phone);
  EXPECT_TRUE(accepts(*phone, "+49 30 1234"));
  EXPECT_FALSE(accepts(*phone, "+49 30"));
  const std::vector<std::string> colours{"red", "green", "größer"};
  const auto choice = compiler.compile_choice(colours);
  ASSERT_TRUE(choice);
  EXPECT_TRUE(accepts(*choice, "größer"));
  EXPECT_FALSE(accepts(*choice, "redd"));
  const auto ebnf = compiler.compile_ebnf("root ::= \"a\" [0-9]{1,3} rest*\nrest ::= \"-\" [x-z]\n");
  ASSERT_TRUE(ebnf) << ebnf.error().message;
  EXPECT_TRUE(accepts(*ebnf, "a12-x-z"));
  EXPECT_FALSE(accepts(*ebnf, "a-x"));
  EXPECT_FALSE(compiler.compile_ebnf("root ::= \"a"));
  EXPECT_FALSE(compiler.compile_ebnf("start ::= \"a\""));
  EXPECT_FALSE(compiler.compile_ebnf(""));
  EXPECT_FALSE(compiler.compile_regex("[z-a]"));
  EXPECT_FALSE(compiler.compile_choice({}));
  const auto object = compiler.compile_json_object();
  ASSERT_TRUE(object);
  EXPECT_TRUE(accepts(*object, R"({"a": {"b": [1, 2]}})"));
  EXPECT_FALSE(accepts(*object, "[1]"));
}

TEST(GrammarCompiler, FindsWhatItCompiledAndForgetsTheOldest) {
  STILL_NEEDS_ENGINE();
  auto compiler = GrammarCompiler::make(small_vocabulary().tokenizer, {.cache_entries = 2});
  ASSERT_TRUE(compiler);
  const auto first = *(*compiler)->compile_regex("a");
  EXPECT_EQ(first, *(*compiler)->compile_regex("a"));
  const auto second = *(*compiler)->compile_regex("b");
  EXPECT_EQ(first, *(*compiler)->compile_regex("a"));  // "b" is the oldest now
  (void)*(*compiler)->compile_regex("c");
  EXPECT_EQ(first, *(*compiler)->compile_regex("a"));
  EXPECT_NE(second, *(*compiler)->compile_regex("b"));
}

TEST(Constraint, EndsWhereNothingMayFollowAndRefusesWhatDoesNotFit) {
  STILL_NEEDS_ENGINE();
  const Tokenizer& tokenizer = small_vocabulary().tokenizer;
  const auto constraint = make_constraint(*small_vocabulary().compiler->compile_regex("ab?"));
  const TokenId a = tokenizer.encode("a")[0], b = tokenizer.encode("b")[0];
  EXPECT_FALSE(constraint->accept(b));
  EXPECT_FALSE(constraint->is_complete());
  EXPECT_TRUE(constraint->accept(a));
  EXPECT_FALSE(constraint->is_complete());
  EXPECT_TRUE(constraint->accept(b));
  EXPECT_TRUE(constraint->is_complete());
  EXPECT_FALSE(constraint->accept(b));
  std::vector<std::uint32_t> mask(static_cast<std::size_t>(token_mask_words(tokenizer.vocab_size())), 7u);
  constraint->fill_mask(mask);
  EXPECT_TRUE(std::ranges::all_of(mask, [](std::uint32_t word) { return word == 0; }));
}

// What is drawn through the grammar of a format is read as calls by the parser of that format, with fitting arguments.
TEST(ToolGrammar, MakesCallsThatTheParserReads) {
  STILL_NEEDS_ENGINE();
  const JsonArray tools =
      parse_json(R"([{"type":"function","function":{"name":"get_weather","parameters":{"type":"object",
      "properties":{"city":{"type":"string"},"days":{"type":"integer","minimum":1,"maximum":9}},"required":["city"]}}},
      {"type":"function","function":{"name":"stop"}}])",
                 "tools")
          ->as_array();
  Rng rng(5);
  for (const ToolCallFormat format : {ToolCallFormat::kHermes, ToolCallFormat::kLlama3, ToolCallFormat::kDeepSeek,
                                      ToolCallFormat::kDeepSeek31, ToolCallFormat::kMistral}) {
    SCOPED_TRACE(static_cast<int>(format));
    const auto grammar = compile_tool_calls(*small_vocabulary().compiler, format, tools, {.allows_several = true});
    ASSERT_TRUE(grammar) << grammar.error().message;
    int n_finished = 0;
    for (int i = 0; i < 20; ++i) {
      const Sample sample = draw(small_vocabulary(), *grammar, rng, 600);
      if (!sample.finished) continue;
      ++n_finished;
      ToolCallParser parser(format);
      std::vector<ToolCallEvent> events = parser.feed(sample.text);
      for (ToolCallEvent& event : parser.finish()) events.push_back(std::move(event));
      ASSERT_FALSE(events.empty());
      for (const ToolCallEvent& event : events) {
        ASSERT_EQ(event.kind, ToolCallEvent::Kind::kCall) << sample.text;
        ASSERT_TRUE(event.name == "stop" || event.name == "get_weather");
        const auto arguments = parse_json(event.arguments, "arguments");
        ASSERT_TRUE(arguments && arguments->is_object());
        if (event.name == "get_weather") {
          ASSERT_TRUE(arguments->get_object().contains("city"));
        }
      }
    }
    EXPECT_GT(n_finished, 10);
    const auto named = compile_tool_calls(*small_vocabulary().compiler, format, tools, {.name = "stop"});
    ASSERT_TRUE(named);
    const Sample sample = draw(small_vocabulary(), *named, rng, 600);
    EXPECT_EQ(sample.text.find("get_weather"), std::string::npos);
  }
  EXPECT_FALSE(compile_tool_calls(*small_vocabulary().compiler, ToolCallFormat::kHermes, tools, {.name = "other"}));
  EXPECT_FALSE(compile_tool_calls(*small_vocabulary().compiler, ToolCallFormat::kHermes, {}));
  EXPECT_FALSE(compile_tool_calls(*small_vocabulary().compiler, ToolCallFormat::kNone, tools));
}

// Every number of a grid, on both sides of random bounds.
TEST(NumberRange, AgreesWithArithmeticOnRandomBounds) {
  STILL_NEEDS_ENGINE();
  constexpr std::uint64_t kSeed = 3;
  SCOPED_TRACE(fmt::format("seed {}", kSeed));
  Rng rng(kSeed);
  for (int round = 0; round < 60; ++round) {
    const bool integer = round % 3 == 0;
    const std::int64_t low = rng.below(4000) - 2000, high = low + rng.below(1500);
    const bool open_low = rng.below(3) == 0, open_high = rng.below(3) == 0;
    const auto number = [&](std::int64_t k) { return integer ? Json(k) : Json(static_cast<double>(k) / 100); };
    const Json schema = JsonObject{{"type", integer ? "integer" : "number"},
                                   {open_low ? "exclusiveMinimum" : "minimum", number(low)},
                                   {open_high ? "exclusiveMaximum" : "maximum", number(high)}};
    const auto grammar = small_vocabulary().compiler->compile_json_schema(schema);
    if (!grammar) {
      EXPECT_LE(high - low, 1) << to_json(schema) << grammar.error().message;
      continue;
    }
    for (int i = 0; i < 60; ++i) {
      const std::int64_t k = i < 6 ? (i < 3 ? low : high) + i % 3 - 1 : low - 200 + rng.below(high - low + 400);
      const bool wanted = (open_low ? k > low : k >= low) && (open_high ? k < high : k <= high);
      const std::string text = integer ? fmt::format("{}", k) : fmt::format("{:.2f}", static_cast<double>(k) / 100);
      EXPECT_EQ(accepts(*grammar, text), wanted && text != "-0.00") << to_json(schema) << " " << text;
    }
  }
}

}  // namespace
}  // namespace still
