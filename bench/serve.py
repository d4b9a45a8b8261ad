#!/usr/bin/env python3
"""Speed and endurance of `still serve` over HTTP, beside llama.cpp's server where one is given.

    STILL=build/release/still STILL_PEER_LLAMA_SERVER=/path/to/llama-server \\
        bench/serve.py [--cases streams,stall,prefix,share,idle,soak,killed] [--rounds 3] [--json out.json] MODEL.gguf [SECOND.gguf]

Both servers are started here on free loopback ports, still with a temporary store that links to the files; rounds are
interleaved, so that all see the same machine. Only Python's standard library. Cases:

streams  N concurrent streaming chats (--streams 1,4,16) of about --prompt and exactly --answer tokens: tokens of
         answers a second in all, from the first request to the last token; time to first token (TTFT), median.
stall    --running streams decode; the time between two tokens of a stream, p95, while a prompt of --long tokens is
         prefilled, and undisturbed: before and after it, since the host's speed changes within the minute.
prefix   TTFT of a prompt of about --shared tokens, and of the same prompt again.
share    decode tokens a second of N streams (--share 1,64) over HTTP, from when all have a token to when the first is
         done, against `still bench --seqs N` at the same depth.
idle     --connections idle keep-alive connections and --active streams: errors, and the server's own memory: what it
         held before the model was loaded plus what the connections added to the same load without them.
soak     --minutes of mixed load on two models: chats whose answers must equal the same request's answer alone (greedy),
         random cancels, bad requests, unloading; resident memory in the second and last fifth. Ends with status 1 where
         an answer is lost or mixed, or the server breaks.
killed   what --clients that stream and try again see while the server is held (SIGSTOP), ended with kill -9 and started
         anew, and asked to end (SIGTERM) and started anew, each for --phase seconds. Ends with status 1 where a stream
         that was cut says that it is complete, has text that is not the beginning of the right answer, or is cut
         although the server was only held or asked to end.
"""
import argparse
import asyncio
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

WORDS = ("time year people way day man thing woman life child world school state family student group country problem hand "
         "part place case week company system program question work night point home water room mother area money story "
         "fact month lot right study book eye job word business issue side kind head house service friend father power "
         "hour game line end member law car city name team minute idea body back parent face door health person art").split()


class HttpError(Exception):
    """The connection broke, or the answer was no HTTP."""


class Answer:
    def __init__(self):
        self.status, self.sent = 0, time.monotonic()
        self.times = []  # of each piece of text
        self.text, self.usage, self.reason, self.error = "", {}, None, ""
        self.is_complete = False

    @property
    def ttft(self):
        return self.times[0] - self.sent if self.times else None


async def read_head(reader):
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as problem:
        raise HttpError(f"the connection ended after {len(problem.partial)} bytes of a head") from None
    lines = head.decode("latin-1").split("\r\n")
    headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
    return int(lines[0].split()[1]), headers


async def read_body(reader, headers):
    """Pieces of the body as they come."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while True:
            size = int((await reader.readline()).split(b";")[0] or b"x", 16)
            data = await reader.readexactly(size + 2)
            if data[-2:] != b"\r\n":
                raise HttpError("a chunk without its end")
            if size == 0:
                return
            yield data[:-2]
    else:
        yield await reader.readexactly(int(headers.get("content-length", "0")))


async def open_connection(port):
    return await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)


def head_of(method, path, n_bytes):
    return (f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {n_bytes}\r\n\r\n").encode()


async def call(port, method, path, body=b"", connection=None):
    """One request; status and body."""
    reader, writer = connection or await open_connection(port)
    try:
        writer.write(head_of(method, path, len(body)) + body)
        await writer.drain()
        status, headers = await read_head(reader)
        return status, b"".join([piece async for piece in read_body(reader, headers)])
    except (OSError, asyncio.IncompleteReadError, ValueError) as problem:
        raise HttpError(str(problem) or type(problem).__name__) from None
    finally:
        if not connection:
            writer.close()


def take_event(answer, event, now):
    """One event of a chat's stream, without its empty line."""
    if not event.startswith(b"data: "):
        return
    if event == b"data: [DONE]":
        answer.is_complete = True
        return
    message = json.loads(event[6:])
    if "error" in message:
        answer.error = json.dumps(message["error"])
    answer.usage = message.get("usage") or answer.usage
    for choice in message.get("choices", []):
        delta = choice.get("delta", {})
        text = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
        answer.reason = choice.get("finish_reason") or answer.reason
        if text:
            answer.times.append(now)
            answer.text += text


