//! Reading a message's header, tolerantly.
//!
//! A header is `[<|start|>] role [to=recipient] <|channel|> channel [to=recipient]
//! [<|constrain|>] [type]`, ended by `<|message|>`. Models leave parts out, repeat them, glue them
//! together, and put text where a header should be. So a header is read as far as it makes sense;
//! the end of the last part that did is the *anchor*, and if words follow that can't be a header's,
//! they are text, from the anchor on.
//!
//! One word that means nothing may be a type, a role or a channel nobody knows: it is held back
//! until what follows decides. So at most a word, and never more than [`LIMIT`] bytes or
//! [`MARKS`] control tokens, is held back. Signs and digits alone (`??`, `2?`) are junk in a header,
//! and text only where nothing else comes.

use super::account::{Class, Repair};
use super::control::Control;
use super::lex::{Collected, Lex, Lexeme};
use super::message::{Channel, Role};
use super::names::{FUNCTIONS, ToolNames};

/// Bytes held back after the anchor.
pub(super) const LIMIT: usize = 512;
/// Junk held back after the anchor.
const JUNK_LIMIT: usize = 64;
/// Control tokens in one header.
pub(super) const MARKS: usize = 16;
/// Content types that models name without `<|constrain|>`.
const TYPES: [&str; 6] = ["json", "code", "text", "plain", "markdown", "python"];

/// How a header began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// The prompt ended in `<|start|>assistant`.
    Prompt,
    /// With `<|start|>`.
    Marker,
    /// After the end of a message, or within one, without `<|start|>`.
    Missing,
}

/// How far the header's tokens go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// More may come: the last word may not be whole.
    More,
    /// `<|message|>` came: all of it is header.
    Message,
    /// Something else ended it.
    Cut,
}

/// What stands after the anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    Nothing,
    /// Words of headers, or the beginning of one.
    Words,
    /// Signs and digits, perhaps with words of headers.
    Junk,
    /// One word held back; true if more of a header would make sense of it.
    Word(bool),
    /// More than a header can hold.
    Text,
}

/// A header's parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub role: Role,
    pub name: Option<String>,
    pub channel: Option<Channel>,
    pub recipient: Option<String>,
    pub content_type: Option<String>,
}

/// A header as far as it makes sense.
#[derive(Debug)]
pub(super) struct Reading {
    pub header: Header,
    /// What each lexeme is.
    pub classes: Vec<Class>,
    /// Where the part that makes sense ends, in bytes.
    pub anchor: usize,
    /// Whether any part of a header was found that text can't be mistaken for.
    pub found: bool,
    /// Whether `<|start|>` stands there without a role.
    pub no_role: bool,
    pub tail: Tail,
}

/// A word held back.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Loose {
    Role,
    /// After `<|channel|>`.
    UnknownChannel(String),
    /// A channel's name without `<|channel|>`.
    BareChannel(Channel),
    Type(String),
    Recipient(String),
    /// A recipient that no tool is known for, before the channel.
    To(String),
}

struct Reader<'a> {
    names: &'a ToolNames,
    start: Start,
    classes: Vec<Class>,
    anchor: usize,
    found: bool,
    role: Option<Role>,
    /// A speaker's name behind its role, or an unknown role, with the lexeme's index.
    name: Option<String>,
    odd_role: Option<(usize, String)>,
    channel: Option<Channel>,
    recipient: Option<String>,
    content_type: Option<String>,
    channel_marked: bool,
    channel_due: bool,
    constrained: bool,
    type_due: bool,
    loose: Option<(usize, Loose)>,
}

