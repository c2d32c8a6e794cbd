"""Workers, nodes, cables, the scheduler and the caller are lost at random moments: the same bits or a clear error."""

import contextlib
import sys
import time

import cloudpickle
import engines
import numpy as np
import psutil
import pytest

import parcompute as pc
from parcompute.backends.nodes import peers

# The programs on the hosts can import the package, but not its tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.slow

N_ITEMS, BLOCK_ITEMS = 60_000, 100


def slow(x, block, rng, pause_s, calls):
    time.sleep(pause_s)
    if calls is not None:
        with open(calls, "ab", buffering=0) as file:  # each write is one piece, from any process
            file.write(b".")
    return x + rng.standard_normal(len(x)) * x.sum()


def job(executor, pause_s=0.01, calls=None, **more):
    """Compute 600 blocks, in about a second on six workers."""
    x = np.random.default_rng(3).standard_normal(N_ITEMS)
    return executor.map_blocks(slow, x, args=(pause_s, calls), block_items=BLOCK_ITEMS, seed=7, **more)


@pytest.fixture(scope="module")
def expected():
    with pc.Executor(backend="serial") as executor:
        return job(executor, 0.0).tobytes()


def again_and_again(options, folder):
    """Compute jobs until a file appears; return the results, and who has computed what in each."""
    found = []
    with pc.Executor(2, retries=50, **options) as executor:
        (folder / "pids").write_text(" ".join(map(str, executor.worker_pids)))
        while not (folder / "enough").exists():
            result = job(executor)
            timeline = executor.timeline
            hosts = sorted({node.host for node in executor.nodes})
            found.append((result.tobytes(), len(timeline.deaths), hosts))
            (folder / "jobs").write_text(str(len(found)))
    return found


class Campaign:
    """Jobs of one program on a cluster, and what is done to it meanwhile."""

    def __init__(self, dask, folder, expected):
        self.dask, self.folder, self.expected = dask, folder, expected
        self.program = dask.start(again_and_again, folder)

    def __enter__(self):
        try:
            self.wait_for_jobs(1)
        except BaseException:
            self.program.end()
            raise
        return self

    def n_jobs(self):
        return int((self.folder / "jobs").read_text() or 0) if (self.folder / "jobs").exists() else 0

    def wait_for_jobs(self, n):
        """Wait until so many more jobs are done."""
        until, n = time.monotonic() + engines.HANGS_S, n + self.n_jobs()
        while self.n_jobs() < n:
            assert self.program.process.poll() is None, self.program.output()
            assert time.monotonic() < until, "hangs: " + self.program.output() + self.dask.logs()
            time.sleep(0.02)

    def __exit__(self, kind, *_):
        (self.folder / "enough").touch()
        if kind is not None:
            print(self.program.output(), self.dask.logs())
            self.program.end()
            return
        self.found = self.program.answer()
        for result, _, _ in self.found:
            assert result == self.expected

    @property
    def n_deaths(self):
        return sum(deaths for _, deaths, _ in self.found)


def crew(hosts, name):
    """Return the workers on a host."""
    return [p for p in hosts.processes(name) if "_serve(" in line(p) and "_serve(" in line(psutil.Process(p.ppid()))]


def node(hosts, name):
    """Return the process of the Dask worker on a host."""
    return [p for p in hosts.processes(name) if "spawn_main" in line(p)]


def line(process):
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def kill_one(chance, processes):
    """Kill one of some processes, if there is one."""
    if processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            chance.choice(processes).kill()
            return 1
    return 0


class Events:
    """What happens to a cluster."""

    def __init__(self, dask, chance, tally):
        self.dask, self.hosts, self.chance, self.tally = dask, dask.hosts, chance, tally
        self.n_joined = 0

    def node_killed(self, campaign):
        self.tally.kills += kill_one(self.chance, node(self.hosts, self.chance.choice(self.hosts.names)))

    def worker_killed(self, campaign):
        self.tally.kills += kill_one(self.chance, crew(self.hosts, self.chance.choice(self.hosts.names)))

    def host_joined(self, campaign):
        self.n_joined += 1
        self.dask.add_worker(self.chance.choice(self.hosts.names), f"late-{self.n_joined}")
        if leaves := self.dask.processes.get(f"late-{self.n_joined - LATE}"):  # its nanny would start it again for ever
            leaves.terminate()

    def cable_cut(self, campaign):
        name = self.chance.choice(self.hosts.names[1:])
        while not (alone := crew(self.hosts, name)):  # it has just been killed, and comes again
            campaign.wait_for_jobs(1)
        self.hosts.cut(name)
        try:
            campaign.wait_for_jobs(2)
            _, left = psutil.wait_procs(alone, timeout=engines.HANGS_S)
        finally:
            self.hosts.heal(name)
        assert not left, "the crew of a host that is cut off goes on"


