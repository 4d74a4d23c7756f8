//! `gossamer chat`: a conversation, on a terminal with an editable history, or line by line from a
//! pipe. Each turn renders the whole conversation; the engine's cache keeps what has not changed.

use super::{
    answer::{self, Answer, Show},
    engine::Opened,
    model::Common,
    run::{TurnFlags, harmony, instructions},
    sampling,
};
use crate::{
    engine::{Engine, Request},
    harmony::{Conversation, Effort, Message},
    machine,
    sampler::Sampling,
    tokenizer::{Tokenizer, lossy},
};
use anyhow::{Context, Result, bail};
use rustyline::{DefaultEditor, error::ReadlineError};
use std::{
    fs::File,
    io::{self, BufRead, IsTerminal, Write},
    path::PathBuf,
    sync::Arc,
};

/// What `chat` reads.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    turn: TurnFlags,
    #[command(flatten)]
    sampling: sampling::Flags,
    #[command(flatten)]
    common: Common,
}

const EXAMPLES: &str = "\
Examples:
  gossamer chat
  gossamer chat --model gpt-oss-20b --system \"Answer in one sentence.\"
  gossamer chat --model gpt-oss-20b --reasoning low < questions.txt

In the conversation, /help lists the commands. A line that ends in a backslash goes on in the next.
Ctrl-C ends an answer, Ctrl-D or /quit leaves.";

const HELP: &str = "\
/reset                      forget the conversation
/reasoning low|medium|high  how much the model thinks
/reasoning show|hide        whether you see it
/system TEXT|@FILE          instructions for the model; without text: show them; /system - drops them
/save FILE                  write the conversation as JSON
/stats                      context, cache and speed
/quit                       leave (also Ctrl-D)";

/// Places for the sliding windows: a turn takes a few, and goes on from one of the last.
const SNAPSHOTS: usize = 16;

