#!/usr/bin/env python3
"""Published Python clients against a running server: openai, langchain-openai, langchain-deepseek, litellm, lm-eval.

Clients that are not installed are skipped by name (run.sh installs them). Models: a folder with smollm2.gguf, q05.gguf and,
for thinking, q15think.gguf in STILL_TEST_MODELS; without it the tiny models of testdata/, which say nothing sensible but
answer in the same shapes.
usage: python_clients_test.py STILL
"""
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import still_server

PROMPT = "Name a colour of the sea. Answer with one word."
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
          "required": ["name", "age"], "additionalProperties": False}


class Setup:
    def __init__(self, server, chat, thinking, real):
        self.server, self.chat, self.thinking, self.real = server, chat, thinking, real
        self.base = server.url + "/v1"


def needs(*modules):
    def mark(test):
        test.needs = modules
        return test
    return mark


def openai_client(s):
    import openai
    return openai.OpenAI(base_url=s.base, api_key="none", max_retries=0)


def messages(text=PROMPT):
    return [{"role": "user", "content": text}]


def ended_within(s, seconds):
    """Nothing runs any more."""
    for _ in range(seconds * 20):
        if not s.server.json("GET", "/v1/generations")["data"]:
            return
        time.sleep(0.05)
    raise AssertionError("the request goes on after its client has gone")


@needs("openai")
def openai_chat_and_stream(s):
    client = openai_client(s)
    assert s.chat in [m.id for m in client.models.list()]
    assert client.models.retrieve(s.chat).id == s.chat
    whole = client.chat.completions.create(model=s.chat, messages=messages(), max_tokens=24, seed=3)
    parts, usage, finish = [], None, None
    for chunk in client.chat.completions.create(model=s.chat, messages=messages(), max_tokens=24, seed=3, stream=True,
                                                stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            parts.append(choice.delta.content or "")
            finish = choice.finish_reason or finish
    assert "".join(parts) == whole.choices[0].message.content, (parts, whole)
    assert finish == whole.choices[0].finish_reason
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@needs("openai")
def openai_sampling(s):
    client = openai_client(s)
    several = client.chat.completions.create(model=s.chat, messages=messages("Tell me a story"), n=3, max_tokens=12, temperature=1.5, seed=9)
    assert len(several.choices) == 3 and len({c.message.content for c in several.choices}) > 1
    again = client.chat.completions.create(model=s.chat, messages=messages("Tell me a story"), n=3, max_tokens=12, temperature=1.5, seed=9)
    assert [c.message.content for c in again.choices] == [c.message.content for c in several.choices]
    scored = client.chat.completions.create(model=s.chat, messages=messages(), max_tokens=4, logprobs=True, top_logprobs=5, temperature=0)
    tokens = scored.choices[0].logprobs.content
    assert tokens and all(len(t.top_logprobs) == 5 and t.top_logprobs[0].logprob >= t.logprob - 1e-6 for t in tokens)
    stopped = client.chat.completions.create(model=s.chat, messages=messages("Count: 1, 2, 3"), max_tokens=64, stop=[" ", "\n"], temperature=0)
    assert " " not in stopped.choices[0].message.content


@needs("openai")
def openai_completions(s):
    client = openai_client(s)
    answer = client.completions.create(model=s.chat, prompt=["The sea is", "The sky is"], max_tokens=6, echo=True, logprobs=2, temperature=0)
    assert [c.index for c in answer.choices] == [0, 1]
    for choice, prompt in zip(answer.choices, ("The sea is", "The sky is")):
        assert choice.text.startswith(prompt)
        assert choice.logprobs.token_logprobs[0] is None
        assert len(choice.logprobs.tokens) == len(choice.logprobs.text_offset)
    text = "".join(c.choices[0].text for c in client.completions.create(model=s.chat, prompt="The sea is", max_tokens=6, temperature=0, stream=True))
    assert answer.choices[0].text == "The sea is" + text


@needs("openai")
def openai_tools(s):
    if not s.real:
        return  # the tiny models' templates know no tools
    client = openai_client(s)
    answer = client.chat.completions.create(model=s.chat, messages=messages("What is the weather in Paris?"), tools=[TOOL],
                                            max_tokens=128, temperature=0)
    calls = answer.choices[0].message.tool_calls
    if s.real:
        assert calls and calls[0].function.name == "get_weather", answer
        assert "paris" in json.loads(calls[0].function.arguments)["city"].lower()
        assert answer.choices[0].finish_reason == "tool_calls"
        history = messages("What is the weather in Paris?") + [answer.choices[0].message.model_dump(exclude_none=True), {
            "role": "tool", "tool_call_id": calls[0].id, "content": '{"sky": "rain", "celsius": 11}'}]
        after = client.chat.completions.create(model=s.chat, messages=history, tools=[TOOL], max_tokens=64, temperature=0)
        assert "rain" in after.choices[0].message.content.lower() or "11" in after.choices[0].message.content, after
        names, arguments = "", ""
        for chunk in client.chat.completions.create(model=s.chat, messages=messages("What is the weather in Paris?"), tools=[TOOL],
                                                    max_tokens=128, temperature=0, stream=True):
            for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
                names += call.function.name or ""
                arguments += call.function.arguments or ""
        assert names == "get_weather" and json.loads(arguments) == json.loads(calls[0].function.arguments)


@needs("openai")
def openai_forced_tools(s):
    if not s.real:
        return
    client = openai_client(s)
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        answer = client.chat.completions.create(model=s.chat, messages=messages("Say hello."), tools=[TOOL], tool_choice=choice,
                                                max_tokens=160, seed=1)
        calls = answer.choices[0].message.tool_calls
        assert calls and calls[0].function.name == "get_weather", (choice, answer)
        if answer.choices[0].finish_reason == "tool_calls":
            assert "city" in json.loads(calls[0].function.arguments)


@needs("openai")
def openai_structured_output(s):
    client = openai_client(s)
    answer = client.chat.completions.create(model=s.chat, messages=messages("Invent a person."), max_tokens=200, seed=1,
                                            response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}})
    if answer.choices[0].finish_reason == "stop":
        person = json.loads(answer.choices[0].message.content)
        assert set(person) == {"name", "age"} and isinstance(person["age"], int), person
    free = client.chat.completions.create(model=s.chat, messages=messages("Give me a JSON object."), max_tokens=200, seed=1,
                                          response_format={"type": "json_object"})
    if free.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(free.choices[0].message.content), dict)
    chosen = client.chat.completions.create(model=s.chat, messages=messages(), max_tokens=20, extra_body={"guided_choice": ["blue", "green"]})
    assert chosen.choices[0].message.content in ("blue", "green"), chosen


