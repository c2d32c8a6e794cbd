"""A program is killed at a random moment, alone or with its whole group, and leaves no process, segment or file."""

from kills import rounds
from programs import JOBS, Program
from warm import ENDS, LOADED, count

BUSY = f"""{JOBS}
print("begins", flush=True)
while True:
    with an_executor() as ex:
        for _ in range(chance.randrange(2, 12)):
            one_job(ex)
"""

KILLED = f"""{LOADED}
source = {BUSY!r}
method, end, chance, n_kills = sys.argv[1], sys.argv[2], random.Random(sys.argv[3]), int(sys.argv[4])
for _ in range(n_kills):
    victim = Victim(source, method, chance.getrandbits(32))
    require(victim.line() == "begins\\n", "lost runs", "it does not begin")
    status, _ = victim.ended(end, chance.choice([0.05, 0.2, 0.8]) * chance.random())
    require(status < 0, "lost runs", f"it has ended with {{status}}")
    told()
print("over")
"""


def killed(start_method, end, n_kills, chance, tally, tmp_path):
    with Program(KILLED, tmp_path, start_method, end, chance.getrandbits(32), n_kills) as program:
        count(program, tally)


@rounds("start_method", fork=(1, 600, 6), forkserver=(1, 300, 4), spawn=(1, 100, 2))
def test_a_parent_that_is_killed_leaves_nothing(start_method, n_rounds, chance, tally, tmp_path):
    tally.kind = f"parents, {start_method}"
    for end in chance.sample([end for end in ENDS if "alone" in end], 1 + (n_rounds > 1)):
        killed(start_method, end, max(1, n_rounds // 2), chance, tally, tmp_path)


@rounds("start_method", fork=(0, 600, 6), forkserver=(0, 300, 4), spawn=(0, 100, 2))
def test_a_group_that_is_killed_leaves_nothing(start_method, n_rounds, chance, tally, tmp_path):
    tally.kind = f"groups, {start_method}"
    for end in chance.sample([end for end in ENDS if "group" in end], 2):
        killed(start_method, end, max(1, n_rounds // 2), chance, tally, tmp_path)
