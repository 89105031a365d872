"""The receiver process, seen from the program that started it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import msgspec

from tapelab.errors import RecordingError
from tapelab.live.talk import Command, Config, Ending, Figures

COMMAND = [sys.executable, "-P", "-m", "tapelab.live.receiver"]
PIPE = 65536  # bytes read at a time of what it says
STOP_PATIENCE = 15.0  # seconds for closing, draining and compressing before it is killed


class Process:
    """Starts a receiver and hears what it says. `fileno` is what to wait for; `hear` never waits."""

    def __init__(self, config: Config) -> None:
        self.figures = Figures()
        self.ending: Ending | None = None
        self._heard = b""
        self._complaint = ""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        # A session of its own: Ctrl-C in the terminal is for us, and we end it in order.
        self._child = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._to, self._from = self._child.stdin, self._child.stdout
        os.set_blocking(self._from.fileno(), False)
        self._say(config)

    @property
    def pid(self) -> int:
        return self._child.pid

    def fileno(self) -> int:
        return self._from.fileno()

    def command(self, command: Command) -> None:
        self._say(command)

    def hear(self) -> bool:
        """Take in what it has said; false once it has said its last."""
        while True:
            try:
                more = os.read(self._from.fileno(), PIPE)
            except BlockingIOError:
                return True
            if not more:
                return False
            *lines, self._heard = (self._heard + more).split(b"\n")
            for line in lines:
                if line.startswith(b"{"):
                    self.ending = msgspec.json.decode(line, type=Ending)
            numbers = next((line for line in reversed(lines) if line[:1].isdigit() or line[:1] == b"-"), None)
            if numbers:
                self.figures = Figures(*map(int, numbers.split()))
            if len(more) < PIPE:
                return True

    def terminate(self) -> None:
        """Ask it to close, drain and finish."""
        if self._child.poll() is None:
            self._child.terminate()

    def wait(self) -> int:
        """Wait until it is gone, which is bounded; gives its exit status."""
        try:
            return self._child.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()
        finally:
            self._to.close()
            self._from.close()
            if not self._errors.closed:
                self._errors.seek(0)
                self._complaint = self._errors.read().decode("utf-8", "replace").strip()
                self._errors.close()

    def killed(self) -> RecordingError:
        """The error for a receiver that ended without a word."""
        status = self._child.returncode
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        last = self._complaint.splitlines()[-1:]
        return RecordingError(
            f"The receiver process {how}{f': {last[0]}' if last else ''}.",
            remedy="What it had acknowledged is kept; start another recording.",
        )

    def _say(self, line: Config | Command) -> None:
        try:
            self._to.write(msgspec.json.encode(line) + b"\n")
            self._to.flush()
        except BrokenPipeError:
            pass  # it has ended; `hear` will tell