@needs("openai")
def openai_thinking(s):
    client = openai_client(s)
    answer = client.chat.completions.create(model=s.thinking, messages=messages("What is 3 + 4?"), max_tokens=120, seed=1,
                                            extra_body={"thinking": {"type": "enabled", "budget_tokens": 24}})
    message = answer.choices[0].message
    assert message.reasoning_content and message.reasoning_content == message.reasoning
    assert "<think>" not in message.reasoning_content and "</think>" not in (message.content or "")
    assert 0 < answer.usage.completion_tokens_details.reasoning_tokens <= answer.usage.completion_tokens
    reasoning, content = "", ""
    for chunk in client.chat.completions.create(model=s.thinking, messages=messages("What is 3 + 4?"), max_tokens=120, seed=1, stream=True,
                                                extra_body={"thinking": {"type": "enabled", "budget_tokens": 24}}):
        delta = chunk.choices[0].delta
        reasoning += getattr(delta, "reasoning_content", None) or ""
        content += delta.content or ""
    assert reasoning == message.reasoning_content and content == message.content
    off = client.chat.completions.create(model=s.thinking, messages=messages("What is 3 + 4?"), max_tokens=20, reasoning_effort="none")
    assert not hasattr(off.choices[0].message, "reasoning_content")


@needs("openai")
def openai_errors(s):
    import openai
    client = openai_client(s)
    for error, arguments in ((openai.NotFoundError, {"model": "nosuch"}), (openai.BadRequestError, {"temperature": -1}),
                             (openai.BadRequestError, {"messages": []})):
        try:
            client.chat.completions.create(**({"model": s.chat, "messages": messages()} | arguments))
        except error as raised:
            assert raised.body["message"], raised
        else:
            raise AssertionError(f"no {error.__name__} for {arguments}")


