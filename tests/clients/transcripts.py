#!/usr/bin/env python3
"""What published clients and a server say to each other, as Markdown: each client runs a few lines through a recorder that
stands between it and the server. Long answers are shortened in the middle; all else is as it went over the wire.

usage: transcripts.py STILL [FOLDER]    FOLDER holds the npm packages (see run.sh); run with the Python that has openai and
ollama. STILL_TEST_MODELS names the folder of q05.gguf and q15think.gguf. The document goes to standard output.
"""
import datetime
import http.client
import http.server
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import still_server

LONGEST = 700  # of a body that is shown
SHOWN = ("authorization", "content-type", "user-agent", "x-stainless-package-version", "x-still-generation")


class Recorder(http.server.ThreadingHTTPServer):
    """Hands requests on to the server and keeps what was said."""

    def __init__(self, port):
        super().__init__(("127.0.0.1", 0), Relay)
        self.server_port_behind = port
        self.said = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Relay(http.server.BaseHTTPRequestHandler):
    def relay(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        behind = http.client.HTTPConnection("127.0.0.1", self.server.server_port_behind, timeout=300)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "accept-encoding")}
        behind.request(self.command, self.path, body, headers)
        answer = behind.getresponse()
        data = answer.read()
        self.server.said.append((f"{self.command} {self.path}", dict(self.headers), body.decode(), answer.status,
                                 dict(answer.getheaders()), data.decode()))
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = do_HEAD = relay

    def log_message(self, *_):
        pass


def shorter(text):
    text = text.strip()
    if len(text) <= LONGEST:
        return text
    lines = [line for line in text.split("\n") if line]
    if len(lines) > 6:  # a stream: its beginning and its end
        left_out = len(lines) - 5
        lines = lines[:2] + [f"... {left_out} lines ..."] + lines[-3:]
        text = "\n".join(lines)
    return re.sub(r"(?m)^(.{%d}).*(.{200})$" % (LONGEST - 200), r"\1 ... \2", text)


def head(headers):
    return "\n".join(f"{k}: {v}" for k, v in headers.items() if k.lower() in SHOWN)


def show(title, code, language, said, heard):
    """heard: what the client printed; curl prints the answer, which is shown already."""
    print(f"\n## {title}\n\n```{language}\n{code.strip()}\n```\n")
    for line, sent, body, status, got, answer in said:
        print("```http")
        print("\n".join(part for part in (line, head(sent), "", shorter(body)) if part or part == "").rstrip())
        print(f"\nHTTP/1.1 {status}\n{head(got)}\n\n{shorter(answer)}\n```\n")
    if language != "sh":
        print(f"What the client gave: `{heard.strip()[:400]}`")


