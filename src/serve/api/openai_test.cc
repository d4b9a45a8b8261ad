// OpenAI's API over tiny models: what is parsed, what is told, and that a stream tells what a whole answer tells.
#include <gtest/gtest.h>

#include <set>

#include "serve/api/openai_request.h"
#include "serve/api/openai_schema.h"
#include "serve/testing.h"

namespace still {
namespace {

using testing::TinyModelOptions;

std::vector<Json> sse_chunks(const std::string& body) {
  std::vector<Json> chunks;
  EXPECT_TRUE(body.ends_with("data: [DONE]\n\n")) << body;
  std::size_t at = 0;
  while (at < body.size()) {
    const std::size_t end = body.find("\n\n", at);
    if (end == std::string::npos) break;
    const std::string_view event = std::string_view(body).substr(at, end - at);
    at = end + 2;
    if (event.starts_with(":") || event == "data: [DONE]") continue;
    EXPECT_TRUE(event.starts_with("data: ")) << event;
    chunks.push_back(*parse_json(event.substr(6), "chunk"));
  }
  return chunks;
}

std::string text_of(const Json& object, std::string_view key) {
  const Json* value = object.get_object().if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
}

struct Joined {
  std::string content, reasoning, finish;
};
Joined join(const std::vector<Json>& chunks, int index = 0) {
  Joined joined;
  for (const Json& chunk : chunks) {
    for (const Json& choice : chunk.at("choices").as_array()) {
      if (choice.at("index").as_int64() != index) continue;
      joined.content += text_of(choice.at("delta"), "content");
      joined.reasoning += text_of(choice.at("delta"), "reasoning_content");
      EXPECT_EQ(text_of(choice.at("delta"), "reasoning_content"), text_of(choice.at("delta"), "reasoning"));
      if (choice.at("finish_reason").is_string()) joined.finish = choice.at("finish_reason").as_string();
    }
  }
  return joined;
}

class OpenAi : public testing::ApiTest {
 protected:
  void SetUp() override { use_model(); }
  void use_model(const TinyModelOptions& options = {}) {
    router = Router();
    ApiTest::use_model(options);
    add_openai_routes(router, context);
  }
  static std::string chat(const std::string& more, const std::string& text = "Tell me of the sea") {
    return R"({"model":"qwen2","messages":[{"role":"user","content":")" + text + R"("}])" +
           (more.empty() ? "" : "," + more) + "}";
  }
  std::shared_ptr<testing::RecordingWriter> call_stream(const std::string& more) {
    return call("POST", "/v1/chat/completions", chat(more + R"(,"stream":true)"));
  }
  Json message(const Json& answer, std::size_t index = 0) {
    return answer.at("choices").as_array().at(index).at("message");
  }
};

TEST_F(OpenAi, AnswersAChat) {
  const Json answer = post("/v1/chat/completions", chat(R"("max_tokens":12,"seed":1)"));
  EXPECT_EQ(answer.at("object").as_string(), "chat.completion");
  EXPECT_TRUE(answer.at("id").as_string().starts_with("chatcmpl-"));
  EXPECT_EQ(answer.at("model").as_string(), "qwen2");
  EXPECT_EQ(message(answer).at("role").as_string(), "assistant");
  const Json& usage = answer.at("usage");
  EXPECT_EQ(usage.at("total_tokens").as_int64(),
            usage.at("prompt_tokens").as_int64() + usage.at("completion_tokens").as_int64());
  EXPECT_LE(usage.at("completion_tokens").as_int64(), 12);
  EXPECT_EQ(usage.at("prompt_cache_hit_tokens").as_int64() + usage.at("prompt_cache_miss_tokens").as_int64(),
            usage.at("prompt_tokens").as_int64());
}

TEST_F(OpenAi, StreamsWhatAWholeAnswerTells) {
  for (const std::string more : {R"("temperature":1.5)", R"("temperature":0)", R"("enable_thinking":true)",
                                 R"("enable_thinking":true,"reasoning_format":"none","thinking_budget":7)",
                                 R"("stop":["e","th"],"temperature":1.2)"}) {
    const std::string fields = R"("max_tokens":40,"seed":7,)" + more;
    const Json answer = post("/v1/chat/completions", chat(fields));
    const auto writer = call("POST", "/v1/chat/completions",
                             chat(fields + R"(,"stream":true,"stream_options":{"include_usage":true})"));
    const std::vector<Json> chunks = sse_chunks(writer->body);
    ASSERT_GE(chunks.size(), 3u);
    EXPECT_EQ(chunks.front().at("choices").at(0).at("delta").at("role").as_string(), "assistant");
    for (const Json& chunk : chunks) {
      EXPECT_EQ(chunk.at("id"), chunks.front().at("id"));
      EXPECT_EQ(chunk.at("created"), chunks.front().at("created"));
    }
    const Joined joined = join(chunks);
    EXPECT_EQ(joined.content, text_of(message(answer), "content")) << more;
    EXPECT_EQ(joined.reasoning, text_of(message(answer), "reasoning_content")) << more;
    EXPECT_EQ(joined.finish, answer.at("choices").at(0).at("finish_reason").as_string());
    const Json& last = chunks.back();
    EXPECT_TRUE(last.at("choices").as_array().empty());
    EXPECT_EQ(last.at("usage").at("completion_tokens"), answer.at("usage").at("completion_tokens"));
  }
}

TEST_F(OpenAi, TellsReasoningApartUnderBothNamesOrNeither) {
  const Json with =
      post("/v1/chat/completions", chat(R"("max_tokens":60,"seed":3,"thinking":{"type":"enabled","budget_tokens":8})"));
  EXPECT_NE(text_of(message(with), "reasoning_content"), "");
  EXPECT_EQ(text_of(message(with), "reasoning_content"), text_of(message(with), "reasoning"));
  EXPECT_EQ(text_of(message(with), "reasoning_content").find("<think>"), std::string::npos);
  EXPECT_GT(with.at("usage").at("completion_tokens_details").at("reasoning_tokens").as_int64(), 0);
  for (const std::string off :
       {R"("thinking":{"type":"disabled"})", R"("reasoning_effort":"none")", R"("enable_thinking":false)",
        R"("chat_template_kwargs":{"enable_thinking":false})", R"("thinking_token_budget":0)", R"("think":false)"}) {
    const Json without = post("/v1/chat/completions", chat(R"("max_tokens":20,"seed":3,)" + off));
    EXPECT_FALSE(message(without).get_object().contains("reasoning_content")) << off;
    EXPECT_FALSE(message(without).get_object().contains("reasoning")) << off;
    EXPECT_EQ(without.at("usage").at("completion_tokens_details").at("reasoning_tokens").as_int64(), 0) << off;
  }
}

TEST_F(OpenAi, ShowsTheRawTextOfAThinkingModelWithThePrimedTag) {
  // As DeepSeek-R1's template does: the answer begins inside the block.
  use_model({.chat_template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
                              "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"});
  // A random model also says </think> (316) where no block is open; raw text would show that, too.
  const std::string fields = R"("max_tokens":60,"seed":5,"thinking_budget":6,"logit_bias":{"316":-100})";
  const Json split = post("/v1/chat/completions", chat(fields));
  const std::string reasoning = text_of(message(split), "reasoning_content");
  EXPECT_NE(reasoning, "");
  const Json raw = post("/v1/chat/completions", chat(fields + R"(,"reasoning_format":"none")"));
  EXPECT_EQ(text_of(message(raw), "content"),
            "<think>\n" + reasoning + "</think>\n\n" + text_of(message(split), "content"));
  EXPECT_FALSE(message(raw).get_object().contains("reasoning_content"));
  const Json both = post("/v1/chat/completions", chat(fields + R"(,"reasoning_format":"deepseek-legacy")"));
  EXPECT_EQ(text_of(message(both), "content"), text_of(message(raw), "content"));
  EXPECT_EQ(text_of(message(both), "reasoning_content"), reasoning);
  const Json hidden = post("/v1/chat/completions", chat(fields + R"(,"include_reasoning":false)"));
  EXPECT_EQ(text_of(message(hidden), "content"), text_of(message(split), "content"));
  EXPECT_FALSE(message(hidden).get_object().contains("reasoning_content"));
}

TEST_F(OpenAi, GivesSeveralAnswersWithSeedsOfTheirOwn) {
  const Json answers = post("/v1/chat/completions", chat(R"("max_tokens":16,"n":3,"seed":11,"temperature":1.5)"));
  ASSERT_EQ(answers.at("choices").as_array().size(), 3u);
  for (int i = 0; i < 3; ++i) {
    const Json alone =
        post("/v1/chat/completions", chat(R"("max_tokens":16,"temperature":1.5,"seed":)" + std::to_string(11 + i)));
    EXPECT_EQ(message(alone).at("content"), message(answers, static_cast<std::size_t>(i)).at("content"));
  }
  const auto writer =
      call("POST", "/v1/chat/completions", chat(R"("max_tokens":16,"n":3,"seed":11,"temperature":1.5,"stream":true)"));
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(join(sse_chunks(writer->body), i).content,
              text_of(message(answers, static_cast<std::size_t>(i)), "content"));
}

TEST_F(OpenAi, TellsLogprobsOfTheTokens) {
  const Json answer = post("/v1/chat/completions",
                           chat(R"("max_tokens":6,"seed":2,"logprobs":true,"top_logprobs":3,"enable_thinking":false)"));
  const JsonArray& entries = answer.at("choices").at(0).at("logprobs").at("content").as_array();
  ASSERT_FALSE(entries.empty());
  for (const Json& entry : entries) {
    EXPECT_LE(entry.at("logprob").to_number<double>(), 0);
    EXPECT_EQ(entry.at("top_logprobs").as_array().size(), 3u);
    EXPECT_TRUE(entry.at("bytes").is_array());
  }
}

TEST_F(OpenAi, BiasesAndForbidsTokens) {
  // 65 bytes: token ids of single bytes are the first 256 of the vocabulary.
  const Json answer = post(
      "/v1/completions",
      R"({"model":"m","prompt":"abc","max_tokens":5,"logit_bias":{"65":100},"temperature":0.5,"return_token_ids":true})");
  for (const Json& id : answer.at("choices").at(0).at("token_ids").as_array()) EXPECT_EQ(id.as_int64(), 65);
}

TEST_F(OpenAi, EchoesPromptsWithLogprobs) {
  const Json answer =
      post("/v1/completions",
           R"({"model":"m","prompt":[[72,101,108,111],[80,80]],"max_tokens":1,"logprobs":1,"echo":true,"seed":1234})");
  ASSERT_EQ(answer.at("choices").as_array().size(), 2u);
  const Json& logprobs = answer.at("choices").at(0).at("logprobs");
  EXPECT_EQ(logprobs.at("tokens").as_array().size(), 5u);
  EXPECT_TRUE(logprobs.at("token_logprobs").at(0).is_null());
  EXPECT_TRUE(logprobs.at("top_logprobs").at(0).is_null());
  for (std::size_t i = 1; i < 5; ++i) {
    const double chosen = logprobs.at("token_logprobs").at(i).to_number<double>();
    double best = -1e9;
    for (const auto& [token, logprob] : logprobs.at("top_logprobs").at(i).as_object())
      best = std::max(best, logprob.to_number<double>());
    EXPECT_LE(chosen, best + 1e-6);
  }
  // The same without an answer.
  const Json only =
      post("/v1/completions", R"({"model":"m","prompt":[72,101,108,111],"max_tokens":0,"logprobs":0,"echo":true})");
  ASSERT_EQ(only.at("choices").at(0).at("logprobs").at("tokens").as_array().size(), 4u);
  for (std::size_t i = 1; i < 4; ++i)
    EXPECT_EQ(only.at("choices").at(0).at("logprobs").at("token_logprobs").at(i), logprobs.at("token_logprobs").at(i));
  EXPECT_EQ(only.at("usage").at("completion_tokens").as_int64(), 0);
}

TEST_F(OpenAi, CompletesSeveralPromptsAsOneAfterTheOther) {
  const Json together =
      post("/v1/completions", R"({"model":"m","prompt":["One","Two","Three"],"n":2,"max_tokens":9,"seed":5})");
  ASSERT_EQ(together.at("choices").as_array().size(), 6u);
  const Json second = post("/v1/completions", R"({"model":"m","prompt":"Two","n":2,"max_tokens":9,"seed":5})");
  EXPECT_EQ(together.at("choices").at(2).at("text"), second.at("choices").at(0).at("text"));
  EXPECT_EQ(together.at("choices").at(3).at("text"), second.at("choices").at(1).at("text"));
  const auto writer =
      call("POST", "/v1/completions",
           R"({"model":"m","prompt":["One","Two","Three"],"n":2,"max_tokens":9,"seed":5,"stream":true})");
  std::map<std::int64_t, std::string> texts;
  for (const Json& chunk : sse_chunks(writer->body))
    for (const Json& choice : chunk.at("choices").as_array())
      texts[choice.at("index").as_int64()] += choice.at("text").as_string();
  for (std::size_t i = 0; i < 6; ++i)
    EXPECT_EQ(texts[static_cast<std::int64_t>(i)], together.at("choices").at(i).at("text").as_string());
}

TEST_F(OpenAi, ChoosesTheBestOf) {
  const Json answer =
      post("/v1/completions",
           R"({"model":"m","prompt":"x","max_tokens":6,"seed":3,"best_of":4,"n":1,"logprobs":0,"temperature":2})");
  ASSERT_EQ(answer.at("choices").as_array().size(), 1u);
  const auto mean = [](const Json& choice) {
    double sum = 0;
    const JsonArray& all = choice.at("logprobs").at("token_logprobs").as_array();
    for (const Json& one : all) sum += one.to_number<double>();
    return sum / static_cast<double>(all.size());
  };
  const Json all = post("/v1/completions",
                        R"({"model":"m","prompt":"x","max_tokens":6,"seed":3,"n":4,"logprobs":0,"temperature":2})");
  double best = -1e9;
  for (const Json& choice : all.at("choices").as_array()) best = std::max(best, mean(choice));
  EXPECT_NEAR(mean(answer.at("choices").at(0)), best, 1e-5);
}

TEST_F(OpenAi, ContinuesAnAssistantsMessage) {
  const Json tokens =
      post("/tokenize",
           R"({"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"I am","prefix":true}]})");
  const Json text = post("/detokenize", R"({"tokens":)" + to_json(tokens.at("tokens")) + "}");
  EXPECT_TRUE(text.at("prompt").as_string().ends_with("assistant\nI am")) << text.at("prompt");
  EXPECT_EQ(tokens.at("count").as_int64(), static_cast<std::int64_t>(tokens.at("tokens").as_array().size()));
  post(
      "/beta/chat/completions",
      R"({"model":"m","max_tokens":3,"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"I am","prefix":true}]})");
}

