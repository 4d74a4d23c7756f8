//! Downloads from a Hugging Face hub into its shared cache, and look-ups in that cache.
//!
//! A file becomes visible under its snapshot only after its size and hash were checked, so
//! whatever [`find`] returns is whole. What is cut short stays as `<hash>.incomplete` and is
//! resumed by the next pull. The layout is that of Python's `huggingface_hub`, with which the
//! cache is shared: `models--owner--name/{blobs,refs,snapshots}` and `.locks/`.

mod address;
mod cache;
mod download;
mod folder;
mod hash;
mod http;
mod name;

pub use name::{Choice, Spec, choose};

use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::Duration,
};

/// Where the hub and the cache are, as the environment says.
#[derive(Clone)]
pub struct Settings {
    /// Base address, `HF_ENDPOINT`, without a slash at the end.
    pub endpoint: String,
    /// `HF_TOKEN`, or the file that `hf auth login` writes. Sent to `endpoint` only, never printed.
    pub token: Option<String>,
    /// `HF_HUB_CACHE`, or `hub` under `HF_HOME`.
    pub cache: PathBuf,
    /// `HF_HUB_OFFLINE`: no network, the cache only.
    pub offline: bool,
    /// The first wait after a lost connection; each fruitless attempt doubles it.
    pub backoff: Duration,
    /// Attempts in a row that may bring no byte before the pull gives up.
    pub attempts: u32,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads the variables that every Hugging Face tool reads.
    pub fn from_env() -> Result<Settings> {
        Settings::from_vars(|name| std::env::var(name).ok())
    }

    /// As [`Settings::from_env`], with the variables' values given by `var`.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Settings> {
        let set = |name: &str| var(name).filter(|v| !v.trim().is_empty());
        let home = || {
            set("HOME")
                .or_else(|| set("USERPROFILE"))
                .map(PathBuf::from)
        };
        let hf_home = set("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
            Some(
                cache
                    .or_else(|| Some(home()?.join(".cache")))?
                    .join("huggingface"),
            )
        });
        let cache = set("HF_HUB_CACHE")
            .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
            .map(PathBuf::from)
            .or_else(|| Some(hf_home.as_ref()?.join("hub")))
            .context("no home folder is known: set HF_HUB_CACHE to where models are to be kept")?;
        let token_file = set("HF_TOKEN_PATH")
            .map(PathBuf::from)
            .or_else(|| Some(hf_home.as_ref()?.join("token")));
        let token = set("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file?).ok());
        let token = token
            .map(|t| t.trim().to_string())
            .filter(|t| !t.is_empty());
        if token
            .as_ref()
            .is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic()))
        {
            bail!(
                "the Hugging Face token holds a blank or another character that no token has: check HF_TOKEN"
            );
        }
        let on = |v: String| {
            matches!(
                v.trim().to_ascii_uppercase().as_str(),
                "1" | "ON" | "YES" | "TRUE"
            )
        };
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim().trim_end_matches('/').to_string();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            bail!(
                "HF_ENDPOINT is '{endpoint}': expected an address that starts with https:// (or http://)"
            );
        }
        Ok(Settings {
            endpoint,
            token,
            cache,
            offline: set("HF_HUB_OFFLINE").is_some_and(on),
            backoff: Duration::from_millis(500),
            attempts: 6,
        })
    }
}

/// What a pull that was told to stop ends with.
pub const STOPPED: &str = "stopped; run the same command again to resume";

/// What a pull is doing; enough for a progress bar or a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The files to fetch are known.
    Resolved {
        /// The commit that the revision stands for.
        commit: String,
        /// Each file's path in the repository and its length in bytes.
        files: Vec<(String, u64)>,
    },
    /// Another process is downloading this file; waiting for it.
    Waiting {
        /// Path in the repository.
        file: String,
    },
    /// A file's download starts, with `resumed` bytes on disk already.
    Start {
        /// Path in the repository.
        file: String,
        /// Length in bytes.
        size: u64,
        /// Bytes kept from an earlier attempt.
        resumed: u64,
    },
    /// `done` bytes of the file are on disk and hashed.
    Progress {
        /// Bytes.
        done: u64,
    },
    /// The connection was lost; trying again after `wait`.
    Retry {
        /// Why.
        reason: String,
        /// How long.
        wait: Duration,
    },
    /// The server can't resume, so the file starts again from its first byte.
    Restart {
        /// Why.
        reason: String,
    },
    /// The file is whole, checked and in its place.
    Done {
        /// Path in the repository.
        file: String,
        /// Path on disk.
        path: PathBuf,
        /// Whether it was there already.
        cached: bool,
    },
}

