//! Random rules: schemas of every keyword that is enforced, patterns, grammars, tools, choices.

use gossamer::{
    grammar::{Format, RuledTool, Rules, ToolChoice},
    harmony::{Builtin, Conversation, Message, Tool},
};
use serde_json::{Map, Value, json};

pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

const KEYS: [&str; 10] = [
    "name",
    "age",
    "größe",
    "a b",
    "x",
    "$ref",
    "say \"hi\"",
    "tags",
    "is_ok",
    "数",
];
const WORDS: [&str; 6] = ["red", "green", "blau", "two words", "日本", "\"quoted\"\n"];

impl Rng {
    /// A schema; `refs` if it may point to `#/$defs/node`.
    pub fn schema(&mut self, depth: usize, refs: bool) -> Value {
        let kinds = if depth == 0 { 9 } else { 14 };
        match self.below(kinds) {
            0 => json!({"type": "string"}),
            1 => {
                let least = self.below(4);
                json!({"type": "string", "minLength": least, "maxLength": least + self.below(9)})
            }
            2 => {
                let patterns = [
                    "^[a-z]{2,5}$",
                    "^[A-Z][a-z]+( [A-Z][a-z]+)?$",
                    "^#[0-9a-f]{6}$",
                    "^(red|green)?$",
                ];
                json!({"type": "string", "pattern": self.pick(&patterns)})
            }
            3 => json!({"type": "string", "format": self.pick(&["date", "ipv4", "uuid", "email"])}),
            4 => {
                let low = self.below(2000) as i64 - 1000;
                json!({"type": "integer", "minimum": low, "maximum": low + self.below(500) as i64})
            }
            5 => match self.below(3) {
                0 => json!({"type": "number"}),
                1 => json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1.5}),
                _ => json!({"type": "integer", "multipleOf": 7}),
            },
            6 => json!({"type": self.pick(&["boolean", "null"])}),
            7 => {
                let all = [
                    json!("red"),
                    json!(WORDS[4]),
                    json!(WORDS[5]),
                    json!(12),
                    json!(null),
                    json!([1, {"a": 2}]),
                ];
                let count = 1 + self.below(4);
                json!({"enum": all[..count]})
            }
            8 => json!({"const": self.pick(&WORDS)}),
            9 | 10 => self.object(depth, refs),
            11 => {
                let least = self.below(3);
                let items = self.schema(depth - 1, refs);
                json!({"type": "array", "items": items, "minItems": least, "maxItems": least + self.below(3)})
            }
            12 => json!({"anyOf": [self.schema(depth - 1, refs), {"type": "null"}]}),
            _ if refs => json!({"$ref": "#/$defs/node"}),
            _ => json!({"type": ["integer", "string"]}),
        }
    }

    fn object(&mut self, depth: usize, refs: bool) -> Value {
        let mut properties = Map::new();
        for _ in 0..1 + self.below(4) {
            properties.insert(self.pick(&KEYS).to_owned(), self.schema(depth - 1, refs));
        }
        let required: Vec<&String> = properties.keys().filter(|_| self.chance(70)).collect();
        let required = json!(required);
        let mut schema = json!({"type": "object", "properties": properties, "required": required});
        match self.below(4) {
            0 => {}
            1 => schema["additionalProperties"] = json!({"type": "integer"}),
            _ => schema["additionalProperties"] = json!(false),
        }
        schema
    }

    /// A schema as clients send them: an object at the root.
    pub fn root_schema(&mut self) -> Value {
        let refs = self.chance(30);
        let mut schema = self.object(3, refs);
        schema["title"] = json!("Answer");
        if refs {
            schema["$defs"] = json!({"node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}
                },
                "required": ["value", "next"],
                "additionalProperties": false
            }});
        }
        schema
    }

    fn format(&mut self) -> Option<Format> {
        match self.below(10) {
            0..3 => None,
            3 => Some(Format::JsonObject),
            4 => Some(Format::Regex(self.pick(&PATTERNS).to_owned())),
            5 => Some(Format::Lark(LARK.to_owned())),
            _ => {
                let schema = self.root_schema();
                Some(Format::JsonSchema { schema })
            }
        }
    }

    /// Rules, and a conversation that fits them.
    pub fn rules(&mut self) -> (Rules, Conversation) {
        let names = [
            "get_weather",
            "get_time",
            "get",
            "web-search",
            "größe",
            "shelljson",
            "2fast",
        ];
        let first = self.below(names.len());
        let count = self.below(4);
        let names: Vec<&str> = names
            .iter()
            .cycle()
            .skip(first)
            .take(count)
            .copied()
            .collect();
        let tools: Vec<RuledTool> = names
            .iter()
            .map(|name| RuledTool {
                name: (*name).to_owned(),
                strict: self.chance(50).then(|| self.root_schema()),
            })
            .collect();
        let choice = match self.below(5) {
            0 => ToolChoice::None,
            1 if count > 0 => ToolChoice::Required,
            2 if count > 0 => ToolChoice::Named(self.pick(&names).to_owned()),
            _ => ToolChoice::Auto,
        };
        let budget = [None, None, Some(0), Some(1), Some(30)];
        let rules = Rules {
            format: self.format(),
            tools,
            choice,
            parallel: self.chance(50),
            reasoning_budget: self.pick(&budget),
        };
        let tool = |tool: &RuledTool| Tool {
            name: tool.name.clone(),
            description: None,
            parameters: tool.strict.clone(),
        };
        let builtins = [
            vec![],
            vec![],
            vec![],
            vec![Builtin::Python, Builtin::Browser],
        ];
        let conversation = Conversation {
            tools: rules.tools.iter().map(tool).collect(),
            builtins: self.pick(&builtins),
            messages: vec![Message::user("Go on.")],
            ..Conversation::default()
        };
        (rules, conversation)
    }
}

/// Patterns that Rust and Python read the same.
const PATTERNS: [&str; 4] = [
    r"(yes|no|maybe)( [a-z]{1,8}){0,3}",
    r"[0-9]{4}-[0-9]{2}",
    r#"\{"name":"[a-zß-ü]{1,20}"\}"#,
    r"<answer>[^<>\r\n]{1,40}</answer>",
];

/// Sums; [`LARK_AS_REGEX`] is the same language.
const LARK: &str = "start: number (op number)*\nop: \" + \" | \" - \"\nnumber: /[1-9][0-9]{0,3}/\n";
pub const LARK_AS_REGEX: &str = r"[1-9][0-9]{0,3}( [+-] [1-9][0-9]{0,3})*";