def chat_request(body):
    data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    return head_of("POST", "/v1/chat/completions", len(data)) + data


async def stream(port, body, answer=None, cancel_after=None):
    """A streaming chat. cancel_after: the connection is closed after so many pieces."""
    answer = answer or Answer()
    data = chat_request(body)
    writer = None
    try:
        answer.sent = time.monotonic()
        reader, writer = await open_connection(port)
        writer.write(data)
        await writer.drain()
        answer.status, headers = await read_head(reader)
        rest = b""
        async for piece in read_body(reader, headers):
            now = time.monotonic()
            if answer.status != 200:
                answer.error += piece.decode(errors="replace")
                continue
            *events, rest = (rest + piece).split(b"\n\n")
            for event in events:
                take_event(answer, event, now)
            if cancel_after is not None and len(answer.times) >= cancel_after:
                return answer
    except (OSError, asyncio.IncompleteReadError, ValueError, HttpError) as problem:
        answer.error = f"{type(problem).__name__}: {problem}"
    finally:
        if writer:
            writer.close()
    return answer


class Recorder(asyncio.Protocol):
    """Keeps what comes, and when. Reads nothing in it: the client must not take the processors it measures."""

    def __init__(self):
        self.pieces, self.ended = [], asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.pieces.append((time.monotonic(), data))
        if data.endswith(b"\r\n0\r\n\r\n"):  # the last chunk
            self.transport.close()

    def connection_lost(self, problem):
        if not self.ended.done():
            self.ended.set_result(None)


async def recorded_streams(port, bodies, n_pieces):
    """As stream(), several together, read when all is there: ends when each has got n_pieces since all have begun."""
    loop = asyncio.get_running_loop()
    recorders = []
    for body in bodies:
        _, recorder = await loop.create_connection(Recorder, "127.0.0.1", port)
        recorder.transport.write(chat_request(body))
        recorders.append(recorder)

    async def wait_for(counts):
        while any(len(r.pieces) < n and not r.ended.done() for r, n in zip(recorders, counts)):
            await asyncio.sleep(0.1)
    # The first two may be the head and the chunk that tells the role.
    await wait_for([3] * len(recorders))
    await wait_for([len(r.pieces) + n_pieces for r in recorders])
    for recorder in recorders:
        recorder.transport.close()
    return [read_recorded(recorder.pieces) for recorder in recorders]


def read_recorded(pieces):
    answer, is_head, received, events = Answer(), True, b"", b""
    for now, data in pieces:
        received += data
        if is_head:
            head, found, rest = received.partition(b"\r\n\r\n")
            if not found:
                continue
            is_head, received = False, rest
            answer.status = int(head.split()[1])
            if answer.status != 200:
                answer.error = rest.decode(errors="replace")
                break
        while (end := received.find(b"\r\n")) >= 0:
            size = int(received[:end].split(b";")[0], 16)
            if len(received) < end + size + 4:
                break
            events += received[end + 2:end + 2 + size]
            received = received[end + size + 4:]
            *whole, events = events.split(b"\n\n")
            for event in whole:
                take_event(answer, event, now)
    return answer


