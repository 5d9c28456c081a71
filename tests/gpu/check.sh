#!/usr/bin/env bash
# Everything that needs a real GPU to be seen, in one go, on a machine with one GPU, its driver and
# NCCL (docs/gpu.md). Prints a line for each check while it goes, then the benchmark's tables; what
# was printed meanwhile lies in the folder that the last line names.
#
#     tests/gpu/check.sh                          with the NCCL that the loader finds
#     tests/gpu/check.sh /nccl/2.26 /nccl/2.30    and the tests again with each of these folders'
#
# Several ranks share the GPU: each has a host's name of its own for NCCL, and the loopback between.
#
# Training is part of it where nvcc is, or a program that was built with it. Where there is no cargo,
# PROGRAMS names a folder with what was built elsewhere: `allfold`, `rank-under-test`, the test program
# `gpu`, and `allfold-cuda`, which is allfold with the feature `cuda`.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit

# For trying this script itself with look-alikes: ALLFOLD_TEST_GPU=fake PROFILE=dev.
export ALLFOLD_TEST_GPU=${ALLFOLD_TEST_GPU:-real}
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-lo} NCCL_NET=${NCCL_NET:-Socket}
profile=${PROFILE:-release}
target=${CARGO_TARGET_DIR:-target}
programs=${PROGRAMS:-$target/$([ "$profile" = dev ] && echo debug || echo "$profile")}
logs=$(mktemp -d "${TMPDIR:-/tmp}/allfold-gpu.XXXXXX")
failed=0

# say RESULT NAME FIGURE
say() {
  printf '%-7s %-72s %s\n' "$1" "$2" "$3"
  [ "$1" = FAILED ] && failed=$((failed + 1))
  return 0
}

# seconds START: since then
seconds() {
  local now
  now=$(date +%s%N)
  printf '%d.%03d s' $(((now - $1) / 1000000000)) $(((now - $1) / 1000000 % 1000))
}

# check NAME COMMAND...: ok where it ends with 0
check() {
  local name=$1 start
  shift
  start=$(date +%s%N)
  if "$@" >"$logs/$name.log" 2>&1; then
    say ok "$name" "$(seconds "$start")"
  else
    say FAILED "$name" "see $logs/$name.log"
  fi
}

