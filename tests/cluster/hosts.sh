#!/usr/bin/env bash
# Several hosts on one machine, for what happens when one of them fails.
#
#   hosts.sh up N        make hosts pc1 ... pcN, with the addresses 198.51.100.1 ... N
#   hosts.sh on HOST CMD...   run a command there, in the current folder
#   hosts.sh cut HOST    take it off the network; what runs there goes on
#   hosts.sh heal HOST   and put it back
#   hosts.sh down        end what runs there, and remove them
#
# A host is a network namespace with a host name, an /etc/hosts and a /dev/shm of its own, at a bridge that leads to the
# other hosts and to nowhere else. Files, processes and CPUs are the machine's: the files are what a cluster has on its
# shared file system. Needs root and iproute2.
set -euo pipefail

run=${HOSTS_RUN:-/run/parcompute-hosts}
net=198.51.100 # for documentation only: no route leads there

fail() { echo "hosts.sh: $*" >&2; exit 1; }

up() {
  local n=$1 i host
  [[ ! -e $run ]] || fail "$run exists: hosts are up"
  mkdir -p "$run"
  ip netns add pcswitch
  ip -n pcswitch link add bridge type bridge
  ip -n pcswitch link set bridge up
  for i in $(seq "$n"); do
    host=pc$i
    { echo "127.0.0.1 localhost"; for j in $(seq "$n"); do echo "$net.$j pc$j"; done; } >"$run/$host.hosts"
    ip netns add "$host"
    ip link add eth0 netns "$host" type veth peer name "$host" netns pcswitch
    ip -n "$host" addr add "$net.$i/24" dev eth0
    ip -n "$host" link set eth0 up
    ip -n "$host" link set lo up
    ip -n pcswitch link set "$host" master bridge up
    # One process holds the other namespaces. `ip netns exec` would mount a new /sys, without control groups.
    setsid nsenter --net="/run/netns/$host" unshare --uts --ipc --mount --propagation private sh -c '
      hostname "$0" && mount --bind "$1/$0.hosts" /etc/hosts && mount -t tmpfs -o size=512m,mode=1777 tmpfs /dev/shm &&
      echo $$ >"$1/$0.pid" && exec sleep infinity' "$host" "$run" </dev/null >"$run/$host.log" 2>&1 &
  done
  for i in $(seq "$n"); do
    for _ in $(seq 100); do [[ ! -s $run/pc$i.pid ]] || continue 2; sleep 0.1; done
    cat "$run/pc$i.log" >&2
    fail "pc$i did not come up"
  done
}

on() {
  local pid
  pid=$(cat "$run/$1.pid") || fail "no host $1"
  shift
  exec nsenter -t "$pid" -n -u -i -m -- sh -c 'cd "$0"; exec "$@"' "$PWD" "$@"
}

down() {
  local file host
  for file in "$run"/*.hosts; do
    [[ -e $file ]] || continue
    host=$(basename "$file" .hosts)
    ip netns pids "$host" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
    for _ in $(seq 50); do [[ -n $(ip netns pids "$host" 2>/dev/null) ]] || break; sleep 0.1; done
    ip netns del "$host" 2>/dev/null || true
  done
  ip netns del pcswitch 2>/dev/null || true
  rm -rf "$run"
}

case ${1:-} in
  up) up "$2" ;;
  on) shift; on "$@" ;;
  cut) ip -n pcswitch link set "$2" down ;;
  heal) ip -n pcswitch link set "$2" up ;;
  down) down ;;
  *) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2 ;;
esac
