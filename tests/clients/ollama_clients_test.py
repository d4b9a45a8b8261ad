#!/usr/bin/env python3
"""The published clients of Ollama's, Anthropic's and the responses API against a real server with real models.

usage: ollama_clients_test.py STILL_BINARY    (needs STILL_TEST_MODELS and the packages of requirements.txt)

A client that is not installed, and a run without models, is skipped with its reason.
"""
import base64
import hashlib
import http.server
import importlib.util
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import still_server  # noqa: E402

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network
MODELS = pathlib.Path(os.environ.get("STILL_TEST_MODELS", ""))
SMALL, LARGER, THINKING = "smollm2:135m", "qwen2.5:0.5b", "thinker:latest"
GREEDY_BODY = {"temperature": 0}  # newer releases of anthropic have no argument for it
GREEDY = {"temperature": 0, "seed": 1, "num_predict": 24}
SCHEMA = {"type": "object", "required": ["city", "population"], "additionalProperties": False,
          "properties": {"city": {"type": "string", "maxLength": 20}, "population": {"type": "integer"}}}
TOOL = {"type": "function",
        "function": {"name": "get_weather", "description": "The weather of a city now",
                     "parameters": {"type": "object", "required": ["city"],
                                    "properties": {"city": {"type": "string"}}}}}
WEATHER = [{"role": "user", "content": "What is the weather in Paris? Use the tool."}]

server = None


class OllamaServer:
    def __init__(self, running):
        self.running, self.url, self.port = running, running.url, running.port

    def call(self, path, body=None, method=None, raw=None):
        """(status, text) of one request. No Content-Type of JSON is sent, as with curl -d."""
        data = raw if raw is not None else None if body is None else json.dumps(body)
        answer = self.running.request(method or ("GET" if data is None else "POST"), path, data)
        return answer.status, answer.text

    def close(self):
        self.running.stop()


def needs(package):
    return unittest.skipUnless(importlib.util.find_spec(package), f"{package} is not installed")


def setUpModule():
    global server
    if not (MODELS / "smollm2.gguf").is_file():
        raise unittest.SkipTest("STILL_TEST_MODELS names no folder with smollm2.gguf, q05.gguf, q15think.gguf")
    models = {SMALL: MODELS / "smollm2.gguf", LARGER: MODELS / "q05.gguf"}
    if (MODELS / "q15think.gguf").is_file():
        models[THINKING] = MODELS / "q15think.gguf"
    server = OllamaServer(still_server.start(BINARY, models, ("--context", "8192", "--parallel", "4")))
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        os.environ.pop(proxy, None)


def tearDownModule():
    if server:
        server.close()


def has_thinker():
    return (MODELS / "q15think.gguf").is_file()


