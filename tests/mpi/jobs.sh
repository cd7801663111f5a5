# What the scripts here share: how a program is built, started by mpirun, and judged. They set `root` and `folder`.

failures=0

installed() {  # the MPIs that there are
  for mpi in ${MPI:-openmpi mpich}; do
    if command -v "mpicxx.$mpi" >/dev/null && command -v "mpirun.$mpi" >/dev/null; then echo "$mpi"; fi
  done
}

build() {  # MPI PROGRAM SOURCE [OPTION...]
  compiler=mpicxx.$1 output=$2 file=$3
  shift 3
  # shellcheck disable=SC2086
  OMPI_CXX=${CXX:-g++} MPICH_CXX=${CXX:-g++} "$compiler" -std=c++20 -Wall -Wextra -Wpedantic -Wconversion -Wshadow \
    -Werror ${CXXFLAGS:-} "$@" -I"$root/include" "$file" -o "$output" -lfmt -lsqlite3 -pthread
}

mpirun_of() {  # MPI: the command; Open MPI would count cores, mind being root, and bind two ranks to a core each
  case $1 in
  openmpi) echo "mpirun.openmpi --oversubscribe --bind-to none --allow-run-as-root" ;;
  mpich) echo "mpirun.mpich" ;;
  esac
}

fresh() {  # the empty folder of a job
  rm -rf "$folder/job"
  mkdir "$folder/job"
}

# judge NAME LIMIT passes|fails TEXT COMMAND...: runs it, says in one line what became of it, and how when that was wrong.
judge() {
  name=$1 limit=$2 ending=$3 text=$4
  shift 4
  begin=$(date +%s) rc=0
  timeout -k 5 "$limit" "$@" </dev/null >"$folder/output" 2>&1 &
  wait $! || rc=$?  # so that a signal ends this script at once
  verdict "$name" "$limit" "$ending" "$text" "$rc" "$begin"
}

verdict() {  # NAME LIMIT passes|fails TEXT RC BEGIN
  seconds=$(($(date +%s) - $6)) ok=true
  [ "$seconds" -lt "$2" ] || ok=false
  if [ "$3" = passes ]; then [ "$5" -eq 0 ] || ok=false; else [ "$5" -ne 0 ] || ok=false; fi
  [ -z "$4" ] || grep -qF -e "$4" "$folder/output" || ok=false
  if $ok; then
    echo "ok      $1 ($seconds s)"
  else
    failures=$((failures + 1))
    echo "FAILED  $1: ended with $5 after $seconds s; expected: $3 within $2 s, and says '$4'"
    sed 's/^/        /' "$folder/output"
  fi
}

# disturb NAME LIMIT HARM COMMAND...: starts a checkpointed job, does HARM to it in full flight, after which it must end
# with an error within LIMIT seconds; then the same job goes on where it was.
disturb() {
  name=$1 limit=$2 harm=$3
  shift 3
  fresh
  timeout -k 5 120 "$@" </dev/null >"$folder/output" 2>&1 &
  job=$!
  tries=0
  until [ "$(($(wc -c 2>/dev/null <"$folder/job/runs" || echo 0)))" -ge 1600 ]; do  # 200 items
    tries=$((tries + 1))
    [ "$tries" -lt 600 ] || break
    sleep 0.1
  done
  "$harm"
  begin=$(date +%s) rc=0
  wait "$job" || rc=$?
  verdict "$name: the job ends" "$limit" fails '' "$rc" "$begin"
}
