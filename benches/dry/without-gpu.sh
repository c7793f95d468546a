# Functions that build and run hart's programs for NVIDIA GPUs without a GPU. Source this file in bash, in the repository's root.
#
# The driver and the kernel compiler are replaced by `cuda.c`. The programs are linked without LLVM, which is needed only for
# kernels that NVRTC does not compile; stub functions take its place. `scratch` is a temporary folder that is deleted at exit.
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
mkdir "$scratch/kernels"
cc -O1 -shared -fPIC -w benches/dry/cuda.c -o "$scratch/libcuda.so.1" -lpthread
for name in libcuda.so libnvrtc.so libnvrtc.so.12 libnvrtc.so.13; do ln -s libcuda.so.1 "$scratch/$name"; done
compile=$PWD/benches/dry/compile

# build PATH ARGUMENTS...: builds a program with `cargo rustc ARGUMENTS` and copies it to PATH.
build() {
  local path=$1 program
  shift
  program=$(DOCS_RS=1 cargo rustc "$@" --message-format=json-render-diagnostics -- -C link-arg=-Wl,--unresolved-symbols=ignore-all |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
  cp "$program" "$path"
  nm -D --undefined-only "$path" | sed -nE 's/^ *U ((LLVM|cubecl_)[A-Za-z0-9_]*)$/void *\1(void) { return 0; }/p' |
    cc -w -shared -fPIC -x c - -o "$path.llvm.so"
}

# without_llvm PROGRAM ARGUMENTS...: runs a program with the stub functions. It caches kernels in `scratch`, where no later run on a
# real GPU finds them.
without_llvm() {
  local program=$1
  shift
  (cd "$scratch" && HOME=$scratch XDG_CACHE_HOME=$scratch LD_PRELOAD=$program.llvm.so "$program" "$@")
}

# without_gpu PROGRAM ARGUMENTS...: runs a program with a driver that launches no kernels, unless DRY_RUN is set.
without_gpu() { CUDA_PATH=$scratch LD_LIBRARY_PATH=$scratch without_llvm "$@"; }

# on_the_cpu PROGRAM ARGUMENTS...: runs a program whose kernels are compiled for the CPU and run there.
on_the_cpu() { DRY_RUN=$scratch/kernels DRY_COMPILE=$compile HART_TEST_DEVICE=cuda without_gpu "$@"; }