class OllamaWire(unittest.TestCase):
    """What only raw requests show."""

    def error(self, path, body, status, method=None):
        code, text = server.call(path, body, method=method)
        self.assertEqual(code, status, text)
        return json.loads(text)["error"]

    def test_errors(self):
        self.assertEqual(server.call("/api/chat", raw=b"")[0], 400)
        self.assertEqual(json.loads(server.call("/api/chat", raw=b"")[1])["error"], "missing request body")
        self.assertEqual(self.error("/api/chat", {}, 400), "model is required")
        self.assertEqual(self.error("/api/chat", {"model": "nope", "messages": [{"role": "user", "content": "x"}]}, 404),
                         "model 'nope' not found")
        self.assertEqual(self.error("/api/generate", {"model": "nope"}, 404), "model 'nope' not found")
        for path in ("/api/chat", "/api/embed", "/api/embeddings"):
            code, text = server.call(path, {"model": SMALL + "x", "input": "x", "prompt": "x",
                                            "messages": [{"role": "user", "content": "x"}]})
            self.assertEqual(code, 404, text)
            self.assertIn(SMALL, json.loads(text)["closest"])
        self.assertEqual(self.error("/api/show", {"name": "nope"}, 404), "model 'nope' not found")
        self.assertEqual(self.error("/api/delete", {"name": "nope"}, 404, "DELETE"), "model 'nope' not found")
        self.assertEqual(self.error("/api/copy", {"source": "nope", "destination": "x"}, 404), "model 'nope' not found")
        self.assertEqual(
            self.error("/api/chat", {"model": SMALL, "think": True, "messages": WEATHER}, 400),
            f'"{SMALL}" does not support thinking')
        self.assertIn("context length", self.error(
            "/api/generate", {"model": SMALL, "prompt": "word " * 20000, "truncate": False, "stream": False}, 400))
        self.assertEqual(server.call("/api/chat", method="GET")[0], 405)
        self.assertEqual(server.call("/api/push", {"model": SMALL})[0], 501)
        self.assertEqual(server.call("/api/chat", raw=b"{")[0], 400)

    def test_root_version_and_head(self):
        self.assertEqual(server.call("/"), (200, "Ollama is running"))
        self.assertRegex(json.loads(server.call("/api/version")[1])["version"], r"^\d+\.\d+\.\d+")
        self.assertEqual(server.call("/api/tags", method="HEAD"), (200, ""))

    def test_streams_by_default_and_nulls_are_unset(self):
        code, text = server.call("/api/chat", {"model": SMALL, "messages": [{"role": "user", "content": "Hi"}],
                                               "tools": [], "format": None, "think": None,
                                               "options": {**GREEDY, "temperature": None, "num_ctx": 131072}})
        self.assertEqual(code, 200)
        lines = [json.loads(line) for line in text.splitlines()]
        self.assertGreater(len(lines), 2)
        self.assertTrue(all(line["message"]["content"] for line in lines[:-1]))
        self.assertTrue(lines[-1]["done"])
        self.assertLessEqual(lines[-1]["eval_count"], 24)

    def test_stream_and_whole_are_the_same_text(self):
        body = {"model": SMALL, "prompt": "Tell me about rivers.", "options": {"seed": 5, "num_predict": 30}}
        whole = json.loads(server.call("/api/generate", {**body, "stream": False})[1])
        lines = [json.loads(line) for line in server.call("/api/generate", body)[1].splitlines()]
        self.assertEqual("".join(line["response"] for line in lines), whole["response"])
        self.assertEqual(lines[-1]["context"], whole["context"])

    def test_context_goes_on(self):
        first = json.loads(server.call("/api/generate", {"model": LARGER, "prompt": "My name is Zorblax. Say hello.",
                                                         "stream": False, "options": GREEDY})[1])
        second = json.loads(server.call("/api/generate", {"model": LARGER, "prompt": "What is my name?", "stream": False,
                                                          "context": first["context"], "options": GREEDY})[1])
        self.assertGreater(second["prompt_eval_count"], len(first["context"]))
        self.assertIn("Zorblax", second["response"])

    def test_truncation_is_told(self):
        messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"turn {i} " + "blah " * 60}
                    for i in range(9)]
        answer = json.loads(server.call("/api/chat", {"model": SMALL, "messages": messages, "stream": False,
                                                      "options": {**GREEDY, "num_ctx": 512}})[1])
        self.assertTrue(any("dropped" in warning for warning in answer["warnings"]), answer)
        self.assertLessEqual(answer["prompt_eval_count"], 512)

    def test_load_and_unload(self):
        loaded = json.loads(server.call("/api/generate", {"model": SMALL, "keep_alive": "10m"})[1])
        self.assertEqual((loaded["done_reason"], loaded["response"]), ("load", ""))
        names = [m["name"] for m in json.loads(server.call("/api/ps")[1])["models"]]
        self.assertIn(SMALL, names)
        unloaded = json.loads(server.call("/api/chat", {"model": SMALL, "messages": [], "keep_alive": 0})[1])
        self.assertEqual(unloaded["done_reason"], "unload")
        deadline = time.monotonic() + 10
        while SMALL in [m["name"] for m in json.loads(server.call("/api/ps")[1])["models"]]:
            self.assertLess(time.monotonic(), deadline, "still loaded")
            time.sleep(0.1)

    def test_raw_has_no_template(self):
        answer = json.loads(server.call("/api/generate", {"model": SMALL, "prompt": "The capital of France is",
                                                          "raw": True, "stream": False, "options": GREEDY})[1])
        self.assertNotIn("context", answer)
        self.assertLess(answer["prompt_eval_count"], 9)
        self.assertIn("Paris", answer["response"])

    def test_blobs(self):
        data = b"not a model"
        good = "sha256:" + hashlib.sha256(data).hexdigest()
        wrong = "sha256:" + "0" * 64
        self.assertEqual(server.call(f"/api/blobs/{good}", method="HEAD")[0], 404)
        self.assertEqual(server.call(f"/api/blobs/{wrong}", raw=data)[0], 400)
        self.assertEqual(server.call(f"/api/blobs/{good}", raw=data)[0], 201)
        self.assertEqual(server.call(f"/api/blobs/{good}", raw=data)[0], 200)
        self.assertEqual(server.call(f"/api/blobs/{good}", method="HEAD")[0], 200)
        code, text = server.call("/api/create", {"model": "broken", "files": {"m.gguf": good}})
        self.assertEqual(code, 400, text)
        self.assertIn("invalid model files", json.loads(text)["error"])

    def test_a_client_that_leaves_frees_its_place(self):
        body = json.dumps({"model": LARGER, "messages": [{"role": "user", "content": "Write a very long story."}],
                           "options": {"num_predict": 4000}}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            client.recv(100)
        deadline = time.monotonic() + 20
        while True:
            text = server.call("/metrics")[1]
            running = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running")]
            if running and all(float(line.rsplit(" ", 1)[1]) == 0 for line in running):
                break
            self.assertLess(time.monotonic(), deadline, running)
            time.sleep(0.1)


@needs("ollama")
class OllamaPython(unittest.TestCase):
    def setUp(self):
        import ollama
        self.ollama = ollama
        self.client = ollama.Client(host=server.url)

    def test_chat(self):
        answer = self.client.chat(LARGER, [{"role": "user", "content": "What is 2+2? Answer with a number."}],
                                  options=GREEDY)
        self.assertIn("4", answer.message.content)
        self.assertEqual(answer.done_reason, "stop")
        self.assertGreater(answer.prompt_eval_count, 5)
        self.assertGreater(answer.total_duration, answer.eval_duration)
        self.assertEqual(answer.model, LARGER)

    def test_stream(self):
        parts = list(self.client.chat(SMALL, [{"role": "user", "content": "Count to five."}], stream=True, options=GREEDY))
        self.assertGreater(len(parts), 3)
        self.assertTrue(parts[-1].done)

    def test_structured(self):
        answer = self.client.chat(LARGER, [{"role": "user", "content": "Tell me about Paris as JSON."}], format=SCHEMA,
                                  options={**GREEDY, "num_predict": 100})
        value = json.loads(answer.message.content)
        self.assertEqual(set(value), {"city", "population"})
        self.assertIsInstance(value["population"], int)
        answer = self.client.generate(LARGER, "Name a colour, as a JSON object.", format="json",
                                      options={**GREEDY, "num_predict": 100})
        self.assertIsInstance(json.loads(answer.response), dict)

    def test_tools(self):
        def get_weather(city: str) -> str:
            """The weather of a city now.

            Args:
              city: name of the city
            """
            return "rain"

        for stream in (False, True):
            answer = self.client.chat(LARGER, WEATHER, tools=[get_weather], stream=stream,
                                      options={**GREEDY, "num_predict": 80})
            messages = [part.message for part in answer] if stream else [answer.message]
            calls = [call for message in messages for call in message.tool_calls or []]
            self.assertEqual(len(calls), 1, messages)
            self.assertEqual(calls[0].function.name, "get_weather")
            self.assertEqual(calls[0].function.arguments["city"], "Paris")
        history = WEATHER + [{"role": "assistant", "content": "", "tool_calls": [calls[0].model_dump()]},
                             {"role": "tool", "tool_name": "get_weather", "content": "rain, 11 degrees"}]
        final = self.client.chat(LARGER, history, options={**GREEDY, "num_predict": 60})
        self.assertIn("11", final.message.content)

    def test_embeddings(self):
        several = self.client.embed(SMALL, ["the sea", "the sky"]).embeddings
        self.assertEqual(len(several), 2)
        self.assertAlmostEqual(sum(v * v for v in several[0]), 1, places=4)
        self.assertEqual(list(self.client.embed(SMALL, "the sea").embeddings[0]), list(several[0]))
        one = self.client.embeddings(SMALL, "the sea").embedding
        norm = sum(v * v for v in one) ** 0.5
        for a, b in zip(one, several[0]):
            self.assertAlmostEqual(a / norm, b, places=4)

    def test_cancellation(self):
        stream = self.client.generate(LARGER, "Write a very long story.", stream=True, options={"num_predict": 4000})
        next(stream)
        stream.close()
        deadline = time.monotonic() + 10
        while json.loads(server.call("/v1/generations")[1])["data"]:
            self.assertLess(time.monotonic(), deadline, "the request goes on after its client has gone")
            time.sleep(0.05)

    def test_thinking(self):
        if not has_thinker():
            self.skipTest("no q15think.gguf")
        question = [{"role": "user", "content": "What is 3*5?"}]
        options = {**GREEDY, "num_predict": 300}
        thought = self.client.chat(THINKING, question, think=True, options=options)
        self.assertTrue(thought.message.thinking)
        self.assertNotIn("<think>", thought.message.content)
        plain = self.client.chat(THINKING, question, think=False, options=options)
        self.assertFalse(plain.message.thinking)
        self.assertTrue(plain.message.content)
        low = self.client.chat(THINKING, question, think="low", options=options)
        self.assertTrue(low.message.thinking)
        with self.assertRaises(self.ollama.ResponseError) as refused:
            self.client.chat(SMALL, question, think=True)
        self.assertEqual(refused.exception.status_code, 400)

    def test_logprobs(self):
        answer = self.client.chat(SMALL, [{"role": "user", "content": "Hi"}], logprobs=True, top_logprobs=3,
                                  options={**GREEDY, "num_predict": 4})
        self.assertEqual(len(answer.logprobs), 4)
        for token in answer.logprobs:
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertEqual(token.token, token.top_logprobs[0].token)
            self.assertLessEqual(token.logprob, 0)

    def test_show_list_ps(self):
        shown = self.client.show(SMALL)
        self.assertEqual(shown.modelinfo["general.architecture"], "llama")
        self.assertEqual(shown.details.family, "llama")
        self.assertIn("completion", shown.capabilities)
        self.assertIn("FROM ", shown.modelfile)
        listed = {m.model: m for m in self.client.list().models}
        self.assertIn(SMALL, listed)
        self.assertRegex(listed[SMALL].digest, "^[0-9a-f]{64}$")
        self.assertRegex(listed[SMALL].details.parameter_size, r"^\d+(\.\d+)?M$")
        self.client.generate(SMALL, keep_alive="5m")
        running = {m.model: m for m in self.client.ps().models}
        self.assertIn(SMALL, running)
        self.assertGreater(running[SMALL].expires_at.timestamp(), time.time())
        self.assertGreater(running[SMALL].context_length, 0)

    def test_create_copy_delete(self):
        self.client.create(model="brief", from_=SMALL, system="You answer with one word.",
                           parameters={"temperature": 0, "stop": ["\n"]}, template=None,
                           messages=[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes."}])
        shown = self.client.show("brief")
        self.assertRegex(shown.parameters, r'stop +"\\n"')
        self.assertIn('SYSTEM """You answer with one word."""', shown.modelfile)
        self.assertTrue(self.client.chat("brief", [{"role": "user", "content": "Hi"}], options=GREEDY).message.content)
        statuses = [p.status for p in self.client.create(model="again", from_="brief", system="S", stream=True)]
        self.assertEqual(statuses[-1], "success")
        self.client.copy("again", "third")
        self.assertEqual({"brief:latest", "again:latest", "third:latest"} -
                         {m.model for m in self.client.list().models}, set())
        for name in ("brief", "again", "third"):
            self.assertEqual(self.client.delete(name).status, "success")
        with self.assertRaises(self.ollama.ResponseError) as gone:
            self.client.show("third")
        self.assertEqual(gone.exception.status_code, 404)
        self.assertIn(SMALL, {m.model for m in self.client.list().models})
        for refused in ({"from_": SMALL, "adapters": {"a": "sha256:" + "0" * 64}}, {"from_": SMALL, "quantize": "q4_0"}):
            with self.assertRaises(self.ollama.ResponseError) as error:
                self.client.create(model="x", **refused)
            self.assertEqual(error.exception.status_code, 400)

    def test_create_from_an_upload(self):
        digest = self.client.create_blob(str(still_server.TINY / "qwen2" / "model.gguf"))
        self.client.create(model="uploaded", files={"model.gguf": digest})
        self.assertEqual(self.client.show("uploaded").details.family, "qwen2")
        self.client.delete("uploaded")

    def test_pull_progress(self):
        handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {
            "log_message": lambda *args: None,
            "__init__": lambda self, *args: http.server.SimpleHTTPRequestHandler.__init__(
                self, *args, directory=str(MODELS))})
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as source:
            threading.Thread(target=source.serve_forever, daemon=True).start()
            what = f"http://127.0.0.1:{source.server_port}/smollm2.gguf"
            parts = list(self.client.pull(what, stream=True))
            source.shutdown()
        statuses = [part.status for part in parts]
        self.assertEqual(statuses[0], "pulling manifest")
        self.assertEqual(statuses[-1], "success")
        self.assertIn("writing manifest", statuses)
        self.assertTrue(any(part.completed for part in parts))
        self.assertIn("smollm2", " ".join(m.model for m in self.client.list().models))
        with self.assertRaises(self.ollama.ResponseError):
            self.client.pull("file:/etc/passwd")

    def test_errors(self):
        with self.assertRaises(self.ollama.ResponseError) as missing:
            self.client.chat("nope", WEATHER)
        self.assertEqual(missing.exception.status_code, 404)
        with self.assertRaises(self.ollama.ResponseError) as missing:
            list(self.client.generate("nope", "x", stream=True))
        self.assertEqual(missing.exception.error, "model 'nope' not found")
        with self.assertRaises(self.ollama.ResponseError) as image:
            self.client.chat(SMALL, [{"role": "user", "content": "x", "images": [base64.b64encode(b"x").decode()]}])
        self.assertIn("image", image.exception.error)


@needs("langchain_ollama")
class LangChain(unittest.TestCase):
    def test_errors(self):
        import ollama
        from langchain_ollama import ChatOllama, OllamaEmbeddings
        with self.assertRaises(ollama.ResponseError):
            ChatOllama(model="nope", base_url=server.url).invoke("x")
        with self.assertRaises(ollama.ResponseError):
            OllamaEmbeddings(model="nope", base_url=server.url).embed_query("x")

    def test_chat_stream_tools_and_structure(self):
        from langchain_ollama import ChatOllama
        chat = ChatOllama(model=LARGER, base_url=server.url, temperature=0, num_predict=80, validate_model_on_init=True)
        answer = chat.invoke("What is 2+2? Answer with a number.")
        self.assertIn("4", answer.content)
        self.assertGreater(answer.usage_metadata["output_tokens"], 0)
        self.assertEqual("".join(part.content for part in chat.stream("What is 2+2? Answer with a number.")),
                         answer.content)
        called = chat.bind_tools([TOOL]).invoke("What is the weather in Paris? Use the tool.")
        self.assertEqual(called.tool_calls[0]["args"], {"city": "Paris"})
        schema = {**SCHEMA, "title": "City", "description": "a city"}
        value = chat.with_structured_output(schema, method="json_schema").invoke("Tell me about Paris.")
        self.assertIsInstance(value["population"], int)

    def test_reasoning(self):
        if not has_thinker():
            self.skipTest("no q15think.gguf")
        from langchain_ollama import ChatOllama
        chat = ChatOllama(model=THINKING, base_url=server.url, temperature=0, num_predict=300, reasoning=True)
        answer = chat.invoke("What is 3*5?")
        self.assertTrue(answer.additional_kwargs["reasoning_content"])
        self.assertNotIn("think>", answer.content)


@needs("anthropic")
class Anthropic(unittest.TestCase):
    def setUp(self):
        import anthropic
        self.anthropic = anthropic
        self.client = anthropic.Anthropic(base_url=server.url, api_key="any")

    def test_message_and_usage(self):
        message = self.client.messages.create(
            model=LARGER, max_tokens=30, extra_body=GREEDY_BODY, system="You are a calculator.",
            messages=[{"role": "user", "content": [{"type": "text", "text": "What is 2+2? Answer with a number."}]}])
        self.assertIn("4", message.content[0].text)
        self.assertEqual(message.stop_reason, "end_turn")
        counted = self.client.messages.count_tokens(
            model=LARGER, system="You are a calculator.",
            messages=[{"role": "user", "content": [{"type": "text", "text": "What is 2+2? Answer with a number."}]}])
        self.assertEqual(counted.input_tokens, message.usage.input_tokens + message.usage.cache_read_input_tokens)

    def test_stream(self):
        arguments = dict(model=LARGER, max_tokens=20, extra_body=GREEDY_BODY,
                         messages=[{"role": "user", "content": "Count from one to ten."}])
        with self.client.messages.stream(**arguments) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual(final.content[0].text, text)
        self.assertEqual(final.stop_reason, "max_tokens")
        self.assertEqual(final.usage.output_tokens, 20)
        self.assertEqual(self.client.messages.create(**arguments).content[0].text, text)

    def test_stop_sequence_and_prefill(self):
        message = self.client.messages.create(
            model=LARGER, max_tokens=40, extra_body=GREEDY_BODY, stop_sequences=["5"],
            messages=[{"role": "user", "content": "Count: 1 2 3 4 5 6 7 8"}, {"role": "assistant", "content": "1 2 3"}])
        self.assertEqual((message.stop_reason, message.stop_sequence), ("stop_sequence", "5"))

    def test_tools(self):
        tools = [{"name": "get_weather", "description": "The weather of a city now",
                  "input_schema": TOOL["function"]["parameters"]}]
        with self.client.messages.stream(model=LARGER, max_tokens=100, extra_body=GREEDY_BODY, tools=tools,
                                         messages=WEATHER) as stream:
            message = stream.get_final_message()
        calls = [block for block in message.content if block.type == "tool_use"]
        self.assertEqual(calls[0].input, {"city": "Paris"})
        self.assertEqual(message.stop_reason, "tool_use")
        final = self.client.messages.create(
            model=LARGER, max_tokens=60, extra_body=GREEDY_BODY, tools=tools, tool_choice={"type": "none"},
            messages=WEATHER + [{"role": "assistant", "content": message.content},
                                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": calls[0].id,
                                                              "content": "rain, 11 degrees"}]}])
        self.assertIn("11", final.content[0].text)

    def test_thinking(self):
        if not has_thinker():
            self.skipTest("no q15think.gguf")
        with self.client.messages.stream(model=THINKING, max_tokens=300,
                                         thinking={"type": "enabled", "budget_tokens": 32},
                                         messages=[{"role": "user", "content": "What is 3*5?"}]) as stream:
            message = stream.get_final_message()
        self.assertEqual(message.content[0].type, "thinking")
        self.assertTrue(message.content[0].thinking)

    def test_errors(self):
        with self.assertRaises(self.anthropic.NotFoundError) as missing:
            self.client.messages.create(model="nope", max_tokens=5, messages=WEATHER)
        self.assertEqual(missing.exception.body["error"]["type"], "not_found_error")
        with self.assertRaises(self.anthropic.BadRequestError):
            self.client.messages.create(model=SMALL, max_tokens=5, messages=[])


