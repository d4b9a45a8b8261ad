#!/bin/sh
# Fetches the C++ source of xgrammar (constrained decoding, src/grammar/) into build/third_party/: its published source
# package, one file through the machine's own pip, at a fixed version and SHA-256. Nothing of the package is run: pip
# only asks a source package for its name, and a stand-in for its build backend answers that. Does nothing when the
# source is there, so that it works without a network then.
# usage: tools/fetch_xgrammar.sh        prints the folder; exit status 1 and a sentence where it cannot be had
set -eu

version=0.2.8
sha256=8305646fd2b319d6c3003f51a1665e54cbbe9cba1fb636bc41d0b46434ccbb80

root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
folder=$root/build/third_party/xgrammar-$version
if [ -f "$folder/fetched" ]; then
  echo "$folder"
  exit 0
fi

mkdir -p "$root/build/third_party"
work=$(mktemp -d "$root/build/third_party/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/backend" "$work/backend/scikit_build_core" "$work/unpacked"
: >"$work/backend/scikit_build_core/__init__.py"
cat >"$work/backend/scikit_build_core/build.py" <<END
import os
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    os.mkdir(os.path.join(folder, "xgrammar-$version.dist-info"))
    with open(os.path.join(folder, "xgrammar-$version.dist-info", "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: xgrammar\\nVersion: $version\\n")
    return "xgrammar-$version.dist-info"
END
echo "xgrammar==$version --hash=sha256:$sha256" >"$work/requirements.txt"
echo "Fetching the source of xgrammar $version with pip" >&2
if ! PYTHONPATH=$work/backend python3 -m pip download --quiet --no-deps --no-binary xgrammar --no-build-isolation \
    --require-hashes --dest "$work" --requirement "$work/requirements.txt" >"$work/log" 2>&1; then
  tail -n 3 "$work/log" >&2
  echo "$0: pip could not fetch xgrammar $version; put its source package's files into $folder and an empty file" \
    "\"fetched\" beside them, or try again with a network" >&2
  exit 1
fi
archive=$work/xgrammar-$version.tar.gz
if ! echo "$sha256  $archive" | sha256sum --check --status; then
  echo "$0: $archive: not the SHA-256 that was expected ($sha256)" >&2
  exit 1
fi
(cd "$work/unpacked" && tar xzf "$archive" "xgrammar-$version/LICENSE" "xgrammar-$version/NOTICE" "xgrammar-$version/cpp" \
  "xgrammar-$version/include" "xgrammar-$version/3rdparty/picojson" "xgrammar-$version/3rdparty/dlpack")
touch "$work/unpacked/xgrammar-$version/fetched"
rm -rf "$folder"
mv "$work/unpacked/xgrammar-$version" "$folder"
echo "$folder"