// DeepSeek's prefix completion of an answer whose reasoning has begun, or is done.
TEST_F(OpenAi, ContinuesReasoning) {
  const auto asked = [](const std::string& content) {
    return R"({"model":"m","max_tokens":6,"seed":2,"logit_bias":{"315":-100,"316":-100},"messages":[{"role":"user","content":"Hi"},)"
           R"({"role":"assistant","content":")" +
           content + R"(","reasoning_content":"They greet </think> me","prefix":true}]})";
  };
  const Json thinking = post("/v1/chat/completions", asked(""));
  EXPECT_NE(text_of(message(thinking), "reasoning_content"), "");
  EXPECT_EQ(text_of(message(thinking), "content"), "");
  const Json answering = post("/v1/chat/completions", asked("I am"));
  EXPECT_EQ(text_of(message(answering), "reasoning_content"), "");
  EXPECT_NE(text_of(message(answering), "content"), "");
  const auto n_prompt = [](const Json& answer) { return answer.at("usage").at("prompt_tokens").as_int64(); };
  EXPECT_GT(n_prompt(answering), n_prompt(thinking));
}

TEST_F(OpenAi, TurnsTokensToTextAndBack) {
  const Json tokens = post("/tokenize", R"({"prompt":"The sea, \u4f60 <|im_end|>","add_special_tokens":false})");
  const Json text = post("/detokenize", R"({"model":"m","tokens":)" + to_json(tokens.at("tokens")) + "}");
  EXPECT_EQ(text.at("prompt").as_string(), "The sea, \xe4\xbd\xa0 <|im_end|>");
  const auto info = call("GET", "/tokenizer_info", "");
  EXPECT_EQ(parse_json(info->body, "info")->at("eos_token").as_string(), "<|im_end|>");
  post("/detokenize", R"({"tokens":[99999999]})", 400);
  post("/detokenize", R"({"tokens":"a"})", 400);
}

