#!/usr/bin/env python3
"""llmq on a pseudo-terminal: line editing in chat, Ctrl-C at the prompt, the progress bar. usage: terminal.py PROGRAM MODEL TEXT
Prints one line for each fault; status 0 when there is none."""
import os
import pty
import select
import signal
import sys
import termios
import time

program, model, text = sys.argv[1:4]
faults = 0


def fault(what):
    global faults
    faults += 1
    print("FAULT: " + what)


def has_terminals():
    """False in a container without a devpts: nothing here can be tested then."""
    try:
        for fd in pty.openpty():
            os.close(fd)
        return True
    except OSError:
        return False


class Terminal:
    def __init__(self, *args, env=()):
        self.seen = b""
        self.at = 0  # what was asked for so far ends here
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update({"TERM": "xterm", **dict(env)})
            os.execv(program, [program, *args])

    def read(self, want, seconds=30):
        """Reads until the bytes `want` have been seen (b"": until the program ends); False when time runs out."""
        end = time.time() + seconds
        while time.time() < end:
            found = self.seen.find(want, self.at) if want else -1
            if found >= 0:
                self.at = found + len(want)
                return True
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    got = os.read(self.fd, 4096)
                except OSError:
                    got = b""
                if not got:
                    return not want
                self.seen += got
        return False

    def prompt(self, seconds=30):
        """libedit shows its prompt before it takes the terminal off line mode; a key typed in between is lost."""
        end = time.time() + seconds
        found = self.read(b"> ", seconds)
        while found and termios.tcgetattr(self.fd)[3] & termios.ICANON and time.time() < end:
            time.sleep(0.01)
        return found

    def type(self, data):
        os.write(self.fd, data)

    def status(self, seconds=30):
        end = time.time() + seconds
        while time.time() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


if not has_terminals():
    print("skipped: line editing, Ctrl-C and the progress bar: this system has no pseudo-terminals")
    sys.exit(0)

chat = Terminal("chat", model, "--temp", "0", "-n", "12")
if not chat.prompt():
    fault("chat shows no prompt: " + repr(chat.seen[-200:]))
chat.type(b"Once upXX\x7f\x7fon a time\n")  # two letters taken back
if not chat.read(b"there was") or not chat.prompt():
    fault("chat does not answer the edited line: " + repr(chat.seen[-300:]))
chat.type(b"\x1b[A")
if not chat.read(b"Once upon a time"):
    fault("the arrow key does not bring the last line back")
chat.type(b"\x03")
chat.read(b"")
status = chat.status()
if status != 130:
    fault(f"Ctrl-C at the prompt leaves with {status} instead of 130: " + repr(chat.seen[-200:]))

chat = Terminal("chat", model, "--temp", "0", "-n", "12")
chat.prompt()
chat.type(b"\x04")
chat.read(b"")
if chat.status() != 0:
    fault("Ctrl-D at the prompt does not leave with 0")

# A Ctrl-D typed ahead, while an answer may be under way, means the end too.
for _ in range(3):
    chat = Terminal("chat", model, "--temp", "0", "-n", "200", "--threads", "1")
    chat.read(b"> ")
    chat.type(b"Once upon a time\n")
    chat.read(b"there")
    chat.type(b"\x04")
    chat.read(b"")
    if chat.status() != 0:
        fault("a Ctrl-D typed ahead does not leave with 0")

for env, colored in (({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": "", "TERM": "dumb"}, None)):
    job = Terminal("perplexity", model, "-f", text, "--ctx", "64", env=env.items())
    job.read(b"")
    job.status()
    bar = b"[" in job.seen and b" %" in job.seen
    if colored is None:
        if b"\x1b" in job.seen or b"\r[" in job.seen:
            fault("a dumb terminal gets escapes")
    elif not bar or (b"\x1b[32m" in job.seen) != colored:
        fault(f"the progress bar with {env}: " + repr(job.seen[:120]))

sys.exit(1 if faults else 0)
