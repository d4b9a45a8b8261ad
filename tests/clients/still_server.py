"""Starts `still serve` on a free port of loopback over a store made for the test, and talks to it with the standard library.

Used by the client tests of this folder. With STILL_URL set no server is started: the tests run against that one.
"""
import http.client
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = ROOT / "testdata" / "tiny"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """models: {name in the store: path of a model}; tls: the ssl.SSLContext to speak with, where arguments ask for TLS;
    headers: sent with each request."""

    def __init__(self, still, models, arguments=(), tls=None, headers=None, env=None):
        self.tls, self.headers = tls, headers or {}
        self.extra_env = env or {}
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="still-clients-"))
        env = {k: v for k, v in os.environ.items() if not k.startswith(("STILL_", "OLLAMA_"))}
        env["HOME"] = str(self.folder)
        env["STILL_MODELS"] = str(self.folder / "models")
        env |= self.extra_env
        self.env = env
        self.still = str(still)
        for name, path in models.items():
            subprocess.run([self.still, "pull", f"file:{path}", "--name", name], env=env, check=True, capture_output=True)
        self.port = free_port()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.log = open(self.folder / "serve.log", "wb")
        self.process = subprocess.Popen(
            [self.still, "serve", "--host", f"127.0.0.1:{self.port}", *arguments], env=env, stdout=self.log, stderr=self.log)
        for _ in range(300):
            if self.process.poll() is not None:
                raise RuntimeError("still serve ended: " + self.log_text())
            try:
                if self.get("/health").status == 200:
                    return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("still serve does not answer: " + self.log_text())

    def log_text(self):
        return (self.folder / "serve.log").read_text(errors="replace")[-4000:]

    def get(self, path, headers=None):
        return self.request("GET", path, None, headers)

    def post(self, path, body, headers=None):
        return self.request("POST", path, body if isinstance(body, (bytes, str)) else json.dumps(body), headers)

    def connect(self):
        if self.tls:
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=120, context=self.tls)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def request(self, method, path, body=None, headers=None):
        connection = self.connect()
        connection.request(method, path, body, self.headers | (headers or {}))
        response = connection.getresponse()
        response.text = response.read().decode("utf-8")
        connection.close()
        return response

    def json(self, method, path, body=None, status=200):
        response = self.request(method, path, None if body is None else json.dumps(body))
        assert response.status == status, f"{method} {path}: {response.status}, wanted {status}: {response.text[:500]}"
        return json.loads(response.text)

    def stream(self, path, body):
        """The JSON objects of a stream, SSE or lines."""
        response = self.post(path, body)
        assert response.status == 200, response.text
        kind = response.getheader("Content-Type")
        if kind.startswith("application/x-ndjson"):
            return [json.loads(line) for line in response.text.splitlines()]
        assert kind.startswith("text/event-stream"), kind
        events = [e for e in response.text.split("\n\n") if e and not e.startswith(":")]
        assert events[-1] == "data: [DONE]", events[-1]
        return [json.loads(e[len("data: "):]) for e in events[:-1]]

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.log.close()
            text = self.log_text()
            shutil.rmtree(self.folder, ignore_errors=True)
        assert self.process.returncode == 0, f"still serve ended with {self.process.returncode}: {text}"


    def discard(self):
        """Ends it at once and asks nothing of how: for a test that has failed, or has ended the server itself."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class ExternalServer(Server):
    def __init__(self, url):
        self.tls, self.headers = None, {}
        self.url = url.rstrip("/")
        self.port = urllib.parse.urlparse(url).port
        self.process = None

    def stop(self):
        pass


def start(still, models, arguments=()):
    url = os.environ.get("STILL_URL")
    return ExternalServer(url) if url else Server(still, models, arguments)