constexpr std::string_view kTools =
    R"("tools":[{"type":"function","function":{"name":"add","parameters":{"type":"object","properties":{"a":{"enum":[1,2]}},)"
    R"("required":["a"],"additionalProperties":false}}},{"type":"function","function":{"name":"stop","parameters":)"
    R"({"$defs":{"w":{"enum":["now","soon"]}},"type":"object","properties":{"when":{"$ref":"#/$defs/w"}},"required":["when"],)"
    R"("additionalProperties":false}}}])";

// With a template that knows tools; the models of testdata/ are taught none.
TinyModelOptions with_tools() {
  return {.chat_template =
              "{% if tools %}<|im_start|>system\n<tool_call><|im_end|>\n{% endif %}"
              "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
              "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"};
}

TEST_F(OpenAi, MakesTheModelCallAFunction) {
  use_model(with_tools());
  const std::string fields = R"("max_tokens":120,"enable_thinking":false,"temperature":1,)" + std::string(kTools);
  for (int seed = 0; seed < 6; ++seed) {
    for (const std::string choice : {R"("required")", R"({"type":"function","function":{"name":"stop"}})"}) {
      const std::string more = fields + R"(,"tool_choice":)" + choice + R"(,"seed":)" + std::to_string(seed);
      const Json answer = post("/v1/chat/completions", chat(more));
      const Json& first = answer.at("choices").at(0);
      if (first.at("finish_reason").as_string() == "length") continue;
      EXPECT_EQ(first.at("finish_reason").as_string(), "tool_calls");
      EXPECT_TRUE(first.at("message").at("content").is_null());
      const Json& call = first.at("message").at("tool_calls").at(0);
      const std::string name = text_of(call.at("function"), "name");
      const Json arguments = *parse_json(text_of(call.at("function"), "arguments"), "arguments");
      if (name == "add" && choice == R"("required")") {
        EXPECT_TRUE(arguments.at("a").as_int64() == 1 || arguments.at("a").as_int64() == 2);
      } else {
        EXPECT_EQ(name, "stop");
        EXPECT_TRUE(arguments.at("when").as_string() == "now" || arguments.at("when").as_string() == "soon");
      }
      const auto writer = call_stream(more);
      std::string streamed;
      for (const Json& chunk : sse_chunks(writer->body))
        for (const Json& one : chunk.at("choices").as_array())
          if (const Json* calls = one.at("delta").as_object().if_contains("tool_calls"))
            for (const Json& delta : calls->as_array()) streamed += text_of(delta.at("function"), "arguments");
      EXPECT_EQ(streamed, text_of(call.at("function"), "arguments"));
    }
  }
}

