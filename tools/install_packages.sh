#!/bin/sh
# Installs the Debian packages that building needs ("build"), testing as well ("test"), or the Makefile too ("daily"):
# only those that are missing, so that it works without a network once they are there. Uses sudo only when it is not run
# as root.
# usage: tools/install_packages.sh build|test|daily
set -eu

packages="g++ cmake ninja-build pkg-config ca-certificates
  libboost1.81-dev libsimdjson-dev libfmt-dev libspdlog-dev libcli11-dev libexpected-dev libutf8proc-dev libedit-dev
  libcurl4-openssl-dev libssl-dev libxxhash-dev libzstd-dev zlib1g-dev"
# `pip:` sources go through the machine's own pip, whichever it is.
python3 -m pip --version >/dev/null 2>&1 || packages="$packages python3-pip"

testing="libgtest-dev libgmock-dev clang-format-19 python3 binutils git"
case ${1-} in
  build) ;;
  test) packages="$packages $testing" ;;
  daily) packages="$packages $testing make libbenchmark-dev clang-tidy-19" ;;
  *) echo "usage: $0 build|test|daily" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null; then
  echo "$0: this is not a Debian system; install what corresponds to these packages, then build with cmake (HACKING.md):" >&2
  echo "$packages" >&2
  exit 1
fi

missing=
for package in $packages; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) || status=
  [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

sudo=
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "$0: as root, run: apt-get update && apt-get install --no-install-recommends$missing" >&2
    exit 1
  fi
  sudo=sudo
fi
echo "Installing Debian packages${sudo:+ with sudo}:$missing" >&2
$sudo apt-get -q update >&2
$sudo env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $missing >&2
