#!/usr/bin/env python3
"""Speed of still beside other engines on the same GGUF files: interleaved runs, medians, spreads, ratios.

    STILL_PEER_LLAMA=/path/to/bin bench/compare.py [--rounds 3] [--tests all] [--json out.json] MODEL.gguf ...
    STILL_PEER_LLAMA=DIR  a folder with llama.cpp's llama-bench, llama-batched-bench, llama-completion, llama-quantize
    STILL_PEER_IK=DIR     the same of ik_llama.cpp, run with run-time repacking
    STILL=build/release/still   the program to measure (default)

Each round runs every engine once per test, one after the other, so that all see the same machine. Rows give tokens a
second (or seconds, or MB) as min / median / max, the ratio of medians to each peer, and each engine's share of the
machine's own limit, which `still bench` measures in the same run. With --types the models are first quantised again by
llama.cpp's llama-quantize (--pure) into --folder, and the copies are measured instead.
With --json, what the file already holds is kept, added to and shown too: a long table can be taken in several parts, and
rounds at several times.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

PROMPT = "The quick brown fox jumps over the lazy dog and then it runs to the"
TESTS = {
    "prefill": {"title": "prefill 512", "kind": "prefill", "n": 512},
    "decode": {"title": "decode 128", "kind": "decode", "n": 128},
    "seqs": {"title": "decode 64, 16 sequences, total", "kind": "batched", "n": 64, "depth": 128, "seqs": 16},
    "depth": {"title": "decode 32 at depth 4096, f16 KV", "kind": "decode", "n": 32, "depth": 4096},
    "depth-int8": {"title": "decode 32 at depth 4096, int8 KV", "kind": "decode", "n": 32, "depth": 4096, "kv": "int8"},
    "long": {"title": "prefill 4096", "kind": "prefill", "n": 4096},
    "start": {"title": "start to first token", "kind": "start"},
}


class Peer:
    """extra: arguments of its llama-bench, of its llama-batched-bench; at_depth: those for n tokens after `depth` others."""
    def __init__(self, name, folder, bench_extra, batched_extra, no_warmup, at_depth):
        self.name, self.folder, self.bench_extra, self.batched_extra = name, folder, bench_extra, batched_extra
        self.no_warmup, self.at_depth = no_warmup, at_depth

    def tool(self, name):
        path = os.path.join(self.folder, name)
        return path if os.path.exists(path) else None

    def measure(self, model, test, threads):
        if test["kind"] == "batched":
            return self.batched(model, test, threads)
        command = [self.tool("llama-bench"), "-m", model, "-t", str(threads), "-r", "1", "-fa", "1", "-o", "json"] + self.bench_extra
        if test["kind"] == "prefill":
            command += ["-p", str(test["n"]), "-n", "0"]
        elif test.get("depth"):
            command += ["-p", "0"] + self.at_depth(test["depth"], test["n"])
        else:
            command += ["-p", "0", "-n", str(test["n"])]
        if max(test["n"], test.get("depth", 0)) > 1000:
            command += self.no_warmup
        if test.get("kv") == "int8":
            command += ["-ctk", "q8_0", "-ctv", "q8_0"]
        done = subprocess.run(command, capture_output=True, text=True)
        return json.loads(done.stdout)[-1]["avg_ts"] if done.returncode == 0 else None

    def batched(self, model, test, threads):
        """Generated tokens a second of all sequences, from the last row of its table (S_TG)."""
        command = [self.tool("llama-batched-bench"), "-m", model, "-t", str(threads), "-c", "4096", "-npp", str(test["depth"]),
                   "-ntg", str(test["n"]), "-npl", str(test["seqs"]), "-fa", "on"] + self.batched_extra
        done = subprocess.run(command, capture_output=True, text=True)
        rows = [line.split("|") for line in (done.stdout + done.stderr).splitlines() if line.startswith("|") and line.split("|")[1].strip().isdigit()]
        return float(rows[-1][8]) if done.returncode == 0 and rows else None


def still_bench(still, model, test, threads):
    command = [still, "bench", "--json", "--device", "cpu", "--kv-type", test.get("kv", "f16"), "--threads", str(threads), "--repeat", "1", "--seqs", str(test.get("seqs", 1)),
               "--depth", str(test.get("depth", 0)), "--prefill", str(test["n"] if test["kind"] == "prefill" else 0),
               "--decode", str(test["n"] if test["kind"] != "prefill" else 0), model]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    row = [r for r in rows if r["test"] == test["kind"]][-1]
    return row["tokens_per_s"]["median"], row["limit_share"]


def wall_and_peak(command):
    start = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        return None, None
    return time.monotonic() - start, usage.ru_maxrss * 1024 / 1e6


def speed_row(still, peers, model, test, rounds, threads):
    samples, shares = {"still": [], **{peer.name: [] for peer in peers}}, []
    for _ in range(rounds):
        speed, share = still_bench(still, model, test, threads)
        samples["still"].append(speed)
        shares.append(share)
        for peer in peers:
            samples[peer.name].append(peer.measure(model, test, threads))
    return {"model": os.path.basename(model), "test": test["title"], "unit": "tokens/s", "shares": shares, "engines": samples}


def start_rows(still, peers, model, title, rounds, threads):
    commands = {"still": [still, "run", "--device", "cpu", "--raw", "--temperature", "0", "--max-tokens", "1", "--context", "4096",
                          "--threads", str(threads), model, PROMPT]}
    for peer in peers:
        if peer.tool("llama-completion"):
            commands[peer.name] = [peer.tool("llama-completion"), "-m", model, "-t", str(threads), "-n", "1", "-c", "4096",
                                   "--no-warmup", "-no-cnv", "-p", PROMPT]
    seconds, peaks = {name: [] for name in commands}, {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            wall, peak = wall_and_peak(command)
            seconds[name].append(wall)
            peaks[name].append(peak)
    name = os.path.basename(model)
    return [{"model": name, "test": title, "unit": "s", "shares": [], "engines": seconds},
            {"model": name, "test": f"peak memory of that (file {os.path.getsize(model) / 1e6:.0f} MB)", "unit": "MB", "shares": [],
             "engines": peaks}]


def add_row(report, row):
    for old in report:
        if (old["model"], old["test"]) == (row["model"], row["test"]):
            old["shares"] += row["shares"]
            for name, values in row["engines"].items():
                old["engines"].setdefault(name, []).extend(values)
            return
    report.append(row)


def known(values):
    return [v for v in values if v is not None]


def requantised(quantize, model, type_name, folder):
    path = os.path.join(folder, f"{os.path.splitext(os.path.basename(model))[0]}-{type_name}.gguf")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        subprocess.run([quantize, "--allow-requantize", "--pure", model, path + ".part", type_name], check=True, capture_output=True)
        os.rename(path + ".part", path)
    return path


def print_table(report):
    print("| model | test | unit | engine | min / median / max | n | still / engine | share of limit |")
    print("|---|---|---|---|---|---|---|---|")
    for row in report:
        ours = statistics.median(known(row["engines"]["still"])) if known(row["engines"]["still"]) else None
        limit = statistics.median(known(row["shares"])) if ours and known(row["shares"]) else None
        for name, values in row["engines"].items():
            values = known(values)
            if not values:
                print(f"| {row['model']} | {row['test']} | {row['unit']} | {name} | failed | 0 | | |")
                continue
            median = statistics.median(values)
            ratio = "" if name == "still" or not ours else f"{ours / median:.2f}"
            share = f"{100 * limit * median / ours:.0f} %" if limit else ""
            print(f"| {row['model']} | {row['test']} | {row['unit']} | {name} | {min(values):.4g} / {median:.4g} / {max(values):.4g} | {len(values)} | {ratio} | {share} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tests", default="prefill,decode,start", help=f"of {','.join(TESTS)}, or all")
    parser.add_argument("--types", help="quantise the models again to these types first: Q8_0,Q6_K,Q5_K,Q4_0,Q4_K,IQ4_XS,BF16")
    parser.add_argument("--folder", default="/tmp/still-compare", help="where those files go")
    parser.add_argument("--json")
    args = parser.parse_args()
    still = os.environ.get("STILL", "build/release/still")
    peers = []
    if os.environ.get("STILL_PEER_LLAMA"):
        peers.append(Peer("llama.cpp", os.environ["STILL_PEER_LLAMA"], [], [], ["--no-warmup"],
                          lambda depth, n: ["-n", str(n), "-d", str(depth)]))
    if os.environ.get("STILL_PEER_IK"):
        peers.append(Peer("ik_llama.cpp", os.environ["STILL_PEER_IK"], ["-rtr", "1"], ["-rtr"], ["-w", "0"],
                          lambda depth, n: ["-n", "0", "-gp", f"{depth},{n}"]))
    if not peers:
        print("no peer: STILL_PEER_LLAMA and STILL_PEER_IK are not set; still alone", file=sys.stderr)
    names = list(TESTS) if args.tests == "all" else args.tests.split(",")
    models = args.models
    if args.types:
        models = [requantised(peers[0].tool("llama-quantize"), model, name, args.folder) for model in models for name in args.types.split(",")]
    report = []
    if args.json and os.path.exists(args.json):
        with open(args.json) as file:
            report = json.load(file)
    for model in models:
        for name in names:
            test = TESTS[name]
            if test["kind"] == "start":
                rows = start_rows(still, peers, model, test["title"], args.rounds, args.threads)
            else:
                rows = [speed_row(still, peers, model, test, args.rounds, args.threads)]
            for row in rows:
                add_row(report, row)
            if args.json:
                with open(args.json, "w") as file:
                    json.dump(report, file, indent=1)
    print_table(report)


if __name__ == "__main__":
    main()
