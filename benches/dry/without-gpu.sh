# For scripts of bash to source, at the root of the repository: hart's programs for NVIDIA GPUs, run without one. `cuda.c` says how.
#
# scratch is a folder of their own, gone in the end. They are built without LLVM, which only kernels need that NVRTC doesn't compile: its
# functions are there by name.
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
mkdir "$scratch/kernels"
cc -O1 -shared -fPIC -w benches/dry/cuda.c -o "$scratch/libcuda.so.1" -lpthread
for name in libcuda.so libnvrtc.so libnvrtc.so.12 libnvrtc.so.13; do ln -s libcuda.so.1 "$scratch/$name"; done
compile=$PWD/benches/dry/compile

# build PATH ARGUMENTS...: the program that `cargo rustc ARGUMENTS` makes, at that path.
build() {
  local to=$1 program
  shift
  program=$(DOCS_RS=1 cargo rustc "$@" --message-format=json-render-diagnostics -- -C link-arg=-Wl,--unresolved-symbols=ignore-all |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
  cp "$program" "$to"
  nm -D --undefined-only "$to" | sed -nE 's/^ *U ((LLVM|cubecl_)[A-Za-z0-9_]*)$/void *\1(void) { return 0; }/p' |
    cc -w -shared -fPIC -x c - -o "$to.llvm.so"
}

# without_llvm PROGRAM ARGUMENTS...: it, in the folder. What is kept of kernels is kept there, where no GPU finds it.
without_llvm() {
  local program=$1
  shift
  (cd "$scratch" && HOME=$scratch XDG_CACHE_HOME=$scratch LD_PRELOAD=$program.llvm.so "$program" "$@")
}

# without_gpu PROGRAM ARGUMENTS...: the same with a driver that launches nothing, unless DRY_RUN says so.
without_gpu() { CUDA_PATH=$scratch LD_LIBRARY_PATH=$scratch without_llvm "$@"; }

# on_the_cpu PROGRAM ARGUMENTS...: the same with every kernel compiled for the CPU, and run there.
on_the_cpu() { DRY_RUN=$scratch/kernels DRY_COMPILE=$compile HART_TEST_DEVICE=cuda without_gpu "$@"; }
