#!/usr/bin/env python3
"""Validates constrained outputs with the jsonschema package: the judge that shares nothing with src/grammar/.

STILL_GRAMMAR_DUMP=FILE grammar_test appends one line of JSON for every finished output, with its schema:
{"schema": {...}, "output": "..."}. Formats are checked as well, as far as the package can.
usage: check_structured_output.py FILE      needs: pip install jsonschema; exit status 1 if an output does not validate
"""
import json
import sys

import jsonschema


def main():
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    n_outputs, n_bad, schemas = 0, 0, set()
    with open(sys.argv[1], encoding="utf-8") as lines:
        for line in lines:
            pair = json.loads(line)
            n_outputs += 1
            schemas.add(json.dumps(pair["schema"]))
            try:
                jsonschema.Draft202012Validator(pair["schema"], format_checker=checker).validate(json.loads(pair["output"]))
            except (ValueError, jsonschema.ValidationError) as problem:
                n_bad += 1
                print(f"{problem}\noutput: {pair['output']}\nschema: {json.dumps(pair['schema'])}\n")
    print(f"{n_outputs} outputs of {len(schemas)} schemas, {n_bad} do not validate")
    sys.exit(1 if n_bad or not n_outputs else 0)


if __name__ == "__main__":
    main()