/// Reads what was collected of a header.
pub(super) fn read(
    collected: &Collected,
    lexemes: &[Lexeme],
    start: Start,
    names: &ToolNames,
    until: Until,
) -> Reading {
    let mut reader = Reader {
        names,
        start,
        classes: vec![Class::Header; lexemes.len()],
        anchor: 0,
        found: false,
        role: None,
        name: None,
        odd_role: None,
        channel: None,
        recipient: None,
        content_type: None,
        channel_marked: false,
        channel_due: false,
        constrained: false,
        type_due: false,
        loose: None,
    };
    let mut text = false;
    for (i, lexeme) in lexemes.iter().enumerate() {
        let open = until == Until::More && i + 1 == lexemes.len();
        if !reader.accept(i, lexeme, open) {
            text = true;
            break;
        }
    }
    if until == Until::Message {
        // Text would have been seen before; what is left is a word that came to nothing.
        for (class, lexeme) in reader.classes.iter_mut().zip(lexemes) {
            if text
                && lexeme.start >= reader.anchor
                && matches!(lexeme.lex, Lex::Word(_) | Lex::To(_))
            {
                *class = Class::Repaired(Repair::Junk);
            }
        }
        text = false;
        reader.settle();
        reader.anchor = collected.bytes.len();
    }
    let held = collected.bytes.len() - reader.anchor;
    let signs = |lexeme: &Lexeme| {
        lexeme.start >= reader.anchor
            && match &lexeme.lex {
                Lex::Junk(_) => true,
                Lex::Word(word) => !word.contains(char::is_alphabetic),
                _ => false,
            }
    };
    let after = |lexeme: &Lexeme| lexeme.start >= reader.anchor && lexeme.lex != Lex::Blank;
    let tail = match &reader.loose {
        _ if text || held > LIMIT => Tail::Text,
        Some((_, loose)) => Tail::Word(match loose {
            Loose::Role | Loose::Type(_) | Loose::BareChannel(_) | Loose::To(_) => true,
            Loose::UnknownChannel(word) => begins_channel(word),
            Loose::Recipient(_) => false,
        }),
        None if held > JUNK_LIMIT && lexemes.iter().any(signs) => Tail::Text,
        None if lexemes.iter().any(signs) => Tail::Junk,
        None if lexemes.iter().any(after) => Tail::Words,
        None => Tail::Nothing,
    };
    reader.finish(tail)
}

