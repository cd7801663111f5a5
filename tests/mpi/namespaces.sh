# Three hosts on one machine: network namespaces on a bridge, each with its own hostname, process ids, mounts and
# /dev/shm, so that MPI takes them for machines. Sourced after jobs.sh, with `root`, `folder` and MPI set: brings them up,
# until the script ends, and sets `mpis`; or ends the script and says why it cannot.
onhost=$root/tests/mpi/onhost
switch=pysw

take_down() {
  for i in 0 1 2; do
    for pid in $(ip netns pids "pyn$i" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null || true; done
    ip netns del "pyn$i" 2>/dev/null || true
    rm -rf "/etc/netns/pyn$i"
  done
  ip netns del "$switch" 2>/dev/null || true
}

bring_up() {
  ip netns add "$switch" && ip -n "$switch" link add br0 type bridge && ip -n "$switch" link set br0 up || return 1
  for i in 0 1 2; do
    ip netns add "pyn$i" && ip -n "pyn$i" link set lo up &&
      ip link add eth0 netns "pyn$i" type veth peer name "p$i" netns "$switch" &&
      ip -n "pyn$i" addr add "10.77.0.1$i/24" dev eth0 && ip -n "pyn$i" link set eth0 up &&
      ip -n "$switch" link set "p$i" master br0 && ip -n "$switch" link set "p$i" up || return 1
    mkdir -p "/etc/netns/pyn$i"
    printf '127.0.0.1 localhost\n10.77.0.10 pyn0\n10.77.0.11 pyn1\n10.77.0.12 pyn2\n' >"/etc/netns/pyn$i/hosts"
  done
  [ "$("$onhost" pyn1 hostname)" = pyn1 ]
}

not_run() {
  echo "not run: $1"
  exit 0
}

[ "$(id -u)" -eq 0 ] || not_run 'only root may make network namespaces'
for tool in ip unshare mount; do command -v "$tool" >/dev/null || not_run "there is no $tool (iproute2, util-linux)"; done
mpis=$(installed)
[ -n "$mpis" ] || not_run "there is no mpicxx and mpirun of $MPI"
[ ! -e /run/netns/$switch ] || not_run "the namespace $switch is there already: of another run? (ip netns del $switch)"
trap 'take_down; rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
bring_up 2>"$folder/output" || not_run "namespaces cannot be made here: $(cat "$folder/output")"

mpirun_over_hosts() {  # MPI
  case $1 in
  openmpi)
    # Without keepalive a host that is gone is not missed for minutes.
    echo "$(mpirun_of openmpi) --mca plm_rsh_agent $onhost --host pyn0:2,pyn1:2,pyn2:2 --map-by node" \
      "--mca oob_tcp_keepalive_time 3 --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 3"
    ;;
  mpich)
    # Its default transport looks for the other ranks in this machine's memory.
    echo "env UCX_TLS=tcp,self $(mpirun_of mpich) -launcher rsh -launcher-exec $onhost -hosts pyn0,pyn1,pyn2"
    ;;
  esac
}

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
