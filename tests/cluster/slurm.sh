#!/usr/bin/env bash
# A Slurm cluster on this machine, for tests: its own configuration, ports and folder, no service manager.
#
#   slurm.sh start FOLDER PORT NODES CPUS [hosts]   return when all nodes are idle
#   slurm.sh stop FOLDER                            cancel the jobs, end the daemons
#
# Nodes are n1, n2, ...: daemons on PORT + 1, PORT + 2, ... of this host, or with "hosts" one each on the hosts of
# hosts.sh, with the controller on the first. Commands find the cluster by SLURM_CONF=FOLDER/slurm.conf, with "hosts" when
# they run on such a host. Needs root, and Debian's packages slurm-wlm and munge.
set -euo pipefail

hosts=$(dirname "$(readlink -f "$0")")/hosts.sh

fail() {
  echo "slurm.sh: $*" >&2
  tail -n 20 "$folder"/log/* >&2 2>/dev/null || true
  exit 1
}

# A job that is requeued begins again only when its credential has expired: 10 s instead of 2 min. What a scheduler of
# thousands of jobs does every minute is done at once here; a node that does not answer for 10 s is down.
write_conf() {
  local i at
  cat <<END
ClusterName=test
SlurmctldHost=$([[ -n $netns ]] && echo "pc1(198.51.100.1)" || echo "$(hostname -s)(127.0.0.1)")
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=10
MailProg=/bin/true
MpiDefault=pmi2
ProctrackType=proctrack/linuxproc
TaskPlugin=$( ((cpus <= $(nproc))) && echo task/affinity || echo task/none)
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldPort=$port
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd-%n
SlurmctldTimeout=30
SlurmdTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge=600
EnforcePartLimits=ALL
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
END
  for i in $(seq "$nodes"); do
    [[ -n $netns ]] && at="NodeHostname=pc$i NodeAddr=198.51.100.$i" || at="NodeHostname=$(hostname -s) NodeAddr=127.0.0.1"
    echo "NodeName=n$i $at Port=$((port + i)) CPUs=$cpus Boards=1 SocketsPerBoard=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN"
  done
  echo "PartitionName=normal Nodes=ALL Default=YES MaxTime=1:00:00 DefaultTime=5 PriorityTier=1"
  echo "PartitionName=urgent Nodes=ALL MaxTime=1:00:00 DefaultTime=5 PriorityTier=10"
  echo "PartitionName=strict Nodes=ALL MaxTime=2 DefaultTime=1 PriorityTier=1"
}

munge_answers() { munge -n </dev/null 2>/dev/null | unmunge >/dev/null 2>&1; }

start_munge() {
  munge_answers && return
  install -d -o munge -g munge -m 0755 /run/munge
  [[ -s /etc/munge/munge.key ]] || runuser -u munge -- mungekey --create
  runuser -u munge -- munged --force </dev/null >"$folder/log/munged" 2>&1 || munge_answers || fail "munged did not start"
  for _ in $(seq 50); do munge_answers && return; sleep 0.1; done
  fail "munged does not answer"
}

there() { # where the controller is
  if [[ -e $folder/netns ]]; then "$hosts" on pc1 "$@"; else "$@"; fi
}

start() {
  local i pre=()
  mkdir -p "$folder"/{state,log}
  write_conf >"$folder/slurm.conf"
  start_munge
  if [[ -n $netns ]]; then
    "$hosts" up "$nodes"
    touch "$folder/netns"
  fi
  there slurmctld -c -f "$folder/slurm.conf" </dev/null >"$folder/log/start" 2>&1 || fail "slurmctld did not start"
  for i in $(seq "$nodes"); do
    mkdir -p "$folder/spool/n$i"
    [[ -z $netns ]] || pre=("$hosts" on "pc$i")
    "${pre[@]}" slurmd -f "$folder/slurm.conf" -N "n$i" </dev/null >>"$folder/log/start" 2>&1 || fail "slurmd n$i did not start"
  done
  for _ in $(seq 300); do
    [[ $(there sinfo -h -N -p normal -t idle -o %N 2>/dev/null | sort -u | wc -l) != "$nodes" ]] || return 0
    sleep 0.2
  done
  fail "the nodes are not idle after a minute"
}

ours() { # PID NAME: whether that process lives and has that name
  [[ -n $1 && $(cat "/proc/$1/comm" 2>/dev/null) == "$2" ]]
}

stop() {
  local file pid
  for pid in $(timeout 15 "$0" jobs "$folder" 2>/dev/null || true); do there timeout 15 scancel "$pid" || true; done
  for _ in $(seq 60); do [[ -n $(there timeout 15 squeue -h 2>/dev/null) ]] || break; sleep 0.25; done
  for file in "$folder"/slurmd-*.pid "$folder/slurmctld.pid"; do
    pid=$(cat "$file" 2>/dev/null) || continue
    ours "$pid" "$(basename "${file%%-n*}" .pid)" || continue
    kill "$pid"
    for _ in $(seq 100); do [[ -e /proc/$pid ]] || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
  done
  # A step that has outlived its node's daemon is known by the configuration in its environment.
  for pid in $(pgrep -x slurmstepd || true); do
    { tr '\0' '\n' <"/proc/$pid/environ"; } 2>/dev/null | grep -qxF "SLURM_CONF=$folder/slurm.conf" && kill -9 "$pid"
  done
  [[ ! -e $folder/netns ]] || "$hosts" down
}

command=${1:-} folder=${2:-} port=${3:-} nodes=${4:-1} cpus=${5:-1} netns=${6:-}
export SLURM_CONF=$folder/slurm.conf
case $command in
  start) start ;;
  jobs) there squeue -h -o %A | sort -u ;;
  stop) stop ;;
  *) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2 ;;
esac