/// Talks until the input ends.
pub fn run(args: Args) -> Result<()> {
    let sampling = args
        .sampling
        .sampling(args.common.model.is_none(), args.common.seed)?;
    let conversation = args.turn.conversation()?;
    let Opened {
        engine, tokenizer, ..
    } = args.common.open_engine(1, SNAPSHOTS)?;
    let interactive = io::stdin().is_terminal();
    let mut chat = Chat {
        show: Show {
            answer: true,
            reasoning: args.turn.show_reasoning,
        },
        flags: args.turn,
        verbose: args.common.verbose,
        sampling,
        conversation,
        engine,
        tokenizer,
        last: None,
        generated: 0,
    };
    if interactive {
        tell!(
            "{}: /help lists commands, /quit leaves.",
            chat.engine.info().name
        );
    }
    let mut input = Input::open(interactive)?;
    while let Some(line) = input.line()? {
        match chat.take(&line) {
            Ok(true) => {}
            Ok(false) => break,
            // A person tries again; a pipe has nobody who would see that its answer is missing.
            Err(error) if interactive && !super::closed_pipe(&error) => {
                tell!("error: {error:#}")
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

struct Chat {
    show: Show,
    flags: TurnFlags,
    verbose: bool,
    sampling: Sampling,
    conversation: Conversation,
    engine: Arc<dyn Engine>,
    tokenizer: Arc<Tokenizer>,
    last: Option<Answer>,
    /// Tokens of all answers.
    generated: usize,
}

impl Chat {
    /// Takes one line: a command, or what the person says. False when it is over.
    fn take(&mut self, line: &str) -> Result<bool> {
        let line = line.trim();
        if line.is_empty() {
            return Ok(true);
        }
        if !line.starts_with('/') || line.starts_with("//") {
            self.say(line.strip_prefix('/').unwrap_or(line))?;
            return Ok(true);
        }
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match command {
            "/quit" | "/exit" => return Ok(false),
            "/help" => tell!("{HELP}"),
            "/reset" => {
                self.conversation.messages.clear();
                self.last = None;
                tell!("The conversation is forgotten.");
            }
            "/reasoning" => self.reasoning(rest)?,
            "/system" => self.system(rest)?,
            "/save" => self.save(rest)?,
            "/stats" => self.stats()?,
            _ => bail!("no command {command}; /help lists them (// begins a message with /)"),
        }
        Ok(true)
    }

    /// One turn. If it fails, the conversation is as before.
    fn say(&mut self, text: &str) -> Result<()> {
        let before = self.conversation.messages.len();
        self.conversation.messages.push(Message::user(text));
        match self.answer() {
            Ok(answer) => {
                self.conversation
                    .messages
                    .extend(answer.messages.iter().cloned());
                self.generated += answer.usage.generated_tokens;
                answer.tell_rest(self.show);
                if self.verbose {
                    tell!("{}", answer.speed());
                }
                self.last = Some(answer);
                Ok(())
            }
            Err(error) => {
                self.conversation.messages.truncate(before);
                Err(error)
            }
        }
    }

    fn answer(&self) -> Result<Answer> {
        let (tokens, reader) = harmony(&self.conversation, &self.tokenizer)?;
        let context = self.engine.info().context;
        if tokens.len() >= context {
            let len = tokens.len();
            bail!(
                "the conversation has {len} tokens and the context holds {context}: /reset begins a new one"
            );
        }
        let request = Request {
            tokens,
            sampling: self.sampling.clone(),
            max_tokens: self.flags.max_tokens,
            stop_ids: self.tokenizer.stop_ids(),
            ..Request::default()
        };
        answer::stream(&*self.engine, request, reader, &self.flags.stop, self.show)
    }

    fn reasoning(&mut self, how: &str) -> Result<()> {
        match how {
            "show" => self.show.reasoning = true,
            "hide" => self.show.reasoning = false,
            "" => {}
            effort => match effort.parse::<Effort>() {
                Ok(effort) => self.conversation.effort = effort,
                Err(_) => bail!("/reasoning takes low, medium, high, show or hide, not {effort}"),
            },
        }
        let shown = if self.show.reasoning {
            "shown"
        } else {
            "hidden"
        };
        tell!("Reasoning: {}, {shown}.", self.conversation.effort.as_str());
        Ok(())
    }

    fn system(&mut self, text: &str) -> Result<()> {
        match text {
            "" => {}
            "-" => self.conversation.instructions = None,
            text => self.conversation.instructions = Some(instructions(text)?),
        }
        match &self.conversation.instructions {
            Some(text) => tell!("Instructions: {text}"),
            None => tell!("No instructions."),
        }
        Ok(())
    }

    /// Writes a new file: a slip of the keyboard must not cost another one.
    fn save(&self, name: &str) -> Result<()> {
        if name.is_empty() {
            bail!("/save needs a file's name");
        }
        let file = File::create_new(name).with_context(|| format!("/save {name}"))?;
        let mut file = io::BufWriter::new(file);
        serde_json::to_writer_pretty(&mut file, &self.conversation)?;
        writeln!(file)?;
        file.flush().with_context(|| format!("/save {name}"))?;
        tell!(
            "Saved {} messages to {name}.",
            self.conversation.messages.len()
        );
        Ok(())
    }

    fn stats(&self) -> Result<()> {
        let info = self.engine.info();
        let used = self.conversation.render(&self.tokenizer)?.len();
        tell!("{}; {}", info.name, info.backend);
        tell!(
            "context: {used} of {} tokens; {} generated so far",
            info.context,
            self.generated
        );
        if let Some(last) = &self.last {
            tell!("last answer: {}", last.speed());
        }
        Ok(())
    }
}

/// Where lines come from.
enum Input {
    Terminal {
        editor: Box<DefaultEditor>,
        history: Option<PathBuf>,
        interrupted: bool,
    },
    Pipe,
}

impl Input {
    fn open(interactive: bool) -> Result<Input> {
        if !interactive {
            return Ok(Input::Pipe);
        }
        let mut editor = DefaultEditor::new().context("opening the terminal")?;
        let history = history_file();
        if let Some(path) = &history {
            // None yet, or not ours to read: begin without.
            let _ = editor.load_history(path);
        }
        Ok(Input::Terminal {
            editor: Box::new(editor),
            history,
            interrupted: false,
        })
    }

    /// The next line, with those that a backslash joins to it; `None` at the end.
    fn line(&mut self) -> Result<Option<String>> {
        let mut whole = String::new();
        loop {
            let Some(line) = self.piece(if whole.is_empty() { "> " } else { ". " })? else {
                return Ok(Some(whole).filter(|text| !text.is_empty()));
            };
            match line.strip_suffix('\\') {
                Some(start) => {
                    whole += start;
                    whole.push('\n');
                }
                None => {
                    whole += &line;
                    self.remember(&whole);
                    return Ok(Some(whole));
                }
            }
        }
    }

    fn piece(&mut self, prompt: &str) -> Result<Option<String>> {
        match self {
            Input::Pipe => {
                let mut bytes = Vec::new();
                let read = io::stdin().lock().read_until(b'\n', &mut bytes);
                if read.context("reading standard input")? == 0 {
                    return Ok(None);
                }
                let text = lossy(&bytes);
                Ok(Some(text.trim_end_matches(['\n', '\r']).to_string()))
            }
            Input::Terminal {
                editor,
                interrupted,
                ..
            } => loop {
                match editor.readline(prompt) {
                    Ok(line) => {
                        *interrupted = false;
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) if !*interrupted => {
                        *interrupted = true;
                        tell!("(Ctrl-C again, Ctrl-D or /quit leaves)");
                    }
                    Err(ReadlineError::Interrupted | ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error).context("reading the terminal"),
                }
            },
        }
    }

    fn remember(&mut self, line: &str) {
        if let Input::Terminal {
            editor, history, ..
        } = self
        {
            // A history that can't be kept is no reason to stop talking.
            let _ = editor.add_history_entry(line);
            if let Some(path) = history {
                let _ = path.parent().map(std::fs::create_dir_all);
                let _ = editor.save_history(path);
            }
        }
    }
}

/// `chat_history` in the user's folder for such things.
fn history_file() -> Option<PathBuf> {
    Some(machine::state_folder()?.join("chat_history"))
}
