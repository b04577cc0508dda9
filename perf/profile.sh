#!/usr/bin/env bash
# Profile a server: show where a turn of the reactor spends its time, by phase, as a table and flame graphs. By default
# there are two recordings, one after the other: wall time, then the CPU time of Python code. With --kernel there is one,
# of whole stacks from Python through C into the kernel.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
usage='usage: perf/profile.sh [--workload keepalive|churn|seed|idle|pump|timers] [--seconds 15] [--rate 499]
                       [--recorder auto|py-spy|tachyon|perf] [--kernel] [--native] [--diff BASELINE]
                       [--python PATH] [--out DIR] [--pid PID]

  --workload  the server to start, load and profile (default keepalive)
  --seconds   length of each recording          --rate   samples a second; odd, to avoid keeping step with timers
  --recorder  what takes the samples: py-spy (pip install py-spy); tachyon, which is part of Python 3.15; perf
              (apt-get install linux-perf). auto (the default) takes the first of these that is there
  --kernel    the same as --recorder perf: stacks from Python through C into the kernel, whole from Python 3.15 on
  --native    record a third time, with the frames of C functions; only py-spy can do that
  --diff      compare with an earlier profile, made by the same recorder: BASELINE is its folder
  --python    interpreter of the server         --pid    attach to this process; no process is started or ended
  --out       folder for the results (default perf/out/WORKLOAD-DATE)'

workload='' seconds=15 rate=499 python=python3 native='' out='' pid='' recorder=auto diff=''
server='' load='' sampler='' scratch='' minor='' version=''

fail() { echo "profile.sh: $1" >&2; exit 1; }
mistyped() { echo "profile.sh: $1 (see perf/profile.sh --help)" >&2; exit 2; }

parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      --help) echo "$usage"; exit 0 ;;
      --native) native=yes; shift; continue ;;
      --kernel) recorder=perf; shift; continue ;;
      --workload | --seconds | --rate | --python | --out | --pid | --recorder | --diff) [ $# -ge 2 ] || mistyped "$1 needs a value" ;;
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
  case $recorder in
    auto | py-spy) [ -z "$native" ] || recorder=py-spy ;;
    tachyon) [ -z "$native" ] || mistyped 'tachyon sees no C functions: leave out --native, or take --kernel' ;;
    perf) [ -z "$native" ] || mistyped 'perf always records C functions: leave out --native' ;;
    *) mistyped "there is no recorder '$recorder'" ;;
  esac
  [ -z "$diff" ] || [ -f "$diff/meta.json" ] || mistyped "--diff needs the folder of a profile, and '$diff' has no meta.json"
}

# Find the interpreter itself, not a shim for it, and the recorder.
find_tools() {
  local check='import sys; sys.exit("too old") if sys.version_info < (3, 11) else print(sys.executable)'
  local found; found=$("$python" -c "$check" 2>/dev/null) && [ -n "$found" ] || fail "'$python' does not run as Python 3.11 or newer: name another one with --python PATH"
  python=$found
  minor=$("$python" -c 'import sys; print(sys.version_info[1])')
  local each
  if [ "$recorder" = auto ]; then
    for each in py-spy tachyon perf; do if find_recorder "$each"; then recorder=$each; return; fi; done
    fail "no recorder: install one with pip install py-spy, or use Python 3.15 or newer, which has its own"
  fi
  find_recorder "$recorder" && return
  case $recorder in
    py-spy) fail "py-spy is neither on PATH nor next to $python: pip install py-spy" ;;
    tachyon) fail "$python has no module profiling.sampling: name Python 3.15 or newer with --python PATH" ;;
    perf) fail 'perf is not on PATH, or does not run on this kernel: apt-get install linux-perf' ;;
  esac
}

find_recorder() { # name: find the recorder
  case $1 in
    py-spy)
      pyspy=$(command -v py-spy || command -v "$(dirname "$python")/py-spy") ;;
    tachyon)
      version=$("$python" -c 'import platform, profiling.sampling; print("profiling.sampling of Python", platform.python_version())' 2>/dev/null) &&
        [[ $version = profiling.sampling* ]] ;;
    perf)
      perf=$(command -v perf) && version=$("$perf" --version 2>/dev/null) ;;
  esac
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
  [ "$recorder" != perf ] || [ -z "$server" ] || rm -f "/tmp/perf-$server.map"
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
  local priority='nice -n 19' options=''
  ! chrt --idle 0 true 2>/dev/null || priority='chrt --idle 0'
  if [ "$recorder" = perf ]; then
    # perf needs no CPU of its own, because the kernel takes the samples. Where that is allowed, the server gets a higher
    # priority, so that a phase lasts as long as it runs.
    priority=''
    ! nice -n -20 true 2>/dev/null || priority='nice -n -20'
    [ "$minor" -lt 12 ] || options='-X perf'
  fi
  $priority "$python" $options "$here/profiling/servers.py" "$workload" >"$scratch/server" 2>&1 &
  server=$!
  await "$server" "$scratch/server" '^listening on ' || fail "the server does not start: $(last_line "$scratch/server")"
  local address; address=$(sed -n 's/^listening on //p' "$scratch/server")
  "$python" "$here/profiling/drive.py" "$workload" "${address%:*}" "${address##*:}" >"$scratch/load" 2>&1 &
  load=$!
  await "$load" "$scratch/load" '^driving' || fail "the load does not start: $(last_line "$scratch/load")"
  pid=$server
}

