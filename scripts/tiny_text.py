#!/usr/bin/env python3
"""The text that data/tiny is trained on, from the files of four Debian packages.

usage: tiny_text.py DEBIAN_ROOT TRAIN.txt VALID.txt

DEBIAN_ROOT holds what python3.11-doc, r-cran-janeaustenr, dict-devil and dict-jargon install (data/README.md has the licences). The
kinds of text are those of data/calibration.txt. What data/heldout.txt quotes is left out, so that it can judge: the two novels,
and every page of documentation and every dictionary entry that shares WORDS words in a row with it. The texts are cut into pieces that
take turns. VALID.txt is TRAIN.txt's end, which `llmq train` holds out (a twentieth, 32,768 tokens at most): nothing was learned from
it, so settings may be chosen on it."""
import gzip
import pathlib
import re
import sys
import zlib

WORDS = 8  # in a row that tell that two texts share a passage
PIECE = 6000
VALID = 60_000  # characters of the end: within what is held out
PAGE = 9000  # of a page of the library's reference: its beginning has the prose
HERE = pathlib.Path(__file__).resolve().parent.parent


def words_of(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def grams(text):
    words = words_of(text)
    return {tuple(words[i: i + WORDS]) for i in range(len(words) - WORDS + 1)}


class Judge:
    def __init__(self, text):
        self.grams, self.words = grams(text), f" {' '.join(words_of(text))} "

    def shares(self, unit):
        """A passage, or the whole of a unit that is shorter than one."""
        return bool(grams(unit) & self.grams) or f" {' '.join(words_of(unit))} " in self.words


def unwrap(text):
    """Every paragraph on one line."""
    return "\n\n".join(" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if p.strip())


def strings(raw):
    """The elements of the character vector that an R object of serialization version 3 is."""
    def number(at):
        return int.from_bytes(raw[at: at + 4], "big", signed=True)

    at = 14 + 4 + number(14)  # "X\n", format and two versions, name of the encoding
    if raw[:2] != b"X\n" or number(at) & 255 != 16:
        sys.exit("r-cran-janeaustenr: not the vectors of strings that were expected")
    count, at = number(at + 4), at + 8
    for _ in range(count):
        size = max(0, number(at + 4))  # -1: NA
        yield raw[at + 8: at + 8 + size].decode()
        at += 8 + size


def novels(root):
    data = (root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    while data:  # objects, each behind its size
        unzip = zlib.decompressobj()
        lines = list(strings(unzip.decompress(data[4:])))
        data = unzip.unused_data
        if lines[0].lower() not in ("persuasion", "sense and sensibility"):
            yield from re.split(r"\n\n(?=chapter )", unwrap("\n".join(lines)), flags=re.I)


def entries(root, name):
    with gzip.open(root / f"usr/share/dictd/{name}.dict.dz", "rt", encoding="utf-8", errors="replace") as f:
        text = f.read()
    for entry in re.split(r"\n(?=\S)" if name == "jargon" else r"\n(?=[A-Z][A-Z' -]+, )", text):
        if not entry.startswith("00-database"):
            head, _, rest = entry.partition("\n") if name == "jargon" else ("", "", entry)
            yield (head + "\n" + unwrap(rest)).strip()


def documentation(root):
    folder = root / "usr/share/doc/python3.11/html/_sources"
    for part in ("tutorial", "howto", "faq", "reference", "library"):
        for page in sorted((folder / part).glob("*.rst.txt")):
            text = page.read_text()
            cut = text.rfind("\n\n", 0, PAGE) if part == "library" and len(text) > PAGE else len(text)
            yield text[:cut].strip()


def pieces(units):
    """Texts of about PIECE characters that end with a paragraph."""
    out = ""
    for unit in units:
        for paragraph in unit.split("\n\n"):
            out += paragraph + "\n\n"
            if len(out) >= PIECE:
                yield out.strip()
                out = ""
    if out.strip():
        yield out.strip()


def main():
    root, train, valid = map(pathlib.Path, sys.argv[1:4])
    judge = Judge((HERE / "data/heldout.txt").read_text())
    turns = []
    for name, units in [("novels", novels(root)), ("jargon", entries(root, "jargon")), ("devil", entries(root, "devil")),
                        ("documentation", documentation(root))]:
        units = [u for u in units if words_of(u)]
        kept = [u for u in units if not judge.shares(u)]
        cut = list(pieces(kept))
        turns += [((i + 0.5) / len(cut), name, p) for i, p in enumerate(cut)]
        print(f"{name}: {len(kept)} of {len(units)} parts, {sum(map(len, cut))} characters", file=sys.stderr)
    text = "\n<|endoftext|>".join(p for _, _, p in sorted(turns)) + "\n"
    if judge.shares(text):
        sys.exit("the text shares passages with data/heldout.txt")
    train.write_text(text)
    valid.write_text(text[-VALID:].replace("<|endoftext|>", "\n"))


if __name__ == "__main__":
    main()
