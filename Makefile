# Daily work; the real build is CMake's (CMakePresets.json).  make build | check | dev | bench | format | tidy | clean
# Needs `tools/install_packages.sh daily` once.
.PHONY: build check dev bench format tidy clean

build:
	@test -f build/release/build.ninja || cmake --preset release
	ninja -C build/release still

check:
	./test

dev:
	cmake --preset dev && ninja -C build/dev && ctest --preset dev

bench:
	cmake --preset bench && ninja -C build/bench
	@for bench in build/bench/*_bench; do echo "== $$bench"; $$bench || exit 1; done

format:
	git ls-files '*.cc' '*.h' '*.cu' '*.cuh' | xargs clang-format-19 -i

# All sources, or those named: make tidy FILES="src/cli/run.cc"
tidy:
	@cmake --preset release -B build/tidy -DSTILL_UNITY=OFF >/dev/null && ninja -C build/tidy still_cold_headers still_warm_headers
	@for file in $(or $(FILES),$(shell git ls-files 'src/*.cc' | grep -vE '_(test|bench)\.cc$$|kernels/(cpu|cuda)/|tensor/cuda/')); do \
	  clang-tidy-19 --quiet -p build/tidy $$file 2>/dev/null || status=1; done; exit $${status:-0}

clean:
	rm -rf build
