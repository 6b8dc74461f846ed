"""A SLURM cluster with accounting on this machine, in one folder, without systemd and cgroups.

Accounting (slurmdbd on MariaDB) is needed: without it a killed job is never reported. The controller's state and the
accounting data lie in one folder, so that both are new together: job ids start again at 1, and old accounting data
would answer for them with old jobs.

    python -m experiments.tools.slurm_cluster COMMAND ...      # runs COMMAND in a new cluster and stops the cluster
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PROGRAMS = ("munged", "mariadb-install-db", "mariadbd", "mariadb", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacct")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
SLURM_CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock,cred_expire=5
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={folder}/munge/sock
AccountingStoreFlags=job_comment
JobRequeue=1
ReturnToService=2
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
SlurmctldTimeout=30
SlurmdTimeout=30
KillWait=5
MinJobAge=300
OverTimeLimit=0
PropagateResourceLimits=NONE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory={memory} State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=9
"""
DBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={db_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
"""


def missing() -> str | None:
    """Why no cluster can be started here; None when one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"no SLURM here ({', '.join(absent)} not installed; .ci/run shows the packages)"
    return None if os.geteuid() == 0 else "starting a SLURM cluster needs root"


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Starts a cluster of one node with 2 CPUs and stops it; gives the environment its clients need."""
    host = socket.gethostname().split(".")[0]
    db_port, dbd_port, ctld_port, d_port = _free_ports(4)
    ports = {"db_port": db_port, "dbd_port": dbd_port, "ctld_port": ctld_port, "d_port": d_port}
    for name in ("munge", "log", "state", "spool"):
        (folder / name).mkdir(parents=True, mode=0o755)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 100  # MiB, for launcher.mem_gb
    (folder / "slurm.conf").write_text(SLURM_CONF.format(host=host, folder=folder, memory=memory, **ports))
    (folder / "slurmdbd.conf").write_text(DBD_CONF.format(host=host, folder=folder, **ports))
    (folder / "slurmdbd.conf").chmod(0o600)
    env = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        with (folder / "log" / f"{words[0]}.out").open("wb") as log:
            daemons.append(subprocess.Popen(words, env=env, stdout=log, stderr=log, start_new_session=True))

    try:
        _start_munge(folder, start)
        _start_accounting(folder, env, db_port, start)
        start("slurmctld", "-D", "-c")
        start("slurmd", "-D")
        _wait(lambda: b"idle" in _output(env, "sinfo", "-h", "-o", "%t"), "an idle node")
        yield env
    finally:
        with suppress(Exception):
            _output(env, "scancel", "--user=root")
            _output(env, "scontrol", "shutdown")  # also stops a slurmd that a test restarted
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def kill_node(env: dict[str, str]) -> None:
    """What a power cut does: slurmd, its steps and everything in them are gone at once."""
    import psutil

    conf = Path(env["SLURM_CONF"])
    daemon = psutil.Process(int((conf.parent / "slurmd.pid").read_text()))
    inside = [one for one in psutil.process_iter() if _is_of_a_job(one, str(conf))]
    steps = {above for one in inside for above in one.parents() if above.name() == "slurmstepd"}
    for process in (daemon, *steps, *inside):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _is_of_a_job(process: Any, conf: str) -> bool:
    import psutil

    try:
        around = process.environ()
    except psutil.Error:  # it has ended, or is the kernel's
        return False
    return around.get("SLURM_CONF") == conf and "SLURM_JOB_ID" in around


def _start_munge(folder: Path, start: Callable[..., None]) -> None:
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    files = [f"--{name}-file={folder}/munge/{name.split('-')[0]}" for name in ("key", "pid", "log", "seed")]
    start("munged", "--foreground", "--force", f"--socket={folder}/munge/sock", *files)
    _wait((folder / "munge" / "sock").exists, "munged")


def _start_accounting(folder: Path, env: dict[str, str], db_port: int, start: Callable[..., None]) -> None:
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", f"--datadir={folder}/db", "--skip-test-db", "--user=root",
         "--auth-root-authentication-method=normal"],
        env=env, check=True, capture_output=True,
    )  # fmt: skip
    start(
        "mariadbd", "--no-defaults", f"--datadir={folder}/db", f"--socket={folder}/db.sock", "--user=root",
        "--bind-address=127.0.0.1", f"--port={db_port}", "--innodb-buffer-pool-size=128M",
        "--innodb-log-file-size=32M", "--innodb-lock-wait-timeout=900",
    )  # fmt: skip
    user = "'slurm'@'%'"
    sql = (
        f"create database slurm_acct_db; create user {user} identified by 'slurm'; "
        f"grant all on slurm_acct_db.* to {user}"
    )
    _wait(
        lambda: _output(env, "mariadb", "--no-defaults", f"--socket={folder}/db.sock", "-uroot", "-e", "select 1"),
        "mariadbd",
    )
    assert _output(env, "mariadb", "--no-defaults", f"--socket={folder}/db.sock", "-uroot", "-e", f"{sql}; select 1")
    start("slurmdbd", "-D")  # slurmctld dies when it is not up first
    _wait(lambda: _output(env, "sacctmgr", "-i", "-Q", "add", "cluster", "local", ok=True), "slurmdbd")


def _output(env: dict[str, str], *words: str, ok: bool = False) -> bytes:
    """What a program printed, empty when it failed; with `ok` only whether it worked."""
    done = subprocess.run(words, env=env, capture_output=True, check=False, timeout=30)
    return b"" if done.returncode else b"yes" if ok else done.stdout


def _wait(ready: Callable[[], object], what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} is not up after {seconds:.0f} s")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def main() -> int:
    """Runs a command in a new cluster and returns its exit code."""
    parser = argparse.ArgumentParser(prog="slurm_cluster", description="Runs a command in a SLURM cluster here.")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command with its words")
    command = parser.parse_args().command
    if not command:
        parser.error("no command: type, for example, python -m experiments.tools.slurm_cluster sinfo")
    if reason := missing():
        sys.exit(reason)
    with tempfile.TemporaryDirectory(prefix="s") as folder, cluster(Path(folder) / "c") as environment:
        return subprocess.call(command, env=environment)


if __name__ == "__main__":
    sys.exit(main())
