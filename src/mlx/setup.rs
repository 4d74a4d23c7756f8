//! The worker's Python: a private virtual environment with pinned, hashed packages.
//!
//! It is whole only with its stamp, which is written last and taken away first: a setup that is interrupted
//! leaves nothing that looks ready. The stamp holds the hash of the requirements, so that a newer program asks
//! for a newer environment.

use super::{
    frame::{Hello, PROTOCOL},
    scorer::hello,
};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The oldest Python that mlx-lm takes.
const OLDEST: (u32, u32) = (3, 11);
/// Names of Python, the likeliest to do first.
const PYTHONS: [&str; 5] = [
    "python3.13",
    "python3.12",
    "python3.11",
    "python3",
    "python",
];
/// Where another environment's Python may be named.
pub const PYTHON_VARIABLE: &str = "GOSSAMER_MLX_PYTHON";

/// What MLX computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// The processor, on Linux: exact, and slow.
    Cpu,
    /// NVIDIA GPUs, on Linux.
    Cuda13,
    /// Apple's GPUs.
    Macos,
}

impl Variant {
    /// The one for this machine.
    ///
    /// # Errors
    /// Where MLX does not run.
    pub fn of_this_machine() -> Result<Variant> {
        if cfg!(all(target_os = "macos", target_arch = "aarch64")) {
            Ok(Variant::Macos)
        } else if !cfg!(target_os = "linux") {
            bail!("MLX runs on Macs with Apple silicon and on Linux: not here")
        } else if Path::new("/proc/driver/nvidia/version").exists() {
            Ok(Variant::Cuda13)
        } else {
            Ok(Variant::Cpu)
        }
    }

    /// Its packages, with their hashes.
    fn requirements(self) -> &'static str {
        match self {
            Variant::Cpu => include_str!("../../python/mlx_worker/requirements-cpu.txt"),
            Variant::Cuda13 => include_str!("../../python/mlx_worker/requirements-cuda13.txt"),
            Variant::Macos => include_str!("../../python/mlx_worker/requirements-macos.txt"),
        }
    }

    fn stamp(self) -> String {
        let hash = Sha256::digest(self.requirements());
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = self.to_possible_value().map(|v| v.get_name().to_owned());
        format!("{} {hex}\n", name.unwrap_or_default())
    }
}

/// An environment, whether it is there or not.
#[derive(Debug, Clone)]
pub struct Environment {
    folder: PathBuf,
}

/// How it is with the environment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// Its Python.
    pub python: PathBuf,
    /// What it was made for; `None`: somebody else's.
    pub variant: Option<Variant>,
    /// What a worker says of itself there.
    pub hello: Option<Hello>,
    /// What is wrong, and what to do.
    pub problem: Option<String>,
}

