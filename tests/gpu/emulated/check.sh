#!/usr/bin/env bash
# Trainings on GPUs where there is none: candle's own kernels, from its crate of the version in
# Cargo.lock, compiled for the host, on the stand-ins for driver and NCCL (docs/gpu.md). Prints a
# line for each check, and ends with 1 where one failed.
#
#     tests/gpu/emulated/check.sh
#
# Needs cargo, cc, g++ and x86-64; nothing of NVIDIA's. Builds in CARGO_TARGET_DIR, else in
# target/emulated; the first time that takes minutes.
set -uo pipefail
cd "$(dirname "$0")/../../.." || exit

here=tests/gpu/emulated
target=$(realpath -m "${CARGO_TARGET_DIR:-target/emulated}")
# What build scripts and the linker take for CUDA.
cuda=$target/cuda
libraries=$cuda/lib64
objects=$target/objects
allfold=$target/debug/allfold
logs=$(mktemp -d "${TMPDIR:-/tmp}/allfold-emulated.XXXXXX")
failed=0

# say RESULT NAME FIGURE
say() {
  printf '%-7s %-44s %s\n' "$1" "$2" "$3"
  [ "$1" = FAILED ] && failed=$((failed + 1))
  return 0
}

# The folder of candle's kernels; fetched, where they are not there yet.
kernels() {
  cargo metadata --locked --all-features --format-version 1 \
    --filter-platform x86_64-unknown-linux-gnu |
    grep -oE '"manifest_path":"[^"]*/candle-kernels-[^"/]*/Cargo.toml"' |
    sed -E 's/.*:"(.*)Cargo.toml"/\1src/'
}

# cxx WORDS...
cxx() {
  # Sums as on a GPU that was told the same: no multiplication fused into an addition.
  g++ -std=c++17 -O2 -w -fPIC -fvisibility=hidden -ffp-contract=off -pthread -I "$here" "$@"
}

# A file of candle's, and a line for each of its kernels by which it is found.
compile_kernels() {
  local folder=$1 name=$2 unit=$objects/$2.cc meets=false
  grep -qE '__syncthreads|__shfl' "$folder/$name.cu" && meets=true
  printf '#include "device.h"\n#include "%s"\n' "$folder/$name.cu" >"$unit"
  cxx -I "$cuda/include" -E -P "$unit" >"$objects/$name.expanded" || return
  grep -oE 'extern "C" +void +\w+' "$objects/$name.expanded" | sed 's/.* //' | sort -u |
    sed "s/.*/static Registered registered_&(\"&\", $meets, &);/" >>"$unit"
  cxx -I "$cuda/include" -c "$unit" -o "$objects/$name.o"
}

# library FILE WORDS...
library() {
  local file=$1
  shift
  cxx -shared -static-libstdc++ -static-libgcc -Wl,-soname,"$file" -o "$libraries/$file" "$@"
}

compile() {
  local folder name units=()
  folder=$(kernels) && [ -d "$folder" ] || return
  mkdir -p "$cuda/bin" "$cuda/include/cuda/std" "$libraries" "$objects" || return
  ln -sf "$PWD/$here/nvcc" "$cuda/bin/nvcc"
  for name in cuda.h cuda_fp16.h cuda_bf16.h cuda_fp8.h cuda/std/limits; do
    echo '#include "device.h"' >"$cuda/include/$name"
  done
  for name in affine binary cast conv fill indexing reduce ternary unary; do
    compile_kernels "$folder" "$name" || return
    units+=("$objects/$name.o")
  done
  for name in cuda cuda_memory cuda_streams; do
    cc -O1 -D_GNU_SOURCE -fPIC -pthread -fvisibility=hidden -c "tests/gpu/$name.c" \
      -o "$objects/$name.o" || return
    units+=("$objects/$name.o")
  done
  library libcuda.so.1 "$here/launch.cc" "$here/block.cc" "${units[@]}" -ldl || return
  cc -O1 -D_GNU_SOURCE -fPIC -pthread -fvisibility=hidden -shared -Wl,-soname,libnccl.so.2 \
    -o "$libraries/libnccl.so.2" tests/gpu/nccl*.c -lm -ldl || return
  ln -sf libcuda.so.1 "$libraries/libcuda.so"
  ln -sf libnccl.so.2 "$libraries/libnccl.so"
  library libcublas.so -O3 -march=native "$here/cublas.cc" -L "$libraries" -lcuda || return
  library libcurand.so "$here/curand.cc" -L "$libraries" -lcuda || return
  # Named to the linker, and nothing of them is used.
  for name in cudart cublasLt nvrtc; do
    library "lib$name.so" -x c++ /dev/null || return
  done
}

