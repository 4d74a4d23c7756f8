//! One file's bytes: resumed, counted, hashed, and only then named.

use super::{
    Event, Settings,
    cache::Repo,
    hash::Hasher,
    http::{Client, Remote},
};
use anyhow::{Context, Result, anyhow, bail};
use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

const PIECE: usize = 256 << 10;
/// Longest wait between two attempts, unless the server asks for more.
const LONGEST_WAIT: Duration = Duration::from_secs(16);

/// Why a request brought nothing.
pub(super) enum Failure {
    /// Another attempt would end the same way.
    Fatal(anyhow::Error),
    /// The connection was lost or the server is busy; it may say for how long.
    Lost(anyhow::Error, Option<Duration>),
}

impl Failure {
    pub fn lost(error: anyhow::Error) -> Failure {
        Failure::Lost(error, None)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Fatal(error)
    }
}

/// Attempts, the waits between them, and the wish to stop.
pub(super) struct Retry<'a> {
    backoff: Duration,
    attempts: u32,
    stop: &'a AtomicBool,
}

impl<'a> Retry<'a> {
    pub fn new(settings: &Settings, stop: &'a AtomicBool) -> Retry<'a> {
        Retry {
            backoff: settings.backoff,
            attempts: settings.attempts.max(1),
            stop,
        }
    }

    /// Repeats `request` until it succeeds, fails for good, or lost the connection too often.
    pub fn run<T>(
        &self,
        on_event: &mut dyn FnMut(Event),
        mut request: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T> {
        let mut failed = 0;
        loop {
            self.check_stop()?;
            match request() {
                Ok(value) => return Ok(value),
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::Lost(error, wait)) => self.wait(&mut failed, error, wait, on_event)?,
            }
        }
    }

    fn check_stop(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            bail!(super::STOPPED);
        }
        Ok(())
    }

    /// Counts a failed attempt and waits before the next, or gives up.
    fn wait(
        &self,
        failed: &mut u32,
        error: anyhow::Error,
        asked: Option<Duration>,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<()> {
        *failed += 1;
        if *failed >= self.attempts {
            return Err(error.context(format!(
                "gave up after {failed} attempts that brought nothing; run the same command again to resume"
            )));
        }
        let wait = asked
            .unwrap_or_else(|| (self.backoff * (1 << (*failed - 1).min(10))).min(LONGEST_WAIT));
        on_event(Event::Retry {
            reason: format!("{error:#}"),
            wait,
        });
        self.pause(wait)
    }

    /// Sleeps in short pieces, so that a wish to stop is heard.
    fn pause(&self, wait: Duration) -> Result<()> {
        let end = Instant::now() + wait;
        while let Some(left) = end
            .checked_duration_since(Instant::now())
            .filter(|l| !l.is_zero())
        {
            self.check_stop()?;
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
        self.check_stop()
    }
}

/// Brings one file into the cache and its snapshot, unless it is there.
pub(super) fn fetch(
    client: &Client,
    retry: &Retry,
    repo: &Repo,
    remote: &Remote,
    on_event: &mut dyn FnMut(Event),
) -> Result<()> {
    let mut cached = repo.has_blob(remote);
    if !cached {
        let _lock = lock(repo, retry, remote, on_event)?;
        cached = repo.has_blob(remote); // another process may have brought it meanwhile
        if !cached {
            download(client, retry, repo, remote, on_event)?;
        }
    }
    let path = repo.publish(remote)?;
    on_event(Event::Done {
        file: remote.file.clone(),
        path,
        cached,
    });
    Ok(())
}

/// Holds the file's lock while the returned handle lives; waits for another process that has it.
fn lock(
    repo: &Repo,
    retry: &Retry,
    remote: &Remote,
    on_event: &mut dyn FnMut(Event),
) -> Result<File> {
    let path = repo.lock(remote);
    let failed = || format!("can't create {}", path.display());
    fs::create_dir_all(path.parent().unwrap_or(&path)).with_context(failed)?;
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(failed)?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) => {
                if !told {
                    on_event(Event::Waiting {
                        file: remote.file.clone(),
                    });
                    told = true;
                }
                retry.pause(Duration::from_millis(200))?;
            }
            // Some network file systems have no locks; one pull at a time still works there.
            Err(fs::TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {
                return Ok(file);
            }
            Err(fs::TryLockError::Error(e)) => {
                return Err(e).with_context(|| format!("can't lock {}", path.display()));
            }
        }
    }
}

/// The growing file and the hash of what it holds.
struct Partial {
    file: File,
    path: std::path::PathBuf,
    hash: Hasher,
    length: u64,
}