impl Environment {
    /// The one that `gossamer mlx setup` makes, in the user's data folder.
    ///
    /// # Errors
    /// Where no home folder is known.
    pub fn own() -> Result<Environment> {
        let set = |name| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let data = if cfg!(windows) {
            set("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            set("HOME").map(|home| home.join("Library/Application Support"))
        } else {
            set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")))
        };
        let data = data.context("no home folder is known: set XDG_DATA_HOME or HOME")?;
        Ok(Environment {
            folder: data.join("gossamer/mlx"),
        })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn venv(&self) -> PathBuf {
        self.folder.join("venv")
    }

    fn python(&self) -> PathBuf {
        match cfg!(windows) {
            true => self.venv().join("Scripts/python.exe"),
            false => self.venv().join("bin/python3"),
        }
    }

    fn stamp(&self) -> PathBuf {
        self.folder.join("stamp")
    }

    /// What it was made for, if it is whole and of this program's version.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub fn variant(&self) -> Result<Variant> {
        let advice = "`gossamer mlx setup` makes it";
        let Ok(stamp) = fs::read_to_string(self.stamp()) else {
            let state = match self.venv().exists() {
                true => "is not complete",
                false => "is not there",
            };
            bail!(
                "the environment for MLX in {} {state}: {advice}",
                self.folder.display()
            );
        };
        let known = Variant::value_variants().iter();
        let same = known.copied().find(|variant| variant.stamp() == stamp);
        let folder = self.folder.display();
        let variant = same.with_context(|| {
            format!("the environment for MLX in {folder} is of another version: {advice} anew")
        })?;
        ensure!(
            self.python().exists(),
            "the environment for MLX in {folder} has lost its Python: {advice} anew"
        );
        Ok(variant)
    }

    /// Makes it, unless it is there already; `again` makes it anyhow. `tell` hears what is done. What pip or uv
    /// say goes to stderr.
    ///
    /// # Errors
    /// Without a fitting Python, or when packages can't be had; then it is as if nothing had been made.
    pub fn set_up(
        &self,
        variant: Variant,
        again: bool,
        tell: &mut dyn FnMut(String),
    ) -> Result<Hello> {
        let folder = self.folder.display();
        fs::create_dir_all(&self.folder).with_context(|| format!("create {folder}"))?;
        let lock = File::create(self.folder.join("lock"))?;
        lock.lock()
            .with_context(|| format!("wait for another setup in {folder}"))?;
        if !again && self.variant().is_ok_and(|there| there == variant) {
            tell(format!("{folder}: it is there already"));
            return self.answer();
        }
        let gone = |result: std::io::Result<()>, path: &Path| match result {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        };
        gone(fs::remove_file(self.stamp()), &self.stamp())?;
        gone(fs::remove_dir_all(self.venv()), &self.venv())?;
        let requirements = self.folder.join("requirements.txt");
        fs::write(&requirements, variant.requirements())?;
        let size = match variant {
            Variant::Cuda13 => "2.5 GB",
            Variant::Cpu | Variant::Macos => "350 MB",
        };
        tell(format!(
            "making {folder}, {size}: mlx-lm and what it needs, from PyPI, checked by hash"
        ));
        match program("uv") {
            Some(uv) => self.by_uv(&uv, &requirements)?,
            None => self.by_pip(&requirements)?,
        }
        let hello = self.answer()?;
        let partial = self.folder.join("stamp.incomplete");
        fs::write(&partial, variant.stamp())?;
        fs::rename(&partial, self.stamp())?;
        Ok(hello)
    }

    /// uv brings a Python where the system has none that fits.
    fn by_uv(&self, uv: &Path, requirements: &Path) -> Result<()> {
        let mut command = Command::new(uv);
        command.args(["venv", "--no-project", "--python"]);
        run(command
            .arg(format!(">={}.{}", OLDEST.0, OLDEST.1))
            .arg(self.venv()))?;
        let mut command = Command::new(uv);
        command.args(["pip", "install", "--require-hashes", "--python"]);
        run(command.arg(self.python()).arg("-r").arg(requirements))
    }

    fn by_pip(&self, requirements: &Path) -> Result<()> {
        let python = fitting_python()?;
        run(Command::new(&python).args(["-m", "venv"]).arg(self.venv())).with_context(
            || "making a virtual environment (on Debian it needs the package python3-venv)",
        )?;
        let mut command = Command::new(self.python());
        command.args([
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-deps",
        ]);
        run(command.arg("--require-hashes").arg("-r").arg(requirements))
    }

    /// What a worker says of itself there.
    fn answer(&self) -> Result<Hello> {
        hello(&self.python()).context("the environment for MLX does not work")
    }
}

impl Hello {
    /// Whether it is a worker that we can work with: ours, on the versions of mlx and mlx-lm that the worker is
    /// written for, whose insides it knows, or on later ones that differ in the third number.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.protocol != PROTOCOL {
            let found = self.protocol;
            return Err(format!("it speaks version {found}, expected {PROTOCOL}"));
        }
        for (package, found) in [("mlx", &self.mlx), ("mlx-lm", &self.mlx_lm)] {
            let pinned = pinned(package);
            let fits = match (numbers(found), numbers(pinned)) {
                (Some(found), Some(pinned)) => found[..2] == pinned[..2] && found[2] >= pinned[2],
                _ => false,
            };
            if !fits {
                return Err(format!(
                    "its Python has {package} {found}, expected {pinned} (a later third number will do): install \
                     that, or let `gossamer mlx setup` make an environment"
                ));
            }
            if found != pinned {
                tracing::warn!("{package} is {found}; this program was made with {pinned}");
            }
        }
        Ok(())
    }
}