/// Downloads what `spec` names at `revision` and returns the path of the (first) GGUF file, or of the
/// folder that holds the safetensors.
///
/// Every file is checked against the hash and size that the hub gives for it. `stop` ends the
/// download at the next piece, with everything received so far kept for the next run.
///
/// # Errors
/// Anything that keeps a whole, checked file from being in the cache: says what and what to do.
pub fn pull(
    settings: &Settings,
    spec: &Spec,
    revision: &str,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event),
) -> Result<PathBuf> {
    name::check_revision(revision)?;
    let repo = cache::Repo::new(&settings.cache, &spec.repo);
    if settings.offline {
        let found = repo.find(spec, Some(revision))?;
        return found.with_context(|| {
            format!(
                "{spec} is not in {} and HF_HUB_OFFLINE forbids downloading it",
                settings.cache.display()
            )
        });
    }
    let client = http::Client::new(settings)?;
    let retry = download::Retry::new(settings, stop);
    let choice = match &spec.file {
        Some(file) => Choice::Gguf(name::with_all_parts(file)),
        None => {
            let listed = retry.run(on_event, || client.list(&spec.repo, revision))?;
            choose(&listed, spec)?
        }
    };
    let (Choice::Gguf(files) | Choice::Folder(files)) = &choice;
    let mut remotes: Vec<http::Remote> = Vec::with_capacity(files.len());
    for file in files {
        // Later files are asked for at the first one's commit: the branch may move meanwhile.
        let at = remotes
            .first()
            .map_or(revision, |r| r.commit.as_str())
            .to_string();
        remotes.push(retry.run(on_event, || client.head(&spec.repo, &at, file))?);
    }
    let Some(first) = remotes.first() else {
        bail!("{spec}: no file to download")
    };
    let commit = first.commit.clone();
    if let Some(other) = remotes.iter().find(|r| r.commit != commit) {
        bail!(
            "{spec}: the hub gave commit {commit} for one file and {} for {}; run the pull again",
            other.commit,
            other.file
        );
    }
    on_event(Event::Resolved {
        commit: commit.clone(),
        files: remotes.iter().map(|r| (r.file.clone(), r.size)).collect(),
    });
    repo.check_space(&remotes)?;
    for remote in &remotes {
        download::fetch(&client, &retry, &repo, remote, on_event)?;
    }
    if revision != commit {
        repo.write_ref(revision, &commit)?;
    }
    let snapshot = repo.snapshot(&commit);
    Ok(match choice {
        Choice::Gguf(_) => snapshot.join(&remotes[0].file),
        Choice::Folder(_) => snapshot,
    })
}

/// A model in the cache by the name that `pull` takes (`gpt-oss-20b`, `owner/name[/file]`), or
/// `None` when the name is no such name or the model is not there whole. No network.
pub fn find(name: &str) -> Option<PathBuf> {
    let spec = Spec::parse(name).ok()?;
    let settings = Settings::from_env().ok()?;
    find_in(&settings.cache, &spec, None).ok()?
}

/// As [`find`], in the cache at `cache`, optionally at one revision only.
///
/// # Errors
/// When the cache holds several models that fit and `spec` does not say which.
pub fn find_in(cache: &Path, spec: &Spec, revision: Option<&str>) -> Result<Option<PathBuf>> {
    cache::Repo::new(cache, &spec.repo).find(spec, revision)
}

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The name that `--model` takes, `owner/name`.
    pub name: String,
    /// A GGUF file, the first part of one, or a folder.
    pub path: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
}

/// The models that the cache holds whole and that a name alone finds. No network.
pub fn pulled(cache: &Path) -> Vec<Pulled> {
    let names = cache::repositories(cache).into_iter();
    let found = names.filter_map(|name| {
        let spec = Spec::parse(&name).ok()?;
        let path = find_in(cache, &spec, None).ok()??;
        let bytes = cache::model_bytes(&path);
        Some(Pulled { name, path, bytes })
    });
    found.collect()
}

/// `12.11 GB`, for people.
pub fn human(bytes: u64) -> String {
    let (unit, scale) = match bytes {
        0..1_000_000 => ("kB", 1e3),
        1_000_000..1_000_000_000 => ("MB", 1e6),
        _ => ("GB", 1e9),
    };
    format!("{:.2} {unit}", bytes as f64 / scale)
}
