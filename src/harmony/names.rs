//! Names of tools: the client's, and the model's.
//!
//! The model sees functions as TypeScript types, so a name that is no identifier (`web-search`,
//! `get.weather`) is shown as one (`web_search`) and mapped back when called. The map is one to one,
//! and depends on the declared tools alone: the same tools give the same prompt.

use super::message::{Builtin, Conversation};
use rustc_hash::FxHashMap;

/// Namespace of the client's functions.
pub(super) const FUNCTIONS: &str = "functions.";

/// The tools that a conversation declares.
#[derive(Debug, Clone, Default)]
pub struct ToolNames {
    /// Client's name to the model's.
    shown: FxHashMap<String, String>,
    /// Model's name to the client's.
    declared: FxHashMap<String, String>,
    builtins: Vec<Builtin>,
}

impl ToolNames {
    /// Of the tools that `conversation` declares.
    pub fn new(conversation: &Conversation) -> ToolNames {
        let names = conversation.tools.iter().map(|tool| tool.name.as_str());
        ToolNames::from_names(names, &conversation.builtins)
    }

    /// Of functions `names` and of `builtins`. A name given twice counts once.
    pub fn from_names<'a>(
        names: impl IntoIterator<Item = &'a str>,
        builtins: &[Builtin],
    ) -> ToolNames {
        let names: Vec<&str> = names.into_iter().collect();
        let mut map = ToolNames {
            builtins: builtins.to_vec(),
            ..ToolNames::default()
        };
        // Names that are identifiers already keep themselves, whatever stands before them.
        for &name in names.iter().filter(|name| is_identifier(name)) {
            map.insert(name, name.to_owned());
        }
        for &name in names.iter().filter(|name| !is_identifier(name)) {
            if map.shown.contains_key(name) {
                continue;
            }
            let base = identifier(name);
            let free = |shown: &String| !map.declared.contains_key(shown);
            let shown = std::iter::once(base.clone())
                .chain((2..).map(|n| format!("{base}_{n}")))
                .find(free)
                .unwrap_or(base);
            map.insert(name, shown);
        }
        map
    }

    fn insert(&mut self, name: &str, shown: String) {
        self.declared.insert(shown.clone(), name.to_owned());
        self.shown.insert(name.to_owned(), shown);
    }

    /// How the model sees function `name`; names not declared (of an old call) are made identifiers too.
    pub fn shown(&self, name: &str) -> String {
        match self.shown.get(name) {
            Some(shown) => shown.clone(),
            None => identifier(name),
        }
    }

    /// How the model sees a recipient or a tool message's author: functions by their shown name in
    /// their namespace, everything else unchanged.
    pub(super) fn shown_address(&self, address: &str) -> String {
        match address.strip_prefix(FUNCTIONS) {
            Some(name) => format!("{FUNCTIONS}{}", self.shown(name)),
            None if self.shown.contains_key(address) => {
                format!("{FUNCTIONS}{}", self.shown(address))
            }
            None => address.to_owned(),
        }
    }

    /// The client's name of the function that the model calls `name`.
    pub(super) fn function(&self, name: &str) -> Option<&str> {
        let declared = self.declared.get(name).map(String::as_str);
        declared.or_else(|| {
            self.shown
                .get_key_value(name)
                .map(|(name, _)| name.as_str())
        })
    }

    /// Whether `address` is a declared builtin (`python`, `browser.search`).
    pub(super) fn is_builtin(&self, address: &str) -> bool {
        self.builtins.iter().any(|builtin| match builtin {
            Builtin::Browser => {
                matches!(address, "browser.search" | "browser.open" | "browser.find")
            }
            Builtin::Python => address == "python",
        })
    }

    /// Resolves a recipient to the called tool: a function's client name, a builtin's full name. A
    /// function unknown in `functions.` is a call too where functions are declared at all: its
    /// client can answer that there is none. None: not a call but text.
    pub(super) fn resolve(&self, address: &str) -> Option<Resolved> {
        let bare = address.strip_prefix(FUNCTIONS);
        if let Some(name) = self.function(bare.unwrap_or(address)) {
            let name = name.to_owned();
            return Some(Resolved {
                address: match bare {
                    Some(_) => format!("{FUNCTIONS}{name}"),
                    None => name.clone(),
                },
                name,
            });
        }
        let unknown = bare.filter(|name| !name.is_empty() && self.has_functions());
        let name = unknown.or_else(|| self.is_builtin(address).then_some(address))?;
        Some(Resolved {
            address: address.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Whether any function is declared.
    pub(super) fn has_functions(&self) -> bool {
        !self.shown.is_empty()
    }

    /// Whether the model was told of a tool at `address`.
    pub(super) fn is_declared(&self, address: &str) -> bool {
        let bare = address.strip_prefix(FUNCTIONS);
        self.function(bare.unwrap_or(address)).is_some() || self.is_builtin(address)
    }
}

/// A recipient in the client's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolved {
    /// The recipient, its function by the client's name.
    pub address: String,
    /// The tool's name.
    pub name: String,
}

fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(starts_identifier) && chars.all(continues_identifier)
}

fn starts_identifier(c: char) -> bool {
    c.is_alphabetic() || matches!(c, '_' | '$')
}

fn continues_identifier(c: char) -> bool {
    starts_identifier(c) || c.is_numeric()
}

/// `name` with everything that no identifier may hold replaced by `_`.
fn identifier(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 1);
    if !name.chars().next().is_some_and(|c| {
        // What can't stand anywhere is replaced below; a digit only can't stand first.
        starts_identifier(c) || !continues_identifier(c)
    }) {
        out.push('_');
    }
    out.extend(name.chars().map(|c| match continues_identifier(c) {
        true => c,
        false => '_',
    }));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_to_identifiers_and_back() {
        let given = [
            "web-search",
            "web_search",
            "web.search",
            "2fast",
            "",
            "größe",
            "a b",
        ];
        let names = ToolNames::from_names(given, &[]);
        let shown: Vec<String> = given.iter().map(|name| names.shown(name)).collect();
        assert_eq!(
            shown,
            [
                "web_search_2",
                "web_search",
                "web_search_3",
                "_2fast",
                "_",
                "größe",
                "a_b"
            ]
        );
        for (name, shown) in given.iter().zip(&shown) {
            assert!(is_identifier(shown), "{shown}");
            assert_eq!(names.function(shown), Some(*name));
        }
    }
}
