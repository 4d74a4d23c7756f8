//! One of the two that are compared: what computes, which model, in which program.

use super::wire::{Job, PROTOCOL, Say, Task, hear};
use crate::cli::model::Common;
use anyhow::{Context, Result, anyhow, bail};
use std::{
    collections::VecDeque,
    fmt,
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    str::FromStr,
    thread,
};

/// Lines of a child's stderr that are kept for its error.
const LAST_WORDS: usize = 20;

/// As given: `BACKEND`, `MODEL` or `BACKEND=MODEL`, then `,rope-compat`, `,threads=N`, `,program=PATH`.
#[derive(Debug, Clone, PartialEq)]
pub struct Side {
    /// As given.
    pub text: String,
    /// Back end, if named.
    pub backend: Option<String>,
    /// Model, if named.
    pub model: Option<String>,
    /// Another gossamer.
    pub program: Option<PathBuf>,
    /// Worker threads, if given.
    pub threads: Option<usize>,
    /// YaRN as llama.cpp and mlx-lm round it.
    pub rope_compat: bool,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether `text` names a back end of any build.
fn is_backend(text: &str) -> bool {
    let kind = text.split(':').next().unwrap_or(text);
    ["auto", "cpu", "reference", "cuda", "mlx"].contains(&kind)
}

impl FromStr for Side {
    type Err = String;

    fn from_str(text: &str) -> Result<Side, String> {
        let mut side = Side {
            text: text.to_owned(),
            backend: None,
            model: None,
            program: None,
            threads: None,
            rope_compat: false,
        };
        // From the right, so that a path may hold commas.
        let mut rest = text;
        while let Some((before, option)) = rest.rsplit_once(',') {
            match option.split_once('=') {
                None if option == "rope-compat" => side.rope_compat = true,
                Some(("threads", n)) => {
                    let threads = n
                        .parse()
                        .map_err(|_| format!("{option}: expected a number"))?;
                    side.threads = Some(threads);
                }
                Some(("program", path)) if !path.is_empty() => side.program = Some(path.into()),
                _ => break,
            }
            rest = before;
        }
        match rest.split_once('=') {
            Some((backend, model)) if is_backend(backend) && !model.is_empty() => {
                side.backend = Some(backend.into());
                side.model = Some(model.into());
            }
            _ if rest.is_empty() => {
                return Err("expected a back end, a model, or BACKEND=MODEL".into());
            }
            _ if is_backend(rest) => side.backend = Some(rest.into()),
            _ => side.model = Some(rest.into()),
        }
        Ok(side)
    }
}

impl Side {
    /// The flags of this side, where it says nothing those of both.
    pub fn common(&self, both: &Common) -> Common {
        Common {
            model: self.model.clone().or_else(|| both.model.clone()),
            backend: self.backend.clone().unwrap_or_else(|| both.backend.clone()),
            threads: self.threads.unwrap_or(both.threads),
            rope_compat: self.rope_compat || both.rope_compat,
            ..both.clone()
        }
    }

    /// Runs `task` in a process of its own, and hands on what it says before it is done. With `verbose`, what it
    /// tells on stderr too.
    ///
    /// # Errors
    /// When the child fails, with its last words; or `each`'s error, which ends the child.
    pub fn run(
        &self,
        common: &Common,
        task: Task,
        each: &mut dyn FnMut(Say, Vec<f32>) -> Result<()>,
    ) -> Result<Say> {
        let child = self.run_child(common, task, each);
        child.with_context(|| self.text.clone())
    }

