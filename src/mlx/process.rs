//! A worker's process: started, spoken to, and never left behind.
//!
//! On Unix it lives in a process group with a leash, a shell that waits for the end of a pipe that this program
//! holds, and then kills the group: so a worker goes also with a program that is killed, and also while it hangs.
//!
//! Three threads serve its pipes, so that nobody who uses a [`Process`] ever blocks on one: frames that
//! it tells go to a function, what it is told waits in a queue, the end of what it says on stderr is
//! kept for the error that its death becomes. Dropping it kills its process group and waits for it.

use super::frame::{self, Ask, Frame};
use anyhow::{Context, Result};
use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

/// The worker, module by module; `worker` and `device` are programs. They are told to Python over the pipe: no file
/// of ours that could be old or changed.
const MODULES: [(&str, &str); 7] = [
    ("pipe", include_str!("../../python/mlx_worker/pipe.py")),
    (
        "prefixes",
        include_str!("../../python/mlx_worker/prefixes.py"),
    ),
    (
        "sampling",
        include_str!("../../python/mlx_worker/sampling.py"),
    ),
    (
        "hardware",
        include_str!("../../python/mlx_worker/hardware.py"),
    ),
    ("device", include_str!("../../python/mlx_worker/device.py")),
    ("model", include_str!("../../python/mlx_worker/model.py")),
    ("worker", include_str!("../../python/mlx_worker/worker.py")),
];
/// Reads the modules and becomes the one that the second argument names; the others are imported by name. The
/// third is its name in `ps`.
const BOOT: &str = "\
import sys, json
from importlib import abc, util
texts = dict(json.loads(sys.stdin.buffer.read(int(sys.argv[1]))))
class Told(abc.MetaPathFinder, abc.InspectLoader):
    def find_spec(self, name, path, target=None):
        return util.spec_from_loader(name, self) if name in texts else None
    def get_source(self, name):
        return texts[name]
sys.meta_path.insert(0, Told())
__import__(sys.argv[2])";
/// Its name in `ps`.
const NAME: &str = "gossamer-mlx-worker";
/// What the leash does, and its name in `ps`.
#[cfg(unix)]
const LEASH: [&str; 3] = ["-c", "read _; kill -KILL 0", "gossamer-mlx-leash"];
/// Last words: so many lines of at most so many characters.
const WORDS: (usize, usize) = (5, 200);
/// How long what a dead worker said on stderr may take to arrive.
const ECHO: Duration = Duration::from_secs(1);

/// What a worker tells: frames, and at the end why there are no more.
pub type Heard = Result<Frame, String>;

/// A worker that was started.
pub struct Process {
    child: Child,
    /// Leads the process group; its pipe ends with this program.
    leash: Option<Child>,
    /// What it is to be told; `None` once that is over.
    writer: Option<mpsc::Sender<Vec<u8>>>,
    words: Arc<Mutex<VecDeque<String>>>,
    /// Closed at the end of stderr.
    stderr_open: mpsc::Receiver<()>,
    ended: Option<String>,
}

impl Process {
    /// Starts `python` as a worker. `hear` is called with everything that it tells, on a thread of its
    /// own; last with an `Err`.
    ///
    /// # Errors
    /// When `python` can't be started.
    pub fn start(python: &Path, hear: impl FnMut(Heard) + Send + 'static) -> Result<Process> {
        Process::start_as("worker", python, hear)
    }

