//! Messages to token ids.
//!
//! The layout is openai-harmony 0.0.8's, judged by it id for id. Every piece of text is encoded on
//! its own between control tokens, as there; nothing a client sends can become a control token.
//!
//! Past calls name their recipient before the channel (`assistant to=functions.f<|channel|>commentary
//! <|constrain|>json`), which keeps the model from naming it twice. Finished turns lose their
//! reasoning: analysis before the last final answer that something follows is left out, and all of
//! it after that is kept, so thought between tool calls stays. Calls of the client's functions stay
//! even if they were made on analysis, as their results would hang in the air.

use super::control::Controls;
use super::message::{Builtin, Channel, Conversation, Message, Role, Tool};
use super::names::{FUNCTIONS, ToolNames};
use super::schema::typescript;
use crate::tokenizer::{Tokenizer, lossy};
use anyhow::{Result, bail, ensure};
use std::fmt::Write as _;

const IDENTITY: &str = "You are ChatGPT, a large language model trained by OpenAI.";
const KNOWLEDGE_CUTOFF: &str = "2024-06";
const CONSTRAIN: &str = "<|constrain|>";

impl Conversation {
    /// The whole prompt: system message, developer message if there is anything to say in it, the
    /// conversation, and the `<|start|>assistant` that the model continues.
    ///
    /// # Errors
    /// When the vocabulary lacks a control token of Harmony, the date isn't `YYYY-MM-DD`, a tool has
    /// no name or parameters that are no schema, a tool's message names no tool, or a name or a
    /// recipient holds a blank.
    pub fn render(&self, tok: &Tokenizer) -> Result<Vec<u32>> {
        let mut out = Renderer {
            tok,
            control: Controls::new(tok)?,
            names: self.tool_names(),
            ids: Vec::new(),
        };
        self.check()?;
        out.plain(Role::System, &self.system_text());
        let developer = self.developer_text(&out.names);
        if !developer.is_empty() {
            out.plain(Role::Developer, &developer);
        }
        let past = self.past();
        for (i, message) in self.messages.iter().enumerate() {
            if i < past && !self.keep_analysis && is_private(message, &out.names) {
                continue;
            }
            out.message(i, message)?;
        }
        out.ids.push(out.control.start);
        out.text(Role::Assistant.as_str());
        Ok(out.ids)
    }

    /// The prompt as text, control tokens by their names; for logs and tests. Unlike the ids it can't
    /// tell a control token from text that looks like one.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_text(&self, tok: &Tokenizer) -> Result<String> {
        Ok(lossy(&tok.decode(&self.render(tok)?)).into_owned())
    }

    /// The declared tools' names, which a [`Parser`](super::Parser) of the answer needs.
    pub fn tool_names(&self) -> ToolNames {
        ToolNames::new(self)
    }

    fn check(&self) -> Result<()> {
        if let Some(date) = &self.date {
            let valid = date.parse::<jiff::civil::Date>().is_ok() && date.len() == 10;
            ensure!(valid, "date: expected YYYY-MM-DD, found {date:?}");
        }
        for (i, tool) in self.tools.iter().enumerate() {
            ensure!(!tool.name.is_empty(), "tools[{i}]: its name is empty");
            if let Some(parameters) = &tool.parameters {
                ensure!(
                    parameters.is_object() || parameters.is_boolean() || parameters.is_null(),
                    "tool {}: parameters: expected a JSON Schema (an object), found {parameters:.40}",
                    tool.name
                );
            }
        }
        Ok(())
    }

    /// Messages before this index belong to finished turns.
    fn past(&self) -> usize {
        let answered = self.messages.len().saturating_sub(1);
        self.messages[..answered]
            .iter()
            .rposition(|m| m.role == Role::Assistant && m.channel == Some(Channel::Final))
            .unwrap_or(0)
    }

    fn system_text(&self) -> String {
        let mut text = format!(
            "{}\nKnowledge cutoff: {KNOWLEDGE_CUTOFF}",
            self.identity.as_deref().unwrap_or(IDENTITY)
        );
        if let Some(date) = &self.date {
            let _ = write!(text, "\nCurrent date: {date}");
        }
        let _ = write!(text, "\n\nReasoning: {}", self.effort.as_str());
        let mut builtins = self.builtins.clone();
        builtins.sort_unstable();
        builtins.dedup();
        if !builtins.is_empty() {
            text.push_str("\n\n# Tools");
        }
        for builtin in builtins {
            text.push_str("\n\n");
            text.push_str(&builtin_text(builtin));
        }
        let no_tools = self.tools.is_empty() && self.builtins.is_empty();
        let usual = match no_tools {
            true => vec![Channel::Analysis, Channel::Final],
            false => Channel::ALL.to_vec(),
        };
        let channels = self.channels.as_ref().unwrap_or(&usual);
        if !channels.is_empty() {
            let names: Vec<&str> = channels.iter().map(|channel| channel.as_str()).collect();
            let _ = write!(
                text,
                "\n\n# Valid channels: {}. Channel must be included for every message.",
                names.join(", ")
            );
            if !self.tools.is_empty() {
                text.push_str(
                    "\nCalls to these tools must go to the commentary channel: 'functions'.",
                );
            }
        }
        text
    }

    fn developer_text(&self, names: &ToolNames) -> String {
        let mut sections = Vec::new();
        if let Some(instructions) = &self.instructions {
            sections.push(instructions_text(instructions));
        }
        if !self.tools.is_empty() {
            sections.push("# Tools".to_owned());
            sections.push(namespace("functions", "", &self.tools, names));
        }
        if !self.response_formats.is_empty() {
            sections.push("# Response Formats".to_owned());
        }
        for format in &self.response_formats {
            let mut text = format!("## {}\n\n", format.name);
            for line in format.description.iter().flat_map(|text| text.lines()) {
                let _ = writeln!(text, "// {line}");
            }
            let _ = write!(text, "{}", format.schema);
            sections.push(text);
        }
        sections.join("\n\n")
    }
}

