#!/bin/sh
# Both READMEs show the two commands, and .ci/run is the second of them and nothing else.
# usage: check_readme.sh SOURCE_ROOT
set -eu
cd "$1"
status=0
for readme in README.md README.zh.md; do
  for command in ./run ./test; do
    grep -qxE "    $command( .*)?|$command( .*)?" "$readme" || { echo "$readme: no line that shows $command"; status=1; }
  done
done
commands=$(grep -vE '^(#|$)' .ci/run)
[ "$commands" = "exec ./test" ] || { echo ".ci/run: does something else than the README's ./test: $commands"; status=1; }
for script in run test .ci/run; do
  [ -x "$script" ] || { echo "$script: not executable"; status=1; }
  sh -n "$script" || status=1
done
exit $status
