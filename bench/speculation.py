#!/usr/bin/env python3
"""Greedy decoding of reasoning text with prompt lookup beside plain decoding: same text, how much faster.

    bench/speculation.py MODEL.gguf TRACES.jsonl [--items 8] [--tokens 256] [--rounds 1] [--json out.json]
    STILL=build/release/still     the program to measure (default)

TRACES.jsonl has one object a line with "problem" and "message_thinking" (the reasoning of a teacher). The prompt is the
problem and the first 600 characters of the reasoning; the model goes on from there at temperature 0. Both ways run one
after the other for each item; the ids must be equal.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys


def decode(still, model, prompt, tokens, threads, speculation):
    command = [still, "run", "--json", "--raw", "--temperature", "0", "--ignore-eos", "--max-tokens", str(tokens),
               "--context", "4096", "--threads", str(threads), "--speculation", speculation, model, prompt]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("traces")
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    args = parser.parse_args()
    still = os.environ.get("STILL", "build/release/still")
    with open(args.traces, encoding="utf-8") as file:
        traces = [json.loads(line) for line in file][: args.items]
    ratios, rows = [], []
    for number, trace in enumerate(traces):
        prompt = trace["problem"] + "\n<think>\n" + trace["message_thinking"][:600]
        rates = {"off": [], "lookup": []}
        for _ in range(args.rounds):
            ids = {}
            for speculation in rates:
                answer = decode(still, args.model, prompt, args.tokens, args.threads, speculation)
                ids[speculation] = answer["tokens"]
                rates[speculation].append((len(answer["tokens"]) - 1) / answer["seconds"]["decode"])
            if ids["off"] != ids["lookup"]:
                sys.exit(f"item {number}: the text differs with and without speculation")
        plain, lookup = statistics.median(rates["off"]), statistics.median(rates["lookup"])
        ratios.append(lookup / plain)
        rows.append({"item": number, "plain": plain, "lookup": lookup})
        print(f"item {number}: plain {plain:.1f} tokens/s, lookup {lookup:.1f}, {lookup / plain:.2f}x", flush=True)
    total = sum(1 / r["plain"] for r in rows) / sum(1 / r["lookup"] for r in rows)
    print(f"{os.path.basename(args.model)}: {total:.2f}x over all items; median {statistics.median(ratios):.2f}x, "
          f"{min(ratios):.2f} to {max(ratios):.2f}; identical ids")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"rows": rows, "speedup": total}, file, indent=1)


if __name__ == "__main__":
    main()