@needs("openai")
class Responses(unittest.TestCase):
    def setUp(self):
        import openai
        self.openai = openai
        self.client = openai.OpenAI(base_url=server.url + "/v1", api_key="any")

    def test_create(self):
        response = self.client.responses.create(model=LARGER, input="What is 2+2? Answer with a number.",
                                                instructions="You are a calculator.", temperature=0)
        self.assertIn("4", response.output_text)
        self.assertEqual(response.status, "completed")
        self.assertEqual(response.usage.total_tokens, response.usage.input_tokens + response.usage.output_tokens)

    def test_stream(self):
        arguments = dict(model=LARGER, input=[{"role": "user", "content": "Count from one to ten."}], temperature=0,
                         max_output_tokens=20)
        text, last = "", None
        with self.client.responses.stream(**arguments) as stream:
            for number, event in enumerate(stream):
                if event.type == "response.output_text.delta":
                    text += event.delta
                last = event
        self.assertEqual(last.type, "response.incomplete")
        self.assertEqual(last.response.incomplete_details.reason, "max_output_tokens")
        self.assertEqual(self.client.responses.create(**arguments).output_text, text)

    def test_structured(self):
        response = self.client.responses.create(
            model=LARGER, input="Tell me about Paris.", temperature=0, max_output_tokens=100,
            text={"format": {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}})
        self.assertIsInstance(json.loads(response.output_text)["population"], int)

    def test_tools(self):
        tools = [{"type": "function", **TOOL["function"], "strict": False}]
        response = self.client.responses.create(model=LARGER, input=WEATHER, tools=tools, temperature=0)
        call = [item for item in response.output if item.type == "function_call"][0]
        self.assertEqual(json.loads(call.arguments), {"city": "Paris"})
        final = self.client.responses.create(
            model=LARGER, temperature=0, tools=tools, tool_choice="none", max_output_tokens=60,
            input=WEATHER + [call.model_dump(), {"type": "function_call_output", "call_id": call.call_id,
                                                 "output": "rain, 11 degrees"}])
        self.assertIn("11", final.output_text)

    def test_reasoning(self):
        if not has_thinker():
            self.skipTest("no q15think.gguf")
        response = self.client.responses.create(model=THINKING, input="What is 3*5?", temperature=0,
                                                reasoning={"effort": "low"}, max_output_tokens=3000)
        self.assertEqual(response.output[0].type, "reasoning")
        self.assertTrue(response.output[0].summary[0].text)
        self.assertGreater(response.usage.output_tokens_details.reasoning_tokens, 0)

    def test_errors(self):
        with self.assertRaises(self.openai.BadRequestError) as stateful:
            self.client.responses.create(model=SMALL, input="x", previous_response_id="resp_1")
        self.assertEqual(stateful.exception.body["param"], "previous_response_id")
        with self.assertRaises(self.openai.NotFoundError):
            self.client.responses.create(model="nope", input="x")


