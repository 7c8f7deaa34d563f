"""Commands that do not outlive the script that starts them, several at a time."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import threading


class Stopped(Exception):
    """The script ends: no more commands are started."""


class ChildGroups:
    """A pool of threads, and the commands that they run, each in a process group of its own. When
    its block is left by an exception, Ctrl-C or SIGTERM, all live groups are killed and jobs that
    wait are dropped. One at a time, made by the main thread."""

    def __init__(self, jobs):
        self._pool = concurrent.futures.ThreadPoolExecutor(jobs)
        self._lock = threading.Lock()
        self._live = set()
        self._stopped = False

    def __enter__(self):
        self._before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            with self._lock:
                self._stopped = True
                for group in self._live:
                    _kill(group)
        self._pool.shutdown(cancel_futures=kind is not None)
        signal.signal(signal.SIGTERM, self._before)

    def submit(self, function, *arguments):
        """A future: function(*arguments) in a thread."""
        return self._pool.submit(function, *arguments)

    def run(self, command, timeout_s, **options):
        """The status of the command, None when it was killed because its time was up; from any
        thread. Raises Stopped when the script ends."""
        with self._lock:
            if self._stopped:
                raise Stopped
            process = subprocess.Popen(command, process_group=0, **options)
            self._live.add(process.pid)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # Also what the command itself has left behind.
            with self._lock:
                _kill(process.pid)
                self._live.remove(process.pid)
            process.wait()


def _kill(group):
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended
