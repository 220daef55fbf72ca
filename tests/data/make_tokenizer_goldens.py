#!/usr/bin/env python3
"""Token ids by Hugging Face's `tokenizers` library, as the truth for tokenizer/.

usage: make_tokenizer_goldens.py DIR    (DIR holds NAME.txt.xz of make_tokenizer_data.py)

Writes DIR/goldens.inp, a text of prose, code and random Unicode, DIR/goldens.txt.xz, its ids in each of the vocabularies there,
and DIR/hf_cases.json.xz, small tokenizer.json files of every kind that llmq reads with texts and ids. Characters newer than
Unicode 14 are left out: the libraries' tables differ there. Needs: tokenizers, the xz program."""
import json, pathlib, random, subprocess, sys, unicodedata
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = WORDS.replace("DIGITS", r"\p{N}{1,3}"), WORDS.replace("DIGITS", r"\p{N}")
QWEN35 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
def cased(tail, digits):
    lead = r"[^\r\n\p{L}\p{N}]?"
    return (lead + UPPER + "*" + LOWER + "+" + tail + "|" + lead + UPPER + "+" + LOWER + "*" + tail + "|" + digits +
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN, GPT4O = cased("", r"\p{N}"), cased("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}")
DEEPSEEK = ("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
            "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+")
BAILING = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
SEED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"

PROSE = """The keeper of the lighthouse wrote three lines each evening: the wind, the light, and what the sea had brought. On the 14th of
October 1887 he wrote, "Wind NW, 7; light burning; a chair, two oranges, and a letter that wasn't for me." He'd kept the letter
unopened for 1,096 days - it's still on the shelf, they say - because we're all owed one thing we don't know.\n\n
    def keeper(days: int) -> list[str]:\n\t\treturn [f"{d:04d}: light={d % 3 != 0}" for d in range(days)]  # don't ask\n\n
Der Wärter schrieb: „Schöne Grüße aus Übersee“, während draußen 25 °C (77 °F) gemessen wurden; ça va? Où ça, à l'œuvre!
Сторож маяка писал по три строки каждый вечер: ветер, свет и то, что принесло море. Ο φύλακας έγραφε κάθε βράδυ.
灯台守は毎晩三行を書いた。風、灯り、そして海が運んできたもの。 等待灯塔的人说：“一九九七年，3月，第15天。” 등대지기는 매일 저녁 세 줄을 썼다.
كتب حارس المنارة ثلاثة أسطر كل مساء. שומר המגדלור כתב שלוש שורות בכל ערב. प्रकाशस्तंभ का रखवाला हर शाम तीन पंक्तियाँ लिखता था।
WE'LL SEE, SAID HE'S FRIEND; I'M SURE THEY'VE GONE. It''s 'tis 's't 'LL 'ſ x² + y³ = ½ ⅷ ①② ٣٤٥ 1234567890 3.14159e-10
🙂🙃 👩‍👩‍👧‍👦 🏳️‍🌈 🇰🇷 é e\u0301 Å Å ﬁ ﷺ a\u0327\u0323 \u1100\u1161\u11a8 …—–‐ “quoted” ‘single’ «guillemets» \u200b\u200d\ufeff end\n\n\n   \n \t\n"""

def assigned(c):
    return unicodedata.category(chr(c)) not in ("Cn", "Cs")

def random_text(rnd, n, spaces="\x20\xa0\x85\u1680\u180e\u2003\u2028\u2029\u202f\u205f\u3000\u200b\t\r\n\x0b\x0c"):
    out = []
    while len(out) < n:
        r = rnd.random()
        c = (rnd.randrange(0x20, 0x7f) if r < .35 else ord(rnd.choice("'sdmtlrve \n\r\t0123SDMT")) if r < .6 else ord(rnd.choice(spaces)) if r < .7
             else rnd.randrange(0x80, 0x600) if r < .8 else rnd.randrange(0x600, 0x10000) if r < .94 else rnd.randrange(0x10000, 0x32000))
        if assigned(c): out.append(chr(c))
    return "".join(out)

def read_vocabulary(path):
    lines = subprocess.run(["xz", "-dc", str(path)], check=True, stdout=subprocess.PIPE).stdout.decode().split("\n")
    meta, i = {}, 0
    while lines[i]:
        key, kind, n = lines[i].split(" ")
        key, n, i = key.replace("tokenizer.ggml.", ""), int(n), i + 1
        if kind in ("strs", "i32s", "f32s"): meta[key], i = lines[i:i + n], i + n
        elif kind == "str": meta[key], i = lines[i], i + 1
        else: meta[key] = n
    return meta

def byte_level(pretok, vocab, merges, normalizer=None, ignore_merges=False):
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    t.pre_tokenizer, t.decoder = pretok, decoders.ByteLevel()
    if normalizer: t.normalizer = normalizer
    return t

def splits(*patterns):
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    return pre_tokenizers.Sequence(steps + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

def gpt2(): return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
def smollm(): return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2()])

def sentencepiece(vocab, merges, style):
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if style in ("first", "always", "never"): t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=style, split=False)
    elif style == "gemma":
        t.normalizer, t.pre_tokenizer = normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous")
    else: t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = [] if style in ("gemma", "never") else [decoders.Strip(" ", 1, 0)]
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()] + strip)
    return t

