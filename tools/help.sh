#!/bin/sh
# help.sh - what `make help` says; MODEL, FUZZ_TIME, PORT and PREFIX are those of the Makefile.
cat <<EOF
make           the release program build/dibit
make run       streams text from $MODEL (P="a beginning" N=tokens MODEL=file)
make chat      a conversation with it
make test      builds and runs every test
make bench     speed by type, of the model here and of one of 1.2 billion weights; error by type
make kern      kernels against the scalar ones (K=prefix of the name, B=1: with timings)
make lint      who includes whom, lengths, format, symbols;  make format: fixes the format
make fuzz      each fuzzer for FUZZ_TIME=$FUZZ_TIME seconds (T=name: only this one)
make asan      the tests under ASan and UBSan;  make tsan: under TSan
make wasm      build/web: modules for browsers (make test runs them under node)
make web       web/dist: the package for browsers (web/README.md)
make test-web  the package in Chromium, Firefox and WebKitGTK; writes docs/compatibility.md
make web-serve the page on http://127.0.0.1:$PORT/ (PORT=, ISOLATION=no|credentialless)
make longrun   30,000 tokens in one session, forked and saved;  make mutants: damaged sessions
make deps      installs every Debian package that any of these uses
make install   header, libraries, packages, program to PREFIX=$PREFIX
EOF
