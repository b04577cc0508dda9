#!/usr/bin/env bash
# Profile a server with py-spy: show where a turn of the reactor spends its time, by phase, as a table and flame graphs.
# There are two recordings, one after the other: wall time (--idle), then the CPU time of Python code (--gil).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
usage='usage: perf/profile.sh [--workload keepalive|churn|seed|idle|pump|timers] [--seconds 15] [--rate 499]
                       [--python PATH] [--native] [--out DIR] [--pid PID]

  --workload  the server to start, load and profile (default keepalive)
  --seconds   length of each recording          --rate   samples a second; odd, to avoid keeping step with timers
  --python    interpreter of the server         --native record a third time, with the frames of C functions
  --out       folder for the results            --pid    attach to this process; no process is started or ended
              (default perf/out/WORKLOAD-DATE)'

workload='' seconds=15 rate=499 python=python3 native='' out='' pid=''
server='' load='' sampler='' scratch=''

fail() { echo "profile.sh: $1" >&2; exit 1; }
mistyped() { echo "profile.sh: $1 (see perf/profile.sh --help)" >&2; exit 2; }

parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      --help) echo "$usage"; exit 0 ;;
      --native) native=yes; shift; continue ;;
      --workload | --seconds | --rate | --python | --out | --pid) [ $# -ge 2 ] || mistyped "$1 needs a value" ;;
      *) mistyped "unknown option $1" ;;
    esac
    printf -v "${1#--}" %s "$2"
    shift 2
  done
  for number in seconds rate ${pid:+pid}; do
    [[ ${!number} =~ ^[1-9][0-9]{0,8}$ ]] || mistyped "--$number needs a whole number above 0, not '${!number}'"
  done
  [ -z "$pid" ] || [ -z "$workload" ] || mistyped '--pid profiles your own process: leave out --workload'
  workload=${workload:-keepalive}
  case $workload in
    keepalive | churn | seed | idle | pump | timers) ;;
    *) mistyped "there is no workload '$workload'" ;;
  esac
}

# Find the interpreter itself, not a shim for it, and the sampler on PATH or next to that interpreter.
find_tools() {
  local check='import sys; sys.exit("too old") if sys.version_info < (3, 11) else print(sys.executable)'
  local found; found=$("$python" -c "$check" 2>/dev/null) && [ -n "$found" ] || fail "'$python' does not run as Python 3.11 or newer: name another one with --python PATH"
  python=$found
  pyspy=$(command -v py-spy || command -v "$(dirname "$python")/py-spy") || fail "py-spy is neither on PATH nor next to $python: pip install py-spy"
}

end() { # pid: end one of the processes that we started; kill it if it does not end within 20 s
  kill -TERM "$1" 2>/dev/null || return 0
  for _ in {1..200}; do kill -0 "$1" 2>/dev/null || return 0; sleep 0.1; done
  kill -KILL "$1" 2>/dev/null || true
}

clean_up() {
  local status=$?
  trap '' INT TERM
  for process in $sampler $load $server; do end "$process"; done 2>/dev/null
  [ -z "$scratch" ] || rm -rf "$scratch"
  exit "$status"
}

await() { # pid, log, pattern: wait for a line in the log of a process; false when the process ends, or after 20 s
  for _ in {1..400}; do
    grep -qs "$3" "$2" && return
    kill -0 "$1" 2>/dev/null || return 1
    sleep 0.05
  done
  return 1
}

last_line() { grep -v '^[[:space:]]*$' "$1" | tail -n 1 || true; }
first_error() { grep -m 1 -E '^(Error|Reason)' "$1" || last_line "$1"; }

