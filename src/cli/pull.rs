//! `gossamer pull`: a model from a Hugging Face hub into the cache that other tools share.

use super::{Usage, interrupt::EXIT_CODE};
use crate::hub::{self, Event, Settings, Spec, human};
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// What `pull` reads.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub struct Args {
    /// gpt-oss-20b, gpt-oss-120b, owner/name, owner/name:TAG (a part of the file's name, such as
    /// F16) or owner/name/file.gguf. Split files come with all their parts; a repository without GGUF
    /// files is fetched as a folder of safetensors
    #[arg(default_value = "gpt-oss-20b", value_name = "MODEL")]
    model: String,
    /// Branch, tag or commit
    #[arg(long, default_value = "main")]
    revision: String,
    /// One JSON object a line on stdout: resolved, start, progress, retry, done
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Examples:
  gossamer pull                                   gpt-oss-20b, 12 GB, from ggml-org
  gossamer pull gpt-oss-120b
  gossamer pull unsloth/gpt-oss-20b-GGUF:F16
  gossamer pull mlx-community/gpt-oss-20b-MXFP4-Q8     for both engines, native and MLX
  gossamer pull openai/gpt-oss-20b                the release itself
  gossamer run --model gpt-oss-20b \"Hello\"        finds what was pulled

An interrupted pull is resumed by the same command. Each file is checked against the hub's size
and hash before it gets its name.

Environment: HF_ENDPOINT (another hub), HF_TOKEN (for gated models), HF_HUB_CACHE or HF_HOME (where
models are kept), HF_HUB_OFFLINE=1 (use the cache only), HTTPS_PROXY.

Exit codes: 0, 1 on an error, 2 on wrong usage, 130 after Ctrl-C.";

/// Downloads the model and prints its path on stdout.
pub fn run(args: Args) -> Result<()> {
    let spec = Spec::parse(&args.model).map_err(|e| Usage(e.to_string()))?;
    let settings = Settings::from_env()?;
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        asked.store(true, Ordering::Relaxed);
        // The download stops at its next piece. A connection that brings none must not hold us up,
        // and every byte received is on disk already.
        std::thread::sleep(Duration::from_secs(1));
        tell!("{}", hub::STOPPED);
        std::process::exit(EXIT_CODE);
    })
    .context("can't listen for Ctrl-C")?;
    let mut view = if args.json {
        View::Json(Pace::default())
    } else {
        View::people()
    };
    let mut broken = None;
    let result = hub::pull(&settings, &spec, &args.revision, &stop, &mut |event| {
        if let Err(error) = view.show(&event) {
            stop.store(true, Ordering::Relaxed); // nobody reads any more
            broken = Some(error);
        }
    });
    view.clear();
    if let Some(error) = broken {
        return Err(error.into());
    }
    if result.is_err() && stop.load(Ordering::Relaxed) {
        tell!("{}", hub::STOPPED);
        std::process::exit(EXIT_CODE);
    }
    let path: PathBuf = result?;
    if !args.json {
        writeln!(std::io::stdout(), "{}", path.display())?;
    }
    Ok(())
}

/// At most so many reports a second.
#[derive(Default)]
struct Pace {
    last: Option<Instant>,
    total: u64,
    first: u64,
    since: Option<Instant>,
}

impl Pace {
    fn start(&mut self, total: u64, first: u64) {
        *self = Pace {
            last: Some(Instant::now()),
            total,
            first,
            since: Some(Instant::now()),
        };
    }

    /// Whether `interval` has passed since the last report.
    fn due(&mut self, interval: Duration) -> bool {
        let due = self.last.is_none_or(|t| t.elapsed() >= interval);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }

    /// A line on stderr, at most every five seconds.
    fn tell(&mut self, done: u64) {
        if self.due(Duration::from_secs(5)) {
            let share = done as f64 / self.total.max(1) as f64 * 100.0;
            let speed = human(self.speed(done));
            tell!(
                "{share:.0} % of {}: {}, {speed}/s",
                human(self.total),
                human(done)
            );
        }
    }