TEST_F(OpenAi, HoldsAnswersToFormats) {
  for (int seed = 0; seed < 4; ++seed) {
    const std::string fields = R"("max_tokens":100,"temperature":2,"seed":)" + std::to_string(seed) + ",";
    const Json chosen =
        post("/v1/chat/completions", chat(fields + R"("enable_thinking":false,"guided_choice":["yes","no"])"));
    const std::string word = text_of(message(chosen), "content");
    EXPECT_TRUE(word == "yes" || word == "no") << word;
    // Only the answer is held to it, not the thinking before it.
    const Json digits =
        post("/v1/chat/completions",
             chat(fields + R"("thinking":{"type":"enabled","budget_tokens":5},"guided_regex":"[0-9]{3}")"));
    const std::string number = text_of(message(digits), "content");
    EXPECT_EQ(number.size(), 3u) << number;
    EXPECT_EQ(number.find_first_not_of("0123456789"), std::string::npos) << number;
    const Json object = post(
        "/v1/chat/completions",
        chat(
            fields +
            R"("enable_thinking":false,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"],"additionalProperties":false}}})"));
    if (object.at("choices").at(0).at("finish_reason").as_string() == "stop") {
      const auto parsed = parse_json(text_of(message(object), "content"), "content");
      ASSERT_TRUE(parsed) << text_of(message(object), "content");
      EXPECT_TRUE(parsed->at("ok").is_bool());
    }
  }
  const Json refused = post("/v1/chat/completions", chat(R"("guided_regex":"(")"), 400);
  EXPECT_NE(text_of(refused.at("error"), "message"), "");
}

