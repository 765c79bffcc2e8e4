# Makefile - the front door; the build itself is CMakeLists.txt. All output goes to build/.
# `make help` lists what there is.
JOBS  ?= $(shell nproc 2>/dev/null || echo 2)
MODEL ?= models/dibit-34m.gguf
P     ?= The history of the city begins
N     ?= 200
K     ?=
T     ?= *
FUZZ_TIME ?= 60
PREFIX ?= /usr/local
# Our jobs are counted by cmake --build, so an outer make's own settings must not reach it.
CMAKE = env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL cmake
# configure PRESET, quietly unless it fails; build DIR [targets]
configure = @log=$$($(CMAKE) --preset $(1) -Wno-dev 2>&1) || { echo "$$log"; exit 1; }
build = @$(CMAKE) --build $(1) -j $(JOBS) $(if $(2),--target $(2))

.PHONY: all program run chat test bench kern lint format fuzz asan ubsan tsan wasm web longrun mutants deps install clean help web-serve test-web
all: program
program:
	@tools/deps.sh build
	$(call configure,release)
	$(call build,build,dibit)

run: program
	build/dibit run -m $(MODEL) -p "$(P)" -n $(N)

chat: program
	build/dibit chat -m $(MODEL)

test:
	@tools/deps.sh build test
	$(call configure,release)
	$(call build,build)
	@tests/run.sh build

bench: program
	build/dibit bench -m $(MODEL)
	$(call build,build,bench_codecs bench_records) && build/bench_codecs && build/bench_records
	for t in t2 t3 s2 s3 q4 q8; do build/dibit bench --shape llama-3.2-1b --type $$t || exit 1; done

# One kernel or all against the scalar ones: make kern K=mul_s2 B=1 also times.
kern:
	@tools/deps.sh build test
	$(call configure,release)
	$(call build,build,test_kern)
	build/test_kern $(if $(K),-k $(K)) $(if $(B),-b)

lint:
	@tools/deps.sh build lint
	$(call configure,release)
	$(call build,build,dibit dibit_static dibit_shared)
	@tools/lint.sh build

format:
	@tools/deps.sh lint
	@tools/lint.sh --format

# make fuzz T=gguf FUZZ_TIME=300: one target, five minutes; T left out: all, one after another.
fuzz:
	@tools/deps.sh build test fuzz
	$(call configure,fuzz)
	$(call build,build/fuzz,fuzzers)
	@tools/fuzz.sh build/fuzz '$(T)' $(FUZZ_TIME)

# The test suite under sanitizers: address and undefined behaviour together, then threads.
asan ubsan tsan:
	@tools/deps.sh build test
	$(call configure,$(@:ubsan=asan))
	$(call build,build/$(@:ubsan=asan))
	@tests/run.sh build/$(@:ubsan=asan)

# The whole of what make test does in short.
longrun mutants:
	$(call configure,release)
	$(call build,build,test_$@)
	build/test_$@ $(if $(filter longrun,$@),$(MODEL) 30000 4096 k2 k2,100000)

wasm: ; @tools/deps.sh build wasm && tools/wasm.sh build/web -j $(JOBS)
web:
	@tools/deps.sh build wasm
	@tools/deps.sh web || echo "going on without esbuild"
	@tools/web.sh build/web -j $(JOBS)
# The page on 127.0.0.1 with COOP/COEP (PORT=8080); ISOLATION=no leaves them out, =credentialless eases COEP.
PORT ?= 8080
web-serve: web
	@node tools/serve.mjs --port $(PORT) $(if $(ISOLATION),$(if $(filter no,$(ISOLATION)),--no-isolation,--$(ISOLATION)))
# The package in real browsers; those that are missing are skipped (CI=true: one at least must run).
test-web: program web
	@tools/deps.sh browsers || echo "going on with the browsers that are here"
	@tests/web/run.sh build
deps: ; @tools/deps.sh build test lint fuzz neon wasm web browsers gpu

install: program
	$(call build,build)
	$(CMAKE) --install build --prefix $(PREFIX)

clean: ; rm -rf build

help: ; @MODEL=$(MODEL) FUZZ_TIME=$(FUZZ_TIME) PORT=$(PORT) PREFIX=$(PREFIX) sh tools/help.sh