/// The version of a package that `gossamer mlx setup` installs: the same for all variants.
fn pinned(package: &str) -> &'static str {
    let lines = Variant::Cpu.requirements().lines();
    let mut versions = lines.filter_map(|line| line.strip_prefix(package)?.strip_prefix("=="));
    let version = versions.next().and_then(|rest| rest.split(' ').next());
    version.unwrap_or_default()
}

/// The three numbers of a version; what follows them, such as `.dev1`, counts for nothing.
fn numbers(version: &str) -> Option<[u32; 3]> {
    let mut parts = version.splitn(3, '.');
    let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let patch = parts.next()?;
    let digits = patch.find(|c: char| !c.is_ascii_digit());
    let patch = patch.get(..digits.unwrap_or(patch.len()))?.parse().ok()?;
    Some([major, minor, patch])
}

/// The Python for workers: the one given, the variable's, or the environment's own.
///
/// # Errors
/// When there is none, with what to do.
pub fn find(given: Option<&Path>) -> Result<PathBuf> {
    match named(given) {
        Some(python) => Ok(python),
        None => {
            let own = Environment::own()?;
            own.variant()?;
            Ok(own.python())
        }
    }
}

fn named(given: Option<&Path>) -> Option<PathBuf> {
    let variable = env::var_os(PYTHON_VARIABLE).filter(|value| !value.is_empty());
    given.map(Path::to_path_buf).or(variable.map(PathBuf::from))
}