struct BadRequest {
  std::string path, body;
  int status;
  std::string param, part;  // of the message
};

TEST_F(OpenAi, RefusesBadRequestsInASentenceThatNamesTheField) {
  const std::string m = R"("model":"m","messages":[{"role":"user","content":"a"}])";
  const std::vector<BadRequest> cases = {
      {"/v1/chat/completions", "", 400, "", "missing request body"},
      {"/v1/chat/completions", "{", 400, "", "JSON"},
      {"/v1/chat/completions", "[]", 400, "", "object"},
      {"/v1/chat/completions", "{\"model\":\"\xff\"}", 400, "", "not valid UTF-8"},
      {"/v1/chat/completions", "{}", 400, "model", "required"},
      {"/v1/chat/completions", R"({"model":"m"})", 400, "messages", "required"},
      {"/v1/chat/completions", R"({"model":"m","messages":[]})", 400, "messages", "empty"},
      {"/v1/chat/completions", R"({"model":"m","messages":[5]})", 400, "messages", "objects"},
      {"/v1/chat/completions", R"({"model":"m","messages":[{"role":"king","content":"a"}]})", 400, "messages[0].role",
       "king"},
      {"/v1/chat/completions",
       R"({"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]})", 400,
       "messages[0].content[0].type", "image"},
      {"/v1/chat/completions", "{" + m + R"(,"temperature":"hot"})", 400, "temperature", "number"},
      {"/v1/chat/completions", "{" + m + R"(,"temperature":-1})", 400, "", "temperature"},
      {"/v1/chat/completions", "{" + m + R"(,"n":0})", 400, "n", "expected 1 to"},
      {"/v1/chat/completions", "{" + m + R"(,"n":1.5})", 400, "n", "integer"},
      {"/v1/chat/completions", "{" + m + R"(,"top_logprobs":30})", 400, "top_logprobs", "0 to 20"},
      {"/v1/chat/completions", "{" + m + R"(,"stream_options":{"include_usage":3}})", 400,
       "stream_options.include_usage", "boolean"},
      {"/v1/chat/completions", "{" + m + R"(,"logit_bias":{"x":1}})", 400, "logit_bias", "token ids"},
      {"/v1/chat/completions", "{" + m + R"(,"logit_bias":{"999999":1}})", 400, "", "vocabulary"},
      {"/v1/chat/completions", "{" + m + R"(,"reasoning_effort":"extreme"})", 400, "reasoning_effort", "extreme"},
      {"/v1/chat/completions", "{" + m + R"(,"response_format":{"type":"xml"}})", 400, "response_format.type", "xml"},
      {"/v1/chat/completions", "{" + m + R"(,"tool_choice":"required"})", 400, "tool_choice", "no tools"},
      {"/v1/chat/completions", "{" + m + R"(,"tools":[{"type":"function"}]})", 400, "tools[0].function", "required"},
      {"/v1/chat/completions", "{" + m + R"(,"stop":[""]})", 400, "stop", "empty"},
      {"/v1/chat/completions", R"({"model":"missing","messages":[{"role":"user","content":"a"}]})", 404, "", "missing"},
      {"/v1/chat/completions", R"({"model":"huge","messages":[{"role":"user","content":"a"}]})", 500, "", "700 GiB"},
      {"/v1/completions", R"({"model":"m","prompt":"a","suffix":"b"})", 400, "suffix", "not supported"},
      {"/v1/completions", R"({"model":"m","prompt":{}})", 400, "prompt", "must be"},
      {"/v1/completions", R"({"model":"m","prompt":[1,"a"]})", 400, "prompt", "must be"},
      {"/v1/completions", R"({"model":"m","prompt":[999999]})", 400, "", "vocabulary"},
      {"/v1/completions", R"({"model":"m","prompt":"a","n":2,"best_of":1})", 400, "best_of", "at least"},
  };
  for (const BadRequest& bad : cases) {
    const Json answer = post(bad.path, bad.body, bad.status);
    const Json& error = answer.at("error");
    EXPECT_NE(error.at("message").as_string().find(bad.part), std::string::npos) << bad.body << to_json(answer);
    EXPECT_EQ(text_of(error, "param"), bad.param) << bad.body;
    EXPECT_TRUE(error.at("type").is_string());
  }
}

