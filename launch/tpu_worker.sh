#!/bin/bash
# What launch/tpu_vm.py runs on each worker of a TPU pod: the job goes on when a connection breaks.
#
#   tpu_worker.sh start RESTARTS PROGRAM…   starts the job, unless one is running
#   tpu_worker.sh follow LINES              shows the last lines (+1: all) and what comes
#   tpu_worker.sh running                   whether one is running (exit code)
#   tpu_worker.sh end WAIT GRACE            waits for the end; TERM after WAIT seconds, KILL after
#                                           GRACE more; prints "FLAMINGO_EXIT host code"
#   tpu_worker.sh stop GRACE                the same at once, as the user wants it: code "stopped"
#
# State is in JOB_DIR (~/flamingo_job): pid, code, stopped, output.log (of this start), old.log.
# Exit code 0 otherwise, whatever the job's: gcloud would try a failed command again.

set -uo pipefail

state=${JOB_DIR:-$HOME/flamingo_job}
mkdir -p "$state"

alive() {
  [[ -s $state/pid ]] && kill -0 -- "-$(<"$state/pid")" 2>/dev/null
}

# As many tries as tenths of the seconds given, until the job has ended.
await() {
  local tries=$(($1 * 10))
  while alive && ((tries-- > 0)); do
    sleep 0.1
  done
}

end() {
  await "$1"
  if alive; then
    kill -TERM -- "-$(<"$state/pid")" 2>/dev/null
    await "$2"
  fi
  if alive; then
    kill -KILL -- "-$(<"$state/pid")" 2>/dev/null
  fi
  local code=137 # where a kill left none
  [[ -s $state/code ]] && code=$(<"$state/code")
  [[ -f $state/stopped ]] && code=stopped
  echo "FLAMINGO_EXIT $(hostname) $code"
}

case ${1:-} in
  start)
    export FLAMINGO_RESTARTS=$2
    shift 2
    if alive; then
      echo "$(hostname): running already"
      exit 0
    fi
    rm -f "$state/code" "$state/stopped"
    [[ -f $state/output.log ]] && cat "$state/output.log" >>"$state/old.log"
    : >"$state/output.log"
    # A session of its own: its leader's number is that of the group, and signals reach all of it.
    # The leader outlives a TERM to write down what the job ended with.
    # shellcheck disable=SC2016  # expanded by the leader
    setsid nohup bash -c '
      trap : TERM
      echo $$ >"$0/pid"
      "$@"
      code=$?
      echo $code >"$0/code.new"
      mv "$0/code.new" "$0/code"
    ' "$state" "$@" </dev/null >>"$state/output.log" 2>&1 &
    for _ in {1..100}; do # until there is a number to follow
      alive || [[ -f $state/code ]] && break
      sleep 0.1
    done
    ;;
  follow)
    if alive; then
      tail -n "$2" -s 0.2 -f --pid="$(<"$state/pid")" "$state/output.log"
    else
      tail -n "$2" "$state/output.log"
    fi
    ;;
  running) alive ;;
  end) end "$2" "$3" ;;
  stop)
    touch "$state/stopped"
    end 0 "$2"
    ;;
  *)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