    /// As [`Process::start`], for the program of that name.
    pub fn start_as(
        program: &str,
        python: &Path,
        mut hear: impl FnMut(Heard) + Send + 'static,
    ) -> Result<Process> {
        let mut command = Command::new(python);
        // Isolated: nothing from the folder it is started in, nor from PYTHON* variables.
        let modules = serde_json::to_vec(&MODULES)?;
        command.args(["-I", "-c", BOOT, &modules.len().to_string(), program, NAME]);
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped());
        command.stderr(Stdio::piped());
        let mut leash = leash(&mut command)?;
        let child = command.spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => {
                release(leash.as_mut());
                let text = format!("can't start {} for MLX", python.display());
                return Err(anyhow::Error::new(error).context(text));
            }
        };
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let words = Arc::<Mutex<VecDeque<String>>>::default();
        let (writer, told) = mpsc::channel::<Vec<u8>>();
        let (closed, stderr_open) = mpsc::channel::<()>();
        let mut process = Process {
            child,
            leash,
            writer: Some(writer),
            words: words.clone(),
            stderr_open,
            ended: None,
        };
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            anyhow::bail!("the worker has no pipes");
        };
        thread("mlx-writer", move || write(stdin, &told))?;
        thread("mlx-stderr", move || {
            listen(stderr, &words);
            drop(closed);
        })?;
        thread("mlx-reader", move || {
            let mut from = BufReader::with_capacity(1 << 20, stdout);
            loop {
                let heard = match frame::read(&mut from) {
                    Ok(Some(frame)) => Ok(frame),
                    Ok(None) => Err("it closed the pipe".to_owned()),
                    Err(error) => Err(format!("its pipe failed: {error}")),
                };
                let over = heard.is_err();
                hear(heard);
                if over {
                    return;
                }
            }
        })?;
        process.send(modules);
        Ok(process)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Tells it something, when it gets round to hearing it. A worker that is gone hears nothing; that
    /// is told where frames are heard.
    pub fn tell(&mut self, ask: &Ask, blob: &[u8]) {
        match frame::encode(ask, blob) {
            Ok(bytes) => self.send(bytes),
            Err(error) => tracing::error!("MLX: {error}"),
        }
    }

    fn send(&mut self, bytes: Vec<u8>) {
        if let Some(writer) = &self.writer {
            let _ = writer.send(bytes);
        }
    }

    /// Ends it, and tells how it ended and its last words.
    pub fn end(&mut self) -> String {
        if let Some(ended) = &self.ended {
            return ended.clone();
        }
        self.writer = None;
        let status = match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            _ => {
                release(self.leash.as_mut());
                let _ = self.child.kill();
                self.child.wait()
            }
        };
        // Whatever it started itself goes too.
        release(self.leash.take().as_mut());
        let _ = self.stderr_open.recv_timeout(ECHO);
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let words = Vec::from_iter(words.iter().map(String::as_str)).join("\n");
        let mut text = match status {
            Ok(status) => how(status),
            Err(error) => format!("can't be waited for: {error}"),
        };
        if !words.is_empty() {
            text.push_str("; its last words:\n");
            text.push_str(&words);
        }
        self.ended.insert(text).clone()
    }

    /// Gives one that closed its pipe a moment to end by itself, so that its own status is known.
    pub fn settle(&mut self) {
        let _ = self.stderr_open.recv_timeout(ECHO);
        // A process that exits closes its pipes first.
        let until = Instant::now() + ECHO;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(ECHO / 200);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(work).context("starting a thread for MLX")?;
    Ok(())
}

/// Writes all that is told, to the end of either side.
fn write(mut stdin: ChildStdin, told: &mpsc::Receiver<Vec<u8>>) {
    while let Ok(bytes) = told.recv() {
        if stdin
            .write_all(&bytes)
            .and_then(|()| stdin.flush())
            .is_err()
        {
            return;
        }
    }
}

/// Keeps the last lines of what it says; the log has all of it at `debug`.
fn listen(stderr: impl Read, words: &Mutex<VecDeque<String>>) {
    let mut from = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line without an end is no reason to keep all of it.
        let read = (&mut from).take(1 << 16).read_until(b'\n', &mut line);
        match read {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if text.is_empty() {
            continue;
        }
        tracing::debug!("MLX: {text}");
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        if words.len() == WORDS.0 {
            words.pop_front();
        }
        words.push_back(text.chars().take(WORDS.1).collect());
    }
}