count() { # number, "sent": make our server print its counters, and wait until it has printed this number of lines
  [ -n "$server" ] || return 0
  [ "${2-}" = sent ] || kill -USR1 "$server"
  for _ in {1..100}; do [ "$(grep -c '^{' "$scratch/server")" -lt "$1" ] || return 0; sleep 0.05; done
  fail 'the server does not answer SIGUSR1 with its counters'
}

record() { # view: record once; the counters are read when sampling begins and after it has ended
  local view=$1 log=$scratch/$1.sampler status=0 command
  sampling "$view"
  if [ "$recorder" = tachyon ] && [ "$view" = wall ]; then count 1; fi
  "${command[@]}" >"$log" 2>&1 &
  sampler=$!
  if [ "$recorder" = py-spy ] && await "$sampler" "$log" 'Sampling process' && [ "$view" = wall ]; then count 1; fi
  wait "$sampler" || status=$?
  sampler=''
  if [ "$status" = 0 ] && [ "$view" = wall ]; then count 2; fi
  if [ "$status" = 0 ] && [ "$view" = kernel ]; then count 2 sent; fi
  if [ "$status" = 0 ]; then convert "$view" >>"$log" 2>&1 || status=$?; fi
  [ "$status" = 0 ] && [ -s "$out/$view.speedscope.json" ] && return
  grep -qiE 'permission|not permitted|No permission' "$log" && fail "$recorder is not allowed to trace process $pid: run it as root, with 'docker run --cap-add SYS_PTRACE' (perf: PERFMON), or after 'sysctl kernel.yama.ptrace_scope=0' (perf: kernel.perf_event_paranoid=1)"
  fail "$recorder cannot sample process $pid; is it a running Python? $recorder reports: $(first_error "$log")"
}

sampling() { # view: set `command` to the command that records it
  case $recorder in
    py-spy)
      command=("$pyspy" record -f speedscope -o "$out/$1.speedscope.json" --pid "$pid" -d "$seconds" -r "$rate")
      case $1 in wall) command+=(--idle) ;; cpu) command+=(--gil) ;; native) command+=(--native --idle) ;; esac ;;
    tachyon) # it stops the process for each sample, as py-spy does; otherwise a tenth of the samples are torn
      command=("$python" -m profiling.sampling attach -a --blocking --binary -o "$scratch/$1.bin" -d "$seconds" -r "$rate")
      case $1 in wall) command+=(--mode wall) ;; cpu) command+=(--mode gil) ;; esac
      command+=("$pid") ;;
    perf) # it needs a second to start and to end, so what it runs in between has the counters printed
      local wait="sleep $seconds"
      [ -z "$server" ] || wait="kill -USR1 $server; sleep $seconds; kill -USR1 $server"
      command=("$perf" record -g --no-buildid-cache -F "$rate" -p "$pid" -o "$scratch/$1.data" -- sh -c "$wait") ;;
  esac
}

convert() { # view: make the speedscope file of a recording; py-spy has written it itself
  case $recorder in
    tachyon)
      for format in collapsed jsonl; do "$python" -m profiling.sampling replay "--$format" -o "$scratch/$1.$format" "$scratch/$1.bin" || return; done
      "$python" -P -m perf.profiling.tachyon "$scratch/$1.collapsed" "$scratch/$1.jsonl" "$out/$1.speedscope.json" --pid "$pid" ;;
    perf)
      "$perf" script -F tid,time,ip,sym,dso -i "$scratch/$1.data" >"$scratch/$1.script" &&
        "$python" -P -m perf.profiling.perf_script "$scratch/$1.script" "$out/$1.speedscope.json" --pid "$pid" ;;
  esac
}

stop() { # end the load and the server; both must end with status 0
  local status=0
  end "$load"; wait "$load" || fail "the load failed: $(last_line "$scratch/load")"
  end "$server"; wait "$server" || status=$?
  [ "$recorder" != perf ] || rm -f "/tmp/perf-$server.map"
  load='' server=''
  [ "$status" = 0 ] || fail "the server ended with status $status: $(last_line "$scratch/server")"
}

report() {
  local table=phases
  [ "$recorder" != py-spy ] || version=$("$pyspy" --version 2>/dev/null) || version=py-spy
  [ "$recorder" != perf ] || table=kernel
  "$python" -P -m perf.profiling.meta "$out" --logs "$scratch" --target "${1:-process $pid}" --seconds "$seconds" --rate "$rate" --recorder "$version"
  local why; why=$("$python" -P -m "perf.profiling.$table" "$out" ${1:+--counters "$scratch/server"} 2>&1 >"$scratch/table") || fail "$(last_line <(echo "$why"))"
  for view in "${views[@]}"; do "$python" -P -m perf.profiling.flame "$out" "$view"; done
  if [ -n "$diff" ]; then
    echo >>"$scratch/table"
    why=$("$python" -P -m perf.profiling.diff "$out" "$diff" 2>&1 >>"$scratch/table") || fail "$(last_line <(echo "$why"))"
  fi
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
  local ours=$workload views=(wall cpu ${native:+native})
  [ "$recorder" != perf ] || views=(kernel)
  [ -z "$pid" ] || ours=''
  out=${out:-$here/out/${ours:-pid-$pid}-$(date +%Y%m%d-%H%M%S)}
  mkdir -p "$out" 2>/dev/null && [ -w "$out" ] || fail "cannot write to '$out': name another folder with --out DIR"
  [ -z "$ours" ] || start
  for view in "${views[@]}"; do record "$view"; done
  [ -z "$ours" ] || stop
  report "$ours"
}

main "$@"