# The tests of the repository, a line each; with these words before their names.
tests() {
  local prefix=$1 log=$logs/tests${1:+-${1//[^a-z0-9.]/-}}.log
  if [ -n "${PROGRAMS:-}" ]; then
    "$PROGRAMS/gpu" --test-threads 1 --nocapture >"$log" 2>&1
  else
    cargo test --profile "$profile" -p allfold-tests --test gpu -- --test-threads 1 --nocapture \
      >"$log" 2>&1
  fi
  local ended=$? name
  # The runner writes `test NAME ... `, what the test says, and only then how it ended.
  while read -r name; do
    if grep -q "^.*skipped: $name: " "$log"; then
      say skipped "$prefix$name" "$(sed -n "s/.*skipped: $name: //p" "$log" | head -n 1)"
    elif grep -qx "    $name" "$log"; then
      say FAILED "$prefix$name" "see $log"
    else
      say ok "$prefix$name" ""
    fi
  done < <(sed -n 's/^test \([a-z_0-9]*\) \.\.\..*/\1/p' "$log")
  grep -q '^test result: ' "$log" || say FAILED "${prefix}cargo test" "ended with $ended: see $log"
}

# job NAME RANKS WORDS...: ranks under test in the background; sets $job, $log and $events
job() {
  local ranks=$2
  log=$logs/$1.log events=$logs/$1.events
  : >"$log"
  shift 2
  # shellcheck disable=SC2016 # the rank's shell is to see it
  "$programs/allfold" run -n "$ranks" --prefix always --json-events "$events" -- \
    sh -c 'NCCL_HOSTID=host-$RANK exec "$0" gpu "$@"' "$programs/rank-under-test" "$@" \
    >"$log" 2>&1 &
  job=$!
}

# Waits until this many ranks have printed it, a minute at most.
await() {
  for _ in $(seq 600); do
    [ "$(grep -c "^\[[0-9]*\] $1" "$log")" -ge "$2" ] && return 0
    kill -0 "$job" 2>/dev/null || break
    sleep 0.1
  done
  return 1
}

pid_of() {
  sed -n "s/.*\"rank-started\".*\"rank\":$1,\"pid\":\([0-9]*\).*/\1/p" "$events" 2>/dev/null | head -n 1
}

# hurt NAME SIGNAL WORDS WAY: rank 1 of 3 gets the signal in the middle; the others must say WORDS
hurt() {
  local name=$1 signal=$2 words=$3 start
  job "$name" 3 forever "$4"
  if ! await started 3; then
    kill "$job" 2>/dev/null
    wait "$job"
    say FAILED "$name" "did not start: see $log"
    return
  fi
  start=$(date +%s%N)
  kill -"$signal" "$(pid_of 1)"
  until [ "$(grep -c "^\[[02]\] error: .*$words" "$log")" -ge 2 ]; do
    if ! kill -0 "$job" 2>/dev/null || [ $(($(date +%s%N) - start)) -gt 10000000000 ]; then
      kill "$job" 2>/dev/null
      wait "$job"
      say FAILED "$name" "see $log"
      return
    fi
    sleep 0.01
  done
  local took
  took=$(seconds "$start")
  kill -CONT "$(pid_of 1)" 2>/dev/null
  wait "$job"
  if [ "${took%%.*}" -ge 3 ]; then
    say FAILED "$name" "$took until all others knew"
  else
    say ok "$name" "$took until all others knew"
  fi
}

# Rank 1 is killed at many moments while NCCL connects, by itself and within its first call.
while_connecting() {
  local name=killed_while_nccl_connects moment start slowest=0 took
  for moment in 0.0 0.1 0.2 0.3 0.4 0.5 0.6 0.8 1.0 1.3 1.6 2.0; do
    job "$name-$moment" 2 forever queued
    for _ in $(seq 600); do
      [ -n "$(pid_of 1)" ] && break
      sleep 0.01
    done
    sleep "$moment"
    start=$(date +%s%N)
    kill -KILL "$(pid_of 1)" 2>/dev/null || kill "$job"
    # Where the promise is broken: not for ever.
    timeout 20 tail --pid "$job" -f /dev/null || kill -KILL "$job"
    wait "$job" 2>/dev/null
    took=$((($(date +%s%N) - start) / 1000000))
    [ "$took" -gt "$slowest" ] && slowest=$took
    if ! grep -q '^\[0\] error: .*rank 1' "$log"; then
      say FAILED "$name" "$moment s after the start: see $log"
      return
    fi
  done
  # The launcher gives a rank that hangs 5 s.
  if [ "$slowest" -ge 4000 ]; then
    say FAILED "$name" "the slowest of 12 moments took $slowest ms"
  else
    say ok "$name" "12 moments, the slowest $slowest ms"
  fi
}

# bench NAME RANKS WORDS...
bench() {
  local name=$1 ranks=$2 table=$logs/$1.table
  shift 2
  # shellcheck disable=SC2016 # the rank's shell is to see it
  if "$programs/allfold" run -n "$ranks" --prefix never -- \
    sh -c 'NCCL_HOSTID=host-$RANK exec "$0" bench "$@"' "$programs/allfold" "$@" --device gpu \
    >"$table" 2>"$logs/$name.log"; then
    say ok "$name" "$(sed -nE 's/^# (Avg bus bandwidth|Beside raw NCCL) +: (.*[^ ]) *$/\1: \2/p' "$table" | tac | paste -sd ';')"
    tables+=("$table")
  else
    say FAILED "$name" "$(tail -n 2 "$logs/$name.log" | head -n 1)"
  fi
}

# ranks RANKS WORDS...: the words of `run`, and a training on GPUs after them
ranks() {
  local many=$1
  shift
  # shellcheck disable=SC2016 # the rank's shell is to see it
  "$programs/allfold" run -n "$many" --prefix never "${run_words[@]}" -- \
    sh -c 'NCCL_HOSTID=host-$RANK exec "$0" train --device gpu "$@"' "$trainer" "$@"
}

# learned NAME RANKS: what a training has printed says that it learned, to the same bits everywhere
learned() {
  local name=$1 ranks=$2 printed=$logs/$1.log accuracy
  if ! accuracy=$(grep -E '^test accuracy (9[5-9]|100)\.' "$printed"); then
    say FAILED "$name" "it has not learned: see $printed"
  elif [ "$ranks" -gt 1 ] && ! grep -q "^parameters identical on all $ranks ranks" "$printed"; then
    say FAILED "$name" "no digest: see $printed"
  else
    say ok "$name" "$accuracy"
  fi
}

# train NAME RANKS WORDS...
train() {
  local name=$1 ranks=$2
  shift 2
  run_words=()
  if [ -z "$trainer" ]; then
    say skipped "$name" "no nvcc, and no allfold-cuda in PROGRAMS"
  elif ! ranks "$ranks" "$@" >"$logs/$name.log" 2>&1; then
    say FAILED "$name" "see $logs/$name.log"
  else
    learned "$name" "$ranks"
  fi
}

# Rank 1 of 2 is killed in the middle of a training; both start again and go on.
train_on() {
  local name=training_that_goes_on_after_a_kill job
  if [ -z "$trainer" ]; then
    say skipped "$name" "no nvcc, and no allfold-cuda in PROGRAMS"
    return
  fi
  log=$logs/$name.log events=$logs/$name.events
  run_words=(--max-restarts 1 --json-events "$events")
  : >"$log"
  ranks 2 --epochs 100 --checkpoint "$logs/checkpoints" --resume >"$log" 2>&1 &
  job=$!
  for _ in $(seq 600); do
    grep -q '^epoch=3 ' "$log" && break
    kill -0 "$job" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$(pid_of 1)"
  if ! wait "$job"; then
    say FAILED "$name" "see $log"
  elif ! grep -q 'restart 1 of 1 after rank 1 .*SIGKILL' "$log"; then
    say FAILED "$name" "rank 1 is not named: see $log"
  else
    learned "$name" 2
  fi
}

echo "# $(date -u +%FT%TZ) $(git rev-parse --short HEAD 2>/dev/null) $(uname -r)"
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
trainer=
if [ -n "${PROGRAMS:-}" ]; then
  [ -x "$PROGRAMS/allfold-cuda" ] && trainer=$PROGRAMS/allfold-cuda
else
  cargo build --profile "$profile" -p allfold-launcher -p allfold-tests --bins || exit 1
  if command -v nvcc >/dev/null; then
    cargo build --profile "$profile" -p allfold-launcher --features cuda --target-dir "$target/cuda" ||
      exit 1
    trainer=$target/cuda/${programs##*/}/allfold
  fi
fi
"$programs/allfold" env 2>/dev/null | grep -E '^(gpus|nccl) '
"$programs/allfold" run -n gpu true || exit 2

tables=()
check doctor "$programs/allfold" doctor -n gpu
# World size 1; 2 and 4 ranks on one GPU: all collectives, types and operations, each way; mismatches;
# deadlocks; ranks that are lost.
tests ""
hurt killed_between_blocking_calls KILL "rank 1 " blocking
hurt killed_between_calls_on_a_stream KILL "rank 1 " queued
hurt stopped_between_calls_on_a_stream STOP "rank 1 .*stopped answering" queued
export ALLFOLD_DEAD_AFTER=off ALLFOLD_TIMEOUT=2s
hurt a_call_that_takes_too_long STOP "did not end within 2 s" queued
unset ALLFOLD_DEAD_AFTER ALLFOLD_TIMEOUT
while_connecting
if pgrep -x rank-under-test >"$logs/left.log"; then
  say FAILED nobody_is_left "pids $(tr '\n' ' ' <"$logs/left.log")"
else
  say ok nobody_is_left ""
fi
bench all_reduce_of_one_rank 1 all-reduce -b 8 -e 256M -f 4
bench all_reduce_of_two_ranks_on_one_gpu 2 all-reduce -b 8 -e 64M -f 4
bench all_gather_of_two_ranks_on_one_gpu 2 all_gather -b 8 -e 64M -f 4
train training_of_one_rank 1
train training_of_two_ranks_on_one_gpu 2
train training_of_four_ranks_on_one_gpu 4 --model mlp
train_on
for folder in "$@"; do
  LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} tests "${folder##*/}: "
done

for table in "${tables[@]}"; do
  printf '\n%s\n' "${table##*/}"
  cat "$table"
done
printf '\n%s checks failed; everything that was printed: %s\n' "$failed" "$logs"
[ "$failed" = 0 ]