TEST_F(OpenAi, DropsNoConstraintInSilence) {
  for (const char* field : {R"("bad_words":["sea"])", R"("allowed_token_ids":[1,2])", R"("truncate_prompt_tokens":4)",
                            R"("add_generation_prompt":false)"}) {
    const Json answer = post("/v1/chat/completions", chat(field), 400);
    const std::string name = std::string(field).substr(1, std::string(field).find('"', 1) - 1);
    EXPECT_EQ(text_of(answer.at("error"), "param"), name);
  }
  for (const char* field : {R"("bad_words":[])", R"("allowed_token_ids":null)", R"("prompt_logprobs":null)",
                            R"("best_of":1)", R"("add_generation_prompt":true)"})
    EXPECT_FALSE(
        post("/v1/chat/completions", chat(std::string(R"("max_tokens":1,)") + field)).as_object().contains("warnings"))
        << field;
  for (const char* field : {R"("prompt_logprobs":1)", R"("best_of":3)"}) {
    const Json answer = post("/v1/chat/completions", chat(std::string(R"("max_tokens":1,)") + field));
    EXPECT_EQ(answer.at("warnings").as_array().size(), 1u) << field;
  }
}

TEST_F(OpenAi, TellsTheLimitOfALongPrompt) {
  use_model({.context = 64});
  const Json answer = post("/v1/chat/completions", chat("", std::string(300, 'x')), 400);
  EXPECT_EQ(text_of(answer.at("error"), "code"), "context_length_exceeded");
  EXPECT_NE(text_of(answer.at("error"), "message").find("64"), std::string::npos);
  const Json small = post("/v1/chat/completions", chat(R"("num_ctx":16)"), 400);
  EXPECT_NE(text_of(small.at("error"), "message").find("16"), std::string::npos);
}