fn instructions_text(instructions: &str) -> String {
    format!("# Instructions\n\n{instructions}")
}

/// Reasoning, builtin tools' part in it included, but neither calls nor results of functions.
fn is_private(message: &Message, names: &ToolNames) -> bool {
    let address = match message.role {
        Role::Tool => &message.name,
        _ => &message.recipient,
    };
    let is_function = |a: &String| a.starts_with(FUNCTIONS) || names.function(a).is_some();
    message.channel == Some(Channel::Analysis) && !address.as_ref().is_some_and(is_function)
}

/// A namespace of functions.
fn namespace(name: &str, description: &str, tools: &[Tool], names: &ToolNames) -> String {
    let mut text = format!("## {name}\n\n{description}namespace {name} {{\n\n");
    for tool in tools {
        for line in tool.description.iter().flat_map(|text| text.lines()) {
            let _ = writeln!(text, "// {line}");
        }
        let shown = names.shown(&tool.name);
        let _ = match tool.parameters.as_ref().filter(|schema| !schema.is_null()) {
            Some(schema) => write!(
                text,
                "type {shown} = (_: {}) => any;\n\n",
                typescript(schema)
            ),
            None => write!(text, "type {shown} = () => any;\n\n"),
        };
    }
    let _ = write!(text, "}} // namespace {name}");
    text
}

struct Renderer<'a> {
    tok: &'a Tokenizer,
    control: Controls,
    names: ToolNames,
    ids: Vec<u32>,
}