@needs("litellm")
class LiteLlm(unittest.TestCase):
    def test_ollama_paths(self):
        import litellm
        question = [{"role": "user", "content": "What is 2+2? Answer with a number."}]
        for path in ("ollama_chat", "ollama"):
            answer = litellm.completion(model=f"{path}/{LARGER}", messages=question, api_base=server.url, temperature=0,
                                        max_tokens=24)
            self.assertIn("4", answer.choices[0].message.content)
            self.assertGreater(answer.usage.completion_tokens, 0)
            streamed = litellm.completion(model=f"{path}/{LARGER}", messages=question, api_base=server.url,
                                          temperature=0, max_tokens=24, stream=True)
            self.assertIn("4", "".join(part.choices[0].delta.content or "" for part in streamed))


class OllamaJavaScript(unittest.TestCase):
    def test_client(self):
        folder = os.environ.get("STILL_TEST_NPM", "")
        if not shutil.which("node") or not (pathlib.Path(folder) / "node_modules" / "ollama").is_dir():
            self.skipTest("STILL_TEST_NPM names no folder with node_modules/ollama")
        script = pathlib.Path(__file__).parent / "ollama_npm.mjs"
        thinking = [THINKING] if has_thinker() else []
        done = subprocess.run(["node", str(script), folder, server.url, SMALL, LARGER, *thinking], capture_output=True, text=True,
                              timeout=300)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    BINARY = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