class Server:
    def __init__(self, name, command, port, environment=None):
        self.name, self.port = name, port
        self.log = tempfile.NamedTemporaryFile(prefix="bench_serve_", suffix=".log", delete=False)
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                        env={**os.environ, **(environment or {})})

    async def ready(self):
        for _ in range(1200):
            if self.process.poll() is not None:
                break
            try:
                if (await call(self.port, "GET", "/health"))[0] == 200:
                    return self
            except (HttpError, OSError):
                pass
            await asyncio.sleep(0.1)
        sys.exit(f"{self.name} does not start: {self.log.name}")

    def rss(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1]) * 1024

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        code = self.process.returncode
        self.log.close()
        if code in (0, -signal.SIGTERM):
            os.unlink(self.log.name)
        else:
            print(f"{self.name} ended with {code}: {self.log.name}", file=sys.stderr)
        return code


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def make_store(folder, models):
    """models: {name: path of a GGUF}. As docs/store.md describes it, with links for blobs."""
    os.makedirs(f"{folder}/blobs")
    digests = {}
    for name, path in models.items():
        if path not in digests:
            with open(path, "rb") as file:
                digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
            os.symlink(os.path.abspath(path), f"{folder}/blobs/sha256-{digests[path]}")
        os.makedirs(f"{folder}/manifests/{name}")
        with open(f"{folder}/manifests/{name}/latest.json", "w") as file:
            json.dump({"schema": 1, "name": f"{name}:latest", "source": "bench", "created": "2025-01-01T00:00:00Z",
                       "version": "", "command": "", "seconds": 0, "licence": "",
                       "files": [{"name": "model.gguf", "size": os.path.getsize(path), "sha256": digests[path]}]}, file)


