//! MLX as people run it: `--backend mlx` through the program, on the demo model in MLX's form.

#[path = "../common/mod.rs"]
mod common;
#[path = "../server/program.rs"]
#[allow(dead_code)] // The server's tests use all of it.
mod program;

mod commands;
mod heldout;
#[cfg(target_os = "linux")]
mod kill;
mod plan;
#[cfg(unix)]
mod setup;

use std::path::PathBuf;

/// Longer than anything here should take.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// The demo model as an MLX folder.
struct Demo {
    folder: tempfile::TempDir,
}

impl Demo {
    fn new() -> Demo {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let gguf = common::root().join("models/demo/demo.gguf");
        common::tool("gguf_to_mlx.py", &[&gguf, &folder.path().join("demo")]);
        Demo { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("demo")
    }

    /// The flags that run it.
    fn flags(&self) -> Vec<String> {
        let path = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
        let python = path(common::python());
        let all = ["--backend", "mlx", "--mlx-python", &python, "--model"];
        let all = all.iter().map(|flag| (*flag).to_owned());
        all.chain([path(self.path())]).collect()
    }
}
