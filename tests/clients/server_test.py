#!/usr/bin/env python3
"""OpenAI's API over HTTP against a running server with a tiny model: only the standard library, no network.

usage: server_test.py STILL
"""
import http.client
import json
import socket
import sys
import threading
import time

import still_server

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me of the sea"}], "max_tokens": 24, "seed": 4}


def text_of(chunks, key="content"):
    return "".join(c["delta"].get(key) or "" for chunk in chunks for c in chunk["choices"])


def check_models(server):
    names = [m["id"] for m in server.json("GET", "/v1/models")["data"]]
    assert "tiny:latest" in names, names
    assert server.json("GET", "/v1/models/tiny:latest")["id"] == "tiny:latest"
    assert server.json("GET", "/models")["object"] == "list"
    missing = server.json("GET", "/v1/models/tinny", status=404)["error"]
    assert missing["code"] == "model_not_found" and "tinny" in missing["message"], missing


def check_stream_equals_whole(server):
    for more in ({}, {"temperature": 0}, {"enable_thinking": True, "thinking_budget": 6}, {"stop": ["e"]}):
        whole = server.json("POST", "/v1/chat/completions", CHAT | more)["choices"][0]
        chunks = server.stream("/v1/chat/completions", CHAT | more | {"stream": True})
        assert text_of(chunks) == whole["message"]["content"], more
        assert text_of(chunks, "reasoning_content") == whole["message"].get("reasoning_content", ""), more
        assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
        assert len({c["id"] for c in chunks}) == 1 and len({c["created"] for c in chunks}) == 1


def check_completions(server):
    body = {"model": "tiny", "prompt": [72, 101, 108], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    choice = server.json("POST", "/v1/completions", body)["choices"][0]
    assert len(choice["logprobs"]["token_logprobs"]) == 4 and choice["logprobs"]["token_logprobs"][0] is None
    whole = server.json("POST", "/v1/completions", {"model": "tiny", "prompt": "One", "max_tokens": 9, "seed": 2})
    chunks = server.stream("/v1/completions", {"model": "tiny", "prompt": "One", "max_tokens": 9, "seed": 2, "stream": True})
    assert "".join(c["text"] for chunk in chunks for c in chunk["choices"]) == whole["choices"][0]["text"]


def check_tokenize(server):
    ids = server.json("POST", "/tokenize", {"prompt": "The sea", "add_special_tokens": False})["tokens"]
    assert server.json("POST", "/detokenize", {"tokens": ids})["prompt"] == "The sea"
    assert server.json("GET", "/tokenizer_info")["eos_token"]


def check_errors(server):
    assert server.post("/v1/chat/completions", "{").status == 400
    assert server.post("/v1/chat/completions", b'{"model":"\xff"}').status == 400
    long = dict(CHAT, messages=[{"role": "user", "content": "x" * 100000}])
    assert server.json("POST", "/v1/chat/completions", long, 400)["error"]["code"] == "context_length_exceeded"
    unknown = server.json("POST", "/v1/chat/completions", dict(CHAT, model="nosuch"), 404)["error"]
    assert unknown["code"] == "model_not_found", unknown


def check_body_without_content_type(server):
    response = server.post("/v1/chat/completions", CHAT, {"Content-Type": "application/x-www-form-urlencoded"})
    assert response.status == 200, response.text


def check_openapi(server):
    document = server.json("GET", "/openapi.json")
    assert document["openapi"].startswith("3.") and "/v1/chat/completions" in document["paths"]


def running(server):
    for line in server.get("/metrics").text.splitlines():
        if line.startswith("vllm:num_requests_running"):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


def check_leaving_frees(server):
    """A client that closes its stream ends its request, others go on."""
    body = json.dumps(dict(CHAT, max_tokens=200, ignore_eos=True, stream=True))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    sockets = []
    for _ in range(4):
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall((head.replace("Host: x", f"Host: 127.0.0.1:{server.port}") + body).encode())
        connection.recv(200)
        sockets.append(connection)
    for connection in sockets:
        connection.close()
    for _ in range(200):
        if not server.json("GET", "/v1/generations")["data"]:
            return
        time.sleep(0.05)
    raise AssertionError("generations go on without their clients")


def check_many_at_once(server):
    """Answers of concurrent streams are the ones that each request gets alone."""
    wanted = [server.json("POST", "/v1/chat/completions", CHAT | {"seed": i})["choices"][0]["message"]["content"] for i in range(8)]
    got = [None] * 8

    def ask(i):
        got[i] = text_of(server.stream("/v1/chat/completions", CHAT | {"seed": i, "stream": True}))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == wanted, (got, wanted)


def check_steering(server):
    """Thinking is stopped from another connection."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = dict(CHAT, max_tokens=200, ignore_eos=True, enable_thinking=True, stream=True)
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    response = connection.getresponse()
    handle = response.getheader("X-Still-Generation")
    assert handle and handle.startswith("gen-"), handle
    # It may have ended by itself already; then there is nothing to steer.
    assert server.post(f"/v1/generations/{handle}/stop_thinking", "").status in (200, 204, 404)
    response.read()
    connection.close()


CHECKS = [check_models, check_stream_equals_whole, check_completions, check_tokenize, check_errors,
          check_body_without_content_type, check_openapi, check_leaving_frees, check_many_at_once, check_steering]


def main():
    server = still_server.start(sys.argv[1], {"tiny": still_server.TINY / "qwen2" / "model.gguf"})
    failed = 0
    try:
        for check in CHECKS:
            try:
                check(server)
                print(f"ok    {check.__name__}")
            except Exception as failure:  # noqa: BLE001: told, and the others go on
                failed += 1
                print(f"FAIL  {check.__name__}: {type(failure).__name__}: {failure}")
    finally:
        server.stop()
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
