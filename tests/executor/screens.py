"""A terminal of a few lines: what a program writes to it, and what somebody sees then."""

import contextlib
import fcntl
import os
import re
import struct
import termios
import threading

SEQUENCE = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|\x1b([78D])|(.)", re.DOTALL)


class Terminal:
    """A pseudo-terminal, and whoever reads it; within `with`, what this program prints goes there."""

    def __init__(self, height=10, width=100):
        self._end, self.fd = os.openpty()
        self.resize(height, width)
        self._news = threading.Condition()
        self._written = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def resize(self, height, width):
        self.height, self.width = height, width
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def _read(self):
        with contextlib.suppress(OSError):  # nobody can write to it any more
            while piece := os.read(self._end, 65536):
                with self._news:
                    self._written += piece
                    self._news.notify_all()

    @property
    def written(self):
        return self._written.decode()

    def wait_for(self, text):
        """Return when so much has been written."""
        with self._news:
            assert self._news.wait_for(lambda: text in self.written, timeout=60), self.written

    def __enter__(self):
        self._stream = open(self.fd, "w", closefd=False)
        self._redirected = contextlib.ExitStack()
        self._redirected.enter_context(contextlib.redirect_stdout(self._stream))
        self._redirected.enter_context(contextlib.redirect_stderr(self._stream))
        return self

    def __exit__(self, *_):
        self._redirected.close()
        self._stream.close()
        self.close()

    def close(self):
        """Wait for what has been written."""
        os.close(self.fd)
        self._reader.join()
        os.close(self._end)

    def picture(self):
        """Return the lines of the screen as they are now."""
        return seen(self.written, self.height, self.width)[1]

    def lines(self):
        """Return the lines that are there, those that have left the screen at its top included."""
        left, lines = seen(self.written, self.height, self.width)
        return [line for line in (*left, *lines) if line]


def seen(text, height, width):
    """Return the lines that have left the screen at its top, and those on it, of which the last may be the bars'."""
    left, lines = [], [[" "] * width for _ in range(height)]
    y, x, bottom, kept, wraps = 0, 0, height, (0, 0), True

    def down():
        nonlocal y
        if y == bottom - 1:
            left.append(lines.pop(0))
            lines.insert(bottom - 1, [" "] * width)
        else:
            y = min(y + 1, height - 1)

    for values, name, single, letter in SEQUENCE.findall(text):
        numbers = [int(n) for n in re.findall(r"\d+", values)]
        if single == "7":
            kept = y, x
        elif single == "8":
            y, x = kept
        elif single == "D":
            down()
        elif name == "A":
            y -= numbers[0] if numbers else 1
        elif name == "H":
            y, x = numbers[0] - 1, numbers[1] - 1
        elif name == "r":
            bottom, y, x = (numbers[1] if numbers else height), 0, 0
        elif name == "K":
            lines[y][0 if numbers == [2] else x :] = [" "] * (width if numbers == [2] else width - x)
        elif name in ("h", "l"):
            wraps = name == "h" if values == "?7" else wraps
        elif letter == "\n":
            down()
        elif letter == "\r":
            x = 0
        elif letter:
            if x == width and wraps:
                down()
                x = 0
            lines[y][min(x, width - 1)] = letter
            x = min(x + 1, width)
    as_text = ["".join(line).rstrip() for line in [*left, *lines]]
    return as_text[: len(left)], as_text[len(left) :]
