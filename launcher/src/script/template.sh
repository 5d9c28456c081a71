#!/bin/sh
# Starts the ranks of an allfold job on this host with nothing but a POSIX shell and /proc.
# Printed by `allfold run --dry-run`. What `allfold run` does beyond it: the other ranks hear of
# a lost one at once, lines of different ranks never mix, and nothing stays behind, also after
# `kill -9`.
@LEFT_OUT@
set -u

ranks=@RANKS@

# A secret of its own for the job, for this user's eyes only, and gone when the job is.
directory=${TMPDIR:-/tmp}/allfold-$$
(umask 077 && mkdir "$directory") || exit 2
trap 'rm -rf "$directory"' EXIT
(umask 077 && od -A n -t x1 -N 32 /dev/urandom | tr -d ' \n' >"$directory/secret")
if [ "$(wc -c <"$directory/secret")" -ne 64 ]; then
    echo "error: cannot write the secret to $directory/secret" >&2
    exit 2
fi

# A port for the rendezvous that nobody has, below those that the system gives out.
port=$((20000 + $$ % 10000))
while grep -q ":$(printf '%04X' "$port") " /proc/net/udp /proc/net/udp6 2>/dev/null; do
    port=$((port + 1))
done

# Becomes rank $1.
become() {
    unset ALLFOLD_SECRET ALLFOLD_TLS_CERT ALLFOLD_TLS_KEY ALLFOLD_TLS_CA
    unset ALLFOLD_PEERS ALLFOLD_LAUNCHER
    export ALLFOLD_RANK="$1" ALLFOLD_WORLD_SIZE="$ranks"
    export ALLFOLD_LOCAL_RANK="$1" ALLFOLD_LOCAL_WORLD_SIZE="$ranks"
    export ALLFOLD_RENDEZVOUS="127.0.0.1:$port" ALLFOLD_JOB="script-$$"
    export ALLFOLD_SECRET_FILE="$directory/secret" ALLFOLD_RESTART=0
    # torchrun's names for the same.
    export RANK="$1" WORLD_SIZE="$ranks" LOCAL_RANK="$1" LOCAL_WORLD_SIZE="$ranks"
    export MASTER_ADDR=127.0.0.1 MASTER_PORT="$port"
@THREADS@
@VARIABLES@
@OUTPUT@
@BINDING@
    exec @COMMAND@
}

running=  # RANK:PID of each
code=0    # of the rank at fault
culprit=
stopped=  # the exit code of a stop by the user
stopped_at=0 # the second of it
next=     # the signal for those that still run at second $deadline
deadline=
second=0

signal_all() {
    for each in $running; do
        kill -s "$1" "${each#*:}" 2>/dev/null
    done
}

# The shell lets no background process have SIGINT, so every stop is a SIGTERM; the second kills,
# unless it comes with the first: `timeout` signals a process and its whole group.
# shellcheck disable=SC2317 # the traps call it
stop() {
    if [ "$stopped" = 143 ] && [ "$1" -eq 143 ] && [ "$second" -le $((stopped_at + 1)) ]; then
        return
    fi
    if [ -n "$stopped" ]; then
        signal_all KILL
        return
    fi
    stopped=$1
    stopped_at=$second
    signal_all TERM
    next=KILL
    deadline=$((second + @STOP_GRACE@))
}
trap 'stop 129' HUP
trap 'stop 130' INT
trap 'stop 131' QUIT
trap 'stop 143' TERM

# Standard input goes to rank 0 only.
exec 3<&0
rank=0
while [ "$rank" -lt "$ranks" ] && [ -z "$stopped" ]; do
    if [ "$rank" -eq 0 ]; then
        become 0 <&3 3<&- &
    else
        become "$rank" </dev/null 3<&- &
    fi
    running="$running $rank:$!"
    rank=$((rank + 1))
done
exec 3<&-
# One that was being started as the signal came.
[ -z "$stopped" ] || signal_all TERM

while [ -n "$running" ]; do
    # A signal ends the wait, and would not end a plain sleep.
    sleep 1 &
    wait "$!"
    second=$((second + 1))
    left=
    for rank in $running; do
        if kill -0 "${rank#*:}" 2>/dev/null; then
            left="$left $rank"
            continue
        fi
        wait "${rank#*:}"
        status=$?
        if [ "$status" -eq 0 ] || [ "$next" = KILL ]; then
            continue
        fi
        # 75 says that another rank is at fault, or the network.
        if [ "$code" -eq 0 ] || { [ "$code" -eq 75 ] && [ "$status" -ne 75 ]; }; then
            code=$status
            culprit=${rank%%:*}
        fi
        if [ -z "$next" ]; then
            next=TERM
            deadline=$((second + 5))
        fi
    done
    if [ "$next" = TERM ] && [ -n "$left" ] && [ "$deadline" -eq $((second + 5)) ]; then
        echo "rank $culprit ended with code $code; the others have 5 s to end" >&2
    fi
    running=$left
    if [ -n "$next" ] && [ "$second" -ge "$deadline" ]; then
        signal_all "$next"
        next=KILL
        deadline=$((second + @HANG_GRACE@))
    fi
done

if [ "$code" -ne 0 ]; then
    echo "error: rank $culprit exited with code $code" >&2
    exit "$code"
fi
exit "${stopped:-0}"
