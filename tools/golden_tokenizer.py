"""Token ids by llama.cpp for a corpus in many scripts, as golden values for tests/tokenizer.rs.

    gossamer synth t.gguf --preset tiny --vocab o200k
    python tools/golden_tokenizer.py t.gguf tests/golden/tokenizer.json

Needs llama-cpp-python. The corpus is made here; llama.cpp reads the vocabulary, the token types and
the merges of the file, so equal ids also judge what `synth` wrote.

Left out, as llama.cpp is no judge there: scripts with combining marks inside words (Hindi, Thai …;
its split leaves \\p{M} out of the word, tiktoken judges those), and the names of Harmony's special
tokens (it takes them for the tokens even in plain text).
"""

import hashlib
import json
import random
import sys

import llama_cpp

SENTENCES = """\
The quick brown fox doesn't jump over 13 lazy dogs; it's 2,048.5 km away!
I'LL say: they've eaten, we'd go, you're right. HTTPServerError XMLHttpRequest iPhone15ProMax
Le cœur a ses raisons que la raison ne connaît point, n'est-ce pas ? « Où ça ? »
Über größere Straßen führt die Donaudampfschifffahrtsgesellschaft nicht.
El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío; ¿por qué? ¡Añoraba!
Pchnąć w tę łódź jeża lub ośm skrzyń fig. Příliš žluťoučký kůň úpěl ďábelské ódy.
Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul'da ılık bir gün.
Do bạch kim rất quý nên sẽ dùng để lắp vô xương. Tiếng Việt có dấu.
Съешь же ещё этих мягких французских булок, да выпей чаю. Щастя б'ється, їжак.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Ο Σίσυφος, 7 φορές.
نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ومغلف بجلد أزرق. ٣٫١٤
ქართული ანბანი შედგება ოცდაცამეტი ასოსგან. Հայերեն լեզու։
天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。我们在2024年6月学习人工智能。
色は匂へど散りぬるを、我が世誰ぞ常ならむ。トークナイザーをテストします！
키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.
👩‍👩‍👧‍👦 family, 🇩🇪 flag, ❤️ heart, 🏳️‍🌈, 👍🏽 and 🤖🧠✨ → ∑∫≤√∞
fn main() -> Result<(), Box<dyn Error>> { let x = vec![1_u8; 0xFF]; println!("{x:?}\\n"); }
for (int i = 0; i < n; ++i) { a[i] += b[i] * c[i]; } // comment /* nested */ #define X(y) (y)
    def __init__(self, *args, **kwargs):\n\t\tsuper().__init__()\n        return None
{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3, "x": [null, true, -1.5e-7]}}
# Heading\n\n- item **bold** _it_ `code`\n  1. sub\n\n| a | b |\n|---|---|\n> quote\n\n\n---\n
https://example.org/path/to?q=a%20b&c=d#frag user@mail.example C:\\Windows\\x.dll ../../etc
$E = mc^2$, \\frac{a}{b}, x_{i+1}^{2}, 12345678901234567890, 0.1+0.2=0.30000000000000004
   three blanks, a tab\there,  two,     five;\r\n\r\nCRLF \u00a0nbsp\u3000wide   \n  \n end   \
""".replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r").split("\n")


def corpus(seed, size):
    """About `size` characters: lines of the sentences, some cut and joined at random places."""
    rng = random.Random(seed)
    texts = ["\n".join(SENTENCES)] + SENTENCES
    while sum(map(len, texts)) < size:
        parts = []
        for _ in range(rng.randint(2, 12)):
            sentence = rng.choice(SENTENCES)
            start = rng.randrange(len(sentence) + 1)
            parts.append(sentence[start : start + rng.randint(1, 30)])
            parts.append(rng.choice(["", " ", "  ", "\n", "\n\n", "\t", "'s", "/", "...", "7"]))
        texts.append("".join(parts))
    return texts


def main():
    model_path, out_path = sys.argv[1:]
    model = llama_cpp.Llama(model_path, vocab_only=True, verbose=False)
    texts = corpus(seed=1, size=40_000)
    ids = [
        model.tokenize(text.encode(), add_bos=False, special=False) if text else []
        for text in texts
    ]
    golden = {
        "judge": "llama.cpp through llama-cpp-python",
        "version": llama_cpp.__version__,
        "command": "tools/golden_tokenizer.py t.gguf tests/golden/tokenizer.json",
        "input_sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        "cases": [{"text": t, "ids": i} for t, i in zip(texts, ids)],
    }
    with open(out_path, "w", encoding="utf-8") as file:
        json.dump(golden, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
