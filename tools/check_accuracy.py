#!/usr/bin/env python3
"""Checks that the engine answers the evaluation set as well as training said the weights can.

usage: check_accuracy.py SLUICE_BINARY

Runs `sluice eval` over the shipped checkpoints in the engine's default numerics. Each must answer at
least 97 % right and every task above 90 %, within some points of deploy/models/sluice-tiny/
training_report.json. Prints one line per checkpoint; exits 1 when one falls short.
"""

import json
import pathlib
import subprocess
import sys

MODELS = pathlib.Path(__file__).parents[1] / "deploy" / "models"
# Directory, its name in the report, how many points it may differ from the report.
CHECKPOINTS = [("sluice-tiny", "bf16", 0.5), ("sluice-tiny-fp8", "fp8", 2.0)]
ALL_MIN, TASK_ABOVE = 97.0, 90.0


def shortcomings(found, reported, points):
    """What is wrong with the result of one `sluice eval --json`, as a list of sentences."""
    accuracy = 100 * found["accuracy"]
    wrong = []
    if accuracy < ALL_MIN:
        wrong.append(f"answers {accuracy:.2f} % right, wanted at least {ALL_MIN} %")
    if abs(accuracy - reported) > points:
        wrong.append(f"{accuracy:.2f} % is more than {points} points from the {reported:.2f} % of training")
    for task, score in found["tasks"].items():
        if 100 * score["accuracy"] <= TASK_ABOVE:
            wrong.append(f"task {task}: {100 * score['accuracy']:.2f} %, wanted above {TASK_ABOVE} %")
    return wrong


def main():
    report = json.loads((MODELS / "sluice-tiny" / "training_report.json").read_text())
    failed = False
    for name, key, points in CHECKPOINTS:
        run = subprocess.run([sys.argv[1], "eval", "--model", MODELS / name, "--json"],
                             capture_output=True, text=True)
        if run.returncode != 0:
            print(f"{name}: {run.stderr.strip()}")
            failed = True
            continue
        found = json.loads(run.stdout)
        reported = 100 * report["accuracy"][key]["eval"]["all"]
        wrong = shortcomings(found, reported, points)
        failed = failed or bool(wrong)
        print(f"{name}: {found['right']} of {found['total']} right; training reported {reported:.2f} %",
              *wrong, sep="\n  ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