build() {
  # 9.0 is what the stand-in for the driver says it is.
  env -u NVCC PATH="$cuda/bin:$PATH" CUDA_HOME="$cuda" CUDA_PATH="$cuda" CUDA_COMPUTE_CAP=90 \
    cargo build --locked --profile dev -p allfold-launcher --features cuda --target-dir "$target"
}

# step NAME COMMAND...: without it there is nothing to check
step() {
  local name=$1
  shift
  if ! "$@" >"$logs/$name.log" 2>&1; then
    say FAILED "$name" "see $logs/$name.log"
    exit 1
  fi
  say ok "$name" ""
}

# train LOG WORDS...
train() {
  local log=$1
  shift
  timeout 600 "$allfold" train --progress lines "$@" >"$log" 2>&1
}

accuracy_in() {
  sed -n 's/^test accuracy \([0-9.]*\) .*/\1/p' "$1"
}

# trains NAME RANKS WORDS...: on GPUs as on the host
trains() {
  local name=$1 ranks=$2 gpu=$logs/$1.gpu.log cpu=$logs/$1.cpu.log is wanted
  shift 2
  train "$cpu" --device cpu -n "$ranks" "$@" || { say FAILED "$name" "see $cpu" && return; }
  train "$gpu" --device gpu -n "$ranks" "$@" || { say FAILED "$name" "see $gpu" && return; }
  is=$(accuracy_in "$gpu") wanted=$(accuracy_in "$cpu")
  if ! grep -q '^  gpus  ' "$gpu"; then
    say FAILED "$name" "not on a GPU: see $gpu"
  elif [ "$ranks" -gt 1 ] && ! grep -q "^parameters identical on all $ranks ranks" "$gpu"; then
    say FAILED "$name" "no digest: see $gpu"
  elif ! awk -v is="${is:-x}" -v wanted="${wanted:-x}" \
    'BEGIN { exit !(is + 0 > 0 && is - wanted <= 2 && wanted - is <= 2) }'; then
    say FAILED "$name" "accuracy $is %, on the host $wanted %: see $gpu"
  else
    say ok "$name" "accuracy $is %, on the host $wanted %"
  fi
}

# What GPUs have learned goes on on the host.
resumes() {
  local name=resumed_on_the_host gpu=$logs/resumed.gpu.log cpu=$logs/resumed.cpu.log
  local words=(-n 2 --model mlp --checkpoint "$logs/checkpoints")
  if ! train "$gpu" --device gpu --epochs 2 "${words[@]}"; then
    say FAILED "$name" "see $gpu"
  elif ! train "$cpu" --device cpu --epochs 3 --resume "${words[@]}"; then
    say FAILED "$name" "see $cpu"
  elif grep -q '^epoch=[12] ' "$cpu" || ! grep -q '^epoch=3 ' "$cpu"; then
    say FAILED "$name" "it began anew: see $cpu"
  else
    say ok "$name" "accuracy $(accuracy_in "$gpu") %, then $(accuracy_in "$cpu") %"
  fi
}

# Rank 1 of 2 is killed in the middle.
names_the_killed() {
  local name=names_a_killed_rank log=$logs/names_a_killed_rank.log job error
  train "$log" --device gpu -n 2 --model mlp --epochs 100000 &
  job=$!
  for _ in $(seq 1200); do
    grep -q '^epoch=3 ' "$log" && break
    kill -0 "$job" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$(sed -nE 's/^  pids +[0-9]+ ([0-9]+) .*/\1/p' "$log")"
  if wait "$job"; then
    say FAILED "$name" "it ended well: see $log"
  elif ! error=$(grep -oE '^error: rank 1 .* was killed by signal 9' "$log"); then
    say FAILED "$name" "see $log"
  else
    say ok "$name" "$error"
  fi
}

step libraries compile
step build build
# A GPU for each rank; what the caller's environment says of real ones is of no use here.
unset CUDA_VISIBLE_DEVICES ALLFOLD_NCCL
export LD_LIBRARY_PATH=$libraries FAKE_CUDA_DEVICES=4
trains cnn_on_1_rank 1 --epochs 3
trains cnn_on_2_ranks 2 --epochs 3
trains cnn_on_4_ranks 4 --epochs 3
trains mlp_on_2_ranks 2 --model mlp --epochs 3
resumes
names_the_killed
printf '%s checks failed; everything that was printed: %s\n' "$failed" "$logs"
[ "$failed" = 0 ]
