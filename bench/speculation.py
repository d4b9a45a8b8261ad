#!/usr/bin/env python3
"""Greedy decoding of reasoning text with drafts beside plain decoding: same text, how much faster.

    bench/speculation.py MODEL.gguf TRACES.jsonl [--draft SMALL.gguf] [--items 8] [--tokens 256] [--rounds 1] [--json out.json]
    STILL=build/release/still     the program to measure (default)

TRACES.jsonl has one object a line with "problem" and "message_thinking" (the reasoning of a teacher). The prompt is the
problem and the first 600 characters of the reasoning; the model goes on from there at temperature 0. Plain, prompt
lookup and, where one is given, a draft model alone and both run one after the other for each item; the ids must be equal.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys


def decode(still, model, prompt, args, options):
    command = [still, "run", "--json", "--raw", "--temperature", str(args.temperature), "--seed", "1", "--ignore-eos",
               "--max-tokens", str(args.tokens), "--context", "4096", "--threads", str(args.threads), *options, model, prompt]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("traces")
    parser.add_argument("--draft")
    parser.add_argument("--temperature", type=float, default=0)
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    args = parser.parse_args()
    still = os.environ.get("STILL", "build/release/still")
    with open(args.traces, encoding="utf-8") as file:
        traces = [json.loads(line) for line in file][: args.items]
    ways = {"plain": [], "lookup": ["--speculation", "lookup"]}
    if args.draft:
        ways["draft"] = ["--draft", args.draft]
        ways["both"] = ["--draft", args.draft, "--speculation", "lookup"]
    rows = []
    for number, trace in enumerate(traces):
        prompt = trace["problem"] + "\n<think>\n" + trace["message_thinking"][:600]
        rates = {way: [] for way in ways}
        counts, ids = {}, {}
        for _ in range(args.rounds):
            for way, options in ways.items():
                answer = decode(still, args.model, prompt, args, options)
                counts[way] = answer["counts"]
                rates[way].append((len(answer["tokens"]) - 1) / answer["seconds"]["decode"])
                if ids.setdefault("plain", answer["tokens"]) != answer["tokens"]:
                    sys.exit(f"item {number}: the text differs between plain and {way}")
        row = {way: statistics.median(values) for way, values in rates.items()}
        rows.append({"item": number, **row})
        parts = [f"plain {row['plain']:.1f} tokens/s"] + [
            f"{way} {row[way]:.1f}, {row[way] / row['plain']:.2f}x ({counts[way]['accepted']} of {counts[way]['drafted']})"
            for way in ways if way != "plain"]
        print(f"item {number}: " + "; ".join(parts), flush=True)
    speedup = {}
    for way in ways:
        if way == "plain":
            continue
        ratios = [row[way] / row["plain"] for row in rows]
        speedup[way] = sum(1 / row["plain"] for row in rows) / sum(1 / row[way] for row in rows)
        print(f"{os.path.basename(args.model)}, {way}: {speedup[way]:.2f}x over all items; median {statistics.median(ratios):.2f}x, "
              f"{min(ratios):.2f} to {max(ratios):.2f}; identical ids")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"rows": rows, "speedup": speedup}, file, indent=1)


if __name__ == "__main__":
    main()