# So many hosts that have joined stay; one more, and the oldest of them leaves.
LATE = 3
KINDS = ("worker_killed", "node_killed", "host_joined", "cable_cut")
PIECE = [pytest.mark.stress, pytest.mark.timeout(1200)]


@pytest.fixture
def lasting(hosts):
    """A cluster for one test, after which it is not what it was."""
    with contextlib.closing(engines.OnDask(hosts)) as dask:
        yield dask


@pytest.mark.parametrize("n", [pytest.param(1), pytest.param(20, marks=PIECE)])
def test_what_is_lost_and_comes_in_the_middle_of_jobs_changes_nothing(lasting, tmp_path, expected, chance, tally, n):
    kinds = [*KINDS] * n
    chance.shuffle(kinds)
    events = Events(lasting, chance, tally)
    with Campaign(lasting, tmp_path, expected) as campaign:
        for kind in kinds:
            time.sleep(chance.uniform(0, 1.5))  # at which moment of a job it comes is the point
            getattr(events, kind)(campaign)
            campaign.wait_for_jobs(2)
    assert campaign.n_deaths > 0


def checkpointed(options, folder):
    """Compute a job in three seconds or more; return its bytes, or in words why it was lost."""
    with pc.Executor(2, **options) as executor:
        peers.NOBODY_S = 3.0  # from here on nobody comes back, and it is waited for twice
        calls, file = folder / "calls", folder / "checkpoint.h5"
        try:
            return job(executor, 0.03, str(calls), checkpoint=file).tobytes()
        except pc.WorkerLost as lost:
            with pytest.raises(pc.WorkerLost, match="no node is left"):
                executor.submit(len, ()).result(engines.HANGS_S)
            return str(lost)


def n_calls(folder):
    path = folder / "calls"
    return path.stat().st_size if path.exists() else 0


def wait_for_calls(program, folder, n):
    """Wait until so many blocks have been computed."""
    until = time.monotonic() + engines.HANGS_S
    while n_calls(folder) < n:
        assert program.process.poll() is None, program.output()
        assert time.monotonic() < until, "hangs: " + program.output()
        time.sleep(0.01)


def continued(engine, folder, expected):
    """Check that a job goes on where its checkpoint is."""
    n_before = n_calls(folder)
    assert engine.run(checkpointed, folder) == expected
    return n_calls(folder) - n_before


@pytest.mark.parametrize("n", [pytest.param(1), pytest.param(20, marks=PIECE)])
def test_without_its_scheduler_a_job_is_finished_or_lost_and_can_be_continued(hosts, tmp_path, expected, chance, n):
    for number in range(n):
        folder = tmp_path / str(number)
        folder.mkdir()
        with contextlib.closing(engines.OnDask(hosts)) as dask:
            program = dask.start(checkpointed, folder)
            wait_for_calls(program, folder, chance.randrange(1, 550))
            dask.scheduler.kill()
            answer = program.answer()
        n_before = n_calls(folder)
        if answer != expected:
            assert "no node is left" in answer
            assert "scheduler" in answer
            with contextlib.closing(engines.OnDask(hosts)) as dask:
                n_more = continued(dask, folder, expected)
            assert n_more + n_before < 600 + 6 * 25  # what the workers of three nodes had in hand


@pytest.mark.parametrize("n", [pytest.param(1), pytest.param(20, marks=PIECE)])
def test_the_crews_of_a_killed_caller_end(dask, hosts, tmp_path, chance, tally, n):
    for number in range(n):
        folder = tmp_path / str(number)
        folder.mkdir()
        program = dask.start(checkpointed, folder)
        try:
            wait_for_calls(program, folder, chance.randrange(1, 500))
            alone = [process for name in hosts.names for process in crew(hosts, name)]
            program.process.kill()
            tally.kills += 1
            _, left = psutil.wait_procs(alone, timeout=10)
        finally:
            program.end()
        assert len(alone) == 6
        assert not left


@pytest.mark.parametrize("n", [pytest.param(1), pytest.param(20, marks=PIECE)])
def test_a_killed_rank_ends_the_program_and_it_goes_on_from_its_checkpoint(
    mpi, hosts, tmp_path, expected, chance, tally, n
):
    for number in range(n):
        folder = tmp_path / str(number)
        folder.mkdir()
        program = mpi.start(checkpointed, folder)
        wait_for_calls(program, folder, chance.randrange(300, 550))
        ranks = [p for name in hosts.names for p in hosts.processes(name) if "parcompute.mpi" in line(p)]
        ranks = [rank for rank in ranks if "hydra_pmi_proxy" in line(rank.parent())]
        alone = [process for name in hosts.names for process in crew(hosts, name)]
        assert (len(ranks), len(alone)) == (3, 6)
        chance.choice(ranks).kill()
        tally.kills += 1
        with pytest.raises(RuntimeError, match="ended with"):
            program.answer()
        _, left = psutil.wait_procs(alone, timeout=10)
        assert not left
        assert 0 < continued(mpi, folder, expected) < 600