class Bench:
    def __init__(self, args):
        self.args = args
        self.still = os.environ.get("STILL", "build/release/still")
        self.peer = os.environ.get("STILL_PEER_LLAMA_SERVER")
        self.folder = tempfile.mkdtemp(prefix="bench_serve_")
        self.models = {"first": args.models[0], "second": args.models[-1]}
        make_store(f"{self.folder}/store", self.models)
        self.servers, self.rows, self.failures = [], [], []
        self.sizes = {}  # server: (tokens of the template, tokens a word)

    async def start_still(self, parallel, extra=(), port=None):
        port = port or free_port()
        command = [self.still, "serve", "--host", "127.0.0.1", "--port", str(port), "--threads", str(self.args.threads),
                   "--parallel", str(parallel), "--models", f"{self.folder}/store", "--access-log", os.devnull,
                   "--keep-alive", "-1", *extra]
        clean = {name: "" for name in os.environ if name.startswith("OLLAMA_")}
        server = Server("still", command, port, {**clean, "STILL_API_KEYS": "", "OLLAMA_MODELS": f"{self.folder}/none"})
        self.servers.append(server)
        return await server.ready()

    async def start_peer(self, parallel, slot):
        port = free_port()
        command = [self.peer, "-m", self.args.models[0], "--host", "127.0.0.1", "--port", str(port), "-t",
                   str(self.args.threads), "-np", str(parallel), "-c", str(parallel * slot)]
        server = Server("llama.cpp", command, port)
        self.servers.append(server)
        return await server.ready()

    async def start_both(self, parallel, slot):
        servers = [await self.start_still(parallel)]
        if self.peer:
            servers.append(await self.start_peer(parallel, slot))
        for server in servers:
            await self.calibrate(server)
        return servers

    def stop_all(self):
        for server in self.servers:
            server.stop()
        self.servers = []

    def close(self):
        self.stop_all()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Prompts ---------------------------------------------------------------------------------------------------------

    async def calibrate(self, server):
        """How many tokens a word is, so that prompts have the length asked for. Loads the model, too."""
        counts = []
        for n in (20, 120):
            answer = await self.chat(server, self.words(n, f"calibrate {n}"), 1)
            if answer.error or not answer.usage:
                sys.exit(f"{server.name}: {answer.status} {answer.error}")
            counts.append(answer.usage["prompt_tokens"])
        per_word = (counts[1] - counts[0]) / 100
        self.sizes[server.name] = (counts[0] - 20 * per_word, per_word)

    @staticmethod
    def words(n, seed):
        rng = random.Random(f"{seed}")
        return " ".join(rng.choice(WORDS) for _ in range(n))

    def prompt(self, server, n_tokens, seed):
        """Words that no other seed's prompt begins with: no prefix is shared beyond the template's."""
        base, per_word = self.sizes[server.name]
        return self.words(max(1, round((n_tokens - base) / per_word)), seed)

    @staticmethod
    def body(text, n_answer, **extra):
        return {"model": "first", "messages": [{"role": "user", "content": text}], "max_tokens": n_answer,
                "temperature": 0, "ignore_eos": True, **extra}

    def chat(self, server, text, n_answer, answer=None, **extra):
        return stream(server.port, self.body(text, n_answer, **extra), answer)

    # Results ---------------------------------------------------------------------------------------------------------

    def add(self, case, unit, values, goal=""):
        """values: {engine: [one figure a round]}."""
        engines = {}
        for name, list_ in values.items():
            list_ = [v for v in list_ if v is not None]
            if list_:
                engines[name] = {"min": min(list_), "median": statistics.median(list_), "max": max(list_), "n": len(list_)}
        self.rows.append({"case": case, "unit": unit, "engines": engines, "goal": goal})
        for name, s in engines.items():
            print(f"  {case}: {name} {s['median']:.4g} {unit}", file=sys.stderr)

    def fail(self, sentence):
        self.failures.append(sentence)
        print(f"FAILED: {sentence}", file=sys.stderr)

    def check(self, where, answers, n_tokens=None):
        for answer in answers:
            if answer.error or not answer.is_complete:
                self.fail(f"{where}: status {answer.status} {answer.error or 'the stream was cut'}"[:400])
                return False
            if n_tokens and answer.usage.get("completion_tokens") != n_tokens:
                self.fail(f"{where}: {answer.usage} where {n_tokens} tokens were asked for")
        return True

    # Cases -----------------------------------------------------------------------------------------------------------

    async def streams(self):
        args = self.args
        servers = await self.start_both(max(args.streams), 512)
        for n in args.streams:
            speed, ttft, lengths = {}, {}, set()
            for i in range(args.rounds):
                for server in servers:
                    texts = [self.prompt(server, args.prompt, f"streams {n} {i} {k}") for k in range(n)]
                    answers = await asyncio.gather(*(self.chat(server, text, args.answer) for text in texts))
                    if not self.check(f"{n} streams, {server.name}", answers, args.answer):
                        continue
                    seconds = max(a.times[-1] for a in answers) - min(a.sent for a in answers)
                    lengths.update(a.usage["prompt_tokens"] for a in answers)
                    speed.setdefault(server.name, []).append(sum(a.usage["completion_tokens"] for a in answers) / seconds)
                    ttft.setdefault(server.name, []).append(statistics.median(a.ttft for a in answers))
            what = f"{n} chats, prompts of {min(lengths, default=0)}-{max(lengths, default=0)}, {args.answer} new"
            self.add(what, "tokens/s", speed, ">= 3x" if n == 16 else "")
            self.add(f"{what}: TTFT", "s", ttft, "<= 0.3x" if n == 16 else "")

    async def stall(self):
        args = self.args
        servers = await self.start_both(args.running + 1, args.long + 1024)
        calm, stalled, ratio = {}, {}, {}
        for i in range(args.rounds):
            for server in servers:
                # Room for many more tokens than are needed; they are cancelled at the end.
                answers = [Answer() for _ in range(args.running)]
                tasks = [asyncio.create_task(self.chat(server, self.prompt(server, 40, f"stall {i} {k}"), 4000, answer))
                         for k, answer in enumerate(answers)]
                try:
                    while min(len(a.times) for a in answers) < args.undisturbed and not any(t.done() for t in tasks):
                        await asyncio.sleep(0.01)
                    began = time.monotonic()
                    long_answer = await self.chat(server, self.prompt(server, args.long, f"long {i}"), 1)
                    ended = time.monotonic()
                    n_then = [len(a.times) for a in answers]
                    while (min(len(a.times) - n for a, n in zip(answers, n_then)) < args.undisturbed
                           and not any(t.done() for t in tasks)):
                        await asyncio.sleep(0.01)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                first = max((a.times[0] for a in answers if a.times), default=began)
                gaps = [(t1, t1 - t0) for a in answers for t0, t1 in zip(a.times, a.times[1:])]
                alone = [gap for at, gap in gaps if first < at - gap and (at <= began or at - gap > ended)]
                during = [gap for at, gap in gaps if began < at <= ended]
                # A stream that got nothing at all shows in its wait until the end.
                during += [ended - a.times[-1] for a in answers if a.times and a.times[-1] < began]
                if not self.check(f"stall, {server.name}", [long_answer]) or not alone or not during:
                    continue
                p95 = [sorted(list_)[min(len(list_) - 1, int(0.95 * len(list_)))] for list_ in (alone, during)]
                calm.setdefault(server.name, []).append(1e3 * p95[0])
                stalled.setdefault(server.name, []).append(1e3 * p95[1])
                ratio.setdefault(server.name, []).append(p95[1] / p95[0])
        self.add(f"between tokens of {args.running} streams, p95", "ms", calm)
        self.add(f"the same while {args.long} tokens are prefilled", "ms", stalled)
        self.add("its ratio to undisturbed", "x", ratio, "<= 2.5")

    async def prefix(self):
        servers = await self.start_both(2, self.args.shared + 256)
        first, second = {}, {}
        for i in range(self.args.rounds):
            for server in servers:
                text = self.prompt(server, self.args.shared, f"prefix {i}")
                answers = [await self.chat(server, text, 4) for _ in range(2)]
                if self.check(f"prefix, {server.name}", answers):
                    first.setdefault(server.name, []).append(answers[0].ttft)
                    second.setdefault(server.name, []).append(answers[1].ttft)
        self.add(f"TTFT of a prompt of {self.args.shared}", "s", first)
        self.add("TTFT of the same again", "s", second, "<= 0.15")

    async def share(self):
        args = self.args
        for n in args.share:
            over_http, inside, ratio = [], [], []
            # The server stays, idle while the process without it computes: the two take turns of seconds, so that both
            # meet the same neighbours.
            server = await self.start_still(n)
            await self.calibrate(server)
            for i in range(args.rounds):
                command = [self.still, "bench", "--json", "--threads", str(args.threads), "--repeat", "1", "--prefill", "0",
                           "--decode", str(args.answer), "--depth", str(args.prompt), "--seqs", str(n), args.models[0]]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                inside.append(json.loads(done.stdout)[-1]["tokens_per_s"]["median"])
                # All decode together once the last has its first token; as many more as that may take.
                bodies = [self.body(self.prompt(server, args.prompt, f"share {i} {k}"), 1900) for k in range(n)]
                answers = await recorded_streams(server.port, bodies, args.answer)
                await asyncio.sleep(1)  # for the connections to close and the server to stop
                if any(a.error or a.is_complete or len(a.times) < args.answer for a in answers):
                    self.fail(f"share of {n}: {[a.error or len(a.times) for a in answers]}")
                else:
                    start, end = max(a.times[0] for a in answers), min(a.times[-1] for a in answers)
                    # A piece may hold more than one token (a character of several): as many as steps were made.
                    n_steps = max(sum(start < t <= end for t in a.times) for a in answers)
                    over_http.append(n * n_steps / (end - start))
                    ratio.append(100 * over_http[-1] / inside[-1])
            self.stop_all()
            self.add(f"decode, {n} streams over HTTP", "tokens/s", {"still": over_http})
            self.add(f"decode, {n} sequences in the process", "tokens/s", {"still": inside})
            self.add(f"share over HTTP, {n}", "%", {"still": ratio}, ">= 97" if n == 1 else ">= 95")

    async def idle(self):
        args = self.args
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = args.connections + args.active + 256
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, wanted) if hard >= 0 else wanted, hard))
        n_errors, own, grown = [], [], []
        for i in range(args.rounds):
            server = await self.start_still(args.active)
            empty = server.rss()
            await self.calibrate(server)

            async def load(seed):
                peak, is_done = [server.rss()], False

                async def watch():
                    while not is_done:
                        peak[0] = max(peak[0], server.rss())
                        await asyncio.sleep(0.05)
                watcher = asyncio.create_task(watch())
                answers = await asyncio.gather(*(self.chat(server, self.prompt(server, args.prompt, f"idle {k}"), args.answer,
                                                           seed=seed) for k in range(args.active)))
                is_done = True
                await watcher
                self.check(f"{args.active} active of {args.connections} idle", answers, args.answer)
                return peak[0], sum(bool(a.error) or not a.is_complete for a in answers)

            await load(1)  # the KV cache is touched
            alone, bad = await load(2)
            connections = []
            for _ in range(args.connections):
                try:
                    connection = await open_connection(server.port)
                    # Each has been used once: it is kept alive, not merely open.
                    status, _ = await call(server.port, "GET", "/health", connection=connection)
                    bad += status != 200
                    connections.append(connection)
                except (HttpError, OSError) as problem:
                    bad += 1
                    self.fail(f"connection {len(connections)}: {problem}")
            together, more = await load(3)
            bad += more
            for connection in connections:
                try:
                    bad += (await call(server.port, "GET", "/health", connection=connection))[0] != 200
                except (HttpError, OSError):
                    bad += 1
                connection[1].close()
            n_errors.append(bad)
            grown.append((together - alone) / 2**20)
            own.append((empty + together - alone) / 2**20)
            self.stop_all()
        what = f"{args.connections} idle connections, {args.active} streams"
        self.add(f"{what}: errors", "", {"still": n_errors}, "0")
        self.add(f"{what}: added by the connections", "MiB", {"still": grown})
        self.add(f"{what}: server's own memory", "MiB", {"still": own}, "<= 200")
        if any(n_errors):
            self.fail(f"{what}: {n_errors} errors")

    async def requests_with_answers(self, server, n, rng):
        """n requests, each with the text and the number of tokens of its answer alone."""
        args = self.args
        pool = []
        for k in range(n):
            n_words, n_answer = rng.choice((5, 20, 60, 200)), rng.choice((1, 8, 24, 48))
            body = {"model": rng.choice(("first", "second")), "max_tokens": n_answer, "temperature": 0, "seed": k,
                    "messages": [{"role": "user", "content": self.words(n_words, f"soak {args.seed} {k}")}]}
            if k % 4 == 1:
                body["messages"].insert(0, {"role": "system", "content": "You are one of several who share a beginning."})
            alone = await stream(server.port, body)
            if not self.check(f"request {k} alone", [alone]):
                return []
            pool.append((body, alone.text, alone.usage["completion_tokens"]))
        return pool

    async def soak(self):
        args = self.args
        server = await self.start_still(8)
        rng = random.Random(args.seed)
        pool = await self.requests_with_answers(server, args.soak_requests, rng)
        if not pool:
            return
        counts = {"equal": 0, "cancelled": 0, "bad": 0, "unloaded": 0, "refused": 0}
        samples = []
        end = time.monotonic() + 60 * args.minutes
        bad_requests = [(b"{", 400), (b'{"model": "first"}', 400), (b'{"model": "first", "messages": 7}', 400),
                        (b'{"model": "no-such-model", "messages": [{"role": "user", "content": "x"}]}', 404),
                        (b'{"model": "first", "messages": [{"role": "user", "content": "\xff\xfe"}]}', 400),
                        (b'{"model": "first", "messages": [{"role": "user", "content": "x"}], "temperature": "hot"}', 400),
                        (json.dumps({"model": "first", "messages": [{"role": "user", "content": "word " * 400000}]}).encode(),
                         400)]

        async def one(rng):
            dice = rng.random()
            if dice < 0.12:
                body, status = rng.choice(bad_requests)
                got, text = await call(server.port, "POST", "/v1/chat/completions", body)
                counts["bad"] += 1
                if got != status:
                    self.fail(f"soak: status {got}, expected {status}, for {body[:80]!r}: {text[:200]!r}")
            elif dice < 0.14:
                # Unloads the model when its requests are done; the next one loads it again.
                body = json.dumps({"model": rng.choice(("first", "second")), "keep_alive": 0}).encode()
                got, text = await call(server.port, "POST", "/api/generate", body)
                counts["unloaded"] += 1
                if got != 200:
                    self.fail(f"soak: unloading: {got} {text[:200]!r}")
            else:
                body, want, n_tokens = rng.choice(pool)
                cancel_after = rng.randrange(4) if dice < 0.3 else None
                answer = await stream(server.port, body, cancel_after=cancel_after)
                if cancel_after is not None:
                    counts["cancelled"] += 1
                    if answer.error or not want.startswith(answer.text):
                        self.fail(f"soak: cancelled {answer.text!r} {answer.error}, alone {want!r}")
                elif answer.status == 503:
                    counts["refused"] += 1
                elif answer.error or not answer.is_complete:
                    self.fail(f"soak: lost: {answer.status} {answer.error or 'the stream was cut'}"[:400])
                elif (answer.text, answer.usage["completion_tokens"]) != (want, n_tokens):
                    self.fail(f"soak: mixed: {answer.text!r}, alone {want!r}")
                else:
                    counts["equal"] += 1

        async def client(k):
            rng = random.Random(f"{args.seed} {k}")
            while time.monotonic() < end and len(self.failures) < 20:
                try:
                    await one(rng)
                except (HttpError, OSError) as problem:
                    self.fail(f"soak: {problem}")
                    await asyncio.sleep(1)

        async def watch():
            start = time.monotonic()
            while time.monotonic() < end:
                samples.append((time.monotonic() - start, server.rss()))
                await asyncio.sleep(min(1, args.minutes))
        await asyncio.gather(watch(), *(client(k) for k in range(args.clients)))
        if server.process.poll() is not None:
            self.fail("soak: the server is gone")
            return
        _, page = await call(server.port, "GET", "/metrics")
        left = [line for line in page.decode().splitlines()
                if line.startswith(("vllm:num_requests_running{", "still_generations ")) and not line.endswith(" 0")]
        if left:
            self.fail(f"soak: still running at the end: {left}")
        # The first fifth is for warming up, the second is compared with the last.
        fifth = 60 * args.minutes / 5
        peaks = [max((rss for at, rss in samples if k * fifth <= at < (k + 1) * fifth), default=0) for k in range(5)]
        for name, n in counts.items():
            self.add(f"soak of {args.minutes:g} min, {args.clients} clients: {name}", "requests", {"still": [n]})
        self.add("soak: failures", "", {"still": [len(self.failures)]}, "0")
        self.add("soak: peak memory, second fifth", "MiB", {"still": [peaks[1] / 2**20]})
        self.add("soak: peak memory, last fifth", "MiB", {"still": [peaks[4] / 2**20]})
        if peaks[1]:
            self.add("soak: growth", "%", {"still": [100 * (peaks[4] / peaks[1] - 1)]}, "<= 2")

    async def killed(self):
        args = self.args
        port = free_port()
        server = await self.start_still(8, port=port)
        pool = await self.requests_with_answers(server, args.soak_requests, random.Random(args.seed))
        if not pool:
            return
        phases, seen = [], []  # (name, from when), (when, what)
        is_over = False

        def begin(name):
            phases.append((name, time.monotonic()))
            print(f"  {name}", file=sys.stderr)

        async def client(k):
            rng = random.Random(f"{args.seed} {k}")
            while not is_over and len(self.failures) < 20:
                body, want, n_tokens = rng.choice(pool)
                answer = await stream(port, body)
                what = "whole and right"
                if answer.status == 0:
                    what = "no connection, or none that answered"
                elif answer.status == 503:
                    what = "status 503"
                elif answer.status != 200:
                    self.fail(f"killed: {answer.status} {answer.error}"[:400])
                elif answer.is_complete and answer.reason:
                    if (answer.text, answer.usage.get("completion_tokens")) != (want, n_tokens):
                        self.fail(f"killed: a complete answer {answer.text!r}, alone {want!r}")
                else:
                    what = "cut, the beginning right"
                    if answer.is_complete or not want.startswith(answer.text):
                        self.fail(f"killed: cut {answer.text!r}, alone {want!r}")
                seen.append((time.monotonic(), what))
                if answer.status != 200:
                    await asyncio.sleep(0.2)

        async def until_right():
            """Seconds until the next whole answer."""
            start = time.monotonic()
            while not any(at > start and what == "whole and right" for at, what in seen):
                await asyncio.sleep(0.02)
            return time.monotonic() - start

        async def end_of(process):
            while process.poll() is None:
                await asyncio.sleep(0.02)
            return process.returncode

        clients = [asyncio.create_task(client(k)) for k in range(args.clients)]
        begin("undisturbed")
        await asyncio.sleep(args.phase)
        begin("held (SIGSTOP)")
        server.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(args.phase)
        server.process.send_signal(signal.SIGCONT)
        begin("let go (SIGCONT)")
        await asyncio.sleep(args.phase)
        begin("killed (kill -9), started anew at once")
        server.process.kill()
        await end_of(server.process)
        self.servers.remove(server)
        server = await self.start_still(8, port=port)
        back = await until_right()
        begin("after the restart")
        await asyncio.sleep(args.phase)
        begin("asked to end (SIGTERM), started anew when it has")
        server.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        code = await end_of(server.process)
        drained = time.monotonic() - start
        if code != 0:
            self.fail(f"killed: the server asked to end ended with {code}")
        server = await self.start_still(8, port=port)
        await until_right()
        begin("after the second restart")
        await asyncio.sleep(args.phase)
        is_over = True
        await asyncio.gather(*clients)

        ends = [at for _, at in phases[1:]] + [time.monotonic()]
        for (name, start), end in zip(phases, ends):
            counts = {}
            for at, what in seen:
                if start < at <= end:
                    counts[what] = counts.get(what, 0) + 1
            for what, n in sorted(counts.items()):
                self.add(f"{name}, {end - start:.1f} s: {what}", "streams", {"still": [n]})
            may_cut = name.startswith("killed")
            may_refuse = may_cut or name.startswith("asked")
            if counts.get("cut, the beginning right") and not may_cut:
                self.fail(f"killed: a stream was cut while the server was {name}")
            if set(counts) - {"whole and right", "cut, the beginning right"} and not may_refuse:
                self.fail(f"killed: a request was refused while the server was {name}")
        self.add("from the restart to the first whole answer, the model's loading included", "s", {"still": [back]})
        self.add("from SIGTERM to the server's end", "s", {"still": [drained]})

    def print_table(self):
        print("| case | unit | engine | min / median / max | still / engine | goal |\n|---|---|---|---|---|---|")
        for row in self.rows:
            ours = row["engines"].get("still", {}).get("median")
            for name, s in row["engines"].items():
                ratio = f"{ours / s['median']:.2f}" if name != "still" and ours is not None and s["median"] else ""
                goal = row["goal"] if name == "still" else ""
                print(f"| {row['case']} | {row['unit']} | {name} | {s['min']:.4g} / {s['median']:.4g} / {s['max']:.4g} "
                      f"| {ratio} | {goal} |")