@needs("openai")
def openai_cancellation(s):
    client = openai_client(s)
    stream = client.chat.completions.create(model=s.chat, messages=messages("Tell me a long story"), stream=True, max_tokens=2000,
                                            extra_body={"ignore_eos": True})
    for i, _ in enumerate(stream):
        if i == 4:
            break
    stream.close()
    ended_within(s, 5)


@needs("langchain_openai")
def langchain_openai_chat(s):
    from langchain_openai import ChatOpenAI
    model = ChatOpenAI(base_url=s.base, api_key="none", model=s.chat, max_tokens=16, temperature=0)
    whole = model.invoke(PROMPT)
    assert whole.content == "".join(c.content for c in model.stream(PROMPT))
    assert whole.usage_metadata["output_tokens"] > 0


@needs("langchain_deepseek")
def langchain_deepseek_reasoning(s):
    from langchain_deepseek import ChatDeepSeek
    # The base URL as DeepSeek documents it, without /v1.
    model = ChatDeepSeek(api_base=s.server.url, api_key="none", model=s.thinking, max_tokens=120,
                         extra_body={"thinking": {"type": "enabled", "budget_tokens": 16}, "seed": 1})
    whole = model.invoke("What is 3 + 4?")
    assert whole.additional_kwargs["reasoning_content"], whole
    reasoning = "".join(c.additional_kwargs.get("reasoning_content", "") for c in model.stream("What is 3 + 4?"))
    assert reasoning == whole.additional_kwargs["reasoning_content"]


@needs("langchain_deepseek")
def langchain_deepseek_tools_and_structure(s):
    import openai
    from langchain_deepseek import ChatDeepSeek
    model = ChatDeepSeek(api_base=s.base, api_key="none", model=s.chat, max_tokens=128, temperature=0)
    schema = {**SCHEMA, "title": "person", "description": "a person"}
    if s.real:
        person = model.with_structured_output(schema, method="function_calling").invoke("Invent a person of 30 years.")
        assert set(person) == {"name", "age"}, person
        called = model.bind_tools([TOOL]).invoke("What is the weather in Paris?")
        assert called.tool_calls[0]["name"] == "get_weather" and called.tool_calls[0]["args"] == {"city": "Paris"}, called
    try:
        ChatDeepSeek(api_base=s.base, api_key="none", model="nosuch", max_retries=0).invoke("x")
    except openai.NotFoundError:
        return
    raise AssertionError("no error for an unknown model")