TEST_F(OpenAi, FreesTheModelWhenTheClientLeaves) {
  const auto writer =
      start("POST", "/v1/chat/completions", chat(R"("stream":true,"ignore_eos":true,"max_tokens":200)"));
  writer->wait_for_text("\"content\"");
  writer->client_leaves();
  writer->wait();
  // The engine publishes its numbers at the step's end, after the events.
  const auto is_busy = [&] {
    return pool->n_open > 0 || context.generations->size() > 0 || pool->model().engine->stats().n_running > 0;
  };
  for (int i = 0; i < 500 && is_busy(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(pool->n_open, 0);
  EXPECT_EQ(context.generations->size(), 0);
  EXPECT_EQ(pool->model().engine->stats().n_running, 0);
}

TEST_F(OpenAi, CancelsARequestThatWaitsForItsModel) {
  const auto writer =
      start("POST", "/v1/chat/completions", R"({"model":"slow","messages":[{"role":"user","content":"a"}]})");
  EXPECT_EQ(context.generations->size(), 1);
  writer->client_leaves();
  writer->wait();
  EXPECT_EQ(writer->status, 499);
  EXPECT_EQ(context.generations->size(), 0);
}

TEST_F(OpenAi, ATurnOfCallsAloneFitsATemplateThatAddsContent) {
  use_model({.chat_template = "{% for m in messages %}<{{ m.role + ':' + m.content }}>{% endfor %}"});
  const std::string call = R"("tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}])";
  const auto body = [&](const std::string& content) {
    return R"({"model":"qwen2","max_tokens":1,"messages":[{"role":"user","content":"a"},{"role":"assistant")" +
           content + "," + call + R"(},{"role":"tool","tool_call_id":"c","content":"b"}]})";
  };
  for (const char* content : {"", R"(,"content":null)", R"(,"content":"")"}) {
    EXPECT_EQ(post("/v1/chat/completions", body(content)).at("object"), "chat.completion") << content;
  }
  // A template that tells them apart still sees that there is none, and its own mistakes are told.
  use_model({.chat_template = "{% for m in messages %}{% if m.content is none %}NONE{% endif %}{% endfor %}"});
  const Json tokens = post("/tokenize", body(R"(,"content":"")"));
  EXPECT_NE(to_json(post("/detokenize", R"({"tokens":)" + to_json(tokens.at("tokens")) + "}")).find("NONE"),
            std::string::npos);
  use_model({.chat_template = "{{ raise_exception('never') }}"});
  EXPECT_NE(to_json(post("/v1/chat/completions", body(""), 400)).find("never"), std::string::npos);
}

TEST_F(OpenAi, AnswersBusyWhenTheQueueIsFull) {
  use_model({.max_queue = 0});
  std::vector<std::shared_ptr<testing::RecordingWriter>> writers;
  for (int i = 0; i < 24; ++i)
    writers.push_back(start("POST", "/v1/chat/completions", chat(R"("ignore_eos":true,"max_tokens":150)")));
  int n_busy = 0;
  for (const auto& writer : writers) {
    writer->wait();
    EXPECT_TRUE(writer->status == 200 || writer->status == 503) << writer->body;
    n_busy += writer->status == 503 ? 1 : 0;
  }
  EXPECT_GT(n_busy, 0);
}

