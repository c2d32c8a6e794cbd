"""A program that keeps a checkpoint is killed again and again, and goes on each time where it was."""

from kills import rounds
from programs import Program
from warm import LOADED, count

CHECKPOINTED = """
import hashlib, os, pickle, sys, time
import numpy as np
import parcompute as pc
from parcompute.jobs import checkpoint

checkpoint.EVERY_S, checkpoint.COST = 0.004, 1  # a job of a tenth of a second is kept many times
verb, backend, method, workers, schedule, path = sys.argv[1:]
x = np.random.default_rng(1).standard_normal(40_000)

def noted(block):
    fd = os.open("calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, block.index.to_bytes(8, "little"))
    os.close(fd)
    time.sleep(0.002)  # the work

def rows(x, block, rng):
    noted(block)
    return x + rng.random(len(x)), x > 0

def partial(x, block, rng):
    noted(block)
    return x.sum() * rng.random(), x[:3]

def objects(x, block, rng):
    noted(block)
    return [block.index, rng.random(), "text" * 1000] if block.index % 3 else rng.random()

def joined(a, b):
    return hashlib.sha256(repr((a, b)).encode()).hexdigest()

options = {"start_method": method} if backend == "processes" else {}
with pc.Executor(int(workers), backend=backend, schedule=schedule, **options) as ex:
    more = {"block_items": 1000, "seed": 3, "checkpoint": path or None}
    if verb == "rows":
        value = [array.tobytes() for array in ex.map_blocks(rows, x, **more)]
    elif verb == "sums":
        value = ex.reduce_blocks(partial, x, **more)
    else:
        value = ex.reduce_blocks(objects, x, combine=joined, **more)
print(hashlib.sha256(pickle.dumps(value)).hexdigest(), flush=True)
"""

KILLED = f"""{LOADED}
source = {CHECKPOINTED!r}
from pathlib import Path

chance, n_kills = random.Random(sys.argv[1]), int(sys.argv[2])
path, calls = Path("job.h5"), Path("calls")
ENDS = "SIGKILL to it alone", "SIGTERM to it alone", "SIGKILL to the group"

def kept_blocks():
    # Return the blocks that the journal has.
    if not path.exists():
        return set()
    file = checkpoint_file.CheckpointFile(path)
    try:
        return {{index for first, stop, _, _ in file.records() for index in range(first, stop)}}
    finally:
        file.close()

def one(end, delay_s, *options):
    # Run the job until it ends; return its answer, if it has one, and what it has computed.
    calls.unlink(missing_ok=True)
    status, lines = Victim(source, *options).ended(end, delay_s)
    if status < 0 and end:
        told()
    computed = np.fromfile(calls, "<i8").tolist() if calls.exists() else []
    require(len(computed) == len(set(computed)), "lost runs", f"{{computed}} were computed twice")
    return status, lines[-1] if lines else None, set(computed)

n, expected = 0, {{}}
while n < n_kills:
    verb = chance.choice(["rows", "sums", "objects"])
    if verb not in expected:
        _, expected[verb], _ = one(None, 0, verb, "serial", "", 1, "guided", "")
    path.unlink(missing_ok=True)
    answer, n_left = None, chance.randint(2, 9)
    while answer is None:
        finished = kept_blocks()
        backend = chance.choice(["processes"] * 4 + ["threads", "serial"])
        method = chance.choice(["fork"] * 14 + ["forkserver", "spawn"])
        schedule = chance.choice(["static", "dynamic,2", "guided"])
        end, delay_s = chance.choice(ENDS) if n_left else None, chance.choice([0.02, 0.06, 0.15]) * chance.random()
        workers = 1 if backend == "serial" else chance.randint(1, 2)
        status, answer, computed = one(end, delay_s, verb, backend, method, workers, schedule, path)
        n_left -= end is not None
        n += status < 0
        again = computed & finished
        require(not again, "lost runs", f"{{again}} were in the file and were computed again; {{backend}} {{method}}")
    what = f"{{verb}}, {{backend}}, {{method}}, {{schedule}}"
    require(answer == expected[verb], "wrong bits", what)
    require(kept_blocks() == computed | finished == set(range(40)), "lost runs", what)
    left = {{file.name for file in Path().iterdir()}} - {{"calls", "errors", "job.h5", "program.py", "temporary"}}
    require(not left, "leaks", f"{{left}}; {{what}}")
print("over")
"""


@rounds("writer", checkpoints=(5, 1_500, 10))
def test_a_checkpoint_survives_kills_at_random_moments(writer, n_rounds, chance, tally, tmp_path):
    tally.kind = f"writers of {writer}"
    with Program(KILLED, tmp_path, chance.getrandbits(32), n_rounds) as program:
        count(program, tally)
