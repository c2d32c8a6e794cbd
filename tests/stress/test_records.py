"""A sweep that writes a record is killed again and again, and loses at most the run in progress."""

from kills import rounds
from programs import Program
from warm import LOADED, count

SWEEP = """
import dataclasses, itertools, pickle, sys
import parcompute as pc
from parcompute.experiments import measure
from parcompute.record.record import Record, read
from parcompute.values.sweep import Configuration, Sweep

path, template = sys.argv[1:]
ways = (
    Configuration("serial", 1, 1, "dynamic", "", "strong", 500),
    Configuration("threads", 2, 1, "dynamic", "", "strong", 500),
    Configuration("processes", 1, 1, "dynamic", "fork", "strong", 500),
)

def size(block):
    return block.size

def count(executor, n_items, seed):
    return executor.reduce_blocks(size, n_items=n_items, block_items=10)

def truth(n, n_items):
    return pc.Check(n, n_items, 0, "equality")

def runs_after(done):
    # What is measured takes long, compared with what is killed here, the writing: most victims write copies of a run.
    if not template:
        yield from measure.measure(Sweep(ways, 500, 1), count, truth, "here", done=done)
    with open(template, "rb") as file:
        run = pickle.load(file)
    for number in itertools.count(len(done)):
        yield dataclasses.replace(run, round=1_000 + number)

with Record.open(path, "counting") as record:
    record.add_provenance("here", {"host": "node7"})
    for run in runs_after(read(path).runs):
        print(record.append(run), flush=True)
"""

KILLED = f"""{LOADED}
source = {SWEEP!r}
import pickle, shutil

chance, n_kills = random.Random(sys.argv[1]), int(sys.argv[2])
ENDS = "SIGKILL to it alone", "SIGTERM to it alone", "SIGKILL to the group"

def begun(path, template, n):
    # Return a victim that has written n runs, and how long that has taken.
    began, victim = time.perf_counter(), Victim(source, path, template)
    for _ in range(n):
        require(victim.line(), "lost runs", "it has ended by itself")
    return victim, time.perf_counter() - began

# How long some runs take here and now, so that a slow machine too gets some done between two kills.
os.mkdir("first")
victim, measured_s = begun("first/first.h5", "", 3)
victim.ended("SIGKILL to the group")
with open("template", "wb") as file:
    pickle.dump(read("first/first.h5", timelines=True).runs[-1], file)
victim, copied_s = begun("first/first.h5", "template", 3)
victim.ended("SIGKILL to the group")
shutil.rmtree("first")

n_runs = 0
for n in range(n_kills):
    path, end = f"{{n // 10}}.h5", chance.choice(ENDS)
    n_runs *= n % 10 > 0
    template, some_s = chance.choice([("", measured_s)] + [("template", copied_s)] * 19)
    status, lines = Victim(source, path, template).ended(end, chance.uniform(0, 1.3 * some_s))
    require(status < 0, "lost runs", "it has ended by itself")
    told()
    if not os.path.exists(path):
        require(not lines, "lost runs", "there is no record")
        continue
    n_reported = int(lines[-1]) + 1 if lines else n_runs
    runs = read(path, timelines=True).runs
    what = f"{{n_reported}} were told, {{len(runs)}} are there"
    require(n_reported <= len(runs) <= n_reported + 1, "lost runs", what)
    require(all(len(run.timelines[0].chunks) == 50 for run in runs), "lost runs", "a timeline is not whole")
    each = {{(run.round, run.configuration) for run in runs}}
    require(len(each) == len(runs), "lost runs", "a run was made twice")
    require(all(run.verified for run in runs), "wrong bits", "a run is not verified")
    n_runs = len(runs)
    if n % 10 == 9 or n == n_kills - 1:
        Record.open(path, "counting").close()
        left = set(os.listdir()) - {{path, "errors", "program.py", "template", "temporary"}}
        require(not left, "leaks", f"{{left}}")
        os.unlink(path)
print("over")
"""


@rounds("writer", records=(8, 900, 6))
def test_a_record_survives_kills_at_random_moments(writer, n_rounds, chance, tally, tmp_path):
    tally.kind = f"writers of {writer}"
    with Program(KILLED, tmp_path, chance.getrandbits(32), n_rounds) as program:
        count(program, tally)
