//! Names: what the user types, what a repository lists, and which of its files is the model.
//!
//! Names reach the file system, so only plain relative paths pass.

use super::folder;
use anyhow::{Context, Result, bail};
use std::{collections::BTreeMap, fmt};

/// What to pull: a repository, and either a file of it or a hint which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// `owner/name`.
    pub repo: String,
    /// A file's path in the repository; `None` lets [`choose`] find the model.
    pub file: Option<String>,
    /// `owner/name:TAG`: only files whose name holds TAG (`mxfp4`, `F16` …), in any case.
    pub tag: Option<String>,
}

impl Spec {
    /// Reads `gpt-oss-20b`, `gpt-oss-120b`, `owner/name`, `owner/name:TAG` or `owner/name/path/file.gguf`.
    ///
    /// # Errors
    /// Names that no repository can have, and paths that would leave the cache.
    pub fn parse(text: &str) -> Result<Spec> {
        let known = match text {
            "gpt-oss-20b" => Some("ggml-org/gpt-oss-20b-GGUF"),
            "gpt-oss-120b" => Some("ggml-org/gpt-oss-120b-GGUF"),
            _ => None,
        };
        if let Some(repo) = known {
            return Ok(Spec {
                repo: repo.into(),
                file: None,
                tag: None,
            });
        }
        let mut parts = text.splitn(3, '/');
        let (owner, rest, file) = (parts.next().unwrap_or(""), parts.next(), parts.next());
        let Some(rest) = rest else {
            bail!(
                "'{text}' is not a model name: expected gpt-oss-20b, gpt-oss-120b, owner/name or owner/name/file.gguf"
            );
        };
        let (name, tag) = match rest.split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (rest, None),
        };
        for part in [owner, name] {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            let edge = |b: Option<&u8>| b.is_none_or(|b| b".-".contains(b));
            let bytes = part.as_bytes();
            if !bytes.iter().all(|&b| plain(b))
                || edge(bytes.first())
                || edge(bytes.last())
                || part.len() > 96
            {
                bail!(
                    "'{text}': '{part}' can't be part of a repository's name (letters, digits, '-', '_', '.'), expected owner/name[/file]"
                );
            }
        }
        if tag.is_some_and(|t| t.is_empty() || file.is_some()) {
            bail!("'{text}': expected owner/name:TAG or owner/name/file.gguf");
        }
        if let Some(file) = file {
            check_path(file)?;
            if !is_gguf(file) {
                bail!("'{file}' is not a GGUF file: its name must end in .gguf");
            }
        }
        Ok(Spec {
            repo: format!("{owner}/{name}"),
            file: file.map(Into::into),
            tag: tag.map(Into::into),
        })
    }
}

/// What of a repository is the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// A GGUF file: all its parts, in order.
    Gguf(Vec<String>),
    /// A folder of safetensors: its files.
    Folder(Vec<String>),
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        match (&self.file, &self.tag) {
            (Some(file), _) => write!(f, "/{file}"),
            (None, Some(tag)) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

/// Refuses a repository path that is not plain and relative: it comes from a server or a user and
/// is joined to the cache's path.
pub(super) fn check_path(path: &str) -> Result<()> {
    let bad_char = |c: char| c.is_control() || r#"\:*?"<>|"#.contains(c);
    let bad_part = |part: &str| matches!(part, "" | "." | "..") || part.ends_with(['.', ' ']);
    if path.len() > 512 || path.contains(bad_char) || path.split('/').any(bad_part) {
        bail!(
            "refusing the file name '{}': not a plain relative path",
            path.escape_debug()
        );
    }
    Ok(())
}

/// As [`check_path`], for a branch, tag or commit.
pub(super) fn check_revision(revision: &str) -> Result<()> {
    if check_path(revision).is_err() {
        bail!(
            "'{}' is not a revision: expected a branch, a tag or a commit",
            revision.escape_debug()
        );
    }
    Ok(())
}

/// Whether the file holds weights.
pub(super) fn is_weights(file: &str) -> bool {
    is_gguf(file) || file.ends_with(".safetensors")
}

fn is_gguf(file: &str) -> bool {
    file.len() > 5
        && file.is_char_boundary(file.len() - 5)
        && file[file.len() - 5..].eq_ignore_ascii_case(".gguf")
}

/// `stem-00002-of-00003.gguf` as (`stem`, 2, 3).
fn split_part(file: &str) -> Option<(&str, u32, u32)> {
    let rest = file.strip_suffix(".gguf")?;
    let (rest, count) = rest.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let number = |s: &str| {
        (s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit()))
            .then(|| s.parse().ok())
            .flatten()
    };
    let (part, count): (u32, u32) = (number(part)?, number(count)?);
    (part >= 1 && part <= count && count <= 1000).then_some((stem, part, count))
}