/// Starts the leash, in a process group of its own, so that Ctrl-C at a terminal is ours to handle; `command`'s
/// is to be the same.
#[cfg(unix)]
fn leash(command: &mut Command) -> Result<Option<Child>> {
    use std::os::unix::process::CommandExt;
    let mut shell = Command::new("/bin/sh");
    shell.args(LEASH).process_group(0).stdin(Stdio::piped());
    shell.stdout(Stdio::null()).stderr(Stdio::null());
    let leash = shell.spawn().context("can't start /bin/sh for MLX")?;
    let group = i32::try_from(leash.id()).context("a process id")?;
    command.process_group(group);
    Ok(Some(leash))
}

/// Ends the worker's process group, at once; nothing after the first time.
#[cfg(unix)]
fn release(leash: Option<&mut Child>) {
    use rustix::process::{Pid, Signal, kill_process_group};
    let Some(leash) = leash else { return };
    if !matches!(leash.try_wait(), Ok(None)) {
        return;
    }
    // It has not been waited for: the number is still the group's.
    let group = i32::try_from(leash.id()).ok().and_then(Pid::from_raw);
    if group.is_none_or(|group| kill_process_group(group, Signal::KILL).is_err()) {
        let _ = leash.kill();
    }
    let _ = leash.wait();
}

#[cfg(not(unix))]
fn leash(_: &mut Command) -> Result<Option<Child>> {
    Ok(None)
}

#[cfg(not(unix))]
fn release(_: Option<&mut Child>) {}

/// How a process ended.
fn how(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return match signal {
            9 => "it was killed (signal 9: by us, by a person, or for want of memory)".to_owned(),
            other => format!("it died of signal {other}"),
        };
    }
    match status.code() {
        Some(code) => format!("it ended with exit code {code}"),
        None => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(unix)]
    use crate::mlx::tests::script;

    #[cfg(unix)]
    fn heard_of(python: &Path) -> Result<(Process, mpsc::Receiver<Heard>)> {
        let (sender, heard) = mpsc::channel();
        let process = Process::start(python, move |frame| {
            let _ = sender.send(frame);
        })?;
        Ok((process, heard))
    }

    #[cfg(unix)]
    #[test]
    fn a_program_that_is_no_worker_is_told_by_its_words() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let other = script(folder.path(), "echo 'no option -I' >&2; exit 2");
        let (mut process, heard) = heard_of(&other)?;
        let patience = Duration::from_secs(60);
        assert!(matches!(heard.recv_timeout(patience)?, Err(why) if why.contains("closed")));
        process.settle();
        let ended = process.end();
        let expected = "it ended with exit code 2; its last words:\nno option -I";
        assert_eq!(ended, expected);
        // Once and for all.
        assert_eq!(process.end(), ended);
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn a_process_that_does_not_end_is_killed_and_waited_for() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let endless = script(folder.path(), "yes 'Fetching 12 files'");
        let (process, heard) = heard_of(&endless)?;
        let id = process.id();
        let leash = process.leash.as_ref().map(Child::id);
        let junk = heard.recv_timeout(Duration::from_secs(60))?;
        assert!(junk.is_err_and(|why| why.contains("no worker of ours")));
        drop(process);
        #[cfg(target_os = "linux")]
        for id in [id, leash.context("no leash")?] {
            let is_left = Path::new(&format!("/proc/{id}")).exists();
            assert!(!is_left, "{id} is still there");
        }
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn the_end_of_this_program_ends_a_worker_that_listens_to_nobody() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let deaf = script(folder.path(), "exec sleep 1000");
        let (mut process, _heard) = heard_of(&deaf)?;
        let leash = process.leash.as_mut().context("no leash")?;
        // As when this program is gone.
        drop(leash.stdin.take());
        let status = process.child.wait()?;
        assert!(how(status).contains("signal 9"), "{status}");
        Ok(())
    }

    #[test]
    fn a_python_that_is_not_there_is_named() {
        let error = Process::start(Path::new("/nowhere/python3"), |_| ()).map(drop);
        let error = error.map_err(|error| error.to_string());
        assert_eq!(
            error,
            Err("can't start /nowhere/python3 for MLX".to_owned())
        );
    }
}