TEST_F(OpenAi, WhatCanNeverFitIsNotSentToTryAgain) {
  use_model({.max_queue = 3});  // beside 8 that compute
  EXPECT_EQ(post("/v1/chat/completions", chat(R"("n":11,"max_tokens":2)")).at("choices").as_array().size(), 11u);
  const auto refused = call("POST", "/v1/chat/completions", chat(R"("n":12,"max_tokens":2)"));
  EXPECT_EQ(refused->status, 400) << refused->body;
  EXPECT_NE(refused->body.find("12 answers"), std::string::npos) << refused->body;
  // The prompts of one request wait for each other, whole and streamed.
  std::string prompts;
  for (int i = 0; i < 40; ++i) prompts += fmt::format("{}\"number {}\"", i == 0 ? "" : ",", i);
  const std::string body = R"({"model":"qwen2","max_tokens":6,"temperature":0,"ignore_eos":true,"prompt":[)" + prompts;
  for (int round = 0; round < 3; ++round) {
    const Json whole = post("/v1/completions", body + "]}");
    ASSERT_EQ(whole.at("choices").as_array().size(), 40u);
    for (std::size_t i = 0; i < 40; ++i) EXPECT_EQ(whole.at("choices").at(i).at("finish_reason"), "length");
    EXPECT_EQ(whole.at("usage").at("completion_tokens"), 240);
  }
  const auto streamed = call("POST", "/v1/completions", body + R"(],"stream":true})");
  std::set<std::int64_t> ended;
  for (const Json& chunk : sse_chunks(streamed->body))
    for (const Json& choice : chunk.at("choices").as_array())
      if (choice.at("finish_reason").is_string()) ended.insert(choice.at("index").as_int64());
  EXPECT_EQ(ended.size(), 40u);
}

TEST_F(OpenAi, UsesTheManifestsParametersUnlessTheClientSetsThem) {
  use_model({.parameters = {{"num_predict", 3}, {"temperature", 0.0}}, .system = "Be brief."});
  const Json answer = post("/v1/chat/completions", chat(R"("ignore_eos":true)"));
  EXPECT_EQ(answer.at("usage").at("completion_tokens").as_int64(), 3);
  const Json longer = post("/v1/chat/completions", chat(R"("ignore_eos":true,"max_tokens":5)"));
  EXPECT_EQ(longer.at("usage").at("completion_tokens").as_int64(), 5);
  const Json tokens = post("/tokenize", chat(""));
  EXPECT_NE(to_json(post("/detokenize", R"({"tokens":)" + to_json(tokens.at("tokens")) + "}")).find("Be brief."),
            std::string::npos);
}

// Other spellings of a route (without /v1, under /beta) and routes that only refuse are left out.
TEST_F(OpenAi, TheDocumentNamesEveryRoute) {
  router = Router();
  add_operation_routes(router, context);
  add_ollama_routes(router, context);
  add_openai_routes(router, context);
  add_responses_routes(router, context);
  add_anthropic_routes(router, context);
  add_embedding_routes(router, context);
  const std::set<std::string> left_out = {"/",           "/openapi.json",     "/healthz", "/ping",
                                          "/v1/health",  "/api/push",         "/api/me",  "/api/signout",
                                          "/api/status", "/v1/responses/{id}"};
  const Json document = *parse_json(openapi_document(), "openapi.json");
  const JsonObject& paths = document.at("paths").as_object();
  const auto describes = [&](const std::string& path, const std::string& method) {
    return paths.contains(path) && paths.at(path).as_object().contains(method);
  };
  std::size_t n_found = 0;
  for (const Route& route : router.routes()) {
    std::string path = route.pattern, method = route.method;
    if (left_out.contains(path)) continue;
    if (const std::size_t dots = path.find("..."); dots != std::string::npos) path.erase(dots, 3);
    for (char& c : method) c = static_cast<char>(std::tolower(c));
    if (path.starts_with("/beta/")) path = "/v1" + path.substr(5);
    const bool is_found = describes(path, method) || describes("/v1" + path, method) ||
                          (path.starts_with("/v1/") && describes(path.substr(3), method));
    EXPECT_TRUE(is_found) << route.method << " " << route.pattern;
    n_found += describes(path, method) ? 1 : 0;
  }
  std::size_t n_described = 0;
  for (const auto& [path, methods] : paths) n_described += methods.as_object().size();
  EXPECT_GE(n_found, n_described);
}

}  // namespace
}  // namespace still