    /// Bytes a second since the start.
    fn speed(&self, done: u64) -> u64 {
        let seconds = self
            .since
            .map_or(0.0, |t| t.elapsed().as_secs_f64())
            .max(1e-3);
        (done.saturating_sub(self.first) as f64 / seconds) as u64
    }
}

/// How progress is told: a bar on a terminal, lines elsewhere (both on stderr), JSON on stdout.
enum View {
    Bar(ProgressBar),
    Lines(Pace),
    Json(Pace),
}

impl View {
    fn people() -> View {
        if !std::io::stderr().is_terminal() {
            return View::Lines(Pace::default());
        }
        let template = "{wide_bar} {percent}% {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left";
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        View::Bar(ProgressBar::hidden().with_style(style))
    }

    fn clear(&self) {
        if let View::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }

    fn show(&mut self, event: &Event) -> std::io::Result<()> {
        if let View::Json(pace) = self {
            return show_json(pace, event);
        }
        if let Some(line) = line(event) {
            match self {
                View::Bar(bar) => bar.suspend(|| tell!("{line}")),
                _ => tell!("{line}"),
            }
        }
        match (self, event) {
            (View::Bar(bar), Event::Start { size, resumed, .. }) => {
                bar.reset();
                bar.set_length(*size);
                bar.set_position(*resumed);
                bar.reset_eta();
                bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
            }
            (View::Bar(bar), Event::Progress { done }) => bar.set_position(*done),
            (View::Lines(pace), Event::Start { size, resumed, .. }) => pace.start(*size, *resumed),
            (View::Lines(pace), Event::Progress { done }) => pace.tell(*done),
            _ => {}
        }
        Ok(())
    }
}

/// What a person reads of an event that is more than progress.
fn line(event: &Event) -> Option<String> {
    Some(match event {
        Event::Resolved { files, .. } if files.len() > 1 => {
            let total = files
                .iter()
                .fold(0u64, |sum, (_, size)| sum.saturating_add(*size));
            format!("{} files, {}", files.len(), human(total))
        }
        Event::Resolved { .. } | Event::Progress { .. } => return None,
        Event::Waiting { file } => format!("waiting for another pull of {file}"),
        Event::Start {
            file,
            size,
            resumed: 0,
        } => format!("{file}: {}", human(*size)),
        Event::Start {
            file,
            size,
            resumed,
        } => {
            format!(
                "{file}: {}, resuming after {}",
                human(*size),
                human(*resumed)
            )
        }
        Event::Retry { reason, wait } => {
            format!("{reason}; trying again in {:.1} s", wait.as_secs_f64())
        }
        Event::Restart { reason } => format!("starting from the beginning: {reason}"),
        Event::Done {
            file, cached: true, ..
        } => format!("{file}: already in the cache"),
        Event::Done { file, .. } => format!("{file}: checked"),
    })
}

fn show_json(pace: &mut Pace, event: &Event) -> std::io::Result<()> {
    use serde_json::json;
    let value = match event {
        Event::Resolved { commit, files } => {
            let files: Vec<_> = files
                .iter()
                .map(|(file, size)| json!({"file": file, "size": size}))
                .collect();
            json!({"event": "resolved", "commit": commit, "files": files})
        }
        Event::Waiting { file } => json!({"event": "waiting", "file": file}),
        Event::Start {
            file,
            size,
            resumed,
        } => {
            pace.start(*size, *resumed);
            json!({"event": "start", "file": file, "size": size, "resumed": resumed})
        }
        Event::Progress { .. } if !pace.due(Duration::from_millis(500)) => return Ok(()),
        Event::Progress { done } => {
            json!({"event": "progress", "done": done, "size": pace.total, "bytes_per_second": pace.speed(*done)})
        }
        Event::Retry { reason, wait } => {
            json!({"event": "retry", "reason": reason, "wait_seconds": wait.as_secs_f64()})
        }
        Event::Restart { reason } => json!({"event": "restart", "reason": reason}),
        Event::Done { file, path, cached } => {
            json!({"event": "done", "file": file, "path": path.to_string_lossy(), "cached": cached})
        }
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}