impl Renderer<'_> {
    /// The only way for text into the prompt.
    fn text(&mut self, text: &str) {
        if !text.is_empty() {
            self.ids.extend(self.tok.encode(text));
        }
    }

    /// A message with nothing but its role in the header.
    fn plain(&mut self, role: Role, content: &str) {
        self.ids.push(self.control.start);
        self.text(role.as_str());
        self.ids.push(self.control.message);
        self.text(content);
        self.ids.push(self.control.end);
    }

    fn message(&mut self, index: usize, message: &Message) -> Result<()> {
        let word = |what: &str, text: &str| {
            let blank = text.is_empty() || text.contains(char::is_whitespace);
            match blank {
                true => bail!("messages[{index}]: {what}: expected a word, found {text:?}"),
                false => Ok(()),
            }
        };
        self.ids.push(self.control.start);
        match (message.role, &message.name) {
            (Role::Tool, Some(name)) => {
                let shown = self.names.shown_address(name);
                word("name", &shown)?;
                self.text(&shown);
            }
            (Role::Tool, None) => bail!(
                "messages[{index}]: a tool's message must name the tool that wrote it (name: functions.NAME)"
            ),
            (role, name) => {
                self.text(role.as_str());
                if let Some(name) = name {
                    word("name", name)?;
                    self.text(&format!(":{name}"));
                }
            }
        }
        let mut end = self.control.end;
        if let Some(recipient) = &message.recipient {
            let shown = match message.role {
                Role::Assistant => {
                    end = self.control.call;
                    self.names.shown_address(recipient)
                }
                _ => recipient.clone(),
            };
            word("recipient", &shown)?;
            self.text(&format!(" to={shown}"));
        }
        if let Some(channel) = message.channel {
            self.ids.push(self.control.channel);
            self.text(channel.as_str());
        }
        match message.content_type.as_deref() {
            None => {}
            Some(marked) if marked.starts_with(CONSTRAIN) => {
                self.text(" ");
                self.ids.push(self.control.constrain);
                self.text(&marked[CONSTRAIN.len()..]);
            }
            Some(plain) => self.text(&format!(" {plain}")),
        }
        self.ids.push(self.control.message);
        match message.role {
            Role::Developer => self.text(&instructions_text(&message.content)),
            _ => self.text(&message.content),
        }
        self.ids.push(end);
        Ok(())
    }
}

fn builtin_text(builtin: Builtin) -> String {
    match builtin {
        Builtin::Browser => {
            let description = BROWSER.lines().fold(String::new(), |mut text, line| {
                let _ = writeln!(text, "// {line}");
                text
            });
            namespace(
                "browser",
                &description,
                &browser_tools(),
                &ToolNames::default(),
            )
        }
        Builtin::Python => format!("## python\n\n{PYTHON}"),
    }
}

// The words the model was trained on.

const BROWSER: &str = "\
Tool for browsing.
The `cursor` appears in brackets before each browsing display: `[{cursor}]`.
Cite information from the tool using the following format:
`【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`.
Do not quote more than 10 words directly from the tool output.
sources=web (default: web)";

const PYTHON: &str = "\
Use this tool to execute Python code in your chain of thought. The code will not be shown to the user. \
This tool should be used for internal reasoning, but not for code that is intended to be visible to the \
user (e.g. when creating plots, tables, or files).

When you send a message containing Python code to python, it will be executed in a stateful Jupyter \
notebook environment. python will respond with the output of the execution or time out after 120.0 \
seconds. The drive at '/mnt/data' can be used to save and persist user files. Internet access for this \
session is UNKNOWN. Depends on the cluster.";

fn browser_tools() -> [Tool; 3] {
    let number = || serde_json::json!({"type": "number", "default": -1});
    let text = || serde_json::json!({"type": "string"});
    let tool = |name: &str, description: &str, properties, required: &[&str]| Tool {
        name: name.to_owned(),
        description: Some(description.to_owned()),
        parameters: Some(serde_json::json!({
            "type": "object", "properties": properties, "required": required,
        })),
    };
    [
        tool(
            "search",
            "Searches for information related to `query` and displays `topn` results.",
            serde_json::json!({
                "query": text(), "topn": {"type": "number", "default": 10}, "source": text(),
            }),
            &["query"],
        ),
        tool(
            "open",
            "Opens the link `id` from the page indicated by `cursor` starting at line number `loc`, \
             showing `num_lines` lines.\n\
             Valid link ids are displayed with the formatting: `【{id}†.*】`.\n\
             If `cursor` is not provided, the most recent page is implied.\n\
             If `id` is a string, it is treated as a fully qualified URL associated with `source`.\n\
             If `loc` is not provided, the viewport will be positioned at the beginning of the document \
             or centered on the most relevant passage, if available.\n\
             Use this function without `id` to scroll to a new location of an opened page.",
            serde_json::json!({
                "id": {"type": ["number", "string"], "default": -1},
                "cursor": number(), "loc": number(), "num_lines": number(),
                "view_source": {"type": "boolean", "default": false}, "source": text(),
            }),
            &[],
        ),
        tool(
            "find",
            "Finds exact matches of `pattern` in the current page, or the page given by `cursor`.",
            serde_json::json!({"pattern": text(), "cursor": number()}),
            &["pattern"],
        ),
    ]
}