impl Partial {
    /// Opens the partial file and hashes what an earlier attempt left.
    fn open(repo: &Repo, remote: &Remote, retry: &Retry) -> Result<Partial> {
        let path = repo.incomplete(remote);
        let failed = || format!("can't write {}", path.display());
        fs::create_dir_all(path.parent().unwrap_or(&path)).with_context(failed)?;
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(&path)
            .with_context(failed)?;
        let mut partial = Partial {
            file,
            path,
            hash: remote.hash.hasher(remote.size),
            length: 0,
        };
        let mut buffer = vec![0; PIECE];
        loop {
            retry.check_stop()?;
            match partial
                .file
                .read(&mut buffer)
                .with_context(|| partial.say("can't read"))?
            {
                0 => break,
                n => {
                    partial.hash.update(&buffer[..n]);
                    partial.length += n as u64;
                }
            }
        }
        if partial.length > remote.size {
            partial.clear(remote)?; // not a beginning of this file, whatever it is
        }
        Ok(partial)
    }

    fn clear(&mut self, remote: &Remote) -> Result<()> {
        self.file
            .set_len(0)
            .with_context(|| self.say("can't empty"))?;
        self.hash = remote.hash.hasher(remote.size);
        self.length = 0;
        Ok(())
    }

    /// Removes what can't be a beginning of the file. Unix allows that while it is open; where it
    /// doesn't, the file is left empty.
    fn discard(&mut self, remote: &Remote) -> Result<()> {
        self.clear(remote)?;
        match fs::remove_file(&self.path) {
            Err(error) if cfg!(unix) => Err(error).with_context(|| self.say("can't remove")),
            _ => Ok(()),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .with_context(|| self.say("can't write"))?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn say(&self, what: &str) -> String {
        format!("{what} {}", self.path.display())
    }
}

fn download(
    client: &Client,
    retry: &Retry,
    repo: &Repo,
    remote: &Remote,
    on_event: &mut dyn FnMut(Event),
) -> Result<()> {
    let mut partial = Partial::open(repo, remote, retry)?;
    on_event(Event::Start {
        file: remote.file.clone(),
        size: remote.size,
        resumed: partial.length,
    });
    let (mut failed, mut most) = (0, partial.length);
    while partial.length < remote.size {
        retry.check_stop()?;
        match attempt(client, retry, repo, remote, &mut partial, on_event) {
            Ok(()) => {}
            Err(Failure::Fatal(error)) => return Err(error),
            Err(Failure::Lost(error, asked)) => {
                retry.wait(&mut failed, error, asked, on_event)?;
                // A server that can't resume starts again each time: only new ground counts.
                if partial.length > most {
                    (failed, most) = (0, partial.length);
                }
            }
        }
    }
    let found = partial.hash.hex();
    if found != remote.hash.hex() {
        partial.discard(remote)?;
        bail!(
            "{} arrived damaged: its {} is {found}, expected {}; nothing of it was kept, run the pull again",
            remote.file,
            remote.hash.name(),
            remote.hash
        );
    }
    partial
        .file
        .sync_all()
        .with_context(|| partial.say("can't write"))?;
    let Partial { file, path, .. } = partial;
    drop(file);
    let blob = repo.blob(remote);
    fs::rename(&path, &blob)
        .with_context(|| format!("can't rename {} to {}", path.display(), blob.display()))
}

/// One request: appends what it brings, until the file is whole or the connection ends.
fn attempt(
    client: &Client,
    retry: &Retry,
    repo: &Repo,
    remote: &Remote,
    partial: &mut Partial,
    on_event: &mut dyn FnMut(Event),
) -> Result<(), Failure> {
    let (mut body, start) = client.get(repo.name(), remote, partial.length)?;
    if start != partial.length {
        on_event(Event::Restart {
            reason: "the server can't resume".into(),
        });
        partial.clear(remote)?;
    }
    let mut reader = body.as_reader();
    let mut buffer = vec![0; PIECE];
    loop {
        retry.check_stop()?;
        let n = match reader.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => {
                // By its text: a broken pipe here is not one of stdout.
                return Err(Failure::lost(anyhow!(
                    "lost the connection at byte {}: {e}",
                    partial.length
                )));
            }
        };
        if n == 0 {
            break;
        }
        if n as u64 > remote.size - partial.length {
            partial.discard(remote)?;
            return Err(Failure::Fatal(anyhow!(
                "the server sends more of {} than the {} bytes that the hub gives as its size",
                remote.file,
                remote.size
            )));
        }
        partial.append(&buffer[..n])?;
        on_event(Event::Progress {
            done: partial.length,
        });
    }
    if partial.length < remote.size {
        return Err(Failure::lost(anyhow!(
            "the connection ended at byte {} of {}",
            partial.length,
            remote.size
        )));
    }
    Ok(())
}
