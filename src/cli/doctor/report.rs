//! `doctor --report`: one file that tells everything about a machine and how fast models run on it, to be sent to
//! somebody who has no such machine.
//!
//! The comparison and the benchmark run as programs of their own: one that dies is a line of the report.

use super::look;
use crate::{backend::Target, hub::Pulled};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Lines of a program's stderr that are kept.
const LAST_WORDS: usize = 30;

/// What the programs run on.
struct Subject {
    /// A GGUF file or a folder; `None`: the model inside this program.
    native: Option<PathBuf>,
    /// A folder that MLX can load.
    mlx: Option<PathBuf>,
}

impl Subject {
    /// `model` if given, else what was pulled, MLX's folder first: both engines load that.
    fn new(model: Option<PathBuf>, pulled: &[Pulled]) -> Subject {
        let newest = |wanted: &dyn Fn(&Pulled) -> bool| {
            let found = pulled.iter().find(|p| wanted(p));
            found.map(|p| p.path.clone())
        };
        let is_mlx = |p: &Pulled| p.path.is_dir() && p.name.starts_with("mlx-community/gpt-oss");
        let folder = match &model {
            Some(path) => Some(path.clone()).filter(|path| path.is_dir()),
            None => newest(&is_mlx),
        };
        let gguf = || newest(&|p| !p.path.is_dir() && p.name.contains("gpt-oss"));
        Subject {
            native: model.or_else(|| folder.clone()).or_else(gguf),
            mlx: folder,
        }
    }
}

/// Runs everything and writes `file`; `facts` is what `doctor` found.
pub fn write(
    file: &Path,
    facts: Value,
    model: Option<PathBuf>,
    budget: Duration,
    mlx_is_ready: bool,
) -> Result<()> {
    let program = std::env::current_exe().context("which program is this?")?;
    let scratch = tempfile::tempdir().context("make a folder for what the programs write")?;
    let folder = scratch.path();
    let pulled = look::pulled().unwrap_or_default();
    let subject = Subject::new(model, &pulled);
    let mut runs = Vec::new();
    let mut run = |name: &str, args: Vec<String>| {
        let output = folder.join(format!("{name}.json"));
        tell!("{name}: gossamer {}", args.join(" "));
        runs.push(one(&program, name, args, &output));
    };
    let out = |name: &str| folder.join(format!("{name}.json")).display().to_string();
    let own = |text: &str| text.to_owned();
    let best = Target::all();
    let native = best.first().map_or("cpu", |(name, _)| name.as_str());
    let mlx = subject.mlx.as_ref().filter(|_| mlx_is_ready);
    if let (Some(model), Some(mlx)) = (&subject.native, mlx) {
        let (a, b) = (
            format!("{native}={}", model.display()),
            format!("mlx={}", mlx.display()),
        );
        run(
            "compare",
            vec![own("compare"), a, b, own("--json"), out("compare")],
        );
    }
    let mut bench = vec![
        own("bench"),
        own("--long"),
        own("--fresh"),
        own("-o"),
        out("benchmark"),
    ];
    bench.extend([own("--budget"), format!("{}s", budget.as_secs().max(1))]);
    if let Some(model) = &subject.native {
        bench.extend([own("--model"), model.display().to_string()]);
    }
    run("benchmark", bench);
    let report = json!({
        "doctor": facts,
        "runs": runs,
        "compared_with_mlx": mlx.is_some(),
    });
    let text = without_home(serde_json::to_string_pretty(&report)? + "\n");
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    tell!("{} is the report: read it, and send it", file.display());
    Ok(())
}

/// Runs this program with `args`; what became of it, with the JSON that it wrote to `output`.
fn one(program: &Path, name: &str, args: Vec<String>, output: &Path) -> Value {
    let started = Instant::now();
    let ended = said(program, &args);
    let (code, words) = match ended {
        Ok((code, words)) => (code, words),
        Err(error) => (None, vec![format!("{error:#}")]),
    };
    let result = std::fs::read(output).ok();
    let result: Option<Value> = result.and_then(|text| serde_json::from_slice(&text).ok());
    json!({
        "name": name,
        "arguments": args,
        "seconds": started.elapsed().as_secs_f64(),
        "exit_code": code,
        "last_words": words,
        "result": result,
    })
}

/// The program's exit code and the last lines of its stderr, which are passed on as they come.
fn said(program: &Path, args: &[String]) -> Result<(Option<i32>, Vec<String>)> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let mut words = VecDeque::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            let _ = writeln!(std::io::stderr(), "  {line}");
            if words.len() == LAST_WORDS {
                words.pop_front();
            }
            words.push_back(line);
        }
    }
    Ok((child.wait()?.code(), words.into()))
}

/// `text` without the user's name in paths.
fn without_home(text: String) -> String {
    let home = std::env::var("HOME").or_else(|_| std::env::var("USERPROFILE"));
    match home {
        // As JSON spells it.
        Ok(home) if home.len() > 1 => text.replace(&home.replace('\\', "\\\\"), "~"),
        _ => text,
    }
}

/// The path that `--model` names.
pub fn model(name: Option<&str>) -> Result<Option<PathBuf>> {
    name.map(crate::cli::model::find).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_serves_both_engines() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Pulled {
            name: "mlx-community/gpt-oss-20b-MXFP4-Q8".into(),
            path: dir.path().to_path_buf(),
            bytes: 1,
        };
        let gguf = Pulled {
            name: "ggml-org/gpt-oss-20b-GGUF".into(),
            path: "m.gguf".into(),
            bytes: 1,
        };
        let paths = |subject: Subject| (subject.native, subject.mlx);
        let (dir, file) = (
            Some(dir.path().to_path_buf()),
            Some(PathBuf::from("m.gguf")),
        );
        let both = [gguf.clone(), folder];
        assert_eq!(paths(Subject::new(None, &both)), (dir.clone(), dir.clone()));
        assert_eq!(paths(Subject::new(None, &[gguf])), (file.clone(), None));
        assert_eq!(paths(Subject::new(file.clone(), &both)), (file, None));
        assert_eq!(paths(Subject::new(dir.clone(), &[])), (dir.clone(), dir));
        assert_eq!(paths(Subject::new(None, &[])), (None, None));
    }
}
