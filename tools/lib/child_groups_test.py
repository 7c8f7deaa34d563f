#!/usr/bin/env python3
"""Nothing that child_groups.py started is left when the script that asked for it ends."""

import pathlib
import signal
import subprocess
import sys
import time
import unittest

import child_groups

# Two commands that print who they are and what they have started, and one that has to wait.
SCRIPT = """
import concurrent.futures
import sys
sys.path.insert(0, sys.argv[1])
import child_groups
with child_groups.ChildGroups(2) as children:
    command = ["sh", "-c", "sleep 1000 & echo $$ $!; wait"]
    futures = [children.submit(children.run, command, 1000) for _ in range(3)]
    concurrent.futures.wait(futures)
"""


def lives(pid):
    """Whether the process runs; whoever is waited for by nobody has ended all the same."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class ChildGroupsTest(unittest.TestCase):
    def test_all_end_with_the_script(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(signal=number.name):
                script = subprocess.Popen(
                    [sys.executable, "-c", SCRIPT, pathlib.Path(__file__).parent],
                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                started = [int(pid) for _ in range(2) for pid in script.stdout.readline().split()]
                self.assertEqual(len(started), 4)
                self.assertTrue(all(lives(pid) for pid in started))
                script.send_signal(number)
                rest, _ = script.communicate(timeout=20)
                self.assertNotEqual(script.returncode, 0)
                self.assertEqual(rest, "", "the third command was started")
                self.wait_for_the_end_of(started)

    def test_statuses_and_time(self):
        with child_groups.ChildGroups(1) as children:
            self.assertEqual(children.run(["sh", "-c", "exit 3"], 20), 3)
            self.assertIsNone(children.run(["sleep", "1000"], 0.1))

    def wait_for_the_end_of(self, pids):
        end = time.monotonic() + 20
        while any(lives(pid) for pid in pids):
            self.assertLess(time.monotonic(), end, "left behind")
            time.sleep(0.01)


if __name__ == "__main__":
    unittest.main()