impl Reader<'_> {
    /// Takes in the next lexeme; false if it can't be part of a header. `open`: it may go on.
    fn accept(&mut self, i: usize, lexeme: &Lexeme, open: bool) -> bool {
        match &lexeme.lex {
            Lex::Blank => true,
            Lex::Mark(control) => self.mark(i, *control, lexeme.end),
            Lex::Alien(repair) => {
                self.classes[i] = Class::Repaired(*repair);
                let waiting = self.loose.is_some() || (!self.found && lexeme.start > self.anchor);
                if !waiting {
                    self.anchor = lexeme.end;
                }
                !waiting
            }
            Lex::Literal => {
                self.classes[i] = Class::Repaired(Repair::Recipient);
                if self.found && !open {
                    self.settle();
                    self.type_due = true;
                    self.anchor = lexeme.end;
                }
                self.found || open
            }
            Lex::Junk(opens_text) => {
                self.classes[i] = Class::Repaired(Repair::Junk);
                self.loose.is_none() && !opens_text
            }
            Lex::To(name) => open || self.to(i, name, lexeme.end),
            Lex::Word(word) => self.word(i, word, lexeme.end) || (open && self.may_grow(word)),
        }
    }

    fn mark(&mut self, i: usize, control: Control, end: usize) -> bool {
        self.settle();
        let repair = match control {
            Control::Channel => {
                let again = self.channel_marked;
                self.channel = None;
                self.channel_marked = true;
                self.channel_due = true;
                self.type_due = false;
                again.then_some(Repair::Repeated)
            }
            Control::Constrain => {
                let again = std::mem::replace(&mut self.constrained, true);
                self.type_due = true;
                match again {
                    true => Some(Repair::Repeated),
                    false => (!self.found && !self.channel_marked).then_some(Repair::StrayMarker),
                }
            }
            _ => None,
        };
        self.classes[i] = repair.map_or(Class::Marker, Class::Repaired);
        self.anchor = end;
        true
    }

    fn to(&mut self, i: usize, name: &str, end: usize) -> bool {
        let from_tool =
            self.odd_role.is_some() || !matches!(self.role, None | Some(Role::Assistant));
        if !self.found && self.start != Start::Marker && !self.channel_marked {
            // Text may begin with "to=" too: what follows decides.
            let sure =
                name.contains('.') || name == "assistant" || self.names.resolve(name).is_some();
            if !sure {
                let waits = self.loose.is_none() && !name.is_empty();
                if waits {
                    self.hold(i, Loose::To(name.to_owned()));
                }
                return waits;
            }
        }
        self.settle();
        if !from_tool && name == "assistant" {
            self.classes[i] = Class::Repaired(Repair::Recipient);
            if self.found {
                self.anchor = end;
            }
            return true;
        }
        self.found = true;
        self.anchor = end;
        if name.is_empty() || name == FUNCTIONS {
            self.classes[i] = Class::Repaired(Repair::Recipient);
            return true;
        }
        let clean = self.unglued(name);
        if clean.len() < name.len() {
            self.classes[i] = Class::Repaired(Repair::Recipient);
            self.content_type = Some("json".to_owned());
        } else if self.recipient.is_some() {
            self.classes[i] = Class::Repaired(Repair::Repeated);
        }
        self.recipient = Some(clean.to_owned());
        true
    }

    /// `shell` of `functions.shelljson`, unless there is such a tool.
    fn unglued<'n>(&self, name: &'n str) -> &'n str {
        let Some(base) = name.strip_suffix("json") else {
            return name;
        };
        let plausible = base.ends_with(char::is_alphanumeric)
            && !self.names.is_declared(name)
            && (self.names.is_declared(base) || !self.names.has_functions());
        if plausible { base } else { name }
    }

    fn word(&mut self, i: usize, word: &str, end: usize) -> bool {
        if !word.contains(char::is_alphabetic) {
            self.classes[i] = Class::Repaired(Repair::Junk);
            return self.loose.is_none();
        }
        let channel = channel(word);
        let role_due = self.start == Start::Marker
            && self.role.is_none()
            && self.odd_role.is_none()
            && !self.channel_marked;
        if role_due && channel.is_none() {
            return self.role(i, word, end);
        }
        if self.loose.is_some() {
            return false;
        }
        if word == Role::Assistant.as_str() {
            self.classes[i] = Class::Repaired(Repair::Repeated);
            if self.found {
                self.anchor = end;
            }
            return true;
        }
        if self.channel_due {
            match channel {
                None => self.hold(i, Loose::UnknownChannel(word.to_owned())),
                Some(channel) => {
                    self.channel = Some(channel);
                    self.channel_due = false;
                    self.found = true;
                    self.anchor = end;
                    if word != channel.as_str() {
                        self.classes[i] = Class::Repaired(Repair::Junk);
                    }
                }
            }
            return true;
        }
        let is_type = TYPES.contains(&word);
        if self.type_due {
            let clean = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '+');
            if !word.chars().all(clean) {
                return false;
            }
            let content_type = format!("<|constrain|>{word}");
            self.type_due = false;
            if is_type {
                self.content_type = Some(content_type);
                self.anchor = end;
            } else {
                self.hold(i, Loose::Type(content_type));
            }
            return true;
        }
        if let Some(channel) = channel {
            match self.channel_marked {
                true => self.classes[i] = Class::Repaired(Repair::Junk),
                false => self.hold(i, Loose::BareChannel(channel)),
            }
            return true;
        }
        if self.recipient.is_some() {
            if self.content_type.is_some() {
                return false;
            }
            if is_type {
                self.content_type = Some(word.to_owned());
                self.anchor = end;
            } else {
                self.hold(i, Loose::Type(word.to_owned()));
            }
            return true;
        }
        if self.channel.is_none() || self.content_type.is_some() {
            return false;
        }
        if self.channel != Some(Channel::Final) && self.names.resolve(word).is_some() {
            self.classes[i] = Class::Repaired(Repair::Recipient);
            self.recipient = Some(word.to_owned());
            self.anchor = end;
        } else if is_type {
            self.hold(i, Loose::Type(word.to_owned()));
        } else {
            self.hold(i, Loose::Recipient(word.to_owned()));
        }
        true
    }

    /// The word after `<|start|>`.
    fn role(&mut self, i: usize, word: &str, end: usize) -> bool {
        let (role, name) = match word.split_once(':') {
            Some((role, name)) => (role, Some(name)),
            None => (word, None),
        };
        if let Some(role) = Role::from_word(role) {
            self.role = Some(role);
            self.name = match role {
                Role::Tool => Some(word.to_owned()),
                _ => name.filter(|name| !name.is_empty()).map(str::to_owned),
            };
            self.found = true;
            self.anchor = end;
        } else {
            self.odd_role = Some((i, word.to_owned()));
            self.hold(i, Loose::Role);
        }
        true
    }

    fn hold(&mut self, i: usize, loose: Loose) {
        self.loose = Some((i, loose));
    }

    /// A part that can only belong to a header follows: the word held back belongs to it too.
    fn settle(&mut self) {
        let Some((i, loose)) = self.loose.take() else {
            return;
        };
        match loose {
            Loose::Role => {}
            Loose::UnknownChannel(_) => {
                self.classes[i] = Class::Repaired(Repair::UnknownChannel);
                self.channel_due = false;
            }
            Loose::BareChannel(channel) => {
                self.classes[i] = Class::Repaired(Repair::MissingChannel);
                self.channel = Some(channel);
            }
            Loose::Type(content_type) => self.content_type = Some(content_type),
            Loose::To(name) => self.recipient = Some(name),
            Loose::Recipient(name) => {
                self.classes[i] = Class::Repaired(Repair::Recipient);
                self.recipient = Some(name);
            }
        }
        self.found = true;
    }

    /// Whether `word`, which can't stand here, may be the beginning of one that can.
    fn may_grow(&self, word: &str) -> bool {
        let begins = |known: &str| known.starts_with(word);
        begins("to=")
            || (self.loose.is_none() && (begins(Role::Assistant.as_str()) || begins_channel(word)))
    }

    fn finish(mut self, tail: Tail) -> Reading {
        let mut role = self.role;
        let mut name = self.name;
        if let Some((i, word)) = self.odd_role {
            let calls = |to: &String| self.names.resolve(to).is_some();
            let answers = self.recipient.as_ref().is_some_and(|to| !calls(to));
            let tool = answers || word.starts_with(FUNCTIONS) || self.names.is_builtin(&word);
            if tool {
                role = Some(Role::Tool);
                name = Some(match self.names.resolve(&word) {
                    Some(resolved) => resolved.address,
                    None => word,
                });
            } else if let Some(class) = self.classes.get_mut(i) {
                *class = Class::Repaired(Repair::UnknownRole);
                role = Some(Role::Assistant);
            }
        }
        Reading {
            no_role: self.start == Start::Marker && role.is_none(),
            header: Header {
                role: role.unwrap_or(Role::Assistant),
                name,
                channel: self.channel,
                recipient: self.recipient,
                content_type: self.content_type,
            },
            classes: self.classes,
            anchor: self.anchor,
            found: self.found,
            tail,
        }
    }
}

fn begins_channel(word: &str) -> bool {
    let begins = |channel: Channel| channel.as_str().starts_with(word);
    Channel::ALL.into_iter().any(begins)
}

fn channel(word: &str) -> Option<Channel> {
    let same = |channel: &Channel| channel.as_str().eq_ignore_ascii_case(word);
    Channel::ALL.into_iter().find(same)
}
