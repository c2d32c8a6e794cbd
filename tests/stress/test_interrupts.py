"""Ctrl-C arrives at random moments, and the program can go on as if it had asked for nothing."""

import os
import signal
import threading
import time

from kills import rounds
from programs import A_SECOND, JOBS, Program

# Python prints and forgets what is raised in a finalizer. Then this round has to be interrupted once more, and what the
# finalizer would have given back, the two descriptors of one segment, stays.
INTERRUPTED = f"""{JOBS}
def swallowed(unraisable):
    assert unraisable.exc_type in (KeyboardInterrupt, RuntimeError), unraisable
    swallowed_here.append(unraisable.exc_type)
    print("swallowed", flush=True)

swallowed_here = []
sys.unraisablehook = swallowed

def in_a_with_block():
    while True:
        with an_executor() as ex:
            for _ in range(chance.randrange(1, 9)):
                one_job(ex)

def closed_later():
    global ex
    while True:
        ex = an_executor()
        for _ in range(chance.randrange(1, 9)):
            one_job(ex)
        ex.shutdown()

def belongings():
    gc.collect()
    leases.release_kept()
    descriptors = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            descriptors.append(os.readlink(f"/proc/self/fd/{{fd}}").partition(":")[0])
        except FileNotFoundError:  # that of the folder itself
            pass
    return children(), sorted(descriptors), threading.active_count()

ex = None
with an_executor() as first:
    one_job(first)
before = belongings()
before_all = before[1]
while chance.random() >= 0:
    work = chance.choice([in_a_with_block, closed_later])
    try:
        print("go", flush=True)
        work()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    if ex is not None:
        try:
            assert ex.reduce_blocks(np.sum, np.ones(6), block_items=1) == 6.0
            assert ex.submit(pow, 2, 5).result() == 32
        except RuntimeError as error:  # it came in the middle of shutdown
            assert "is closed" in str(error), error
        ex.shutdown()
        ex = None
    deadline = time.monotonic() + {A_SECOND}
    while (now := belongings()) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    stays = [descriptor for descriptor in now[1] if descriptor.startswith("/dev/shm/")]
    if len(stays) <= 2 * len(swallowed_here):
        before = before[0], sorted([*before_all, *stays]), before[2]
    print("ok" if now == before else f"{{work.__name__}} has left {{now}}, not {{before}}", flush=True)
"""


@rounds("start_method", fork=(3, 300, 2), forkserver=(3, 300, 2), spawn=(3, 300, 2))
def test_ctrl_c_at_a_random_moment_leaves_nothing(start_method, n_rounds, chance, tmp_path):
    n_swallowed = 0
    with Program(INTERRUPTED, tmp_path, start_method, chance.getrandbits(32)) as program:
        for _ in range(n_rounds):
            assert program.line() == "go"
            while True:
                threading.Event().wait(chance.choice([0.02, 0.1, 0.5]) * chance.random())
                chance.choice([os.kill, os.killpg])(program.process.pid, signal.SIGINT)
                if (line := program.line()) != "swallowed":
                    break
                n_swallowed += 1
            while line == "swallowed":
                line = program.line()
            assert line == "interrupted"
            while (line := program.line()) == "swallowed":
                pass
            assert line == "ok"
        assert program.line() == "go"
        os.kill(program.process.pid, signal.SIGTERM)
        assert program.ended() == (-signal.SIGTERM, "", "")
        program.assert_nothing_is_left(time.monotonic() + A_SECOND)
    print(f"{n_rounds} interrupts, {n_swallowed} more swallowed")
