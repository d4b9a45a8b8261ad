#!/usr/bin/env python3
"""Speed of still beside other engines on the same GGUF files: interleaved runs, medians, spreads, ratios.

    STILL_PEER_LLAMA_BENCH=/path/to/llama-bench bench/compare.py [--rounds 3] [--json out.json] MODEL.gguf ...
    STILL_PEER_IK_BENCH=/path/to/llama-bench    a second peer with the same options (ik_llama.cpp; run with -rtr 1)
    STILL_PEER_LLAMA_COMPLETION=/path           its one-shot tool: time from start to the first token
    STILL_PEER_LLAMA_BATCHED_BENCH=/path, STILL_PEER_IK_BATCHED_BENCH=/path   their llama-batched-bench, for --seqs
    STILL=build/release/still                   the program to measure (default)

Each round runs every engine once per test, one after the other, so that all see the same machine. Rows give tokens a
second as min / median / max, the ratio of medians to each peer, and our share of the machine's own limit, measured in
the same run by `still bench`.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

PROMPT = "The quick brown fox jumps over the lazy dog and then it runs to the"


def still_bench(still, model, test, threads):
    command = [still, "bench", "--json", "--kv-type", test.get("kv", "f16"), "--threads", str(threads), "--repeat", "1", "--seqs", str(test.get("seqs", 1)),
               "--depth", str(test.get("depth", 0)), "--prefill", str(test["n"] if test["kind"] == "prefill" else 0),
               "--decode", str(test["n"] if test["kind"] != "prefill" else 0), model]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    row = [r for r in rows if r["test"] == test["kind"]][-1]
    return row["tokens_per_s"]["median"], row["limit_share"]


def llama_bench(binary, model, test, threads, extra):
    p, n = (test["n"], 0) if test["kind"] == "prefill" else (0, test["n"])
    command = [binary, "-m", model, "-t", str(threads), "-p", str(p), "-n", str(n), "-r", "1", "-fa", "1", "-o", "json"] + extra
    if test.get("depth"):
        command += ["-d", str(test["depth"])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return None
    return json.loads(done.stdout)[-1]["avg_ts"]


def llama_batched(binary, model, test, threads, extra):
    """Generated tokens a second of all sequences, from the last row of its table (S_TG)."""
    command = [binary, "-m", model, "-t", str(threads), "-c", "4096", "-npp", "128", "-ntg", str(test["n"]), "-npl",
               str(test["seqs"]), "-fa", "on"] + extra
    done = subprocess.run(command, capture_output=True, text=True)
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("|") and line.split("|")[1].strip().isdigit()]
    return float(rows[-1][8]) if done.returncode == 0 and rows else None


def wall_and_peak(command):
    start = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    return time.monotonic() - start, usage.ru_maxrss * 1024 / 1e6


def spread(values):
    values = [v for v in values if v is not None]
    if not values:
        return None
    return {"min": min(values), "median": statistics.median(values), "max": max(values), "n": len(values)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depth", type=int, default=0, help="also decode at this depth")
    parser.add_argument("--seqs", type=int, default=0, help="also decode this many sequences together, depth 128")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--no-start", action="store_true", help="leave out the time from start to the first token")
    parser.add_argument("--json")
    args = parser.parse_args()
    still = os.environ.get("STILL", "build/release/still")
    peers = {}
    if os.environ.get("STILL_PEER_LLAMA_BENCH"):
        peers["llama.cpp"] = (os.environ["STILL_PEER_LLAMA_BENCH"], [])
    if os.environ.get("STILL_PEER_IK_BENCH"):
        peers["ik_llama.cpp"] = (os.environ["STILL_PEER_IK_BENCH"], ["-rtr", "1"])
    batched = {}
    if os.environ.get("STILL_PEER_LLAMA_BATCHED_BENCH"):
        batched["llama.cpp"] = (os.environ["STILL_PEER_LLAMA_BATCHED_BENCH"], [])
    if os.environ.get("STILL_PEER_IK_BATCHED_BENCH"):
        batched["ik_llama.cpp"] = (os.environ["STILL_PEER_IK_BATCHED_BENCH"], ["-rtr"])
    if not peers:
        print("no peer: STILL_PEER_LLAMA_BENCH and STILL_PEER_IK_BENCH are not set; still alone", file=sys.stderr)
    tests = [{"name": f"prefill {args.prefill}", "kind": "prefill", "n": args.prefill},
             {"name": "decode 128", "kind": "decode", "n": 128}]
    if args.depth:
        for kv in ("f16", "int8"):
            tests.append({"name": f"decode 32 at {args.depth}, {kv} KV (peers f16)", "kind": "decode", "n": 32,
                          "depth": args.depth, "kv": kv})
    if args.seqs:
        tests.append({"name": f"decode 64, {args.seqs} sequences", "kind": "batched", "n": 64, "depth": 128, "seqs": args.seqs})
    report = []
    for model in args.models:
        for test in tests:
            rivals, measure = (batched, llama_batched) if test["kind"] == "batched" else (peers, llama_bench)
            samples = {"still": [], **{name: [] for name in rivals}}
            shares = []
            for _ in range(args.rounds):
                speed, share = still_bench(still, model, test, args.threads)
                samples["still"].append(speed)
                shares.append(share)
                for name, (binary, extra) in rivals.items():
                    samples[name].append(measure(binary, model, test, args.threads, extra))
            report.append({"model": os.path.basename(model), "test": test["name"], "unit": "tokens/s",
                           "limit_share": statistics.median(shares), "engines": {k: spread(v) for k, v in samples.items()}})
        completion = os.environ.get("STILL_PEER_LLAMA_COMPLETION")
        samples, peaks = {"still": []}, {"still": []}
        for _ in range(0 if args.no_start else args.rounds):
            commands = {"still": [still, "run", "--raw", "--temperature", "0", "--max-tokens", "1", "--context", "4096",
                                  "--threads", str(args.threads), model, PROMPT]}
            if completion:
                commands["llama.cpp"] = [completion, "-m", model, "-t", str(args.threads), "-n", "1", "-c", "4096",
                                         "--no-warmup", "-no-cnv", "-p", PROMPT]
            for name, command in commands.items():
                seconds, peak = wall_and_peak(command)
                samples.setdefault(name, []).append(seconds)
                peaks.setdefault(name, []).append(peak)
        if args.no_start:
            continue
        report.append({"model": os.path.basename(model), "test": "start to first token", "unit": "s",
                       "engines": {k: spread(v) for k, v in samples.items()}})
        report.append({"model": os.path.basename(model), "test": "peak memory of that", "unit": "MB",
                       "file_mb": os.path.getsize(model) / 1e6, "engines": {k: spread(v) for k, v in peaks.items()}})
    print("| model | test | unit | engine | min / median / max | still / engine | share of limit |")
    print("|---|---|---|---|---|---|---|")
    for row in report:
        for name, s in row["engines"].items():
            if s is None:
                continue
            ratio = "" if name == "still" else f"{row['engines']['still']['median'] / s['median']:.2f}"
            share = f"{100 * row['limit_share']:.0f} %" if name == "still" and "limit_share" in row else ""
            print(f"| {row['model']} | {row['test']} | {row['unit']} | {name} | {s['min']:.4g} / {s['median']:.4g} / {s['max']:.4g} | {ratio} | {share} |")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
