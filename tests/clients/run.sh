#!/bin/sh
# Published clients against a server: installs them outside the repository (PyPI, npm), then runs every test of this folder.
#   tests/clients/run.sh STILL [FOLDER]   FOLDER keeps the installed clients [$HOME/.cache/still-clients]
# STILL_TEST_MODELS names a folder of real models (smollm2.gguf, q05.gguf; perhaps minilm/, and
# q15think.gguf as tools/make_thinking_model.py makes it); without it tiny ones serve.
set -eu

still=$(realpath -- "$1")
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
folder=${2:-$HOME/.cache/still-clients}
failed=0

mkdir -p "$folder/npm"
[ -x "$folder/venv/bin/python" ] || python3 -m venv "$folder/venv"
# uv resolves in seconds what takes pip half an hour.
"$folder/venv/bin/pip" install --quiet uv
"$folder/venv/bin/uv" pip install --quiet --python "$folder/venv/bin/python" --requirement "$here/requirements.txt"
if command -v npm >/dev/null; then
  cp "$here/package.json" "$here/node_clients_test.mjs" "$folder/npm/"
  (cd "$folder/npm" && npm install --no-audit --no-fund --silent)
fi

python=$folder/venv/bin/python
for test in server_test operation_test load_test docs_test embeddings_test python_clients_test ollama_clients_test node_clients_test fuzz_test; do
  echo "== $test"
  if [ "$test" = node_clients_test ] && ! command -v node >/dev/null; then
    echo "skipped: there is no node"
    continue
  fi
  if [ "$test" = node_clients_test ]; then
    "$python" "$here/node_clients.py" "$still" "$folder/npm" || failed=1
  else
    STILL_TEST_NPM="$folder/npm" PATH="$folder/venv/bin:$PATH" "$python" "$here/$test.py" "$still" || failed=1
  fi
done
exit "$failed"
