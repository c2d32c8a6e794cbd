"""Run a pickled function as a program: ``python program.py FOLDER``, where its result is put, or what it raised."""

import pickle
import sys
import traceback
from pathlib import Path

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    try:
        function, args = pickle.loads((folder / "asked").read_bytes())
        answer = True, function(*args)
    except BaseException as error:
        traceback.print_exc()
        error.add_note(traceback.format_exc())
        answer = False, error
    (folder / "answer.part").write_bytes(pickle.dumps(answer))
    (folder / "answer.part").rename(folder / "answer")