/// What there is to run MLX with; starts a worker to ask it, if there is one.
///
/// # Errors
/// Where no home folder is known.
pub fn status(given: Option<&Path>) -> Result<Status> {
    let (python, variant) = match named(given) {
        Some(python) => (python, Ok(None)),
        None => {
            let own = Environment::own()?;
            (own.python(), own.variant().map(Some))
        }
    };
    let asked = match &variant {
        Ok(_) => hello(&python),
        Err(error) => bail_with(error),
    };
    let (hello, problem) = match asked {
        Ok(hello) => (Some(hello), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    Ok(Status {
        python,
        variant: variant.ok().flatten(),
        hello,
        problem,
    })
}

fn bail_with(error: &anyhow::Error) -> Result<Hello> {
    bail!("{error:#}")
}

/// A program's file on the path.
fn program(name: &str) -> Option<PathBuf> {
    let name = Path::new(name).with_extension(env::consts::EXE_EXTENSION);
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(&name))
        .find(|file| file.is_file())
}

/// A Python that is new enough.
fn fitting_python() -> Result<PathBuf> {
    let mut found = Vec::new();
    for file in PYTHONS.iter().filter_map(|name| program(name)) {
        let code = "import sys; print('%d.%d' % sys.version_info[:2])";
        let output = Command::new(&file).args(["-I", "-c", code]).output();
        let Ok(output) = output else { continue };
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let version = text.split_once('.');
        let version = version.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        match version {
            Some(version) if version >= OLDEST => return Ok(file),
            _ => found.push(format!("{} is {text}", file.display())),
        }
    }
    let (major, minor) = OLDEST;
    let found = match found.is_empty() {
        true => "none was found".to_owned(),
        false => found.join(", "),
    };
    bail!(
        "MLX needs Python {major}.{minor} or newer, and {found}: install one, or uv \
         (https://docs.astral.sh/uv), which brings its own"
    )
}

/// Runs a step; all it says goes to stderr.
fn run(command: &mut Command) -> Result<()> {
    command.stdin(Stdio::null());
    command.stdout(Stdio::from(std::io::stderr()));
    let name = |command: &Command| {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words
            .map(OsStr::to_string_lossy)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let status = command
        .status()
        .with_context(|| format!("run {}", name(command)))?;
    ensure!(status.success(), "{status}: {}", name(command));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_pinned_and_hashed_and_come_from_no_other_index() {
        for &variant in Variant::value_variants() {
            let text = variant.requirements();
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            let (pins, hashes): (Vec<_>, Vec<_>) = lines.partition(|line| !line.starts_with(' '));
            assert!(
                pins.len() >= 30 && hashes.len() >= pins.len(),
                "{variant:?}"
            );
            assert!(
                pins.iter()
                    .all(|pin| pin.contains("==") && pin.ends_with('\\')),
                "{variant:?}"
            );
            assert!(
                hashes
                    .iter()
                    .all(|hash| hash.starts_with("    --hash=sha256:")),
                "{variant:?}"
            );
            assert!(
                text.contains("mlx-lm==") && !text.contains("://"),
                "{variant:?}"
            );
        }
        for package in ["mlx", "mlx-lm"] {
            let pin = format!("{package}=={} ", pinned(package));
            assert!(numbers(pinned(package)).is_some(), "{pin}");
            for &variant in Variant::value_variants() {
                let mut lines = variant.requirements().lines();
                assert!(
                    lines.any(|line| line.starts_with(&pin)),
                    "{variant:?}: {pin}"
                );
            }
        }
        // Another stamp for each.
        assert_ne!(Variant::Cpu.stamp(), Variant::Cuda13.stamp());
        assert!(Variant::Cpu.stamp().starts_with("cpu "));
    }

    #[test]
    fn versions_that_the_worker_does_not_know_are_refused() {
        let said = |mlx_lm: &str| {
            let hello = Hello {
                protocol: PROTOCOL,
                mlx: pinned("mlx").to_owned(),
                mlx_lm: mlx_lm.to_owned(),
                ..Hello::default()
            };
            hello.check()
        };
        let pin = pinned("mlx-lm");
        let [major, minor, patch] = numbers(pin).expect("three numbers");
        assert_eq!(said(pin), Ok(()));
        let later = format!("{major}.{minor}.{}.dev20260101", patch + 9);
        assert_eq!(said(&later), Ok(()));
        for other in [
            format!("{major}.{}.{patch}", minor - 1),
            format!("{major}.{}.0", minor + 1),
            format!("{major}.{minor}.{}", patch - 1),
            format!("{major}.{minor}"),
            "unknown".to_owned(),
            String::new(),
        ] {
            let why = said(&other).expect_err(&other);
            let found = format!("mlx-lm {other}, expected {pin}");
            assert!(why.contains(&found), "{why}");
        }
        let old = Hello {
            mlx: "0.1.0".to_owned(),
            mlx_lm: pin.to_owned(),
            protocol: PROTOCOL,
            ..Hello::default()
        };
        assert!(old.check().is_err_and(|why| why.contains("mlx 0.1.0")));
    }

    #[test]
    fn an_environment_without_its_stamp_is_none() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let own = Environment {
            folder: folder.path().to_path_buf(),
        };
        let problem = || match own.variant() {
            Ok(variant) => format!("{variant:?}"),
            Err(error) => error.to_string(),
        };
        assert!(problem().contains("is not there"), "{}", problem());
        fs::create_dir_all(own.venv())?;
        assert!(problem().contains("is not complete"), "{}", problem());
        fs::write(own.stamp(), "cpu 0123\n")?;
        assert!(problem().contains("of another version"), "{}", problem());
        fs::write(own.stamp(), Variant::Cpu.stamp())?;
        assert!(problem().contains("lost its Python"), "{}", problem());
        Ok(())
    }
}
