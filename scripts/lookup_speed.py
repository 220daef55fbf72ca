#!/usr/bin/env python3
"""What `llmq run --lookup` gives on text that comes again: editing code, and working on a text.

usage: lookup_speed.py MODEL.gguf [--llmq build/llmq] [--rounds 3] [-n 200] [--threads N] [--json F]

The tasks are made by rule from the project's own files, none left out afterwards: of each scripts/*.py the first function of 12
to 40 lines, to be repeated with a name changed; of data/heldout.txt every third paragraph of 400 to 1,500 letters, to be repeated
with its errors corrected, and to be summarized. Each is answered at temperature 0, without and with --lookup in turn. Printed: tokens a
second of generation (without the prompt), medians of the rounds; their ratio; and for each kind of task the median ratio and its range. Ends
with an error if a text differs. Python's standard library is all that is needed."""
import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def code_tasks():
    for path in sorted((ROOT / "scripts").glob("*.py")):
        lines = path.read_text().splitlines()
        starts = [i for i, line in enumerate(lines) if line.startswith("def ")]
        for i in starts:
            end = next((j for j in range(i + 1, len(lines)) if lines[j] and not lines[j][0].isspace()), len(lines))
            code = "\n".join(lines[i:end]).rstrip()
            if 12 <= code.count("\n") + 1 <= 40:
                name = re.match(r"def (\w+)", code).group(1)
                yield path.name, f"Rename the function {name} to {name}_new. Print the whole code again.\n```python\n{code}\n```"
                break


def text_tasks():
    paragraphs = [p.replace("\n", " ") for p in (ROOT / "data/heldout.txt").read_text().split("\n\n")]
    for i, text in enumerate([p for p in paragraphs if 400 <= len(p) <= 1500][::3]):
        yield f"paragraph {i + 1}", text


def tasks():
    for name, prompt in code_tasks():
        yield "editing code", name, prompt
    for name, text in text_tasks():
        yield "correcting a text", name, f"Correct the spelling of this text and print all of it again.\n\n{text}"
    for name, text in text_tasks():
        yield "summarizing", name, f"Summarize this text in a few sentences.\n\n{text}"


def answer(a, prompt, options):
    """(text, tokens, tokens a second of generation)"""
    command = [a.llmq, "run", a.model, "-f", "-", "--temp", "0", "-n", str(a.n), "--stats", *options]
    if a.threads:
        command += ["-t", str(a.threads)]
    done = subprocess.run(command, input=prompt, capture_output=True, text=True, errors="replace")
    found = re.search(r"generated (\d+) tokens? in [\d.]+ s, ([\d.]+) t/s", done.stderr)
    if done.returncode != 0 or not found:
        sys.exit(f"{' '.join(command)}: status {done.returncode}\n{done.stderr[-800:]}")
    return done.stdout, int(found.group(1)), float(found.group(2))


def measure(a, prompt):
    speeds = {False: [], True: []}
    texts = set()
    for i in range(a.rounds):
        for lookup in (False, True) if i % 2 == 0 else (True, False):
            text, tokens, speed = answer(a, prompt, ["--lookup"] if lookup else [])
            speeds[lookup].append(speed)
            texts.add(text)
    if len(texts) != 1:
        sys.exit(f"--lookup changes the answer to:\n{prompt}")
    return {"tokens": tokens, "plain": statistics.median(speeds[False]), "lookup": statistics.median(speeds[True])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--llmq", default=str(ROOT / "build/llmq"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json")
    a = parser.parse_args()
    rows = []
    for kind, name, prompt in tasks():
        row = {"kind": kind, "task": name, **measure(a, prompt)}
        row["ratio"] = row["lookup"] / row["plain"] if row["plain"] else 1.0  # nothing was answered
        rows.append(row)
        print(f"{kind:18} {name:24} {row['tokens']:4} tokens {row['plain']:8.1f} t/s {row['lookup']:8.1f} with --lookup"
              f"{row['ratio']:7.2f}", flush=True)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        ratios = [row["ratio"] for row in rows if row["kind"] == kind]
        print(f"{kind}: {len(ratios)} tasks, median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    if a.json:
        pathlib.Path(a.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
