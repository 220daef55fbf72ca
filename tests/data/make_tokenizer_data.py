#!/usr/bin/env python3
"""Vocabularies for the tokenizer tests, in a text form that xz makes small: NAME.txt.xz beside NAME.out.

usage: make_tokenizer_data.py OUT_DIR ggml-vocab-NAME.gguf...

A line "KEY KIND N" begins each value; kinds: u32 and bool (N is the value), str (one line follows), strs, i32s, f32s (N lines
follow). Only tokenizer.* keys, without chat templates. Needs: gguf, the xz program."""
import pathlib, subprocess, sys
import gguf

SCALARS = {"UINT32": "u32", "INT32": "u32", "BOOL": "bool"}

def dump(field, key):
    kind = field.types[0].name
    if kind == "ARRAY" and field.types[1].name == "STRING":
        strs = [bytes(field.parts[i]) for i in field.data]
        assert all(b"\n" not in s for s in strs)
        return f"{key} strs {len(strs)}\n".encode() + b"".join(s + b"\n" for s in strs)
    if kind == "ARRAY":
        name, form = {"INT32": ("i32s", "%d"), "FLOAT32": ("f32s", "%.9g")}[field.types[1].name]
        numbers = [field.parts[i][0] for i in field.data]
        return f"{key} {name} {len(numbers)}\n".encode() + b"".join((form % x).encode() + b"\n" for x in numbers)
    if kind == "STRING":
        s = bytes(field.parts[field.data[0]])
        return b"" if b"\n" in s else f"{key} str {len(s)}\n".encode() + s + b"\n"
    return f"{key} {SCALARS[kind]} {int(field.contents())}\n".encode()

def main():
    out = pathlib.Path(sys.argv[1])
    for path in sys.argv[2:]:
        reader = gguf.GGUFReader(path)
        name = pathlib.Path(path).stem.replace("ggml-vocab-", "")
        text = b"".join(dump(f, k) for k, f in reader.fields.items() if k.startswith("tokenizer.") and "template" not in k)
        (out / f"{name}.txt").write_bytes(text)
        subprocess.run(["xz", "-9e", "-f", str(out / f"{name}.txt")], check=True)

main()