/// All parts of the split file that `file` belongs to, in order; `file` alone if it is not split.
pub(super) fn with_all_parts(file: &str) -> Vec<String> {
    match split_part(file) {
        Some((stem, _, count)) => (1..=count)
            .map(|i| format!("{stem}-{i:05}-of-{count:05}.gguf"))
            .collect(),
        None => vec![file.to_string()],
    }
}

/// Which of a repository's files to fetch: all parts of the one model that `spec` names, or, when
/// it names none, of the one in the released format (MXFP4), else Q8_0, F16 or BF16; in a repository
/// without GGUF files, the safetensors and what belongs to them.
///
/// # Errors
/// No model, missing parts, several that fit equally well (listed), or a name that is no plain path.
pub fn choose(listed: &[String], spec: &Spec) -> Result<Choice> {
    let mut models: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in listed.iter().filter(|f| is_gguf(f)) {
        check_path(file)?;
        let base = file.rsplit('/').next().unwrap_or(file).to_ascii_lowercase();
        if base.starts_with("mmproj") || base.contains("imatrix") {
            continue; // companions of a model, not models
        }
        let first = with_all_parts(file).swap_remove(0);
        models.entry(first).or_default().push(file.clone());
    }
    if models.is_empty() {
        let repo = &spec.repo;
        if spec.file.is_some() || spec.tag.is_some() {
            bail!("{repo} holds no GGUF file");
        }
        let files = folder::files(listed).with_context(|| repo.clone())?;
        let files = files.with_context(|| {
            format!("{repo} holds neither a GGUF file nor a model's safetensors at its root")
        })?;
        return Ok(Choice::Folder(files));
    }
    if let Some(file) = &spec.file {
        let first = with_all_parts(file).swap_remove(0);
        models.retain(|name, _| *name == first);
        if models.is_empty() {
            bail!("{} holds no file {file}", spec.repo);
        }
    }
    let has = |name: &str, tag: &str| {
        name.to_ascii_lowercase()
            .contains(&tag.to_ascii_lowercase())
    };
    let names: Vec<String> = models.keys().cloned().collect();
    if let Some(tag) = &spec.tag {
        models.retain(|name, _| has(name, tag));
        if models.is_empty() {
            bail!(
                "{} holds no GGUF file with '{tag}' in its name; it holds {}",
                spec.repo,
                names.join(", ")
            );
        }
    }
    for tag in ["mxfp4", "q8_0", "f16", "bf16"] {
        // "bf16" holds "f16": the plain one comes first, and its own round leaves the other out.
        let fits = |name: &str| has(name, tag) && (tag != "f16" || !has(name, "bf16"));
        if models.len() > 1 && models.keys().any(|name| fits(name)) {
            models.retain(|name, _| fits(name));
        }
    }
    if models.len() > 1 {
        let left: Vec<&str> = models.keys().map(String::as_str).collect();
        bail!(
            "{} holds several models; name one, as in {}/{}: {}",
            spec.repo,
            spec.repo,
            left[0],
            left.join(", ")
        );
    }
    let (first, mut found) = models.pop_first().unwrap_or_default();
    let wanted = with_all_parts(&first);
    found.sort();
    found.dedup();
    match wanted.iter().find(|part| !found.contains(part)) {
        Some(part) => bail!(
            "{} lacks {part}, one of {} parts of the model",
            spec.repo,
            wanted.len()
        ),
        None => Ok(Choice::Gguf(wanted)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_parses() {
        let spec = |t: &str| {
            Spec::parse(t)
                .map(|s| (s.repo, s.file, s.tag))
                .map_err(|e| e.to_string())
        };
        assert_eq!(
            spec("gpt-oss-20b"),
            Ok(("ggml-org/gpt-oss-20b-GGUF".into(), None, None))
        );
        assert_eq!(
            spec("o/n.x/d/f.gguf"),
            Ok(("o/n.x".into(), Some("d/f.gguf".into()), None))
        );
        assert_eq!(
            spec("o/n:Q8_0"),
            Ok(("o/n".into(), None, Some("Q8_0".into())))
        );
        for bad in [
            "",
            "x",
            "/n",
            "o/",
            "../n",
            "o/..",
            "o/n/../../x.gguf",
            "o/n/x.bin",
            "o n/x",
            "o/n:",
            "o/n:t/f.gguf",
            "o/n//x.gguf",
            "o/n/C:x.gguf",
            "o/n/a\\b.gguf",
            "o/n/é",
        ] {
            assert!(spec(bad).is_err(), "{bad} was accepted");
        }
    }

    fn chosen(files: &[&str], name: &str) -> Result<Vec<String>, String> {
        let files: Vec<String> = files.iter().map(|f| f.to_string()).collect();
        match choose(&files, &Spec::parse(name).unwrap()) {
            Ok(Choice::Gguf(parts)) => Ok(parts),
            Ok(Choice::Folder(files)) => Err(format!("a folder: {files:?}")),
            Err(e) => Err(e.to_string()),
        }
    }

    #[test]
    fn choose_prefers_the_released_format() {
        let files = [
            "README.md",
            "m-F16.gguf",
            "m-Q4_K_M.gguf",
            "m-mxfp4.gguf",
            "mmproj-x.gguf",
            "m-Q8_0.gguf",
            "m-BF16.gguf",
        ];
        assert_eq!(chosen(&files, "o/n").unwrap(), ["m-mxfp4.gguf"]);
        assert_eq!(chosen(&files, "o/n:f16").unwrap(), ["m-F16.gguf"]);
        assert_eq!(chosen(&files, "o/n:q4_k_m").unwrap(), ["m-Q4_K_M.gguf"]);
        assert_eq!(chosen(&files, "o/n/m-BF16.gguf").unwrap(), ["m-BF16.gguf"]);
        assert!(
            chosen(&files, "o/n:Q5")
                .unwrap_err()
                .contains("m-Q4_K_M.gguf")
        );
        assert!(
            chosen(&["a-Q4_0.gguf", "b-Q4_0.gguf"], "o/n")
                .unwrap_err()
                .contains("several models")
        );
        assert!(
            chosen(&["README.md"], "o/n")
                .unwrap_err()
                .contains("neither a GGUF file nor")
        );
        assert!(
            chosen(&["../../x.gguf"], "o/n")
                .unwrap_err()
                .contains("refusing")
        );
        assert!(
            chosen(&["/etc/x.gguf"], "o/n")
                .unwrap_err()
                .contains("refusing")
        );
    }

    #[test]
    fn a_folder_is_taken_where_there_is_no_gguf_file() {
        let folder = ["config.json", "tokenizer.json", "model.safetensors"];
        let taken = chosen(&folder, "o/n").unwrap_err();
        assert_eq!(taken, format!("a folder: {folder:?}"));
        let with_gguf = [&folder[..], &["m.gguf"]].concat();
        assert_eq!(chosen(&with_gguf, "o/n").unwrap(), ["m.gguf"]);
        assert!(chosen(&folder, "o/n:F16").unwrap_err().contains("no GGUF"));
    }

    #[test]
    fn split_files_come_whole() {
        let parts = [
            "q/m-00001-of-00003.gguf",
            "q/m-00002-of-00003.gguf",
            "q/m-00003-of-00003.gguf",
        ];
        assert_eq!(
            chosen(&[parts[2], parts[0], parts[1]], "o/n").unwrap(),
            parts
        );
        assert_eq!(with_all_parts(parts[1]), parts);
        assert!(
            chosen(&parts[..2], "o/n")
                .unwrap_err()
                .contains("m-00003-of-00003")
        );
        assert_eq!(
            with_all_parts("m-00004-of-00003.gguf"),
            ["m-00004-of-00003.gguf"]
        );
    }
}
