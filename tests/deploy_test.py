#!/usr/bin/env python3
"""The files of deploy/ as far as they can be checked without systemd and docker running: the unit by systemd-analyze
where there is one, the compose file by a YAML reader where there is one, the Dockerfile by the rules below (and by
hadolint where there is one); that what they name exists: options, variables, stages, paths. At the end each check is
shown a broken file, which it must refuse.

usage: deploy_test.py STILL
"""
import fnmatch
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
INSTRUCTIONS = set("FROM RUN CMD LABEL EXPOSE ENV ADD COPY ENTRYPOINT VOLUME USER WORKDIR ARG STOPSIGNAL HEALTHCHECK SHELL".split())
SERVICE_KEYS = {"build", "image", "environment", "ports", "volumes", "restart", "stop_grace_period", "ulimits"}


def need(condition, problem):
    if not condition:
        raise AssertionError(problem)


def known_options(still):
    text = subprocess.run([still, "serve", "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"--[a-z][a-z0-9-]*", text))


def known_variables():
    text = "".join(p.read_text() for p in (ROOT / "src" / "cli").glob("*.cc"))
    return set(re.findall(r'"((?:STILL|OLLAMA)_[A-Z_]+)"', text))


def check_unit(text, still):
    section, values = "", {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            section = line.strip("[]")
            continue
        key, found, value = line.partition("=")
        need(found and re.fullmatch("[A-Za-z]+", key) and section, f"line {number}: {line}")
        values.setdefault(f"{section}.{key}", []).append(value)
    command = values["Service.ExecStart"][0].split()
    need(command[:2] == ["/usr/bin/still", "serve"], f"ExecStart: {command}")
    for word in command[2:]:
        need(not word.startswith("-") or word in known_options(still), f"ExecStart: still serve has no {word}")
    need("--keys" in command, "ExecStart: without --keys everybody may use the server")
    keys = command[command.index("--keys") + 1]
    need(any(line.startswith("#") and keys in line for line in text.splitlines()), f"no comment says what {keys} is")
    need("useradd" in text and values["Service.User"] == ["still"], "no comment says how the user comes to be")
    need("Service.PrivateDevices" not in values, "PrivateDevices hides GPUs")
    for assignment in values["Service.Environment"]:
        need(assignment.partition("=")[0] in known_variables(), f"nobody reads {assignment}")
    drain = 30
    need(int(values["Service.TimeoutStopSec"][0]) > drain, "systemd kills before the drain is over")
    if shutil.which("systemd-analyze"):
        with tempfile.TemporaryDirectory() as folder:
            unit = pathlib.Path(folder, "still.service")
            unit.write_text(text.replace("/usr/bin/still", str(pathlib.Path(still).resolve())))
            done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
            told = [line for line in done.stderr.splitlines() if "still.service" in line]
            need(not told, told)


def instructions(text):
    joined, begin = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not joined):
            continue
        begin = begin or number
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        yield begin, (joined + line).strip()
        joined, begin = "", 0
    need(not joined, "the last line goes on to a line that is not there")


def ignored(path, patterns):
    parts = pathlib.PurePosixPath(path).parts
    prefixes = ["/".join(parts[:i + 1]) for i in range(len(parts))]
    return any(fnmatch.fnmatch(p, pattern.removeprefix("**/")) or fnmatch.fnmatch(p, pattern) for p in prefixes for pattern in patterns)


def check_dockerfile(text, ignore):
    patterns = [line for line in ignore.splitlines() if line and not line.startswith("#")]
    for folder in ("build", ".git"):
        need(ignored(folder, patterns), f".dockerignore lets {folder} into the build")
    for path in ("CMakeLists.txt", "cmake", "src/cli/main.cc", "data"):
        need((ROOT / path).exists() and not ignored(path, patterns), f".dockerignore keeps {path} from the build")
    stages, variables, exposed, seen = [], {}, [], []
    for number, line in instructions(text):
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        need(word in INSTRUCTIONS and rest, f"line {number}: {line}")
        need(word in ("FROM", "ARG") or stages, f"line {number}: {word} before FROM")
        seen.append(word)
        if word == "FROM":
            match = re.fullmatch(r"(\S+:\S+)(?: AS ([a-z]+))?", rest)
            need(match, f"line {number}: FROM wants an image with its tag")
            stages.append(match[2] or str(len(stages)))
        if word in ("CMD", "ENTRYPOINT"):
            need(all(isinstance(w, str) for w in json.loads(rest)), f"line {number}: {word}")
        if word == "HEALTHCHECK":
            need(json.loads(rest[rest.index("CMD") + 3:]), f"line {number}: HEALTHCHECK")
        if word == "RUN":
            done = subprocess.run(["sh", "-n"], input=rest, text=True, capture_output=True)
            need(done.returncode == 0, f"line {number}: {done.stderr}")
            need("apt-get install" not in rest or ("apt-get update" in rest and " -y" in rest), f"line {number}: RUN")
        if word == "COPY":
            words = rest.split()
            source = [w for w in words if not w.startswith("--")]
            need(len(source) >= 2, f"line {number}: COPY wants a source and a target")
            stage = [w.removeprefix("--from=") for w in words if w.startswith("--from=")]
            need(not stage or stage[0] in stages[:-1], f"line {number}: there is no stage {stage}")
            for path in source[:-1] if not stage else []:
                need((ROOT / path).exists(), f"line {number}: there is no {path}")
        if word == "ENV":
            variables |= dict(pair.split("=", 1) for pair in rest.split())
        if word == "EXPOSE":
            exposed.append(int(rest))
    for name in variables:
        need(name in known_variables(), f"nobody reads {name}")
    need("USER" in seen and seen.index("USER") < len(seen) - 1 - seen[::-1].index("ENTRYPOINT"), "the server runs as root")
    need(variables["STILL_HOST"].endswith(f":{exposed[0]}"), "the port exposed is not the one listened on")
    return exposed[0]


def check_compose(text, port):
    try:
        import yaml
    except ImportError:
        return "there is no YAML reader for compose.yaml"
    compose = yaml.safe_load(text)
    need(set(compose) == {"services", "volumes"}, sorted(compose))
    for name, service in compose["services"].items():
        need(set(service) <= SERVICE_KEYS, f"{name}: {sorted(set(service) - SERVICE_KEYS)}")
        context = (ROOT / "deploy" / service["build"]["context"]).resolve()
        need((context / service["build"]["dockerfile"]).is_file() and context == ROOT, f"{name}: build")
        for variable in service["environment"]:
            need(variable in known_variables(), f"nobody reads {variable}")
        need(":?" in service["environment"]["STILL_API_KEYS"], f"{name}: starts without keys")
        for mapping in service["ports"]:
            need(mapping.rsplit(":", 1)[1] == str(port), f"{name}: {mapping}: the container listens on {port}")
        for volume in service["volumes"]:
            need(volume.split(":")[0] in compose["volumes"], f"{name}: no volume {volume}")
        need(int(service["stop_grace_period"].rstrip("s")) > 30, f"{name}: killed before the drain is over")
    return None


def must_fail(what, check, *arguments):
    try:
        check(*arguments)
    except (AssertionError, KeyError, ValueError):
        return
    raise AssertionError(f"{what} was not noticed")


def main():
    still = sys.argv[1]
    unit = (ROOT / "deploy/still.service").read_text()
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    ignore = (ROOT / ".dockerignore").read_text()
    compose = (ROOT / "deploy/compose.yaml").read_text()
    check_unit(unit, still)
    port = check_dockerfile(dockerfile, ignore)
    skipped = check_compose(compose, port)
    if shutil.which("hadolint"):
        # Not: packages by version, which a distribution replaces.
        subprocess.run(["hadolint", "--ignore", "DL3008", str(ROOT / "deploy/Dockerfile")], check=True)

    must_fail("no --keys", check_unit, unit.replace(" --keys /etc/still/keys.json", ""), still)
    must_fail("an option that is none", check_unit, unit.replace("--keys", "--kees"), still)
    must_fail("a line that is none", check_unit, unit.replace("RestartSec=2", "RestartSec 2"), still)
    if shutil.which("systemd-analyze"):
        must_fail("a directive that is none", check_unit, unit.replace("RestartSec", "RestartSek"), still)
    for old, new in (("COPY --from=build", "COPY --from=bild"), ('["serve"]', "['serve']"), ("RUN cmake", "RUN ( cmake"),
                     ("WORKDIR", "WORKDIER"), ("COPY . .", "COPY ."), ("EXPOSE 11434", "EXPOSE 80"), ("STILL_MODELS", "STILL_MODEL")):
        need(old in dockerfile, old)
        must_fail(f"{old} as {new}", check_dockerfile, dockerfile.replace(old, new, 1), ignore)
    must_fail("the build tree", check_dockerfile, dockerfile, ignore.replace("\nbuild\n", "\n"))
    must_fail("no sources", check_dockerfile, dockerfile, ignore + "src\n")
    if not skipped:
        for old, new in ((":?one", ":-one"), ("- models:", "- modells:"), (":11434\"", ":80\""), ("restart:", "restarts:"), ("45s", "10s")):
            need(old in compose, old)
            must_fail(f"{old} as {new}", check_compose, compose.replace(old, new, 1), port)
    print("ok" + (f" ({skipped})" if skipped else ""))


if __name__ == "__main__":
    main()