@needs("litellm")
def litellm_tools_structure_and_errors(s):
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm
    common = {"model": f"openai/{s.chat}", "api_base": s.base, "api_key": "none", "temperature": 0, "max_tokens": 128}
    answer = litellm.completion(messages=messages("Invent a person."), response_format={
        "type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}, **common)
    if answer.choices[0].finish_reason == "stop":
        assert set(json.loads(answer.choices[0].message.content)) == {"name", "age"}, answer
    if s.real:
        answer = litellm.completion(messages=messages("What is the weather in Paris?"), tools=[TOOL], **common)
        call = answer.choices[0].message.tool_calls[0].function
        assert call.name == "get_weather" and json.loads(call.arguments) == {"city": "Paris"}, answer
    for error, arguments in ((litellm.NotFoundError, {"model": "openai/nosuch"}), (litellm.BadRequestError, {"temperature": -1})):
        try:
            litellm.completion(**(common | {"messages": messages(), "max_retries": 0} | arguments))
        except error:
            continue
        raise AssertionError(f"no {error.__name__} for {arguments}")
    stream = litellm.completion(messages=messages("Tell me a long story"), stream=True, extra_body={"ignore_eos": True},
                                **(common | {"max_tokens": 2000}))
    next(iter(stream))
    close = getattr(stream.completion_stream, "close", None) or stream.completion_stream.response.close
    close()
    ended_within(s, 10)


@needs("litellm")
def litellm_paths(s):
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network
    import litellm
    for provider, key in (("openai", "none"), ("hosted_vllm", "none"), ("deepseek", "none")):
        answer = litellm.completion(model=f"{provider}/{s.thinking}", api_base=s.base, api_key=key, messages=messages("What is 3 + 4?"),
                                    max_tokens=120, seed=1, extra_body={"thinking": {"type": "enabled", "budget_tokens": 16}})
        assert answer.choices[0].message.reasoning_content, (provider, answer)
    chunks = litellm.completion(model=f"openai/{s.chat}", api_base=s.base, api_key="none", messages=messages(), max_tokens=8,
                                temperature=0, stream=True)
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    whole = litellm.completion(model=f"openai/{s.chat}", api_base=s.base, api_key="none", messages=messages(), max_tokens=8, temperature=0)
    assert text == (whole.choices[0].message.content or "")


TASKS = {
    "still_toy_choice.yaml": """task: still_toy_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/toy.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
""",
    "still_toy_text.yaml": """task: still_toy_text
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/toy.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
""",
}


def lm_eval(s, backend, arguments, task):
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"question": "The sky is", "choices": [" blue", " sour"], "answer": 0}, {"question": "Two and two make", "choices": [" grass", " four"], "answer": 1},
                {"question": "Grass is", "choices": [" green", " loud"], "answer": 0}]
        pathlib.Path(folder, "toy.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        for name, text in TASKS.items():
            pathlib.Path(folder, name).write_text(text.replace("FOLDER", folder))
        env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": folder + "/cache", "OPENAI_API_KEY": "none"}
        command = [sys.executable, "-m", "lm_eval", "--model", backend, "--model_args", arguments, "--tasks", task, "--include_path", folder,
                   "--output_path", folder + "/out"] + (["--apply_chat_template"] if "chat" in backend else [])
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
        found = list(pathlib.Path(folder, "out").rglob("results*.json"))
        assert found, done.stderr[-1500:]
        return json.loads(found[0].read_text())["results"][task]


@needs("lm_eval")
def lm_eval_completions(s):
    result = lm_eval(s, "local-completions", f"base_url={s.base}/completions,model={s.chat},tokenizer_backend=remote,num_concurrent=2,max_retries=1",
                     "still_toy_choice")
    if s.real:
        assert result["acc,none"] >= 2 / 3, result


@needs("lm_eval")
def lm_eval_chat_completions(s):
    result = lm_eval(s, "local-chat-completions", f"base_url={s.base}/chat/completions,model={s.chat},num_concurrent=2,max_retries=1", "still_toy_text")
    assert "exact_match,none" in result, result


TESTS = [openai_chat_and_stream, openai_sampling, openai_completions, openai_tools, openai_forced_tools, openai_structured_output,
         openai_thinking, openai_errors, openai_cancellation, langchain_openai_chat, langchain_deepseek_reasoning,
         langchain_deepseek_tools_and_structure, litellm_paths, litellm_tools_structure_and_errors,
         lm_eval_completions, lm_eval_chat_completions]


def main():
    folder = os.environ.get("STILL_TEST_MODELS")
    if folder:
        models = {"chat": f"{folder}/q05.gguf", "smollm2": f"{folder}/smollm2.gguf"}
        thinking = pathlib.Path(folder, "q15think.gguf")
        if thinking.exists():
            models["thinking"] = thinking
        else:
            models["thinking"] = still_server.TINY / "qwen2" / "model.gguf"
    else:
        tiny = still_server.TINY / "qwen2" / "model.gguf"
        models = {"chat": tiny, "thinking": tiny}
    server = still_server.start(sys.argv[1], models)
    setup = Setup(server, "chat:latest", "thinking:latest", bool(folder))
    only = set(sys.argv[2:])
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    try:
        for test in TESTS:
            if only and test.__name__ not in only:
                continue
            missing = [m for m in test.needs if importlib.util.find_spec(m) is None]
            if missing:
                counts["skipped"] += 1
                print(f"skip  {test.__name__}: {', '.join(missing)} is not installed")
                continue
            begin = time.time()
            try:
                test(setup)
                counts["passed"] += 1
                print(f"ok    {test.__name__} ({time.time() - begin:.1f} s)")
            except Exception as failure:  # noqa: BLE001: told, and the others go on
                counts["failed"] += 1
                print(f"FAIL  {test.__name__}: {type(failure).__name__}: {str(failure)[:1500]}")
            sys.stdout.flush()
    finally:
        server.stop()
    print(", ".join(f"{n} {what}" for what, n in counts.items()))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