    fn run_child(
        &self,
        common: &Common,
        task: Task,
        each: &mut dyn FnMut(Say, Vec<f32>) -> Result<()>,
    ) -> Result<Say> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().context("where is this program?")?,
        };
        let mut command = Command::new(&program);
        command.arg("compare-side");
        if let Some(python) = &common.mlx_python {
            command.env(crate::mlx::PYTHON_VARIABLE, python);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.stderr(Stdio::piped()).spawn();
        let mut child = Ended(child.with_context(|| format!("start {}", program.display()))?);
        let job = Job {
            protocol: PROTOCOL,
            model: common.model.clone(),
            backend: common.backend.clone(),
            threads: common.threads,
            rope_compat: common.rope_compat,
            task,
        };
        let job = serde_json::to_vec(&job)?;
        let pipes = (child.0.stdin.take(), child.0.stdout.take());
        let (Some(mut to), Some(from)) = pipes else {
            bail!("a child without pipes");
        };
        let stderr = child.0.stderr.take();
        let verbose = common.verbose;
        let last_words = thread::spawn(move || stderr.map(|from| listen(from, verbose)));
        // A child that does not want the whole job says why on stderr.
        let told = to.write_all(&job);
        drop(to);
        let mut from = BufReader::with_capacity(1 << 20, from);
        let heard = loop {
            match hear(&mut from) {
                Ok(Some((done @ Say::Done { .. }, _))) => break Ok(done),
                // After an error of `each` the child ends with its guard.
                Ok(Some((said, values))) => each(said, values)?,
                Ok(None) => break Err(anyhow!("it ended early")),
                Err(error) => break Err(error),
            }
        };
        drop(from);
        if heard.is_err() {
            // It may be in the middle of something; only its words matter now.
            let _ = child.0.kill();
        }
        let status = child.0.wait()?;
        let words = last_words.join().ok().flatten().unwrap_or_default();
        match heard {
            Ok(done) if status.success() && told.is_ok() => Ok(done),
            Ok(_) => bail!("it failed ({status}){words}"),
            Err(error) => bail!("{error:#} ({status}){words}"),
        }
    }
}

/// A child that does not outlive its owner.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The last lines of a child's stderr.
fn listen(from: impl Read, verbose: bool) -> String {
    let mut kept = VecDeque::new();
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while matches!((&mut from).take(1 << 16).read_until(b'\n', &mut line), Ok(n) if n > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        if verbose {
            tell!("  {text}");
        }
        kept.push_back(text);
        if kept.len() > LAST_WORDS {
            kept.pop_front();
        }
    }
    kept.iter().map(|text| format!("\n  {text}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(text: &str) -> Side {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn sides_are_easy_to_type() {
        let parts = |text| {
            let side = side(text);
            (side.backend, side.model)
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parts("cpu"), (some("cpu"), None));
        assert_eq!(parts("cpu:avx2"), (some("cpu:avx2"), None));
        assert_eq!(parts("a/b=c.gguf"), (None, some("a/b=c.gguf")));
        assert_eq!(parts("gpt-oss-20b"), (None, some("gpt-oss-20b")));
        assert_eq!(parts("mlx=some/folder"), (some("mlx"), some("some/folder")));
        assert_eq!(
            parts("cuda:1=C:\\m.gguf"),
            (some("cuda:1"), some("C:\\m.gguf"))
        );
        assert_eq!(parts("a,b.gguf"), (None, some("a,b.gguf")));
        let path = "a,rope-compat, b.gguf";
        let all = side(path);
        assert_eq!(
            (all.model, all.rope_compat),
            (some(path), false),
            "all of it is a path"
        );
        let all = side("cpu=a,b.gguf,rope-compat,threads=3,program=./old");
        assert_eq!(all.model, some("a,b.gguf"));
        assert_eq!((all.rope_compat, all.threads), (true, Some(3)));
        assert_eq!(all.program, Some("./old".into()));
        for wrong in ["", ",rope-compat", "cpu,threads=x"] {
            assert!(wrong.parse::<Side>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_a_side_leaves_open_is_for_both() {
        let both = Common {
            model: Some("m".into()),
            backend: "cpu".into(),
            threads: 2,
            ..Common::default()
        };
        let common = side("reference,threads=1").common(&both);
        assert_eq!(
            (common.model.as_deref(), &*common.backend),
            (Some("m"), "reference")
        );
        assert_eq!((common.threads, common.rope_compat), (1, false));
        assert_eq!(side("x.gguf").common(&both).backend, "cpu");
    }
}
