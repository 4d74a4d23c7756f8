//! Made-up text in many scripts, for measuring and testing: nothing is downloaded, and the same seed
//! gives the same text.

use std::fmt::Write;

/// Words of a script (for those written without blanks, phrases), and what joins them.
const SCRIPTS: &[(&str, &str)] = &[
    (
        "the of and to in is that for it as was with be by on not he this are or his from at which \
         but have an had they you were their one all we can her has there been if more when will \
         would who so no thinking engine tokens don't it's we'll I'm you've they'd NASA HTTPServer",
        " ",
    ),
    (
        "le la les des est une dans qu'il pour être où déjà œuvre façon garçon élève l'été ça naïve",
        " ",
    ),
    (
        "der die das und nicht können über Straße größer Mädchen Fußgängerübergang Rindfleisch für",
        " ",
    ),
    (
        "el niño año señor qué corazón está también mañana ¿cómo ¡vamos! más después",
        " ",
    ),
    (
        "zażółć gęślą jaźń příliš žluťoučký kůň úpěl ďábelské ódy şık ığdır çağrı İstanbul",
        " ",
    ),
    (
        "tiếng Việt người không được những việc một và của trong đã với các",
        " ",
    ),
    (
        "и в не на что он быть как это ещё человек который Россия всё можно съешь булок",
        " ",
    ),
    (
        "και το να είναι για δεν άνθρωπος Ελλάδα μου σε ότι ψυχή",
        " ",
    ),
    (
        "في من على إلى هذا التي كان عن أن السلام عليكم كتاب مدرسة العربية ١٢٣",
        " ",
    ),
    ("של את על לא הוא עם זה שלום עולם אני ירושלים כִּי", " "),
    ("है और के में की से यह हिन्दी नमस्ते दुनिया क्या विद्यार्थी १२३४", " "),
    ("বাংলা ভাষা আমি তুমি এবং সে করতে পারে", " "),
    ("தமிழ் மொழி வணக்கம் உலகம் நான் அவர்கள்", " "),
    ("สวัสดี ชาวโลก ภาษาไทย ประเทศ การทำงาน ความรู้ น้ำ", ""),
    ("የአማርኛ ቋንቋ ሰላም ልዑል", " "),
    ("ქართული ენა გამარჯობა მსოფლიო", " "),
    (
        "人工 智能 是 的 我们 在 中国 北京 学习 语言 模型 可以 问题 时间 世界 经济 发展 繁體 龘 𠮷",
        "",
    ),
    (
        "これは 日本語 の 文章 です トークン テスト を する カタカナ ﾊﾝｶｸ 東京 ありがとう",
        "",
    ),
    (
        "한국어 문장 입니다 안녕하세요 세계 모델 언어 학습 그리고 ᄒᆞᆫ",
        " ",
    ),
    ("👍 😀 👩‍👩‍👧‍👦 🇩🇪 ❤️ 🏳️‍🌈 ✨ → ∑ ≤ √2 ½ ² ™ €5 £3 №7 ǅ ʰ ﬁ", " "),
];

const CODE: &[&str] = &[
    "fn main() {\n    let mut total: u64 = 0;\n    for i in 0..10_000 { total += i * 3; }\n}\n",
    "def f(x, *, y=None):\n\treturn {\"a\": [1, 2.5e-3, x], 'b': y or f\"{x!r}\"}\n\n\n",
    "if (a != b && !(c || d)) { printf(\"%08x\\r\\n\", *p++); } // ----------\r\n",
    "SELECT id, COUNT(*) FROM users WHERE name LIKE '%a_b%' GROUP BY 1;\n",
    "<div class=\"row\"><a href=\"https://example.org/a/b?c=d&e=%20#f\">x</a></div>\n",
    "{\"key\": null, \"list\": [true, false, -12345678, 0.001], \"s\": \"\\u00e9\\n\"}\n",
    "$$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}$$\n",
];

const MARKDOWN: &[&str] = &[
    "# Title\n\n",
    "## Part 12.3\n",
    "- item\n  - nested\n",
    "1. first\n2. second\n",
    "**bold** ",
    "`code` ",
    "> quoted\n",
    "| a | b |\n|---|---|\n| 1 | 22 |\n",
    "\n\n\n",
    "   ",
    "\t\t",
    "\r\n",
    "...",
    "?!",
    " — ",
    "(see [1])",
    "'s ",
    "'LL ",
    "'ſ ",
    "123456789 ",
    "3.14159 ",
    "2024-06-01T12:34:56Z ",
    "\u{a0}",
    "\u{3000}",
    "   \n  \n    x",
    " \u{2028}",
    "\u{85}",
    "<|end|>",
    "<|start|>assistant",
    "/usr/lib//x\n/",
    "//\n//\n",
];

/// A counter-based generator.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

/// About `bytes` (at least, by less than a line) of prose in 20 scripts, markdown and code, with one
/// line in twenty of arbitrary characters.
pub fn text(bytes: usize, seed: u64) -> String {
    let mut random = Random(seed);
    let mut text = String::with_capacity(bytes + 512);
    let scripts: Vec<(Vec<&str>, &str)> = SCRIPTS
        .iter()
        .map(|(words, joint)| (words.split_whitespace().collect(), *joint))
        .collect();
    while text.len() < bytes {
        match random.below(20) {
            0 => wild(&mut random, &mut text),
            1..=4 => text += random.pick(CODE),
            5..=7 => text += random.pick(MARKDOWN),
            _ => {
                // Half of the prose is English, as in the text that models are asked about.
                let script = random.below(2 * scripts.len());
                let (words, joint) = &scripts[script.saturating_sub(scripts.len())];
                for _ in 0..4 + random.below(16) {
                    text += random.pick(words);
                    text += joint;
                }
                if random.below(3) == 0 {
                    // Writing to a String can't fail.
                    let _ = write!(text, "{}", random.below(100_000));
                }
                text += [".\n", ", ", "。", "! ", "\n\n"][random.below(5)];
            }
        }
    }
    text
}

/// A line of arbitrary characters, each plane's blocks as likely as any.
fn wild(random: &mut Random, text: &mut String) {
    for _ in 0..random.below(40) {
        let limit = [0x80, 0x800, 0x3000, 0x1_0000, 0x11_0000][random.below(5)];
        text.extend(char::from_u32(random.below(limit) as u32));
    }
}
