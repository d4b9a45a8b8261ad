#!/bin/sh
# Every C++ and CUDA file is laid out as .clang-format says; `make format` does it.
# usage: check_format.sh SOURCE_ROOT
set -eu
cd "$1"
find src tests bench fuzz \( -name '*.cc' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) -print0 |
  xargs -0 clang-format-19 --dry-run -Werror --ferror-limit=1
