//! The cache on disk: where a repository's blobs, refs and snapshots lie, and what is whole there.

use super::{
    folder,
    http::Remote,
    name::{Choice, Spec, check_path, choose, with_all_parts},
};
use anyhow::{Context, Result, bail};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// One repository's folder in the cache.
pub(super) struct Repo {
    name: String,
    root: PathBuf,
    locks: PathBuf,
}

/// How a blob gets its name in a snapshot, best first. Windows without the developer mode and some
/// file systems have no symbolic links; some have no hard links either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Symlink,
    HardLink,
    Copy,
}

impl Repo {
    pub fn new(cache: &Path, repo: &str) -> Repo {
        let folder = format!("models--{}", repo.replace('/', "--"));
        Repo {
            name: repo.to_string(),
            root: cache.join(&folder),
            locks: cache.join(".locks").join(folder),
        }
    }

    /// `owner/name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub fn blob(&self, remote: &Remote) -> PathBuf {
        self.root.join("blobs").join(remote.hash.hex())
    }

    /// Where the blob grows until it is whole and checked.
    pub fn incomplete(&self, remote: &Remote) -> PathBuf {
        self.root
            .join("blobs")
            .join(format!("{}.incomplete", remote.hash))
    }

    pub fn lock(&self, remote: &Remote) -> PathBuf {
        self.locks.join(format!("{}.lock", remote.hash))
    }

    /// Whether the file's bytes are here whole. Only checked bytes ever get a blob's name.
    pub fn has_blob(&self, remote: &Remote) -> bool {
        fs::metadata(self.blob(remote)).is_ok_and(|m| m.is_file() && m.len() == remote.size)
    }

    /// Gives the checked blob its name in the snapshot and returns that path.
    pub fn publish(&self, remote: &Remote) -> Result<PathBuf> {
        let path = self.snapshot(&remote.commit).join(&remote.file);
        let mut why = None;
        for way in [Way::Symlink, Way::HardLink, Way::Copy] {
            match place(&self.blob(remote), &path, way) {
                Ok(()) => return Ok(path),
                Err(e) => why = Some(e),
            }
        }
        let why = why.map(|e| e.to_string()).unwrap_or_default();
        bail!("can't create {}: {why}", path.display())
    }

    /// Records that `revision` is `commit`.
    pub fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.root.join("refs").join(revision);
        write_whole(&path, commit.as_bytes())
            .with_context(|| format!("can't write {}", path.display()))
    }

    /// The model that `spec` names, if some snapshot holds it whole: at `revision`, or else at
    /// `main`, or else in the newest snapshot that has it.
    pub fn find(&self, spec: &Spec, revision: Option<&str>) -> Result<Option<PathBuf>> {
        let named = revision.unwrap_or("main");
        let by_ref = fs::read_to_string(self.root.join("refs").join(named)).ok();
        let commit = by_ref.map_or_else(|| named.to_string(), |c| c.trim().to_string());
        let mut snapshots = Vec::new();
        if check_path(&commit).is_ok() {
            snapshots.push(self.snapshot(&commit));
        }
        if revision.is_none()
            && let Ok(entries) = fs::read_dir(self.root.join("snapshots"))
        {
            let age = |p: &PathBuf| fs::metadata(p).and_then(|m| m.modified()).ok();
            let mut others: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
            others.sort_by_key(|p| std::cmp::Reverse(age(p)));
            snapshots.extend(others);
        }
        for snapshot in snapshots {
            let mut files = Vec::new();
            list(&snapshot, "", 4, &mut files);
            match choose(&files, spec) {
                Ok(Choice::Gguf(parts)) => return Ok(parts.first().map(|p| snapshot.join(p))),
                Ok(Choice::Folder(_)) if folder::is_whole(&snapshot) => return Ok(Some(snapshot)),
                Ok(Choice::Folder(_)) => {}
                // Several that fit are the user's to choose from; anything else is "not here".
                Err(e) if e.to_string().contains("several models") => return Err(e),
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Whether the disk has room for what is still to come.
    pub fn check_space(&self, remotes: &[Remote]) -> Result<()> {
        let missing = |r: &Remote| {
            let have = fs::metadata(self.incomplete(r)).map_or(0, |m| m.len());
            if self.has_blob(r) {
                0
            } else {
                r.size.saturating_sub(have)
            }
        };
        let need = remotes.iter().map(missing).fold(0u64, u64::saturating_add);
        let existing = self.root.ancestors().find(|p| p.is_dir());
        if let Some(free) = existing.and_then(|p| fs4::available_space(p).ok())
            && need > free
        {
            bail!(
                "not enough disk space in {}: {} more is needed and {} is free; make room or set HF_HUB_CACHE to another disk",
                self.root.display(),
                super::human(need),
                super::human(free)
            );
        }
        Ok(())
    }
}

/// The repositories of which the cache holds something, `owner/name`, in order.
pub(super) fn repositories(cache: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(cache) else {
        return Vec::new();
    };
    let names = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some(name.strip_prefix("models--")?.replacen("--", "/", 1))
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Bytes of the files under `path`, links followed, or of that file and the other parts of it.
pub(super) fn model_bytes(path: &Path) -> u64 {
    let size = |path: &Path| fs::metadata(path).map_or(0, |m| m.len());
    if path.is_dir() {
        let mut files = Vec::new();
        list(path, "", 0, &mut files);
        return files.iter().map(|file| size(&path.join(file))).sum();
    }
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return size(path);
    };
    let parts = with_all_parts(name).into_iter();
    parts.map(|part| size(&path.with_file_name(part))).sum()
}

/// Paths, relative and with `/`, of the files under `root`, links followed; dangling ones left out.
fn list(root: &Path, prefix: &str, depth: usize, out: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(root.join(prefix)) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let path = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}/{name}")
        };
        match fs::metadata(root.join(&path)) {
            Ok(m) if m.is_file() => out.push(path),
            Ok(m) if m.is_dir() && depth > 0 => list(root, &path, depth - 1, out),
            _ => {}
        }
    }
}