PYTHON = {
    "openai (Python): a chat, streamed": ("openai", """
from openai import OpenAI
client = OpenAI(base_url=URL + "/v1", api_key="any")
text = ""
for chunk in client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "What is 2 + 2?"}],
                                            max_tokens=24, temperature=0, stream=True, stream_options={"include_usage": True}):
    text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
print(text)
"""),
    "openai (Python): thinking apart from the answer": ("openai", """
from openai import OpenAI
client = OpenAI(base_url=URL + "/v1", api_key="any")
answer = client.chat.completions.create(model="thinking", messages=[{"role": "user", "content": "What is 3 * 5?"}],
                                        max_tokens=200, temperature=0, extra_body={"thinking": {"type": "enabled", "budget_tokens": 64}})
print(answer.choices[0].message.reasoning_content, "|", answer.choices[0].message.content)
"""),
    "openai (Python): an error": ("openai", """
import openai
client = openai.OpenAI(base_url=URL + "/v1", api_key="any", max_retries=0)
try:
    client.chat.completions.create(model="nosuch", messages=[{"role": "user", "content": "Hi"}])
except openai.NotFoundError as problem:
    print(type(problem).__name__, problem.body["code"])
"""),
    "ollama (Python): an answer held to a schema": ("ollama", """
import ollama
schema = {"type": "object", "properties": {"colour": {"type": "string", "maxLength": 20}}, "required": ["colour"]}
answer = ollama.Client(URL).chat(model="chat", messages=[{"role": "user", "content": "Name a colour of the sea."}],
                                 format=schema, options={"temperature": 0, "num_predict": 40})
print(answer.message.content)
"""),
}
NODE = {
    "openai (npm): a chat with a tool": ("openai", """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: "any" });
const answer = await client.chat.completions.create({
  model: "chat", messages: [{ role: "user", content: "What is the weather in Paris?" }], temperature: 0, max_tokens: 60, tool_choice: "required",
  tools: [{ type: "function", function: { name: "get_weather", parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] } } }] });
console.log(JSON.stringify(answer.choices[0].message.tool_calls));
"""),
    "@ai-sdk/openai-compatible (npm): text, streamed": ("@ai-sdk/openai-compatible", """
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";
const provider = createOpenAICompatible({ name: "still", baseURL: `${URL}/v1`, includeUsage: true });
const result = streamText({ model: provider("chat"), prompt: "Name three fruits.", temperature: 0, maxOutputTokens: 24 });
console.log(await result.text, await result.finishReason, (await result.usage).outputTokens);
"""),
}
CURL = {
    "curl: Ollama's chat, a line a token": """
curl -s $URL/api/chat -d '{"model": "chat", "messages": [{"role": "user", "content": "Say hello."}], "options": {"temperature": 0, "num_predict": 8}}'
""",
    "curl: Anthropic's messages": """
curl -s $URL/v1/messages -H 'x-api-key: any' -d '{"model": "chat", "max_tokens": 12, "temperature": 0, "messages": [{"role": "user", "content": "Say hello."}]}'
""",
}


def main():
    still = sys.argv[1]
    npm = sys.argv[2] if len(sys.argv) > 2 else ""
    folder = pathlib.Path(os.environ["STILL_TEST_MODELS"])
    server = still_server.Server(still, {"chat": folder / "q05.gguf", "thinking": folder / "q15think.gguf"})
    recorder = Recorder(server.port)
    url = f"http://127.0.0.1:{recorder.server_address[1]}"

    def record(title, language, code, command, **options):
        recorder.said.clear()
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
        assert done.returncode == 0, f"{title}: {done.stderr}"
        assert recorder.said, f"{title}: nothing was said"
        show(title, code, language, recorder.said, done.stdout)

    try:
        version = json.loads(server.get("/api/version").text)["still"]
        print("# Transcripts with published clients\n")
        print("Written by `tests/clients/transcripts.py STILL NPM_FOLDER`, which runs each of these clients against a server through a recorder;")
        print("a stream of more than six lines is shortened in its middle, a long line at its end.\n")
        print(f"still {version}, {datetime.date.today().isoformat()}; `chat` is Qwen2.5-Coder 0.5B, `thinking` a 1.5B of the same family that was")
        print("given thinking tokens, and knows little of them; two cores of an AMD EPYC (Zen 3).")
        for title, (package, code) in PYTHON.items():
            full = f"{title}, {importlib.metadata.version(package)}"
            record(full, "python", code, [sys.executable, "-c", f"URL = {url!r}\n{code}"])
        for title, (package, code) in NODE.items() if npm else ():
            full = f"{title}, {json.loads(pathlib.Path(npm, 'node_modules', package, 'package.json').read_text())['version']}"
            record(full, "js", code, ["node", "--input-type=module", "-e", f"const URL = {json.dumps(url)};\n{code}"], cwd=npm)
        for title, code in CURL.items() if shutil.which("curl") else ():
            record(title, "sh", code, ["sh", "-c", f"URL={url}\n{code}"])
    finally:
        server.stop()


if __name__ == "__main__":
    main()