def big_tokenizer(meta):
    tokens, types = meta["tokens"], meta["token_type"]
    if meta["model"] == "llama":
        vocab = {t: i for i, t in enumerate(tokens)}
        merges = [(t[:c], t[c:], float(meta["scores"][i])) for t, i in vocab.items() for c in range(1, len(t)) if t[:c] in vocab and t[c:] in vocab]
        merges.sort(key=lambda m: -m[2])
        return sentencepiece(vocab, [m[:2] for m in merges], "prepend")
    pre = {"llama-bpe": lambda: splits(LLAMA3), "qwen2": lambda: splits(QWEN2), "smollm": smollm}[meta["pre"]]()
    vocab = {t: i for i, t in enumerate(tokens) if types[i] == "1"}
    return byte_level(pre, vocab, [tuple(m.split(" ")) for m in meta["merges"]], normalizers.NFC() if meta["pre"] == "qwen2" else None,
                      meta["pre"] == "llama-bpe")

def write_xz(path, data):
    path.write_bytes(data)
    subprocess.run(["xz", "-9e", "-f", str(path)], check=True)

def big_goldens(out):
    rnd = random.Random(7)
    text = PROSE + " ".join(random_text(rnd, 60) for _ in range(100)) + "a" * 300 + " " * 300 + "=" * 100 + PROSE.upper() + "ab" * 200
    (out / "goldens.inp").write_bytes(text.encode())
    data = b""
    for path in sorted(out.glob("*.txt.xz")):
        name = path.name[:-len(".txt.xz")]
        if name == "goldens": continue
        ids = big_tokenizer(read_vocabulary(path)).encode(text, add_special_tokens=False).ids
        data += f"{name} i32s {len(ids)}\n".encode() + b"".join(b"%d\n" % i for i in ids)
        print(name, len(ids), "ids")
    write_xz(out / "goldens.txt", data)

def train():
    """A small byte-level and a small SentencePiece vocabulary, both from PROSE."""
    b = Tokenizer(models.BPE())
    b.pre_tokenizer = splits(QWEN2)
    b.train_from_iterator([PROSE] * 4, trainers.BpeTrainer(vocab_size=360, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    s = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    s.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    head = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % i for i in range(256)]
    s.train_from_iterator([PROSE] * 4, trainers.BpeTrainer(vocab_size=600, special_tokens=head, limit_alphabet=80, show_progress=False))
    result = []
    for t in (b, s):
        model = json.loads(t.to_str())["model"]
        result += [model["vocab"], [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]]
    return result

def small_cases(out):
    bv, bm, sv, sm = train()
    rnd, n = random.Random(3), len(bv)
    texts = ["", " ", "Hello world", "the light, and the sea", "don't DON'T it's I'LL", "  two  spaces ", "x=12345;\n\n\ty[0]", "é e\u0301 ñ 한국어 日本",
             "a<|end|>b", " <|end|> the", "<|end|>", "<s>the</s> light", "\r\n\r\n  \n x", "naïve Ωmega ß ﬁ", PROSE[-400:]] + [random_text(rnd, 80) for _ in range(12)]
    nfc = normalizers.NFC()
    kinds = {
        "gpt-2": byte_level(gpt2(), bv, bm), "gpt-2+nfc": byte_level(gpt2(), bv, bm, nfc), "smollm": byte_level(smollm(), bv, bm),
        "llama-bpe": byte_level(splits(LLAMA3), bv, bm, None, True), "dbrx": byte_level(splits(LLAMA3), bv, bm),
        "qwen2": byte_level(splits(QWEN2), bv, bm, nfc), "deepseek-r1-qwen": byte_level(splits(QWEN2), bv, bm),
        "qwen35": byte_level(splits(QWEN35), bv, bm, nfc), "tekken": byte_level(splits(TEKKEN), bv, bm, None, True),
        "gpt-4o": byte_level(splits(GPT4O), bv, bm), "deepseek-v3": byte_level(splits(r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", DEEPSEEK), bv, bm),
        "bailingmoe": byte_level(splits(BAILING), bv, bm), "seed-coder": byte_level(splits(SEED), bv, bm),
    }
    kinds.update(("spm-" + style, sentencepiece(sv, sm, style)) for style in ("prepend", "first", "always", "never", "gemma"))
    cases = []
    for name, t in kinds.items():
        spm = name.startswith("spm")
        t.add_special_tokens([AddedToken("<s>", normalized=False), AddedToken("</s>", normalized=False),
                              AddedToken("<|end|>", normalized=False, rstrip=name in ("smollm", "spm-prepend"), lstrip=name == "gpt-4o")])
        t.add_tokens([AddedToken("lighthouse", normalized=False)])
        if name in ("llama-bpe", "spm-prepend", "tekken"):
            bos = t.token_to_id("<s>")
            t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
        tokenizer = json.loads(t.to_str())
        if name in ("gpt-2", "spm-always"):  # the older form of merges
            tokenizer["model"]["merges"] = [" ".join(m) for m in tokenizer["model"]["merges"]]
        rows = [{"text": x, "ids": t.encode(x, add_special_tokens=True).ids} for x in texts]
        for r in rows: r["decoded"] = t.decode(r["ids"], skip_special_tokens=True)
        cases.append({"name": name, "tokenizer": tokenizer, "rows": rows})
        print(name, sum(len(r["ids"]) for r in rows), "ids")
    write_xz(out / "hf_cases.json", json.dumps(cases, ensure_ascii=False).encode())

def main():
    out = pathlib.Path(sys.argv[1])
    big_goldens(out)
    small_cases(out)

main()