start() {
  # The server gets a lower priority than the sampler. Otherwise the sampler would mostly get a CPU while the server
  # waits, and would see up to 20 percentage points too much waiting. The load keeps its priority: at the lower
  # priority, it would compete with the server again.
  local low='nice -n 19'
  ! chrt --idle 0 true 2>/dev/null || low='chrt --idle 0'
  $low "$python" "$here/profiling/servers.py" "$workload" >"$scratch/server" 2>&1 &
  server=$!
  await "$server" "$scratch/server" '^listening on ' || fail "the server does not start: $(last_line "$scratch/server")"
  local address; address=$(sed -n 's/^listening on //p' "$scratch/server")
  "$python" "$here/profiling/drive.py" "$workload" "${address%:*}" "${address##*:}" >"$scratch/load" 2>&1 &
  load=$!
  await "$load" "$scratch/load" '^driving' || fail "the load does not start: $(last_line "$scratch/load")"
  pid=$server
}

count() { # number: make our server print its counters, and wait until it has printed this number of lines
  [ -n "$server" ] || return 0
  kill -USR1 "$server"
  for _ in {1..100}; do [ "$(grep -c '^{' "$scratch/server")" -lt "$1" ] || return 0; sleep 0.05; done
  fail 'the server does not answer SIGUSR1 with its counters'
}

record() { # name, options of py-spy: record once; the counters are read when sampling begins and after it has ended
  local name=$1 log=$scratch/$1.sampler status=0
  shift
  "$pyspy" record -f speedscope -o "$out/$name.speedscope.json" --pid "$pid" -d "$seconds" -r "$rate" "$@" >"$log" 2>&1 &
  sampler=$!
  if await "$sampler" "$log" 'Sampling process' && [ "$name" = wall ]; then count 1; fi
  wait "$sampler" || status=$?
  sampler=''
  if [ "$status" = 0 ] && [ "$name" = wall ]; then count 2; fi
  [ "$status" = 0 ] && [ -s "$out/$name.speedscope.json" ] && return
  grep -qiE 'permission denied|operation not permitted' "$log" && fail "py-spy is not allowed to trace process $pid: run it as root, with 'docker run --cap-add SYS_PTRACE', or after 'sysctl kernel.yama.ptrace_scope=0'"
  fail "py-spy cannot sample process $pid; is it a running Python? py-spy reports: $(first_error "$log")"
}

stop() { # end the load and the server; both must end with status 0
  local status=0
  end "$load"; wait "$load" || fail "the load failed: $(last_line "$scratch/load")"
  end "$server"; wait "$server" || status=$?
  load='' server=''
  [ "$status" = 0 ] || fail "the server ended with status $status: $(last_line "$scratch/server")"
}

report() {
  "$python" -P -m perf.profiling.meta "$out" --logs "$scratch" --target "${1:-process $pid}" --seconds "$seconds" --rate "$rate" --py-spy "$pyspy"
  local why; why=$("$python" -P -m perf.profiling.phases "$out" ${1:+--counters "$scratch/server"} 2>&1 >"$scratch/table") || fail "$(last_line <(echo "$why"))"
  for view in wall cpu ${native:+native}; do "$python" -P -m perf.profiling.flame "$out" "$view"; done
  "$python" -P -m perf.profiling.page "$out"
  cat "$scratch/table"
  echo "all results: $out/index.html"
}

main() {
  parse "$@"
  find_tools
  export PYTHONPATH=${here%/*}${PYTHONPATH:+:$PYTHONPATH}
  trap clean_up EXIT; trap 'exit 130' INT; trap 'exit 143' TERM
  scratch=$(mktemp -d)
  local ours=$workload
  [ -z "$pid" ] || ours=''
  out=${out:-$here/out/${ours:-pid-$pid}-$(date +%Y%m%d-%H%M%S)}
  mkdir -p "$out" 2>/dev/null && [ -w "$out" ] || fail "cannot write to '$out': name another folder with --out DIR"
  [ -z "$ours" ] || start
  record wall --idle
  record cpu --gil
  [ -z "$native" ] || record native --native --idle
  [ -z "$ours" ] || stop
  report "$ours"
}

main "$@"
