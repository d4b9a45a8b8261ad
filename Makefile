# Daily work; the real build is CMake's (CMakePresets.json).  make build | check | dev | bench | format | clean
.PHONY: build check dev bench format clean

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

clean:
	rm -rf build