/// Makes `path` (inside a snapshot) show the blob's bytes, replacing what was there.
fn place(blob: &Path, path: &Path, way: Way) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let draft = sibling(path);
    let _ = fs::remove_file(&draft);
    match way {
        Way::Symlink => symlink(&relative(blob, folder)?, &draft)?,
        Way::HardLink => fs::hard_link(blob, &draft)?,
        Way::Copy => fs::copy(blob, &draft).map(drop)?,
    }
    fs::rename(&draft, path)?;
    // rename(2) leaves both names alone when they are hard links to one file.
    let _ = fs::remove_file(&draft);
    Ok(())
}

/// A name beside `path` that no other process or thread uses.
fn sibling(path: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}-{count}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// `blob` as seen from `folder`; both lie in the same repository's folder.
fn relative(blob: &Path, folder: &Path) -> io::Result<PathBuf> {
    let common = folder
        .ancestors()
        .find(|a| blob.starts_with(a))
        .ok_or(io::ErrorKind::InvalidInput)?;
    let up = folder.components().count() - common.components().count();
    let mut path: PathBuf = std::iter::repeat_n("..", up).collect();
    path.push(
        blob.strip_prefix(common)
            .map_err(|_| io::ErrorKind::InvalidInput)?,
    );
    Ok(path)
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_target: &Path, _link: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
    let draft = sibling(path);
    fs::write(&draft, bytes)?;
    fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::hash::Hash;

    #[test]
    fn every_way_of_placing_a_blob_shows_its_bytes() {
        for way in [Way::Symlink, Way::HardLink, Way::Copy] {
            let dir = tempfile::tempdir().unwrap();
            let blob = dir.path().join("blobs/abc");
            let path = dir.path().join("snapshots/c0/sub/m.gguf");
            write_whole(&blob, b"bytes").unwrap();
            for _ in 0..2 {
                place(&blob, &path, way).unwrap();
                assert_eq!(fs::read(&path).unwrap(), b"bytes", "{way:?}");
            }
            assert_eq!(
                fs::read_dir(path.parent().unwrap()).unwrap().count(),
                1,
                "{way:?} left a draft"
            );
            if cfg!(unix) && way == Way::Symlink {
                assert_eq!(
                    fs::read_link(&path).unwrap(),
                    Path::new("../../../blobs/abc")
                );
            }
        }
    }

    #[test]
    fn find_wants_every_part_and_prefers_main() {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repo::new(dir.path(), "o/n");
        let spec = Spec::parse("o/n").unwrap();
        let put = |commit: &str, file: &str| {
            write_whole(&repo.snapshot(commit).join(file), b"x").unwrap()
        };
        assert_eq!(repo.find(&spec, None).unwrap(), None);
        put("c1", "m-00001-of-00002.gguf");
        assert_eq!(
            repo.find(&spec, None).unwrap(),
            None,
            "half a split model was found"
        );
        put("c1", "m-00002-of-00002.gguf");
        let first = repo.snapshot("c1").join("m-00001-of-00002.gguf");
        assert_eq!(repo.find(&spec, None).unwrap(), Some(first));
        put("c2", "m.gguf");
        repo.write_ref("main", "c2").unwrap();
        assert_eq!(
            repo.find(&spec, None).unwrap(),
            Some(repo.snapshot("c2").join("m.gguf"))
        );
        repo.write_ref("main", "../../..").unwrap();
        assert_eq!(repo.find(&spec, Some("main")).unwrap(), None);
        assert_eq!(repo.find(&spec, Some("c9")).unwrap(), None);
        put("c2", "n.gguf");
        assert!(
            repo.find(&spec, Some("c2"))
                .unwrap_err()
                .to_string()
                .contains("several models")
        );
    }

    #[test]
    fn find_wants_a_whole_folder() {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repo::new(dir.path(), "o/n");
        let spec = Spec::parse("o/n").unwrap();
        let put = |file: &str, text: &str| {
            write_whole(&repo.snapshot("c1").join(file), text.as_bytes()).unwrap()
        };
        put("config.json", "{}");
        put("tokenizer.json", "{}");
        put(
            "model.safetensors.index.json",
            r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#,
        );
        put("model-1.safetensors", "x");
        assert_eq!(repo.find(&spec, None).unwrap(), None);
        put("model-2.safetensors", "x");
        assert_eq!(repo.find(&spec, None).unwrap(), Some(repo.snapshot("c1")));
        assert_eq!(repositories(dir.path()), ["o/n"]);
        let index = fs::metadata(repo.snapshot("c1").join("model.safetensors.index.json")).unwrap();
        assert_eq!(
            model_bytes(&repo.snapshot("c1")),
            2 + 2 + 1 + 1 + index.len()
        );
    }

    #[test]
    fn a_full_disk_is_told_before_the_download() {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repo::new(dir.path(), "o/n");
        let remote = |size| Remote {
            file: "m.gguf".into(),
            commit: "c".into(),
            hash: Hash::Sha256("e".into()),
            size,
        };
        assert!(repo.check_space(&[remote(1)]).is_ok());
        let told = repo
            .check_space(&[remote(u64::MAX), remote(u64::MAX)])
            .unwrap_err()
            .to_string();
        assert!(told.contains("not enough disk space"), "{told}");
    }
}
