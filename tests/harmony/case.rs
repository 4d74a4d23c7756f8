//! One row of the vectors: what the model writes, and what it must become.

use super::support::{ids, names, parse};
use gossamer::harmony::{Builtin, Channel, Ending, Part, Repair, Role, Turn};

pub struct Case {
    pub input: Vec<u32>,
    functions: &'static [&'static str],
    builtins: &'static [Builtin],
}

pub fn given(input: &str) -> Case {
    Case {
        input: ids(input),
        functions: &["f", "ffgrep", "shell", "get_weather", "web-browsing"],
        builtins: &[],
    }
}

impl Case {
    pub fn functions(mut self, functions: &'static [&'static str]) -> Case {
        self.functions = functions;
        self
    }

    pub fn builtins(mut self, builtins: &'static [Builtin]) -> Case {
        self.builtins = builtins;
        self
    }

    #[track_caller]
    pub fn gives(self, messages: &[&str], ending: Ending, repairs: &[Repair]) -> Turn {
        let names = names(self.functions, self.builtins);
        let turn = parse(&names, &self.input, self.input.len() as u64);
        let told: Vec<String> = turn
            .messages
            .iter()
            .zip(&turn.parts)
            .map(|(message, part)| {
                let part = match part {
                    Part::Reasoning => "reasoning".to_owned(),
                    Part::Text => "text".to_owned(),
                    Part::Call { name } => format!("call {name}"),
                    Part::Foreign => match message.role {
                        Role::Tool => format!("tool {}", message.name.as_deref().unwrap_or("?")),
                        role => role.as_str().to_owned(),
                    },
                };
                let channel = message.channel.map_or("-", Channel::as_str);
                let recipient = message.recipient.as_deref().unwrap_or("-");
                format!("{part} | {channel} | {recipient} | {}", message.content)
            })
            .collect();
        assert_eq!(told, messages);
        let found: Vec<Repair> = turn
            .repairs
            .iter()
            .flat_map(|(repair, n)| std::iter::repeat_n(repair, n))
            .collect();
        assert_eq!(found, repairs);
        assert_eq!(turn.repairs.total(), repairs.len());
        assert_eq!(turn.ending, ending);
        turn
    }
}

/// A turn's reasoning, before what is tested.
pub const THINK: &str = "<|channel|>analysis<|message|>Hm.<|end|>";