def numbers(text):
    return [int(word) for word in text.split(",")]


async def run(bench, args):
    try:
        for case in args.cases.split(","):
            print(f"{case} ...", file=sys.stderr)
            await getattr(bench, case)()
            bench.stop_all()
    finally:
        bench.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="one GGUF file, or two for the soak")
    parser.add_argument("--cases", default="streams,stall,prefix,share,idle")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=numbers, default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, default=135)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--running", type=int, default=4)
    parser.add_argument("--undisturbed", type=int, default=40, help="tokens of each stream before the long prompt, and after it")
    parser.add_argument("--long", type=int, default=4000)
    parser.add_argument("--shared", type=int, default=925)
    parser.add_argument("--share", type=numbers, default=[1, 64])
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--active", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--soak-requests", type=int, default=40, help="distinct requests of the soak")
    parser.add_argument("--phase", type=float, default=8, help="seconds of each part of the case killed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json")
    args = parser.parse_args()
    known = ("streams", "stall", "prefix", "share", "idle", "soak", "killed")
    for case in args.cases.split(","):
        if case not in known:
            parser.error(f"no case {case}: there are {', '.join(known)}")
    bench = Bench(args)
    if not bench.peer:
        print("no peer: STILL_PEER_LLAMA_SERVER is not set; still alone", file=sys.stderr)
    asyncio.run(run(bench, args))
    bench.print_table()
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"rows": bench.rows, "failures": bench.failures}, file, indent=1)
    sys.exit(1 if bench.failures else 0)


if __name__ == "__main__":
    main()
